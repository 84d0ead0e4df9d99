//! Plans that move regions: off a path, to given shares, to longer runs.
//!
//! A plan is a list of [`Move`]s in the order of a walk over the map. It changes nothing; the
//! caller sends it as a message, with the generation that it was made for, or applies it to a copy
//! of the map and takes the difference ([`super::diff`]).
//!
//! | plan | moves | promise |
//! |---|---|---|
//! | [`evacuate()`] | every region of one path | the paths that get them end as level as they can |
//! | [`balance()`] | regions from paths that have too many | every path ends within one region of its ideal share, and no plan that does so moves fewer regions |
//! | [`balance_heat`] | warm regions from paths that are too warm | no path ends warmer than its ideal by the heat of one region or more |
//! | [`compact()`] | regions within windows of the map | every path keeps its number of regions, and the map has no more runs than before |
//!
//! The caller lends a [`Share`] for each path. Afterwards each has the path's share before and
//! after.
//!
//! Contract: no allocation, no panic; the same input gives the same plan.

mod apportion;
mod balance;
mod compact;
mod evacuate;

use core::fmt;
use core::sync::atomic::AtomicU64;

pub use balance::{balance, balance_heat};
pub use compact::compact;
pub use evacuate::{count, evacuate};

use super::super::switch::Map;

/// Neighbouring regions that move from one path to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The first region.
    pub first: u64,
    /// The number of regions, at least 1.
    pub count: u64,
    /// The path that they leave.
    pub from: u32,
    /// The path that they get.
    pub to: u32,
}

/// The share of a path before and after a plan: its number of regions, or its heat.
///
/// A plan needs one for each path; the contents at first do not matter, but for [`evacuate()`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The share before the plan.
    pub before: u64,
    /// The share after the plan.
    pub after: u64,
    /// The number of regions that are still to be given or taken.
    left: u64,
    /// The sum that spreads the regions that a path gives over all that it has; or the remainder of
    /// its ideal share.
    sum: u64,
    /// The next path of a list of paths.
    next: u32,
    /// The path before it in that list.
    back: u32,
}

/// The size of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// Number of regions that move.
    pub regions: u64,
    /// Number of sectors that move; the last region of a map may be short.
    pub sectors: u64,
    /// Number of [`Move`]s.
    pub moves: u64,
}

/// The reason why there is no plan. `E` is the error of the caller's sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError<E> {
    /// There must be one share for each path.
    Shares {
        /// Number of paths.
        needed: u32,
        /// Number of shares.
        found: usize,
    },
    /// There must be one weight for each path.
    Weights {
        /// Number of paths.
        needed: u32,
        /// Number of weights.
        found: usize,
    },
    /// All weights are 0, so no path may have a region.
    NoWeight,
    /// There is no such path.
    Path {
        /// The path.
        path: u32,
        /// Number of paths.
        paths: u32,
    },
    /// Regions cannot be moved onto the path that they are to leave.
    Onto {
        /// The path.
        path: u32,
    },
    /// There is no path to move regions to.
    Nowhere,
    /// The sink has ended the plan.
    Sink(E),
}

impl<E: fmt::Display> fmt::Display for PlanError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shares { needed, found } => {
                write!(f, "the plan needs room for {needed} shares, one for each path, not {found}")
            }
            Self::Weights { needed, found } => {
                write!(
                    f,
                    "there are {found} weights, but there must be {needed}, one for each path"
                )
            }
            Self::NoWeight => {
                f.write_str("all weights are 0: at least one path must have a weight")
            }
            Self::Path { path, paths } => {
                write!(f, "the path {path} must be from 0 to {}", paths.saturating_sub(1))
            }
            Self::Onto { path } => {
                write!(f, "the regions of path {path} cannot be moved onto path {path} itself")
            }
            Self::Nowhere => {
                f.write_str("the map has only this path: there is none to move its regions to")
            }
            Self::Sink(error) => error.fmt(f),
        }
    }
}

