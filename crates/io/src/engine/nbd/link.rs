//! A link to an NBD server: the operations that one queue has for one leaf, and the connection they go over.
//!
//! An operation is `ready` until it is sent, then on the wire until its last reply, then answered. When the connection
//! is lost (an error, the end, silence for longer than the timeout, a reply that is none) it is shut down; once the
//! kernel has let go of it, its operations are answered with the reason, or, as long as the leaf's `reconnect` time
//! has not run out for them, made ready again for the next connection.
//!
//! Contract: as [`Link`]. Requests are repeated only as wholes; reads, writes, trims, zeroes and flushes may be. What an
//! operation lends is touched by nobody once it is answered, even if the server answers a write before it has taken it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::conn::{BATCH, Conn, Received};
use super::handshake::Offer;
use super::wire::{self, Covered, Parsed, Reply, What};
use crate::engine::connector::Connector;
use crate::engine::links::{Finished, Link, Part, Port};
use crate::engine::{LeafIo, LeafOp};
use crate::nbd::{Command, command_flag};
use crate::slab::Slab;

/// Longest trim or zeroing that is asked for at once: a piece that every server takes, and answers in time.
const MAX_RANGE: u64 = 1 << 30;
/// Data of a read from here on is received where it belongs instead of being copied there.
const IN_PLACE: u64 = 16 << 10;

/// What the links of a leaf have in common.
pub(super) struct Shared {
    /// Makes their connections.
    pub(super) connector: Arc<Connector<OwnedFd>>,
    /// What the server offers.
    pub(super) offer: Offer,
    /// Longest time for an answer.
    pub(super) timeout_ns: u64,
    /// Longest time without a connection; 0: operations fail at once.
    pub(super) reconnect_ns: u64,
}

/// An operation.
struct Op {
    io: LeafIo,
    /// Bytes of a trim or zeroing that were answered by earlier requests.
    done: u64,
    /// Bytes of the request at hand.
    piece: u64,
    /// Tells its request from those that had its slot before; 0: not on the wire.
    serial: u32,
    /// The batch it was sent with.
    batch: u64,
    /// The first error of its reply.
    errno: i32,
    covered: Covered,
    /// When it came, or went on the wire again.
    since_ns: u64,
    /// When the connection was lost that it was to use first.
    lost_ns: Option<u64>,
}

/// What the next bytes of the server are.
#[derive(Clone, Copy)]
enum Step {
    Header,
    /// Data of a read.
    Data {
        slot: u32,
        /// Where in its memory.
        at: u64,
        left: u64,
        last: bool,
    },
    /// Something for humans.
    Skip {
        slot: u32,
        left: u64,
        last: bool,
    },
}

enum State {
    /// There is no connection, but no attempt has failed either.
    Connecting,
    Up(Box<Conn>),
    /// Lost; the kernel has not let go of it yet.
    Ending(Box<Conn>, i32),
    Down {
        since_ns: u64,
    },
}

/// See the module's text.
pub(super) struct NbdLink {
    shared: Arc<Shared>,
    berth: usize,
    state: State,
    step: Step,
    ops: Slab<Op>,
    ready: VecDeque<u32>,
    /// Answered writes of a batch that the kernel may still be sending, with their results.
    held: Vec<(u32, i64)>,
    serial: u32,
    /// Where the kernel writes the bell's count.
    bell_count: Box<u64>,
    bell_armed: bool,
    closing: bool,
}

impl NbdLink {
    /// The link of a berth, which takes its connection from there.
    pub(super) fn new(shared: Arc<Shared>, berth: usize) -> NbdLink {
        NbdLink {
            shared,
            berth,
            state: State::Connecting,
            step: Step::Header,
            ops: Slab::default(),
            ready: VecDeque::new(),
            held: Vec::new(),
            serial: 0,
            bell_count: Box::new(0),
            bell_armed: false,
            closing: false,
        }
    }

