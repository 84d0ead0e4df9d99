//! The cost limit of one turn of a queue's loop, so that no client waits long for another.
//!
//! A turn handles everything that has happened. Each step checks whether the turn has used up its
//! budget ([`Budget::is_spent`]), and leaves the rest to the next turn. Two things are counted.
//! Time covers the work of this thread. Bytes cover the copies that the kernel makes while it takes
//! submissions, after the turn's own work, between the page cache and the memory of requests.

/// Time of a stage in ns. A client waits a few turns at most. That is far less than the latency of
/// a network, and long enough that the system call between two turns does not matter.
const STAGE_NS: u64 = 500_000;
/// Most bytes copied in a turn. That takes less than a millisecond on any suitable machine.
const TURN_BYTES: u64 = 4 << 20;

/// The rest of a turn's budget.
#[derive(Debug)]
pub(super) struct Budget {
    until_ns: u64,
    bytes_left: u64,
}

impl Default for Budget {
    /// Without a limit, for a simulated clock, which does not move by itself.
    fn default() -> Self {
        Budget { until_ns: u64::MAX, bytes_left: u64::MAX }
    }
}

impl Budget {
    /// Begins a turn at `now_ns`, with a full budget.
    pub(super) fn begin(&mut self, now_ns: u64) {
        *self = Budget { until_ns: now_ns + STAGE_NS, bytes_left: TURN_BYTES };
    }

    /// Begins the next stage of a turn, with a new time limit. The byte limit is that of the whole
    /// turn.
    pub(super) fn next_stage(&mut self, now_ns: u64) {
        self.until_ns = now_ns + STAGE_NS;
    }

    #[inline]
    pub(super) fn spend(&mut self, bytes: u64) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
    }

    #[inline]
    pub(super) fn is_spent(&self, now_ns: u64) -> bool {
        now_ns >= self.until_ns || self.bytes_left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_by_time_or_by_bytes() {
        let mut turn = Budget::default();
        turn.spend(1 << 40);
        assert!(!turn.is_spent(u64::MAX - 1), "a simulated one has no end");
        turn.begin(1000);
        assert!(!turn.is_spent(1000 + STAGE_NS - 1) && turn.is_spent(1000 + STAGE_NS));
        turn.next_stage(1000 + STAGE_NS);
        assert!(!turn.is_spent(1000 + STAGE_NS));
        turn.spend(TURN_BYTES - 1);
        assert!(!turn.is_spent(0));
        turn.spend(2);
        assert!(turn.is_spent(0));
        turn.next_stage(2000);
        assert!(turn.is_spent(2000), "bytes are copied once the turn is over");
        turn.begin(3000);
        assert!(!turn.is_spent(3000));
    }
}
