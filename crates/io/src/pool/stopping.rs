//! The end of a pool. It has a deadline: an operation of the kernel on a file system that hangs
//! never ends, and nothing can cancel it.
//!
//! Contract: what is not finished by the deadline is given up, and said, with the names of the
//! leaves. Memory that the kernel may still write to is never given back, and the files below stay
//! open and locked until the process has ended. So no other process writes there before the kernel
//! is done.

use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Pool, Reap, Watch};
use crate::device::Device;
use crate::leaf::Leaf;
use crate::pipeline::{Unfinished, merge};
use crate::queue::QueueOrder;
use crate::sys::latch::Latch;
use crate::sys::lock::lock;

/// How long [`Pool::stop`] waits for what is under way, and then for the last flushes. Longer than
/// a server has to answer; both together are shorter than what service managers allow.
pub const STOP_TIME: Duration = Duration::from_secs(40);

/// A queue whose thread takes longer than this to be given up is not asked again: its thread hangs.
const GIVE_UP_TIME: Duration = Duration::from_secs(2);

impl Pool {
    /// Stops: no new requests, those in flight are finished and answered (those that wait at a
    /// closed gate get ESHUTDOWN), every leaf is flushed, the threads end. Disks stay: their
    /// requests wait for the next server.
    ///
    /// It waits for [`STOP_TIME`] at most; see [`Pool::stop_within`].
    pub fn stop(&self) {
        self.stop_within(STOP_TIME);
    }

    /// As [`Pool::stop`], but waits for `time` at most until what is in flight has ended, and as
    /// long for the last flushes. Returns what it did not wait for, a sentence each, which is
    /// logged as well.
    ///
    /// Queues that still have something under way are then given up: their connections end without
    /// answers, and their memory is leaked, because the kernel may still write to it. The kernel
    /// keeps a process with such operations until they end, also one that is killed.
    pub fn stop_within(&self, time: Duration) -> Vec<String> {
        let latch = Latch::new(self.shared.mailboxes.len());
        self.shared.mailboxes.send_all(|_| QueueOrder::Stop { ack: latch.ack() });
        latch.wait_at_most(time);
        let is_done = latch.is_done();
        let (stuck, mut left) = if is_done { Default::default() } else { self.give_up() };
        // Their front ends see the end of the connection after their last answers.
        self.vhost_user.stop();
        let _ = self.reaper.send(Reap::Stop);
        let _ = self.shared.watcher.send(Watch::Stop);
        let threads = std::mem::take(&mut *lock(&self.threads));
        if is_done {
            threads.into_iter().for_each(|thread| drop(thread.join()));
        } else {
            // Not joined: a thread with such an operation ends when the operation does.
            wait_for(&threads, GIVE_UP_TIME);
        }
        left.extend(self.flush_within(time, &stuck));
        if !is_done {
            // The queues that were given up have the registry for good.
            self.shared.registry.forget_devices();
        }
        left.iter().for_each(|sentence| tracing::error!("stopping: {sentence}"));
        left
    }

    /// Has the queues let go of what does not end. Returns the leaves, and sentences about all of
    /// it.
    fn give_up(&self) -> (Vec<Unfinished>, Vec<String>) {
        let found = Arc::new(Mutex::new(Vec::<Vec<Unfinished>>::new()));
        let latch = Latch::new(self.shared.mailboxes.len());
        self.shared
            .mailboxes
            .send_all(|_| QueueOrder::GiveUp { found: found.clone(), ack: latch.ack() });
        latch.wait_at_most(GIVE_UP_TIME);
        // Empty if all have ended meanwhile.
        let queues = std::mem::take(&mut *lock(&found));
        let has_given_up = !queues.is_empty();
        let mut leaves = Vec::new();
        queues.into_iter().flatten().for_each(|one| merge(&mut leaves, one));
        let mut sentences: Vec<String> = leaves.iter().map(sentence).collect();
        if !latch.is_done() {
            sentences.push("a queue's thread does not answer and is not waited for".to_owned());
        } else if sentences.is_empty() && has_given_up {
            sentences.push("connections that do not end are not waited for".to_owned());
        }
        (leaves, sentences)
    }

    /// Flushes every leaf, on a thread of its own that is not waited for if a flush hangs. Devices
    /// whose leaves are stuck come last.
    fn flush_within(&self, time: Duration, stuck: &[Unfinished]) -> Option<String> {
        let mut devices = self.shared.registry.list();
        devices.sort_by_key(|device| {
            let is_stuck = |leaf: &Arc<Leaf>| stuck.iter().any(|one| one.leaf == leaf.name());
            device.live().is_some_and(|table| table.leaves().iter().any(is_stuck))
        });
        let flushing = Arc::new(Mutex::new(String::new()));
        let (done, is_done) = mpsc::channel::<()>();
        let (theirs, current) = (devices.clone(), flushing.clone());
        let thread = std::thread::Builder::new().name("last-flush".into());
        let spawned = thread.spawn(move || {
            flush_all(&theirs, |leaf| leaf.clone_into(&mut lock(&current)));
            drop(done);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for the last flushes: this one waits for them");
            flush_all(&devices, |_| {});
            return None;
        }
        match is_done.recv_timeout(time) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let leaf = lock(&flushing);
                Some(format!("the flush of '{leaf}' is not waited for, nor those after it"))
            }
            _ => None,
        }
    }
}

fn flush_all(devices: &[Arc<Device>], mut begins: impl FnMut(&str)) {
    devices.iter().for_each(|device| device.flush_all(&mut begins));
}

fn sentence(of: &Unfinished) -> String {
    let Unfinished { leaf, operations, oldest } = of;
    let plural = if *operations == 1 { "" } else { "s" };
    format!(
        "'{leaf}' has not answered {operations} operation{plural} ({} s): not waited for",
        oldest.as_secs()
    )
}

fn wait_for(threads: &[JoinHandle<()>], time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until && !threads.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(Duration::from_millis(5));
    }
}