    /// Uses the connection that is ready, if there is one.
    fn adopt(&mut self, now_ns: u64) {
        let connector = &self.shared.connector;
        match connector.take(self.berth).map(Conn::new) {
            Some(conn) if !conn.is_stale() => {
                self.state = State::Up(Box::new(conn));
                self.step = Step::Header;
                for &slot in &self.ready {
                    if let Some(op) = self.ops.get_mut(slot) {
                        op.since_ns = now_ns;
                    }
                }
            }
            // Nobody has looked after it since the leaf was opened.
            Some(_) => connector.want(self.berth),
            None => connector.want_if_idle(self.berth),
        }
    }

    /// The connection cannot be used any more. Its operations are answered when the kernel has let go of it.
    fn lose(&mut self, errno: i32, why: &str) {
        match std::mem::replace(&mut self.state, State::Connecting) {
            State::Up(conn) => {
                if !self.closing {
                    tracing::warn!(leaf = self.shared.connector.name(), why, errno, "connection lost");
                }
                conn.shut_down();
                self.state = State::Ending(conn, errno);
            }
            other => self.state = other,
        }
    }

    /// The kernel has let go of the lost connection.
    fn bury(&mut self, errno: i32, now_ns: u64, out: &mut Finished) {
        self.state = State::Down { since_ns: now_ns };
        for (slot, result) in std::mem::take(&mut self.held) {
            self.answer(slot, result, out);
        }
        self.ready.clear();
        let slots: Vec<u32> = self.ops.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let Some(op) = self.ops.get_mut(slot) else { continue };
            op.lost_ns.get_or_insert(now_ns);
            (op.serial, op.errno) = (0, 0);
            op.covered.clear();
            self.ready.push_back(slot);
        }
        self.give_up(now_ns, errno, out);
        if !self.closing {
            self.shared.connector.want(self.berth);
        }
    }

    /// Answers what has waited for a connection for as long as it may.
    fn give_up(&mut self, now_ns: u64, errno: i32, out: &mut Finished) {
        let patience_ns = if self.closing { 0 } else { self.shared.reconnect_ns };
        for _ in 0..self.ready.len() {
            let Some(slot) = self.ready.pop_front() else { return };
            let lost_ns = self.ops.get(slot).and_then(|op| op.lost_ns);
            if lost_ns.is_some_and(|lost_ns| now_ns.saturating_sub(lost_ns) >= patience_ns) {
                self.answer(slot, -i64::from(errno), out);
            } else {
                self.ready.push_back(slot);
            }
        }
    }

    fn answer(&mut self, slot: u32, result: i64, out: &mut Finished) {
        if let Some(op) = self.ops.remove(slot) {
            out.push(&op.io, result);
        }
    }

    /// Sends what is ready.
    fn send(&mut self, port: &mut Port<'_>, out: &mut Finished) {
        let State::Up(conn) = &mut self.state else { return };
        loop {
            conn.send(port);
            if !conn.can_fill() || self.ready.is_empty() {
                break;
            }
            let batch = conn.begin_batch();
            for slot in self.ready.drain(..self.ready.len().min(BATCH)) {
                let Some(op) = self.ops.get_mut(slot) else { continue };
                self.serial = self.serial.wrapping_add(1).max(1);
                (op.serial, op.batch) = (self.serial, batch);
                let (header, data) = op.request(slot, &self.shared.offer);
                // SAFETY: the operation lends its memory until it is answered; answer_sent() waits for may_send().
                unsafe { conn.add(header, data) };
            }
        }
        self.release_held(out);
    }

    /// Answers the writes whose sending is over.
    fn release_held(&mut self, out: &mut Finished) {
        for _ in 0..self.held.len() {
            let Some((slot, result)) = self.held.pop() else { return };
            self.answer_sent(slot, result, out);
        }
    }

    /// Answers an operation, or notes the answer until the kernel has sent all of it.
    fn answer_sent(&mut self, slot: u32, result: i64, out: &mut Finished) {
        let Some(op) = self.ops.get(slot) else { return };
        match &self.state {
            State::Up(conn) if op.io.op == LeafOp::Write && conn.may_send(op.batch) => {
                self.held.insert(0, (slot, result));
            }
            _ => self.answer(slot, result, out),
        }
    }

    /// Has the next bytes received.
    fn receive(&mut self, port: &mut Port<'_>) {
        let State::Up(conn) = &mut self.state else { return };
        match self.step {
            Step::Data { slot, at, left, .. } if left >= IN_PLACE => {
                let Some(op) = self.ops.get(slot) else { return };
                // SAFETY: take_reply() checked that the data lies within what the operation lends, which it does until
                // it is answered: not before all of this data is there, or the connection is quiet.
                unsafe { conn.receive_at(op.io.data.at(at).0, left, port) };
            }
            _ => conn.receive(port),
        }
    }

    /// Reads what has come. Errors: the server does not keep to the protocol, or is going away; an errno and why.
    fn read(&mut self, out: &mut Finished) -> Result<(), (i32, &'static str)> {
        loop {
            let State::Up(conn) = &mut self.state else { return Ok(()) };
            match self.step {
                Step::Header => match wire::parse(conn.unread()) {
                    Parsed::More => return Ok(()),
                    Parsed::Broken(why) => return Err((libc::EPROTO, why)),
                    Parsed::Reply(reply) => {
                        conn.consume(reply.header);
                        self.take_reply(&reply, out)?;
                    }
                },
                Step::Data { slot, at, left, last } => {
                    let come = conn.unread().get(..left.min(conn.unread().len() as u64) as usize);
                    let come = come.unwrap_or_default();
                    if let Some(op) = self.ops.get(slot) {
                        // SAFETY: take_reply() checked that the data lies within what the operation lends.
                        unsafe {
                            std::ptr::copy_nonoverlapping(come.as_ptr(), op.io.data.at(at).0, come.len());
                        }
                    }
                    let come = come.len();
                    conn.consume(come);
                    if !self.data_came(slot, at, left, last, come as u64, out)? {
                        return Ok(());
                    }
                }
                Step::Skip { slot, left, last } => {
                    let come = left.min(conn.unread().len() as u64);
                    conn.consume(come as usize);
                    if come < left {
                        self.step = Step::Skip { slot, left: left - come, last };
                        return Ok(());
                    }
                    self.step = Step::Header;
                    self.piece_of_reply(slot, last, out)?;
                }
            }
        }
    }

    /// `come` more bytes of data are where they belong. Whether that was all.
    fn data_came(
        &mut self,
        slot: u32,
        at: u64,
        left: u64,
        last: bool,
        come: u64,
        out: &mut Finished,
    ) -> Result<bool, (i32, &'static str)> {
        if come < left {
            self.step = Step::Data { slot, at: at + come, left: left - come, last };
            return Ok(false);
        }
        self.step = Step::Header;
        self.piece_of_reply(slot, last, out)?;
        Ok(true)
    }

    /// Takes the header of a reply: checks that it answers a request of ours, and in a way that makes sense.
    fn take_reply(&mut self, reply: &Reply, out: &mut Finished) -> Result<(), (i32, &'static str)> {
        let broken = |why| Err((libc::EPROTO, why));
        let (slot, serial) = (reply.cookie as u32, (reply.cookie >> 32) as u32);
        let op = self.ops.get_mut(slot).filter(|op| op.serial == serial && serial != 0);
        let Some(op) = op else { return broken("a reply to no request") };
        if let State::Up(conn) = &mut self.state {
            conn.expect(if op.io.op == LeafOp::Read { op.piece } else { 0 });
        }
        let (is_read, last) = (op.io.op == LeafOp::Read, reply.last);
        match reply.what {
            What::Error { code, skip } => {
                if op.errno == 0 {
                    op.errno = wire::errno(code);
                }
                self.step = Step::Skip { slot, left: u64::from(skip), last };
                return Ok(());
            }
            What::Simple if is_read => {
                op.covered.clear();
                op.covered.add(0, op.piece);
                self.step = Step::Data { slot, at: 0, left: op.piece, last };
                return Ok(());
            }
            What::Data { offset, len } | What::Hole { offset, len } if is_read => {
                let (at, len) = (offset.checked_sub(op.io.offset), u64::from(len));
                let at = at.filter(|at| at.checked_add(len).is_some_and(|end| end <= op.piece));
                let Some(at) = at.filter(|at| op.covered.add(*at, len)) else {
                    return broken("data that was not asked for, or twice");
                };
                if matches!(reply.what, What::Data { .. }) {
                    self.step = Step::Data { slot, at, left: len, last };
                    return Ok(());
                }
                // SAFETY: checked to lie within the request, whose memory the operation lends.
                unsafe { op.io.data.at(at).0.write_bytes(0, len as usize) };
            }
            What::Data { .. } | What::Hole { .. } => return broken("data to a request that is no read"),
            What::Simple | What::Nothing => {}
        }
        self.piece_of_reply(slot, last, out)
    }

    /// A piece of a reply has come whole; with the last, the request is answered.
    fn piece_of_reply(
        &mut self,
        slot: u32,
        last: bool,
        out: &mut Finished,
    ) -> Result<(), (i32, &'static str)> {
        let Some(op) = self.ops.get_mut(slot).filter(|_| last) else { return Ok(()) };
        if op.errno == libc::ESHUTDOWN && self.shared.reconnect_ns > 0 {
            // Asked again on the next connection.
            return Err((libc::ESHUTDOWN, "the server is going away"));
        }
        op.serial = 0;
        let result = match (op.errno, op.io.op) {
            (0, LeafOp::Read) if !op.covered.is(op.piece) => {
                return Err((libc::EPROTO, "a read was answered in part"));
            }
            (0, LeafOp::Read | LeafOp::Write) => op.piece as i64,
            (0, LeafOp::Flush) => 0,
            (0, LeafOp::Discard | LeafOp::Zero { .. }) => {
                op.done += op.piece;
                if op.done < op.io.len {
                    self.ready.push_back(slot);
                    return Ok(());
                }
                0
            }
            (errno, _) => -i64::from(errno),
        };
        self.answer_sent(slot, result, out);
        Ok(())
    }
}

