//! The bell of a front end's thread: what queues and control tell it.
//!
//! Contract: any thread rings; the front end's thread reads. A broken ring is told once.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use crate::sys::eventfd::EventFd;
use crate::sys::lock::lock;

/// See the module's text.
pub(super) struct Trouble {
    bell: EventFd,
    is_stopping: AtomicBool,
    has_changed: AtomicBool,
    /// Why a ring is broken.
    broken: Mutex<Option<&'static str>>,
}

impl Trouble {
    pub(super) fn new() -> std::io::Result<Trouble> {
        Ok(Trouble {
            bell: EventFd::nonblocking()?,
            is_stopping: AtomicBool::new(false),
            has_changed: AtomicBool::new(false),
            broken: Mutex::default(),
        })
    }

    /// A queue has found a ring of the front end broken.
    pub(super) fn broken(&self, why: &'static str) {
        lock(&self.broken).get_or_insert(why);
        self.bell.signal();
    }

    /// Why a ring is broken, once.
    pub(super) fn take_broken(&self) -> Option<&'static str> {
        lock(&self.broken).take()
    }

    /// The thread is to end.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Release);
        self.bell.signal();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Acquire)
    }

    /// The device may have another size.
    pub(super) fn changed(&self) {
        self.has_changed.store(true, Release);
        self.bell.signal();
    }

    /// Whether the device may have another size, once.
    pub(super) fn take_changed(&self) -> bool {
        self.has_changed.swap(false, Acquire)
    }

    /// Readable when somebody has rung.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.fd().as_fd()
    }

    /// Forgets that somebody has rung.
    pub(super) fn reset(&self) {
        self.bell.reset();
    }
}
