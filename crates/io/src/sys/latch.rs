//! Latches: control waits until every queue has answered.
//!
//! Contract: an acknowledgement that is dropped counts as the answer that there will be none, so a
//! latch ends whatever becomes of a queue.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lock::lock;

/// A queue that was asked is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

struct LatchState {
    left: usize,
    gone: bool,
    cancelled: bool,
}

/// What became of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// All answers are in.
    Done,
    /// One of them can never come.
    Gone,
    /// Somebody has given it up.
    Cancelled,
    /// Time is up.
    NotYet,
}

/// Waits until every queue has answered.
pub struct Latch {
    state: Mutex<LatchState>,
    changed: Condvar,
}

impl Latch {
    /// For `count` answers.
    pub fn new(count: usize) -> Arc<Latch> {
        Arc::new(Latch {
            state: Mutex::new(LatchState { left: count, gone: false, cancelled: false }),
            changed: Condvar::new(),
        })
    }

    /// One of the answers.
    pub fn ack(self: &Arc<Self>) -> Ack {
        Ack { latch: Some(self.clone()) }
    }

    /// Blocks until all answers are in, or one can never come.
    pub fn wait(&self) -> Result<(), Gone> {
        let mut state = lock(&self.state);
        while state.left > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.gone { Err(Gone) } else { Ok(()) }
    }

    /// Blocks until all answers are in, or one can never come, or time is up. Whether all are in.
    pub fn wait_at_most(&self, time: Duration) -> bool {
        let (until, mut state) = (Instant::now() + time, lock(&self.state));
        while state.left > 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        !state.gone
    }

    /// Blocks for `time` at most.
    pub fn wait_for(&self, time: Duration) -> Waited {
        let waits = |state: &mut LatchState| state.left > 0 && !state.cancelled;
        let waited = self.changed.wait_timeout_while(lock(&self.state), time, waits);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match *state {
            LatchState { left: 0, gone: true, .. } => Waited::Gone,
            LatchState { left: 0, .. } => Waited::Done,
            LatchState { cancelled: true, .. } => Waited::Cancelled,
            _ => Waited::NotYet,
        }
    }

    /// Whoever waits with [`Latch::wait_for`] is to give up.
    pub fn cancel(&self) {
        lock(&self.state).cancelled = true;
        self.changed.notify_all();
    }

    /// Whether all answers are in.
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
    /// Answers.
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
