//! The switch target (dm-switch 1.1) sends each region of the segment to the path in the region
//! map.
//!
//! Contract: as [`super`]. The core does the parsing, the geometry, the map and the texts.

use blkswitch_core::args::{Word, Words};
use blkswitch_core::error::{Errno as CoreErrno, Error};
use blkswitch_core::switch::message::{MAX_WORD_LEN, UNRECOGNISED_MESSAGE};
use blkswitch_core::switch::{
    Command, Geometry, Map, MapWriter, Message, Params, TextError, command,
};
use blkswitch_io::slots::Slots;
use blkswitch_io::table::RegionMap;
use blkswitch_io::{Segment, Table, Target, To};

use super::{Call, More, Need, TargetType, Text, device_pairs, no_status};
use crate::compact::Compact;
use crate::daemon::failure::{Failure, errno_of};
use crate::daemon::tables::builder::Builder;
use crate::daemon::tables::lines::Line;
use crate::daemon::tables::words::paths_text;
use crate::nearest::did_you_mean;
use crate::protocol::{Errno, MessageReply};

pub(super) static TYPE: TargetType = TargetType {
    name: "switch",
    version: [1, 1, 0],
    stands_alone: false,
    construct,
    params,
    status: no_status,
    message: Some(message),
    needs,
};

/// The first words that [`command`] knows.
const MESSAGES: [&str; 2] = ["set_region_mappings", "get_region_mappings"];
/// Longest answer of `get_region_mappings`. `map export` streams longer maps.
const ANSWER_MAX_BYTES: usize = 1 << 20;

fn construct(table: &mut Builder<'_>, line: &Line<'_>) -> Result<Target, Failure> {
    let words = &line.words;
    let refuse = |error: Error| {
        let word = error.word_position().and_then(|at| words.get(at).copied());
        let text = format!("switch: {error} ({})", error.errno());
        Failure::target(errno_of(&error), text, error.explain(word).to_string())
    };
    let params = Params::parse(words.iter().copied()).map_err(refuse)?;
    let (num_paths, region_size) = (params.num_paths(), params.region_size());
    let mut paths = Vec::with_capacity(num_paths as usize);
    for path in params {
        let below = table.below(path.device).map_err(|found| {
            // The core knows few errnos; all others become `EIO` in its text. The failure has the
            // original errno.
            let errno = CoreErrno::from_number(found.errno.number()).unwrap_or(CoreErrno::Eio);
            let mut failure = refuse(path.lookup_failed(errno));
            failure.errno = found.errno;
            failure.reason = format!("path {}: {}", path.number, found.reason);
            failure
        })?;
        let offset = path.offset().map_err(refuse)?;
        paths.push(To { below, offset });
    }
    let geometry = Geometry::new(line.len, num_paths, region_size).map_err(refuse)?;
    let storage = table.slots(&geometry)?;
    let no_memory = |_| refuse(Error::RegionTableMemory { regions: geometry.nr_regions() });
    let map = Map::new(geometry, storage).map_err(no_memory)?;
    Ok(Target::Switch { map, paths: paths.into() })
}

fn params(table: &Table, segment: &Segment) -> String {
    let Target::Switch { map, paths } = &segment.target else { return String::new() };
    let head = format!("{} {} 0", paths.len(), map.geometry().region_size());
    paths_text(head, table, segment)
}

fn needs<'a>(line: &Line<'a>) -> Vec<Need<'a>> {
    device_pairs(line.words.get(3..).unwrap_or_default(), line.len)
}

fn message(mut call: Call<'_, '_>) -> Result<MessageReply, Failure> {
    let no_map = || Failure::new(Errno::Eio, "the segment has no map");
    let map = call.messenger.map().ok_or_else(no_map)?;
    let mut words = Words::new(&call.text.head);
    let first: Vec<u8> = words.next().map(|word| word.bytes().collect()).unwrap_or_default();
    match command(&first) {
        Some(Command::SetRegionMappings) => {
            let begin = call.text.head.len() - words.rest().len();
            call.text.head.drain(..begin);
            if call.atomic {
                let mut check = Message::new();
                let head = &call.text.head;
                let checked = check.check_text(map.geometry(), head, true);
                checked.map_err(|refused| bad_argument(head, refused))?;
            }
            call.keeper.begin(map)?;
            // The generation rises here: after its number is in the map's file, and before the
            // first store.
            let writer = call.messenger.writer().ok_or_else(|| {
                Failure::new(Errno::Ebusy, "the map is being changed by something else: try again")
            })?;
            let reply = set_region_mappings(writer, call.text);
            let applied =
                reply.as_ref().map_or_else(|(_, arguments)| *arguments, |reply| reply.arguments);
            call.keeper.end(map, applied)?;
            reply.map_err(|(failure, _)| failure)
        }
        Some(Command::GetRegionMappings) => get_region_mappings(map),
        None => Err(unknown(&first)),
    }
}

