//! The region table: the path of every region.
//!
//! An entry holds the difference of its path from round robin, `(path - region mod n) mod n`, in a
//! power-of-two number of bits. Zeroed storage is round robin. So the storage can be memory that
//! the kernel zeroes when it is first touched: a map of any size is made at once, and takes memory
//! only where it differs from round robin.
//!
//! Contract: the storage belongs to one map. It is zeroed, or holds what a map of the same geometry
//! left in it. Any number of threads may read at any time, each with one relaxed load, because an
//! entry does not depend on other entries. A word holds the entries of many regions, and a change
//! is a load and a store. So two writers at once would lose each other's changes, also of different
//! regions. Therefore only a [`MapWriter`] can write, and a map gives out one at a time. No
//! function panics; a region past the end reads as round robin and cannot be written.

use core::fmt;
use core::ops::{Deref, Range};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::geometry::Geometry;
use super::sync::{AtomicBool, AtomicU64};

/// The answer to a look-up: the path of a sector, and how far that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The path. It is below the geometry's `num_paths` if the map's storage is valid
    /// ([`Map::is_valid`]). A caller that uses it as an index still checks it.
    pub path: u32,
    /// Number of sectors from this one to the end of its region, this one included; at least 1. In
    /// a short last region it reaches past the end of the target, but no request does.
    pub left: u64,
}

/// Storage that a [`MapWriter`] can change. Every type that dereferences to a slice of words is
/// such storage. Another type implements this trait to learn which of its words change.
pub trait Storage: AsRef<[AtomicU64]> {
    /// The map's writer calls this before every store to a word, so it must be cheap.
    #[inline]
    fn before_store(&self, _slot: usize) {}
}

impl<T: Deref<Target = [AtomicU64]> + AsRef<[AtomicU64]>> Storage for T {}

/// The region table of a switch target, in storage `S`.
///
/// Look-ups need only a shared reference; [`Map::writer`] gives the right to change the map.
#[derive(Debug)]
pub struct Map<S> {
    geometry: Geometry,
    storage: S,
    /// Whether a [`MapWriter`] exists.
    has_writer: AtomicBool,
}

/// The reason why storage cannot become a [`Map`]. It contains the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageError<S> {
    /// The storage has fewer words than [`Geometry::nr_slots`].
    TooShort(S),
    /// An entry leads to a path that the geometry does not have.
    Invalid(S),
}

impl<S> StorageError<S> {
    /// The refused storage.
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
                "the storage holds entries that lead to no path of this region map: it is damaged, \
                 or of another geometry"
            }
        })
    }
}

impl<S: fmt::Debug> core::error::Error for StorageError<S> {}

impl<S: AsRef<[AtomicU64]>> Map<S> {
    /// A map over zeroed storage, or over storage that [`Map::into_storage`] returned from a map of
    /// the same geometry. It checks only the length and trusts the contents, so memory that is
    /// zeroed lazily stays untouched. For storage from outside this program, such as a file, use
    /// [`Map::checked`]. No other map may use the storage at the same time.
    ///
    /// # Errors
    /// [`StorageError::TooShort`] if the storage has fewer than [`Geometry::nr_slots`] words.
    pub fn new(geometry: Geometry, storage: S) -> Result<Self, StorageError<S>> {
        if storage.as_ref().len() < geometry.nr_slots() {
            Err(StorageError::TooShort(storage))
        } else {
            Ok(Self { geometry, storage, has_writer: AtomicBool::new(false) })
        }
    }

    /// A map over storage that is not trusted. It checks every entry. It cannot notice an entry
    /// that was changed to another valid path; only a checksum can.
    ///
    /// # Errors
    /// [`StorageError::TooShort`], and [`StorageError::Invalid`] if an entry leads to no path.
    pub fn checked(geometry: Geometry, storage: S) -> Result<Self, StorageError<S>> {
        let map = Self::new(geometry, storage)?;
        if map.is_valid() { Ok(map) } else { Err(StorageError::Invalid(map.storage)) }
    }

