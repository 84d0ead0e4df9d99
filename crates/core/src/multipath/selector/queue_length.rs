//! `queue-length`: the path with the fewest requests in flight.
//!
//! Fairness: no path that is up has fewer requests in flight than the chosen one has, not counting
//! this one. The count is shared by all queues.

use core::cmp::Ordering;

use super::super::path::Path;

#[inline]
pub(super) fn better(a: &Path, b: &Path) -> Ordering {
    a.in_flight().cmp(&b.in_flight())
}
