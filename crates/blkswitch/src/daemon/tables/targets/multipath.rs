//! The multipath target: its constructor, messages and texts. The core parses and prints them.
//!
//! The paths of a multipath are leaves. In the kernel they may be any block device. Here, a device
//! in between would bring its own gate, flushes and errors, and no benefit.
//!
//! Contract: as [`super`].

use blkswitch_core::args::Words;
use blkswitch_core::error::Errno as CoreErrno;
use blkswitch_core::multipath::selector::RepeatCountDeprecated;
use blkswitch_core::multipath::{
    Item, MessageError, Multipath, MultipathCommand, Params, ParamsError,
};
use blkswitch_io::device::Messenger;
use blkswitch_io::pool::Registry;
use blkswitch_io::{Address, Leaf, Segment, Table, Target, To};

use super::{Call, Need, TargetType};
use crate::daemon::failure::Failure;
use crate::daemon::tables::builder::{Builder, PathLeaf};
use crate::daemon::tables::lines::Line;
use crate::daemon::tables::lookup::{Found, find};
use crate::daemon::tables::words::address;
use crate::protocol::{Errno, MessageReply};

pub(super) static TYPE: TargetType = TargetType {
    name: "multipath",
    version: [1, 14, 0],
    stands_alone: true,
    construct,
    params,
    status,
    message: Some(message),
    needs,
};

/// Longest message. A message to a multipath has only a few words.
const MESSAGE_MAX_BYTES: usize = 256 << 10;

fn construct(table: &mut Builder<'_>, line: &Line<'_>) -> Result<Target, Failure> {
    let words = line.words.as_slice();
    let refuse = |error: ParamsError| {
        let word = words.get(error.at).copied();
        let errno = Errno::from_number(error.errno().number());
        let text = format!("multipath: {error} ({})", error.errno());
        Failure::target(errno, text, error.explain(word).to_string())
    };
    let mut params = Params::parse(words).map_err(refuse)?;
    let (mut groups, mut paths, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
    let mut volume = Volume::default();
    while let Some(item) = params.next_item().map_err(refuse)? {
        let path = match item {
            Item::Group(group) => {
                groups.push(group.group());
                continue;
            }
            Item::Path(path) => path,
        };
        let refuse_path = |found: Failure| {
            let errno = CoreErrno::from_number(found.errno.number()).unwrap_or(CoreErrno::Eio);
            let mut failure = refuse(path.lookup_failed(errno));
            failure.errno = found.errno;
            failure.reason = format!("path {}: {}", path.number, found.reason);
            failure
        };
        leaves.push(match table.path(path.device).map_err(refuse_path)? {
            PathLeaf::Open(address, leaf) => {
                volume.check(&leaf, &address.to_string()).map_err(refuse_path)?;
                PathLeaf::Open(address, leaf)
            }
            PathLeaf::Absent(address, failure) => PathLeaf::Absent(address, refuse_path(failure)),
        });
        let new = path.path().map_err(refuse)?;
        if let Some(selector) = new.repeat_count_deprecated {
            tracing::warn!("{}", RepeatCountDeprecated(&selector));
        }
        paths.push(new.path);
    }
    let (tos, absent) = adopt(table, leaves)?;
    let (features, initial) = (*params.features(), params.initial_group());
    let groups = Multipath::new(features, initial, groups.into(), paths.into());
    // This cannot fail: groups and paths come from one line.
    let groups =
        groups.ok_or_else(|| Failure::new(Errno::Einval, "the groups and paths do not fit"))?;
    for path in absent {
        groups.fail_path(path, &mut |_| {});
    }
    Ok(Target::Multipath { groups, paths: tos.into() })
}

/// Adds the paths to the table. A path that cannot be reached becomes a failed path, which is
/// reinstated when it comes back. At least one path must be open, because it tells what volume they
/// all lead to. So one member that is down does not keep a host from its volume.
fn adopt(table: &mut Builder<'_>, leaves: Vec<PathLeaf>) -> Result<(Vec<To>, Vec<u32>), Failure> {
    let open = leaves.iter().find_map(|leaf| match leaf {
        PathLeaf::Open(_, leaf) => Some(leaf.clone()),
        PathLeaf::Absent(..) => None,
    });
    let (mut tos, mut absent) = (Vec::new(), Vec::new());
    for (leaf, path) in leaves.into_iter().zip(0..) {
        let (address, leaf) = match (leaf, &open) {
            (PathLeaf::Open(address, leaf), _) => (address, leaf),
            (PathLeaf::Absent(_, failure), None) => return Err(failure),
            (PathLeaf::Absent(address, failure), Some(other)) => {
                tracing::warn!(reason = %failure.reason, "a path is down and begins as failed");
                absent.push(path);
                let leaf = table.absent(&address, other);
                (address, leaf)
            }
        };
        tos.push(To { below: table.adopt(&address, leaf), offset: 0 });
    }
    Ok((tos, absent))
}

/// The properties of the volume that all paths must lead to. A region that goes to the wrong volume
/// is the worst possible error.
#[derive(Default)]
struct Volume {
    sectors: Option<(u64, String)>,
    identity: Option<Named>,
}

/// The identity of the volume that a path leads to, as far as the path reports it.
#[derive(Clone)]
struct Named {
    identity: String,
    path: String,
    /// The target within which the identity is unique; `None` if it is unique in the world.
    target: Option<String>,
}

impl Volume {
    /// Refuses a path that leads to another volume than the paths before it, or that goes through
    /// the page cache although it must not.
    fn check(&mut self, leaf: &Leaf, name: &str) -> Result<(), Failure> {
        let sectors = leaf.properties().sectors;
        if leaf.properties().device_numbers.is_some() && leaf.engine().forgets_failed_writes() {
            let reason = format!(
                "'{name}' goes through the page cache, where no other path sees what is written: load the \
                 table without --buffered"
            );
            return Err(Failure::new(Errno::Einval, reason));
        }
        let (first, other) = self.sectors.get_or_insert_with(|| (sectors, name.to_owned()));
        if *first != sectors {
            let reason = format!(
                "'{name}' has {sectors} sectors and '{other}' has {first}: paths to one volume have one size"
            );
            return Err(Failure::new(Errno::Einval, reason));
        }
        let Some(identity) = leaf.engine().identity() else { return Ok(()) };
        let target = leaf.engine().unique_within().map(str::to_owned);
        let named = Named { identity, path: name.to_owned(), target };
        let Named { identity, path: other, target: other_target } =
            self.identity.get_or_insert_with(|| named.clone());
        if *identity != named.identity {
            let reason = format!(
                "'{name}' leads to the volume '{}' and '{other}' to '{identity}': not to one",
                named.identity
            );
            return Err(Failure::new(Errno::Einval, reason));
        }
        if named.target != *other_target {
            tracing::warn!(
                path = name,
                other,
                identity,
                "these paths may lead to two volumes: the names that agree are not unique; give \
                 the unit one that is, such as a scsi_id and serial number of its own in tgt"
            );
        }
        Ok(())
    }
}

fn params(table: &Table, segment: &Segment) -> String {
    let Target::Multipath { groups, .. } = &segment.target else { return String::new() };
    groups.table(|path, f| f.write_str(&address(table, segment, path as usize))).to_string()
}

fn status(table: &Table, segment: &Segment) -> String {
    let Target::Multipath { groups, .. } = &segment.target else { return String::new() };
    groups.info(|path, f| f.write_str(&address(table, segment, path as usize))).to_string()
}

fn needs<'a>(line: &Line<'a>) -> Vec<Need<'a>> {
    let mut devices = Vec::new();
    let Ok(mut params) = Params::parse(&line.words) else { return devices };
    while let Ok(Some(item)) = params.next_item() {
        if let Item::Path(path) = item {
            // The word of the line itself is needed, because it lives longer.
            let word = line.words.iter().find(|word| **word == path.device);
            devices.extend(word.map(|word| (*word, line.len)));
        }
    }
    devices
}

