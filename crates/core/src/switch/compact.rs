//! Writes a map as a short list of `set_region_mappings` arguments that makes the same map.
//!
//! `R<cycle>,<count>` copies regions from any distance, also onto regions that it has just copied.
//! So a list of arguments is like the output of a Lempel-Ziv compressor: new regions, and copies of
//! earlier ones. The map is the window to search. The code tries four sources of a copy: the region
//! before (runs), the distance of the last copy, the number of paths (round robin), and the place
//! where the next few paths stood last, from a table of the caller. It takes the best one if that
//! is shorter than the paths themselves.
//!
//! Contract: the caller holds the message lock, so the map does not change meanwhile. No
//! allocation, no panic. The table of places may have any contents at first and never changes the
//! map that the list makes. A longer table makes a shorter list; a few thousand places are good,
//! and an empty table is allowed.

use core::fmt;

use super::message::TURN_REGIONS;
use super::regions::Map;
use super::sync::AtomicU64;

/// Bits of paths in one key of the table of places: as many as index all regions of a large map, so
/// that a match is not by chance.
const KEY_BITS: u32 = 20;
/// Fewest paths of a key: a copy of fewer is hardly shorter than the paths. Of the longest paths,
/// 18 bits each, more than three still fit a word.
const MIN_KEY_PATHS: u32 = 4;
/// A copy of this many regions is good enough to end the search.
const LONG_COPY: u64 = 64;
/// Number of regions of a copy that enter the table of places.
const REMEMBERED: u64 = 16;
/// Longest gap between changed regions of one stretch.
const STRETCH_GAP: u64 = 4;
/// Bytes of the longest argument: two numbers of 16 digits and ` R,`.
const MAX_ARGUMENT: usize = 40;

/// The failure of a sink, and where its list ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteError<E> {
    /// The first region that the list does not cover. Another list can continue there.
    pub region: u64,
    /// The sink's error.
    pub error: E,
}

impl<E: fmt::Display> fmt::Display for WriteError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the list of the map ends at region {}: {}", self.region, self.error)
    }
}

impl<E: core::error::Error> core::error::Error for WriteError<E> {}

/// Writes arguments for the regions from `from` up to but not including `to` (or to the last one).
/// Applied to any map of the same geometry, they give these regions the paths of this map and leave
/// the others.
///
/// `sink` gets the list argument by argument; each but the first begins with a blank.
///
/// # Errors
/// The error of `sink`, and the region at which another list can continue.
///
/// ```
/// # use core::sync::atomic::AtomicU64;
/// # use blkswitch_core::switch::{Geometry, Map, Message, compact};
/// # let geometry = Geometry::new(2048, 3, 128)?;
/// # let map = Map::new(geometry, vec![AtomicU64::new(0)]).unwrap();
/// let mut writer = map.writer().expect("nobody else changes the map");
/// Message::new().apply_text(&mut writer, b"9:2 :2", true)?;
/// let mut places = [0; 64];
/// let mut list = String::new();
/// compact::write(&map, 0, u64::MAX, &mut places, |argument| {
///     std::str::from_utf8(argument).map(|argument| list.push_str(argument))
/// })?;
/// assert_eq!(list, "0:0 :1 :2 R3,6 R1,3 Rc,4");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    from: u64,
    to: u64,
    places: &mut [u64],
    sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), WriteError<E>> {
    write_in_turns(map, from, to, places, sink, &|| true)
}

/// As [`write()`], in turns: `go_on` is called between two turns of a long comparison. If it
/// returns `false`, the comparison ends there. The list still makes the same map; the sink may fail
/// to end it.
///
/// # Errors
/// As [`write()`].
pub fn write_in_turns<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    from: u64,
    to: u64,
    places: &mut [u64],
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    go_on: &impl Fn() -> bool,
) -> Result<(), WriteError<E>> {
    let end = to.min(map.geometry().nr_regions());
    Writer::new(map, from, places, go_on).stretch(from, end, &mut sink)
}

/// As [`write()`], but only for regions that differ from round robin. Applied to a round-robin map,
/// the arguments make it the same as this one from `from` up to `to`. Length and time depend on the
/// number of changed regions.
///
/// # Errors
/// As [`write()`].
pub fn write_changes<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    from: u64,
    to: u64,
    places: &mut [u64],
    sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), WriteError<E>> {
    write_where(map, from, to, places, |region, to| map.next_changed(region, to), sink)
}

