//! The log of the guest's pages that were written to, for a migration to another machine.
//!
//! Contract: a page is marked after it was written, and before the driver sees the answer. The bits
//! are shared with the front end, which takes them away while we set others.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::SeqCst;

use crate::sys::guarded::Guarded;

/// Bytes of the guest's memory for a bit of the log (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;

/// See the module's text.
pub(super) struct Log {
    mapping: Guarded,
    len: u64,
}

impl Log {
    /// Maps the log of a front end.
    pub(super) fn map(file: &OwnedFd, offset: u64, len: u64) -> io::Result<Log> {
        Ok(Log { mapping: Guarded::map(file.as_fd(), offset, len)?, len })
    }

    /// Marks the pages of a range. Pages beyond the log are left out.
    pub(super) fn mark(&self, guest: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|len| guest.checked_add(len)) else { return };
        for page in guest / PAGE..=last / PAGE {
            if page / 8 >= self.len {
                return;
            }
            // SAFETY: `page / 8` is less than the length of the mapping.
            let byte = unsafe {
                self.mapping.start().add((page / 8) as usize).cast::<AtomicU8>().as_ref()
            };
            // Also if the bit is set: a look at it could come before our writes to the page.
            byte.fetch_or(1 << (page % 8), SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_range_marks_its_pages_and_no_others() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4).unwrap();
        let log = Log::map(&file.try_clone().unwrap().into(), 0, 4).unwrap();
        for (guest, len) in
            [(4096, 1), (5 * 4096 - 1, 2), (10 * 4096, 3 * 4096), (1 << 40, 1), (0, 0)]
        {
            log.mark(guest, len);
        }
        log.mark(31 * 4096, u64::MAX / 2);
        log.mark(u64::MAX, 2);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 1 << 1 | 3 << 4 | 7 << 10 | 1 << 31);
    }
}
