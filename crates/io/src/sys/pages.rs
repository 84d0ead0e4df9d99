//! Request data in pages of the kernel. The maker of the request owns the pages and lends them.
//!
//! A leaf that supports pages (`Engine::takes_pages`) moves the bytes between its medium and the
//! pages without a copy: the pages are in a slot of the ring's table of buffers. For other leaves,
//! the bytes are copied with [`Pages::fetch`] and [`Pages::store`], through the memory that the
//! request also has. The pipeline decides between the two for each part when it submits it. So a
//! request may meet any table, and several leaves in turn.
//!
//! Contract: valid from the request's start until its answer, on the queue that started it. The
//! parts of a request have disjoint ranges of its memory. The offset of a range in the memory is
//! also its offset in the pages.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use crate::sys::span::Span;

/// The pages of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// The start of the request's memory, to and from which bytes can be copied.
    pub memory: NonNull<u8>,
    /// A file for copies: reads return the bytes of a write, and writes take the bytes of a read.
    pub file: RawFd,
    /// The offset of the bytes in `file`.
    pub at: u64,
    /// The slot in the ring's table of buffers; `None` if the pages have none.
    pub slot: Option<u16>,
}

impl Pages {
    /// The offset of `data` within the request's memory.
    pub(crate) fn offset(&self, data: Span) -> u64 {
        (data.0.addr() - self.memory.addr().get()) as u64
    }

    /// Copies the bytes of a write to memory. `Err` is a negative errno.
    ///
    /// # Safety
    /// `data` is a piece of the request's memory, `len` bytes long.
    pub(crate) unsafe fn fetch(&self, data: Span, len: u64) -> Result<(), i64> {
        // SAFETY: the caller's promise; at most `len` bytes are written to it.
        unsafe { self.copy(libc::SYS_pread64, data, len) }
    }

    /// Copies the bytes of a read from memory. `Err` is a negative errno.
    ///
    /// # Safety
    /// As for [`Pages::fetch`].
    pub(crate) unsafe fn store(&self, data: Span, len: u64) -> Result<(), i64> {
        // SAFETY: the caller's promise; the memory is only read.
        unsafe { self.copy(libc::SYS_pwrite64, data, len) }
    }

    /// # Safety
    /// `data` may be read or written as `call` does, for `len` bytes.
    unsafe fn copy(&self, call: libc::c_long, data: Span, len: u64) -> Result<(), i64> {
        let mut done = 0;
        while done < len {
            let at = (self.at + self.offset(data) + done) as i64;
            // SAFETY: a system call on a descriptor that is open while the request lives, on memory
            // as promised.
            let moved = unsafe { libc::syscall(call, self.file, data.at(done).0, len - done, at) };
            match moved {
                1.. => done += moved as u64,
                0 => return Err(-i64::from(libc::EIO)),
                _ => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    errno => return Err(-i64::from(errno.unwrap_or(libc::EIO))),
                },
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_piece_of_the_memory_is_that_piece_of_the_pages() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"________0123456789", 0).unwrap();
        let mut memory = [0u8; 10];
        let start = NonNull::new(memory.as_mut_ptr()).unwrap();
        let pages = Pages { memory: start, file: file.as_raw_fd(), at: 8, slot: None };
        let span = Span(start.as_ptr());
        // SAFETY: pieces of `memory`.
        unsafe {
            pages.fetch(span.at(3), 4).unwrap();
            assert_eq!(&memory, b"\0\0\x003456\0\0\0");
            assert_eq!(pages.fetch(span.at(8), 3), Err(-i64::from(libc::EIO)), "beyond the end");
            memory.copy_from_slice(b"abcdefghij");
            pages.store(span.at(5), 2).unwrap();
        }
        let mut bytes = [0; 18];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"________01234fg789");
    }
}
