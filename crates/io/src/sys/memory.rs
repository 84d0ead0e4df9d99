//! The budget for clients' data: one for all queues of a pool.
//!
//! Every byte that is mapped for the body of a write or the answer to a read is charged here first,
//! and given back when it is unmapped. When nothing is left, connections wait, so that the system
//! never has to refuse memory or kill the daemon. Beyond a small share each, connections together
//! take at most three quarters of the budget. So clients with large requests, or clients that never
//! take their replies, do not starve clients with small requests.
//!
//! Contract: all threads share it. A request touches it only when memory is mapped or unmapped,
//! which does not happen in steady state.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The default budget in bytes.
pub const DEFAULT_BYTES: usize = 1 << 30;
/// The smallest budget in bytes: two of the largest requests, the reserved quarter, and some room.
pub const MIN_BYTES: usize = 96 << 20;
/// The small share of a connection in bytes, which may come from the whole budget.
pub const SMALL_SHARE: usize = 256 << 10;
/// A waiting connection tries again at least once a second, so a wait within this time counts as
/// current.
const AWAITED_NS: u64 = 2_500_000_000;

/// The reason why there is no memory for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// The budget is spent until other connections give memory back.
    Spent,
    /// The system refuses to map memory.
    Refused,
}

impl From<Short> for std::io::Error {
    fn from(_: Short) -> std::io::Error {
        std::io::Error::from_raw_os_error(libc::ENOMEM)
    }
}

/// The amount of one charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    bytes: usize,
    /// The bytes of it beyond small shares.
    large: usize,
}

impl Charge {
    /// The sum of both charges.
    pub(crate) fn and(self, other: Charge) -> Charge {
        Charge { bytes: self.bytes + other.bytes, large: self.large + other.large }
    }
}

/// Whether `more` bytes belong to the small share of a connection that holds `held`.
fn is_small(held: usize, more: usize) -> bool {
    held + more <= SMALL_SHARE
}

/// The budget of a pool, shared by its queues.
#[derive(Debug)]
pub struct Memory {
    limit: usize,
    used: AtomicUsize,
    /// The bytes of `used` beyond small shares.
    large: AtomicUsize,
    /// The time of the last wait, on the clock of the rings; 0 for none.
    awaited_ns: AtomicU64,
}

impl Memory {
    /// A budget of `limit` bytes, at least [`MIN_BYTES`].
    pub fn new(limit: usize) -> Memory {
        let limit = limit.max(MIN_BYTES);
        Memory {
            limit,
            used: AtomicUsize::new(0),
            large: AtomicUsize::new(0),
            awaited_ns: AtomicU64::new(0),
        }
    }

    /// The whole budget in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes in use, with those that queues keep for reuse.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Whether `more` bytes would be granted now to a connection that holds `held`.
    pub(crate) fn would_grant(&self, held: usize, more: usize) -> bool {
        let large_fits = self.large.load(Relaxed) + more <= self.large_limit();
        self.used() + more <= self.limit && (is_small(held, more) || large_fits)
    }

    /// Charges `more` bytes for a connection that holds `held`. `None` if the budget does not allow
    /// it.
    pub(crate) fn charge(&self, held: usize, more: usize) -> Option<Charge> {
        let large = if is_small(held, more) { 0 } else { more };
        let add = |counter: &AtomicUsize, bytes: usize, bound: usize| {
            let sum = |used: usize| used.checked_add(bytes).filter(|used| *used <= bound);
            counter.fetch_update(Relaxed, Relaxed, sum).is_ok()
        };
        if large > 0 && !add(&self.large, large, self.large_limit()) {
            return None;
        }
        if !add(&self.used, more, self.limit) {
            self.large.fetch_sub(large, Relaxed);
            return None;
        }
        Some(Charge { bytes: more, large })
    }

    /// Gives a charge back.
    pub(crate) fn give(&self, charge: Charge) {
        self.used.fetch_sub(charge.bytes, Relaxed);
        self.large.fetch_sub(charge.large, Relaxed);
    }

    fn large_limit(&self) -> usize {
        self.limit / 4 * 3
    }

    /// Whether so much is used that large bodies get memory only as they arrive.
    pub(crate) fn is_scarce(&self) -> bool {
        self.used() > self.limit / 4
    }

    /// Records that a connection waits for memory now.
    pub(crate) fn await_at(&self, now_ns: u64) {
        self.awaited_ns.store(now_ns.max(1), Relaxed);
    }

    /// Whether a connection waits for memory.
    pub(crate) fn is_awaited(&self, now_ns: u64) -> bool {
        let awaited_ns = self.awaited_ns.load(Relaxed);
        awaited_ns > 0 && now_ns.saturating_sub(awaited_ns) < AWAITED_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_kept_for_those_who_hold_little() {
        let memory = Memory::new(1);
        assert_eq!(memory.limit(), MIN_BYTES);
        let (mut charges, chunk) = (Vec::new(), 32 << 20);
        charges.extend(std::iter::from_fn(|| memory.charge(0, chunk)));
        assert_eq!(memory.used(), 64 << 20, "two of the largest requests fit");
        charges.extend(memory.charge(chunk, (72 << 20) - memory.used()));
        assert_eq!(memory.used(), 72 << 20);
        assert!(!memory.would_grant(SMALL_SHARE, 1), "who holds more than a small share waits");
        assert_eq!(memory.charge(SMALL_SHARE, 1), None);
        charges.extend(std::iter::from_fn(|| memory.charge(0, SMALL_SHARE)));
        assert_eq!(memory.used(), MIN_BYTES);
        assert!(!memory.would_grant(0, 4096) && memory.charge(0, 4096).is_none());
        memory.give(charges.pop().unwrap());
        assert!(memory.would_grant(SMALL_SHARE / 2, SMALL_SHARE / 2));
        charges.into_iter().for_each(|charge| memory.give(charge));
        assert_eq!(memory.used(), 0);
        assert!(memory.would_grant(chunk, 72 << 20) && !memory.would_grant(chunk, 73 << 20));
    }

    #[test]
    fn it_is_known_for_a_while_that_somebody_waits() {
        let memory = Memory::new(DEFAULT_BYTES);
        assert!(!memory.is_awaited(0));
        memory.await_at(5);
        assert!(memory.is_awaited(5 + AWAITED_NS - 1) && !memory.is_awaited(5 + AWAITED_NS));
    }
}
