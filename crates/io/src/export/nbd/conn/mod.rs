//! One connection: its socket, its input, its replies, and the requests in between.
//!
//! Contract: the kernel has at most one receive and one send at a time. Their memory (input buffer,
//! the body of a write, the batch of replies) stays in place until they complete. Requests are read
//! from the input while fewer than [`MAX_IN_FLIGHT`] requests and [`MAX_LENT_BYTES`] bytes are
//! between header and sent reply. Beyond that nothing is received, so a client that does not read
//! its replies stops itself and costs no more memory. All connections together cost at most the
//! pool's budget (`lending.rs`). If others wait for memory, a connection that holds some while its
//! client does nothing is dropped (`stalling.rs`).

mod complaint;
mod identity;
mod lending;
mod sending;
mod stalling;
mod status;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

use io_uring::{opcode, types};

use super::admission::{INPUT_BYTES, Place};
use super::clients::Barrier;
use super::names::export_name;
use super::{
    CloseReason, Handshake, MAX_OPTION_BYTES, MAX_REPLY_HEADER, MetaContext, NbdCommand, NbdError,
    Negotiated, Next, Parsed, Peer, WireRequest, reply::MAX_STATUS_CHUNK,
};
use crate::device::OpenDevice;
use crate::export::nbd::context::Context;
use crate::request::{self, Op, Span};
use crate::sys::buffer::{Buffer, Buffers};
use crate::sys::gather::{keep_alive, shutdown, tune};
use crate::sys::memory::Short;
use crate::sys::ring::{Ring, Tag, user_data};
use crate::sys::slab::Slab;

use sending::{Reply, Sending};
use stalling::Watch;
use status::Status;

/// Most requests of a connection between header and sent reply. No client needs more.
pub(super) const MAX_IN_FLIGHT: usize = 1024;
/// Most bytes lent to those requests: two of the largest, or all of a deep queue of small ones.
pub(super) const MAX_LENT_BYTES: usize = 64 << 20;
/// Length in bytes from which the data of a write is received in place, and little of it together
/// with its header. The rest of a smaller write is received together with later requests, because a
/// separate receive would cost three turns of the loop for each write.
const LARGE_WRITE: usize = 64 << 10;
/// Bytes received along with headers while a client sends large writes.
const SHORT_INPUT: usize = 4 << 10;
/// Most bytes of a body per receive, so that the progress of a slow client is visible.
const BODY_RECEIVE: usize = 4 << 20;
/// Bytes of request data between two sends. Read data is sent while it is still in the processor's
/// cache, and the client takes it while the next data is read. So neither waits for a whole batch
/// of the other (docs/performance.md).
const SEND_BYTES: usize = 256 << 10;
/// Number of requests read between two sends, for the same reason: a deep queue of small ones has
/// less data than [`SEND_BYTES`].
const SEND_REQUESTS: usize = 12;
/// Bytes of one round from which a connection is served after those of smaller requests. A full
/// round of requests of 4 KiB has less.
const HEAVY_ROUND: usize = 64 << 10;
/// Time limit of the handshake in ns, as in qemu-nbd. A slower peer would occupy the place of a
/// client.
const HANDSHAKE_TIMEOUT_NS: u64 = 10_000_000_000;
/// Time limit in ns for a client to take the last replies when the server stops.
const STOP_TIMEOUT_NS: u64 = 5_000_000_000;

const _: () =
    assert!(INPUT_BYTES >= 2 * MAX_OPTION_BYTES, "an option must fit, behind the rest of another");

enum Phase {
    Handshake(Handshake),
    Transmission { negotiated: Box<Negotiated>, device: OpenDevice },
}

/// A request between header and reply.
struct Pending {
    request: WireRequest,
    buffer: Option<Buffer>,
    /// Newer connections that wait for the end of this write.
    barriers: Vec<Arc<Barrier>>,
}

/// The body of a write that did not arrive whole with its header.
struct Body {
    slot: u32,
    filled: usize,
    len: usize,
}

/// The destination of the receive under way. A write may begin while a receive into the input is
/// under way, because its header waited there for the limits. Then its data is taken from the
/// input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Nothing,
    Input,
    Body,
}