impl Op {
    /// The next request for it: header, and the data of a write.
    fn request(&mut self, slot: u32, offer: &Offer) -> ([u8; 28], Option<(*const u8, usize)>) {
        let left = self.io.len - self.done;
        let (command, most) = match self.io.op {
            LeafOp::Read => (Command::Read, u64::from(offer.max_block)),
            LeafOp::Write => (Command::Write, u64::from(offer.max_block)),
            LeafOp::Flush => (Command::Flush, 0),
            LeafOp::Discard => (Command::Trim, MAX_RANGE),
            LeafOp::Zero { .. } => (Command::WriteZeroes, MAX_RANGE),
        };
        let mut flags = if self.io.fua { command_flag::FUA } else { 0 };
        if self.io.op == (LeafOp::Zero { no_hole: true }) {
            flags |= command_flag::NO_HOLE;
        }
        if self.io.fast {
            flags |= command_flag::FAST_ZERO;
        }
        self.piece = left.min(most);
        // The document wants a flush to have no offset.
        let offset = if command == Command::Flush { 0 } else { self.io.offset + self.done };
        let cookie = u64::from(self.serial) << 32 | u64::from(slot);
        let header = wire::request(flags, command as u16, cookie, offset, self.piece as u32);
        let data = (command == Command::Write).then(|| (self.io.data.0.cast_const(), self.piece as usize));
        (header, data)
    }
}

