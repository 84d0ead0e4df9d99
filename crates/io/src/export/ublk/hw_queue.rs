//! One hardware queue of one device: its tags, their descriptors and their data.
//!
//! Contract: one queue thread uses it, from its first fetch to its end, because the driver accepts
//! the commands of a hardware queue from one thread only. At any time, either the driver has a tag
//! (a command waits there for a request) or the pipeline has it. The data area of the tag is lent
//! with it: the driver copies a write's data in before the command completes, and a read's data out
//! when the answer is committed. So a request costs one submission and one completion besides those
//! of its leaf, and no allocation.
//!
//! With zero copy, the driver copies nothing. It puts the request's pages into the tag's slot of
//! the ring's table of buffers before the command completes, and removes them when the answer is
//! committed ([`crate::sys::pages`]). If it could not put them there (no free slot, or no memory),
//! they are copied through the character device.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::{opcode, types};

use super::abi::{self, DevInfo, IoCommand, IoDesc, io_flag, op};
use super::is_zero_copy;
use super::server::Context;
use crate::request::{Op, Request, Span, Token};
use crate::sys::latch::Ack;
use crate::sys::pages::Pages;
use crate::sys::ring::{Ring, Tag, user_data};

/// A number that is not a slot of any table, so the driver puts no pages there.
const NO_SLOT: u16 = u16::MAX;

/// Offset of a queue's descriptors in the character device (`UBLKSRV_CMD_BUF_OFFSET`, with room for
/// the largest depth).
fn descriptors_at(queue: u16) -> usize {
    usize::from(queue) * usize::from(abi::MAX_QUEUE_DEPTH) * size_of::<IoDesc>()
}

/// A memory mapping, unmapped on drop.
struct Mapping {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a Mapping is the only owner of its address range, and may be used and unmapped by any
// thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the descriptors of a queue, which the driver writes and this server reads.
    fn descriptors(char_device: &File, queue: u16, depth: u16) -> io::Result<Mapping> {
        // SAFETY: sysconf has no preconditions.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let bytes = (usize::from(depth) * size_of::<IoDesc>()).next_multiple_of(page);
        let (flags, fd) = (libc::MAP_SHARED | libc::MAP_POPULATE, char_device.as_raw_fd());
        Self::map(bytes, libc::PROT_READ, flags, fd, descriptors_at(queue))
    }

