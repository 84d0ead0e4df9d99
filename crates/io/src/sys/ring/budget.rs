//! How much one turn of a queue's loop may cost, so that no client waits for long on another.
//!
//! A turn goes over everything that has happened: each part of it looks whether the turn has cost
//! enough ([`Budget::is_spent`]), and leaves the rest to the next turn. Two things are counted. Time
//! covers all that this thread does itself. Bytes cover the copies that the kernel makes while it
//! takes submissions, after the turn's own work: between the page cache and a request's memory.

/// Time of a stage. A client waits for a few turns at most: far below what it takes for a network,
/// and long enough that the system call between two turns does not count.
const STAGE_NS: u64 = 500_000;
/// Bytes copied in a turn: less than a millisecond on any machine that this is for.
const TURN_BYTES: u64 = 4 << 20;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Budget {
    until_ns: u64,
    bytes_left: u64,
}

impl Default for Budget {
    /// Without an end: that of a clock which does not move by itself.
    fn default() -> Self {
        Budget { until_ns: u64::MAX, bytes_left: u64::MAX }
    }
}

impl Budget {
    /// A turn begins.
    pub(super) fn begin(&mut self, now_ns: u64) {
        *self = Budget { until_ns: now_ns + STAGE_NS, bytes_left: TURN_BYTES };
    }

    /// The next of a turn's stages has as much time as the one before. Bytes are the turn's.
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