/// Writes arguments for the regions that `next` finds, from `from` up to `to`. The list is applied
/// to a map that has the same paths as this one in all other regions of that range.
pub(in super::super) fn write_where<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    from: u64,
    to: u64,
    places: &mut [u64],
    next: impl Fn(u64, u64) -> Option<u64>,
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), WriteError<E>> {
    // Earlier regions are the same in both maps, or were written. So all of them can be copied.
    let mut writer = Writer::new(map, from, places, &|| true);
    let mut region = from;
    while let Some(start) = next(region, to) {
        region = start.wrapping_add(1);
        while let Some(another) = next(region, region.saturating_add(STRETCH_GAP).min(to)) {
            region = another.wrapping_add(1);
        }
        writer.stretch(start, region, &mut sink)?;
    }
    Ok(())
}

/// A copy of `count` regions from `distance` regions before.
#[derive(Clone, Copy)]
struct Copy {
    distance: u64,
    count: u64,
    /// Bytes that it saves compared with the paths.
    saved: u64,
}

struct Writer<'a, S, G> {
    map: &'a Map<S>,
    go_on: &'a G,
    places: Places<'a>,
    /// The first region that may be copied.
    floor: u64,
    last_distance: u64,
    began: bool,
}

impl<'a, S: AsRef<[AtomicU64]>, G: Fn() -> bool> Writer<'a, S, G> {
    fn new(map: &'a Map<S>, floor: u64, places: &'a mut [u64], go_on: &'a G) -> Self {
        let places = Places::new(places, map.geometry().num_paths());
        Self { map, go_on, places, floor, last_distance: 1, began: false }
    }

    /// Writes the regions from `start` up to `end`, the first one with its number.
    fn stretch<E>(
        &mut self,
        start: u64,
        end: u64,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), WriteError<E>> {
        let mut region = start;
        while region < end {
            let place = self.places.slot(self.map, region);
            let copy =
                if region > start { self.copy(region, end, self.places.get(place)) } else { None };
            let mut argument = Argument::new(self.began);
            let next = match copy {
                Some(Copy { distance, count, .. }) => {
                    argument.push(b'R');
                    argument.push_hex(distance);
                    argument.push(b',');
                    argument.push_hex(count);
                    self.last_distance = distance;
                    region.wrapping_add(count)
                }
                None => {
                    if region == start {
                        argument.push_hex(region);
                    }
                    argument.push(b':');
                    argument.push_hex(u64::from(self.map.entry_path(region)));
                    region.wrapping_add(1)
                }
            };
            sink(argument.bytes()).map_err(|error| WriteError { region, error })?;
            self.began = true;
            self.places.set(place, region);
            let remembered = next.min(region.wrapping_add(REMEMBERED));
            region = region.wrapping_add(1);
            while region < remembered {
                let place = self.places.slot(self.map, region);
                self.places.set(place, region);
                region = region.wrapping_add(1);
            }
            region = next;
        }
        Ok(())
    }

    /// As [`Map::repeated`], in turns.
    fn repeated(&self, region: u64, end: u64, distance: u64) -> u64 {
        let mut next = region;
        loop {
            let turn_end = end.min(next.saturating_add(TURN_REGIONS));
            next = next.wrapping_add(self.map.repeated(next, turn_end, distance));
            if next < turn_end || turn_end == end || !(self.go_on)() {
                return next.wrapping_sub(region);
            }
        }
    }

    /// The copy that saves most; `None` if none saves anything. `place` is an earlier region where
    /// the next paths may have stood.
    fn copy(&self, region: u64, end: u64, place: u64) -> Option<Copy> {
        let num_paths = u64::from(self.map.geometry().num_paths());
        let distances = [self.last_distance, 1, num_paths, region.wrapping_sub(place)];
        let mut best: Option<Copy> = None;
        for distance in distances {
            if distance == 0 || distance > region.saturating_sub(self.floor) {
                continue;
            }
            let count = self.repeated(region, end, distance);
            if count == 0 {
                continue;
            }
            // Compares ` R<distance>,<count>` with a ` :<path>` of usual length for each region.
            let length = hex_len(distance).wrapping_add(hex_len(count)).wrapping_add(3);
            let literal = hex_len(num_paths.wrapping_sub(1)).wrapping_add(2);
            let saved = count.saturating_mul(u64::from(literal)).saturating_sub(u64::from(length));
            if saved > best.map_or(0, |copy| copy.saved) {
                best = Some(Copy { distance, count, saved });
                if count >= LONG_COPY {
                    break;
                }
            }
        }
        best
    }
}

