//! iSCSI on a session: operations to commands, their ends to answers.
//!
//! Contract: as [`Protocol`]. What an operation lends is touched by nobody once it is answered, even
//! if the target answers a write before it has taken it. Whatever a target sends is checked against
//! the command that it belongs to ([`Transfer`]): every byte of a read comes once and in order, no
//! data is sent that was not asked for, and a command is good only if all of its data was moved.
//! Nothing is allocated in steady state. Secrets are not here. What is sent is in [`super::send`].

use std::collections::VecDeque;

use super::pdu::{self, DataOut, HEADER, Header, Heard, Incoming, Residual, Status, Transfer};
use super::scsi::{self, Outcome, UNMAP_LIST, Volume, Way};
use super::session::{Nexus, Session, TRIES, Wire};
use crate::engine::LeafOp;
use crate::engine::session::carrier::{self, DOUBTED, Lost, Protocol};
use crate::engine::session::conn::{Conn, Received};
use crate::engine::session::links::{Part, Port};

/// Most commands of a session that are under way: no target takes more.
pub(super) const MAX_TASKS: usize = 256;
/// Most pings that wait for their answer: a target that does not read is not to cost memory.
const MAX_PINGS: usize = 16;
/// Most sense data that is kept, as it stands in a response.
const MAX_SENSE: usize = 2 + 252;
/// Data of a read from here on is received where it belongs instead of being copied there.
const IN_PLACE: u32 = 16 << 10;
/// The tag of a logout: no command has it, as that of a command has a serial above 0 and below the
/// largest.
const LOGOUT_TAG: u32 = 0xff;
/// The part of a tag that says which task; the rest tells it from those that had its place before.
const TASK_MASK: u32 = MAX_TASKS as u32 - 1;
/// How long a target that asks for the end of the session may take for what is under way.
const LEAVING_NS: u64 = 2_000_000_000;

pub(super) type Work<'a> = carrier::Work<'a, IscsiLink>;

/// What is kept of an operation.
#[derive(Default)]
pub(super) struct Request {
    tries: u32,
    /// It is the flush after a write that is to be stable, of a unit that has no such writes.
    /// The bytes of that write.
    pub(super) flushes: Option<u64>,
}

/// A command under way.
pub(super) struct Task {
    pub(super) tag: u32,
    pub(super) slot: u32,
    /// Bytes of the operation that it is for.
    pub(super) piece: u64,
    /// Its own memory: the list of an UNMAP.
    pub(super) unmap: [u8; UNMAP_LIST],
    pub(super) transfer: Transfer,
    /// The last batch that has something of its data.
    pub(super) batch: u64,
    /// Bursts of it that are not sent.
    pub(super) bursts: u8,
    /// The target has answered.
    pub(super) has_ended: bool,
    /// What its operation is answered with then, if it is.
    pub(super) answer: Option<i64>,
}

/// Data that a target wants: it is sent in as many PDUs as it needs.
#[derive(Clone, Copy)]
pub(super) struct Burst {
    pub(super) task: u32,
    pub(super) next: DataOut,
    pub(super) end: u32,
}

/// What the next bytes of the target are.
#[derive(Clone, Copy)]
enum Step {
    Header,
    /// Data of a read, at `at` in the operation's memory.
    Data {
        task: u32,
        at: u64,
        left: u32,
    },
    /// Another data segment; its beginning is kept.
    Segment {
        left: u32,
    },
    /// What fills the data segment up.
    Padding {
        left: u32,
    },
}

/// How far a session is that ends because the target wants it to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    /// What is under way may end, until then; nothing new is sent.
    Soon {
        /// Whether it ends with a logout, or the target hangs up.
        logout: bool,
        /// Unknown until the next turn.
        until_ns: Option<u64>,
    },
    /// The target is to answer the logout, until then.
    LoggedOut {
        until_ns: u64,
    },
}

/// See the module's text.
pub(super) struct IscsiLink {
    pub(super) conn: Conn<{ HEADER + pdu::DIGEST }>,
    pub(super) wire: Wire,
    /// What the unit can do, which may be less than when the leaf was opened.
    pub(super) volume: Volume,
    nexus: Nexus,
    step: Step,
    /// The PDU whose data segment is coming.
    heard: Incoming,
    /// The beginning of its data segment, unless that is data of a read.
    segment: Vec<u8>,
    /// By tag. Its entries stay where they are: the kernel may read the list of an UNMAP.
    pub(super) tasks: Box<[Option<Task>]>,
    pub(super) free: Vec<u32>,
    pub(super) serial: u32,
    /// Data to be sent, at most one burst a task.
    pub(super) bursts: VecDeque<Burst>,
    /// Answers to pings.
    pub(super) pings: VecDeque<Header>,
    /// Tasks that are answered but for what the kernel is sending.
    held: Vec<u32>,
    /// Operations that the target had no room for: to be sent again when something else is done.
    busy: Vec<u32>,
    pub(super) leaving: Leaving,
}

