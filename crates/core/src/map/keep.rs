//! Carries a map over to a table with other paths.
//!
//! Paths are compared by keys that tell what is behind them, such as the identity of a unit. The
//! caller makes the keys; this code only compares them. [`match_paths`] finds each old path among
//! the new ones, [`lost`] finds the regions whose path is gone, and [`carry_over`] writes the old
//! map into the new one.
//!
//! An entry of the region table is a difference from round robin modulo the number of paths. So the
//! storage itself can be kept only if the number of paths is the same and each path keeps its place
//! ([`Kept::Same`]). With one path more, every entry changes, also if it has as many bits as
//! before.
//!
//! Contract: no allocation, no panic. The caller holds the message lock of the old map.

use core::fmt;
use core::sync::atomic::AtomicU64;

use super::super::switch::regions::Storage;
use super::super::switch::walk::Slots;
use super::super::switch::{Geometry, Map, MapWriter, Run, Runs};

/// Regions that are carried over between two calls of `go_on`: some milliseconds of work.
const TURN_REGIONS: u64 = 1 << 20;

/// The relation of a table's new paths to the old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kept {
    /// The paths are the same, in the same order. The storage of the map can be kept.
    Same,
    /// Every old path keeps its number, and new paths follow. The map must be carried over.
    Grown,
    /// Some old paths have another number, or none. The map must be carried over.
    Changed {
        /// Number of old paths that have another number now.
        moved: u32,
        /// Number of old paths that no new path matches.
        gone: u32,
    },
}

/// Finds each old path among the new ones. Afterwards `numbers` has, for each old path, its number
/// in the new table, or `None` if no new path has its key. It is as long as `old`.
///
/// A path that has the same key at its old number keeps that number. Several paths may have one
/// key; then the remaining old paths get the remaining new ones in ascending order, and none is
/// used twice. `order` is room for a number for each new path; its contents do not matter.
///
/// ```
/// use blkswitch_core::map::keep::{Kept, match_paths};
///
/// let (mut numbers, mut order) = ([None; 3], [0; 4]);
/// let kept = match_paths(&["a", "b", "c"], &["a", "c", "d", "e"], &mut numbers, &mut order);
/// assert_eq!(kept, Kept::Changed { moved: 1, gone: 1 });
/// assert_eq!(numbers, [Some(0), None, Some(1)]);
/// ```
pub fn match_paths<K: Ord>(
    old: &[K],
    new: &[K],
    numbers: &mut [Option<u32>],
    order: &mut [u32],
) -> Kept {
    let mut remaining = 0usize;
    for (number, key) in new.iter().enumerate() {
        // The new paths that no old path of their number has.
        if old.get(number).is_none_or(|old| old != key) {
            if let Some(place) = order.get_mut(remaining) {
                *place = number as u32;
                remaining = remaining.wrapping_add(1);
            }
        }
    }
    let (order, _) = order.split_at_mut(remaining);
    let key_of = |number: u32| new.get((number & !USED) as usize);
    order.sort_unstable_by(|a, b| key_of(*a).cmp(&key_of(*b)).then(a.cmp(b)));
    let (mut moved, mut gone) = (0u32, 0u32);
    for (number, (key, place)) in old.iter().zip(numbers.iter_mut()).enumerate() {
        if new.get(number) == Some(key) {
            *place = Some(number as u32);
            continue;
        }
        let first = order.partition_point(|&other| key_of(other) < Some(key));
        let (_, equal) = order.split_at_mut(first);
        let free = equal
            .iter_mut()
            .take_while(|other| key_of(**other) == Some(key))
            .find(|other| **other & USED == 0);
        *place = free.map(|other| {
            let number = *other;
            *other |= USED;
            number
        });
        match place {
            Some(_) => moved = moved.wrapping_add(1),
            None => gone = gone.wrapping_add(1),
        }
    }
    if moved != 0 || gone != 0 {
        Kept::Changed { moved, gone }
    } else if old.len() == new.len() {
        Kept::Same
    } else {
        Kept::Grown
    }
}

/// Marks a new path that an old one has taken. No path number is as large.
const USED: u32 = 1 << 31;

