//! Admission of clients: counts connections of all queues, and keeps descriptors for the
//! administrator.
//!
//! A client costs a descriptor and an input buffer. If clients had all descriptors, the control
//! socket could accept no connection, and no leaf or state file could be opened. So a connection is
//! refused if too many are open, or if its descriptor's number shows that the process is close to
//! its limit.
//!
//! Contract: a connection owns a [`Place`] for its life.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::sys::memory::Memory;

/// Memory of a connection in bytes besides the data of its requests: its input buffer.
pub(super) const INPUT_BYTES: usize = 128 << 10;
/// Divisor of the descriptors: clients never get this part of them, a quarter.
const RESERVE_SHARE: usize = 4;
/// Most descriptors that are reserved.
const RESERVE_MAX: usize = 4096;

/// The admission of clients to one pool.
#[derive(Debug)]
pub struct Admission {
    open: AtomicUsize,
    /// Number of connections that were admitted so far.
    admitted: AtomicU64,
    most: usize,
    /// Clients do not get a descriptor of this number or a higher one.
    first_reserved: usize,
}

/// The place of an admitted connection. Dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    number: u64,
}

impl Place {
    /// The connection's number, which no other connection ever has.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Admission {
    /// For a pool with this budget and the process's current limit of descriptors.
    pub fn new(memory: &Memory) -> Arc<Admission> {
        Self::with_limits(memory.limit(), descriptor_limit())
    }

    fn with_limits(memory: usize, descriptors: usize) -> Arc<Admission> {
        let reserve = (descriptors / RESERVE_SHARE).min(RESERVE_MAX);
        Arc::new(Admission {
            open: AtomicUsize::new(0),
            admitted: AtomicU64::new(0),
            most: (memory / INPUT_BYTES).min(descriptors - reserve),
            first_reserved: descriptors - reserve,
        })
    }

    /// Gives an accepted connection a place. `Err` is the reason why there is none.
    pub(crate) fn admit(self: &Arc<Self>, socket: BorrowedFd<'_>) -> Result<Place, String> {
        let number = socket.as_raw_fd() as usize;
        if number >= self.first_reserved {
            return Err(format!(
                "{number} descriptors are in use, and those from {} on are not for clients",
                self.first_reserved
            ));
        }
        let more = |open: usize| (open < self.most).then_some(open + 1);
        match self.open.fetch_update(Relaxed, Relaxed, more) {
            Ok(_) => {
                let number = self.admitted.fetch_add(1, Relaxed) + 1;
                Ok(Place { admission: self.clone(), number })
            }
            Err(open) => Err(format!("{open} connections are open, as many as are allowed")),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Relaxed);
    }
}

/// Most descriptors that the process may have.
pub fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to a live structure.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX),
        // Cannot happen. Take the smallest usual limit.
        _ => 1024,
    }
}

/// Raises the process's limit of descriptors as far as allowed and returns it.
pub fn raise_descriptor_limit() -> io::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to a live structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads a live structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn clients_get_no_more_than_their_part() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let admission = Admission::with_limits(3 * INPUT_BYTES, 1 << 20);
        let mut places: Vec<_> = (0..3).map(|_| admission.admit(socket.as_fd()).unwrap()).collect();
        let refused = admission.admit(socket.as_fd()).unwrap_err();
        assert!(refused.starts_with("3 connections are open"), "{refused}");
        places.pop();
        places.push(admission.admit(socket.as_fd()).unwrap());
        // As if all descriptors below this one were in use.
        let number = socket.as_raw_fd() as usize;
        let admission = Admission::with_limits(1 << 30, number * 4 / 3);
        let refused = admission.admit(socket.as_fd()).unwrap_err();
        assert!(refused.contains("are not for clients"), "{refused}");
        assert_eq!(Admission::with_limits(1 << 30, 1024).first_reserved, 768);
        assert_eq!(Admission::with_limits(1 << 30, 1024).most, 768);
        assert_eq!(Admission::with_limits(1 << 30, 1 << 30).most, 8192);
    }
}
