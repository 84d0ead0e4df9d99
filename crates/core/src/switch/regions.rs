//! The region table: which path every region takes.
//!
//! An entry holds the difference of its path from round robin, `(path - region mod n) mod n`, in a
//! power-of-two number of bits. Zeroed storage is round robin, so a table can be lazily zeroed
//! memory: it appears at once however many regions it has, and takes memory only where it departs
//! from round robin.
//!
//! Contract: the storage belongs to one map; it must be zeroed, or hold what a map of the same
//! geometry left in it. Any number of threads may read at any time, each with one relaxed load: an
//! entry means something on its own. A word holds the entries of many regions and is changed by a
//! load and a store, so two writers at once would lose each other's changes, of other regions too:
//! only a [`MapWriter`] can write, and a map hands out one at a time. Nothing panics; a region past
//! the end reads as round robin and cannot be written.

use core::fmt;
use core::ops::{Deref, Range};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::geometry::Geometry;
use super::sync::{AtomicBool, AtomicU64};

/// Where a sector goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The path. It is below the geometry's `num_paths` if the map's storage is valid
    /// ([`Map::is_valid`]); a caller that indexes with it checks the bound all the same.
    pub path: u32,
    /// Sectors from this one to the end of its region, this one included; at least 1. In a short
    /// last region this reaches past the end of the target, where no request does.
    pub left: u64,
}

/// Storage that a map can be changed in. Slices of words are, and so is what leads to one; other
/// storage can learn which of its words are changed.
pub trait Storage: AsRef<[AtomicU64]> {
    /// The map's one writer is about to store to a word. Called before every store, so it must be
    /// cheap.
    #[inline]
    fn before_store(&self, _slot: usize) {}
}

impl<T: Deref<Target = [AtomicU64]> + AsRef<[AtomicU64]>> Storage for T {}

/// A region table over storage `S`.
#[derive(Debug)]
pub struct Map<S> {
    geometry: Geometry,
    storage: S,
    /// There is a [`MapWriter`].
    has_writer: AtomicBool,
}

/// Why storage cannot become a [`Map`]. The storage comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageError<S> {
    /// It has fewer words than [`Geometry::nr_slots`].
    TooShort(S),
    /// An entry in it leads to a path that the geometry does not have.
    Invalid(S),
}

impl<S> StorageError<S> {
    /// The storage that was refused.
    pub fn into_storage(self) -> S {
        match self {
            Self::TooShort(storage) | Self::Invalid(storage) => storage,
        }
    }
}

impl<S> fmt::Display for StorageError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooShort(_) => "the storage has fewer words than the region map needs",
            Self::Invalid(_) => {
                "the storage holds entries that are no paths of this region map: it is damaged, or \
                 of another geometry"
            }
        })
    }
}

impl<S: fmt::Debug> core::error::Error for StorageError<S> {}

impl<S: AsRef<[AtomicU64]>> Map<S> {
    /// A map over zeroed storage, or over what [`Map::into_storage`] gave from a map of the same
    /// geometry. Only the length is checked, so that lazily zeroed memory is not touched: the
    /// contents are trusted. For storage that comes from outside this program (a file) there is
    /// [`Map::checked`]. No other map may use the storage at the same time.
    ///
    /// # Errors
    /// Storage of fewer than [`Geometry::nr_slots`] words is given back.
    pub fn new(geometry: Geometry, storage: S) -> Result<Self, S> {
        if storage.as_ref().len() < geometry.nr_slots() {
            Err(storage)
        } else {
            Ok(Self { geometry, storage, has_writer: AtomicBool::new(false) })
        }
    }

    /// A map over storage that is not trusted: every entry is looked at. What it cannot find is an
    /// entry that is another of the geometry's paths than it should be; that takes a checksum.
    ///
    /// # Errors
    /// Storage that is too short or not valid is given back.
    pub fn checked(geometry: Geometry, storage: S) -> Result<Self, StorageError<S>> {
        let map = Self::new(geometry, storage).map_err(StorageError::TooShort)?;
        if map.is_valid() { Ok(map) } else { Err(StorageError::Invalid(map.storage)) }
    }

    /// Whether every region's entry leads to one of the geometry's paths. True of every map over
    /// zeroed storage that only its writers changed.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.are_valid(0..self.geometry.nr_slots())
    }

    /// The same of the regions in these slots: storage of which most is known to be zero need not
    /// be touched. False if there are no such slots.
    #[must_use]
    pub fn are_valid(&self, slots: Range<usize>) -> bool {
        let entries = Entries::new(&self.geometry);
        let slot_entries = self.geometry.slot_entries();
        let mut left = self
            .geometry
            .nr_regions()
            .saturating_sub(slot_entries.saturating_mul(slots.start as u64));
        let Some(words) = self.storage.as_ref().get(slots) else { return false };
        words.iter().all(|slot| {
            let mut word = slot.load(Relaxed);
            if left < slot_entries {
                // Past the last region nothing is ever looked up.
                let bits = (left as u32).wrapping_shl(self.geometry.entry_bits_log2());
                word &= 1u64.wrapping_shl(bits).wrapping_sub(1);
            }
            left = left.saturating_sub(slot_entries);
            entries.are_valid(word)
        })
    }

    /// The right to change the map; `None` while somebody else has it. Whoever holds the message
    /// lock takes it for the time of a message. Look-ups go on meanwhile.
    #[must_use]
    pub fn writer(&self) -> Option<MapWriter<'_, S>> {
        // Acquire: a writer goes on from all that the writers before it have stored.
        if self.has_writer.swap(true, Acquire) { None } else { Some(MapWriter { map: self }) }
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
        let (region, into_region) = self.geometry.place_of(sector);
        let size = u64::from(self.geometry.region_size());
        Route { path: self.entry_path(region), left: size.wrapping_sub(into_region) }
    }

    /// The path of a region; `None` past the last region.
    #[inline]
    pub fn path(&self, region: u64) -> Option<u32> {
        if region < self.geometry.nr_regions() { Some(self.entry_path(region)) } else { None }
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
        self.geometry.path_of(region, self.entry(region))
    }

    /// A region's difference from round robin.
    #[inline]
    pub(super) fn entry(&self, region: u64) -> u64 {
        let slot = self.slot(self.geometry.slot_of(region));
        slot.wrapping_shr(self.geometry.bit_of(region)) & self.geometry.entry_mask()
    }

    /// Slot `index`, or 0 past the end.
    #[inline]
    pub(super) fn slot(&self, index: u64) -> u64 {
        self.slot_ref(index).map_or(0, |slot| slot.load(Relaxed))
    }

    #[inline]
    fn slot_ref(&self, index: u64) -> Option<&AtomicU64> {
        self.storage.as_ref().get(usize::try_from(index).ok()?)
    }
}