/// The token of request `slot` of connection `conn`.
pub(in crate::export::nbd) fn token(conn: u32, slot: u32) -> u64 {
    (u64::from(conn) << 32) | u64::from(slot)
}

/// A connection of a client, on one queue.
pub(super) struct Conn {
    socket: OwnedFd,
    place: Place,
    peer: Peer,
    since: SystemTime,
    /// Whether it waits for the work of its client's older connections.
    is_settling: bool,
    /// Newer connections that wait for the end of this one.
    barriers: Vec<Arc<Barrier>>,
    phase: Phase,
    /// Whether a breach of the protocol was logged: one line per connection.
    has_complained: bool,
    input: Buffer,
    start: usize,
    end: usize,
    input_cap: usize,
    receiving: Receiving,
    body: Option<Body>,
    /// Bytes of a refused request's payload that are still to arrive and be skipped.
    skip: u64,
    /// The answer to that request. It waits for the payload, because libnbd expects no answer
    /// before it has sent all of a request.
    refusal: Option<Reply>,
    pending: Slab<Pending>,
    /// Unanswered BLOCK_STATUS requests. For the first one, leaves are being asked.
    statuses: VecDeque<Status>,
    /// Number of inquiries so far.
    inquiries: u64,
    lent_bytes: usize,
    /// Bytes of memory for which a request waits, because the budget does not allow them now.
    pub(super) starved: Option<usize>,
    watch: Watch,
    text: Vec<u8>,
    replies: VecDeque<Reply>,
    sending: Sending,
    /// Whether the client sends no more. Its earlier requests are still answered.
    at_end: bool,
    /// Whether no more requests are read. The connection is over when requests in flight are
    /// answered.
    ending: bool,
    /// Whether nothing more can be sent.
    broken: bool,
    /// The time at which it is dropped in any case, on the ring's clock.
    deadline_ns: Option<u64>,
    /// Whether it is in the server's list of this turn.
    pub(super) touched: bool,
    /// Whether it has read as much as one send covers. Call it again after the answers were passed
    /// on.
    pub(super) has_more: bool,
    /// Whether the last request was costly, which ends the round.
    was_costly: bool,
    /// Whether its last round that moved data moved [`HEAVY_ROUND`] bytes or more.
    pub(super) is_heavy: bool,
}

impl Conn {
    /// A connection that begins with the greeting. `Err` if the system has no memory for it.
    pub(super) fn new(
        socket: OwnedFd,
        place: Place,
        context: &mut Context<'_>,
    ) -> Result<Conn, Short> {
        tune(socket.as_fd());
        keep_alive(socket.as_fd());
        let handshake = Handshake::new();
        let mut text = Vec::new();
        handshake.greeting(&mut text);
        Ok(Conn {
            place,
            since: SystemTime::now(),
            is_settling: false,
            barriers: Vec::new(),
            peer: Peer::of(socket.as_fd()),
            socket,
            has_complained: false,
            phase: Phase::Handshake(handshake),
            input: Buffer::alone(INPUT_BYTES)?,
            start: 0,
            end: 0,
            input_cap: INPUT_BYTES,
            receiving: Receiving::Nothing,
            body: None,
            skip: 0,
            refusal: None,
            pending: Slab::default(),
            statuses: VecDeque::new(),
            inquiries: 0,
            lent_bytes: 0,
            starved: None,
            watch: Watch::default(),
            text,
            replies: VecDeque::new(),
            sending: Sending::default(),
            at_end: false,
            ending: false,
            broken: false,
            deadline_ns: Some(context.turn.now_ns() + HANDSHAKE_TIMEOUT_NS),
            touched: false,
            has_more: false,
            was_costly: false,
            is_heavy: false,
        })
    }

    /// Processes a completed receive.
    pub(super) fn received(&mut self, result: i32) {
        let into = std::mem::replace(&mut self.receiving, Receiving::Nothing);
        self.watch.has_moved = true;
        match (result, into, &mut self.body) {
            (n, Receiving::Body, Some(body)) if n > 0 => body.filled += n as usize,
            (n, Receiving::Input, _) if n > 0 => self.end += n as usize,
            (n, ..) if n == -libc::EINTR || n == -libc::EAGAIN => {}
            // The client is gone, or has closed its sending side.
            _ => self.at_end = true,
        }
    }

