//! A path of a priority group: its words in the table line, and the state that all queues share.
//!
//! Contract: all state is atomic, so any number of threads use a path through `&self`. The fields
//! that a choice reads lie together. No two paths share a cache line, so a queue that uses one path
//! does not slow down a queue that uses another.

use super::sync::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use super::selector::PathArgs;

/// The turn of the first path of a group. It is far from both ends, because a choice raises turns
/// by one, and a path that is put first goes down by one.
const FIRST_TURN: u64 = 1 << 32;

/// Lowest bit of `health`: the path is not up. It has failed or is set aside.
const FAILED: u64 = 1;
/// Bit of `health`: the path is set aside, that is, used only when no other path is up.
const ASIDE: u64 = 2;
/// Bit of `health`: the path flaps ([`super::checker::Flapping`]).
const MARGINAL: u64 = 4;
/// One failure in units of `health`: the bits from here on count them.
const ONE_FAILURE: u64 = 8;

/// A path: its arguments and its state.
#[derive(Debug)]
#[repr(align(128))]
pub struct Path {
    /// [`FAILED`], [`ASIDE`], [`MARGINAL`] and the count of failures.
    health: AtomicU64,
    /// Order of use within the group: of equally good paths, the one with the lowest turn is next.
    turn: AtomicU64,
    /// Bytes sent and not yet judged (service-time and custom selectors only).
    bytes: AtomicU64,
    /// Average service time in ns; 0 before the first measurement. This field and the next two are
    /// for historical-service-time only. A custom selector has its note here.
    average_ns: AtomicU64,
    /// The time of the path's last answer.
    last_end_ns: AtomicU64,
    /// The time from which on the average is too old.
    stale_after_ns: AtomicU64,
    /// Requests sent and not yet judged (queue-length, historical-service-time and custom selectors
    /// only).
    in_flight: AtomicU32,
    group: u32,
    args: PathArgs,
}

impl Path {
    /// A path that is up, at index `place` of group `group` (both counted from 0), for
    /// [`super::Multipath::new`].
    #[must_use]
    pub fn new(group: u32, place: u32, args: PathArgs) -> Self {
        Self {
            health: AtomicU64::new(0),
            turn: AtomicU64::new(FIRST_TURN.wrapping_add(place as u64)),
            bytes: AtomicU64::new(0),
            average_ns: AtomicU64::new(0),
            last_end_ns: AtomicU64::new(0),
            stale_after_ns: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            group,
            args,
        }
    }

    /// The number of its group, counted from 0.
    #[must_use]
    pub const fn group(&self) -> u32 {
        self.group
    }

    /// Its arguments from the table line.
    #[must_use]
    pub const fn args(&self) -> &PathArgs {
        &self.args
    }

