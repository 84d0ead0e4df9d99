//! Threads of a pool that fail: noticed, logged, and nobody waits for them.
//!
//! Contract: a queue that fails closes its mailbox, and every acknowledgement that it owes says
//! that it is gone. Its memory is never given back: the kernel may still write there. The pool
//! counts as failed from then on, and whoever runs it ends it.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::queue::{Ended, Queue};

/// Runs a queue to its end. One that fails or is given up is not dropped: the kernel may still
/// write to the memory of its connections and requests.
pub(super) fn run_queue(queue: Queue, number: usize, failed: &AtomicBool) {
    let mut queue = ManuallyDrop::new(queue);
    let why = match catch_unwind(AssertUnwindSafe(|| queue.run())) {
        Ok(Ok(Ended::Finished)) => {
            return ManuallyDrop::into_inner(queue).end();
        }
        // The caller that stops the pool knows.
        Ok(Ok(Ended::GivenUp)) => return queue.give_up(),
        Ok(Err(error)) => format!("its ring failed: {error}"),
        Err(panic) => format!("it panicked: {}", message_of(&*panic)),
    };
    tracing::error!(queue = number, "queue stopped: {why}");
    failed.store(true, Ordering::Release);
    queue.give_up();
}

/// The message of a panic.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

/// Dropped by a panic, it says that the pool has failed.
pub(super) struct NoteFailure {
    pub(super) thread: &'static str,
    pub(super) failed: Arc<AtomicBool>,
}

impl Drop for NoteFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(thread = self.thread, "a thread of the pool panicked");
            self.failed.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::device::DeviceError;
    use crate::pool::{Gone, Latch, Pool, PoolOptions};
    use crate::queue::QueueOrder;

    #[test]
    fn a_queue_that_panics_is_noticed_and_keeps_nobody_waiting() {
        let pool = Pool::start(PoolOptions { queues: 2, ..PoolOptions::default() }).unwrap();
        let device = pool.registry().create("disk", "", None).unwrap();
        assert!(!pool.failed());
        pool.shared.mailboxes.get(1).unwrap().send(QueueOrder::Panic);
        let until = Instant::now() + Duration::from_secs(60);
        while !pool.failed() {
            assert!(Instant::now() < until, "nobody notices");
            std::thread::yield_now();
        }
        let refused = |result: Result<(), DeviceError>| {
            assert!(matches!(result, Err(DeviceError::Stopping)), "{result:?}");
        };
        refused(device.suspend());
        refused(pool.registry().create("other", "", None).map(drop));
        pool.stop();
    }

    #[test]
    fn a_gate_that_a_failed_queue_was_to_close_is_not_waited_for() {
        use crate::pipeline::Pipeline;

        let (mut pipeline, latch) = (Pipeline::new(0), Latch::new(1));
        pipeline.install(0, crate::stats::Counters::boxed(1).into());
        pipeline.close_with_one_in_flight(0, latch.ack());
        assert!(!latch.is_done());
        pipeline.forget_commands();
        assert_eq!(latch.wait(), Err(Gone));
    }
}