    /// Processes a completed send.
    pub(super) fn sent(&mut self, result: i32, context: &mut Context<'_>) {
        self.sending.active = false;
        self.watch.has_moved = true;
        if result < 0 && result != -libc::EINTR && result != -libc::EAGAIN {
            (self.broken, self.ending) = (true, true);
        }
        self.sending.gather.advance(result.max(0) as usize);
        if self.sending.is_done() || self.broken {
            self.lent_bytes -= self.sending.clear(context.buffers);
        }
    }

    /// Builds the reply to a request that the pipeline has answered.
    pub(super) fn answered(&mut self, slot: u32, errno: i32, context: &mut Context<'_>) {
        let Some(Pending { request, buffer, .. }) = self.pending.remove(slot) else { return };
        let lent = buffer.as_ref().map_or(0, Buffer::size);
        let (keep, give) = match request.command {
            NbdCommand::Read if errno == 0 => (buffer, None),
            _ => (None, buffer),
        };
        if let Some(buffer) = give {
            self.lent_bytes -= lent;
            context.buffers.put(buffer);
        }
        let Phase::Transmission { negotiated, .. } = &self.phase else { return };
        let mut header = [0; MAX_REPLY_HEADER];
        let WireRequest { cookie, offset, len, fast_zero, .. } = request;
        let header_len = match (errno, request.command) {
            (0, NbdCommand::Read) => negotiated.read_ok(cookie, offset, len, &mut header),
            (0, _) => negotiated.ok(cookie, offset, &mut header),
            (libc::EOPNOTSUPP, NbdCommand::WriteZeroes) if fast_zero => negotiated.error(
                cookie,
                offset,
                NbdError::NotSup,
                "zeroing would not be fast",
                &mut header,
            ),
            (errno, _) => {
                negotiated.error(cookie, offset, NbdError::from_errno(errno), "", &mut header)
            }
        };
        let body = keep.map(|buffer| (buffer, len as usize));
        let lent = if body.is_some() { lent } else { 0 };
        self.replies.push_back(Reply { header, header_len, body, lent });
    }

    /// Reads requests from the input, as far as the limits allow.
    pub(super) fn read_requests(&mut self, id: u32, context: &mut Context<'_>) {
        self.has_more = false;
        self.starved = None;
        if self.ending {
            return;
        }
        if self.is_settling {
            return;
        }
        if let Phase::Handshake(_) = self.phase {
            self.shake_hands(id, context);
        }
        if (self.lent_bytes >= SEND_BYTES && !self.replies.is_empty())
            || self.replies.len() >= SEND_REQUESTS
        {
            self.send(id, context);
        }
        let before = self.lent_bytes;
        self.fill_body(id, context);
        let (enough, mut left) = (self.lent_bytes + SEND_BYTES, SEND_REQUESTS);
        while !self.ending && self.body.is_none() && self.lent_bytes < enough && left > 0 {
            if !self.read_one(id, context) {
                break;
            }
            left -= 1;
            if std::mem::take(&mut self.was_costly) {
                left = 0;
            }
        }
        self.has_more = self.lent_bytes >= enough || left == 0;
        if self.lent_bytes > before {
            self.is_heavy = self.lent_bytes - before >= HEAVY_ROUND;
        }
        // With nothing in flight, no limit holds requests back, so the rest is not a whole request.
        if self.at_end && (self.body.is_some() || self.in_flight() == 0) {
            self.ending = true;
        }
    }

    /// Number of requests between header and sent reply.
    fn in_flight(&self) -> usize {
        self.pending.len() + self.statuses.len() + self.replies.len() + self.sending.replies()
    }