    /// Whether the entry of every region leads to one of the geometry's paths. This holds for every
    /// map over zeroed storage that only its writers have changed.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.are_valid(0..self.geometry.nr_slots())
    }

    /// As [`Map::is_valid`], for the regions in these slots. A caller that knows which slots are
    /// zero does not need to touch them. `false` if the storage does not have all of these slots.
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
                // Entries past the last region have no meaning.
                let bits = (left as u32).wrapping_shl(self.geometry.entry_bits_log2());
                word &= 1u64.wrapping_shl(bits).wrapping_sub(1);
            }
            left = left.saturating_sub(slot_entries);
            entries.are_valid(word)
        })
    }

    /// The right to change the map; `None` while another [`MapWriter`] of the map exists. The
    /// holder of the message lock takes it for the time of a message. Look-ups continue meanwhile.
    #[must_use]
    pub fn writer(&self) -> Option<MapWriter<'_, S>> {
        // Acquire: this writer must see all stores of the writers before it.
        if self.has_writer.swap(true, Acquire) { None } else { Some(MapWriter { map: self }) }
    }

    /// The map's sizes.
    #[inline]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The storage. Its words have no meaning without the geometry.
    pub const fn storage(&self) -> &S {
        &self.storage
    }

    /// The storage, for a later [`Map::new`].
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// The path of a sector, which counts from the target's start. The caller makes sure that the
    /// target has this sector; otherwise the answer is meaningless, but within the documented
    /// range.
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

    /// The runs of neighbouring regions with the same path, from region `from` up to but not
    /// including `to` (or to the last region). If the map changes meanwhile, runs may show
    /// different moments; a caller that needs one moment holds the message lock.
    pub fn runs(&self, from: u64, to: u64) -> Runs<'_, S> {
        Runs { map: self, next: from, end: to.min(self.geometry.nr_regions()) }
    }

    /// The first region from `from` on, below `to`, that differs from round robin; `None` if there
    /// is none. It skips words of zeroes as a whole, so it quickly finds the few changed regions of
    /// a large map.
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

    /// The first region from `from` on, below `to`, with another path than in `other`, which has
    /// the same regions.
    #[cfg(feature = "map")]
    pub(in super::super) fn next_different<T: AsRef<[AtomicU64]>>(
        &self,
        other: &Map<T>,
        from: u64,
        to: u64,
    ) -> Option<u64> {
        let end = to.min(self.geometry.nr_regions());
        let mut region = from;
        if self.geometry.num_paths() != other.geometry.num_paths() {
            while region < end && self.entry_path(region) == other.entry_path(region) {
                region = region.wrapping_add(1);
            }
            return if region < end { Some(region) } else { None };
        }
        // Entries of equal paths are equal, so whole words can be compared.
        while region < end {
            let index = self.geometry.slot_of(region);
            let different =
                (self.slot(index) ^ other.slot(index)).wrapping_shr(self.geometry.bit_of(region));
            if different != 0 {
                let equal =
                    different.trailing_zeros().wrapping_shr(self.geometry.entry_bits_log2());
                let first = region.wrapping_add(u64::from(equal));
                return if first < end { Some(first) } else { None };
            }
            region = (region | self.geometry.slot_entries().wrapping_sub(1)).wrapping_add(1);
        }
        None
    }

    /// The path of a region of the map.
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
    /// Sends a region to a path. The caller has checked both.
    #[inline]
    pub(super) fn store_path(&self, region: u64, path: u32) -> bool {
        let default = self.geometry.default_path(region);
        let borrow = if path < default { self.geometry.num_paths() } else { 0 };
        self.store_entry(region, u64::from(path.wrapping_add(borrow).wrapping_sub(default)))
    }

    /// Replaces a region's entry. The word is rotated so that the entry is at the lowest place, and
    /// back. This takes fewer instructions than moving the entry and its mask.
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

    /// Replaces the bits of `mask`. A load and a store are enough, because there is only one
    /// writer.
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

/// The right to change a [`Map`]. A map gives out one at a time ([`Map::writer`]), and takes it
/// back when this value is dropped. It dereferences to the map, for reading.
#[derive(Debug)]
#[must_use]
pub struct MapWriter<'a, S> {
    map: &'a Map<S>,
}

impl<S: Storage> MapWriter<'_, S> {
    /// Sends a region to a path. Returns `false` and changes nothing if there is no such region or
    /// path.
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
            // The load comes first, so memory that was never written does not become resident.
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

/// Checks all entries of a word at once.
///
/// It separates the even entries from the odd ones, so that each has as many free bits above it as
/// it has bits itself. Bit `bits` of x + (2^bits - n) is then set if x >= n.
struct Entries {
    bits: u32,
    /// A 1 at the lowest bit of each even entry.
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

/// A run: neighbouring regions with the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first region.
    pub start: u64,
    /// The number of regions, at least 1.
    pub count: u64,
    /// Their path.
    pub path: u32,
}

/// The iterator of [`Map::runs`]; it ends at the last region that was asked for.
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