impl Protocol for IscsiLink {
    type Connection = Session;
    type Facts = Volume;
    type Request = Request;
    type Mark = Nexus;

    fn mark(&self) -> Nexus {
        self.nexus.clone()
    }

    fn ends_doubt(session: &Session, lost: &Nexus) -> bool {
        // Its identifier is that of the session that was lost: each berth has one.
        session.nexus().is_same(lost) || session.has_reset_unit()
    }

    fn new(session: Session) -> Option<IscsiLink> {
        let nexus = session.nexus().clone();
        let (socket, wire, volume) = session.into_parts();
        let heard = Incoming::parse(&[0; HEADER]);
        Some(IscsiLink {
            conn: Conn::new(socket?)?,
            wire,
            volume,
            nexus,
            step: Step::Header,
            heard,
            segment: Vec::with_capacity(MAX_SENSE),
            tasks: (0..MAX_TASKS).map(|_| None).collect(),
            free: (0..MAX_TASKS as u32).rev().collect(),
            serial: 0,
            bursts: VecDeque::new(),
            pings: VecDeque::new(),
            held: Vec::new(),
            busy: Vec::new(),
            leaving: Leaving::No,
        })
    }

    fn is_stale(&self) -> bool {
        self.conn.is_stale()
    }

    fn turn(&mut self, work: &mut Work<'_>, port: &mut Port<'_>) -> Result<(), Lost> {
        if self.under_way() == 0 {
            work.ready.extend(self.busy.drain(..));
        }
        self.leave(port.now_ns());
        self.send(work, port);
        self.receive(work, port);
        Ok(())
    }

    fn completed(&mut self, part: Part, result: i32, work: &mut Work<'_>) -> Result<(), Lost> {
        if part == Part::Send {
            self.conn.sent(result).map_err(|errno| (errno, "sending failed"))?;
            self.release_held(work);
            return Ok(());
        }
        match (self.conn.received(result), self.step) {
            (Received::End(_), _) if self.leaving != Leaving::No => {
                Err((DOUBTED, "the target has ended the session, as it said"))
            }
            (Received::End(errno), _) => Err((errno, "the target has closed it")),
            (Received::Input, _) => self.read(work),
            (Received::Place(come), Step::Data { task, at, left }) => {
                let come = (come as u32).min(left);
                self.step = Step::Data { task, at: at + u64::from(come), left: left - come };
                self.read(work)
            }
            (Received::Place(_), _) => Err((libc::EPROTO, "data without a place")),
        }
    }

    fn tick(&mut self, now_ns: u64) -> Result<(), Lost> {
        match self.leaving {
            Leaving::Soon { until_ns: Some(until_ns), logout: false }
            | Leaving::LoggedOut { until_ns }
                if now_ns >= until_ns =>
            {
                Err((DOUBTED, "the target wants the session to end"))
            }
            _ => Ok(()),
        }
    }

    fn is_timed(&self) -> bool {
        self.leaving != Leaving::No
    }

    fn say_goodbye(&mut self) {
        let mut bytes = [0; HEADER + pdu::DIGEST];
        let header = pdu::logout(LOGOUT_TAG, self.wire.numbers);
        let len = sealed(&self.wire, &header, &mut bytes);
        self.conn.say_goodbye(bytes.get(..len).unwrap_or_default());
    }

    fn end(&mut self) {
        self.conn.shut_down();
    }

    fn completed_after_end(&mut self, part: Part, result: i32) {
        // Whatever came: it is not looked at any more.
        if part == Part::Send {
            let _ = self.conn.sent(result);
        } else {
            let _ = self.conn.received(result);
        }
    }

    fn is_quiet(&self) -> bool {
        self.conn.is_quiet()
    }

    fn bury(self, work: &mut Work<'_>) {
        // What succeeded before all of it was sent has not: it is sent again, as what was not
        // answered.
        for number in self.held {
            let task = self.tasks.get(number as usize).and_then(Option::as_ref);
            if let Some(Task { slot, answer: Some(answer @ ..0), .. }) = task {
                work.answer(*slot, *answer);
            }
        }
    }
}

