//! The region table: which path every region takes.
//!
//! An entry holds the difference of its path from round robin, `(path - region mod n) mod n`, in a
//! power-of-two number of bits. Zeroed storage is round robin, so a table can be lazily zeroed
//! memory: it appears at once however many regions it has, and takes memory only where it departs
//! from round robin.
//!
//! Contract: the storage belongs to the caller; it must be zeroed, or hold what a map of the same
//! geometry left in it. Any number of threads may read at any time, each with one relaxed load: an
//! entry means something on its own. One thread at a time may write (the caller holds the message
//! lock). Nothing panics; a region past the end reads as round robin and cannot be written.

use core::sync::atomic::Ordering::Relaxed;

use super::geometry::Geometry;
use super::sync::AtomicU64;

/// Where a sector goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The path, below the geometry's `num_paths`.
    pub path: u32,
    /// Sectors from this one to the end of its region, this one included; at least 1. In a short
    /// last region this reaches past the end of the target, where no request does.
    pub left: u64,
}

/// A region table over storage `S`.
#[derive(Clone, Copy, Debug)]
pub struct Map<S> {
    geometry: Geometry,
    storage: S,
}

impl<S: AsRef<[AtomicU64]>> Map<S> {
    /// A map over zeroed storage, or over what [`Map::into_storage`] gave from a map of the same
    /// geometry. Storage of fewer than [`Geometry::nr_slots`] words is given back.
    pub fn new(geometry: Geometry, storage: S) -> Result<Self, S> {
        if storage.as_ref().len() < geometry.nr_slots() {
            Err(storage)
        } else {
            Ok(Self { geometry, storage })
        }
    }

    /// What is fixed about this map.
    #[inline]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The storage as it is: the words themselves say nothing without the geometry.
    pub const fn storage(&self) -> &S {
        &self.storage
    }

    /// The storage, for a later [`Map::new`].
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// Where a sector, counted from the target's start, goes. The caller sees to it that the target
    /// has this sector; if it has not, the answer is of no use but within its limits.
    #[inline]
    pub fn route(&self, sector: u64) -> Route {
        let sector = Geometry::valid_sector_bits(sector);
        let region = self.geometry.region_of(sector);
        let size = u64::from(self.geometry.region_size());
        let into_region = sector.wrapping_sub(region.wrapping_mul(size));
        Route { path: self.entry_path(region), left: size.wrapping_sub(into_region) }
    }

    /// The path of a region; `None` past the last region.
    #[inline]
    pub fn path(&self, region: u64) -> Option<u32> {
        if region < self.geometry.nr_regions() { Some(self.entry_path(region)) } else { None }
    }

    /// Sends a region to a path. `false`, and nothing done, if there is no such region or path.
    #[inline]
    pub fn set(&self, region: u64, path: u32) -> bool {
        if region >= self.geometry.nr_regions() || path >= self.geometry.num_paths() {
            return false;
        }
        self.store_path(region, path)
    }

    /// Sends every region back to round robin.
    pub fn reset(&self) {
        for slot in self.storage.as_ref() {
            // A load first: memory that was never written is not made resident by this.
            if slot.load(Relaxed) != 0 {
                slot.store(0, Relaxed);
            }
        }
    }

