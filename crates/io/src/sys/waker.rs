//! Waking a thread that waits for answers, from another thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::eventfd::EventFd;

/// Ends a [`Driver::wait`](crate::driver::Driver::wait) or
/// [`Client::wait`](crate::client::Client::wait) from any thread: the one under way, or the next.
///
/// It carries no data. A thread that has work for the waiting one puts it where that thread looks
/// (a channel), and then wakes it.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Waker> {
        Ok(Waker { event: Arc::new(EventFd::nonblocking()?) })
    }

    /// Makes the wait return. Several calls may end one wait.
    pub fn wake(&self) {
        self.event.signal();
    }

    /// The descriptor that is readable after a [`Waker::wake`].
    pub(crate) fn fd(&self) -> &OwnedFd {
        self.event.fd()
    }

    /// Forgets the calls of [`Waker::wake`] so far.
    pub(crate) fn reset(&self) {
        self.event.reset();
    }
}
