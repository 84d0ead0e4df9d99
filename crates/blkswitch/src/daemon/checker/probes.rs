//! Probes: one question to a path, and not too long a wait for the answer.
//!
//! Most leaves keep to a time limit themselves. The kernel does not: a read of a disk that hangs
//! ends when the disk does. So a probe has a thread of its own, which is left alone with its leaf
//! when the time is over. Until it comes back the leaf counts as silent, and no other thread is
//! sent after it.
//!
//! Contract: at most [`AT_A_TIME`] are waited for at a time, each at most [`TIME`]; so leaves that
//! hang keep nobody else from being probed for longer. At most one thread per path hangs, and it
//! holds nothing but its leaf.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use blkswitch_io::Leaf;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// How long a path may take to answer.
const TIME: Duration = Duration::from_secs(10);
/// A leaf that keeps to its time answers a little after it: that is no probe that hangs.
const LATER: Duration = Duration::from_secs(1);
/// Each has a thread. A host has a few hundred paths at most, and most answer at once.
const AT_A_TIME: usize = 64;

/// See the module's text.
pub(super) struct Probes {
    places: Semaphore,
    /// Leaves whose probe hangs.
    hanging: Mutex<Vec<Arc<Leaf>>>,
}

impl Probes {
    /// None is under way.
    pub(super) fn new() -> Arc<Probes> {
        Arc::new(Probes { places: Semaphore::new(AT_A_TIME), hanging: Mutex::default() })
    }

    /// Asks a leaf; `ask` is told how long it may take. Nothing if that panics, which says nothing
    /// about the leaf.
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
            // Who asked may have given up.
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
                    // However it ends: the next probe asks anew.
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

    /// More leaves hang than there are places, for ever.
    #[tokio::test(start_paused = true)]
    async fn leaves_that_hang_count_as_silent_and_keep_nobody_from_being_probed() {
        let probes = Probes::new();
        let hanging: Vec<_> = (0..AT_A_TIME + 1).map(|_| leaf()).collect();
        let mut releases = Vec::new();
        // The clock stands still, so it is only ahead by what was waited for.
        for leaf in &hanging {
            let (release, released) = mpsc::channel::<()>();
            releases.push(release);
            let answer =
                probes.probe(leaf, move |_, _| released.recv().map_err(io::Error::other)).await;
            assert_eq!(answer.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        assert_eq!(probes.places.available_permits(), AT_A_TIME);
        // Asked again they are known to hang, without a further thread.
        for leaf in &hanging {
            let answer = probes.probe(leaf, |_, _| panic!("a second thread")).await;
            assert_eq!(answer.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        tokio::time::resume();
        assert!(probes.probe(&leaf(), |_, _| Ok(())).await.unwrap().is_ok());
        assert!(probes.probe(&leaf(), |_, _| panic!("as a probe may")).await.is_none());
        // One comes back, and is asked anew.
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
