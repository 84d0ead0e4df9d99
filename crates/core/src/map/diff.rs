//! Compares two maps of the same regions.
//!
//! Equal words of the two region tables are skipped as a whole, if both have the same number of
//! paths. So the time depends on the size of the tables in memory, and on the number of changes.
//!
//! Contract: no allocation, no panic. If a map changes meanwhile, the runs may show different
//! moments.

use core::fmt;
use core::sync::atomic::AtomicU64;

use super::super::switch::compact::{self, WriteError};
use super::super::switch::{Geometry, Map};

/// The reason why two maps cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiffError {
    /// The maps have regions of different sizes.
    RegionSize {
        /// Region size of the first map in sectors.
        before: u32,
        /// Region size of the second map in sectors.
        after: u32,
    },
    /// The maps have different numbers of regions.
    Regions {
        /// Number of regions of the first map.
        before: u64,
        /// Number of regions of the second map.
        after: u64,
    },
}

impl core::error::Error for DiffError {}

impl fmt::Display for DiffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegionSize { before, after } => write!(
                f,
                "the maps have regions of {before} and of {after} sectors: only maps with regions \
                 of one size can be compared"
            ),
            Self::Regions { before, after } => write!(
                f,
                "the maps have {before} and {after} regions: only maps of one length can be compared"
            ),
        }
    }
}

/// Neighbouring regions that all change from one path to one other path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The first region.
    pub first: u64,
    /// The number of regions, at least 1.
    pub count: u64,
    /// Their path in the first map.
    pub from: u32,
    /// Their path in the second map.
    pub to: u32,
}

/// The difference of two maps with the same regions.
///
/// ```
/// use core::sync::atomic::AtomicU64;
/// use blkswitch_core::map::diff::{Change, Diff};
/// use blkswitch_core::switch::{Geometry, Map, Message};
///
/// let geometry = Geometry::new(2048, 3, 128)?;
/// let before = Map::new(geometry, vec![AtomicU64::new(0)])?;
/// let after = Map::new(geometry, vec![AtomicU64::new(0)])?;
/// let mut writer = after.writer().expect("nobody else changes the map");
/// Message::new().apply_text(&mut writer, b"4:2 :2 :2", true)?;
///
/// let diff = Diff::new(&before, &after)?;
/// let changes: Vec<Change> = diff.changes(0, 16).collect();
/// assert_eq!(changes[0], Change { first: 4, count: 1, from: 1, to: 2 });
/// assert_eq!(changes[1], Change { first: 6, count: 1, from: 0, to: 2 });
///
/// // The arguments of a message that turns the first map into the second.
/// let mut text = String::new();
/// diff.write(0, 16, &mut [0; 64], |argument| {
///     std::str::from_utf8(argument).map(|argument| text.push_str(argument))
/// })?;
/// assert_eq!(text, "4:2 R1,2");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Diff<'a, A, B> {
    before: &'a Map<A>,
    after: &'a Map<B>,
}

impl<A, B> Clone for Diff<'_, A, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A, B> Copy for Diff<'_, A, B> {}

impl<'a, A: AsRef<[AtomicU64]>, B: AsRef<[AtomicU64]>> Diff<'a, A, B> {
    /// The difference between `before` and `after`. They may have different numbers of paths.
    ///
    /// # Errors
    /// The maps have regions of different sizes, or different numbers of regions.
    pub fn new(before: &'a Map<A>, after: &'a Map<B>) -> Result<Self, DiffError> {
        let (old, new) = (before.geometry(), after.geometry());
        if old.region_size() != new.region_size() {
            return Err(DiffError::RegionSize {
                before: old.region_size(),
                after: new.region_size(),
            });
        }
        if old.nr_regions() != new.nr_regions() {
            return Err(DiffError::Regions { before: old.nr_regions(), after: new.nr_regions() });
        }
        Ok(Self { before, after })
    }

    /// The first region from `from` on, below `to`, that has another path in the second map.
    #[must_use]
    pub fn next(&self, from: u64, to: u64) -> Option<u64> {
        self.after.next_different(self.before, from, to)
    }

    /// The changes of the regions from `from` up to but not including `to` (or to the last region),
    /// in ascending order.
    #[must_use]
    pub fn changes(&self, from: u64, to: u64) -> Changes<'a, A, B> {
        let end = to.min(self.after.geometry().nr_regions());
        Changes { diff: *self, next: from, end }
    }

    /// Writes the arguments of a `set_region_mappings` message that gives the regions from `from`
    /// up to but not including `to` the paths of the second map. The list is made for the first
    /// map: it copies regions that did not change. `sink` gets it argument by argument, and each
    /// but the first begins with a blank. If nothing changes, it gets none.
    ///
    /// `places` is as for [`compact::write`]. Paths that the first map does not have are written,
    /// too; a message for the first map is then refused at the first of them.
    ///
    /// # Errors
    /// The error of `sink`, and the region at which another list can continue.
    pub fn write<E>(
        &self,
        from: u64,
        to: u64,
        places: &mut [u64],
        sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), WriteError<E>> {
        let end = to.min(self.after.geometry().nr_regions());
        compact::write_where(
            self.after,
            from,
            end,
            places,
            |region, to| self.next(region, to),
            sink,
        )
    }

    /// The sizes of the second map, which are those of the first but for the number of paths.
    #[must_use]
    pub fn geometry(&self) -> &'a Geometry {
        self.after.geometry()
    }
}

/// The iterator of [`Diff::changes`].
#[derive(Debug)]
pub struct Changes<'a, A, B> {
    diff: Diff<'a, A, B>,
    next: u64,
    end: u64,
}

impl<A, B> Clone for Changes<'_, A, B> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<A: AsRef<[AtomicU64]>, B: AsRef<[AtomicU64]>> Iterator for Changes<'_, A, B> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        let Diff { before, after } = self.diff;
        let first = self.diff.next(self.next, self.end)?;
        let (from, to) = (before.path(first)?, after.path(first)?);
        let mut end = first.wrapping_add(1);
        while end < self.end && before.path(end) == Some(from) && after.path(end) == Some(to) {
            end = end.wrapping_add(1);
        }
        self.next = end;
        Some(Change { first, count: end.wrapping_sub(first), from, to })
    }
}
