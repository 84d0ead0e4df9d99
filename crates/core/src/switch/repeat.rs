//! Copies regions for `R<cycle>,<count>`, and compares regions with earlier ones, a word of entries
//! at a time.
//!
//! Region i takes the path of region i - c. Entries are differences from round robin, so entry(i) =
//! entry(i - c) - c (mod n). The code reads a whole word from an unaligned place, and subtracts c
//! modulo n from all of its entries at once.
//!
//! Contract: the caller has checked the ranges, and there is one writer.

use super::geometry::Geometry;
use super::regions::{Map, Storage};
use super::sync::AtomicU64;

/// Distance in slots between a word and its source from which on the processor no longer waits for
/// the store of the source.
const FAR_SLOTS: u64 = 8;

impl<S: Storage> Map<S> {
    /// Repeats the `cycle` regions that end with region `index` over the `count` regions after it.
    pub(super) fn repeat(&self, index: u64, cycle: u64, count: u64) {
        let geometry = self.geometry();
        if geometry.num_paths() == 1 {
            return;
        }
        let slot_entries = geometry.slot_entries();
        let region = index.wrapping_add(1);
        let end = region.wrapping_add(count);
        if count < slot_entries.wrapping_mul(2) {
            return self.repeat_singly(region, end, cycle);
        }
        // The source of a word must be complete before the word is written. So words are copied
        // over a distance of at least a word, the smallest such multiple of the cycle. The regions
        // that come before this distance repeats itself are copied one by one.
        let mut distance = cycle;
        while distance < slot_entries {
            distance = distance.wrapping_add(cycle);
        }
        let periodic = region.wrapping_add(distance.wrapping_sub(cycle));
        let words = align_up(periodic, slot_entries);
        if words >= end {
            return self.repeat_singly(region, end, cycle);
        }
        self.repeat_singly(region, words, cycle);
        let num_paths = u64::from(geometry.num_paths());
        // A copy of a word waits until its source is stored. After some rounds, a source further
        // away has the same paths. If that distance is a multiple of the number of paths, nothing
        // needs to be subtracted, either.
        let mut far = distance.saturating_mul(num_paths);
        while far < slot_entries.wrapping_mul(FAR_SLOTS) {
            far = far.wrapping_mul(2);
        }
        let rounds_end = words.saturating_add(far);
        if rounds_end >= end {
            return self.repeat_words(words, end, distance);
        }
        let rounds_end = align_up(rounds_end, slot_entries).min(end);
        self.repeat_words(words, rounds_end, distance);
        self.repeat_words(rounds_end, end, far);
    }

    /// Copies each region from `region` up to `end` from the region `cycle` before it.
    fn repeat_singly(&self, mut region: u64, end: u64, cycle: u64) {
        let num_paths = u64::from(self.geometry().num_paths());
        let change = u64::from(self.geometry().default_path(cycle));
        while region < end {
            let entry = self.entry(region.wrapping_sub(cycle));
            let borrow = if entry < change { num_paths } else { 0 };
            self.store_entry(region, entry.wrapping_add(borrow).wrapping_sub(change));
            region = region.wrapping_add(1);
        }
    }

    /// Copies each region from `region`, the first of a slot, up to `end` from the region
    /// `distance` before it.
    fn repeat_words(&self, region: u64, end: u64, distance: u64) {
        let geometry = self.geometry();
        let slot_entries = geometry.slot_entries();
        let mut earlier = Earlier::new(self, region, distance);
        let mut slot = geometry.slot_of(region);
        let mut left = end.wrapping_sub(region);
        while left > 0 {
            let word = earlier.next_word();
            if left < slot_entries {
                let bits = (left as u32).wrapping_shl(geometry.entry_bits_log2());
                return self.merge_slot(slot, word, 1u64.wrapping_shl(bits).wrapping_sub(1));
            }
            self.store_slot(slot, word);
            left = left.wrapping_sub(slot_entries);
            slot = slot.wrapping_add(1);
        }
    }
}

