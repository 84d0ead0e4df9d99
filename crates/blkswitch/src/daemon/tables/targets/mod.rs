//! The target types. Each has five functions: they make a target from a line of a table, print what
//! `table` and `status` show, apply messages, and tell how large the devices below must be. They
//! keep the kernel's order of checks and its texts.
//!
//! Contract: a new type is a file here and a line in [`TYPES`]. A constructor opens the devices
//! that its words name ([`Builder::below`]). After all targets are made, the library checks whether
//! those devices are large enough ([`blkswitch_io::TableBuilder::build`]).

mod linear;
mod multipath;
mod striped;
pub(crate) mod switch;
mod trivial;

use blkswitch_core::args::{Printable, parse_u64};
use blkswitch_io::device::Messenger;
use blkswitch_io::pool::Registry;
use blkswitch_io::table::RegionMap;
use blkswitch_io::{Segment, Table, Target};

pub(crate) use self::switch::apply_to;
use crate::daemon::failure::Failure;
use crate::daemon::tables::builder::Builder;
use crate::daemon::tables::lines::Line;
use crate::nearest::did_you_mean;
use crate::protocol::{Errno, MessageReply};

/// Units that people write after a number of sectors, with the number of sectors in each.
const UNITS: [(&str, u64); 4] = [("k", 2), ("m", 2 << 10), ("g", 2 << 20), ("t", 2 << 30)];

/// A word that names a device, and the number of sectors that a line needs of it.
pub(crate) type Need<'a> = (&'a [u8], u64);

pub(crate) struct TargetType {
    pub(crate) name: &'static str,
    /// Version of the kernel's target that this type follows.
    pub(crate) version: [u32; 3],
    /// A target of this type must be the only one of its table.
    pub(crate) stands_alone: bool,
    /// Makes a target from a line.
    pub(crate) construct: fn(&mut Builder<'_>, &Line<'_>) -> Result<Target, Failure>,
    /// The text that `table` prints after the type.
    pub(crate) params: fn(&Table, &Segment) -> String,
    /// The text that `status` prints after the type.
    pub(crate) status: fn(&Table, &Segment) -> String,
    /// Applies a message; `None` if the type takes no messages.
    pub(crate) message: Option<fn(Call<'_, '_>) -> Result<MessageReply, Failure>>,
    /// Number of sectors that a line needs of each device that it names. A wrong line needs
    /// nothing: the constructor refuses it later.
    pub(crate) needs: for<'a> fn(&Line<'a>) -> Vec<Need<'a>>,
}

/// All target types, sorted by name.
pub(crate) static TYPES: [&TargetType; 6] = [
    &trivial::ERROR,
    &linear::TYPE,
    &multipath::TYPE,
    &striped::TYPE,
    &switch::TYPE,
    &trivial::ZERO,
];

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|one| one.name)
}

pub(crate) fn by_name(name: &[u8]) -> Option<&'static TargetType> {
    TYPES.iter().find(|one| one.name.as_bytes() == name).copied()
}

/// The sentence for an unknown target type; `length` is the number before it in the line.
pub(super) fn unknown(kind: &str, length: u64) -> String {
    let lower = kind.to_ascii_lowercase();
    let unit = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    if let Some((_, sectors)) = UNITS.iter().find(|(name, _)| *name == unit) {
        let sectors = length.saturating_mul(*sectors);
        return format!(
            "there is no target type '{kind}': START and LENGTH are numbers of 512-byte sectors \
             without a unit, so {length}{kind} is {sectors}"
        );
    }
    let types: Vec<&str> = names().collect();
    format!(
        "there is no target type '{kind}': {}it must be one of {}",
        did_you_mean(kind, types.iter().copied()),
        types.join(", ")
    )
}

/// A message to a target.
pub(crate) struct Call<'a, 't> {
    /// The device's message lock is held through this.
    pub(crate) messenger: &'a Messenger<'a>,
    /// The devices that words of the message may name.
    pub(crate) registry: &'a Registry,
    /// The words of the message.
    pub(crate) text: Text<'t>,
    /// Whether the whole message is checked before any of it is applied.
    pub(crate) atomic: bool,
    /// Saves changes of region maps.
    pub(crate) keeper: &'a dyn Keeper,
}

