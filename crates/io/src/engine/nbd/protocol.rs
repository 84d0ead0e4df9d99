//! NBD on a connection: converts operations to requests, and replies to answers.
//!
//! Contract: as [`Protocol`]. No code touches the memory of an operation after its answer, even if
//! the server answers a write before it has received all of it. Each reply is checked against its
//! request.

use std::os::fd::OwnedFd;

use super::handshake::Offer;
use super::wire::{self, Covered, Parsed, Reply, ReplyKind};
use crate::engine::session::conn::{BATCH, Conn, Received};
use crate::engine::session::reconnecting::{self, Lost, Protocol};
use crate::engine::session::sessions::{SessionOp, SessionRing};
use crate::engine::session::socket::Socket;
use crate::engine::{LeafIo, LeafOp};
use crate::wire::nbd::{NbdCommand, REQUEST_LEN, command_flag, transmission_flag as flag};

/// Longest trim or zeroing in one request, in bytes. Every server accepts this length and answers
/// it in time.
const MAX_RANGE: u64 = 1 << 30;
/// Data of a read from this length on is received directly into the memory of the operation.
const IN_PLACE: u64 = 16 << 10;

type Work<'a> = reconnecting::Work<'a, NbdProtocol>;

/// A connection that is ready for requests, with the server's abilities on it. The abilities may be
/// less than when the leaf was opened; this session compensates.
pub(super) struct Connection {
    socket: OwnedFd,
    can: Can,
    /// The server's confirmation that this connection replaces older ones.
    confirmed: Option<Box<str>>,
}

/// The abilities of a server on one connection.
#[derive(Clone, Copy)]
struct Can {
    flags: u16,
    max_block: u32,
}

impl Can {
    fn has(self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Whether the server lacks an ability without which the operation cannot be sent.
    fn lacks(self, io: &LeafIo) -> bool {
        let needs = match io.op {
            LeafOp::Discard => flag::SEND_TRIM,
            LeafOp::Zero { .. } if io.fast => flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO,
            LeafOp::Zero { .. } => flag::SEND_WRITE_ZEROES,
            LeafOp::Read | LeafOp::Write | LeafOp::Flush => 0,
        };
        !self.has(needs)
    }
}

impl Connection {
    pub(super) fn new(socket: Socket, offer: &Offer, confirmed: Option<String>) -> Connection {
        let can = Can { flags: offer.flags, max_block: offer.max_block };
        Connection { socket: socket.into(), can, confirmed: confirmed.map(Into::into) }
    }
}

/// The protocol's state of an operation.
#[derive(Default)]
pub(super) struct NbdOpState {
    /// Whether this is the flush after a write that must be durable, for a server without FUA.
    flushes: bool,
    /// Bytes of the operation that the current request covers.
    piece: u64,
    /// Distinguishes the request from earlier ones in its slot. 0 while it is not on the wire.
    serial: u32,
    /// The batch in which the request was sent.
    batch: u64,
    /// The first error of its reply; 0 if there is none.
    errno: i32,
    covered: Covered,
}

/// The meaning of the next bytes from the server.
#[derive(Clone, Copy)]
enum Expecting {
    Header,
    /// Data of a read.
    Data {
        slot: u32,
        /// Offset within the operation's memory, in bytes.
        at: u64,
        left: u64,
        last: bool,
    },
    /// Text for humans, which is skipped.
    Skip {
        slot: u32,
        left: u64,
        last: bool,
    },
}

/// The protocol's state of one connection.
pub(super) struct NbdProtocol {
    can: Can,
    confirmed: Option<Box<str>>,
    conn: Conn<REQUEST_LEN>,
    expecting: Expecting,
    /// Answered writes of a batch that the kernel may still be sending, with their results.
    held: Vec<(u32, i64)>,
    serial: u32,
    /// Whether the server has announced that it shuts down. It gets no further requests, and the
    /// connection is dropped when all requests under way are answered.
    leaving: bool,
}

impl Protocol for NbdProtocol {
    type Connection = Connection;
    type Facts = Offer;
    type OpState = NbdOpState;
    type Mark = Option<Box<str>>;

    fn mark(&self) -> Option<Box<str>> {
        self.confirmed.clone()
    }

    fn ends_doubt(connection: &Connection, lost: &Option<Box<str>>) -> bool {
        // NBD has no way to end the requests of another connection. Only blkswitch's own export has
        // one, for connections of the same place to the same server.
        lost.is_some() && connection.confirmed == *lost
    }