/// A header with its digest, if there is one; how long that is.
pub(super) fn sealed(
    wire: &Wire,
    header: &Header,
    bytes: &mut [u8; HEADER + pdu::DIGEST],
) -> usize {
    let digest = if wire.agreed.digest { pdu::digest(header) } else { [0; pdu::DIGEST] };
    bytes.iter_mut().zip(header.iter().chain(&digest)).for_each(|(to, from)| *to = *from);
    wire.header_len()
}

impl IscsiLink {
    /// Commands that have not ended.
    fn under_way(&self) -> usize {
        MAX_TASKS - self.free.len() - self.held.len()
    }

    pub(super) fn task(&mut self, task: u32) -> Option<&mut Task> {
        self.tasks.get_mut(task as usize)?.as_mut()
    }

    /// The task of a tag, if it has not ended.
    pub(super) fn tagged(&self, tag: u32) -> Result<u32, Lost> {
        let number = tag & TASK_MASK;
        let task = self.tasks.get(number as usize).and_then(Option::as_ref);
        match task {
            Some(task) if task.tag == tag && !task.has_ended => Ok(number),
            _ => Err((libc::EPROTO, "an answer to no command")),
        }
    }

    /// Has the next bytes received.
    fn receive(&mut self, work: &mut Work<'_>, port: &mut Port<'_>) {
        if let Step::Data { task, at, left } = self.step
            && left >= IN_PLACE
            && let Some(op) = self.task(task).map(|task| task.slot).and_then(|op| work.ops.get(op))
        {
            // SAFETY: take_header() checked that the data lies within what the operation lends,
            // which it does until it is answered: not before all of this data is there, or the
            // connection is quiet.
            unsafe { self.conn.receive_at(op.io.data.at(at).0, u64::from(left), port) };
        } else {
            self.conn.receive(port);
        }
    }

    /// Reads what has come. Errors: the target does not keep to the protocol, or is to be left.
    fn read(&mut self, work: &mut Work<'_>) -> Result<(), Lost> {
        loop {
            let unread = self.conn.unread();
            let come = unread.len();
            match self.step {
                Step::Header => {
                    let (Some(header), Some(whole)) =
                        (unread.first_chunk::<HEADER>(), unread.get(..self.wire.header_len()))
                    else {
                        return Ok(());
                    };
                    let digest = whole.get(HEADER..).unwrap_or_default();
                    if !digest.is_empty() && digest != pdu::digest(header) {
                        return Err((libc::EPROTO, "a header whose digest is wrong"));
                    }
                    let (incoming, len) = (Incoming::parse(header), whole.len());
                    self.conn.consume(len);
                    self.take_header(incoming)?;
                }
                Step::Data { left: 0, .. } | Step::Segment { left: 0 } => {
                    self.step = Step::Padding { left: pdu::padding(self.heard.data) };
                }
                Step::Padding { left: 0 } => {
                    self.step = Step::Header;
                    self.take_pdu(work)?;
                }
                _ if come == 0 => return Ok(()),
                Step::Data { task, at, left } => {
                    let bytes = come.min(left as usize);
                    let slot = self.tasks.get(task as usize).and_then(Option::as_ref);
                    if let Some(op) = slot.and_then(|task| work.ops.get(task.slot)) {
                        // SAFETY: `bytes` are unread, and take_header() checked that the data lies
                        // within what the operation lends.
                        unsafe {
                            let to = op.io.data.at(at).0;
                            std::ptr::copy_nonoverlapping(unread.as_ptr(), to, bytes);
                        }
                    }
                    self.conn.consume(bytes);
                    self.step =
                        Step::Data { task, at: at + bytes as u64, left: left - bytes as u32 };
                }
                Step::Segment { left } => {
                    let bytes = come.min(left as usize);
                    let kept = bytes.min(MAX_SENSE - self.segment.len());
                    self.segment.extend_from_slice(unread.get(..kept).unwrap_or_default());
                    self.conn.consume(bytes);
                    self.step = Step::Segment { left: left - bytes as u32 };
                }
                Step::Padding { left } => {
                    let bytes = come.min(left as usize);
                    self.conn.consume(bytes);
                    self.step = Step::Padding { left: left - bytes as u32 };
                }
            }
        }
    }