    /// Whether the path is up: not failed, and not set aside.
    #[inline]
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.health.load(Relaxed) & FAILED == 0
    }

    /// Number of failures since the table was loaded.
    #[must_use]
    pub fn fail_count(&self) -> u64 {
        self.health.load(Relaxed) / ONE_FAILURE
    }

    /// Whether it is up, and its number of failures, read together. A failure that is happening now
    /// may be missing.
    #[must_use]
    pub fn health(&self) -> (bool, u64) {
        let health = self.health.load(Relaxed);
        (health & FAILED == 0, health / ONE_FAILURE)
    }

    /// Whether it is set aside: not up, but used when no other path is.
    #[must_use]
    pub fn is_aside(&self) -> bool {
        self.health.load(Relaxed) & ASIDE != 0
    }

    /// Whether the path flaps; see [`super::checker::Flapping`].
    #[must_use]
    pub fn is_marginal(&self) -> bool {
        self.health.load(Relaxed) & MARGINAL != 0
    }

    /// Sets whether the path flaps. This alone changes nothing for requests.
    pub fn set_marginal(&self, is_marginal: bool) {
        if is_marginal {
            self.health.fetch_or(MARGINAL, Relaxed);
        } else {
            self.health.fetch_and(!MARGINAL, Relaxed);
        }
    }

    /// Requests in flight, if the group's selector counts them.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Bytes in flight, if the group's selector counts them.
    #[inline]
    #[must_use]
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Average service time in ns; 0 before the first measurement (historical-service-time only).
    #[inline]
    #[must_use]
    pub fn average_ns(&self) -> u64 {
        self.average_ns.load(Relaxed)
    }

    /// The number that a custom selector has noted here; 0 at first.
    #[inline]
    #[must_use]
    pub fn note(&self) -> u64 {
        self.average_ns.load(Relaxed)
    }

    /// Notes a number for a custom selector. Other selectors measure with this word, so only a
    /// custom selector of the path's own group may write it.
    #[inline]
    pub fn set_note(&self, note: u64) {
        self.average_ns.store(note, Relaxed);
    }

    /// The time from which on the average is too old (historical-service-time only).
    #[inline]
    #[must_use]
    pub fn stale_after_ns(&self) -> u64 {
        self.stale_after_ns.load(Relaxed)
    }

    /// As [`Path::is_up`], but sequentially consistent with all changes. The search that may end
    /// without a path needs this order.
    pub(super) fn is_up_ordered(&self) -> bool {
        self.health.load(SeqCst) & FAILED == 0
    }

    /// Marks it as failed. Returns `false` if it had failed already. If several queues report a
    /// failure at once, exactly one gets `true`.
    pub(super) fn mark_failed(&self) -> bool {
        let before = self.health.fetch_or(FAILED, SeqCst);
        if before & FAILED == 0 {
            self.health.fetch_add(ONE_FAILURE, SeqCst);
        } else if before & ASIDE != 0 {
            self.health.fetch_and(!ASIDE, SeqCst);
        }
        before & FAILED == 0
    }

    /// Sets it aside. Returns whether it was up.
    pub(super) fn mark_aside(&self) -> bool {
        self.health.fetch_or(FAILED | ASIDE, SeqCst) & FAILED == 0
    }

    /// Marks it as up if it is set aside. Returns `None` if it is neither aside nor up, otherwise
    /// whether this call changed it.
    ///
    /// The change is a single step, so that another queue sees the path either aside or up at every
    /// moment. If the path fails between the load and the exchange, it is up once more, and the
    /// next request that uses it finds the failure.
    pub(super) fn take_aside(&self) -> Option<bool> {
        match self.health.load(SeqCst) & (FAILED | ASIDE) {
            FAILED => None,
            0 => Some(false),
            _ => Some(self.mark_up()),
        }
    }

    /// Marks it as up. Returns `false` if it was up already.
    pub(super) fn mark_up(&self) -> bool {
        self.health.fetch_and(!(FAILED | ASIDE), SeqCst) & FAILED != 0
    }

    #[inline]
    pub(super) fn turn(&self) -> u64 {
        self.turn.load(Relaxed)
    }

    pub(super) fn set_turn(&self, turn: u64) {
        self.turn.store(turn, Relaxed);
    }

    /// Replaces the turn `seen` by `next`. Returns `false` if another queue was faster.
    #[inline]
    pub(super) fn take_turn(&self, seen: u64, next: u64) -> bool {
        self.turn.compare_exchange(seen, next, Relaxed, Relaxed).is_ok()
    }

    #[inline]
    pub(super) fn count_request(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    #[inline]
    pub(super) fn uncount_request(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    #[inline]
    pub(super) fn count_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    #[inline]
    pub(super) fn uncount_bytes(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
    }

    /// Returns the time of the last answer and stores `now_ns` for the next call.
    #[inline]
    pub(super) fn swap_last_end(&self, now_ns: u64) -> u64 {
        let last = self.last_end_ns.load(Relaxed);
        self.last_end_ns.store(last.max(now_ns), Relaxed);
        last
    }

    #[inline]
    pub(super) fn set_average(&self, average_ns: u64, stale_after_ns: u64) {
        self.average_ns.store(average_ns, Relaxed);
        self.stale_after_ns.store(stale_after_ns, Relaxed);
    }
}