/// The text of a message, which may still be arriving.
pub(crate) struct Text<'a> {
    /// The beginning of the text. It starts with a word.
    pub(crate) head: Vec<u8>,
    /// Whether `head` is the whole text.
    pub(crate) complete: bool,
    /// Waits for the next bytes.
    pub(crate) next: &'a mut dyn FnMut() -> More,
}

/// The next bytes of a message.
pub(crate) enum More {
    /// More bytes have arrived.
    Bytes(Vec<u8>),
    /// The message is complete.
    End,
    /// The message was cut off.
    Cut,
}

/// Saves the changes of region maps.
pub(crate) trait Keeper {
    /// Called before a message changes a map.
    ///
    /// Errors: the change cannot be saved and must not be made.
    fn begin(&self, map: &RegionMap) -> Result<(), Failure>;

    /// Called when a message has ended; `applied` is the number of arguments that were applied.
    ///
    /// Errors: the change was made, but could not be saved.
    fn end(&self, map: &RegionMap, applied: u64) -> Result<(), Failure>;
}

fn no_status(_: &Table, _: &Segment) -> String {
    String::new()
}

/// The sectors that each device of `device offset` pairs needs, for `len` sectors after the offset.
fn device_pairs<'a>(words: &[&'a [u8]], len: u64) -> Vec<Need<'a>> {
    let needed = |pair: &[&'a [u8]]| match pair {
        [device, offset] => Some((*device, parse_u64(offset)?.checked_add(len)?)),
        _ => None,
    };
    words.chunks_exact(2).filter_map(needed).collect()
}

/// A refusal with `EINVAL`.
fn refuse(kind: &str, text: &str, reason: String) -> Failure {
    Failure::target(Errno::Einval, format!("{kind}: {text} (-EINVAL)"), reason)
}

/// A refusal because a device could not be looked up, with the errno of the look-up.
fn lookup_failed(kind: &str, text: &str, found: Failure) -> Failure {
    Failure::target(found.errno, format!("{kind}: {text} (-{})", found.errno.name()), found.reason)
}

/// Parses a sector number as the kernel's `%llu` does. Numbers that exceed 64 bits are refused.
fn sector(word: &[u8]) -> Option<u64> {
    word.first().filter(|byte| byte.is_ascii_digit()).and_then(|_| parse_u64(word))
}

fn bad_offset(word: &[u8]) -> String {
    format!(
        "the offset '{}' must be a decimal number of 512-byte sectors below 2^64",
        Printable(word)
    )
}

fn bad_number(what: &str, word: &[u8]) -> String {
    format!("the {what} '{}' must be a decimal number from 1 to {}", Printable(word), u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::tables::lines::Lines;

    fn needed(line: &str) -> Vec<(String, u64)> {
        let lines = Lines::parse(line.as_bytes());
        let line = lines.iter().next().unwrap();
        let needed = (by_name(line.kind).unwrap().needs)(line).into_iter();
        needed
            .map(|(word, sectors)| (String::from_utf8_lossy(word).into_owned(), sectors))
            .collect()
    }

    #[test]
    fn a_unit_is_taken_for_one() {
        for (kind, length, part) in [
            ("G", 1, "so 1G is 2097152"),
            ("MiB", 3, "so 3MiB is 6144"),
            ("swicth", 8, "did you mean 'switch'? it must be one of error, linear, "),
            (
                "crypt",
                8,
                "'crypt': it must be one of error, linear, multipath, striped, switch, zero",
            ),
        ] {
            let text = unknown(kind, length);
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn what_a_line_needs_of_its_devices() {
        assert_eq!(
            needed("0 100 switch 2 8 0 /a 8 /b 0"),
            [("/a".to_owned(), 108), ("/b".to_owned(), 100)]
        );
        assert_eq!(needed("0 100 linear /a 1"), [("/a".to_owned(), 101)]);
        assert_eq!(
            needed("0 100 striped 2 10 /a 0 /b 5"),
            [("/a".to_owned(), 50), ("/b".to_owned(), 55)]
        );
        assert_eq!(needed("0 100 striped 0 10 /a 0"), []);
        assert_eq!(needed("0 100 switch 1 8 0 /a x"), []);
        assert_eq!(
            needed("0 100 multipath 0 0 1 1 round-robin 0 1 0 /a"),
            [("/a".to_owned(), 100)]
        );
        assert_eq!(needed("0 100 zero"), []);
    }
}