    /// Takes a header, before its data segment.
    fn take_header(&mut self, incoming: Incoming) -> Result<(), Lost> {
        if let Heard::Broken(why) = incoming.heard {
            return Err((libc::EPROTO, why));
        }
        self.wire.count(&incoming.counters);
        self.heard = incoming;
        self.segment.clear();
        self.step = Step::Segment { left: incoming.data };
        if let Heard::DataIn { offset, .. } = incoming.heard {
            let number = self.tagged(incoming.tag)?;
            let Some(task) = self.task(number) else { return Ok(()) };
            task.transfer.came(offset, incoming.data).map_err(|why| (libc::EPROTO, why))?;
            let bytes = u64::from(task.transfer.bytes);
            self.conn.expect(bytes);
            self.step = Step::Data { task: number, at: u64::from(offset), left: incoming.data };
        }
        Ok(())
    }

    /// Takes a PDU that has come whole.
    fn take_pdu(&mut self, work: &mut Work<'_>) -> Result<(), Lost> {
        let Incoming { tag, heard, .. } = self.heard;
        match heard {
            Heard::DataIn { status: None, .. } => Ok(()),
            Heard::DataIn { status: Some(status), .. } => {
                let task = self.tagged(tag)?;
                self.end_task(task, status, (0, 0), work)
            }
            Heard::Response(status) => {
                let (task, sense) = (self.tagged(tag)?, scsi::sense(&self.segment));
                self.end_task(task, status, sense, work)
            }
            Heard::Ready { transfer, offset, len } => self.wanted(tag, transfer, offset, len),
            Heard::Ping { transfer, .. } if tag == pdu::NO_TAG && transfer == pdu::NO_TAG => Ok(()),
            Heard::Ping { transfer, lun } if tag == pdu::NO_TAG => {
                if self.pings.len() >= MAX_PINGS {
                    return Err((libc::EPROTO, "it pings and does not read the answers"));
                }
                self.pings.push_back(pdu::nop_out(lun, transfer, self.wire.numbers));
                Ok(())
            }
            Heard::Event { code, parameters } => self.take_event(code, parameters, work),
            Heard::Logout { .. }
                if tag == LOGOUT_TAG && matches!(self.leaving, Leaving::LoggedOut { .. }) =>
            {
                Err((DOUBTED, "the session has ended, as the target asked"))
            }
            // It waits for a logout that it has asked for.
            Heard::Reject { reason: 0x0c } => self.take_event(1, [0; 3], work),
            Heard::Reject { .. } => Err((libc::EPROTO, "the target rejects a request")),
            Heard::Ping { .. }
            | Heard::Managed { .. }
            | Heard::Logout { .. }
            | Heard::Login { .. }
            | Heard::Broken(_) => Err((libc::EPROTO, "an answer to no request")),
        }
    }

    /// The target tells of something.
    fn take_event(
        &mut self,
        code: u8,
        [_, _, seconds]: [u16; 3],
        work: &Work<'_>,
    ) -> Result<(), Lost> {
        /// What the units have to say, as sense data.
        const SCSI: u8 = 0;
        const LOGOUT: u8 = 1;
        const DROPS_CONNECTION: u8 = 2;
        const DROPS_SESSION: u8 = 3;
        const RENEGOTIATE: u8 = 4;
        let leaf = work.shared.connector.name();
        tracing::info!(leaf, code, seconds, "the target tells of an event");
        match code {
            SCSI => {
                let (key, ascq) = scsi::sense(&self.segment);
                match scsi::judge(scsi::status::CHECK_CONDITION, key, ascq) {
                    Outcome::Changed => Err((DOUBTED, "the logical unit may have changed")),
                    _ => Ok(()),
                }
            }
            LOGOUT | RENEGOTIATE | DROPS_CONNECTION | DROPS_SESSION => {
                if self.leaving == Leaving::No {
                    let logout = matches!(code, LOGOUT | RENEGOTIATE);
                    self.leaving = Leaving::Soon { logout, until_ns: None };
                }
                Ok(())
            }
            // Of a vendor's, or of a later standard.
            _ => Ok(()),
        }
    }

    /// Goes on with leaving a target that wants it.
    fn leave(&mut self, now_ns: u64) {
        let quiet = self.under_way() == 0;
        match &mut self.leaving {
            Leaving::Soon { logout: true, until_ns } => {
                let until_ns = *until_ns.get_or_insert(now_ns + LEAVING_NS);
                if quiet || now_ns >= until_ns {
                    self.leaving = Leaving::LoggedOut { until_ns: now_ns + LEAVING_NS };
                    self.pings.push_back(pdu::logout(LOGOUT_TAG, self.wire.numbers));
                }
            }
            Leaving::Soon { until_ns, .. } => {
                until_ns.get_or_insert(now_ns + LEAVING_NS);
            }
            Leaving::No | Leaving::LoggedOut { .. } => {}
        }
    }