impl Link for NbdLink {
    fn submit(&mut self, io: &LeafIo, now_ns: u64, out: &mut Finished) {
        let mut lost_ns = None;
        if let State::Down { since_ns } = self.state {
            self.adopt(now_ns);
            if let State::Down { .. } = self.state {
                if self.closing || now_ns.saturating_sub(since_ns) >= self.shared.reconnect_ns {
                    return out.push(io, -i64::from(libc::ENOTCONN));
                }
                lost_ns = Some(since_ns);
            }
        }
        let slot = self.ops.insert(Op {
            io: *io,
            done: 0,
            piece: 0,
            serial: 0,
            batch: 0,
            errno: 0,
            covered: Covered::default(),
            since_ns: now_ns,
            lost_ns,
        });
        self.ready.push_back(slot);
    }

    fn completed(&mut self, part: Part, result: i32, out: &mut Finished) {
        let (conn, is_up) = match &mut self.state {
            _ if part == Part::Bell => {
                self.bell_armed = false;
                return;
            }
            State::Up(conn) => (conn, true),
            State::Ending(conn, _) => (conn, false),
            State::Connecting | State::Down { .. } => return,
        };
        if part == Part::Send {
            match conn.sent(result) {
                Ok(()) => self.release_held(out),
                Err(errno) => self.lose(errno, "sending failed"),
            }
            return;
        }
        let received = conn.received(result);
        let read = match (received, self.step) {
            _ if !is_up => return,
            (Received::End(errno), _) => Err((errno, "the server has closed it")),
            (Received::Input, _) => self.read(out),
            (Received::Place(come), Step::Data { slot, at, left, last }) => {
                self.data_came(slot, at, left, last, come.min(left), out).map(drop)
            }
            (Received::Place(_), _) => Err((libc::EPROTO, "data without a place")),
        };
        if let Err((errno, why)) = read {
            self.lose(errno, why);
        }
    }

