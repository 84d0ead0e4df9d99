//! The connector and the links it serves, in every order that loom finds:
//! `RUSTFLAGS="--cfg loom" cargo test -p blkswitch-io --release --test loom_reconnector`.
//! Empty without `--cfg loom`.
//!
//! The promises:
//! * A link that asks for a connection gets exactly one.
//! * The link is woken, also when an attempt fails and when the leaf is closed. A missed wake-up
//!   would be a deadlock here.
//! * A thread that waits for all connections gets no error but that of a failed attempt.
//! * The connector's thread ends.
//!
//! The test compiles the connector's source with loom's locks, with a clock that stands still, and
//! with a bell without a kernel. A pause ends only when a thread cuts it short.
#![cfg(loom)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use loom::thread;

#[allow(dead_code, unreachable_pub)]
#[path = "../src/engine/session/reconnector.rs"]
mod reconnector;

use reconnector::Connector;
use sync::Instant;

mod sys {
    pub(crate) use super::sync;
}

/// Stands in for the crate's `sys::sync`, from which the connector imports.
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

/// Stands in for the engine's `links`, from which the connector imports.
mod sessions {
    use std::io;

    use loom::sync::{Condvar, Mutex};

    pub(crate) struct Seat(Bell);

    impl Seat {
        pub(crate) fn new() -> io::Result<Seat> {
            Ok(Seat(Bell { rung: Mutex::new(false), changed: Condvar::new() }))
        }

        pub(crate) fn bell(&self) -> &Bell {
            &self.0
        }
    }

    /// Behaves like an eventfd with one reader: a ring before the wait ends the wait.
    pub(crate) struct Bell {
        rung: Mutex<bool>,
        changed: Condvar,
    }

    impl Bell {
        pub(crate) fn ring(&self) {
            *self.rung.lock().unwrap() = true;
            self.changed.notify_one();
        }

        pub(crate) fn wait(&self) {
            let mut rung = self.rung.lock().unwrap();
            while !*rung {
                rung = self.changed.wait(rung).unwrap();
            }
            *rung = false;
        }
    }
}

/// A connector whose connections are numbers.
type Numbers = Arc<Connector<u32>>;

/// Makes a connector with empty berths, and a server that refuses the first `failing` attempts.
/// Also returns the count of attempts.
fn connector(berths: usize, failing: u32) -> (Numbers, Arc<AtomicU32>) {
    // A plain atomic: the counter orders nothing, so loom need not try its accesses.
    let dialled = Arc::new(AtomicU32::new(0));
    let count = dialled.clone();
    let dial = move |_| match count.fetch_add(1, Ordering::Relaxed) {
        attempt if attempt < failing => Err(io::ErrorKind::ConnectionRefused.into()),
        attempt => Ok(attempt),
    };
    (Connector::new("leaf".into(), berths, Vec::new(), Box::new(dial)).unwrap(), dialled)
}

/// A link's turn without a connection: takes one, or asks for one.
fn turn(connector: &Numbers, berth: usize) -> Option<u32> {
    let connection = connector.take(berth);
    if connection.is_none() {
        connector.want_if_idle(berth);
    }
    connection
}

/// A link that has lost its connection turns until it has another. Its queue may also turn for
/// other reasons than the bell.
fn reconnect(connector: &Numbers, berth: usize) -> u32 {
    connector.want(berth);
    loop {
        if let Some(connection) = turn(connector, berth) {
            return connection;
        }
        connector.seat(berth).unwrap().bell().wait();
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
fn a_link_gets_one_connection() {
    check(4, || {
        let (connector, dialled) = connector(1, 0);
        assert_eq!(reconnect(&connector, 0), 0);
        connector.wait_connected(soon()).unwrap();
        assert_eq!(dialled.load(Ordering::Relaxed), 1, "nobody asked for a second one");
        assert_eq!(connector.take(0), None);
    });
}

/// A link loses its new connection at once and asks again. The connector must not miss this while
/// it finishes the first wish.
#[test]
fn a_link_that_loses_its_connection_at_once_gets_another() {
    check(3, || {
        let (connector, dialled) = connector(1, 0);
        let prober = {
            let connector = connector.clone();
            reconnect(&connector, 0);
            connector.want(0);
            // The pause that follows ends only because this thread waits.
            thread::spawn(move || connector.wait_connected(soon()).unwrap())
        };
        prober.join().unwrap();
        assert_eq!(connector.take(0), Some(1));
        assert_eq!(dialled.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn two_links_get_one_connection_each() {
    check(2, || {
        let (connector, dialled) = connector(2, 0);
        let other = {
            let connector = connector.clone();
            thread::spawn(move || reconnect(&connector, 1))
        };
        let mine = reconnect(&connector, 0);
        assert_eq!(mine + other.join().unwrap(), 1, "one got connection 0, the other connection 1");
        connector.wait_connected(soon()).unwrap();
        assert_eq!(dialled.load(Ordering::Relaxed), 2);
    });
}

/// A thread waits for all connections while a link asks for one.
#[test]
fn waiting_fails_only_with_an_attempt() {
    check(3, || {
        let (connector, _) = connector(1, 0);
        let link = {
            let connector = connector.clone();
            thread::spawn(move || reconnect(&connector, 0))
        };
        connector.wait_connected(soon()).expect("no attempt has failed");
        link.join().unwrap();
    });
}

/// The first attempt fails. The link is woken, the waiting thread gets the error, and its next wait
/// cuts the pause short.
#[test]
fn an_attempt_that_fails_is_told() {
    check(2, || {
        let (connector, dialled) = connector(1, 1);
        connector.want(0);
        let prober = {
            let connector = connector.clone();
            thread::spawn(move || {
                if connector.wait_connected(soon()).is_err() {
                    connector.wait_connected(soon()).expect("only one attempt fails");
                }
            })
        };
        let bell = connector.seat(0).unwrap().bell();
        bell.wait();
        let connection = loop {
            match connector.take(0) {
                Some(connection) => break connection,
                None => assert!(connector.has_failed(0), "the bell was rung for nothing"),
            }
            bell.wait();
        };
        prober.join().unwrap();
        assert_eq!((connection, dialled.load(Ordering::Relaxed)), (1, 2));
    });
}

/// The leaf is closed while its link waits for a server that never comes back.
#[test]
fn closing_ends_the_thread_and_wakes_the_link() {
    check(3, || {
        let (connector, _) = connector(1, u32::MAX);
        let link = {
            let connector = connector.clone();
            thread::spawn(move || {
                connector.want(0);
                while !connector.is_closed() {
                    assert_eq!(turn(&connector, 0), None);
                    connector.seat(0).unwrap().bell().wait();
                }
            })
        };
        connector.close();
        link.join().unwrap();
    });
}