    /// A command has ended. Errors: it cannot have ended so.
    fn end_task(
        &mut self,
        number: u32,
        end: Status,
        (key, ascq): (u8, u16),
        work: &mut Work<'_>,
    ) -> Result<(), Lost> {
        let Volume { fua: has_fua, cache: has_cache, .. } = self.volume;
        let Some(task) = self.task(number) else { return Ok(()) };
        let (slot, piece, transfer, unsent) = (task.slot, task.piece, task.transfer, task.bursts);
        let Some(op) = work.ops.get_mut(slot) else { return Ok(()) };
        let judged = end.status.map(|status| scsi::judge(i32::from(status), key, ascq));
        let outcome = match judged.unwrap_or(Outcome::Failed(libc::EREMOTEIO)) {
            Outcome::Good if unsent > 0 && end.residual == Residual::None => {
                return Err((libc::EPROTO, "a write was answered before it was sent"));
            }
            Outcome::Good => match transfer.is_whole(end.residual) {
                Ok(false) if matches!(op.io.op, LeafOp::Read | LeafOp::Write) => {
                    Outcome::Failed(libc::EREMOTEIO)
                }
                Ok(_) => Outcome::Good,
                Err(why) => return Err((libc::EPROTO, why)),
            },
            outcome => outcome,
        };
        let wants_flush = op.io.op == LeafOp::Write && op.io.fua && op.request.flushes.is_none();
        let answer = match outcome {
            Outcome::Good if wants_flush && !has_fua && has_cache => {
                op.request.flushes = Some(piece);
                None
            }
            Outcome::Good => match op.io.op {
                LeafOp::Read | LeafOp::Write => Some(piece as i64),
                LeafOp::Flush => Some(0),
                LeafOp::Discard | LeafOp::Zero { .. } => {
                    op.done += piece;
                    (op.done >= op.io.len).then_some(0)
                }
            },
            Outcome::Again if op.request.tries < TRIES => {
                op.request.tries += 1;
                let leaf = work.shared.connector.name();
                tracing::debug!(leaf, key, ascq, "command sent again");
                None
            }
            Outcome::Changed => return Err((DOUBTED, "the logical unit may have changed")),
            Outcome::Gone => return Err((scsi::GONE, "the logical unit is gone")),
            Outcome::Busy => None,
            Outcome::Again => Some(-i64::from(libc::EIO)),
            Outcome::Failed(errno) => Some(-i64::from(errno)),
        };
        match outcome {
            // It has a deadline like every operation.
            Outcome::Busy => self.busy.push(slot),
            Outcome::Good => {
                if answer.is_none() {
                    op.again();
                    work.ready.push_back(slot);
                }
                work.ready.extend(self.busy.drain(..));
            }
            _ if answer.is_none() => work.ready.push_back(slot),
            _ => {}
        }
        self.finish(number, answer, work);
        Ok(())
    }

    /// A task is over: its operation is answered, if it has an answer, when the kernel has sent all
    /// that it was handed of its data.
    fn finish(&mut self, number: u32, answer: Option<i64>, work: &mut Work<'_>) {
        if self.task(number).is_some_and(|task| task.bursts > 0) {
            self.bursts.retain(|burst| burst.task != number);
        }
        let Some(task) = self.tasks.get_mut(number as usize).and_then(Option::as_mut) else {
            return;
        };
        (task.has_ended, task.answer) = (true, answer);
        self.held.push(number);
        self.release_held(work);
    }

    /// Answers what the kernel has nothing of any more.
    pub(super) fn release_held(&mut self, work: &mut Work<'_>) {
        let Self { held, tasks, conn, free, .. } = self;
        held.retain(|number| {
            let Some(task) = tasks.get_mut(*number as usize) else { return false };
            let sends = |task: &Task| task.transfer.way == Way::Out && conn.may_send(task.batch);
            if task.as_ref().is_some_and(sends) {
                return true;
            }
            free.push(*number);
            if let Some(Task { slot, answer: Some(answer), .. }) = task.take() {
                work.answer(slot, answer);
            }
            false
        });
    }
}
