//! Moves regions until every path has its share, by number or by heat.
//!
//! Contract: as [`super`].

use core::sync::atomic::AtomicU64;

use super::super::super::switch::Map;
use super::super::search;
use super::apportion::apportion;
use super::evacuate::count;
use super::{Move, Moves, PlanError, Planned, Share, Turns, check_shares};

/// Bands of heat that are looked at one after the other, the warmest first. The last one has all
/// that is cooler.
const BANDS: u32 = 8;

/// Plans moves after which each path has its share of the regions, in proportion to the weights.
///
/// Every path ends with its ideal share rounded down or up. Only paths that have more give regions,
/// so no plan with this result moves fewer. The regions that a path gives are spread evenly over
/// all that it has, and go in turn to the paths that have too few. A path of weight 0 gives all.
///
/// # Errors
/// [`PlanError::Shares`], [`PlanError::Weights`], [`PlanError::NoWeight`], and the error of `sink`.
///
/// ```
/// use core::sync::atomic::AtomicU64;
/// use blkswitch_core::map::plan::{Share, balance};
/// use blkswitch_core::switch::{Geometry, Map};
///
/// let map = Map::new(Geometry::new(12, 3, 1)?, vec![AtomicU64::new(0)])?;
/// let mut shares = [Share::default(); 3];
/// let mut moves = Vec::new();
/// balance(&map, &[2, 1, 1], &mut shares, |step| {
///     moves.push((step.first, step.from, step.to));
///     Ok::<(), std::convert::Infallible>(())
/// })?;
/// assert_eq!(shares.map(|share| share.after), [6, 3, 3]);
/// assert_eq!(moves, [(10, 1, 0), (11, 2, 0)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn balance<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    weights: &[u32],
    shares: &mut [Share],
    sink: impl FnMut(Move) -> Result<(), E>,
) -> Result<Planned, PlanError<E>> {
    check(map, weights, shares)?;
    count(map, shares);
    if !apportion(shares, weights, map.geometry().nr_regions()) {
        return Err(PlanError::NoWeight);
    }
    for share in shares.iter_mut() {
        share.left = share.before.abs_diff(share.after);
        share.sum = 0;
    }
    let mut turns = Turns::new(shares, |share| share.after > share.before);
    let mut moves = Moves::new(map, sink);
    search::for_each(map, 0, u64::MAX, |region, path| {
        let Some(share) = shares.get_mut(path as usize) else { return Ok(()) };
        if share.before <= share.after || share.left == 0 {
            return Ok(());
        }
        // Of each `before` regions, `surplus` are given: one whenever the sum of surpluses is full.
        share.sum = share.sum.saturating_add(share.before.wrapping_sub(share.after));
        if share.sum < share.before {
            return Ok(());
        }
        share.sum = share.sum.wrapping_sub(share.before);
        share.left = share.left.wrapping_sub(1);
        // There is always one, but if the map changes meanwhile.
        let Some(to) = turns.next(shares) else { return Ok(()) };
        if let Some(share) = shares.get_mut(to as usize) {
            share.left = share.left.wrapping_sub(1);
            if share.left == 0 {
                turns.done(shares);
            }
        }
        moves.push(region, path, to)
    })?;
    moves.finish()
}

/// Plans moves after which the heat of each path is near its share, in proportion to the weights.
///
/// `heat` gives the heat of a region, for example its requests per second. The plan is greedy: it
/// looks at the warmest regions first, and moves a region from a path that stays at its ideal or
/// above without it, to a path that is below its ideal. So each region moves at most once, no path
/// that was below its ideal gives a region before it is above, and **no path ends above its ideal
/// by the heat of the warmest region or more**. The sum of what other paths lack is then less than
/// that heat for each path that is above. Regions without heat stay where they are.
///
/// The shares before and after are heat. The moves come in up to 8 walks over the map, so they are
/// not in ascending order.
///
/// # Errors
/// [`PlanError::Shares`], [`PlanError::Weights`], [`PlanError::NoWeight`], and the error of `sink`.
pub fn balance_heat<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    weights: &[u32],
    heat: impl Fn(u64) -> u32,
    shares: &mut [Share],
    sink: impl FnMut(Move) -> Result<(), E>,
) -> Result<Planned, PlanError<E>> {
    check(map, weights, shares)?;
    shares.iter_mut().for_each(|share| share.before = 0);
    let (mut total, mut warmest) = (0u64, 0u32);
    // A bit for each band that has a region.
    let mut bands = 0u32;
    search::for_each(map, 0, u64::MAX, |region, path| {
        let warmth = heat(region);
        if let Some(share) = shares.get_mut(path as usize) {
            share.before = share.before.saturating_add(warmth.into());
            total = total.saturating_add(warmth.into());
            warmest = warmest.max(warmth);
            bands |= band_bit(warmth);
        }
        Ok(())
    })?;
    if !apportion(shares, weights, total) {
        return Err(PlanError::NoWeight);
    }
    for share in shares.iter_mut() {
        // From now on, `left` is the ideal, and `after` the heat so far.
        share.left = share.after;
        share.after = share.before;
    }
    let mut moves = Moves::new(map, sink);
    // A path that has reached its ideal never falls below it again.
    let mut below = Turns::new(shares, |share| share.after < share.left);
    let mut top = u32::BITS.wrapping_sub(warmest.leading_zeros());
    let mut walks = 0u32;
    while top > 0 {
        walks = walks.wrapping_add(1);
        let lowest = if walks == BANDS { 1 } else { top };
        let wanted = (u64::from(lowest), u64::from(top));
        search::for_each(map, 0, u64::MAX, |region, path| {
            let warmth = heat(region);
            let band = u64::from(u32::BITS.wrapping_sub(warmth.leading_zeros()));
            if band < wanted.0 || band > wanted.1 {
                return Ok(());
            }
            let Some(share) = shares.get_mut(path as usize) else { return Ok(()) };
            let without = share.after.saturating_sub(warmth.into());
            if share.after <= share.left || without < share.left {
                return Ok(());
            }
            let Some(to) = below.next(shares) else { return Ok(()) };
            if let Some(share) = shares.get_mut(path as usize) {
                share.after = without;
            }
            if let Some(share) = shares.get_mut(to as usize) {
                share.after = share.after.saturating_add(warmth.into());
                if share.after >= share.left {
                    below.done(shares);
                }
            }
            moves.push(region, path, to)
        })?;
        top = lowest.wrapping_sub(1);
        while top > 0 && bands & 1u32.wrapping_shl(top.wrapping_sub(1)) == 0 {
            top = top.wrapping_sub(1);
        }
    }
    moves.finish()
}

/// The bit of the band of a heat: 2^k to 2^(k + 1) - 1 is band k.
fn band_bit(warmth: u32) -> u32 {
    1u32.checked_shl(u32::BITS.wrapping_sub(warmth.leading_zeros()).wrapping_sub(1)).unwrap_or(0)
}

fn check<S: AsRef<[AtomicU64]>, E>(
    map: &Map<S>,
    weights: &[u32],
    shares: &[Share],
) -> Result<(), PlanError<E>> {
    check_shares(map, shares)?;
    if weights.len() == shares.len() {
        Ok(())
    } else {
        let needed = map.geometry().num_paths();
        Err(PlanError::Weights { needed, found: weights.len() })
    }
}