    fn shake_hands(&mut self, id: u32, context: &mut Context<'_>) {
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        let Some(input) = self.input.bytes().get(self.start..self.end) else { return };
        let progress = handshake.input(input, &**context.registry, &mut self.text);
        self.start += progress.consumed;
        match progress.next {
            Next::More => {}
            Next::Close(reason) => {
                self.ending = true;
                match reason {
                    CloseReason::Abort | CloseReason::ExportName(_) => {
                        tracing::debug!(client = %self.peer, %reason, "closed in its handshake");
                    }
                    reason => self.complain(&reason.to_string(), &[], "its handshake is closed"),
                }
            }
            Next::Transmission(negotiated) => {
                let device =
                    context.registry.by_id(negotiated.export.id).as_ref().and_then(OpenDevice::new);
                // Since the answer, the device may have been removed and another one may have its
                // id.
                let is_it = |open: &OpenDevice| {
                    export_name(&open.device().name()) == negotiated.export.name
                };
                match device.filter(is_it) {
                    Some(device) => {
                        self.phase = Phase::Transmission { negotiated, device };
                        self.settle(id, context);
                    }
                    None => self.ending = true,
                }
            }
        }
    }

    /// Reads one request. Returns `false` if there is none, or if none may be read now.
    fn read_one(&mut self, id: u32, context: &mut Context<'_>) -> bool {
        let available = self.end - self.start;
        if self.refusal.is_some() {
            let skipped = self.skip.min(available as u64);
            self.skip -= skipped;
            self.start += skipped as usize;
            if self.skip == 0 {
                self.replies.extend(self.refusal.take());
            }
            return self.skip == 0;
        }
        let full = self.in_flight() >= MAX_IN_FLIGHT;
        let Phase::Transmission { negotiated, .. } = &self.phase else { return false };
        let header_len = negotiated.header_len();
        if full || available < header_len {
            return false;
        }
        let Some(header) = self.input.bytes().get(self.start..self.start + header_len) else {
            return false;
        };
        match negotiated.parse(header) {
            Parsed::Request(request) => return self.take_request(id, request, header_len, context),
            Parsed::Refused { cookie, offset, error, payload, reason, .. } => {
                let mut answer = [0; MAX_REPLY_HEADER];
                let len = negotiated.error(cookie, offset, error, reason, &mut answer);
                self.refusal = Some(Reply { header: answer, header_len: len, body: None, lent: 0 });
                self.complain_of_request(reason, header_len, "the request is refused");
                self.start += header_len;
                self.skip = payload;
            }
            Parsed::Disconnect => self.ending = true,
            Parsed::Broken(reason) => {
                self.complain_of_request(reason, header_len, "the connection is dropped");
                (self.broken, self.ending) = (true, true);
            }
        }
        true
    }

    /// Takes a request with a correct header. Returns `false` if its data would exceed a limit now,
    /// or has not arrived yet.
    fn take_request(
        &mut self,
        id: u32,
        request: WireRequest,
        header_len: usize,
        context: &mut Context<'_>,
    ) -> bool {
        let data = match request.command {
            NbdCommand::Read | NbdCommand::Write | NbdCommand::Cache if request.len > 0 => {
                request.len.min(u64::from(super::MAX_REQUEST_BYTES)) as usize
            }
            NbdCommand::BlockStatus => MAX_STATUS_CHUNK * MetaContext::ALL.len(),
            _ => 0,
        };
        if self.lent_bytes > 0 && self.lent_bytes + data > MAX_LENT_BYTES {
            return false;
        }
        if request.command == NbdCommand::BlockStatus {
            return self.block_status(id, request, header_len, context);
        }
        let buffer = match self.lend(&request, data, context) {
            Ok(buffer) => buffer,
            Err(Short::Spent) => return false,
            Err(Short::Refused) => {
                self.start += header_len;
                self.refuse_for_memory(&request, request.payload);
                return true;
            }
        };
        self.start += header_len;
        let write = request.command == NbdCommand::Write;
        let slot = self.pending.insert(Pending { request, buffer, barriers: Vec::new() });
        if write && data > 0 {
            self.input_cap = if data >= LARGE_WRITE { SHORT_INPUT } else { INPUT_BYTES };
            self.body = Some(Body { slot, filled: 0, len: data });
            self.fill_body(id, context);
            return true;
        }
        self.start(id, slot, context);
        true
    }