    fn new(Connection { socket, can, confirmed }: Connection) -> Option<NbdProtocol> {
        let conn = Conn::new(socket)?;
        let held = Vec::new();
        Some(NbdProtocol {
            conn,
            can,
            confirmed,
            expecting: Expecting::Header,
            held,
            serial: 0,
            leaving: false,
        })
    }

    fn is_stale(&self) -> bool {
        self.conn.is_stale()
    }

    fn turn(&mut self, work: &mut Work<'_>, ring: &mut SessionRing<'_>) -> Result<(), Lost> {
        let has_sent = |(_, op): (u32, &reconnecting::PendingOp<NbdOpState>)| op.state.serial != 0;
        if self.leaving && self.held.is_empty() && !work.ops.iter().any(has_sent) {
            return Err((libc::ESHUTDOWN, "the server is going away"));
        }
        self.send(work, ring);
        self.receive(work, ring);
        Ok(())
    }

    fn completed(&mut self, part: SessionOp, result: i32, work: &mut Work<'_>) -> Result<(), Lost> {
        if part == SessionOp::Send {
            self.conn.sent(result).map_err(|errno| (errno, "sending failed"))?;
            self.release_held(work);
            return Ok(());
        }
        match (self.conn.received(result), self.expecting) {
            (Received::End(errno), _) => Err((errno, "the server has closed it")),
            (Received::Input, _) => self.read(work),
            (Received::Place(come), Expecting::Data { slot, at, left, last }) => {
                self.data_came(slot, at, left, last, come.min(left), work).map(drop)
            }
            (Received::Place(_), _) => Err((libc::EPROTO, "data without a place")),
        }
    }

    fn say_goodbye(&mut self) {
        self.conn.say_goodbye(&wire::request(0, NbdCommand::DISCONNECT, 0, 0, 0));
    }

    fn end(&mut self) {
        self.conn.shut_down();
    }

    fn completed_after_end(&mut self, part: SessionOp, result: i32) {
        // The connection is lost, so the received data does not matter.
        if part == SessionOp::Send {
            let _ = self.conn.sent(result);
        } else {
            let _ = self.conn.received(result);
        }
    }

    fn is_quiet(&self) -> bool {
        self.conn.is_quiet()
    }

    fn bury(self, work: &mut Work<'_>) {
        // A success before all data of a write was sent does not count. The write is sent again,
        // like operations without an answer.
        for (slot, result) in self.held.into_iter().filter(|(_, result)| *result < 0) {
            work.answer(slot, result);
        }
    }
}

impl NbdProtocol {
    /// Sends the operations that are ready.
    fn send(&mut self, work: &mut Work<'_>, ring: &mut SessionRing<'_>) {
        loop {
            self.conn.send(ring);
            if !self.conn.can_fill() || work.ready.is_empty() || self.leaving {
                break;
            }
            let batch = self.conn.begin_batch();
            // This allocates only if the server has lost an ability.
            let mut lacking = Vec::new();
            for slot in work.ready.drain(..work.ready.len().min(BATCH)) {
                let Some(op) = work.ops.get_mut(slot) else { continue };
                if self.can.lacks(&op.io) {
                    lacking.push(slot);
                    continue;
                }
                self.serial = self.serial.wrapping_add(1).max(1);
                (op.state.serial, op.state.batch) = (self.serial, batch);
                let (header, data) = op.state.fill(slot, &op.io, op.done, self.can);
                // SAFETY: the operation lends its memory until it is answered. answer_sent() waits
                // for may_send().
                unsafe { self.conn.add(&header, data) };
            }
            for slot in lacking {
                work.answer(slot, -i64::from(libc::EOPNOTSUPP));
            }
        }
        self.release_held(work);
    }

    /// Answers the held writes whose batch the kernel has sent.
    fn release_held(&mut self, work: &mut Work<'_>) {
        for _ in 0..self.held.len() {
            let Some((slot, result)) = self.held.pop() else { return };
            self.answer_sent(slot, result, work);
        }
    }

