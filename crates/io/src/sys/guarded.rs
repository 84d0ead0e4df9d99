//! Memory that another process shares with this one, and may take away.
//!
//! A file that shrinks takes its pages out of every mapping. An access of this process would then
//! end it with SIGBUS, and an export serves many clients. So a handler of that signal puts zeroes
//! in place of a mapping that has lost its pages: the access goes on, and its owner learns that the
//! mapping is broken ([`Guarded::is_broken`]). System calls on such memory fail with EFAULT and
//! need no handler. Seals (`F_SEAL_SHRINK`) would prevent all that, but not every front end sets
//! them.
//!
//! Contract: what is in the memory may change at any time. Code reads it once, by copies or
//! atomics, and never makes a Rust reference to it. The handler is installed with the first mapping
//! and stays. It handles addresses of such mappings only, and leaves others to the handler before
//! it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};
use std::sync::{Mutex, OnceLock};

use super::lock::lock;

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
const PAGE: usize = 4096;

/// A mapping as the handler sees it. Places are reused, and never freed.
struct Place {
    start: AtomicUsize,
    /// One past the last byte; 0 for a place without a mapping.
    end: AtomicUsize,
    is_broken: AtomicBool,
    next: *const Place,
}

// SAFETY: `next` is written before the place is shared, and points to a place that is never freed.
unsafe impl Sync for Place {}
// SAFETY: as above.
unsafe impl Send for Place {}

/// All places, the newest first.
static PLACES: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());
/// Places without a mapping. Held while one is taken or given back.
static FREE: Mutex<Vec<&'static Place>> = Mutex::new(Vec::new());
/// The handler that was there before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A shared mapping of a file of another process, unmapped on drop.
pub(crate) struct Guarded {
    start: NonNull<u8>,
    len: usize,
    /// Where the caller's bytes begin.
    first: usize,
    place: &'static Place,
}

// SAFETY: a Guarded is the only owner of its address range. Any thread may use and unmap it.
unsafe impl Send for Guarded {}
// SAFETY: as above; the memory is shared with other processes in any case (the contract).
unsafe impl Sync for Guarded {}

impl Guarded {
    /// Maps `len` bytes of `file` from `offset` on, for reading and writing.
    ///
    /// # Errors
    /// The file is shorter, or the kernel refuses the mapping.
    pub(crate) fn map(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Guarded> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let end = offset.checked_add(len).ok_or_else(|| invalid("the range has no end"))?;
        if len == 0 || end > size(file)? {
            return Err(invalid("the file is shorter than the range"));
        }
        let page = page_size(file)? as u64;
        let from = offset / page * page;
        let bytes = (end - from).next_multiple_of(page);
        let too_long = |_| invalid("the range is too long");
        let (bytes, first) = (usize::try_from(bytes).map_err(too_long)?, (offset - from) as usize);
        let at = i64::try_from(from).map_err(too_long)?;
        install()?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), at) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start_at) if start != libc::MAP_FAILED => {
                let place = take_place(start_at.as_ptr().addr(), bytes);
                Ok(Guarded { start: start_at, len: bytes, first, place })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The address of the first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        // SAFETY: `first` is less than `len`.
        unsafe { self.start.add(self.first) }
    }

    /// Whether the memory has lost its pages: it holds zeroes, and nobody else sees what is written
    /// there.
    pub(crate) fn is_broken(&self) -> bool {
        self.place.is_broken.load(Relaxed)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // In this order: the handler must not touch an address range that is not ours any more.
        self.place.end.store(0, Release);
        // SAFETY: mapped in map() with this length, and nothing uses it after its owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        lock(&FREE).push(self.place);
    }
}

fn size(file: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: all zeroes are a valid value of this structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a system call on a borrowed descriptor; it writes to a live structure.
    match unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) } {
        0 => Ok(stat.st_size.max(0) as u64),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Size of the file's pages: offsets and lengths of its mappings are multiples of it.
fn page_size(file: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: all zeroes are a valid value of this structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a system call on a borrowed descriptor; it writes to a live structure.
    match unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } {
        0 if stat.f_type == HUGETLBFS_MAGIC => Ok((stat.f_bsize as usize).max(PAGE)),
        0 => Ok(PAGE),
        _ => Err(io::Error::last_os_error()),
    }
}

