//! Writes a region map, or the difference of two, as a `set_region_mappings` message, in pieces of
//! bounded size.
//!
//! Contract: the core decides about the text ([`compact`]); this module cuts it into pieces. The
//! caller holds the message lock for each piece. A message is one line, or many lines of bounded
//! length. Each piece is complete in itself, so the map may change between two of them. The message
//! then shows each region at some moment.

use std::sync::atomic::AtomicU64;

use blkswitch_core::args::is_space;
use blkswitch_core::map::diff::Diff;
use blkswitch_core::switch::Map;
use blkswitch_core::switch::compact::{self, WriteError};
use bytes::Bytes;

const COMMAND: &[u8] = b"set_region_mappings";
/// Least length of a line before its words may end it.
const LINE_LEAST: usize = 40;
/// Longest line in bytes.
const LINE_MOST: usize = 100;
/// One group of words in this number ends a line.
const LINE_ENDS: u32 = 8;
/// Length of the writer's table of places. The table has 128 KiB.
const PLACES: usize = 1 << 14;

/// What a message lists.
pub trait Listing {
    /// Passes the arguments from `from` on to `sink`; 0 is the beginning. `places` is as for
    /// [`compact::write()`].
    ///
    /// # Errors
    /// If `sink` wants no more, the place at which another list can continue. It is above 0 after
    /// the first argument.
    fn list(
        &self,
        from: u64,
        places: &mut [u64],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ()>,
    ) -> Result<(), u64>;
}

impl<S: AsRef<[AtomicU64]>> Listing for Map<S> {
    fn list(
        &self,
        from: u64,
        places: &mut [u64],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ()>,
    ) -> Result<(), u64> {
        let written = compact::write(self, from, u64::MAX, places, sink);
        written.map_err(|WriteError { region, error: () }| region)
    }
}

/// A message for the first map that turns it into the second.
impl<A: AsRef<[AtomicU64]>, B: AsRef<[AtomicU64]>> Listing for Diff<'_, A, B> {
    fn list(
        &self,
        from: u64,
        places: &mut [u64],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ()>,
    ) -> Result<(), u64> {
        let written = self.write(from, u64::MAX, places, sink);
        written.map_err(|WriteError { region, error: () }| region)
    }
}

/// A message that is being written.
#[derive(Debug)]
pub struct Compact {
    /// Where the list continues: for a map, at this region.
    next: u64,
    places: Vec<u64>,
    /// `None` if the message is one line.
    lines: Option<Lines>,
}

/// Chooses where the lines of a message end: at words that hash to a certain value. So a change of
/// the map leaves the later lines as they are, and `diff` shows only the changed ones.
#[derive(Debug, Default)]
struct Lines {
    /// Bytes of the line so far.
    length: usize,
    /// Eight bits of each of the last four words.
    window: u32,
}

impl Lines {
    /// Returns whether `word` begins a line. It starts with a space unless it is the first word.
    fn begins(&mut self, word: &[u8]) -> bool {
        let chosen = self.window.wrapping_mul(0x9e37_79b1) >> 16;
        let ends = self.length >= LINE_LEAST && chosen.is_multiple_of(LINE_ENDS);
        let longer = self.length + 1 + word.len();
        let begins = ends || longer > LINE_MOST;
        self.length = if begins { word.len() } else { longer };
        let step = |hash: u32, byte: &u8| hash.wrapping_mul(31).wrapping_add((*byte).into());
        let hash = word.iter().fold(0, step);
        self.window = (self.window << 8) | (hash & 0xff);
        begins
    }
}

impl Default for Compact {
    /// A message before its first piece.
    fn default() -> Compact {
        Compact { next: 0, places: vec![0; PLACES], lines: None }
    }
}

impl Compact {
    /// A message in lines of bounded length. A line break is white space, so the meaning stays.
    pub fn in_lines() -> Compact {
        Compact { lines: Some(Lines::default()), ..Compact::default() }
    }

    /// Appends about `bytes` of the message to `out`. Returns `false` when it is complete.
    pub fn write(&mut self, of: &impl Listing, bytes: usize, out: &mut Vec<u8>) -> bool {
        let end = out.len() + bytes;
        if self.next == 0 {
            out.extend_from_slice(COMMAND);
            self.lines.iter_mut().for_each(|lines| lines.length = COMMAND.len());
        }
        let first = out.len() + 1;
        let lines = &mut self.lines;
        let written = of.list(self.next, &mut self.places, &mut |argument| {
            if out.len() >= end && out.len() > first {
                return Err(());
            }
            let word = argument.strip_prefix(b" ").unwrap_or(argument);
            let begins = lines.as_mut().is_some_and(|lines| lines.begins(word));
            out.push(if begins { b'\n' } else { b' ' });
            out.extend_from_slice(word);
            Ok(())
        });
        match written {
            Err(next) => self.next = next,
            Ok(()) => out.push(b'\n'),
        }
        written.is_err()
    }
}

/// Drops comments from a text that arrives in parts: from a word that begins with `#` to the end of
/// the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Comments {
    #[default]
    WordBegins,
    InWord,
    InComment,
}

impl Comments {
    /// The part of `data` that is no comment. The line break after a comment stays.
    pub(crate) fn strip(&mut self, data: Bytes) -> Bytes {
        let Some(last) = data.last() else { return data };
        if *self != Comments::InComment && !data.contains(&b'#') {
            *self = if is_space(*last) { Comments::WordBegins } else { Comments::InWord };
            return data;
        }
        let mut left = Vec::with_capacity(data.len());
        for byte in data {
            *self = match (*self, byte) {
                (Comments::InComment, b'\n') => Comments::WordBegins,
                (Comments::InComment, _) | (Comments::WordBegins, b'#') => Comments::InComment,
                (_, byte) if is_space(byte) => Comments::WordBegins,
                _ => Comments::InWord,
            };
            if *self != Comments::InComment {
                left.push(byte);
            }
        }
        left.into()
    }
}

