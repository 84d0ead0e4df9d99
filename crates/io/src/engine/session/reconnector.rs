//! The reconnector of a leaf makes new connections on a thread of its own, because queues must not
//! wait.
//!
//! A leaf has a session for each queue, or several for each queue. A session whose connection is
//! lost asks for another ([`Reconnector::want`]). The reconnector's thread makes it, leaves it in
//! the session's entry and wakes the session. It tries again with growing pauses until it succeeds
//! or the leaf is closed. The thread ends when no session wants a connection.
//!
//! Contract: the locks are taken when connections come and go, never by an operation of a connected
//! session. No other code uses a connection that waits in an entry.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::sessions::SessionSlot;
use crate::sys::log_limit::LogLimit;
use crate::sys::sync::{AtomicBool, Condvar, Instant, Mutex, MutexGuard, thread};

/// Pause after the first failed attempt. Each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two attempts.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that is lost before this time, without an answer, counts as a failed attempt: some
/// servers accept every client and then close.
const LASTING: Duration = Duration::from_secs(1);

/// The reconnector's record of one session.
struct Entry<C> {
    slot: SessionSlot,
    wanted: AtomicBool,
    /// Whether the last attempt for it failed.
    failed: AtomicBool,
    ready: Mutex<Option<C>>,
    /// When the connection that the session is using now was established; `None` before the first
    /// one.
    made: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Progress {
    running: bool,
    /// Whether to try at once, without the pause.
    hurry: bool,
    /// Number of attempts, and of the last one that failed.
    begun: u64,
    failed: u64,
    /// Why the last attempt failed; `None` after one that succeeded.
    why: Option<String>,
    /// Whether the last try to start the thread failed. The log says it once.
    lacks_thread: bool,
    /// The time of the next try after a connection that did not last, and the length of that pause.
    not_before: Option<Instant>,
    pause: Duration,
}

impl Progress {
    /// Counts a lost connection that had lasted for `lasted`.
    fn lost_after(&mut self, lasted: Duration) {
        let now = Instant::now();
        if lasted >= LASTING {
            (self.not_before, self.pause) = (None, Duration::ZERO);
        } else if self.not_before.is_none_or(|time| time <= now) {
            // Several connections that are lost together count once.
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
            self.not_before = Some(now + self.pause);
        }
    }
}

/// The engine's function that makes a connection for a session.
type Dial<C> = Box<dyn Fn(usize) -> io::Result<C> + Send + Sync>;

/// The limits of a leaf's log lines, each leaf's own: the server decides how often connections end,
/// and one that flaps must neither fill a disk nor hide the losses of others.
#[derive(Default)]
pub(crate) struct LogLimits {
    pub(crate) lost: LogLimit,
    pub(crate) connected: LogLimit,
    pub(crate) refused: LogLimit,
    pub(crate) settled: LogLimit,
    pub(crate) event: LogLimit,
}

/// Makes the connections of one leaf.
pub(crate) struct Reconnector<C> {
    /// The limits of the leaf's log lines.
    pub(crate) log: LogLimits,
    /// The server's name for the log.
    name: String,
    dial: Dial<C>,
    entries: Box<[Entry<C>]>,
    closed: AtomicBool,
    state: Mutex<Progress>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Send + 'static> Reconnector<C> {
    /// A reconnector for `sessions` sessions. `connections` are ready for the first ones.
    pub(crate) fn new(
        name: String,
        sessions: usize,
        connections: Vec<C>,
        dial: Dial<C>,
    ) -> io::Result<Arc<Reconnector<C>>> {
        let mut connections = connections.into_iter();
        let mut entry = |_| {
            Ok(Entry {
                slot: SessionSlot::new()?,
                wanted: AtomicBool::new(false),
                failed: AtomicBool::new(false),
                ready: Mutex::new(connections.next()),
                made: Mutex::new(None),
            })
        };
        let entries = (0..sessions).map(&mut entry).collect::<io::Result<_>>()?;
        let (closed, state, changed) =
            (AtomicBool::new(false), Mutex::new(Progress::default()), Condvar::new());
        let log = LogLimits::default();
        Ok(Arc::new(Reconnector { log, name, dial, entries, closed, state, changed }))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The slot where the engine finds session `number` of the leaf.
    pub(crate) fn slot(&self, number: usize) -> Option<&SessionSlot> {
        self.entries.get(number).map(|entry| &entry.slot)
    }

    /// The connection that is ready for a session.
    pub(crate) fn take(&self, number: usize) -> Option<C> {
        lock(&self.entries.get(number)?.ready).take()
    }

    /// Looks at the connection that is ready for a session, if there is one.
    pub(crate) fn peek<T>(&self, number: usize, look: impl FnOnce(&C) -> T) -> Option<T> {
        lock(&self.entries.get(number)?.ready).as_ref().map(look)
    }

    /// Whether the last attempt to connect for a session failed.
    pub(crate) fn has_failed(&self, number: usize) -> bool {
        self.entries.get(number).is_some_and(|entry| entry.failed.load(Ordering::Acquire))
    }

    /// Whether a connection is missing, and the last attempt to make it has failed.
    pub(crate) fn is_cut_off(&self) -> bool {
        let is_cut_off = |entry: &Entry<C>| {
            entry.wanted.load(Ordering::Acquire) && entry.failed.load(Ordering::Acquire)
        };
        self.entries.iter().any(is_cut_off)
    }

    /// Why a connection that is missing cannot be made, as far as was tried.
    pub(crate) fn trouble(&self) -> Option<String> {
        if self.is_cut_off() { lock(&self.state).why.clone() } else { None }
    }

    /// Asks for a new connection for a session, after one without answers.
    pub(crate) fn want(self: &Arc<Self>, number: usize) {
        self.want_after(number, false);
    }

    /// Asks for a new connection for a session. A connection that `has_answered` something counts
    /// as one that lasted, so that a flapping server is used as much as possible.
    pub(crate) fn want_after(self: &Arc<Self>, number: usize, has_answered: bool) {
        let Some(at) = self.entries.get(number) else { return };
        // Lock first: wait_connected() gives up if it sees a wish without a thread.
        let mut state = lock(&self.state);
        at.failed.store(false, Ordering::Release);
        at.wanted.store(true, Ordering::Release);
        if let Some(made) = lock(&at.made).take() {
            state.lost_after(if has_answered { LASTING } else { made.elapsed() });
        }
        self.start(&mut state);
    }

    /// Starts the thread, if none runs. If the thread cannot start, every wish counts as a failed
    /// attempt, and the next wish tries to start the thread again.
    fn start(self: &Arc<Self>, state: &mut Progress) {
        if state.running || self.is_closed() {
            return;
        }
        match self.spawn() {
            Ok(()) => (state.running, state.lacks_thread) = (true, false),
            Err(error) => {
                if !std::mem::replace(&mut state.lacks_thread, true) {
                    let leaf = &self.name;
                    tracing::error!(leaf, %error, "no thread to connect again on: trying on");
                }
                state.why = Some(format!("no thread to connect on: {error}"));
                self.tell_failure();
            }
        }
    }

    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        #[cfg(all(test, not(loom)))]
        tests::refuse_thread(&self.name)?;
        let reconnector = self.clone();
        thread::Builder::new().name("reconnector".into()).spawn(move || reconnector.run()).map(drop)
    }

