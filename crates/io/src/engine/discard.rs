//! Discards of block devices. Linux 6.12 and later have an io_uring command for them. Otherwise a
//! thread of the leaf uses the ioctl.
//!
//! `fallocate` with `FALLOC_FL_PUNCH_HOLE` is not used, because the kernel makes it a write of
//! zeroes on a block device. That would leave every block of a thin disk allocated.
//!
//! A device that is open through the page cache always gets the ioctl. The ioctl removes the pages
//! from the cache. The command fails with `EBUSY` if a page is written meanwhile.
//!
//! Contract: a discard is answered only after the device has completed it. Otherwise the discard
//! could destroy a later write.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::custom::{Custom, CustomEngine, CustomOp};
use super::{LeafIo, Submitted};
use crate::engine::session::turn::Turn;
use crate::sys::helper::{Helper, Work};

/// `BLOCK_URING_CMD_DISCARD`, `_IO(0x12, 0)` of linux/blkdev.h.
const URING_DISCARD: u32 = 0x1200;
/// The first kernel with the command. An older kernel answers like a device without discard.
const URING_DISCARD_SINCE: (u32, u32) = (6, 12);
/// `_IO(0x12, 119)` of linux/fs.h.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// How one block device discards.
pub(super) struct Discards {
    /// Whether the device can discard, as the kernel said when it was opened. `None` if it did not
    /// say.
    pub(super) is_able: Option<bool>,
    has_command: bool,
    /// Created by the first discard that needs it. `None` if there were no descriptors for it.
    threads: OnceLock<Option<Custom>>,
}

impl Discards {
    /// For the block device with these major and minor numbers.
    pub(super) fn new(numbers: (u32, u32)) -> Discards {
        Discards {
            is_able: is_able(numbers),
            has_command: release().is_some_and(|release| release >= URING_DISCARD_SINCE),
            threads: OnceLock::new(),
        }
    }

    /// The submission for the ring. `None` if the kernel has no such command.
    pub(super) fn entry(&self, device: types::Fd, io: &LeafIo) -> Option<squeue::Entry> {
        self.has_command.then(|| {
            // The kernel reads the length from `addr3`, the first bytes of other commands.
            let mut command = [0; 16];
            command[..8].copy_from_slice(&io.len.to_ne_bytes());
            let entry = opcode::UringCmd16::new(device, URING_DISCARD);
            entry.addr(Some(io.offset)).cmd(command).build()
        })
    }

    /// Discards with the blocking ioctl on another thread. `file` is the open device.
    ///
    /// # Safety
    /// As [`super::Engine::submit`].
    #[cold]
    pub(super) unsafe fn on_thread(
        &self,
        file: Option<&File>,
        queues: usize,
        io: &LeafIo,
        turn: &mut Turn,
    ) -> Submitted {
        let make = || {
            let device = Arc::new(file?.try_clone().ok()?);
            Custom::new(Box::new(Threads { device, helper: Helper::default() }), queues).ok()
        };
        match self.threads.get_or_init(make) {
            // SAFETY: the caller's promise.
            Some(threads) => unsafe { threads.submit(io, turn) },
            None => Submitted::Done(-i64::from(libc::EMFILE)),
        }
    }
}

/// Discards with the ioctl, one after the other, on a thread for discards only. So other leaves and
/// queries for holes do not wait for them.
struct Threads {
    device: Arc<File>,
    helper: Helper,
}

impl CustomEngine for Threads {
    fn submit(&self, op: CustomOp) {
        self.helper.give("a block device", Box::new(Discard { device: self.device.clone(), op }));
    }

    fn flush_blocking(&self) -> io::Result<()> {
        Ok(())
    }

    /// No limit: until the device has completed the discard, the range must not be written.
    fn time_limit(&self) -> Duration {
        Duration::MAX
    }
}

struct Discard {
    device: Arc<File>,
    op: CustomOp,
}

impl Work for Discard {
    fn work(self: Box<Self>) {
        let range = [self.op.offset(), self.op.len()];
        // SAFETY: the ioctl reads two integers of 64 bits; the descriptor is open.
        let result = unsafe { libc::ioctl(self.device.as_raw_fd(), BLKDISCARD, &raw const range) };
        let error = io::Error::last_os_error();
        if result == 0 { self.op.done() } else { self.op.fail(error) }
    }

    fn refused(self: Box<Self>) {
        self.op.fail(io::Error::from_raw_os_error(libc::ENOMEM));
    }
}

/// Whether a block device can discard, as sysfs says of the disk or of the disk of a partition.
/// `None` if sysfs says nothing.
fn is_able((major, minor): (u32, u32)) -> Option<bool> {
    let device = format!("/sys/dev/block/{major}:{minor}");
    let read = |folder| std::fs::read_to_string(format!("{device}/{folder}/discard_max_bytes"));
    let most = read("queue").or_else(|_| read("../queue")).ok()?;
    Some(most.trim() != "0")
}

/// Major and minor version of the kernel, from the system call. `setarch --uname-2.6` makes its
/// answer older, so that a test can take the way of old kernels.
fn release() -> Option<(u32, u32)> {
    // SAFETY: utsname is plain data, filled by the call with a text that ends.
    let text = unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        if libc::uname(&raw mut names) != 0 {
            return None;
        }
        CStr::from_ptr(names.release.as_ptr()).to_string_lossy().into_owned()
    };
    parse_release(&text)
}

fn parse_release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::LeafOp;
    use crate::request::Span;

    #[test]
    fn releases_are_compared_as_numbers() {
        let has = |text| parse_release(text).is_some_and(|release| release >= URING_DISCARD_SINCE);
        assert!(has("6.12.38+deb13-amd64\n") && has("6.18.44-fc") && has("10.0-rc1"));
        assert!(!has("6.1.0-37-amd64") && !has("6.9.12") && !has("5.15.0") && !has("unknown"));
    }

    /// The result of the ioctl comes back through the ring. For a regular file it is `ENOTTY`.
    #[test]
    fn a_thread_answers_for_a_kernel_without_the_command() {
        let discards = Discards { is_able: None, has_command: false, threads: OnceLock::new() };
        let mut turn = Turn::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        let (op, data) = (LeafOp::Discard, Span::NONE);
        let (fua, fast, pages, queue) = (false, false, None, 0);
        for part in 0..3 {
            let io = LeafIo { op, fua, fast, offset: 0, len: 4096, data, pages, part, queue };
            assert!(discards.entry(types::Fd(file.as_raw_fd()), &io).is_none());
            // SAFETY: there is no data.
            let submitted = unsafe { discards.on_thread(Some(&file), 1, &io, &mut turn) };
            assert_eq!(submitted, Submitted::Pending);
        }
        let (mut answers, mut completions) = (Vec::new(), Vec::new());
        while answers.len() < 3 {
            turn.run_sessions();
            answers.extend(std::iter::from_fn(|| turn.sessions.take_finished()));
            if answers.len() < 3 {
                turn.wait(false, &mut completions).unwrap();
                completions.drain(..).for_each(|completion| turn.sessions.complete(&completion));
            }
        }
        answers.sort_unstable();
        let refused = -i64::from(libc::ENOTTY);
        assert_eq!(answers, [(0, refused), (1, refused), (2, refused)]);
    }
}
