//! The target types: for each, how a line of a table becomes a target, what `table` and `status`
//! print, what a message does, and how large the devices below must be. The kernel's order of checks
//! and its texts are kept.
//!
//! Contract: a further type is a file here and its line in [`TYPES`]. A constructor opens what its
//! words name ([`Builder::below`]). Whether that is large enough is checked when all targets of the
//! table stand, by the library ([`blkswitch_io::TableBuilder::build`]).

mod linear;
mod multipath;
mod striped;
mod switch;
mod trivial;

use blkswitch_core::args::{Printable, parse_u64};
use blkswitch_io::device::Messenger;
use blkswitch_io::pool::Registry;
use blkswitch_io::table::RegionMap;
use blkswitch_io::{Segment, Table, Target};

use crate::daemon::failure::Failure;
use crate::daemon::tables::builder::Builder;
use crate::daemon::tables::lines::Line;
use crate::nearest::did_you_mean;
use crate::protocol::{Errno, MessageReply};

/// Units that people write behind a number of sectors, and sectors in each.
const UNITS: [(&str, u64); 4] = [("k", 2), ("m", 2 << 10), ("g", 2 << 20), ("t", 2 << 30)];

/// A word that names a device, and the sectors that a line needs of it.
pub(crate) type Need<'a> = (&'a [u8], u64);

/// A target type.
pub(crate) struct TargetType {
    pub(crate) name: &'static str,
    /// Version of the kernel's target that it follows.
    pub(crate) version: [u32; 3],
    /// It must be the only target of its table.
    pub(crate) stands_alone: bool,
    /// The target of a line.
    pub(crate) construct: fn(&mut Builder<'_>, &Line<'_>) -> Result<Target, Failure>,
    /// What `table` prints behind the type.
    pub(crate) params: fn(&Table, &Segment) -> String,
    /// What `status` prints behind the type.
    pub(crate) status: fn(&Table, &Segment) -> String,
    /// What a message does, if it takes any.
    pub(crate) message: Option<fn(Call<'_, '_>) -> Result<MessageReply, Failure>>,
    /// How many sectors a line needs of each device that it names. A wrong line needs nothing: its
    /// constructor refuses it later.
    pub(crate) needs: for<'a> fn(&Line<'a>) -> Vec<Need<'a>>,
}

/// All of them, by name.
pub(crate) static TYPES: [&TargetType; 6] = [
    &trivial::ERROR,
    &linear::TYPE,
    &multipath::TYPE,
    &striped::TYPE,
    &switch::TYPE,
    &trivial::ZERO,
];

/// The names of the target types.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|one| one.name)
}

/// The target type of this name.
pub(crate) fn by_name(name: &[u8]) -> Option<&'static TargetType> {
    TYPES.iter().find(|one| one.name.as_bytes() == name).copied()
}

/// There is no target of this type; `length` is what stands before it.
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
    /// Holds the device's message lock.
    pub(crate) messenger: &'a Messenger<'a>,
    /// The devices that words may name.
    pub(crate) registry: &'a Registry,
    /// The words.
    pub(crate) text: Text<'t>,
    /// All of it is checked before any of it is applied.
    pub(crate) atomic: bool,
    /// Who keeps region maps.
    pub(crate) keeper: &'a dyn Keeper,
}

/// The text of a message, which may still be arriving.
pub(crate) struct Text<'a> {
    /// Its first bytes, which begin with a word.
    pub(crate) head: Vec<u8>,
    /// The head is all of it.
    pub(crate) complete: bool,
    /// Waits for the next bytes.
    pub(crate) next: &'a mut dyn FnMut() -> More,
}

/// What comes behind the head of a message.
pub(crate) enum More {
    /// Further bytes.
    Bytes(Vec<u8>),
    /// There is no more.
    End,
    /// The message was cut.
    Cut,
}

/// Who keeps region maps, and is told of their changes.
pub(crate) trait Keeper {
    /// A message is about to change a map. Errors: the change could not be kept, and must not be
    /// made.
    fn begin(&self, map: &RegionMap) -> Result<(), Failure>;

    /// The message has ended, with so many arguments applied. Errors: the change is made, and could
    /// not be kept.
    fn end(&self, map: &RegionMap, applied: u64) -> Result<(), Failure>;
}

fn no_status(_: &Table, _: &Segment) -> String {
    String::new()
}

/// How many sectors each device of `device offset` pairs needs, for `len` sectors behind the offset.
fn device_pairs<'a>(words: &[&'a [u8]], len: u64) -> Vec<Need<'a>> {
    let needed = |pair: &[&'a [u8]]| match pair {
        [device, offset] => Some((*device, parse_u64(offset)?.checked_add(len)?)),
        _ => None,
    };
    words.chunks_exact(2).filter_map(needed).collect()
}

/// Refuses with EINVAL.
fn refuse(kind: &str, text: &str, reason: String) -> Failure {
    Failure::target(Errno::Einval, format!("{kind}: {text} (-EINVAL)"), reason)
}

/// Refuses with what looking up the device gave.
fn lookup_failed(kind: &str, text: &str, found: Failure) -> Failure {
    Failure::target(found.errno, format!("{kind}: {text} (-{})", found.errno.name()), found.reason)
}

/// A sector number as `%llu` reads it, but refused where it does not fit 64 bits.
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