/// The regions of a map whose path has no number in the new table, as runs in ascending order. They
/// would point at a path that is gone, so a load that keeps the map must be refused.
pub fn lost<'a, S: AsRef<[AtomicU64]>>(map: &'a Map<S>, numbers: &'a [Option<u32>]) -> Lost<'a, S> {
    // Without a path that is gone, there is nothing to look for.
    let regions = map.geometry().nr_regions();
    let is_gone = |path: u32| numbers.get(path as usize).copied().flatten().is_none();
    let from = if (0..map.geometry().num_paths()).any(is_gone) { 0 } else { regions };
    Lost { runs: map.runs(from, regions), numbers }
}

/// The iterator of [`lost`].
#[derive(Clone, Debug)]
pub struct Lost<'a, S> {
    runs: Runs<'a, S>,
    numbers: &'a [Option<u32>],
}

impl<S: AsRef<[AtomicU64]>> Iterator for Lost<'_, S> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let Self { runs, numbers } = self;
        runs.find(|run| numbers.get(run.path as usize).copied().flatten().is_none())
    }
}

/// The reason why a map cannot be carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeepError {
    /// The new table has regions of another size.
    RegionSize {
        /// Region size of the old table in sectors.
        old: u32,
        /// Region size of the new table in sectors.
        new: u32,
    },
    /// The new table has fewer regions.
    FewerRegions {
        /// Number of regions of the old table.
        old: u64,
        /// Number of regions of the new table.
        new: u64,
    },
    /// A region has a path that is gone.
    Lost {
        /// The first such region.
        region: u64,
        /// Its path in the old table.
        path: u32,
    },
    /// The caller has ended it between two turns.
    Ended,
}

impl core::error::Error for KeepError {}

impl fmt::Display for KeepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegionSize { old, new } => write!(
                f,
                "the new table has regions of {new} sectors and the old one of {old}: a map is kept \
                 only with the same region size"
            ),
            Self::FewerRegions { old, new } => write!(
                f,
                "the new table has {new} regions and the old one {old}: a map is kept only if no \
                 region is gone"
            ),
            Self::Lost { region, path } => {
                write!(f, "region {region} is on path {path}, which the new table does not have")
            }
            Self::Ended => f.write_str("the map was not carried over to its end"),
        }
    }
}

/// Checks that a map can be carried over to a table with this geometry, as far as sizes decide it.
///
/// # Errors
/// [`KeepError::RegionSize`] and [`KeepError::FewerRegions`].
pub fn check_sizes(old: &Geometry, new: &Geometry) -> Result<(), KeepError> {
    if old.region_size() != new.region_size() {
        return Err(KeepError::RegionSize { old: old.region_size(), new: new.region_size() });
    }
    if old.nr_regions() > new.nr_regions() {
        return Err(KeepError::FewerRegions { old: old.nr_regions(), new: new.nr_regions() });
    }
    Ok(())
}

/// Writes the old map into the new one: each old region goes to the new number of its path. Regions
/// that only the new map has stay as they are. It converts between slots of different widths.
///
/// It calls `go_on` after every 2^20 regions, and ends if that returns `false`. Messages that
/// change the old map meanwhile must be applied to both maps, with [`translate`] for the new one.
///
/// # Errors
/// Those of [`check_sizes`], [`KeepError::Lost`] for the first region of a path that is gone, and
/// [`KeepError::Ended`]. The new map is changed in part then.
pub fn carry_over<A: AsRef<[AtomicU64]>, B: Storage>(
    old: &Map<A>,
    new: &mut MapWriter<'_, B>,
    numbers: &[Option<u32>],
    go_on: impl Fn() -> bool,
) -> Result<(), KeepError> {
    check_sizes(old.geometry(), new.geometry())?;
    let regions = old.geometry().nr_regions();
    let mut from = 0u64;
    loop {
        let end = regions.min(from.saturating_add(TURN_REGIONS));
        for (region, path) in Slots::new(old, from, end) {
            let lost = KeepError::Lost { region, path };
            let number = numbers.get(path as usize).copied().flatten().ok_or(lost)?;
            if !new.set(region, number) {
                return Err(lost);
            }
        }
        from = end;
        if from == regions {
            return Ok(());
        }
        if !go_on() {
            return Err(KeepError::Ended);
        }
    }
}

/// The number of an old path in the new table; `None` if it is gone.
#[must_use]
pub fn translate(numbers: &[Option<u32>], path: u32) -> Option<u32> {
    numbers.get(path as usize).copied().flatten()
}