    /// Answers an operation, or holds the answer until the kernel has sent all of its data.
    fn answer_sent(&mut self, slot: u32, result: i64, work: &mut Work<'_>) {
        let is_held = |op: &reconnecting::PendingOp<NbdOpState>| {
            op.io.op == LeafOp::Write && self.conn.may_send(op.state.batch)
        };
        if work.ops.get(slot).is_some_and(is_held) {
            self.held.insert(0, (slot, result));
        } else {
            work.answer(slot, result);
        }
    }

    /// Starts to receive the next bytes.
    fn receive(&mut self, work: &mut Work<'_>, ring: &mut SessionRing<'_>) {
        match self.expecting {
            Expecting::Data { slot, at, left, .. } if left >= IN_PLACE => {
                let Some(op) = work.ops.get(slot) else { return };
                // SAFETY: take_reply() checked that the data lies within the memory that the
                // operation lends. The operation is answered only after all of this data has
                // arrived, or when the connection is quiet.
                unsafe { self.conn.receive_at(op.io.data.at(at).0, left, ring) };
            }
            _ => self.conn.receive(ring),
        }
    }

    /// Processes the received bytes. `Err` if the server violates the protocol, or is going away.
    fn read(&mut self, work: &mut Work<'_>) -> Result<(), Lost> {
        loop {
            match self.expecting {
                Expecting::Header => match wire::parse(self.conn.unread()) {
                    Parsed::More => return Ok(()),
                    Parsed::Broken(why) => return Err((libc::EPROTO, why)),
                    Parsed::Reply(reply) => {
                        self.conn.consume(reply.header);
                        self.take_reply(&reply, work)?;
                    }
                },
                Expecting::Data { slot, at, left, last } => {
                    let unread = self.conn.unread();
                    let come = left.min(unread.len() as u64);
                    if let Some(op) = work.ops.get(slot) {
                        // SAFETY: `come` bytes are unread, and take_reply() checked that the data
                        // lies within the memory that the operation lends.
                        unsafe {
                            std::ptr::copy_nonoverlapping(
                                unread.as_ptr(),
                                op.io.data.at(at).0,
                                come as usize,
                            );
                        }
                    }
                    self.conn.consume(come as usize);
                    if !self.data_came(slot, at, left, last, come, work)? {
                        return Ok(());
                    }
                }
                Expecting::Skip { slot, left, last } => {
                    let come = left.min(self.conn.unread().len() as u64);
                    self.conn.consume(come as usize);
                    if come < left {
                        self.expecting = Expecting::Skip { slot, left: left - come, last };
                        return Ok(());
                    }
                    self.expecting = Expecting::Header;
                    self.piece_of_reply(slot, last, work)?;
                }
            }
        }
    }

    /// Notes that `come` more bytes of data have arrived. Returns whether that was all.
    fn data_came(
        &mut self,
        slot: u32,
        at: u64,
        left: u64,
        last: bool,
        come: u64,
        work: &mut Work<'_>,
    ) -> Result<bool, Lost> {
        if come < left {
            self.expecting = Expecting::Data { slot, at: at + come, left: left - come, last };
            return Ok(false);
        }
        self.expecting = Expecting::Header;
        self.piece_of_reply(slot, last, work)?;
        Ok(true)
    }

    /// Processes the header of a reply. `Err` if it does not fit a request of this connection.
    fn take_reply(&mut self, reply: &Reply, work: &mut Work<'_>) -> Result<(), Lost> {
        let broken = |why| Err((libc::EPROTO, why));
        let (slot, serial) = (reply.cookie as u32, (reply.cookie >> 32) as u32);
        let op = work.ops.get_mut(slot).filter(|op| op.state.serial == serial && serial != 0);
        let Some(reconnecting::PendingOp { io, state, .. }) = op else {
            return broken("a reply to no request");
        };
        let (is_read, last) = (io.op == LeafOp::Read, reply.last);
        self.conn.expect(if is_read { state.piece } else { 0 });
        match reply.kind {
            ReplyKind::Error { code, skip } => {
                if state.errno == 0 {
                    state.errno = wire::errno(code);
                }
                self.expecting = Expecting::Skip { slot, left: u64::from(skip), last };
                return Ok(());
            }
            ReplyKind::Simple if is_read => {
                state.covered.clear();
                state.covered.add(0, state.piece);
                self.expecting = Expecting::Data { slot, at: 0, left: state.piece, last };
                return Ok(());
            }
            ReplyKind::Data { offset, len } | ReplyKind::Hole { offset, len } if is_read => {
                let (at, len) = (offset.checked_sub(io.offset), u64::from(len));
                let at = at.filter(|at| at.checked_add(len).is_some_and(|end| end <= state.piece));
                let Some(at) = at.filter(|at| state.covered.add(*at, len)) else {
                    return broken("data that was not asked for, or twice");
                };
                if matches!(reply.kind, ReplyKind::Data { .. }) {
                    self.expecting = Expecting::Data { slot, at, left: len, last };
                    return Ok(());
                }
                // SAFETY: checked to lie within the request, whose memory the operation lends.
                unsafe { io.data.at(at).0.write_bytes(0, len as usize) };
            }
            ReplyKind::Data { .. } | ReplyKind::Hole { .. } => {
                return broken("data to a request that is no read");
            }
            ReplyKind::Simple | ReplyKind::Nothing => {}
        }
        self.piece_of_reply(slot, last, work)
    }