impl<S: Storage> Map<S> {
    /// Sends a region to a path, both known to be the map's.
    #[inline]
    pub(super) fn store_path(&self, region: u64, path: u32) -> bool {
        let default = self.geometry.default_path(region);
        let borrow = if path < default { self.geometry.num_paths() } else { 0 };
        self.store_entry(region, u64::from(path.wrapping_add(borrow).wrapping_sub(default)))
    }

    /// Replaces a region's entry by one of as many bits. Rotated to the lowest place and back, so
    /// that neither the entry nor its mask has to be moved.
    #[inline]
    pub(super) fn store_entry(&self, region: u64, entry: u64) -> bool {
        let bit = self.geometry.bit_of(region);
        let Some(slot) = self.slot_to_store(self.geometry.slot_of(region)) else { return false };
        let others = slot.load(Relaxed).rotate_right(bit) & !self.geometry.entry_mask();
        slot.store((others | entry).rotate_left(bit), Relaxed);
        true
    }

    #[inline]
    pub(super) fn store_slot(&self, index: u64, word: u64) {
        if let Some(slot) = self.slot_to_store(index) {
            slot.store(word, Relaxed);
        }
    }

    /// Replaces the bits of `mask`. Load and store, not one operation: there is only one writer.
    #[inline]
    pub(super) fn merge_slot(&self, index: u64, word: u64, mask: u64) {
        if let Some(slot) = self.slot_to_store(index) {
            slot.store(slot.load(Relaxed) & !mask | word & mask, Relaxed);
        }
    }

    #[inline]
    fn slot_to_store(&self, index: u64) -> Option<&AtomicU64> {
        let index = usize::try_from(index).ok()?;
        let slot = self.storage.as_ref().get(index)?;
        self.storage.before_store(index);
        Some(slot)
    }
}

/// The right to change a map: there is one at a time ([`Map::writer`]), and it ends when this is
/// dropped. It reads like the map.
#[derive(Debug)]
#[must_use]
pub struct MapWriter<'a, S> {
    map: &'a Map<S>,
}

impl<S: Storage> MapWriter<'_, S> {
    /// Sends a region to a path. `false`, and nothing done, if there is no such region or path.
    #[inline]
    pub fn set(&mut self, region: u64, path: u32) -> bool {
        let geometry = &self.map.geometry;
        if region >= geometry.nr_regions() || path >= geometry.num_paths() {
            return false;
        }
        self.map.store_path(region, path)
    }

    /// Sends every region back to round robin.
    pub fn reset(&mut self) {
        for (index, slot) in self.map.storage.as_ref().iter().enumerate() {
            // A load first: memory that was never written is not made resident by this.
            if slot.load(Relaxed) != 0 {
                self.map.storage.before_store(index);
                slot.store(0, Relaxed);
            }
        }
    }
}

impl<S> Deref for MapWriter<'_, S> {
    type Target = Map<S>;

    #[inline]
    fn deref(&self) -> &Map<S> {
        self.map
    }
}

impl<S> Drop for MapWriter<'_, S> {
    fn drop(&mut self) {
        self.map.has_writer.store(false, Release);
    }
}

/// Checks the entries of a word all at once.
///
/// Entries are taken apart into the even and the odd ones, so that each has as many bits of room
/// above it. There x >= n shows in bit `bits` of x + (2^bits - n).
struct Entries {
    bits: u32,
    /// A 1 in each even entry.
    ones: u64,
    /// All bits of each even entry.
    even: u64,
    /// 2^bits - n in each even entry.
    bias: u64,
}

impl Entries {
    fn new(geometry: &Geometry) -> Self {
        let bits = geometry.entry_bits();
        let (mut ones, mut width) = (1u64, bits.wrapping_mul(2));
        while width < u64::BITS {
            ones |= ones.wrapping_shl(width);
            width = width.wrapping_mul(2);
        }
        let unused = 1u64.wrapping_shl(bits).wrapping_sub(u64::from(geometry.num_paths()));
        Self {
            bits,
            ones,
            even: ones.wrapping_shl(bits).wrapping_sub(ones),
            bias: ones.wrapping_mul(unused),
        }
    }

    #[inline]
    fn are_valid(&self, word: u64) -> bool {
        let even = (word & self.even).wrapping_add(self.bias);
        let odd = (word.wrapping_shr(self.bits) & self.even).wrapping_add(self.bias);
        (even | odd).wrapping_shr(self.bits) & self.ones == 0
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
