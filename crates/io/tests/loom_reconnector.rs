//! The reconnector and the sessions it serves, in every order that loom finds:
//! `RUSTFLAGS="--cfg loom" cargo test -p blkswitch-io --release --test loom_reconnector`.
//! Empty without `--cfg loom`.
//!
//! The promises:
//! * A session that asks for a connection gets exactly one.
//! * The session is woken, also when an attempt fails and when the leaf is closed. A missed wake-up
//!   would be a deadlock here.
//! * A thread that waits for all connections gets no error but that of a failed attempt.
//! * The reconnector's thread ends.
//!
//! The test compiles the reconnector's source with loom's locks, with a clock that stands still,
//! and with a waker without a kernel. A pause ends only when a thread cuts it short.
#![cfg(loom)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use loom::thread;

#[allow(dead_code, unreachable_pub)]
#[path = "../src/engine/session/reconnector.rs"]
mod reconnector;

use reconnector::Reconnector;
use sync::Instant;

mod sys {
    pub(crate) use super::sync;

    /// Stands in for the crate's module. The log is not part of the model.
    pub(crate) mod log_limit {
        #[derive(Default)]
        pub(crate) struct LogLimit;

        impl LogLimit {
            pub(crate) fn pass(&self) -> Option<u64> {
                None
            }
        }
    }
}

/// Stands in for the crate's `sys::sync`, from which the reconnector imports.
mod sync {
    use std::ops::Add;
    use std::sync::LockResult;
    use std::time::Duration;

    pub(crate) use loom::sync::atomic::AtomicBool;
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use loom::thread;

    #[derive(Clone, Copy, PartialEq, PartialOrd)]
    pub(crate) struct Instant(Duration);

    impl Instant {
        pub(crate) fn now() -> Instant {
            Instant(Duration::ZERO)
        }

        pub(crate) fn elapsed(self) -> Duration {
            Instant::now().saturating_duration_since(self)
        }

        pub(crate) fn saturating_duration_since(self, earlier: Instant) -> Duration {
            self.0.saturating_sub(earlier.0)
        }
    }

    impl Add<Duration> for Instant {
        type Output = Instant;

        fn add(self, duration: Duration) -> Instant {
            Instant(self.0 + duration)
        }
    }

    /// A condition variable whose timeouts never expire.
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Condvar {
            Condvar(loom::sync::Condvar::new())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            left: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            assert!(!left.is_zero());
            Ok((self.0.wait(guard).unwrap(), ()))
        }

        pub(crate) fn wait_timeout_while<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            left: Duration,
            mut goes_on: impl FnMut(&mut T) -> bool,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            while !left.is_zero() && goes_on(&mut guard) {
                guard = self.0.wait(guard).unwrap();
            }
            Ok((guard, ()))
        }
    }
}

/// Stands in for the engine's `sessions`, from which the reconnector imports.
mod sessions {
    use std::io;

    use loom::sync::{Condvar, Mutex};

    pub(crate) struct SessionSlot(SessionWaker);

    impl SessionSlot {
        pub(crate) fn new() -> io::Result<SessionSlot> {
            Ok(SessionSlot(SessionWaker { woken: Mutex::new(false), changed: Condvar::new() }))
        }

        pub(crate) fn waker(&self) -> &SessionWaker {
            &self.0
        }
    }

    /// Behaves like an eventfd with one reader: a ring before the wait ends the wait.
    pub(crate) struct SessionWaker {
        woken: Mutex<bool>,
        changed: Condvar,
    }

    impl SessionWaker {
        pub(crate) fn wake(&self) {
            *self.woken.lock().unwrap() = true;
            self.changed.notify_one();
        }

        pub(crate) fn wait(&self) {
            let mut woken = self.woken.lock().unwrap();
            while !*woken {
                woken = self.changed.wait(woken).unwrap();
            }
            *woken = false;
        }
    }
}

/// A reconnector whose connections are numbers.
type Numbers = Arc<Reconnector<u32>>;

/// Makes a reconnector for sessions without connections, and a server that refuses the first
/// `failing` attempts. Also returns the count of attempts.
fn reconnector(sessions: usize, failing: u32) -> (Numbers, Arc<AtomicU32>) {
    // A plain atomic: the counter orders nothing, so loom need not try its accesses.
    let dialled = Arc::new(AtomicU32::new(0));
    let count = dialled.clone();
    let dial = move |_| match count.fetch_add(1, Ordering::Relaxed) {
        attempt if attempt < failing => Err(io::ErrorKind::ConnectionRefused.into()),
        attempt => Ok(attempt),
    };
    (Reconnector::new("leaf".into(), sessions, Vec::new(), Box::new(dial)).unwrap(), dialled)
}

