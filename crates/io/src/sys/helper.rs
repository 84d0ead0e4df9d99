//! The helper of a leaf: a thread for system calls that may block and for which io_uring has no
//! operation (`lseek`, `ioctl`). So such calls never run on a queue's thread.
//!
//! Every leaf has its own helper, so a file or disk that hangs delays no other leaf. The thread
//! starts with the first work and ends after a while without work, so idle leaves cost nothing.
//!
//! Contract: work is done in the order in which it was given. A piece of work makes a limited
//! number of calls; for more, the caller gives it again, behind the work of others.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::sys::lock::lock;
use crate::sys::log_limit::LogLimit;

/// How long a thread without work waits for more.
const IDLE: Duration = Duration::from_secs(1);

/// A piece of work for a helper's thread.
pub(crate) trait Work: Send {
    /// Does the work, on the helper's thread.
    fn work(self: Box<Self>);

    /// Answers without doing the work, because there is no thread. Runs on the caller's thread.
    fn refused(self: Box<Self>);
}

#[derive(Default)]
struct HelperState {
    waiting: VecDeque<Box<dyn Work>>,
    is_running: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<HelperState>,
    has_come: Condvar,
}

/// The helper of one leaf.
#[derive(Default)]
pub(crate) struct Helper {
    shared: Arc<Shared>,
}

impl Helper {
    /// Queues `work` for the leaf of this name. Never blocks.
    pub(crate) fn give(&self, leaf: &str, work: Box<dyn Work>) {
        let mut state = self.shared.lock();
        if !state.is_running {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("helper".into());
            match thread.spawn(move || shared.run()) {
                Ok(_) => state.is_running = true,
                Err(error) => {
                    drop(state);
                    static LIMIT: LogLimit = LogLimit::new();
                    if let Some(suppressed) = LIMIT.pass() {
                        tracing::warn!(leaf, %error, suppressed, "no thread for what may block");
                    }
                    return work.refused();
                }
            }
        }
        state.waiting.push_back(work);
        drop(state);
        self.shared.has_come.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HelperState> {
        lock(&self.state)
    }

    fn run(&self) {
        loop {
            let idle = |state: &mut HelperState| state.waiting.is_empty();
            let waited = self.has_come.wait_timeout_while(self.lock(), IDLE, idle);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            let Some(work) = state.waiting.pop_front() else {
                state.is_running = false;
                return;
            };
            drop(state);
            // Work that panics answers when it is dropped, so only this piece is lost.
            if catch_unwind(AssertUnwindSafe(|| work.work())).is_err() {
                tracing::error!("work for a leaf panicked: it is answered without its result");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Note(u32, mpsc::Sender<u32>);

    impl Work for Note {
        fn work(self: Box<Self>) {
            assert_ne!(self.0, 1, "this one panics, and the others go on");
            self.1.send(self.0).unwrap();
        }

        fn refused(self: Box<Self>) {
            unreachable!("there is a thread");
        }
    }

    #[test]
    fn work_is_done_in_order_and_a_panic_ends_only_its_own() {
        let (helper, (noted, notes)) = (Helper::default(), mpsc::channel());
        for round in 0..2 {
            for number in 0..4 {
                helper.give("leaf", Box::new(Note(number, noted.clone())));
            }
            let done: Vec<_> = notes.iter().take(3).collect();
            assert_eq!(done, [0, 2, 3], "round {round}");
        }
    }
}