impl<S: AsRef<[AtomicU64]>> Map<S> {
    /// Number of regions from `region` on, below `end`, that have the same path as the region
    /// `distance` before them.
    pub(super) fn repeated(&self, region: u64, end: u64, distance: u64) -> u64 {
        let geometry = self.geometry();
        let slot_entries = geometry.slot_entries();
        let mut next = region;
        while next < end && next & slot_entries.wrapping_sub(1) != 0 {
            if self.entry_path(next) != self.entry_path(next.wrapping_sub(distance)) {
                return next.wrapping_sub(region);
            }
            next = next.wrapping_add(1);
        }
        let mut earlier = Earlier::new(self, next, distance);
        while next < end {
            let different = self.slot(geometry.slot_of(next)) ^ earlier.next_word();
            if different != 0 {
                let equal = different.trailing_zeros().wrapping_shr(geometry.entry_bits_log2());
                next = next.wrapping_add(u64::from(equal));
                break;
            }
            next = next.wrapping_add(slot_entries);
        }
        next.min(end).wrapping_sub(region)
    }
}

/// Reads, slot after slot, the words that hold the regions some distance before.
struct Earlier<'a, S> {
    map: &'a Map<S>,
    difference: Difference,
    slot: u64,
    shift: u32,
}

impl<'a, S: AsRef<[AtomicU64]>> Earlier<'a, S> {
    /// The first word belongs to the slot that begins with `region`.
    fn new(map: &'a Map<S>, region: u64, distance: u64) -> Self {
        let geometry = map.geometry();
        let source = region.wrapping_sub(distance);
        let (slot, shift) = (geometry.slot_of(source), geometry.bit_of(source));
        Self { map, difference: Difference::new(geometry, distance), slot, shift }
    }

    #[inline]
    fn next_word(&mut self) -> u64 {
        let low = self.map.slot(self.slot).wrapping_shr(self.shift);
        self.slot = self.slot.wrapping_add(1);
        // Shifts up by 64 - shift in two steps, because that may be 64.
        let high = self.map.slot(self.slot).wrapping_shl(63u32.wrapping_sub(self.shift)) << 1;
        self.difference.subtract(low | high)
    }
}

/// The next multiple of a power of two.
const fn align_up(region: u64, slot_entries: u64) -> u64 {
    region.wrapping_add(slot_entries).wrapping_sub(1) & slot_entries.wrapping_neg()
}

/// Subtracts a number modulo the number of paths from every entry of a word.
///
/// It separates the even entries from the odd ones, so that each has as many free bits above it as
/// it has bits itself. With t = x + (n - c), the result is t, or t - n if t >= n. Bit `bits + 1` of
/// t + (2^(bits + 1) - n) is set if t >= n.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    /// The number modulo the number of paths; 0 if there is nothing to subtract.
    change: u32,
    bits: u32,
    num_paths: u64,
    /// A 1 in each even entry.
    ones: u64,
}

impl Difference {
    pub(super) fn new(geometry: &Geometry, number: u64) -> Self {
        let bits = geometry.entry_bits();
        let (mut ones, mut width) = (1u64, bits.wrapping_mul(2));
        while width < u64::BITS {
            ones |= ones.wrapping_shl(width);
            width = width.wrapping_mul(2);
        }
        Self {
            change: geometry.default_path(number),
            bits,
            num_paths: u64::from(geometry.num_paths()),
            ones,
        }
    }

    #[inline]
    pub(super) fn subtract(&self, word: u64) -> u64 {
        if self.change == 0 {
            return word;
        }
        if self.bits == 1 {
            // With two paths, subtracting 1 inverts the entry. (One bit has no room for the general
            // way.)
            return !word;
        }
        let even = self.ones.wrapping_shl(self.bits).wrapping_sub(self.ones);
        let low = self.subtract_even(word & even);
        let high = self.subtract_even(word.wrapping_shr(self.bits) & even);
        low | high.wrapping_shl(self.bits)
    }

    #[inline]
    fn subtract_even(&self, entries: u64) -> u64 {
        let top = self.bits.wrapping_add(1);
        let sum = entries.wrapping_add(
            self.ones.wrapping_mul(self.num_paths.wrapping_sub(u64::from(self.change))),
        );
        let bias = self.ones.wrapping_mul(1u64.wrapping_shl(top).wrapping_sub(self.num_paths));
        let too_large = sum.wrapping_add(bias).wrapping_shr(top) & self.ones;
        sum.wrapping_sub(too_large.wrapping_mul(self.num_paths))
    }
}