/// Applies the words of a message.
fn message(call: Call<'_, '_>) -> Result<MessageReply, Failure> {
    let Call { messenger, registry, text, .. } = call;
    if !text.complete {
        let reason = format!("a message to a multipath may have at most {MESSAGE_MAX_BYTES} bytes");
        return Err(Failure::new(Errno::E2big, reason));
    }
    let words: Vec<Vec<u8>> = Words::new(&text.head).map(|word| word.bytes().collect()).collect();
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let applied = if messenger.is_suspended() {
        Err(MessageError::Suspended)
    } else {
        apply(messenger, &words, registry)
    };
    applied
        .map(|()| MessageReply { arguments: words.len() as u64, ..MessageReply::default() })
        .map_err(|error| {
            let word = error.word(&words);
            let errno = Errno::from_number(error.errno().number());
            let mut failure = Failure::new(errno, error.explain(word).to_string());
            let line = error.of_word(word).to_string();
            if !line.is_empty() {
                failure.kernel.push(format!("device-mapper: multipath: {line}"));
            }
            failure
        })
}

fn apply(
    messenger: &Messenger<'_>,
    words: &[&[u8]],
    registry: &Registry,
) -> Result<(), MessageError> {
    let command = MultipathCommand::parse(words)?;
    let table = messenger.table();
    let Some((_, paths)) = table.multipath() else { return Err(MessageError::Unrecognised) };
    let meant = match command.device() {
        Some(word) => meant(word, table, paths, registry)?,
        None => Vec::new(),
    };
    messenger
        .apply(&command, |path| meant.contains(&path))
        .unwrap_or(Err(MessageError::Unrecognised))
}

/// The numbers of the paths on the leaf that a word names.
fn meant(
    word: &[u8],
    table: &Table,
    paths: &[To],
    registry: &Registry,
) -> Result<Vec<u32>, MessageError> {
    let found = match find(word, registry) {
        Ok(found) => found,
        // The kernel accepts any device number. If there is no such device, no path is on it.
        Err(failure) if failure.errno == Errno::Enxio => return Ok(Vec::new()),
        Err(failure) => {
            let errno = CoreErrno::from_number(failure.errno.number()).unwrap_or(CoreErrno::Eio);
            return Err(MessageError::Device { errno });
        }
    };
    let Found::Leaf(named) = found else { return Ok(Vec::new()) };
    let key = Leaf::key_of(&named);
    let names = table.segments().first().map(|segment| &*segment.words).unwrap_or_default();
    let leads = |number: u32, to: &To| {
        let leaf = table.leaf_of(*to);
        // The word is compared as well, because a file may have been moved since it was opened.
        names.get(number as usize).is_some_and(|name| name.as_bytes() == word)
            || leaf.is_some_and(|leaf| key.as_deref() == Some(leaf.key()))
    };
    let meant: Vec<u32> =
        (0..).zip(paths).filter(|(number, to)| leads(*number, to)).map(|(path, _)| path).collect();
    match named {
        Address::Path(path) if meant.is_empty() && !path.exists() => {
            Err(MessageError::Device { errno: CoreErrno::Enoent })
        }
        _ => Ok(meant),
    }
}