    /// Copies arrived data of a write into its body. The write starts when its body is whole.
    fn fill_body(&mut self, id: u32, context: &mut Context<'_>) {
        // Do nothing while the kernel fills the body.
        while self.receiving != Receiving::Body
            && let Some(body) = self.body.as_mut()
        {
            let buffer =
                self.pending.get_mut(body.slot).and_then(|pending| pending.buffer.as_mut());
            let Some(buffer) = buffer else { return };
            let room = body.len.min(buffer.size()) - body.filled;
            let come = room.min(self.end - self.start);
            if let Some(from) = self.input.bytes().get(self.start..self.start + come)
                && let Some(to) = buffer.bytes_mut().get_mut(body.filled..body.filled + come)
            {
                to.copy_from_slice(from);
            }
            self.start += come;
            body.filled += come;
            if body.filled == body.len {
                let slot = body.slot;
                self.body = None;
                return self.start(id, slot, context);
            }
            if come < room || !self.grow_body(context) {
                return;
            }
        }
    }

    /// Passes a complete request to the pipeline.
    fn start(&mut self, id: u32, slot: u32, context: &mut Context<'_>) {
        let (Phase::Transmission { device, .. }, Some(pending)) =
            (&self.phase, self.pending.get(slot))
        else {
            return self.answered(slot, libc::ESHUTDOWN, context);
        };
        let WireRequest { command, offset, len, fua, no_hole, fast_zero, .. } = pending.request;
        let op = match command {
            NbdCommand::Read => Op::Read,
            // Read the data and drop it, so that it is in the cache. This is not worth it for more
            // than one read.
            NbdCommand::Cache if len <= u64::from(super::MAX_REQUEST_BYTES) => Op::Read,
            NbdCommand::Write => Op::Write,
            NbdCommand::Flush => Op::Flush,
            NbdCommand::Trim => Op::Discard,
            NbdCommand::WriteZeroes => Op::WriteZeroes { no_hole, fast: fast_zero },
            NbdCommand::Cache | NbdCommand::BlockStatus => return self.answered(slot, 0, context),
        };
        if len == 0 && op != Op::Flush {
            return self.answered(slot, 0, context);
        }
        let data = pending.buffer.as_ref().map_or(Span::NONE, |buffer| Span(buffer.as_ptr()));
        // The buffer stays untouched in `pending` until the answer (contract of Span).
        let request =
            request::Request { op, fua, offset, len, data, pages: None, token: token(id, slot) };
        if let Some(errno) = context.pipeline.start(device.device().id(), &request, context.turn) {
            self.answered(slot, errno, context);
        }
    }

    /// Sends replies, and starts the next receive. Returns `true` if the caller must first read
    /// requests that the limits had held back.
    pub(super) fn arm(&mut self, id: u32, context: &mut Context<'_>) -> bool {
        if self.ending
            && self.receiving == Receiving::Nothing
            && let Some(body) = self.body.take()
        {
            // The rest of this write will never arrive, and it was never started.
            self.answered(body.slot, libc::ESHUTDOWN, context);
        }
        if self.broken {
            self.give_up_statuses(context);
            self.drop_output(context.buffers);
        } else if self.send(id, context) && !self.ending && (self.end > self.start || self.at_end) {
            return true;
        }
        if self.broken && (self.receiving != Receiving::Nothing || self.sending.active) {
            shutdown(self.socket.as_fd(), libc::SHUT_RDWR);
        } else if !self.ending {
            // Read the arrived input first, so that the data of a large write is received in place.
            if self.receiving == Receiving::Nothing && !self.at_end && !self.has_more {
                self.receive(id, context);
            }
        } else if self.receiving != Receiving::Nothing {
            // Ends the receive under way. Requests in flight are still answered.
            shutdown(self.socket.as_fd(), libc::SHUT_RD);
        }
        false
    }

    /// Drops replies that can no longer be sent.
    fn drop_output(&mut self, buffers: &mut Buffers) {
        self.text.clear();
        if !self.sending.active {
            self.lent_bytes -= self.sending.clear(buffers);
        }
        for reply in self.replies.drain(..) {
            self.lent_bytes -= reply.lent;
            if let Some((buffer, _)) = reply.body {
                buffers.put(buffer);
            }
        }
    }

