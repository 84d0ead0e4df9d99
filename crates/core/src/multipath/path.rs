//! A path of a priority group: what its table line says, and the state that every queue shares.
//!
//! Contract: everything that changes is an atomic, so a path is used through `&self` from any
//! number of threads. The words a choice looks at lie together, and no two paths share a cache
//! line: a queue that uses one path does not slow down a queue that uses another.

use super::sync::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use super::selector::PathArgs;

/// The turn of the first path of a group. Far from both ends: turns go up by one a choice, and a
/// path that is put before all others goes down by one.
const FIRST_TURN: u64 = 1 << 32;

/// Lowest bit of `health`: the path has failed. The bits above count how often it did.
const FAILED: u64 = 1;
/// One failure more, in units of `health`.
const ONE_FAILURE: u64 = 2;

/// A path: its arguments and its state.
#[derive(Debug)]
#[repr(align(128))]
pub struct Path {
    /// [`FAILED`] and the count of failures.
    health: AtomicU64,
    /// Order of use within the group: of equally good paths the one with the lowest turn is next.
    turn: AtomicU64,
    /// Bytes sent and not yet judged (service-time only).
    bytes: AtomicU64,
    /// Average time of service in ns, 0 if there is none yet (historical-service-time only, and the
    /// next two).
    average_ns: AtomicU64,
    /// When the path last finished something.
    last_end_ns: AtomicU64,
    /// When the average is too old to be trusted.
    stale_after_ns: AtomicU64,
    /// Requests sent and not yet judged (queue-length and historical-service-time only).
    in_flight: AtomicU32,
    group: u32,
    args: PathArgs,
}

impl Path {
    /// A path that is up, as [`super::PathArg`] describes it: in group `group` (counted from 0),
    /// the `place`-th there.
    #[must_use]
    pub(super) fn new(group: u32, place: u32, args: PathArgs) -> Self {
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

    /// Its group, counted from 0.
    #[must_use]
    pub const fn group(&self) -> u32 {
        self.group
    }

    /// What the table line says about it.
    #[must_use]
    pub const fn args(&self) -> &PathArgs {
        &self.args
    }

    /// Is it up?
    #[inline]
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.health.load(Relaxed) & FAILED == 0
    }

    /// How often it has failed since the table was loaded.
    #[must_use]
    pub fn fail_count(&self) -> u64 {
        self.health.load(Relaxed) / ONE_FAILURE
    }

    /// `(is it up, how often it has failed)`. A failure that is just happening may not be counted
    /// yet.
    #[must_use]
    pub fn health(&self) -> (bool, u64) {
        let health = self.health.load(Relaxed);
        (health & FAILED == 0, health / ONE_FAILURE)
    }

    /// Requests in flight, as far as the group's selector counts them.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Bytes in flight, as far as the group's selector counts them.
    #[inline]
    #[must_use]
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Average time of service in ns, 0 if there is none (historical-service-time only).
    #[inline]
    #[must_use]
    pub fn average_ns(&self) -> u64 {
        self.average_ns.load(Relaxed)
    }

    /// When the average is too old to be trusted (historical-service-time only).
    #[inline]
    #[must_use]
    pub fn stale_after_ns(&self) -> u64 {
        self.stale_after_ns.load(Relaxed)
    }

    /// [`Path::is_up`], in one order with all changes: for the search that may end in "there is no
    /// path".
    pub(super) fn is_up_ordered(&self) -> bool {
        self.health.load(SeqCst) & FAILED == 0
    }

    /// Marks it failed. `false` if it was already: of several queues that report it, one is told
    /// `true`.
    pub(super) fn mark_failed(&self) -> bool {
        let was_up = self.health.fetch_or(FAILED, SeqCst) & FAILED == 0;
        if was_up {
            self.health.fetch_add(ONE_FAILURE, SeqCst);
        }
        was_up
    }

    /// Marks it up. `false` if it was already.
    pub(super) fn mark_up(&self) -> bool {
        self.health.fetch_and(!FAILED, SeqCst) & FAILED != 0
    }

    #[inline]
    pub(super) fn turn(&self) -> u64 {
        self.turn.load(Relaxed)
    }

    pub(super) fn set_turn(&self, turn: u64) {
        self.turn.store(turn, Relaxed);
    }

    /// Takes its turn and gives it the turn `next`. `false` if another queue was faster.
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

    /// The end of the request before this one; `now_ns` is remembered for the next.
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