impl<E: core::error::Error> core::error::Error for PlanError<E> {}

/// Joins moves of neighbouring regions, counts them, and passes them on.
struct Moves<'a, S, F> {
    map: &'a Map<S>,
    sink: F,
    joined: Option<Move>,
    planned: Planned,
}

impl<'a, S: AsRef<[AtomicU64]>, E, F: FnMut(Move) -> Result<(), E>> Moves<'a, S, F> {
    fn new(map: &'a Map<S>, sink: F) -> Self {
        Self { map, sink, joined: None, planned: Planned::default() }
    }

    fn push(&mut self, region: u64, from: u32, to: u32) -> Result<(), PlanError<E>> {
        match &mut self.joined {
            Some(joined)
                if joined.first.wrapping_add(joined.count) == region
                    && (joined.from, joined.to) == (from, to) =>
            {
                joined.count = joined.count.wrapping_add(1);
                Ok(())
            }
            joined => {
                let before = joined.replace(Move { first: region, count: 1, from, to });
                self.pass(before)
            }
        }
    }

    fn pass(&mut self, joined: Option<Move>) -> Result<(), PlanError<E>> {
        let Some(joined) = joined else { return Ok(()) };
        let geometry = self.map.geometry();
        let size = u64::from(geometry.region_size());
        let start = joined.first.saturating_mul(size);
        let sectors = joined.count.saturating_mul(size);
        let sectors = sectors.min(geometry.len_sectors().saturating_sub(start));
        let planned = &mut self.planned;
        planned.regions = planned.regions.wrapping_add(joined.count);
        planned.sectors = planned.sectors.wrapping_add(sectors);
        planned.moves = planned.moves.wrapping_add(1);
        (self.sink)(joined).map_err(PlanError::Sink)
    }

    fn finish(mut self) -> Result<Planned, PlanError<E>> {
        let joined = self.joined.take();
        self.pass(joined)?;
        Ok(self.planned)
    }
}

/// Checks that there is a share for each path.
fn check_shares<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    shares: &[Share],
) -> Result<(), PlanError<E>> {
    let needed = map.geometry().num_paths();
    if shares.len() == needed as usize {
        Ok(())
    } else {
        Err(PlanError::Shares { needed, found: shares.len() })
    }
}

/// The paths that are still to be given something, in turn: a circular list in the shares.
struct Turns {
    /// The path before the next one; `None` if the list is empty.
    last: Option<u32>,
}

impl Turns {
    /// The paths whose `left` is not 0 and that `takes` accepts, in ascending order.
    fn new(shares: &mut [Share], takes: impl Fn(&Share) -> bool) -> Self {
        let mut last: Option<u32> = None;
        let mut first = 0u32;
        for path in 0..shares.len() as u32 {
            if !shares.get(path as usize).is_some_and(|share| share.left != 0 && takes(share)) {
                continue;
            }
            match last {
                Some(last) => link(shares, last, path),
                None => first = path,
            }
            last = Some(path);
        }
        if let Some(last) = last {
            link(shares, last, first);
        }
        Self { last }
    }

    /// The next path. The caller then takes something from its `left` and calls [`Turns::done`] if
    /// nothing is left.
    fn next(&mut self, shares: &[Share]) -> Option<u32> {
        let next = shares.get(self.last? as usize)?.next;
        self.last = Some(next);
        Some(next)
    }

    /// Removes the path that [`Turns::next`] has returned last.
    fn done(&mut self, shares: &mut [Share]) {
        let Some(path) = self.last else { return };
        let Some(&Share { next, back, .. }) = shares.get(path as usize) else { return };
        if next == path {
            self.last = None;
        } else {
            link(shares, back, next);
            self.last = Some(back);
        }
    }
}

fn link(shares: &mut [Share], back: u32, next: u32) {
    if let Some(share) = shares.get_mut(back as usize) {
        share.next = next;
    }
    if let Some(share) = shares.get_mut(next as usize) {
        share.back = back;
    }
}