    fn turn(&mut self, port: &mut Port<'_>, out: &mut Finished) {
        let now_ns = port.now_ns();
        if self.shared.connector.is_closed() && !self.closing {
            self.close(now_ns, out);
        }
        if let State::Connecting = self.state
            && self.shared.connector.has_failed(self.berth)
        {
            self.state = State::Down { since_ns: now_ns };
            self.ready.iter().for_each(|slot| {
                if let Some(op) = self.ops.get_mut(*slot) {
                    op.lost_ns.get_or_insert(now_ns);
                }
            });
            self.give_up(now_ns, libc::ENOTCONN, out);
        }
        if let State::Connecting | State::Down { .. } = self.state
            && !self.closing
        {
            self.adopt(now_ns);
        }
        self.send(port, out);
        self.receive(port);
        if let State::Ending(conn, errno) = &self.state
            && conn.is_quiet()
        {
            let errno = *errno;
            self.bury(errno, now_ns, out);
        }
        if !self.bell_armed
            && !self.closing
            && let Some(seat) = self.shared.connector.seat(self.berth)
        {
            self.bell_armed = true;
            let entry = seat.bell().entry(&mut self.bell_count);
            // SAFETY: the count and the descriptor live until is_over(), which waits for the completion.
            unsafe { port.push(Part::Bell, entry) };
        }
        if self.is_over()
            && let Some(seat) = self.shared.connector.seat(self.berth)
        {
            seat.leave();
        }
    }

    fn tick(&mut self, now_ns: u64, out: &mut Finished) {
        let timeout_ns = self.shared.timeout_ns;
        let is_late = |op: &Op| now_ns.saturating_sub(op.since_ns) >= timeout_ns;
        match self.state {
            State::Up(_) if self.ops.iter().any(|(_, op)| is_late(op)) => {
                self.lose(libc::ETIMEDOUT, "no answer in time");
            }
            State::Connecting => {
                for _ in 0..self.ready.len() {
                    let Some(slot) = self.ready.pop_front() else { return };
                    if self.ops.get(slot).is_some_and(is_late) {
                        self.answer(slot, -i64::from(libc::ETIMEDOUT), out);
                    } else {
                        self.ready.push_back(slot);
                    }
                }
            }
            State::Down { .. } => self.give_up(now_ns, libc::ENOTCONN, out),
            State::Up(_) | State::Ending(..) => {}
        }
    }

    fn is_timed(&self) -> bool {
        !self.ops.is_empty()
    }

    fn close(&mut self, now_ns: u64, out: &mut Finished) {
        self.closing = true;
        if let Some(seat) = self.shared.connector.seat(self.berth) {
            seat.bell().ring();
        }
        if let State::Up(conn) = &mut self.state {
            if self.ops.is_empty() {
                conn.say_goodbye();
            }
            self.lose(libc::ENOTCONN, "the leaf is closed");
        }
        if let State::Connecting | State::Down { .. } = self.state {
            self.bury(libc::ENOTCONN, now_ns, out);
        }
    }

    fn is_over(&self) -> bool {
        self.closing && !self.bell_armed && self.ops.is_empty() && matches!(self.state, State::Down { .. })
    }
}
