//! Reports of path errors to the log and the monitor, for devices that are not multipath.
//!
//! A queue counts each failed piece in a [`Failure`]: one for each device, path and errno. The
//! first count sends the failure to the pool's watcher thread. The watcher reports it at once, and
//! later errors with growing pauses ([`Telling`]). So a path that fails a million requests a second
//! costs a queue one atomic addition for each, and the log one line a minute.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Most failures that a queue distinguishes at a time. Further errors are counted only in `stats`.
const KEPT: usize = 32;
/// Shortest time between two reports of a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause. After a longer silence a failure is forgotten, so its next error is reported at
/// once.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The key by which failures are counted and reported.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The id of the device.
    pub(crate) device: u32,
    /// The number of the path, counted over all segments of the device's table.
    pub(crate) path: u32,
    /// The errno that the path answered.
    pub(crate) errno: i32,
    /// The path in the words of the table at that time.
    pub(crate) address: Arc<str>,
}

/// Errors of one kind on one queue since the last report.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) key: Key,
    count: AtomicU64,
}

/// The failures of a queue.
#[derive(Default)]
pub(crate) struct Failures {
    kept: Vec<Arc<Failure>>,
    /// The failures to send to the watcher.
    news: Vec<Arc<Failure>>,
}

impl Failures {
    /// Counts an error. `address` is called only for a new failure.
    pub(crate) fn count(
        &mut self,
        (device, path, errno): (u32, u32, i32),
        address: impl FnOnce() -> Arc<str>,
    ) {
        let is_it = |key: &Key| (key.device, key.path, key.errno) == (device, path, errno);
        if let Some(known) = self.kept.iter().find(|failure| is_it(&failure.key)) {
            if known.count.fetch_add(1, Relaxed) == 0 {
                self.news.push(known.clone());
            }
            return;
        }
        if self.kept.len() == KEPT {
            // A reported failure has no count to lose.
            let told = self.kept.iter().position(|failure| failure.count.load(Relaxed) == 0);
            let Some(told) = told else { return };
            self.kept.swap_remove(told);
        }
        let key = Key { device, path, errno, address: address() };
        let failure = Arc::new(Failure { key, count: AtomicU64::new(1) });
        self.kept.push(failure.clone());
        self.news.push(failure);
    }

    /// Forgets a device's failures, because its paths may have changed.
    pub(crate) fn forget(&mut self, device: u32) {
        self.kept.retain(|failure| failure.key.device != device);
    }

    pub(crate) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    pub(crate) fn take_news(&mut self) -> impl Iterator<Item = Arc<Failure>> + '_ {
        self.news.drain(..)
    }
}

/// The watcher's schedule of reports.
#[derive(Default)]
pub(crate) struct Telling {
    known: HashMap<Key, Told>,
}

struct Told {
    /// Earliest time of the next report.
    next: Instant,
    pause: Duration,
    /// Failures with a count to report, of one or more queues.
    waiting: Vec<Arc<Failure>>,
}

impl Told {
    fn take(&mut self) -> u64 {
        self.waiting.drain(..).map(|failure| failure.count.swap(0, Relaxed)).sum()
    }
}

impl Telling {
    /// Takes a failure from a queue.
    pub(crate) fn add(&mut self, failure: Arc<Failure>, now: Instant) {
        let new = || Told { next: now, pause: FIRST_PAUSE, waiting: Vec::new() };
        let told = self.known.entry(failure.key.clone()).or_insert_with(new);
        told.waiting.push(failure);
    }

    /// Takes the failures to report now, each with the number of errors since its last report.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(Key, u64)> {
        let mut due = Vec::new();
        self.known.retain(|key, told| {
            if now < told.next {
                return true;
            }
            let count = told.take();
            if count > 0 {
                due.push((key.clone(), count));
                told.next = now + told.pause;
                told.pause = (told.pause * 2).min(LAST_PAUSE);
            }
            count > 0 || now < told.next + LAST_PAUSE
        });
        due
    }

    /// Time until the next report is due. `None` if there is nothing to report.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let waiting = self.known.values().filter(|told| !told.waiting.is_empty());
        waiting.map(|told| told.next.saturating_duration_since(now)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(failures: &mut Failures, path: u32, times: usize) {
        (0..times).for_each(|_| failures.count((0, path, 5), || "/dev/sda".into()));
    }

    #[test]
    fn the_first_error_is_told_at_once_and_the_next_with_a_pause_that_doubles() {
        let (mut failures, mut telling) = (Failures::default(), Telling::default());
        let mut now = Instant::now();
        let mut told = Vec::new();
        for _ in 0..600 {
            fail(&mut failures, 1, 100);
            failures.take_news().for_each(|failure| telling.add(failure, now));
            told.extend(telling.due(now).into_iter().map(|(_, count)| count));
            now += Duration::from_millis(100);
        }
        // At 0 s, 1 s, 3 s, 7 s, 15 s and 31 s.
        assert_eq!(told, [100, 1000, 2000, 4000, 8000, 16000]);
        assert!(telling.wait(now).is_some_and(|wait| wait <= LAST_PAUSE));
        now += LAST_PAUSE * 3;
        telling.due(now);
        now += LAST_PAUSE * 3;
        assert!(telling.due(now).is_empty() && telling.known.is_empty(), "nothing is kept");
    }

    #[test]
    fn a_queue_keeps_a_bounded_number_and_drops_none_that_waits() {
        let mut failures = Failures::default();
        (0..100).for_each(|path| fail(&mut failures, path, 2));
        let news: Vec<_> = failures.take_news().collect();
        assert_eq!((news.len(), failures.kept.len()), (KEPT, KEPT));
        news.iter().for_each(|failure| assert_eq!(failure.count.swap(0, Relaxed), 2));
        fail(&mut failures, 99, 1);
        assert_eq!(failures.take_news().next().unwrap().key.path, 99);
    }
}
