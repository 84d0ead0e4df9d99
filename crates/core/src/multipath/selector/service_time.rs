//! `service-time`: chooses the path that would first finish its bytes in flight and this request.
//!
//! Fairness: no path that is up has a lower (bytes in flight + the request's) / throughput than the
//! chosen one. A path of throughput 0 is used only if no other is up.

use core::cmp::Ordering;

use super::super::super::args::parse_u32;
use super::super::path::Path;

/// Largest relative throughput of a path; the kernel's limit.
pub(super) const MAX_THROUGHPUT: u32 = 100;

/// Parses a path's relative throughput.
pub(super) fn throughput(word: &[u8]) -> Option<u32> {
    parse_u32(word).filter(|throughput| *throughput <= MAX_THROUGHPUT)
}

#[inline]
pub(super) fn better(a: &Path, b: &Path, bytes: u64) -> Ordering {
    let throughput = |path: &Path| u64::from(path.args().relative_throughput);
    let load = |path: &Path| path.bytes_in_flight().saturating_add(bytes);
    let (a_speed, b_speed) = (throughput(a), throughput(b));
    if a_speed == 0 || b_speed == 0 {
        // A path of throughput 0 loses against any other. Between two such paths, the bytes in
        // flight decide.
        return b_speed.cmp(&a_speed).then(load(a).cmp(&load(b)));
    }
    // load(a) / a_speed against load(b) / b_speed without a division.
    let time_a = load(a).saturating_mul(b_speed);
    let time_b = load(b).saturating_mul(a_speed);
    time_a.cmp(&time_b).then(b_speed.cmp(&a_speed))
}
