//! Moves every region off a path.
//!
//! Contract: as [`super`].

use core::sync::atomic::AtomicU64;

use super::super::super::switch::Map;
use super::super::search;
use super::{Move, Moves, PlanError, Planned, Share, Turns, check_shares};

/// Plans the move of every region of path `path` to the paths `onto`; all others, if that is empty.
///
/// The caller has counted the regions of each path into `before` of its share ([`count`]). The
/// paths that have the fewest get the most, so that they end as level as they can without further
/// moves. With `before` 0 of all of them, each gets the same number. The regions go to them in
/// turn.
///
/// If `before` of `path` is wrong, as it may be for a map that changes, the regions that were not
/// counted go to `onto` in turn, too.
///
/// # Errors
/// [`PlanError::Shares`], [`PlanError::Path`], [`PlanError::Onto`], [`PlanError::Nowhere`], and the
/// error of `sink`.
///
/// ```
/// use core::sync::atomic::AtomicU64;
/// use blkswitch_core::map::plan::{Share, count, evacuate};
/// use blkswitch_core::switch::{Geometry, Map};
///
/// let map = Map::new(Geometry::new(12, 3, 1)?, vec![AtomicU64::new(0)])?;
/// let mut shares = [Share::default(); 3];
/// count(&map, &mut shares);
/// let mut text = String::new();
/// let planned = evacuate(&map, 1, &[], &mut shares, |step| {
///     text.push_str(&format!(" {:x}:{:x}", step.first, step.to));
///     Ok::<(), std::convert::Infallible>(())
/// })?;
/// assert_eq!(text, " 1:0 4:2 7:0 a:2");
/// assert_eq!((planned.regions, shares[0].after, shares[1].after), (4, 6, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn evacuate<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    path: u32,
    onto: &[u32],
    shares: &mut [Share],
    sink: impl FnMut(Move) -> Result<(), E>,
) -> Result<Planned, PlanError<E>> {
    check_shares(map, shares)?;
    let paths = map.geometry().num_paths();
    if let Some(&bad) = [path].iter().chain(onto).find(|&&path| path >= paths) {
        return Err(PlanError::Path { path: bad, paths });
    }
    if onto.contains(&path) {
        return Err(PlanError::Onto { path });
    }
    // `sum` is 1 for the paths that get regions.
    for (number, share) in (0u32..).zip(shares.iter_mut()) {
        share.sum = u64::from(onto.is_empty() && number != path);
        share.after = share.before;
        share.left = 0;
    }
    for &path in onto {
        if let Some(share) = shares.get_mut(path as usize) {
            share.sum = 1;
        }
    }
    if shares.iter().all(|share| share.sum == 0) {
        return Err(PlanError::Nowhere);
    }
    let leaving = shares.get(path as usize).map_or(0, |share| share.before);
    level(shares, leaving);
    let mut moves = Moves::new(map, sink);
    let mut turns = Turns::new(shares, |share| share.sum == 1);
    for run in search::regions_of(map, path, 0, u64::MAX) {
        let mut region = run.start;
        let end = run.start.wrapping_add(run.count);
        while region < end {
            let to = turns.next(shares).or_else(|| {
                // More regions than were counted: from now on in turn, as many as there are.
                shares.iter_mut().for_each(|share| share.left = u64::MAX);
                turns = Turns::new(shares, |share| share.sum == 1);
                turns.next(shares)
            });
            let to = to.ok_or(PlanError::Nowhere)?;
            moves.push(region, path, to)?;
            if let Some(share) = shares.get_mut(to as usize) {
                share.after = share.after.saturating_add(1);
                share.left = share.left.saturating_sub(1);
                if share.left == 0 {
                    turns.done(shares);
                }
            }
            region = region.wrapping_add(1);
        }
    }
    if let Some(share) = shares.get_mut(path as usize) {
        share.after = 0;
    }
    moves.finish()
}

/// Counts the regions of each path into `before`.
pub fn count<S: AsRef<[AtomicU64]>>(map: &Map<S>, shares: &mut [Share]) {
    shares.iter_mut().for_each(|share| share.before = 0);
    let Ok(()) = search::for_each(map, 0, u64::MAX, |_, path| {
        if let Some(share) = shares.get_mut(path as usize) {
            share.before = share.before.wrapping_add(1);
        }
        Ok::<(), core::convert::Infallible>(())
    });
}

/// Sets `left` of the paths that get regions, so that `total` regions make them as level as they
/// can be.
fn level(shares: &mut [Share], total: u64) {
    let needed = |shares: &[Share], level: u64| {
        shares
            .iter()
            .filter(|share| share.sum == 1)
            .fold(0u64, |sum, share| sum.saturating_add(level.saturating_sub(share.before)))
    };
    // The highest level that `total` regions can fill.
    let (mut low, mut high) = (0u64, u64::MAX);
    while low < high {
        let middle = low.wrapping_add(high.wrapping_sub(low) / 2).wrapping_add(1);
        if needed(shares, middle) <= total {
            low = middle;
        } else {
            high = middle.wrapping_sub(1);
        }
    }
    // The rest is less than one for each path at that level.
    let mut rest = total.saturating_sub(needed(shares, low));
    for share in shares.iter_mut().filter(|share| share.sum == 1) {
        share.left = low.saturating_sub(share.before);
        if rest > 0 && share.before <= low {
            share.left = share.left.saturating_add(1);
            rest = rest.wrapping_sub(1);
        }
    }
}
