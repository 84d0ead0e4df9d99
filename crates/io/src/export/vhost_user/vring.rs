//! One ring of a front end on a queue: requests out of shared memory, answers back.
//!
//! Contract: one queue thread uses it, from its first turn to its end. A head is either with the
//! driver or with the pipeline, never with both. The memory of a request is the guest's own, and
//! stays mapped until the ring is dropped, which waits for the last answer. A segment that is not
//! aligned as disks need it goes through a buffer of this ring. In steady state, nothing is
//! allocated.

use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::squeue::Flags;
use io_uring::{opcode, types};

use super::MAX_UNDER_WAY;
use super::asked::{Asked, What, ask};
use super::inflight::Part;
use super::log::Log;
use super::rings::{Broken, Chain, Rings, Segment, read_segments, write_segments};
use super::server::{Context, Kind, id, ignored, is_spent, poll_id, token};
use super::trouble::Trouble;
use crate::request::{Op, Request, Span};
use crate::sys::buffer::Buffer;
use crate::sys::latch::Ack;
use crate::sys::ring::{Ring, Tag, user_data};
use crate::wire::vhost_user::{ID_LEN, status};

/// The value that is written to an eventfd for one more event.
static ONE: u64 = 1;

/// A request that the pipeline has.
#[derive(Default)]
struct Slot {
    /// Parts that are not answered yet; 0 if the head is with the driver.
    left: u32,
    errno: i32,
    /// Bytes that are written to the guest's memory if all goes well, without the status.
    bytes: u32,
    status: Option<Segment>,
    /// Memory in place of the guest's, if that is not aligned.
    buffer: Option<Buffer>,
    /// The memory that a read writes to, if that must be known at its end. Keeps its room.
    segments: Vec<Segment>,
    /// The next back end is to give the answer.
    is_left: bool,
}

/// How a ring is made.
pub(super) struct Setup {
    /// The number of the ring, which no other has.
    pub(super) id: u64,
    /// The blkswitch device.
    pub(super) device: u32,
    pub(super) rings: Rings,
    /// The next request to be taken.
    pub(super) base: u16,
    pub(super) kick: OwnedFd,
    pub(super) call: Option<OwnedFd>,
    pub(super) inflight: Option<Part>,
    pub(super) log: Option<Arc<Log>>,
    pub(super) serial: [u8; ID_LEN],
    /// Whom to tell that the ring is broken.
    pub(super) trouble: Arc<Trouble>,
    /// Where the ring goes on after its end.
    pub(super) next: Arc<AtomicU16>,
}

/// See the module's text.
pub(crate) struct Vring {
    of: Setup,
    slots: Box<[Slot]>,
    /// Heads that an earlier back end has taken and not answered, the next one last.
    again: Vec<u16>,
    next_available: u16,
    used_index: u16,
    /// Up to where the driver was notified; `None` before the first time.
    called_at: Option<u16>,
    /// Where the kernel writes the eventfd's count; boxed because its address is given away.
    kick_count: Box<u64>,
    is_armed: bool,
    /// Writes to the eventfd of calls that the ring has.
    calls: u32,
    /// An eventfd that is not used any more, but perhaps by one of these writes.
    old_calls: Vec<OwnedFd>,
    /// Parts that the pipeline has.
    under_way: usize,
    /// There was no memory for the next request's buffer: it waits for a tick.
    pub(super) is_starved: bool,
    /// It is in the server's list for this turn.
    pub(super) is_touched: bool,
    /// The front end has been told that the ring is broken, and nothing is taken any more.
    is_broken: bool,
    /// As above, because it is to end.
    is_ending: bool,
    /// Answers are not shown any more: nobody is there, or the next back end is to give them.
    is_mute: bool,
    /// A request was left to the next back end, so nobody may be told that all are answered.
    has_left: bool,
    ack: Option<Ack>,
}