    /// Maps data areas. Their pages are allocated when they are touched.
    fn data(bytes: usize) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    }

    fn map(
        bytes: usize,
        protection: i32,
        flags: i32,
        fd: i32,
        offset: usize,
    ) -> io::Result<Mapping> {
        let (none, offset) = (std::ptr::null_mut(), offset as libc::off_t);
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let memory = unsafe { libc::mmap(none, bytes, protection, flags, fd, offset) };
        match NonNull::new(memory.cast::<u8>()) {
            Some(at) if memory != libc::MAP_FAILED => Ok(Mapping { memory: at, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in map() with this length, and nothing uses it after its owner.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

/// A hardware queue that this server serves.
pub struct HwQueue {
    char_device: Arc<File>,
    /// The id of the blkswitch device.
    device: u32,
    /// The driver's number of the disk, for messages.
    id: u32,
    number: u16,
    depth: u16,
    /// Size of a tag's data area in bytes.
    max_io_bytes: usize,
    descriptors: Mapping,
    data: ManuallyDrop<Mapping>,
    /// With zero copy: the tags' slots in the ring's table of buffers. It may be shorter than
    /// `depth`, if there are not enough slots.
    slots: Option<Vec<u16>>,
    /// Number of commands that the driver has.
    armed: u16,
    /// Number of requests that the pipeline has.
    busy: u16,
    /// Whether new requests are refused, because the device is being detached by force.
    failing: bool,
    /// Acknowledged when the queue has ended.
    over: Option<Ack>,
}

impl HwQueue {
    /// Creates queue `number` of the device in `info`. `over` is acknowledged when the queue has
    /// ended.
    pub(super) fn new(
        char_device: Arc<File>,
        info: &DevInfo,
        number: u16,
        device: u32,
        over: Ack,
    ) -> io::Result<HwQueue> {
        let max_io_bytes = info.max_io_buf_bytes as usize;
        Ok(HwQueue {
            descriptors: Mapping::descriptors(&char_device, number, info.queue_depth)?,
            data: ManuallyDrop::new(Mapping::data(max_io_bytes * usize::from(info.queue_depth))?),
            char_device,
            device,
            id: info.dev_id,
            number,
            depth: info.queue_depth,
            max_io_bytes,
            slots: is_zero_copy(info).then(Vec::new),
            armed: 0,
            busy: 0,
            failing: false,
            over: Some(over),
        })
    }

    /// The id of the blkswitch device.
    pub(super) fn device(&self) -> u32 {
        self.device
    }

    /// Whether the queue has ended: neither the driver nor the pipeline has anything of it.
    pub(super) fn is_over(&self) -> bool {
        self.armed == 0 && self.busy == 0
    }

    /// Refuses requests from now on.
    pub(super) fn fail(&mut self) {
        self.failing = true;
    }

    /// Fetches a request for each tag. `at` is the queue's index in the server.
    pub(super) fn fetch_all(&mut self, at: u32, ring: &mut Ring) {
        if let Some(slots) = &mut self.slots {
            *slots = ring.take_slots(self.depth.into());
        }
        for tag in 0..self.depth {
            self.command(abi::Io::Fetch, at, tag, 0, ring);
        }
    }

    /// Returns the slots of a queue that has ended to the ring.
    pub(super) fn leave(&mut self, ring: &mut Ring) {
        ring.give_slots(self.slots.take().unwrap_or_default());
    }

    /// Processes a completed command: a request has arrived, or the tag was aborted.
    #[inline]
    pub(super) fn completed(&mut self, at: u32, tag: u16, result: i32, context: &mut Context<'_>) {
        self.armed = self.armed.saturating_sub(1);
        match result {
            abi::IO_RES_OK => {}
            abi::IO_RES_ABORT => return,
            errno => {
                let error = io::Error::from_raw_os_error(-errno);
                let node = super::block_node(self.id);
                tracing::error!(%node, queue = self.number, tag, %error,
                    "the ublk driver refused a command: the tag is lost");
                return;
            }
        }
        let Some(desc) = self.desc(tag) else { return };
        let data = self.data(tag);
        let data = (data, self.pages(&desc, tag, data));
        let answer = match request(&desc, data, self.max_io_bytes, super::server::token(at, tag)) {
            _ if self.failing => Some(libc::EIO),
            // The data area stays untouched until the answer (contract of Span).
            Ok(request) => context.pipeline.start(self.device, &request, context.turn),
            Err(errno) => Some(errno),
        };
        match answer {
            Some(errno) => self.commit(at, tag, &desc, errno, context.turn),
            None => self.busy += 1,
        }
    }

    /// Commits the pipeline's answer to the kernel's request.
    pub(super) fn answered(&mut self, at: u32, tag: u16, errno: i32, context: &mut Context<'_>) {
        let Some(desc) = self.desc(tag) else { return };
        self.busy = self.busy.saturating_sub(1);
        self.commit(at, tag, &desc, errno, context.turn);
    }

    #[inline]
    fn commit(&mut self, at: u32, tag: u16, desc: &IoDesc, errno: i32, ring: &mut Ring) {
        let result = match (errno, desc.op()) {
            // At most `max_io_bytes`, because longer requests are refused.
            (0, op::READ | op::WRITE) => desc.bytes() as i32,
            (0, _) => 0,
            (errno, _) => -errno,
        };
        self.command(abi::Io::CommitAndFetch, at, tag, result, ring);
    }

    #[inline]
    fn command(&mut self, what: abi::Io, at: u32, tag: u16, result: i32, ring: &mut Ring) {
        let data = self.data(tag);
        let fd = types::Fd(self.char_device.as_raw_fd());
        let command = |addr| IoCommand { queue: self.number, tag, result, addr }.bytes();
        let entry = opcode::UringCmd16::new(fd, what as u32);
        let entry = match &self.slots {
            None => entry.cmd(command(data.0.addr() as u64)),
            Some(slots) => {
                let slot = slots.get(usize::from(tag)).copied().unwrap_or(NO_SLOT);
                entry.cmd(command(0)).addr(Some(abi::auto_buf_reg(slot)))
            }
        }
        .build();
        self.armed += 1;
        // SAFETY: the data area stays mapped while the driver holds a command (see Drop), and so
        // does the descriptor.
        unsafe { ring.push(&entry.user_data(user_data(Tag::Ublk, super::server::id(at, tag)))) };
    }

    /// The pages of a tag's request; `None` without zero copy.
    fn pages(&self, desc: &IoDesc, tag: u16, data: Span) -> Option<Pages> {
        let slots = self.slots.as_ref()?;
        let is_there = desc.op_flags & io_flag::NEED_REG_BUF == 0;
        Some(Pages {
            memory: NonNull::new(data.0)?,
            file: self.char_device.as_raw_fd(),
            at: abi::bytes_at(self.number, tag),
            slot: slots.get(usize::from(tag)).copied().filter(|_| is_there),
        })
    }

    /// The data area of a tag.
    fn data(&self, tag: u16) -> Span {
        Span(self.data.memory.as_ptr()).at(u64::from(tag) * self.max_io_bytes as u64)
    }

    /// The descriptor of a tag; `None` if there is no such tag.
    fn desc(&self, tag: u16) -> Option<IoDesc> {
        if tag >= self.depth {
            return None;
        }
        let at = self.descriptors.memory.cast::<IoDesc>();
        // SAFETY: `depth` descriptors are mapped. The read is volatile because the driver writes
        // them, though not while this server has the tag. Any bit pattern is a valid descriptor.
        Some(unsafe { at.add(usize::from(tag)).read_volatile() })
    }
}

impl Drop for HwQueue {
    fn drop(&mut self) {
        // If a queue ends with the process, the driver still has commands, and copies to the data
        // areas until it notices. Other memory must not be mapped at their addresses until then.
        if self.armed == 0 {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.data) };
        }
        if let Some(over) = self.over.take() {
            over.done();
        }
    }
}

/// Converts a descriptor to a request. `Err` is the errno with which to refuse it.
#[inline(always)]
fn request(
    desc: &IoDesc,
    (data, pages): (Span, Option<Pages>),
    max_io_bytes: usize,
    token: Token,
) -> Result<Request, i32> {
    let flag = |flag: u32| desc.op_flags & flag != 0;
    let op = match desc.op() {
        op::READ => Op::Read,
        op::WRITE => Op::Write,
        op::FLUSH => Op::Flush,
        op::DISCARD => Op::Discard,
        op::WRITE_ZEROES => Op::WriteZeroes { no_hole: flag(io_flag::NOUNMAP), fast: false },
        _ => return Err(libc::EOPNOTSUPP),
    };
    let (offset, len) = match op {
        Op::Flush => (0, 0),
        _ => (desc.start_sector.checked_mul(512).ok_or(libc::EINVAL)?, desc.bytes()),
    };
    let (data, pages) = match op {
        // The kernel observes the limits that it was given, but memory safety must not depend on
        // that.
        Op::Read | Op::Write if len > max_io_bytes as u64 => return Err(libc::EINVAL),
        Op::Read | Op::Write => (data, pages),
        Op::Flush | Op::Discard | Op::WriteZeroes { .. } => (Span::NONE, None),
    };
    Ok(Request { op, fua: flag(io_flag::FUA) && op.is_write(), offset, len, data, pages, token })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(op_flags: u32, start_sector: u64, nr_sectors: u32) -> Result<Request, i32> {
        let desc = IoDesc { op_flags, nr_sectors, start_sector, addr: 0 };
        let memory = NonNull::<u8>::dangling();
        let pages = Pages { memory, file: -1, at: 0, slot: Some(1) };
        request(&desc, (Span(memory.as_ptr()), Some(pages)), 4096, 7)
    }

    #[test]
    fn descriptors_become_requests() {
        let read = of(op::READ.into(), 8, 8).unwrap();
        assert_eq!(
            (read.op, read.offset, read.len, read.fua, read.token),
            (Op::Read, 4096, 4096, false, 7)
        );
        assert!(!read.data.0.is_null() && read.pages.is_some());
        let write = of(u32::from(op::WRITE) | io_flag::FUA, 1, 1).unwrap();
        assert_eq!((write.op, write.offset, write.len, write.fua), (Op::Write, 512, 512, true));
        // The kernel leaves arbitrary values in the sectors of a flush.
        let flush = of(u32::from(op::FLUSH), u64::MAX, u32::MAX).unwrap();
        assert_eq!((flush.op, flush.offset, flush.len), (Op::Flush, 0, 0));
        assert!(flush.data.0.is_null() && flush.pages.is_none());
        let discard = of(op::DISCARD.into(), 0, 1 << 21).unwrap();
        assert_eq!((discard.op, discard.len), (Op::Discard, 1 << 30));
        for (flags, no_hole) in [(0, false), (io_flag::NOUNMAP, true)] {
            let zeroes = of(u32::from(op::WRITE_ZEROES) | flags, 0, 1).unwrap();
            assert_eq!(zeroes.op, Op::WriteZeroes { no_hole, fast: false });
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(of(15, 0, 8).unwrap_err(), libc::EOPNOTSUPP, "a zone operation");
        assert_eq!(of(op::READ.into(), 0, 9).unwrap_err(), libc::EINVAL, "more than a data area");
        assert_eq!(
            of(op::WRITE.into(), u64::MAX / 512 + 1, 1).unwrap_err(),
            libc::EINVAL,
            "no byte offset"
        );
    }
}
