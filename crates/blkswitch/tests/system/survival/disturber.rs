//! Suspends, resumes and reloads the devices of a host all the time, beside whatever else happens
//! to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blkswitch::load::Random;

use super::witness::Witness;
use crate::fixture::Daemon;

/// A device and the table that it has.
pub(super) struct Disturbed {
    pub(super) name: String,
    pub(super) table: String,
    /// Who is told when the device begins anew with its table.
    pub(super) witness: Option<Witness>,
    /// Whether `suspend` without `--noflush` is possible too: that fails what finds no path.
    pub(super) may_flush: bool,
}

/// See the module's text.
pub(super) struct Disturber {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Disturber {
    /// Starts. It is a thread, because a suspend waits for the requests under way: with both ways
    /// of a device gone, until one is back.
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

    /// No more of it. The ways are mended, so it ends. Returns how often it has disturbed.
    pub(super) fn end(self) -> u32 {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("a device could not be suspended, reloaded or resumed")
    }

    /// Whether something could not be done.
    pub(super) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }
}
