//! The memory engine: a leaf in anonymous memory of this process, lazily zeroed.
//!
//! Overlapping requests on two queues at once may interleave, as on any disk: each byte is from one
//! of them. Operations complete at once, and there is no volatile cache.

use std::io;
use std::ptr::NonNull;

use super::{COPY_STEP, FREE_STEP, LeafIo, LeafOp, Submitted};

/// See the module's text.
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
    /// Memory of `bytes` zeroes.
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
        // It may be larger than the machine's memory.
        // SAFETY: mapped just now.
        unsafe { crate::process::unlock(memory, size) };
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
        // and is no part of the mapping. Two queues may copy over the same bytes at once. No
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

    /// Zeroes a range by giving whole pages back to the system.
    ///
    /// # Safety
    /// The range lies in the mapping.
    unsafe fn drop_pages(&self, offset: usize, len: usize) {
        const PAGE: usize = 4096;
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

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        // SAFETY: mapped in new() with this size, and no code uses it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}
