//! Waking a driver from another thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::sys::eventfd::EventFd;

/// Ends a [`Driver::wait`](super::Driver::wait) from any thread: the one under way, or the next.
///
/// It carries nothing: who has requests for a driver puts them where its thread looks (a channel),
/// and then wakes it.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    pub(super) fn new() -> io::Result<Waker> {
        Ok(Waker { event: Arc::new(EventFd::nonblocking()?) })
    }

    /// Has the driver's thread return from its wait. Several calls may end one wait.
    pub fn wake(&self) {
        self.event.signal();
    }

    /// The descriptor that is readable while somebody has woken.
    pub(super) fn fd(&self) -> &OwnedFd {
        self.event.fd()
    }

    /// Nobody has woken from now on.
    pub(super) fn reset(&self) {
        self.event.reset();
    }
}
