//! Latches: a thread waits until every queue has answered.
//!
//! Contract: an [`Ack`] that is dropped without an answer says that none will come. So a latch ends
//! whatever happens to a queue.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lock::lock;

/// The error of a wait: a queue is gone and will not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

struct LatchState {
    left: usize,
    gone: bool,
    cancelled: bool,
}

/// The result of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// All answers have come.
    Done,
    /// An answer will never come.
    Gone,
    /// Another thread has cancelled the wait.
    Cancelled,
    /// The time is over.
    NotYet,
}

/// Counts the answers for which a thread waits.
pub struct Latch {
    state: Mutex<LatchState>,
    changed: Condvar,
}

impl Latch {
    /// A latch that waits for `count` answers.
    pub fn new(count: usize) -> Arc<Latch> {
        Arc::new(Latch {
            state: Mutex::new(LatchState { left: count, gone: false, cancelled: false }),
            changed: Condvar::new(),
        })
    }

    /// An [`Ack`] that gives one of the answers.
    pub fn ack(self: &Arc<Self>) -> Ack {
        Ack { latch: Some(self.clone()) }
    }

    /// Blocks until all answers have come. `Err` if one never will.
    pub fn wait(&self) -> Result<(), Gone> {
        let mut state = lock(&self.state);
        while state.left > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.gone { Err(Gone) } else { Ok(()) }
    }

    /// Blocks until all answers have come, one never will, or `time` is over. Returns whether all
    /// have come.
    pub fn wait_at_most(&self, time: Duration) -> bool {
        let (until, mut state) = (Instant::now() + time, lock(&self.state));
        while state.left > 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        !state.gone
    }

    /// Blocks for `time` at most, until all answers have come or the wait is cancelled.
    pub fn wait_for(&self, time: Duration) -> Waited {
        let waits = |state: &mut LatchState| state.left > 0 && !state.cancelled;
        let waited = self.changed.wait_timeout_while(lock(&self.state), time, waits);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match *state {
            LatchState { left: 0, gone: true, .. } => Waited::Gone,
            // Also if the last answer came after the cancellation, before this thread ran: nobody
            // wants the result any more.
            LatchState { cancelled: true, .. } => Waited::Cancelled,
            LatchState { left: 0, .. } => Waited::Done,
            _ => Waited::NotYet,
        }
    }

    /// Ends a wait in [`Latch::wait_for`].
    pub fn cancel(&self) {
        lock(&self.state).cancelled = true;
        self.changed.notify_all();
    }

    /// Whether all answers have come, or will never come.
    pub fn is_done(&self) -> bool {
        lock(&self.state).left == 0
    }

    fn count(&self, gone: bool) {
        let mut state = lock(&self.state);
        state.left = state.left.saturating_sub(1);
        state.gone |= gone;
        drop(state);
        self.changed.notify_all();
    }
}

/// One answer to a latch. Dropped without [`Ack::done`], it says that the queue is gone.
pub struct Ack {
    latch: Option<Arc<Latch>>,
}

impl Ack {
    /// Gives the answer that the latch waits for.
    pub fn done(mut self) {
        if let Some(latch) = self.latch.take() {
            latch.count(false);
        }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if let Some(latch) = self.latch.take() {
            latch.count(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_wait_stays_cancelled_when_the_last_answer_comes() {
        let latch = Latch::new(2);
        latch.ack().done();
        assert_eq!(latch.wait_for(Duration::ZERO), Waited::NotYet);
        latch.cancel();
        latch.ack().done();
        assert_eq!(latch.wait_for(Duration::ZERO), Waited::Cancelled);
        let gone = Latch::new(1);
        gone.cancel();
        drop(gone.ack());
        assert_eq!(gone.wait_for(Duration::ZERO), Waited::Gone);
    }
}