/// A session's turn without a connection: takes one, or asks for one.
fn turn(reconnector: &Numbers, number: usize) -> Option<u32> {
    let connection = reconnector.take(number);
    if connection.is_none() {
        reconnector.want_if_idle(number);
    }
    connection
}

/// A session that has lost its connection turns until it has another. Its queue may also turn for
/// other reasons than the waker.
fn reconnect(reconnector: &Numbers, number: usize) -> u32 {
    reconnector.want(number);
    loop {
        if let Some(connection) = turn(reconnector, number) {
            return connection;
        }
        reconnector.slot(number).unwrap().waker().wait();
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn a_session_gets_one_connection() {
    check(4, || {
        let (reconnector, dialled) = reconnector(1, 0);
        assert_eq!(reconnect(&reconnector, 0), 0);
        reconnector.wait_connected(soon()).unwrap();
        assert_eq!(dialled.load(Ordering::Relaxed), 1, "nobody asked for a second one");
        assert_eq!(reconnector.take(0), None);
    });
}

/// A session loses its new connection at once and asks again. The reconnector must not miss this
/// while it finishes the first wish.
#[test]
fn a_session_that_loses_its_connection_at_once_gets_another() {
    check(3, || {
        let (reconnector, dialled) = reconnector(1, 0);
        let prober = {
            let reconnector = reconnector.clone();
            reconnect(&reconnector, 0);
            reconnector.want(0);
            // The pause that follows ends only because this thread waits.
            thread::spawn(move || reconnector.wait_connected(soon()).unwrap())
        };
        prober.join().unwrap();
        assert_eq!(reconnector.take(0), Some(1));
        assert_eq!(dialled.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn two_sessions_get_one_connection_each() {
    check(2, || {
        let (reconnector, dialled) = reconnector(2, 0);
        let other = {
            let reconnector = reconnector.clone();
            thread::spawn(move || reconnect(&reconnector, 1))
        };
        let mine = reconnect(&reconnector, 0);
        assert_eq!(mine + other.join().unwrap(), 1, "one got connection 0, the other connection 1");
        reconnector.wait_connected(soon()).unwrap();
        assert_eq!(dialled.load(Ordering::Relaxed), 2);
    });
}

/// A thread waits for all connections while a session asks for one.
#[test]
fn waiting_fails_only_with_an_attempt() {
    check(3, || {
        let (reconnector, _) = reconnector(1, 0);
        let session = {
            let reconnector = reconnector.clone();
            thread::spawn(move || reconnect(&reconnector, 0))
        };
        reconnector.wait_connected(soon()).expect("no attempt has failed");
        session.join().unwrap();
    });
}

/// The first attempt fails. The session is woken, the waiting thread gets the error, and its next
/// wait cuts the pause short.
#[test]
fn an_attempt_that_fails_is_told() {
    check(2, || {
        let (reconnector, dialled) = reconnector(1, 1);
        reconnector.want(0);
        let prober = {
            let reconnector = reconnector.clone();
            thread::spawn(move || {
                if reconnector.wait_connected(soon()).is_err() {
                    reconnector.wait_connected(soon()).expect("only one attempt fails");
                }
            })
        };
        let waker = reconnector.slot(0).unwrap().waker();
        waker.wait();
        let connection = loop {
            match reconnector.take(0) {
                Some(connection) => break connection,
                None => assert!(reconnector.has_failed(0), "the session was woken for nothing"),
            }
            waker.wait();
        };
        prober.join().unwrap();
        assert_eq!((connection, dialled.load(Ordering::Relaxed)), (1, 2));
    });
}

/// The leaf is closed while its session waits for a server that never comes back.
#[test]
fn closing_ends_the_thread_and_wakes_the_session() {
    check(3, || {
        let (reconnector, _) = reconnector(1, u32::MAX);
        let session = {
            let reconnector = reconnector.clone();
            thread::spawn(move || {
                reconnector.want(0);
                while !reconnector.is_closed() {
                    assert_eq!(turn(&reconnector, 0), None);
                    reconnector.slot(0).unwrap().waker().wait();
                }
            })
        };
        reconnector.close();
        session.join().unwrap();
    });
}