    /// A chunk of a reply is complete. If it is the last one, the request is answered.
    fn piece_of_reply(&mut self, slot: u32, last: bool, work: &mut Work<'_>) -> Result<(), Lost> {
        let reconnects = work.reconnects();
        let Some(op) = work.ops.get_mut(slot).filter(|_| last) else { return Ok(()) };
        op.state.serial = 0;
        if op.state.errno == libc::ESHUTDOWN {
            // A server that waits for its clients to leave (nbdkit after SIGTERM) would answer
            // every request like this. The other requests keep the connection until they are
            // answered, because without it they would be in doubt.
            self.leaving = true;
            if reconnects {
                // The server refused the request, so it can be sent again on the next connection.
                op.state = NbdOpState::default();
                work.ready.push_back(slot);
                return Ok(());
            }
        }
        let is_write = op.io.op == LeafOp::Write && op.state.errno == 0;
        if is_write && op.io.fua && !self.can.has(flag::SEND_FUA) && !op.state.flushes {
            op.state.flushes = true;
            op.again();
            work.ready.push_back(slot);
            return Ok(());
        }
        let result = match (op.state.errno, op.io.op) {
            (0, LeafOp::Read) if !op.state.covered.is(op.state.piece) => {
                return Err((libc::EPROTO, "a read was answered in part"));
            }
            (0, LeafOp::Read | LeafOp::Write) => op.state.piece as i64,
            (0, LeafOp::Flush) => 0,
            (0, LeafOp::Discard | LeafOp::Zero { .. }) => {
                op.done += op.state.piece;
                if op.done < op.io.len {
                    op.again();
                    work.ready.push_back(slot);
                    return Ok(());
                }
                0
            }
            (errno, _) => -i64::from(errno),
        };
        self.answer_sent(slot, result, work);
        Ok(())
    }
}

impl NbdOpState {
    /// Builds the request for the rest of an operation: its header, and the data of a write.
    fn fill(
        &mut self,
        slot: u32,
        io: &LeafIo,
        done: u64,
        can: Can,
    ) -> ([u8; REQUEST_LEN], Option<(*const u8, usize)>) {
        let (command, most) = match io.op {
            LeafOp::Write if self.flushes => (NbdCommand::Flush, 0),
            LeafOp::Read => (NbdCommand::Read, u64::from(can.max_block)),
            LeafOp::Write => (NbdCommand::Write, u64::from(can.max_block)),
            LeafOp::Flush => (NbdCommand::Flush, 0),
            LeafOp::Discard => (NbdCommand::Trim, MAX_RANGE),
            LeafOp::Zero { .. } => (NbdCommand::WriteZeroes, MAX_RANGE),
        };
        let has_fua = io.fua && can.has(flag::SEND_FUA);
        let mut flags = if has_fua { command_flag::FUA } else { 0 };
        if io.op == (LeafOp::Zero { no_hole: true }) {
            flags |= command_flag::NO_HOLE;
        }
        if io.fast {
            flags |= command_flag::FAST_ZERO;
        }
        let len = (io.len - done).min(most);
        if !self.flushes {
            self.piece = len;
        }
        // The specification requires that a flush has no offset.
        let offset = if command == NbdCommand::Flush { 0 } else { io.offset + done };
        let cookie = u64::from(self.serial) << 32 | u64::from(slot);
        let header = wire::request(flags, command as u16, cookie, offset, len as u32);
        let data =
            (command == NbdCommand::Write).then(|| (io.data.0.cast_const(), self.piece as usize));
        (header, data)
    }
}
