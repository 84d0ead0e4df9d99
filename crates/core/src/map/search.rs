//! Finds the regions of one path, and counts the regions of every path.
//!
//! To find a path, the code makes the word that a slot would hold if all of its regions had this
//! path, and compares it with the slot's word. So a slot of 16 entries takes a few instructions,
//! and a few regions of a path are found quickly among 10^9.
//!
//! Contract: no allocation, no panic. If the map changes meanwhile, the answers may show different
//! moments.

use core::sync::atomic::AtomicU64;

use super::super::switch::walk::{Slots, SlotsWith};
use super::super::switch::{Map, Run};

/// The regions of path `path` from region `from` up to but not including `to` (or to the last
/// region), as runs in ascending order.
///
/// ```
/// use core::sync::atomic::AtomicU64;
/// use blkswitch_core::map::search;
/// use blkswitch_core::switch::{Geometry, Map, Message};
///
/// let map = Map::new(Geometry::new(16, 4, 1)?, vec![AtomicU64::new(0)])?;
/// let mut writer = map.writer().expect("nobody else changes the map");
/// Message::new().apply_text(&mut writer, b"3:1 :1 :1", true)?;
/// let runs: Vec<(u64, u64)> =
///     search::regions_of(&map, 1, 0, 16).map(|run| (run.start, run.count)).collect();
/// assert_eq!(runs, [(1, 1), (3, 3), (9, 1), (13, 1)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn regions_of<S: AsRef<[AtomicU64]>>(
    map: &Map<S>,
    path: u32,
    from: u64,
    to: u64,
) -> RegionsOf<'_, S> {
    let end =
        if path < map.geometry().num_paths() { to.min(map.geometry().nr_regions()) } else { 0 };
    RegionsOf { regions: map.slots_with(path, from, end), path, last: None }
}

/// The iterator of [`regions_of`].
#[derive(Clone, Debug)]
pub struct RegionsOf<'a, S> {
    regions: SlotsWith<'a, S>,
    path: u32,
    /// A region that was found and belongs to the next run.
    last: Option<u64>,
}

impl<S: AsRef<[AtomicU64]>> Iterator for RegionsOf<'_, S> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let start = self.last.take().or_else(|| self.regions.next())?;
        let mut end = start.wrapping_add(1);
        loop {
            match self.regions.next() {
                Some(region) if region == end => end = end.wrapping_add(1),
                another => {
                    self.last = another;
                    return Some(Run { start, count: end.wrapping_sub(start), path: self.path });
                }
            }
        }
    }
}

/// Calls `each` with every region from `from` up to but not including `to` (or to the last region),
/// and its path. `each` ends the walk by returning an error.
///
/// This is faster than [`Map::path`] for each region, because it reads each word once and computes
/// no remainder.
///
/// # Errors
/// The error of `each`.
pub fn for_each<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    from: u64,
    to: u64,
    mut each: impl FnMut(u64, u32) -> Result<(), E>,
) -> Result<(), E> {
    Slots::new(map, from, to.min(map.geometry().nr_regions()))
        .try_for_each(|(region, path)| each(region, path))
}

/// Adds the number of regions of each path to `counts`, which has an element for each path. Regions
/// of a path past the end of `counts` are not counted.
pub fn count<S: AsRef<[AtomicU64]>>(map: &Map<S>, counts: &mut [u64]) {
    Slots::new(map, 0, map.geometry().nr_regions()).for_each(|(_, path)| {
        if let Some(count) = counts.get_mut(path as usize) {
            *count = count.wrapping_add(1);
        }
    });
}
