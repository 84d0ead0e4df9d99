//! The constructors of the target types: their words to an [`io::Target`](blkswitch_io::Target),
//! with the kernel's order of checks and texts (dm-switch 1.1, dm-linear 1.4, dm-stripe 1.6,
//! dm-error 1.5, dm-zero 1.1; dm-multipath 1.14 in [`crate::daemon::tables::targets::multipath`]).
//!
//! Contract: a constructor opens what its words name ([`Builder::below`]); whether that is large
//! enough is checked when all targets of the table stand, by the library
//! ([`blkswitch_io::TableBuilder::build`]). A further type is a row in [`TYPES`] and a function here.

pub mod multipath;

use blkswitch_core::args::{Printable, parse_u32, parse_u64};
use blkswitch_core::error::{Errno as CoreErrno, Error};
use blkswitch_core::multipath::{Item, Params as MultipathParams};
use blkswitch_core::switch::{Geometry, Map, Params};
use blkswitch_core::table;
use blkswitch_io::{Target, To};

use crate::daemon::failure::{Failure, errno_of};
use crate::daemon::tables::{Builder, words};

use crate::protocol::Errno;

/// A constructor: the table in the making, the target's length in sectors, its words.
pub(in crate::daemon) type Constructor =
    fn(&mut Builder<'_>, u64, &[&[u8]]) -> Result<Target, Failure>;

/// Name, version of the kernel's target that it follows, constructor.
pub(in crate::daemon) const TYPES: [(&str, [u32; 3], Constructor); 6] = [
    ("error", [1, 5, 0], error),
    ("linear", [1, 4, 0], linear),
    ("multipath", [1, 14, 0], multipath::multipath),
    ("striped", [1, 6, 0], striped),
    ("switch", [1, 1, 0], switch),
    ("zero", [1, 1, 0], zero),
];

/// The names of the target types.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|(name, ..)| *name)
}

/// The constructor of a target type.
pub(in crate::daemon) fn by_name(name: &[u8]) -> Option<Constructor> {
    TYPES.iter().find(|(known, ..)| known.as_bytes() == name).map(|(.., constructor)| *constructor)
}

fn switch(table: &mut Builder<'_>, len: u64, words: &[&[u8]]) -> Result<Target, Failure> {
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
            // An errno that the core does not know reads as an I/O error; the sentence says what it
            // really was.
            let errno = CoreErrno::from_number(found.errno.number()).unwrap_or(CoreErrno::Eio);
            let mut failure = refuse(path.lookup_failed(errno));
            failure.errno = found.errno;
            failure.reason = format!("path {}: {}", path.number, found.reason);
            failure
        })?;
        let offset = path.offset().map_err(refuse)?;
        paths.push(To { below, offset });
    }
    let geometry = Geometry::new(len, num_paths, region_size).map_err(refuse)?;
    let storage = table.slots(&geometry)?;
    let no_memory = |_| refuse(Error::RegionTableMemory { regions: geometry.nr_regions() });
    let map = Map::new(geometry, storage).map_err(no_memory)?;
    Ok(Target::Switch { map, paths: paths.into() })
}

fn linear(table: &mut Builder<'_>, _len: u64, words: &[&[u8]]) -> Result<Target, Failure> {
    let [device, offset] = words else {
        return Err(refuse(
            "linear",
            "Invalid argument count",
            "linear needs a device and an offset".to_owned(),
        ));
    };
    let offset = sector(offset)
        .ok_or_else(|| refuse("linear", "Invalid device sector", bad_offset(offset)))?;
    let below = table
        .below(device)
        .map_err(|found| lookup_failed("linear", "Device lookup failed", found))?;
    Ok(Target::Linear(To { below, offset }))
}

