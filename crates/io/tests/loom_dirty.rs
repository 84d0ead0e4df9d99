//! The account of unflushed writes (`Dirty`) in every order that loom finds:
//! `RUSTFLAGS="--cfg loom" cargo test -p blkswitch-io --release --test loom_dirty`.
//! Empty without `--cfg loom`.
//!
//! Queues complete writes, count them and answer them, while other queues flush. The promise: if a
//! flush that began after a write's answer succeeds, or finds nothing to flush, the write is
//! synced.
//!
//! The model of the disk has a lock, because the kernel's page cache has one: a flush covers every
//! write that was completed before it began.

#![cfg(loom)]

use blkswitch_io::leaf::Dirty;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

const WRITERS: usize = 2;

#[derive(Default)]
struct Disk {
    landed: [bool; WRITERS],
    stable: [bool; WRITERS],
}

struct World {
    dirty: Dirty,
    disk: Mutex<Disk>,
    answered: [AtomicBool; WRITERS],
}

impl World {
    fn new() -> Arc<World> {
        Arc::new(World {
            dirty: Dirty::new(WRITERS),
            disk: Mutex::default(),
            answered: Default::default(),
        })
    }

    /// A queue completes a write, counts it, and answers it.
    fn write(&self, queue: usize) {
        self.disk.lock().unwrap().landed[queue] = true;
        self.dirty.wrote(queue);
        self.answered[queue].store(true, Ordering::Release);
    }

    /// A client that has got these answers sends a flush, which may fail.
    fn flush(&self, succeeds: bool) {
        let known = [0, 1].map(|queue| self.answered[queue].load(Ordering::Acquire));
        if let Some(covers) = self.dirty.unflushed() {
            if !succeeds {
                return;
            }
            {
                let mut disk = self.disk.lock().unwrap();
                disk.stable = disk.landed;
            }
            self.dirty.flushed(covers);
        }
        let stable = self.disk.lock().unwrap().stable;
        for queue in 0..WRITERS {
            assert!(
                stable[queue] || !known[queue],
                "the flush answered for a write it did not cover"
            );
        }
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn a_flush_answers_only_for_what_is_stable() {
    check(|| {
        let world = World::new();
        let writers: Vec<_> = (0..WRITERS)
            .map(|queue| {
                let world = world.clone();
                thread::spawn(move || world.write(queue))
            })
            .collect();
        let other = {
            let world = world.clone();
            thread::spawn(move || world.flush(true))
        };
        world.flush(true);
        other.join().unwrap();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        world.flush(true);
        assert_eq!(world.dirty.unflushed(), None, "with nothing in flight all is covered");
    });
}

#[test]
fn a_flush_that_fails_covers_nothing() {
    check(|| {
        let world = World::new();
        let writer = {
            let world = world.clone();
            thread::spawn(move || world.write(0))
        };
        let failing = {
            let world = world.clone();
            thread::spawn(move || world.flush(false))
        };
        world.flush(true);
        writer.join().unwrap();
        failing.join().unwrap();
        world.flush(true);
    });
}