/// Applies a message to a map that no device uses.
pub(crate) fn apply_to(map: &RegionMap, mut text: Text<'_>) -> Result<(), Failure> {
    let mut words = Words::new(&text.head);
    let first: Vec<u8> = words.next().map(|word| word.bytes().collect()).unwrap_or_default();
    if command(&first) != Some(Command::SetRegionMappings) {
        let word: String = String::from_utf8_lossy(&first).chars().take(64).collect();
        let reason = format!(
            "'{word}' begins no map: the text must be a set_region_mappings message, as map export \
             writes it"
        );
        return Err(Failure::new(Errno::Einval, reason));
    }
    let begin = text.head.len() - words.rest().len();
    text.head.drain(..begin);
    let in_use = || Failure::new(Errno::Ebusy, "the map is being changed by something else");
    let writer = map.writer().ok_or_else(in_use)?;
    set_region_mappings(writer, text).map(drop).map_err(|(failure, _)| failure)
}

fn unknown(first: &[u8]) -> Failure {
    let word = String::from_utf8_lossy(first).chars().take(64).collect::<String>();
    let near = did_you_mean(&word, MESSAGES);
    let reason = format!(
        "'{word}' is no message of switch: {near}the first word must be one of {}",
        MESSAGES.join(", ")
    );
    let mut failure = Failure::new(Errno::Einval, reason);
    failure.kernel.push(format!("device-mapper: switch: {UNRECOGNISED_MESSAGE}"));
    failure
}

fn get_region_mappings(map: &RegionMap) -> Result<MessageReply, Failure> {
    let (mut text, mut compact) = (Vec::new(), Compact::default());
    if compact.write(map, ANSWER_MAX_BYTES, &mut text) {
        let reason = format!(
            "the map takes more than {ANSWER_MAX_BYTES} bytes: read it with blkswitch map export"
        );
        return Err(Failure::new(Errno::E2big, reason));
    }
    Ok(MessageReply {
        text: Some(String::from_utf8_lossy(&text).into_owned()),
        ..MessageReply::default()
    })
}

/// Applies the arguments of `text` to the map.
///
/// Errors: the failure, and the number of arguments that were applied before it.
fn set_region_mappings(
    mut writer: MapWriter<'_, Slots>,
    text: Text<'_>,
) -> Result<MessageReply, (Failure, u64)> {
    let mut state = Message::new();
    let Text { head: mut text, complete: mut last, next } = text;
    loop {
        let taken = state.apply_text(&mut writer, &text, last);
        let taken = taken.map_err(|refused| (bad_argument(&text, refused), state.arguments()))?;
        if last {
            return Ok(MessageReply { arguments: state.arguments(), ..MessageReply::default() });
        }
        text.drain(..taken);
        match next() {
            More::Bytes(bytes) => text.extend_from_slice(&bytes),
            More::End => last = true,
            // The handler that reads the message knows why it was cut off, and answers.
            More::Cut => {
                return Ok(MessageReply {
                    arguments: state.arguments(),
                    ..MessageReply::default()
                });
            }
        }
    }
}

/// The refusal of the argument that begins at `at`.
pub(crate) fn bad_argument(text: &[u8], TextError { at, error }: TextError) -> Failure {
    let rest = text.get(at..).unwrap_or_default();
    let word = Words::new(rest.get(..MAX_WORD_LEN).unwrap_or(rest)).next();
    let word = word.unwrap_or(Word::literal(b""));
    let mut failure = Failure::new(Errno::Einval, error.explain(word).to_string());
    failure.kernel.push(format!("device-mapper: switch: {}", error.of_argument(word)));
    failure
}
