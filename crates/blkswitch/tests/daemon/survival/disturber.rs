//! Suspends, resumes and reloads the devices of a host all the time, in parallel to everything else
//! that happens to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blkswitch::workload::Random;

use super::witness::Witness;
use crate::fixture::Daemon;

/// A device to disturb, and its table.
pub(super) struct Disturbed {
    pub(super) name: String,
    pub(super) table: String,
    /// Told when a reload resets the device's regions.
    pub(super) witness: Option<Witness>,
    /// Whether `suspend` without `--noflush` is allowed as well. It fails requests that find no
    /// path.
    pub(super) may_flush: bool,
}

/// A thread that disturbs devices.
pub(super) struct Disturber {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Disturber {
    /// Starts the thread. A suspend waits for the requests under way: if both ways of a device are
    /// gone, until one is back.
    pub(super) fn start(
        host: Arc<Daemon>,
        devices: Vec<Disturbed>,
        mut random: Random,
    ) -> Disturber {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let verb = |words: &[&str]| {
                let run = host.run(words);
                let said = String::from_utf8_lossy(&run.stderr).into_owned();
                assert!(run.status.success() || stopped.load(SeqCst), "{words:?}: {said}");
            };
            let mut times = 0;
            while !stopped.load(SeqCst) {
                thread::sleep(Duration::from_millis(50 + u64::from(random.below(400))));
                let Disturbed { name, table, witness, may_flush } =
                    &devices[random.below(devices.len() as u32) as usize];
                let is_loaded = random.below(2) == 0;
                if is_loaded {
                    verb(&["load", name, "--table", table]);
                }
                if *may_flush && random.below(2) == 0 {
                    verb(&["suspend", name]);
                } else {
                    verb(&["suspend", "--noflush", name]);
                }
                match witness {
                    Some(witness) if is_loaded => witness.returning(|| verb(&["resume", name])),
                    _ => verb(&["resume", name]),
                }
                times += 1;
            }
            times
        });
        Disturber { stop, thread }
    }

    /// Stops the thread. It ends because the ways have been mended. Returns how often it has
    /// disturbed a device.
    pub(super) fn end(self) -> u32 {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("a device could not be suspended, reloaded or resumed")
    }

    /// Returns whether an operation has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }
}