    /// Sends replies: as many bytes as the socket takes at once, and the rest through the ring,
    /// which also detects errors. Returns whether some were sent at once, because requests that the
    /// limits held back may fit now.
    fn send(&mut self, id: u32, context: &mut Context<'_>) -> bool {
        let mut has_left = false;
        while !self.sending.active && !self.is_settling {
            if self.sending.is_done() {
                self.sending.fill(&mut self.text, &mut self.replies);
            }
            if self.sending.is_done() {
                break;
            }
            self.sending.gather.send_now(self.socket.as_fd());
            if self.sending.is_done() {
                self.lent_bytes -= self.sending.clear(context.buffers);
                has_left = true;
            } else {
                self.send_by_ring(id, context.turn);
            }
        }
        has_left
    }

    fn send_by_ring(&mut self, id: u32, ring: &mut Ring) {
        let Some(entry) = self.sending.gather.entry(self.socket.as_fd()) else { return };
        self.sending.active = true;
        // SAFETY: header, vectors, replies and text stay in `sending` until the completion (is_over
        // waits for it).
        unsafe { ring.push(&entry.user_data(user_data(Tag::Send, u64::from(id)))) };
    }

    fn receive(&mut self, id: u32, context: &mut Context<'_>) {
        let fd = types::Fd(self.socket.as_raw_fd());
        let (into, place, len, flags) = match &self.body {
            Some(body) if body.len >= LARGE_WRITE && self.starved.is_none() => {
                let buffer =
                    self.pending.get(body.slot).and_then(|pending| pending.buffer.as_ref());
                let Some(buffer) = buffer else { return };
                let place = buffer.as_ptr().wrapping_add(body.filled);
                let room = body.len.min(buffer.size()) - body.filled;
                (Receiving::Body, place, room.min(BODY_RECEIVE), libc::MSG_WAITALL)
            }
            _ => {
                self.compact();
                let room = self.input.size() - self.end;
                // No room: the limits hold requests back, and so the client.
                if room == 0 {
                    return;
                }
                let place = self.input.as_ptr().wrapping_add(self.end);
                (Receiving::Input, place, room.min(self.input_cap), 0)
            }
        };
        let entry = opcode::Recv::new(fd, place, len as u32).flags(flags).build();
        self.receiving = into;
        // SAFETY: the input buffer and the pending write's buffer stay in place until the
        // completion.
        unsafe { context.turn.push(&entry.user_data(user_data(Tag::Receive, u64::from(id)))) };
    }

    /// Moves unread bytes to the front when the rest of the buffer gets short.
    fn compact(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.input.size() - self.end < self.input.size() / 2 {
            let (start, end) = (self.start, self.end);
            self.input.bytes_mut().copy_within(start..end, 0);
            (self.start, self.end) = (0, end - start);
        }
    }

    /// Stops the connection: no more requests are read. Requests in flight are still answered, if
    /// the client takes the replies soon.
    pub(super) fn stop(&mut self, now_ns: u64) {
        self.ending = true;
        self.deadline_ns = Some(now_ns + STOP_TIMEOUT_NS);
    }

    /// Shuts the socket down, because nothing will be answered any more. So the client does not
    /// wait.
    pub(super) fn cut_off(&self) {
        shutdown(self.socket.as_fd(), libc::SHUT_RDWR);
    }

    /// Whether the connection needs a turn after a tick.
    pub(super) fn is_to_go_on(&self) -> bool {
        self.broken || self.starved.is_some()
    }

    /// Drops the connection if its time is up.
    pub(super) fn expire(&mut self, now_ns: u64) {
        let is_up = !self.broken && self.deadline_ns.is_some_and(|deadline| deadline <= now_ns);
        if is_up {
            tracing::debug!(
                "connection dropped: its handshake, or its last replies, took too long"
            );
            (self.broken, self.ending) = (true, true);
        }
    }

    fn nothing_to_send(&self) -> bool {
        !self.sending.active
            && self.sending.is_done()
            && self.replies.is_empty()
            && self.text.is_empty()
    }

    /// Whether the kernel and the pipeline have nothing of it any more, and nothing is left to
    /// send.
    pub(super) fn is_over(&self) -> bool {
        self.ending
            && self.receiving == Receiving::Nothing
            && self.pending.is_empty()
            && self.statuses.is_empty()
            && self.nothing_to_send()
    }

    /// Returns its buffers to the queue.
    pub(super) fn release(mut self, context: &mut Context<'_>) {
        self.drop_output(context.buffers);
    }
}
