//! Probes: each asks a path one question and waits a limited time for the answer.
//!
//! Most leaves enforce a time limit themselves. The kernel does not: a read from a disk that hangs
//! ends when the disk does. So each probe has a thread of its own. When the time is over, the
//! daemon leaves that thread alone with its leaf. Until the thread comes back, the leaf counts as
//! silent, and the daemon starts no other thread for it.
//!
//! Contract: at most [`AT_A_TIME`] probes are waited for at a time, each for at most [`TIME`] and
//! [`LATER`]. So leaves that hang delay the probes of other leaves by a bounded time only. At most
//! one thread per path hangs, and it holds nothing but its leaf.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use blkswitch_io::Leaf;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// Time limit for the answer of a path.
const TIME: Duration = Duration::from_secs(10);
/// Grace beyond [`TIME`]. A leaf that enforces the limit itself answers shortly after it; that
/// probe does not hang.
const LATER: Duration = Duration::from_secs(1);
/// Most probes at a time; each needs a thread. A host has a few hundred paths at most, and most
/// answer at once.
const AT_A_TIME: usize = 64;

/// Runs probes, and remembers the leaves whose probe hangs.
pub(super) struct Probes {
    places: Semaphore,
    /// Leaves whose probe hangs.
    hanging: Mutex<Vec<Arc<Leaf>>>,
}

impl Probes {
    pub(super) fn new() -> Arc<Probes> {
        Arc::new(Probes { places: Semaphore::new(AT_A_TIME), hanging: Mutex::default() })
    }

    /// Asks a leaf; `ask` gets the time limit. Returns `None` if `ask` panics or no thread can be
    /// started: neither says anything about the leaf.
    pub(super) async fn probe(
        self: &Arc<Self>,
        leaf: &Arc<Leaf>,
        ask: impl FnOnce(&Leaf, Duration) -> io::Result<()> + Send + 'static,
    ) -> Option<io::Result<()>> {
        if self.hangs(leaf) {
            return Some(Err(io::ErrorKind::TimedOut.into()));
        }
        let _place = self.places.acquire().await;
        let (answer, mut answered) = oneshot::channel();
        let asked = leaf.clone();
        let started = thread::Builder::new().name("probe".into()).spawn(move || {
            // The receiver is gone if the caller has given up.
            let _ = answer.send(ask(&asked, TIME));
        });
        if let Err(error) = started {
            tracing::error!(path = leaf.name(), %error, "no thread for a probe");
            return None;
        }
        match timeout(TIME + LATER, &mut answered).await {
            Ok(answer) => answer.ok(),
            Err(_) => {
                tracing::warn!(
                    path = leaf.name(),
                    "a probe hangs: the path counts as silent until it is over"
                );
                self.lock().push(leaf.clone());
                let (probes, leaf) = (self.clone(), leaf.clone());
                tokio::spawn(async move {
                    // Even if the thread panicked: the next probe asks again.
                    let _ = answered.await;
                    probes.lock().retain(|hanging| !Arc::ptr_eq(hanging, &leaf));
                });
                Some(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    fn hangs(&self, leaf: &Arc<Leaf>) -> bool {
        self.lock().iter().any(|hanging| Arc::ptr_eq(hanging, leaf))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Leaf>>> {
        self.hanging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use blkswitch_io::{LeafOptions, Queues};

    use super::*;

    fn leaf() -> Arc<Leaf> {
        let options = LeafOptions::new(Queues::of_pipelines(1));
        Leaf::open(&"null:1M".parse().unwrap(), &options).unwrap()
    }

    /// One leaf more than there are places hangs forever.
    #[tokio::test(start_paused = true)]
    async fn leaves_that_hang_count_as_silent_and_keep_nobody_from_being_probed() {
        let probes = Probes::new();
        let hanging: Vec<_> = (0..AT_A_TIME + 1).map(|_| leaf()).collect();
        let mut releases = Vec::new();
        // The paused clock advances only while the test waits.
        for leaf in &hanging {
            let (release, released) = mpsc::channel::<()>();
            releases.push(release);
            let answer =
                probes.probe(leaf, move |_, _| released.recv().map_err(io::Error::other)).await;
            assert_eq!(answer.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        assert_eq!(probes.places.available_permits(), AT_A_TIME);
        // The second time they are known to hang, and no further thread is started.
        for leaf in &hanging {
            let answer = probes.probe(leaf, |_, _| panic!("a second thread")).await;
            assert_eq!(answer.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        tokio::time::resume();
        assert!(probes.probe(&leaf(), |_, _| Ok(())).await.unwrap().is_ok());
        assert!(probes.probe(&leaf(), |_, _| panic!("as a probe may")).await.is_none());
        // After one comes back, it is asked again.
        releases.pop();
        let back = hanging.last().unwrap();
        while probes.hangs(back) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(probes.probe(back, |_, _| Ok(())).await.unwrap().is_ok());
        assert!(hanging[..AT_A_TIME].iter().all(|leaf| probes.hangs(leaf)));
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_for_a_place_are_asked_when_the_time_of_others_is_over() {
        let probes = Probes::new();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let asked: Vec<_> = (0..3 * AT_A_TIME)
            .map(|_| {
                let (probes, released) = (probes.clone(), released.clone());
                tokio::spawn(async move {
                    let hang = move |_: &Leaf, _| {
                        let _ = released.lock().map(|released| released.recv());
                        Ok(())
                    };
                    probes.probe(&leaf(), hang).await.unwrap()
                })
            })
            .collect();
        let start = tokio::time::Instant::now();
        for asked in asked {
            assert!(asked.await.unwrap().is_err());
        }
        assert_eq!(start.elapsed().as_secs(), 3 * (TIME + LATER).as_secs());
        drop(release);
    }
}
