//! One hardware queue of one device: its tags, their descriptors and their data.
//!
//! Contract: used by one queue thread, from its first fetch until it is over; the driver accepts
//! the commands of a hardware queue from one thread only. A tag is at any time either with the
//! driver (a command waits there for a request) or with the pipeline, and its data area is lent
//! accordingly: the driver copies a write's data in before the command completes, and a read's data
//! out when the answer is committed. So a request costs one submission and one completion beside
//! its leaf's, and no memory is taken or given.
//!
//! With zero copy the driver copies nothing: it puts the request's pages into the ring's table of
//! buffers before the command completes, in the tag's slot, and takes them out when the answer is
//! committed ([`crate::sys::pages`]). Pages that it could not put there (no slot was left, no memory)
//! are copied through the character device.

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

/// A place that no table of buffers has: pages are not put there.
const NO_SLOT: u16 = u16::MAX;

/// Distance of the queues' descriptors in the character device's address space
/// (`UBLKSRV_CMD_BUF_OFFSET`, and room for the largest depth).
fn descriptors_at(queue: u16) -> usize {
    usize::from(queue) * usize::from(abi::MAX_QUEUE_DEPTH) * size_of::<IoDesc>()
}

/// Memory of the kernel's making.
struct Mapping {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a Mapping is the only owner of its address range, and may be used and unmapped by any
// thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// The descriptors of a queue: written by the driver, read by us.
    fn descriptors(char_device: &File, queue: u16, depth: u16) -> io::Result<Mapping> {
        // SAFETY: sysconf has no preconditions.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let bytes = (usize::from(depth) * size_of::<IoDesc>()).next_multiple_of(page);
        let (flags, fd) = (libc::MAP_SHARED | libc::MAP_POPULATE, char_device.as_raw_fd());
        Self::map(bytes, libc::PROT_READ, flags, fd, descriptors_at(queue))
    }

    /// Data areas; pages come as they are touched.
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
        // SAFETY: a new mapping where the kernel finds room: it touches nothing of ours.
        let memory = unsafe { libc::mmap(none, bytes, protection, flags, fd, offset) };
        match NonNull::new(memory.cast::<u8>()) {
            Some(at) if memory != libc::MAP_FAILED => Ok(Mapping { memory: at, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in map() with this length; nobody uses it after its owner.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

/// See the module's text.
pub struct HwQueue {
    char_device: Arc<File>,
    /// The blkswitch device behind it.
    device: u32,
    /// The driver's number of the device, for messages.
    id: u32,
    number: u16,
    depth: u16,
    /// Bytes of a tag's data area.
    max_io_bytes: usize,
    descriptors: Mapping,
    data: ManuallyDrop<Mapping>,
    /// With zero copy: the tags' places in the ring's table of buffers, for as many tags as have
    /// one.
    slots: Option<Vec<u16>>,
    /// Commands that the driver holds.
    armed: u16,
    /// Requests that the pipeline holds.
    busy: u16,
    /// New requests are refused: the device is being torn down by force.
    failing: bool,
    /// Answered when it is over.
    over: Option<Ack>,
}

impl HwQueue {
    /// Queue `number` of the device that `info` tells of. `over` is answered when the queue is
    /// over.
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

    /// The blkswitch device behind it.
    pub(super) fn device(&self) -> u32 {
        self.device
    }

    /// Neither the driver nor the pipeline has anything of it: it was stopped.
    pub(super) fn is_over(&self) -> bool {
        self.armed == 0 && self.busy == 0
    }

    /// From now on requests are refused.
    pub(super) fn fail(&mut self) {
        self.failing = true;
    }

    /// Asks the driver for a request for each tag. `at` is the queue's place in the server.
    pub(super) fn fetch_all(&mut self, at: u32, ring: &mut Ring) {
        if let Some(slots) = &mut self.slots {
            *slots = ring.take_slots(self.depth.into());
        }
        for tag in 0..self.depth {
            self.command(abi::Io::Fetch, at, tag, 0, ring);
        }
    }

    /// It is over: what it had of the ring goes back.
    pub(super) fn leave(&mut self, ring: &mut Ring) {
        ring.give_slots(self.slots.take().unwrap_or_default());
    }

    /// A command has completed: a request has come, or the tag is given up.
    #[inline]
    pub(super) fn completed(&mut self, at: u32, tag: u16, result: i32, context: &mut Context<'_>) {
        self.armed = self.armed.saturating_sub(1);
        match result {
            abi::IO_RES_OK => {}
            abi::IO_RES_ABORT => return,
            errno => {
                let error = io::Error::from_raw_os_error(-errno);
                tracing::error!(node = %super::block_node(self.id), queue = self.number, tag, %error,
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

    /// A request was answered: so is the kernel's.
    pub(super) fn answered(&mut self, at: u32, tag: u16, errno: i32, context: &mut Context<'_>) {
        let Some(desc) = self.desc(tag) else { return };
        self.busy = self.busy.saturating_sub(1);
        self.commit(at, tag, &desc, errno, context.turn);
    }

    #[inline]
    fn commit(&mut self, at: u32, tag: u16, desc: &IoDesc, errno: i32, ring: &mut Ring) {
        let result = match (errno, desc.op()) {
            // Not more than `max_io_bytes`, or it would not have been started.
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

    /// The pages of a tag's request.
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

    /// The descriptor of a tag.
    fn desc(&self, tag: u16) -> Option<IoDesc> {
        if tag >= self.depth {
            return None;
        }
        let at = self.descriptors.memory.cast::<IoDesc>();
        // SAFETY: `depth` descriptors are mapped. Volatile, because the driver writes them: not
        // while the tag is ours, and any bit pattern is a descriptor.
        Some(unsafe { at.add(usize::from(tag)).read_volatile() })
    }
}

impl Drop for HwQueue {
    fn drop(&mut self) {
        // A queue that ends with the process leaves commands with the driver, which copies to the
        // data areas until it has noticed: their addresses must not become those of something else.
        if self.armed == 0 {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.data) };
        }
        if let Some(over) = self.over.take() {
            over.done();
        }
    }
}

/// The request that a descriptor describes, or the errno to refuse it with.
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
        // The kernel keeps to the limits it was given; a data area must not depend on it.
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
        // The kernel leaves whatever was there in the sectors of a flush.
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
