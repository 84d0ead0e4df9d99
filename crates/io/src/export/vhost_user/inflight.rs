//! The area in which the requests under way are noted, for the back end that comes after this one.
//!
//! The front end keeps the area, and hands it to the next back end. So a daemon that is killed
//! loses no request: those that it has taken and not answered are carried out again.
//!
//! Contract: the layout and the order of writes are those of the specification ("Inflight I/O
//! tracking", split virtqueue). One thread uses a ring's part, and checks what it
//! reads there.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, fence};

use super::message::InflightAt;
use super::{config, rings::Rings};
use crate::sys::guarded::Guarded;

/// Bytes before the entries of a ring: features, version, entries, last head, used index.
const HEAD_LEN: u64 = 16;
/// Bytes of an entry: mark, padding, next, counter.
const ENTRY_LEN: u64 = 16;
/// A ring's part begins at a multiple of this.
const ALIGN: u64 = 64;
/// The version of the layout.
const VERSION: u16 = 1;

fn part_len(size: u16) -> u64 {
    (HEAD_LEN + ENTRY_LEN * u64::from(size)).next_multiple_of(ALIGN)
}

/// The area of a device.
pub(super) struct Area {
    mapping: Guarded,
    at: InflightAt,
}

impl Area {
    /// Makes the file of an area, and its place: so many rings of such a size.
    pub(super) fn create(rings: u16, size: u16) -> io::Result<(OwnedFd, InflightAt)> {
        let len = part_len(size) * u64::from(rings);
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: a system call with a literal.
        let fd = unsafe { libc::memfd_create(c"blkswitch-inflight".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and no other code knows it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: system calls on an own descriptor.
        let is_made = unsafe {
            libc::ftruncate(file.as_raw_fd(), len as i64) == 0
                && libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) == 0
        };
        if !is_made {
            return Err(io::Error::last_os_error());
        }
        Ok((file, InflightAt { len, offset: 0, rings, size }))
    }

    /// Maps the area that a front end gives.
    pub(super) fn map(file: &OwnedFd, at: InflightAt) -> io::Result<Area> {
        let needed = part_len(at.size) * u64::from(at.rings);
        if !config::is_ring_size(at.size.into()) || at.rings == 0 || at.len < needed {
            let text = format!("{at:?} is too small for its rings, or they have a wrong size");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mapping = Guarded::map(file.as_fd(), at.offset, needed)?;
        if !mapping.start().addr().get().is_multiple_of(8) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the area is not aligned"));
        }
        Ok(Area { mapping, at })
    }

    /// The part of a ring; `None` if there is none, or if it is for smaller rings.
    pub(super) fn part(self: &Arc<Self>, ring: u16, size: u16) -> Option<Part> {
        if ring >= self.at.rings || size > self.at.size {
            return None;
        }
        let offset = part_len(self.at.size) * u64::from(ring);
        // SAFETY: map() has mapped the parts of all rings.
        let start = unsafe { self.mapping.start().add(offset as usize) };
        Some(Part { area: self.clone(), start, size, counter: 0 })
    }
}

/// The part of one ring.
pub(super) struct Part {
    area: Arc<Area>,
    start: NonNull<u8>,
    size: u16,
    counter: u64,
}

// SAFETY: `start` goes into the area's mapping, which any thread may use.
unsafe impl Send for Part {}

impl Part {
    /// Whether the memory has lost its pages.
    pub(super) fn is_broken(&self) -> bool {
        self.area.mapping.is_broken()
    }

    fn word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: callers pass even offsets within the part, which is mapped and aligned. Another
        // process may write there, as other threads do to an atomic.
        unsafe { self.start.add(at).cast::<AtomicU16>().as_ref() }
    }

    fn mark(&self, head: u16) -> &AtomicU8 {
        // SAFETY: as for word(); callers pass a head that is less than the size.
        unsafe { self.start.add(entry(head)).cast::<AtomicU8>().as_ref() }
    }

    fn order(&self, head: u16) -> &AtomicU64 {
        // SAFETY: as for mark(); the offset is a multiple of 8.
        unsafe { self.start.add(entry(head) + 8).cast::<AtomicU64>().as_ref() }
    }

    fn last_head(&self) -> &AtomicU16 {
        self.word(12)
    }

    fn used_index(&self) -> &AtomicU16 {
        self.word(14)
    }

    /// Begins with a ring. Returns the heads that an earlier back end has taken and not answered,
    /// in the order in which it took them.
    pub(super) fn begin(&mut self, rings: &Rings) -> Vec<u16> {
        let used = rings.used_index();
        if self.word(8).load(Relaxed) != VERSION {
            self.word(8).store(VERSION, Relaxed);
            self.word(10).store(self.size, Relaxed);
            self.used_index().store(used, Relaxed);
        }
        if self.used_index().load(Relaxed) != used {
            // It had shown its last answer, and was about to note that.
            let last = self.last_head().load(Relaxed);
            if last < self.size {
                self.mark(last).store(0, Relaxed);
            }
            fence(AcqRel);
            self.used_index().store(used, Relaxed);
        }
        let mut heads: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.mark(*head).load(Acquire) == 1)
            .map(|head| (self.order(head).load(Relaxed), head))
            .collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(order, _)| order.wrapping_add(1));
        heads.into_iter().map(|(_, head)| head).collect()
    }

    /// Notes that the request of a head was taken.
    #[inline]
    pub(super) fn takes(&mut self, head: u16) {
        self.order(head).store(self.counter, Relaxed);
        self.counter = self.counter.wrapping_add(1);
        fence(AcqRel);
        self.mark(head).store(1, Relaxed);
    }

    /// Notes that the request of a head is about to be shown as answered.
    #[inline]
    pub(super) fn answers(&self, head: u16) {
        self.word(entry(head) + 6).store(self.last_head().load(Relaxed), Relaxed);
        self.last_head().store(head, Relaxed);
    }

    /// Notes that it was shown, and how far answers are shown now.
    #[inline]
    pub(super) fn answered(&self, head: u16, used: u16) {
        fence(AcqRel);
        self.mark(head).store(0, Relaxed);
        fence(AcqRel);
        self.used_index().store(used, Relaxed);
    }
}

fn entry(head: u16) -> usize {
    (HEAD_LEN + ENTRY_LEN * u64::from(head)) as usize
}
