//! Waking a driver from another thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// Ends a [`Driver::wait`](super::Driver::wait) from any thread: the one under way, or the next.
///
/// It carries nothing: who has requests for a driver puts them where its thread looks (a channel),
/// and then wakes it.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    pub(super) fn new() -> io::Result<Waker> {
        // SAFETY: eventfd makes a descriptor that nobody else owns.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Waker { event: Arc::new(event) })
    }

    /// Has the driver's thread return from its wait. Several calls may end one wait.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of a live integer to our own descriptor. It fails only by overflow,
        // when the driver is to wake anyway.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// The descriptor that is readable while somebody has woken.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.event
    }

    /// Nobody has woken from now on.
    pub(super) fn reset(&self) {
        let mut count = 0u64;
        // SAFETY: reads eight bytes into a live integer. It fails if nobody has woken.
        unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}
