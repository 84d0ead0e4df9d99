//! Divides a whole number among paths in proportion to weights.
//!
//! Contract: no allocation, no panic; shares and weights have the same length.

use super::Share;

/// Sets `after` of each share, so that their sum is `total` and each is its ideal share `total *
/// weight / sum of weights`, rounded down or up.
///
/// If not all can be rounded up, those come first that have more than their rounded ideal before:
/// each of them then gives one less away, so this takes the fewest moves. The others follow by the
/// size of the remainder, and then by number. `false` if all weights are 0.
pub(super) fn apportion(shares: &mut [Share], weights: &[u32], total: u64) -> bool {
    let sum: u64 = weights.iter().fold(0, |sum, &weight| sum.saturating_add(weight.into()));
    if sum == 0 {
        return false;
    }
    let mut rest = total;
    for (share, &weight) in shares.iter_mut().zip(weights) {
        // Two divisions of 64 bits in place of one of 128: total = q sum + r.
        let (quotient, remainder) = (total / sum, total % sum);
        let (low, remainder) = mul_div(remainder, weight, sum);
        share.after = quotient.saturating_mul(weight.into()).saturating_add(low);
        share.sum = remainder;
        rest = rest.saturating_sub(share.after);
    }
    // First those that have more, then all others.
    rest = round_up(shares, rest, |share| share.sum != 0 && share.before > share.after);
    round_up(shares, rest, |share| share.sum != 0);
    true
}

/// `a * b / c` and the remainder, for a < c.
fn mul_div(a: u64, b: u32, c: u64) -> (u64, u64) {
    let product = u128::from(a).wrapping_mul(b.into());
    let quotient = product.checked_div(c.into()).unwrap_or(0);
    let remainder = product.wrapping_sub(quotient.wrapping_mul(c.into()));
    (quotient as u64, remainder as u64)
}

/// Rounds `count` of the shares up that `takes` accepts, those with the largest remainders. Returns
/// how many are left to round up, if there are not as many.
fn round_up(shares: &mut [Share], count: u64, takes: impl Fn(&Share) -> bool) -> u64 {
    let at_least = |shares: &[Share], least: u64| {
        shares.iter().filter(|share| takes(share) && share.sum >= least).count() as u64
    };
    // The largest bound that at least `count` remainders reach; 1 if there are not as many.
    let (mut low, mut high) = (1u64, u64::MAX);
    while low < high {
        let middle = low.wrapping_add(high.wrapping_sub(low) / 2).wrapping_add(1);
        if at_least(shares, middle) >= count {
            low = middle;
        } else {
            high = middle.wrapping_sub(1);
        }
    }
    // Those above the bound, and of those at the bound the first ones.
    let mut left = count;
    let mut at_bound = count.saturating_sub(at_least(shares, low.saturating_add(1)));
    for share in shares.iter_mut() {
        if left == 0 || !takes(share) || share.sum < low {
            continue;
        }
        if share.sum == low {
            if at_bound == 0 {
                continue;
            }
            at_bound = at_bound.wrapping_sub(1);
        }
        share.after = share.after.saturating_add(1);
        share.sum = 0;
        left = left.wrapping_sub(1);
    }
    left
}