impl Vring {
    /// A ring that takes up the requests that an earlier back end has left.
    pub(super) fn new(mut of: Setup) -> Vring {
        let (used_index, size) = (of.rings.used_index(), of.rings.size());
        let mut again = match &mut of.inflight {
            Some(part) => part.begin(&of.rings),
            None => Vec::new(),
        };
        again.reverse();
        let next_available = match of.inflight {
            Some(_) => used_index.wrapping_add(again.len() as u16),
            None => of.base,
        };
        if !again.is_empty() {
            tracing::info!(
                device = of.device,
                requests = again.len(),
                "requests that an earlier back end has left are carried out"
            );
        }
        of.next.store(next_available, Ordering::Release);
        let mut slots = Vec::new();
        slots.resize_with(size.into(), Slot::default);
        Vring {
            of,
            slots: slots.into(),
            again,
            next_available,
            used_index,
            called_at: None,
            kick_count: Box::new(0),
            is_armed: false,
            calls: 0,
            old_calls: Vec::new(),
            under_way: 0,
            is_starved: false,
            is_touched: false,
            is_broken: false,
            is_ending: false,
            is_mute: false,
            has_left: false,
            ack: None,
        }
    }

    /// The number of the ring.
    pub(super) fn id(&self) -> u64 {
        self.of.id
    }

    /// Whether neither the kernel nor the pipeline has anything of it, and no more is to come.
    pub(super) fn is_over(&self) -> bool {
        self.is_ending && self.under_way == 0 && !self.is_armed && self.calls == 0
    }

    /// Takes nothing more; `ack` is answered when all is over. With `mute`, answers are not shown
    /// from now on.
    pub(super) fn end(&mut self, at: u32, mute: bool, ack: Option<Ack>, ring: &mut Ring) {
        self.is_mute |= mute;
        self.ack = ack.or(self.ack.take());
        if mem::replace(&mut self.is_ending, true) || !self.is_armed {
            return;
        }
        for user_data in [poll_id(at), user_data(Tag::VhostUser, id(at, Kind::Kick))] {
            let entry = opcode::AsyncCancel::new(user_data).build();
            // SAFETY: points to nothing.
            unsafe { ring.push(&entry.user_data(ignored())) };
        }
    }

    /// The ring is over: whoever waits for that is told, or learns that requests were left.
    pub(super) fn finish(mut self) {
        self.of.next.store(self.next_available, Ordering::Release);
        let ack = self.ack.take().filter(|_| !self.has_left);
        drop(self);
        if let Some(ack) = ack {
            ack.done();
        }
    }

    /// Uses another eventfd for calls from now on.
    pub(super) fn set_call(&mut self, call: Option<OwnedFd>) {
        let old = mem::replace(&mut self.of.call, call);
        if self.calls > 0 {
            self.old_calls.extend(old);
        }
        // The driver may have missed the last one.
        self.called_at = None;
    }

    /// Waits for the next kick. An eventfd of a front end does not block, so the read is linked to
    /// a poll.
    pub(super) fn arm(&mut self, at: u32, ring: &mut Ring) {
        if self.is_ending {
            return;
        }
        self.is_armed = true;
        let fd = types::Fd(self.of.kick.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).build().flags(Flags::IO_LINK);
        let read = opcode::Read::new(fd, (&raw mut *self.kick_count).cast(), 8).build();
        // SAFETY: the count and the descriptor stay until the read has completed (is_over).
        unsafe {
            ring.push(&poll.user_data(poll_id(at)));
            ring.push(&read.user_data(user_data(Tag::VhostUser, id(at, Kind::Kick))));
        }
    }

    /// The read of a kick has completed, somehow.
    pub(super) fn kicked(&mut self, at: u32, ring: &mut Ring) {
        self.is_armed = false;
        self.arm(at, ring);
    }

    /// A write of a call has completed.
    pub(super) fn called(&mut self) {
        self.calls = self.calls.saturating_sub(1);
        if self.calls == 0 {
            self.old_calls.clear();
        }
    }

    /// Takes requests until there are no more. True if the turn has cost enough before that.
    pub(super) fn take(&mut self, at: u32, chain: &mut Chain, context: &mut Context<'_>) -> bool {
        self.is_starved = false;
        match self.try_take(at, chain, context) {
            Ok(has_more) => has_more,
            Err(Broken(why)) => {
                self.is_broken = true;
                self.of.trouble.broken(why);
                false
            }
        }
    }

