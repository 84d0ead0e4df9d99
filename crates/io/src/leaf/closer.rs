//! Closes leaves on threads of their own. The last close of a file can take any time: it may write
//! back cached data, or wait for a network file system that does not answer. Any thread may drop
//! the last reference to a leaf, also a queue's thread or the one of all control connections, and
//! these must not wait.
//!
//! Contract: [`close`] never blocks. Where blocking is allowed, use [`give_up`] to drop a table, so
//! that its files are free when the verb is done.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::leaf::Leaf;
use crate::sys::lock::lock;

/// Number of threads that close leaves. If more closes than this hang, they delay only other
/// closes.
const THREADS: usize = 8;
/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(5);
/// How long a verb waits for its closes. Longer closes go on in the background.
const PATIENCE: Duration = Duration::from_secs(2);

const OPEN: u8 = 0;
const CLOSING: u8 = 1;
const CLOSED: u8 = 2;

/// The progress of closing a leaf.
pub(crate) type Progress = Arc<AtomicU8>;

/// The progress of an open leaf.
pub(crate) fn open() -> Progress {
    Arc::new(AtomicU8::new(OPEN))
}

struct Closers {
    waiting: VecDeque<(Engine, Progress)>,
    threads: usize,
    idle: usize,
    /// Number of engines that wait or are being closed.
    unfinished: usize,
}

static STATE: Mutex<Closers> =
    Mutex::new(Closers { waiting: VecDeque::new(), threads: 0, idle: 0, unfinished: 0 });
/// Signals that there is work.
static WORK: Condvar = Condvar::new();
/// Signals that an engine was closed.
static DONE: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, Closers> {
    lock(&STATE)
}

/// Closes the engine of a leaf that has no more references.
pub(crate) fn close(engine: Engine, progress: Progress) {
    let mut state = state();
    progress.store(CLOSING, Ordering::Release);
    state.waiting.push_back((engine, progress));
    state.unfinished += 1;
    if state.idle < state.waiting.len() && state.threads < THREADS {
        match thread::Builder::new().name("closer".into()).spawn(run) {
            Ok(_) => state.threads += 1,
            // The next close tries again. Without any thread, this thread must close the engine.
            Err(_) if state.threads == 0 => {
                let alone = state.waiting.pop_back();
                state.unfinished -= 1;
                drop(state);
                alone.into_iter().for_each(finish);
                return;
            }
            Err(error) => tracing::warn!(%error, "cannot start a thread that closes leaves"),
        }
    }
    drop(state);
    WORK.notify_one();
}

fn finish((engine, progress): (Engine, Progress)) {
    drop(engine);
    progress.store(CLOSED, Ordering::Release);
}

fn run() {
    let mut guard = state();
    loop {
        if let Some(next) = guard.waiting.pop_front() {
            drop(guard);
            finish(next);
            guard = state();
            guard.unfinished -= 1;
            DONE.notify_all();
            continue;
        }
        guard.idle += 1;
        let (woken, waited) =
            WORK.wait_timeout(guard, IDLE).unwrap_or_else(PoisonError::into_inner);
        guard = woken;
        guard.idle -= 1;
        if waited.timed_out() && guard.waiting.is_empty() {
            guard.threads -= 1;
            return;
        }
    }
}

/// Drops `what` and `leaves`. Waits a moment until the leaves without other references are closed.
pub(crate) fn give_up<T>(what: T, leaves: Vec<Arc<Leaf>>) {
    let progress: Vec<Progress> = leaves.iter().map(|leaf| leaf.progress()).collect();
    drop((what, leaves));
    let until = Instant::now() + PATIENCE;
    wait(until, || progress.iter().all(|one| one.load(Ordering::Acquire) != CLOSING));
}

/// Waits until all closes are finished, for `at_most`, so that a process that ends can log out from
/// its servers. Returns whether all are finished.
pub fn settle(at_most: Duration) -> bool {
    let until = Instant::now() + at_most;
    let mut state = state();
    while state.unfinished > 0 {
        let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
        state = DONE.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    true
}

fn wait(until: Instant, is_done: impl Fn() -> bool) {
    let mut state = state();
    while !is_done() {
        let Some(left) = until.checked_duration_since(Instant::now()) else { return };
        state = DONE.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaf::{Address, LeafOptions};
    use crate::queues::Queues;

    fn leaf(path: &std::path::Path) -> Arc<Leaf> {
        let options = LeafOptions {
            make_bytes: Some(4096),
            direct: Some(false),
            ..LeafOptions::new(Queues::of_new_owner(1))
        };
        Leaf::open(&Address::Path(path.to_owned()), &options).unwrap()
    }

    #[test]
    fn whoever_gives_up_the_last_reference_waits_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for _ in 0..20 {
            let leaf = leaf(&path);
            let progress = leaf.progress();
            give_up((), vec![leaf]);
            assert_eq!(progress.load(Ordering::Acquire), CLOSED);
        }
        let leaf = leaf(&path);
        let progress = leaf.progress();
        give_up((), vec![leaf.clone()]);
        assert_eq!(progress.load(Ordering::Acquire), OPEN, "somebody else has it");
    }

    #[test]
    fn a_thread_that_must_not_block_closes_nothing_itself() {
        let folder = tempfile::tempdir().unwrap();
        let leaf = leaf(&folder.path().join("file"));
        let progress = leaf.progress();
        drop(leaf);
        assert_ne!(progress.load(Ordering::Acquire), OPEN);
        assert!(settle(Duration::from_secs(60)));
        assert_eq!(progress.load(Ordering::Acquire), CLOSED);
    }
}