fn take_place(start: usize, len: usize) -> &'static Place {
    let mut free = lock(&FREE);
    let place = free.pop().unwrap_or_else(|| {
        let next = PLACES.load(Acquire).cast_const();
        let place = Box::leak(Box::new(Place {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            is_broken: AtomicBool::new(false),
            next,
        }));
        PLACES.store(ptr::from_mut(place), Release);
        place
    });
    place.is_broken.store(false, Relaxed);
    place.start.store(start, Relaxed);
    place.end.store(start + len, Release);
    place
}

fn install() -> io::Result<()> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _installing = lock(&INSTALLING);
    if BEFORE.get().is_some() {
        return Ok(());
    }
    // SAFETY: all zeroes are a valid value of these structures.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = lost_page;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // Read before the handler can run. SAFETY: a system call that fills a live structure.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let _ = BEFORE.set(before);
    // SAFETY: the handler is async-signal-safe: it loads atomics and makes system calls.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The handler of SIGBUS.
extern "C" fn lost_page(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid structure with the address of the access.
    let address = unsafe { (*info).si_addr() }.addr();
    if !put_zeroes(address) {
        // Not ours. The access is repeated after the return, and the handler before gets it.
        if let Some(before) = BEFORE.get() {
            // SAFETY: a system call with a structure that the kernel has filled.
            unsafe { libc::sigaction(libc::SIGBUS, before, ptr::null_mut()) };
        }
    }
}

/// Puts zeroes in place of the mapping at `address`. False if there is none, or no memory.
fn put_zeroes(address: usize) -> bool {
    let mut at = PLACES.load(Acquire).cast_const();
    // SAFETY: places are never freed.
    while let Some(place) = unsafe { at.as_ref() } {
        let (end, start) = (place.end.load(Acquire), place.start.load(Relaxed));
        if (start..end).contains(&address) {
            place.is_broken.store(true, Relaxed);
            let flags =
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let to = ptr::with_exposed_provenance_mut(start);
            // SAFETY: the whole of a mapping that this module owns, whose users expect its content
            // to change. The thread that has faulted uses it now, so it is not being unmapped.
            let put = unsafe { libc::mmap(to, end - start, protection, flags, -1, 0) };
            return put != libc::MAP_FAILED;
        }
        at = place.next;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file
    }

    fn read(of: &Guarded, at: usize) -> u8 {
        // SAFETY: within the mapping.
        unsafe { of.start().add(at).read_volatile() }
    }

    #[test]
    fn a_file_that_shrinks_leaves_zeroes_and_a_mark() {
        let (shrinks, stays) = (file(3 << 12), file(1 << 12));
        shrinks.write_all_at(&[7; 3 << 12], 0).unwrap();
        stays.write_all_at(&[9; 1 << 12], 0).unwrap();
        let guarded = Guarded::map(shrinks.as_fd(), 4096 + 16, 8192 - 16).unwrap();
        let other = Guarded::map(stays.as_fd(), 0, 4096).unwrap();
        assert_eq!((read(&guarded, 8175), guarded.is_broken()), (7, false));
        shrinks.set_len(1 << 12).unwrap();
        assert_eq!((read(&guarded, 8175), guarded.is_broken()), (0, true));
        // SAFETY: within the mapping.
        unsafe { guarded.start().write_volatile(1) };
        assert_eq!((read(&guarded, 0), read(&guarded, 1)), (1, 0));
        assert_eq!((read(&other, 0), other.is_broken()), (9, false));
        drop(guarded);
        // The place is used again, and is not broken.
        let again = Guarded::map(stays.as_fd(), 1, 1).unwrap();
        assert_eq!((read(&again, 0), again.is_broken()), (9, false));
    }

    #[test]
    fn a_range_that_the_file_has_not_is_refused() {
        let file = file(4096);
        for (offset, len) in [(0, 4097), (4096, 1), (0, 0), (u64::MAX, 2), (1, u64::MAX)] {
            assert!(Guarded::map(file.as_fd(), offset, len).is_err(), "{offset} {len}");
        }
    }
}
