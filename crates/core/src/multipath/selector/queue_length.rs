//! `queue-length`: the path with the fewest requests in flight.
//!
//! Fairness: no path that is up has fewer requests in flight than the chosen one had before this
//! request. All queues share the count.

use core::cmp::Ordering;

use super::super::path::Path;

#[inline]
pub(super) fn better(a: &Path, b: &Path) -> Ordering {
    a.in_flight().cmp(&b.in_flight())
}
