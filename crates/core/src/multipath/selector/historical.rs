//! `historical-service-time`: chooses the path that is expected to answer first, from measured
//! times.
//!
//! The measured time is how long a path works on a request after the one before: from the later of
//! "sent" and "previous answer" to "answered". The expected time is a moving average
//! (`base_weight`/1024 old, the rest new) times (requests in flight + 1). The kernel also weighs by
//! the length of the time; the numbers differ, the choice seldom does.
//!
//! An average is too old after [`STALE_AFTER`] times itself without an answer. The path then gets
//! one request that measures it again. It gets only one, because with a request in flight the old
//! average counts again. A path that never answered counts as fast as the fastest one.
//!
//! Fairness: of equally fast paths, the chosen one has the fewest requests in flight. When two
//! paths are busy and one takes r times as long as the other, it has about 1/r as many requests in
//! flight, and about 1/r of the work. The bound holds for paths with constant times, and for twice
//! as many requests in flight as keep the slowest path busy (the sum over all paths of how many
//! times each is as fast as the slowest, rounded up). Then no path idles, and the number of
//! requests of a path differs from its share by at most the requests in flight and one per path.
//! With fewer requests in flight, slow paths get less, in the end only the measuring request
//! (tests/multipath/fairness.rs).

use core::cmp::Ordering;

use super::super::super::args::parse_u32;
use super::super::path::Path;
use super::turn;

/// The weight of an average that ignores new times; weights are below it.
const ONE: u32 = 1024;
/// 0.95: the last twenty requests make up most of the average.
const DEFAULT_WEIGHT: u32 = 972;
/// A path is measured again after this many times its average. So a slow path that is not used
/// otherwise spends a thousandth of the time on these measurements.
pub const STALE_AFTER: u64 = 1000;
/// Longest time that counts, an hour. It keeps the products below 2^64, and no request takes that
/// long.
const MAX_TIME_NS: u64 = 3_600_000_000_000;

/// The arguments of `historical-service-time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// Weight of the old average in 1/1024: 0..=1023.
    pub base_weight: u32,
    /// Two expected times differ only if one is more than this many times the other. 0 and 1 mean
    /// that they always differ.
    pub threshold_multiplier: u32,
}

impl Weights {
    /// Parses the words `[<base_weight> [<threshold_multiplier>]]`.
    pub(super) fn parse(args: &[&[u8]]) -> Option<Self> {
        let (weight, threshold) = match *args {
            [] => (DEFAULT_WEIGHT, 0),
            [weight] => (parse_u32(weight)?, 0),
            [weight, threshold] => (parse_u32(weight)?, parse_u32(threshold)?),
            _ => return None,
        };
        if weight >= ONE {
            return None;
        }
        Some(Self { base_weight: weight, threshold_multiplier: threshold })
    }

    #[inline]
    pub(super) fn pick(&self, paths: &[Path], now_ns: u64) -> Option<u32> {
        let known = paths.iter().filter(|path| path.is_up()).map(Path::average_ns);
        let fastest_ns = known.filter(|average| *average != 0).min().unwrap_or(1);
        turn::pick(paths, |a, b| {
            let (time_a, time_b) =
                (expected_ns(a, fastest_ns, now_ns), expected_ns(b, fastest_ns, now_ns));
            self.compare(time_a, time_b).then(a.in_flight().cmp(&b.in_flight()))
        })
    }

    fn compare(&self, a: u64, b: u64) -> Ordering {
        let threshold = u64::from(self.threshold_multiplier.max(1));
        if a.max(b) > a.min(b).saturating_mul(threshold) { a.cmp(&b) } else { Ordering::Equal }
    }

    /// Updates the average after an answer to a request of `started_ns`. If two queues do this at
    /// once, one measurement may be lost, which does no harm to an average.
    #[inline]
    pub(super) fn measured(&self, path: &Path, started_ns: u64, now_ns: u64) {
        let began_ns = path.swap_last_end(now_ns).max(started_ns);
        let new = now_ns.saturating_sub(began_ns).clamp(1, MAX_TIME_NS);
        let old = path.average_ns();
        let weight = u64::from(self.base_weight);
        let mix = old
            .saturating_mul(weight)
            .saturating_add(new.saturating_mul(u64::from(ONE).wrapping_sub(weight)));
        let average = if old == 0 { new } else { (mix / u64::from(ONE)).max(1) };
        path.set_average(average, now_ns.saturating_add(average.saturating_mul(STALE_AFTER)));
    }
}

/// Time in ns until the path is expected to have answered one more request.
#[inline]
fn expected_ns(path: &Path, fastest_ns: u64, now_ns: u64) -> u64 {
    let in_flight = u64::from(path.in_flight());
    if in_flight == 0 && now_ns > path.stale_after_ns() {
        return 0;
    }
    let average = match path.average_ns() {
        0 => fastest_ns,
        average => average,
    };
    average.saturating_mul(in_flight.wrapping_add(1))
}
