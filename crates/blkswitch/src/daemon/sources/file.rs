//! A map in a file, in the format of `map export`: the door for everyone's scripts.
//!
//! The file must name every region. So a file that is not complete yet, because a script writes it
//! in place, is refused as a whole and read again when it has changed.
//!
//! Contract: may block. Memory: two maps, and one piece of the text.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use blkswitch_core::args::{Printable, Words};
use blkswitch_core::map::diff::Diff;
use blkswitch_core::switch::message::{Command, MAX_WORD_LEN};
use blkswitch_core::switch::{Geometry, MapWriter, Message, TextError, command};
use blkswitch_io::slots::Slots;

use super::staged::{StagedMap, staged};
use crate::compact::Comments;

/// Bytes of the text that are read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    place: (u64, u64),
    bytes: u64,
    changed: (i64, i64),
}

impl Mark {
    fn of(file: &Metadata) -> Mark {
        Mark {
            place: (file.dev(), file.ino()),
            bytes: file.len(),
            changed: (file.mtime(), file.mtime_nsec()),
        }
    }

    /// The present state of the file at `path`.
    pub(crate) fn at(path: &Path) -> io::Result<Mark> {
        std::fs::metadata(path).map(|file| Mark::of(&file))
    }
}

/// Why a file is no map of the device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is a folder, a pipe or a device.
    #[error("it is no regular file")]
    NoFile,
    /// The first word is not that of the message.
    #[error(
        "it begins with '{0}', and a map begins with set_region_mappings, as map export writes it"
    )]
    Begins(String),
    /// A word is refused.
    #[error("{0}")]
    Word(String),
    /// Regions without a path.
    #[error(
        "it names no path for region {first}{}: a map names every region, as map export writes it",
        and_more(*.more)
    )]
    Incomplete {
        /// The first region that the file does not name.
        first: u64,
        /// Number of other such regions.
        more: u64,
    },
    /// It has changed while it was read.
    #[error("it changed while it was read")]
    Changed,
    /// There is no memory for another map.
    #[error("there is no memory for a second map of {0} regions")]
    Memory(u64),
}

fn and_more(more: u64) -> String {
    if more == 0 { String::new() } else { format!(" and {more} more") }
}

/// Reads the map in the file at `path`.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) fn read(path: &Path, geometry: &Geometry) -> Result<(StagedMap, Mark), Fault> {
    // A pipe in place of the file must not hold up the thread.
    const OPEN_AT_ONCE: i32 = 0o4000;
    let mut file = OpenOptions::new().read(true).custom_flags(OPEN_AT_ONCE).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Fault::NoFile);
    }
    let mark = Mark::of(&metadata);
    let memory = || Fault::Memory(geometry.nr_regions());
    let map = staged(geometry).ok_or_else(memory)?;
    let other = staged(geometry).ok_or_else(memory)?;
    // Nobody else has these maps.
    let mut writer = map.writer().ok_or_else(memory)?;
    let mut second = other.writer().ok_or_else(memory)?;
    // A region that the file does not name keeps what it had, which differs between the two maps.
    for region in 0..geometry.nr_regions() {
        let round_robin = region % u64::from(geometry.num_paths());
        let next = (round_robin + 1) % u64::from(geometry.num_paths());
        second.set(region, next as u32);
    }
    apply(&mut file, &mut [&mut writer, &mut second])?;
    drop((writer, second));
    if Mark::of(&file.metadata()?) != mark {
        return Err(Fault::Changed);
    }
    check_complete(&map, &other)?;
    Ok((map, mark))
}

