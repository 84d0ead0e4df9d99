//! Discards of block devices: a real one, by the command that io_uring has for it since Linux 6.12,
//! or by the ioctl on a thread of the leaf's own.
//!
//! The obvious way, `fallocate` with `FALLOC_FL_PUNCH_HOLE`, is none: on a block device the kernel
//! makes that a write of zeroes, which leaves every block of a thin disk allocated.
//!
//! Through the page cache it is always the ioctl: it takes the pages out of the cache, where the
//! command gives up (`EBUSY`) if somebody writes to one of them meanwhile.
//!
//! Contract: a discard is answered when the device has ended it, never before. A write that follows
//! would be lost otherwise.

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
/// The kernel that brought it. An older one refuses it like a device without discard.
const URING_DISCARD_SINCE: (u32, u32) = (6, 12);
/// `_IO(0x12, 119)` of linux/fs.h.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// How the discards of one block device are done.
pub(super) struct Discards {
    /// What the kernel said when the device was opened; nothing if it did not say.
    pub(super) is_able: Option<bool>,
    has_command: bool,
    /// Made with the first discard that needs it. Nothing: there were no descriptors for it.
    threads: OnceLock<Option<Custom>>,
}

impl Discards {
    /// Of the block device with these numbers.
    pub(super) fn new(numbers: (u32, u32)) -> Discards {
        Discards {
            is_able: is_able(numbers),
            has_command: release().is_some_and(|release| release >= URING_DISCARD_SINCE),
            threads: OnceLock::new(),
        }
    }

    /// The submission to the ring, if the kernel has one.
    pub(super) fn entry(&self, device: types::Fd, io: &LeafIo) -> Option<squeue::Entry> {
        self.has_command.then(|| {
            // The length is in `addr3`, where other commands have their own first bytes.
            let mut command = [0; 16];
            command[..8].copy_from_slice(&io.len.to_ne_bytes());
            let entry = opcode::UringCmd16::new(device, URING_DISCARD);
            entry.addr(Some(io.offset)).cmd(command).build()
        })
    }

    /// Does it by the ioctl, which blocks, elsewhere. `file` is the device.
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

/// Discards by ioctl, one after the other: a thread of its own, so that looks for holes and other
/// leaves do not wait for them.
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

    /// None: until the device has ended it, nothing else may be written there.
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

/// Whether a block device can discard at all, as the kernel tells of the disk or of the disk that
/// the partition is on.
fn is_able((major, minor): (u32, u32)) -> Option<bool> {
    let device = format!("/sys/dev/block/{major}:{minor}");
    let read = |folder| std::fs::read_to_string(format!("{device}/{folder}/discard_max_bytes"));
    let most = read("queue").or_else(|_| read("../queue")).ok()?;
    Some(most.trim() != "0")
}

/// The kernel's release, as two numbers. By the system call: `setarch --uname-2.6` makes that older,
/// which has tests take the way of old kernels.
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

    /// What the ioctl says comes back through the ring; of a regular file, that it is no device.
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
            turn.run_links();
            answers.extend(std::iter::from_fn(|| turn.links.take_finished()));
            if answers.len() < 3 {
                turn.wait(false, &mut completions).unwrap();
                completions.drain(..).for_each(|completion| turn.links.complete(&completion));
            }
        }
        answers.sort_unstable();
        let refused = -i64::from(libc::ENOTTY);
        assert_eq!(answers, [(0, refused), (1, refused), (2, refused)]);
    }
}
