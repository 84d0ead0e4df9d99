//! Walks over the regions of a map, a slot at a time, for [`super::super::map`].
//!
//! Contract: no allocation, no panic. The ranges end at the last region at most.

use super::geometry::Geometry;
use super::regions::Map;
use super::repeat::Difference;
use super::sync::AtomicU64;

/// The regions of a range and their paths. It reads each word once and computes no remainder.
#[derive(Clone, Debug)]
pub(in super::super) struct Slots<'a, S> {
    map: &'a Map<S>,
    next: u64,
    end: u64,
    /// The path of `next` in round robin.
    round_robin: u32,
    /// The word of the slot of `next`, with the entry of `next` at its lowest bit.
    word: u64,
}

impl<'a, S: AsRef<[AtomicU64]>> Slots<'a, S> {
    /// The regions from `from` up to `end`, which is at most the number of regions.
    pub(in super::super) fn new(map: &'a Map<S>, from: u64, end: u64) -> Self {
        let geometry = map.geometry();
        let word = map.slot(geometry.slot_of(from)).wrapping_shr(geometry.bit_of(from));
        Self { map, next: from, end, round_robin: geometry.default_path(from), word }
    }
}

impl<S: AsRef<[AtomicU64]>> Iterator for Slots<'_, S> {
    type Item = (u64, u32);

    #[inline]
    fn next(&mut self) -> Option<(u64, u32)> {
        if self.next >= self.end {
            return None;
        }
        let geometry = self.map.geometry();
        let num_paths = geometry.num_paths();
        let region = self.next;
        let path = ((self.word & geometry.entry_mask()) as u32).wrapping_add(self.round_robin);
        let path = if path >= num_paths { path.wrapping_sub(num_paths) } else { path };
        let following = self.round_robin.wrapping_add(1);
        self.round_robin = if following == num_paths { 0 } else { following };
        self.next = region.wrapping_add(1);
        // An entry has at most 32 bits, so the shift is below 64.
        self.word = self.word.wrapping_shr(geometry.entry_bits());
        if self.next & geometry.slot_entries().wrapping_sub(1) == 0 {
            self.word = self.map.slot(geometry.slot_of(self.next));
        }
        Some((region, path))
    }
}

/// The regions of one path in a range.
#[derive(Debug)]
pub(in super::super) struct SlotsWith<'a, S> {
    map: &'a Map<S>,
    end: u64,
    slot: u64,
    /// A 0 entry for each region of the slot that has the path; no 0 entry for regions that were
    /// passed.
    different: u64,
    wanted: Wanted,
    /// A 1 at the lowest bit of each entry.
    ones: u64,
}

impl<S> Clone for SlotsWith<'_, S> {
    fn clone(&self) -> Self {
        Self { wanted: self.wanted.clone(), ..*self }
    }
}

impl<S: AsRef<[AtomicU64]>> Map<S> {
    /// The regions of path `path` from `from` up to `end`, which is at most the number of regions.
    pub(in super::super) fn slots_with(&self, path: u32, from: u64, end: u64) -> SlotsWith<'_, S> {
        let geometry = self.geometry();
        let slot = geometry.slot_of(from);
        let wanted = Wanted::new(geometry, slot, path);
        let different = self.slot(slot) ^ wanted.word();
        // Entries before `from` get a value other than 0.
        let passed = 1u64.wrapping_shl(geometry.bit_of(from)).wrapping_sub(1);
        SlotsWith {
            map: self,
            end,
            slot,
            different: different | passed,
            wanted,
            ones: u64::MAX.checked_div(geometry.entry_mask()).unwrap_or(0),
        }
    }
}

/// Most words that are computed in advance.
const WORDS: usize = 64;

/// Slot after slot, the word that it would have if all of its regions had one path.
///
/// From slot to slot, every entry changes by the same number modulo the number of paths. So the
/// words repeat after as many slots as there are paths, at most. If these are few, they are
/// computed once.
#[derive(Clone, Debug)]
struct Wanted {
    words: [u64; WORDS],
    at: usize,
    /// The number of words after which they repeat; 1 if there are too many to be kept.
    len: usize,
    /// The change from slot to slot, if there are too many.
    step: Option<Difference>,
}

impl Wanted {
    /// For the slots from `slot` on.
    fn new(geometry: &Geometry, slot: u64, path: u32) -> Self {
        let step = Difference::new(geometry, geometry.slot_entries());
        let mut words = [wanted(geometry, slot, path); WORDS];
        let num_paths = geometry.num_paths() as usize;
        if num_paths > WORDS {
            return Self { words, at: 0, len: 1, step: Some(step) };
        }
        let mut word = step.subtract(words[0]);
        for place in words.iter_mut().skip(1) {
            *place = word;
            word = step.subtract(word);
        }
        Self { words, at: 0, len: num_paths, step: None }
    }

    #[inline]
    fn word(&self) -> u64 {
        self.words[self.at & (WORDS - 1)]
    }

    #[inline]
    fn step(&mut self) {
        if let Some(step) = &self.step {
            self.words[0] = step.subtract(self.words[0]);
            return;
        }
        let next = self.at.wrapping_add(1);
        self.at = if next == self.len { 0 } else { next };
    }
}

/// The word of a slot if all of its regions had this path.
fn wanted(geometry: &Geometry, slot: u64, path: u32) -> u64 {
    let entries = geometry.slot_entries();
    let first = slot.wrapping_mul(entries);
    let (mut word, mut entry) = (0u64, 0u64);
    while entry < entries {
        let region = first.wrapping_add(entry);
        let default = geometry.default_path(region);
        let borrow = if path < default { geometry.num_paths() } else { 0 };
        let value = path.wrapping_add(borrow).wrapping_sub(default);
        word |= u64::from(value).wrapping_shl(geometry.bit_of(region));
        entry = entry.wrapping_add(1);
    }
    word
}

impl<S: AsRef<[AtomicU64]>> Iterator for SlotsWith<'_, S> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        let geometry = self.map.geometry();
        let tops = self.ones.wrapping_shl(geometry.entry_bits().wrapping_sub(1));
        let entries = geometry.slot_entries();
        loop {
            let first = self.slot.wrapping_mul(entries);
            if first >= self.end {
                return None;
            }
            // The lowest entry with its top bit set is the first that is 0.
            let zeroes = self.different.wrapping_sub(self.ones) & !self.different & tops;
            if zeroes != 0 {
                let entry = zeroes.trailing_zeros().wrapping_shr(geometry.entry_bits_log2());
                let region = first.wrapping_add(u64::from(entry));
                self.different |= geometry.entry_mask().wrapping_shl(geometry.bit_of(region));
                return if region < self.end { Some(region) } else { None };
            }
            self.slot = self.slot.wrapping_add(1);
            self.wanted.step();
            self.different = self.map.slot(self.slot) ^ self.wanted.word();
        }
    }
}
