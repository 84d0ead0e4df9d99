//! An eventfd: a counter of the kernel that one thread writes to and another waits for.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};

/// An eventfd, closed on drop.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    /// Creates an eventfd without signals.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new() -> io::Result<EventFd> {
        EventFd::with(0)
    }

    /// As [`EventFd::new`], for a thread that reads it without waiting ([`EventFd::reset`]).
    ///
    /// # Errors
    /// As [`EventFd::new`].
    pub(crate) fn nonblocking() -> io::Result<EventFd> {
        EventFd::with(libc::EFD_NONBLOCK)
    }

    fn with(flags: libc::c_int) -> io::Result<EventFd> {
        // SAFETY: a system call with integers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and no other code knows it.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes the thread that waits, now or when it next waits. Any thread may call this.
    pub(crate) fn signal(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes of a live integer to an own descriptor. It fails only when the
        // counter would overflow, and then the other side is awake anyway.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Forgets the signals so far. Only for an eventfd from [`EventFd::nonblocking`].
    pub(crate) fn reset(&self) {
        let mut count = 0u64;
        // SAFETY: reads eight bytes into a live integer. It fails if there are no signals.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    /// The descriptor, which is readable while there are signals.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// The submission that completes when there are signals. The kernel writes to `count`.
    pub(crate) fn read_into(&self, count: &mut u64) -> squeue::Entry {
        opcode::Read::new(types::Fd(self.0.as_raw_fd()), (&raw mut *count).cast(), 8).build()
    }
}