    /// The regions from `from` up to but not including `to` (or the last one), neighbours with the
    /// same path in one run. While somebody writes, a run may be of different moments: who needs
    /// better holds the message lock.
    pub fn runs(&self, from: u64, to: u64) -> Runs<'_, S> {
        Runs { map: self, next: from, end: to.min(self.geometry.nr_regions()) }
    }

    /// The first region from `from` on, below `to`, that may differ from round robin: whole words
    /// of zeroes are passed over at a glance, so this finds the little that was changed in a large
    /// table. `None` if there is none.
    pub fn next_changed(&self, from: u64, to: u64) -> Option<u64> {
        let end = to.min(self.geometry.nr_regions());
        let mut region = from;
        while region < end {
            let entries =
                self.slot(self.geometry.slot_of(region)).wrapping_shr(self.geometry.bit_of(region));
            if entries != 0 {
                let unchanged =
                    entries.trailing_zeros().wrapping_shr(self.geometry.entry_bits_log2());
                let changed = region.wrapping_add(u64::from(unchanged));
                return if changed < end { Some(changed) } else { None };
            }
            region = (region | self.geometry.slot_entries().wrapping_sub(1)).wrapping_add(1);
        }
        None
    }

    /// The path of a region, which should be one of the map's.
    #[inline]
    pub(super) fn entry_path(&self, region: u64) -> u32 {
        let entry = self.entry(region);
        let num_paths = u64::from(self.geometry.num_paths());
        let path = entry.wrapping_add(u64::from(self.geometry.default_path(region)));
        // One of the two is not a path but a number near 2^64: the other is the smaller.
        path.min(path.wrapping_sub(num_paths)) as u32
    }

    /// Sends a region to a path, both known to be the map's.
    #[inline]
    pub(super) fn store_path(&self, region: u64, path: u32) -> bool {
        let default = self.geometry.default_path(region);
        let borrow = if path < default { self.geometry.num_paths() } else { 0 };
        self.store_entry(region, u64::from(path.wrapping_add(borrow).wrapping_sub(default)))
    }

    /// A region's difference from round robin.
    #[inline]
    pub(super) fn entry(&self, region: u64) -> u64 {
        let slot = self.slot(self.geometry.slot_of(region));
        slot.wrapping_shr(self.geometry.bit_of(region)) & self.geometry.entry_mask()
    }

    /// Replaces a region's entry by one of as many bits. Rotated to the lowest place and back, so
    /// that neither the entry nor its mask has to be moved.
    #[inline]
    pub(super) fn store_entry(&self, region: u64, entry: u64) -> bool {
        let bit = self.geometry.bit_of(region);
        let Some(slot) = self.slot_ref(self.geometry.slot_of(region)) else { return false };
        let others = slot.load(Relaxed).rotate_right(bit) & !self.geometry.entry_mask();
        slot.store((others | entry).rotate_left(bit), Relaxed);
        true
    }

    /// Slot `index`, or 0 past the end.
    #[inline]
    pub(super) fn slot(&self, index: u64) -> u64 {
        self.slot_ref(index).map_or(0, |slot| slot.load(Relaxed))
    }

    #[inline]
    pub(super) fn store_slot(&self, index: u64, word: u64) {
        if let Some(slot) = self.slot_ref(index) {
            slot.store(word, Relaxed);
        }
    }

    /// Replaces the bits of `mask`. Load and store, not one operation: there is only one writer.
    #[inline]
    pub(super) fn merge_slot(&self, index: u64, word: u64, mask: u64) {
        if let Some(slot) = self.slot_ref(index) {
            slot.store(slot.load(Relaxed) & !mask | word & mask, Relaxed);
        }
    }

    #[inline]
    fn slot_ref(&self, index: u64) -> Option<&AtomicU64> {
        self.storage.as_ref().get(usize::try_from(index).ok()?)
    }
}

/// Neighbouring regions with the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first of them.
    pub start: u64,
    /// How many, at least 1.
    pub count: u64,
    /// Their path.
    pub path: u32,
}

/// Iterator of [`Map::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a, S> {
    map: &'a Map<S>,
    next: u64,
    end: u64,
}

impl<S: AsRef<[AtomicU64]>> Iterator for Runs<'_, S> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.next >= self.end {
            return None;
        }
        let start = self.next;
        let path = self.map.entry_path(start);
        let same = self.map.repeated(start.wrapping_add(1), self.end, 1);
        self.next = start.wrapping_add(same).wrapping_add(1);
        Some(Run { start, count: same.wrapping_add(1), path })
    }
}