#[cfg(test)]
mod tests {
    use blkswitch_core::switch::{Geometry, Message, message::Command};

    use super::*;

    fn map(regions: u64, paths: u32) -> Map<Vec<AtomicU64>> {
        let geometry = Geometry::new(regions, paths, 1).unwrap();
        let storage = (0..geometry.nr_slots()).map(|_| AtomicU64::new(0)).collect();
        Map::new(geometry, storage).unwrap()
    }

    fn export(map: &Map<Vec<AtomicU64>>, piece: usize) -> String {
        let (mut out, mut compact) = (Vec::new(), Compact::default());
        while compact.write(map, piece, &mut out) {}
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line.trim_end().split(['\n', ' ']).count(), line.split_whitespace().count());
        let lines = in_lines(map, piece);
        assert!(lines.split_whitespace().eq(line.split_whitespace()), "the words are the same");
        assert!(lines.lines().all(|line| line.len() <= LINE_MOST), "{lines}");
        line
    }

    fn in_lines(map: &Map<Vec<AtomicU64>>, piece: usize) -> String {
        let (mut out, mut compact) = (Vec::new(), Compact::in_lines());
        while compact.write(map, piece, &mut out) {}
        String::from_utf8(out).unwrap()
    }

    /// Exports the map, applies the message to a very different map, checks that the result is the
    /// same map, and returns the message.
    fn round_trip(original: &Map<Vec<AtomicU64>>, piece: usize) -> String {
        let geometry = original.geometry();
        let text = export(original, piece);
        let (word, arguments) = text.split_once(' ').unwrap();
        assert_eq!(
            blkswitch_core::switch::command(word.as_bytes()),
            Some(Command::SetRegionMappings)
        );
        let copy = map(geometry.nr_regions(), geometry.num_paths());
        for region in 0..geometry.nr_regions() {
            copy.writer().unwrap().set(region, geometry.num_paths() - 1);
        }
        Message::new().apply_text(&mut copy.writer().unwrap(), arguments.as_bytes(), true).unwrap();
        for region in 0..geometry.nr_regions() {
            assert_eq!(copy.path(region), original.path(region), "region {region}");
        }
        text
    }

    #[test]
    fn patterns_become_short_messages() {
        assert_eq!(round_trip(&map(1, 3), 1 << 16), "set_region_mappings 0:0\n");
        assert_eq!(round_trip(&map(16, 3), 1 << 16), "set_region_mappings 0:0 :1 :2 R3,d\n");
        let documented = map(16, 3);
        Message::new()
            .apply_text(&mut documented.writer().unwrap(), b"0:0 :1 :2 :0 :1 :2 :1", true)
            .unwrap();
        assert_eq!(
            round_trip(&documented, 1 << 16),
            "set_region_mappings 0:0 :1 :2 R3,3 :1 R3,2 R9,6 :0\n"
        );
        let uniform = map(1 << 20, 4);
        Message::new().apply_text(&mut uniform.writer().unwrap(), b"0:3 R1,fffff", true).unwrap();
        assert_eq!(round_trip(&uniform, 1 << 16), "set_region_mappings 0:3 R1,fffff\n");
        assert!(round_trip(&map(5000, 300), 1 << 16).ends_with(" :12b R12c,125c\n"));
    }

    /// A small change to a map without a pattern gives a small `diff`.
    #[test]
    fn a_change_moves_few_lines() {
        let random = map(20_000, 5);
        let mut state = 1_u64;
        for region in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random.writer().unwrap().set(region, (state >> 40) as u32 % 5);
        }
        let before = in_lines(&random, 1 << 16);
        for region in [9_000, 9_001, 9_005] {
            let other = (random.path(region).unwrap() + 1) % 5;
            random.writer().unwrap().set(region, other);
        }
        let after = in_lines(&random, 1 << 16);
        let lines: std::collections::HashSet<&str> = before.lines().collect();
        let (all, new) =
            (after.lines().count(), after.lines().filter(|line| !lines.contains(line)));
        let new = new.count();
        assert!(all > 200 && new * 10 < all, "{new} of {all} lines differ");
    }

    #[test]
    fn maps_without_a_pattern_come_through() {
        for (seed, paths) in [(1u64, 2), (2, 3), (3, 17), (4, 300)] {
            let random = map(4099, paths);
            let mut state = seed;
            for region in 0..4099 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                // Stretches of one path and stretches of noise.
                let path = if state >> 63 == 0 {
                    (state >> 33) as u32 % paths
                } else {
                    region as u32 / 500 % paths
                };
                random.writer().unwrap().set(region, path);
            }
            round_trip(&random, 100);
            round_trip(&random, 1 << 20);
        }
    }

    #[test]
    fn comments_are_dropped_however_they_arrive() {
        for (text, left) in [
            ("a b\n# generation 7\n", "a b\n\n"),
            ("a b # generation 7 ", "a b "),
            ("#\n##\nset 1 #2\n3 #", "\n\nset 1 \n3 "),
            ("a#b\n\t#c\nd\n", "a#b\n\t\nd\n"),
            ("# x", ""),
        ] {
            for size in 1..=text.len() {
                let (mut comments, mut got) = (Comments::default(), Vec::new());
                for part in text.as_bytes().chunks(size) {
                    got.extend(comments.strip(Bytes::from_static(part)));
                }
                assert_eq!(String::from_utf8(got).unwrap(), left, "{text:?} in parts of {size}");
            }
        }
    }
}