    fn try_take(
        &mut self,
        at: u32,
        chain: &mut Chain,
        context: &mut Context<'_>,
    ) -> Result<bool, Broken> {
        let mut taken = 0;
        while !self.is_ending && !self.is_broken && self.under_way < MAX_UNDER_WAY {
            let (rings, next) = (&self.of.rings, self.next_available);
            let has_more =
                !self.again.is_empty() || rings.available_index() != next || rings.wants_kick(next);
            if !has_more {
                return Ok(false);
            }
            taken += 1;
            if is_spent(taken, context.turn) {
                return Ok(true);
            }
            let head = match self.again.last() {
                Some(head) => *head,
                None => self.next_head()?,
            };
            self.of.rings.chain(head, chain)?;
            if self.is_memory_lost() {
                return Err(Broken("the memory has lost its pages"));
            }
            if self.slots.get(usize::from(head)).is_none_or(|slot| slot.left > 0) {
                return Err(Broken("a request was made available twice"));
            }
            let asked = ask(chain, context.block(self.of.device))?;
            if !self.begin(at, head, &asked, chain, context) {
                self.is_starved = true;
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Whether memory that the front end shares has lost its pages: what was read there is nothing.
    fn is_memory_lost(&self) -> bool {
        self.of.rings.is_broken() || self.of.inflight.as_ref().is_some_and(Part::is_broken)
    }

    fn next_head(&self) -> Result<u16, Broken> {
        let (rings, next) = (&self.of.rings, self.next_available);
        if rings.available_index().wrapping_sub(next) > rings.size() {
            return Err(Broken("the available ring has more entries than descriptors"));
        }
        Ok(rings.head(next))
    }

    /// The request of a head is taken.
    fn takes(&mut self, head: u16) {
        if self.again.pop().is_some() {
            return;
        }
        self.next_available = self.next_available.wrapping_add(1);
        if let Some(part) = &mut self.of.inflight {
            part.takes(head);
        }
    }

    /// Begins a request. False, and nothing was done, if there is no memory for it now.
    fn begin(
        &mut self,
        at: u32,
        head: u16,
        asked: &Asked,
        chain: &Chain,
        context: &mut Context<'_>,
    ) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(head)) else { return true };
        slot.buffer = match asked.what {
            Ok(What::Data { bytes, is_aligned: false, .. }) => {
                match context.buffers.take(bytes as usize, 0) {
                    Ok(buffer) => Some(buffer),
                    Err(_) => return false,
                }
            }
            _ => None,
        };
        (slot.status, slot.errno, slot.bytes, slot.left) = (Some(asked.status), 0, 0, 1);
        slot.segments.clear();
        if self.of.log.is_some() || slot.buffer.is_some() {
            slot.segments.extend_from_slice(chain.writable());
        }
        self.under_way += 1;
        self.takes(head);
        let errno = self.start(at, head, asked, chain, context).err().unwrap_or(0);
        self.answered(head, errno, context);
        true
    }

    /// Gives the parts of a request to the pipeline. `Err` is the errno of one that is refused
    /// here.
    #[inline]
    fn start(
        &mut self,
        at: u32,
        head: u16,
        asked: &Asked,
        chain: &Chain,
        context: &mut Context<'_>,
    ) -> Result<(), i32> {
        let token = token(at, head);
        let request = |op, offset, len, data| Request {
            op,
            fua: false,
            offset,
            len,
            data,
            pages: None,
            token,
        };
        let slot = self.slots.get_mut(usize::from(head)).ok_or(libc::EIO)?;
        match asked.what? {
            What::Id => {
                slot.bytes = write_segments(chain.writable(), &self.of.serial) as u32;
            }
            What::Range(op, offset, len) => {
                self.part(head, &request(op, offset, len, Span::NONE), context);
            }
            What::Data { op, offset, bytes, .. } => {
                let is_read = op == Op::Read;
                slot.bytes = if is_read { bytes as u32 } else { 0 };
                if let Some(buffer) = &mut slot.buffer {
                    if !is_read {
                        read_segments(chain.readable(), buffer.bytes_mut());
                        context.turn.spend(bytes);
                    }
                    let data = Span(buffer.as_ptr());
                    self.part(head, &request(op, offset, bytes, data), context);
                    return Ok(());
                }
                let mut offset = offset;
                let data = if is_read { chain.writable() } else { chain.readable() };
                for segment in data {
                    let data = Span(segment.at.as_ptr());
                    self.part(head, &request(op, offset, segment.len, data), context);
                    offset += segment.len;
                }
            }
        }
        Ok(())
    }

    /// Gives a part to the pipeline. Its memory stays mapped, and is the guest's or the slot's,
    /// until the answer (contract of [`Span`]).
    #[inline]
    fn part(&mut self, head: u16, request: &Request, context: &mut Context<'_>) {
        if let Some(slot) = self.slots.get_mut(usize::from(head)) {
            slot.left += 1;
        }
        self.under_way += 1;
        if let Some(errno) = context.pipeline.start(self.of.device, request, context.turn) {
            self.answered(head, errno, context);
        }
    }

    /// A part of a request is answered. With the last one, the request is.
    #[inline]
    pub(super) fn answered(&mut self, head: u16, errno: i32, context: &mut Context<'_>) {
        let Some(slot) = self.slots.get_mut(usize::from(head)).filter(|slot| slot.left > 0) else {
            return;
        };
        slot.left -= 1;
        self.under_way -= 1;
        slot.errno = if slot.errno == 0 { errno } else { slot.errno };
        // Requests that wait while the pool stops are for the next back end.
        slot.is_left |= self.is_ending && errno == libc::ESHUTDOWN;
        if slot.left > 0 {
            return;
        }
        let is_left = mem::take(&mut slot.is_left) || self.is_mute;
        self.has_left |= is_left;
        if let Some(buffer) = slot.buffer.take() {
            if slot.bytes > 0 && slot.errno == 0 && !is_left {
                let bytes = buffer.bytes().get(..slot.bytes as usize).unwrap_or_default();
                write_segments(&slot.segments, bytes);
                context.turn.spend(bytes.len() as u64);
            }
            context.buffers.put(buffer);
        }
        if !is_left {
            self.show(head);
        }
    }

    /// Shows the driver the answer to a request.
    #[inline]
    fn show(&mut self, head: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(head)) else { return };
        let (code, bytes) = match slot.errno {
            0 => (status::OK, slot.bytes),
            libc::EOPNOTSUPP => (status::UNSUPP, 0),
            _ => (status::IOERR, 0),
        };
        let index = self.used_index;
        self.used_index = index.wrapping_add(1);
        let (rings, inflight) = (&self.of.rings, &self.of.inflight);
        if let Some(to) = slot.status {
            write_segments(&[to], &[code]);
        }
        if let Some(log) = &self.of.log {
            slot.segments.iter().chain(&slot.status).for_each(|one| log.mark(one.guest, one.len));
        }
        rings.answer(index, head, bytes + 1, || {
            if let Some(part) = inflight {
                part.answers(head);
            }
        });
        if let Some(part) = inflight {
            part.answered(head, self.used_index);
        }
        if let (Some(log), Some(ring)) = (&self.of.log, rings.log) {
            log.mark(ring.wrapping_add(rings.used_offset(index)), 8);
            log.mark(ring.wrapping_add(2), 2);
        }
    }

    /// Tells the driver of answers, if there are some and it wants to know.
    pub(super) fn call(&mut self, at: u32, ring: &mut Ring) {
        if self.called_at == Some(self.used_index) || self.is_mute {
            return;
        }
        let old = self.called_at.replace(self.used_index);
        if !self.of.rings.wants_call(old, self.used_index) {
            return;
        }
        let Some(call) = &self.of.call else { return };
        self.calls += 1;
        let fd = types::Fd(call.as_raw_fd());
        let entry = opcode::Write::new(fd, (&raw const ONE).cast(), 8).build();
        // SAFETY: the bytes are static; the descriptor stays until the write has completed.
        unsafe { ring.push(&entry.user_data(user_data(Tag::VhostUser, id(at, Kind::Call)))) };
    }
}