    /// Tells the sessions without a connection that an attempt has failed.
    fn tell_failure(&self) {
        for entry in self.entries.iter().filter(|entry| entry.wanted.load(Ordering::Acquire)) {
            entry.failed.store(true, Ordering::Release);
            entry.slot.waker().wake();
        }
    }

    /// Asks for a new connection for a session that has none, unless it has asked already.
    /// Starts the thread again if a connection is wanted but no thread runs.
    pub(crate) fn want_if_idle(self: &Arc<Self>, number: usize) {
        let Some(at) = self.entries.get(number) else { return };
        let mut state = lock(&self.state);
        // A wish ends when its connection arrives, under the lock that is held here.
        if at.wanted.load(Ordering::Acquire) {
            return self.start(&mut state);
        }
        let is_idle = lock(&at.ready).is_none();
        drop(state);
        if is_idle {
            self.want(number);
        }
    }

    /// Tries missing connections at once and waits for all of them. `Err` if the next attempt fails
    /// or takes too long.
    pub(crate) fn wait_connected(self: &Arc<Self>, deadline: Instant) -> io::Result<()> {
        let mut state = lock(&self.state);
        if self.entries.iter().any(|entry| entry.wanted.load(Ordering::Acquire)) {
            self.start(&mut state);
        }
        state.hurry = true;
        let before = state.begun;
        self.changed.notify_all();
        while self.entries.iter().any(|entry| entry.wanted.load(Ordering::Acquire)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.failed > before || !state.running {
                return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.hurry = false;
        Ok(())
    }

    /// Closes the leaf: sessions and thread end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(lock(&self.state));
        self.changed.notify_all();
        self.entries.iter().for_each(|entry| entry.slot.waker().wake());
    }

    /// Whether the leaf is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The thread's function: makes wanted connections.
    fn run(&self) {
        let _running = Running(self);
        let mut pause = FIRST_PAUSE;
        loop {
            let mut state = lock(&self.state);
            let mut entries = self.entries.iter().enumerate();
            let wanted = entries.find(|(_, entry)| entry.wanted.load(Ordering::Acquire));
            let Some((number, entry)) = wanted.filter(|_| !self.is_closed()) else {
                state.running = false;
                drop(state);
                return self.changed.notify_all();
            };
            if let Some(time) = state.not_before {
                let left = time.saturating_duration_since(Instant::now());
                let idle = |state: &mut Progress| !state.hurry && !self.is_closed();
                let waited = self.changed.wait_timeout_while(state, left, idle);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if self.is_closed() {
                    continue;
                }
            }
            state.hurry = false;
            state.begun += 1;
            drop(state);
            match (self.dial)(number) {
                Ok(connection) => {
                    if let Some(suppressed) = self.log.connected.pass() {
                        tracing::info!(leaf = self.name, suppressed, "connected again");
                    }
                    pause = FIRST_PAUSE;
                    // Lock first, so that a session that takes the connection and loses it at once
                    // asks again only after the end of this wish.
                    let mut state = lock(&self.state);
                    state.why = None;
                    *lock(&entry.made) = Some(Instant::now());
                    *lock(&entry.ready) = Some(connection);
                    entry.wanted.store(false, Ordering::Release);
                    entry.slot.waker().wake();
                    self.changed.notify_all();
                }
                Err(error) => {
                    // Log it once, however long the failure lasts.
                    let why = error.to_string();
                    let mut state = lock(&self.state);
                    if state.why.as_ref() != Some(&why) {
                        if let Some(suppressed) = self.log.refused.pass() {
                            let text = "cannot connect again; trying on";
                            tracing::warn!(leaf = self.name, error = why, suppressed, "{text}");
                        }
                        state.why = Some(why);
                    }
                    self.tell_failure();
                    state.failed = state.begun;
                    self.changed.notify_all();
                    let idle = |state: &mut Progress| !state.hurry && !self.is_closed();
                    drop(self.changed.wait_timeout_while(state, pause, idle));
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }
}

/// Marks the thread as running. A panic of the thread drops it; then the next wish starts another
/// thread.
struct Running<'a, C: Send + 'static>(&'a Reconnector<C>);

impl<C: Send + 'static> Drop for Running<'_, C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(leaf = self.0.name, "the thread that connects again has panicked");
            lock(&self.0.state).running = false;
            self.0.tell_failure();
            self.0.changed.notify_all();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// Number of threads that the test's reconnector must still fail to start.
    static REFUSED: AtomicU32 = AtomicU32::new(0);

    pub(crate) fn refuse_thread(name: &str) -> io::Result<()> {
        let take = |left: u32| left.checked_sub(1);
        let refused = name == "refused"
            && REFUSED.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok();
        if refused { Err(io::Error::from_raw_os_error(libc::EAGAIN)) } else { Ok(()) }
    }

    #[test]
    fn a_thread_that_could_not_be_started_is_started_by_the_next_wish() {
        let dial = |_| Ok(7);
        let reconnector =
            Reconnector::new("refused".into(), 1, Vec::new(), Box::new(dial)).unwrap();
        let deadline = || Instant::now() + Duration::from_secs(60);
        REFUSED.store(3, Ordering::Release);
        reconnector.want(0);
        assert!(reconnector.has_failed(0), "the session is told");
        reconnector.want_if_idle(0);
        reconnector.wait_connected(deadline()).unwrap_err();
        reconnector.want_if_idle(0);
        reconnector.wait_connected(deadline()).unwrap();
        assert_eq!(reconnector.take(0), Some(7));
    }

    #[test]
    fn a_thread_that_panicked_is_replaced() {
        let dialled = AtomicU32::new(0);
        let dial = move |_| {
            assert_ne!(dialled.fetch_add(1, Ordering::AcqRel), 0, "the first attempt panics");
            Ok(7)
        };
        let reconnector = Reconnector::new("panics".into(), 1, Vec::new(), Box::new(dial)).unwrap();
        reconnector.want(0);
        let until = Instant::now() + Duration::from_secs(60);
        while reconnector.take(0).is_none() {
            assert!(Instant::now() < until, "nobody connects any more");
            reconnector.want_if_idle(0);
            std::thread::yield_now();
        }
    }
}