/// Applies the text to both maps.
fn apply(file: &mut File, writers: &mut [&mut MapWriter<'_, Slots>; 2]) -> Result<(), Fault> {
    let (mut text, mut states) = (Vec::new(), [Message::new(), Message::new()]);
    let (mut has_begun, mut is_last) = (false, false);
    let mut comments = Comments::default();
    while !is_last {
        let mut piece = Vec::new();
        let read = file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        text.extend_from_slice(&comments.strip(piece.into()));
        is_last = read == 0;
        if !has_begun && !is_last && text.iter().all(u8::is_ascii_whitespace) {
            // Only comments so far.
            text.clear();
            continue;
        }
        if !has_begun {
            let mut words = Words::new(&text);
            let first: Vec<u8> =
                words.next().map(|word| word.bytes().collect()).unwrap_or_default();
            if !matches!(command(&first), Some(Command::SetRegionMappings)) {
                let first = first.get(..MAX_WORD_LEN).unwrap_or(&first);
                return Err(Fault::Begins(Printable(first).to_string()));
            }
            let begin = text.len() - words.rest().len();
            text.drain(..begin);
            has_begun = true;
        }
        let mut taken = 0;
        for (state, writer) in states.iter_mut().zip(writers.iter_mut()) {
            let applied = state.apply_text(writer, &text, is_last);
            taken = applied.map_err(|refused| bad_word(&text, refused))?;
        }
        text.drain(..taken);
    }
    Ok(())
}

fn bad_word(text: &[u8], TextError { at, error }: TextError) -> Fault {
    let rest = text.get(at..).unwrap_or_default();
    let word = Words::new(rest.get(..MAX_WORD_LEN).unwrap_or(rest)).next();
    let word = word.unwrap_or(blkswitch_core::args::Word::literal(b""));
    Fault::Word(error.explain(word).to_string())
}

fn check_complete(map: &StagedMap, other: &StagedMap) -> Result<(), Fault> {
    // With one path, every region has it, named or not.
    if map.geometry().num_paths() == 1 {
        return Ok(());
    }
    let regions = map.geometry().nr_regions();
    let Ok(diff) = Diff::new(map, other) else { return Ok(()) };
    let Some(first) = diff.next(0, regions) else { return Ok(()) };
    let all: u64 = diff.changes(first, regions).map(|change| change.count).sum();
    Err(Fault::Incomplete { first, more: all.saturating_sub(1) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read_text(text: &str, geometry: &Geometry) -> Result<Vec<u32>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        fs::write(&path, text).unwrap();
        let (map, mark) = read(&path, geometry).map_err(|fault| fault.to_string())?;
        assert_eq!(mark, Mark::at(&path).unwrap());
        Ok((0..geometry.nr_regions()).map(|region| map.path(region).unwrap()).collect())
    }

    #[test]
    fn a_map_that_names_every_region_is_taken() {
        let geometry = Geometry::new(64, 3, 8).unwrap();
        let text = "# a layout\nset_region_mappings 0:2 :2 :1\n:1 :0 :0 :1 :2\n# generation 7\n";
        assert_eq!(read_text(text, &geometry).unwrap(), [2, 2, 1, 1, 0, 0, 1, 2]);
        let repeated = "set_region_mappings 0:1 :2 R2,6";
        assert_eq!(read_text(repeated, &geometry).unwrap(), [1, 2, 1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn what_is_no_map_is_refused_with_what_is_wrong() {
        let geometry = Geometry::new(64, 3, 8).unwrap();
        for (text, expected) in [
            ("", "it begins with ''"),
            ("get_region_mappings", "it begins with 'get_region_mappings'"),
            ("\x1b[2J", "it begins with '\\x1b[2J'"),
            ("set_region_mappings 0:1 :2", "no path for region 2 and 5 more: a map names every"),
            ("set_region_mappings 0:1 R1,6", "no path for region 7: a map"),
            ("set_region_mappings 0:3", "path"),
            ("set_region_mappings 9:1", "region"),
            ("set_region_mappings 0:1 x", "x"),
        ] {
            let fault = read_text(text, &geometry).unwrap_err();
            assert!(fault.contains(expected), "'{text}': '{fault}' lacks '{expected}'");
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read(folder.path(), &geometry), Err(Fault::NoFile)));
        let missing = read(&folder.path().join("none"), &geometry).unwrap_err();
        assert!(missing.to_string().contains("No such file"), "{missing}");
    }

    #[test]
    fn a_long_file_is_read_in_pieces() {
        let geometry = Geometry::new(1_000_000, 5, 1).unwrap();
        let mut text = String::from("set_region_mappings 0:0");
        for region in 1..1_000_000u32 {
            text.push_str(if region % 7 == 0 { "\n:" } else { " :" });
            text.push_str(&(region.wrapping_mul(2_654_435_761) % 5).to_string());
        }
        assert!(text.len() > 2 * PIECE_BYTES);
        let paths = read_text(&text, &geometry).unwrap();
        for region in [0, 1, 349_525, 999_999u32] {
            let expected = if region == 0 { 0 } else { region.wrapping_mul(2_654_435_761) % 5 };
            assert_eq!(paths[region as usize], expected, "region {region}");
        }
    }
}