fn striped(table: &mut Builder<'_>, len: u64, words: &[&[u8]]) -> Result<Target, Failure> {
    let refuse = |text, reason: String| refuse("striped", text, reason);
    let [count, chunk, rest @ ..] = words else {
        return Err(refuse(
            "Not enough arguments",
            "striped needs a stripe count and a chunk size".to_owned(),
        ));
    };
    let stripes = parse_u32(count)
        .filter(|count| *count > 0)
        .ok_or_else(|| refuse("Invalid stripe count", bad_number("stripe count", count)))?;
    let chunk = parse_u32(chunk)
        .filter(|chunk| *chunk > 0)
        .ok_or_else(|| refuse("Invalid chunk_size", bad_number("chunk size in sectors", chunk)))?;
    let (stripes, chunk) = (u64::from(stripes), u64::from(chunk));
    if !len.is_multiple_of(stripes) {
        let reason =
            format!("the length of {len} sectors must be a multiple of the {stripes} stripes");
        return Err(refuse("Target length not divisible by number of stripes", reason));
    }
    let width = len / stripes;
    if !width.is_multiple_of(chunk) {
        let reason = format!(
            "a stripe of {width} sectors must be a multiple of the chunk of {chunk} sectors"
        );
        return Err(refuse("Target length not divisible by chunk size", reason));
    }
    if rest.len() as u64 != stripes.saturating_mul(2) {
        let reason = format!(
            "{stripes} stripes need as many devices with offsets, but {} words follow",
            rest.len()
        );
        return Err(refuse("Not enough destinations specified", reason));
    }
    let mut places = Vec::with_capacity(rest.len() / 2);
    for stripe in rest.chunks_exact(2) {
        let [device, offset] = stripe else { continue };
        const TEXT: &str = "Couldn't parse stripe destination";
        let offset = sector(offset).ok_or_else(|| refuse(TEXT, bad_offset(offset)))?;
        let below = table.below(device).map_err(|found| lookup_failed("striped", TEXT, found))?;
        places.push(To { below, offset });
    }
    Ok(Target::Striped { chunk, stripes: places.into() })
}

fn error(_: &mut Builder<'_>, _: u64, words: &[&[u8]]) -> Result<Target, Failure> {
    match words {
        [] => Ok(Target::Error),
        _ => Err(refuse("error", "Invalid argument count", "error has no parameters".to_owned())),
    }
}

fn zero(_: &mut Builder<'_>, _: u64, words: &[&[u8]]) -> Result<Target, Failure> {
    match words {
        [] => Ok(Target::Zero),
        _ => Err(refuse("zero", "No arguments required", "zero has no parameters".to_owned())),
    }
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

/// How many sectors a line needs of each device it names. Wrong lines need nothing: they are
/// refused later.
pub(in crate::daemon) fn needed_sectors<'a>(line: &table::Target<'a>) -> Vec<(&'a [u8], u64)> {
    let words = words(line.params);
    if line.kind == b"multipath" {
        let mut devices = Vec::new();
        let Ok(mut params) = MultipathParams::parse(&words) else { return devices };
        while let Ok(Some(item)) = params.next_item() {
            if let Item::Path(path) = item {
                // The same word, but of the line's own life.
                devices.extend(
                    words.iter().find(|word| **word == path.device).map(|word| (*word, line.len)),
                );
            }
        }
        return devices;
    }
    let (devices, len) = match (line.kind, words.as_slice()) {
        (b"switch", [_, _, _, devices @ ..]) => (devices, line.len),
        (b"linear", devices) => (devices, line.len),
        (b"striped", [count, _, devices @ ..]) => match parse_u32(count) {
            Some(count @ 1..) => (devices, line.len / u64::from(count)),
            _ => return Vec::new(),
        },
        _ => return Vec::new(),
    };
    let needed = |pair: &[&'a [u8]]| match pair {
        [device, offset] => Some((*device, parse_u64(offset)?.checked_add(len)?)),
        _ => None,
    };
    devices.chunks_exact(2).filter_map(needed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(line: &str) -> Vec<(String, u64)> {
        let line = table::lines(line.as_bytes()).next().unwrap().unwrap();
        let needed = needed_sectors(&line).into_iter();
        needed
            .map(|(word, sectors)| (String::from_utf8_lossy(word).into_owned(), sectors))
            .collect()
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
