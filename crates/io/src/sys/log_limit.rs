//! A limit on log lines that clients or servers can cause. One that causes a line for each
//! connection could fill a disk.
//!
//! A [`LogLimit`] is a static beside its log line, or a field of the object that has lines of its
//! own. A few lines pass at once, then one in each
//! [`PERIOD_NS`]. A line that passes says how many were left out before it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::sys::ring::clock_ns;

/// Lines that pass at once.
const BURST: u64 = 10;
/// Time in which one line passes after the burst, in ns.
const PERIOD_NS: u64 = 10_000_000_000;

/// The limit of one log line.
pub(crate) struct LogLimit {
    /// The end of the periods of all lines that have passed.
    used_up_to_ns: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimit {
    /// A limit that no line has used yet.
    pub(crate) const fn new() -> LogLimit {
        LogLimit { used_up_to_ns: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// `Some` if a line may be written now, with the number of lines left out since the last one.
    pub(crate) fn pass(&self) -> Option<u64> {
        self.pass_at(clock_ns())
    }

    fn pass_at(&self, now_ns: u64) -> Option<u64> {
        let next = |used: u64| {
            let next = used.max(now_ns.saturating_sub(BURST * PERIOD_NS)) + PERIOD_NS;
            (next <= now_ns.max(BURST * PERIOD_NS)).then_some(next)
        };
        match self.used_up_to_ns.fetch_update(Relaxed, Relaxed, next) {
            Ok(_) => Some(self.suppressed.swap(0, Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Relaxed);
                None
            }
        }
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        LogLimit::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_line_a_period() {
        let limit = LogLimit::new();
        let start = 1_000_000_000_000_000;
        let passed = (0..1000).filter(|n| limit.pass_at(start + n).is_some()).count();
        assert_eq!(passed as u64, BURST);
        assert_eq!(limit.pass_at(start + PERIOD_NS / 2), None);
        assert_eq!(limit.pass_at(start + PERIOD_NS + 1000), Some(1000 - BURST + 1));
        assert_eq!(limit.pass_at(start + PERIOD_NS + 1001), None);
        // After a silence there is a burst again.
        let later = start + 100 * BURST * PERIOD_NS;
        let passed = (0..100).filter(|_| limit.pass_at(later).is_some()).count();
        assert_eq!(passed as u64, BURST);
    }
}
