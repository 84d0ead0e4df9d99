//! The memory engine: a leaf in anonymous memory of this process. Its bytes are zero at first.
//!
//! If requests on two queues overlap, each byte comes from one of them, as on any disk. Operations
//! complete at once, and the engine has no volatile cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::{LeafIo, LeafOp, Submitted};
use crate::engine::io::{COPY_STEP, FREE_STEP};
use crate::engine::io::{HOLE, ZERO};

const PAGE: usize = 4096;
/// Number of pages whose state is read at once.
const LOOK: usize = 4096;
/// The bits of a page in `/proc/PID/pagemap` that say that it is in memory or swapped out. A page
/// with neither was never written, or was returned to the system.
const IN_USE: u64 = 0b11 << 62;

/// A leaf in anonymous memory.
pub struct MemoryEngine {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is shared like a disk: all accesses are byte copies without references into it
// (see `submit`).
unsafe impl Send for MemoryEngine {}
// SAFETY: as above.
unsafe impl Sync for MemoryEngine {}

impl MemoryEngine {
    /// Maps `bytes` zeroes. `Err` if there is not enough address space.
    pub fn new(bytes: u64) -> io::Result<MemoryEngine> {
        let size =
            usize::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a fresh private anonymous mapping touches no other memory.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Not locked with mlockall(), because a leaf may be larger than the machine's memory.
        // SAFETY: mapped just now.
        unsafe { crate::sys::process::unlock(memory, size) };
        let memory = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(MemoryEngine { memory, bytes: size })
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    pub(super) unsafe fn submit(&self, io: &LeafIo) -> Submitted {
        let step = match io.op {
            LeafOp::Discard | LeafOp::Zero { no_hole: false } => FREE_STEP,
            _ => COPY_STEP,
        };
        let (offset, len) = (io.offset as usize, io.len.min(step) as usize);
        if offset.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Submitted::Done(-i64::from(libc::EIO));
        }
        // SAFETY: offset + len lie in the mapping (checked above); `data` is lent for `len` bytes
        // and lies outside of the mapping. Two queues may copy over the same bytes at once. No
        // reference is made, and each byte is from one of the two, as on a disk.
        unsafe {
            let at = self.memory.as_ptr().add(offset);
            match io.op {
                LeafOp::Read => std::ptr::copy_nonoverlapping(at, io.data.0, len),
                LeafOp::Write => std::ptr::copy_nonoverlapping(io.data.0, at, len),
                LeafOp::Flush => return Submitted::Done(0),
                LeafOp::Discard | LeafOp::Zero { no_hole: false } => self.drop_pages(offset, len),
                LeafOp::Zero { no_hole: true } => at.write_bytes(0, len),
            }
        }
        Submitted::Done(len as i64)
    }

    /// The number of bytes from `offset` on, 1 to `len`, that are in one state, and whether they
    /// take no memory.
    pub(super) fn allocation(&self, offset: u64, len: u64) -> (u64, u32) {
        let first = offset / PAGE as u64;
        let pages = (offset + len).div_ceil(PAGE as u64) - first;
        // Eight bytes for each page. If the state is unknown, the range counts as data.
        let mut states = vec![0; pages.min(LOOK as u64) as usize * 8];
        let at = (self.memory.as_ptr() as u64 / PAGE as u64 + first) * 8;
        let read = pagemap().map(|pagemap| pagemap.read_exact_at(&mut states, at));
        let Some(Ok(())) = read else { return (len, 0) };
        let mut states = states.as_chunks::<8>().0.iter();
        let mut in_use = || states.next().map(|state| u64::from_ne_bytes(*state) & IN_USE != 0);
        let Some(kind) = in_use() else { return (len, 0) };
        let mut alike = 1;
        while in_use() == Some(kind) {
            alike += 1;
        }
        let end = (first + alike) * PAGE as u64;
        (end.min(offset + len) - offset, if kind { 0 } else { HOLE | ZERO })
    }

    /// Zeroes a range by returning whole pages to the system.
    ///
    /// # Safety
    /// The range lies in the mapping.
    unsafe fn drop_pages(&self, offset: usize, len: usize) {
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(PAGE), end / PAGE * PAGE);
        // SAFETY: all ranges below lie within offset..end, which the caller guarantees.
        unsafe {
            let at = self.memory.as_ptr();
            if first >= last {
                at.add(offset).write_bytes(0, len);
                return;
            }
            at.add(offset).write_bytes(0, first - offset);
            at.add(last).write_bytes(0, end - last);
            if libc::madvise(at.add(first).cast(), last - first, libc::MADV_DONTNEED) != 0 {
                at.add(first).write_bytes(0, last - first);
            }
        }
    }
}

/// The state of this process's pages. `None` without `/proc`.
fn pagemap() -> Option<&'static File> {
    static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
    PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok()).as_ref()
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        // SAFETY: mapped in new() with this size, and no code uses it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Span;

    fn submit(engine: &MemoryEngine, op: LeafOp, offset: u64, data: &mut [u8]) {
        let io = LeafIo {
            op,
            offset,
            len: data.len() as u64,
            data: Span(data.as_mut_ptr()),
            fua: false,
            fast: false,
            pages: None,
            part: 0,
            queue: 0,
        };
        // SAFETY: the data outlives the operation, which is done at once.
        assert!(matches!(unsafe { engine.submit(&io) }, Submitted::Done(_)));
    }

    #[test]
    fn pages_that_were_never_written_or_were_given_back_are_holes() {
        let engine = MemoryEngine::new(64 << 20).unwrap();
        submit(&engine, LeafOp::Write, 8192, &mut [1; 8192]);
        let mut at = 0;
        let mut runs = Vec::new();
        while at < 1 << 20 {
            let (len, status) = engine.allocation(at, (1 << 20) - at);
            assert!((1..=(1 << 20) - at).contains(&len));
            runs.push((len, status));
            at += len;
        }
        assert_eq!(runs, [(8192, 3), (8192, 0), ((1 << 20) - 16384, 3)]);
        assert_eq!(engine.allocation(8704, 512), (512, 0));
        assert_eq!(engine.allocation(0, 64 << 20).0, 8192);
        assert_eq!(engine.allocation(16384, (64 << 20) - 16384).0, (LOOK * PAGE) as u64);
        submit(&engine, LeafOp::Discard, 8192, &mut [0; 8192]);
        assert_eq!(engine.allocation(8192, 4096), (4096, 3));
    }
}