/// The regions where sequences of paths stood last, by a hash of the paths. Each find is checked,
/// so the contents may be anything.
struct Places<'a> {
    table: &'a mut [u64],
    /// 64 minus log2 of the table's length.
    shift: u32,
    path_bits: u32,
    key_paths: u64,
    key_mask: u64,
    /// The packed paths of the regions from `key_region` on.
    key: u64,
    key_region: u64,
}

impl<'a> Places<'a> {
    fn new(table: &'a mut [u64], num_paths: u32) -> Self {
        let path_bits = u32::BITS.wrapping_sub(num_paths.wrapping_sub(1).leading_zeros()).max(1);
        // Counts up to the fewest paths that have enough bits, instead of dividing.
        let (mut key_paths, mut key_bits) = (0u32, 0u32);
        while key_bits < KEY_BITS || key_paths < MIN_KEY_PATHS {
            key_paths = key_paths.wrapping_add(1);
            key_bits = key_bits.wrapping_add(path_bits);
        }
        let key_mask = u64::MAX.checked_shr(u64::BITS.saturating_sub(key_bits)).unwrap_or(0);
        let shift = (table.len() as u64).leading_zeros().wrapping_add(1);
        let (key_paths, key_region) = (u64::from(key_paths), u64::MAX - 1);
        Self { table, shift, path_bits, key_paths, key_mask, key: 0, key_region }
    }

    fn get(&self, slot: usize) -> u64 {
        self.table.get(slot).copied().unwrap_or(u64::MAX)
    }

    fn set(&mut self, slot: usize, region: u64) {
        if let Some(place) = self.table.get_mut(slot) {
            *place = region;
        }
    }

    /// The index in the table for the paths from `region` on.
    fn slot<S: AsRef<[AtomicU64]>>(&mut self, map: &Map<S>, region: u64) -> usize {
        let end = region.wrapping_add(self.key_paths);
        // For the next region, all paths but one are in the key already.
        let mut next =
            if region == self.key_region.wrapping_add(1) { end.wrapping_sub(1) } else { region };
        while next != end {
            let path = u64::from(map.entry_path(next));
            self.key = (self.key.wrapping_shl(self.path_bits) | path) & self.key_mask;
            next = next.wrapping_add(1);
        }
        self.key_region = region;
        // After the multiplication by 2^64 over the golden ratio, the top bits are a hash of all
        // bits.
        self.key.wrapping_mul(0x9e37_79b9_7f4a_7c15).checked_shr(self.shift).unwrap_or(0) as usize
    }
}

/// Number of hexadecimal digits of a number.
const fn hex_len(number: u64) -> u32 {
    u64::BITS.wrapping_sub((number | 1).leading_zeros()).wrapping_add(3) / 4
}

/// An argument under construction.
struct Argument {
    buffer: [u8; MAX_ARGUMENT],
    len: usize,
}

impl Argument {
    fn new(blank: bool) -> Self {
        Self { buffer: [b' '; MAX_ARGUMENT], len: usize::from(blank) }
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.buffer.get_mut(self.len) {
            *place = byte;
            self.len = self.len.wrapping_add(1);
        }
    }

    fn push_hex(&mut self, number: u64) {
        let mut digits = hex_len(number);
        while digits > 0 {
            digits = digits.wrapping_sub(1);
            let digit = (number.wrapping_shr(digits.wrapping_mul(4)) & 0xf) as u8;
            self.push(if digit < 10 {
                digit.wrapping_add(b'0')
            } else {
                digit.wrapping_add(b'a' - 10)
            });
        }
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.split_at_checked(self.len).map_or(&[], |(bytes, _)| bytes)
    }
}
