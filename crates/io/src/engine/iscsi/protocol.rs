//! iSCSI on a session: converts operations to commands, and their ends to answers.
//!
//! Contract: as [`Protocol`]. No code touches the memory of an operation after its answer, even if
//! the target answers a write before it has received all of it. Everything a target sends is
//! checked against its command ([`Transfer`]): every byte of a read arrives once and in order, only
//! requested data is sent, and a command succeeds only if all of its data was moved. In steady
//! state nothing is allocated. This module handles no secrets. [`super::send`] sends.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::pdu::{self, DataOut, HEADER, Header, Heard, Incoming, Residual, Status, Transfer};
use super::scsi::{self, Outcome, UNMAP_LIST, Volume, Way};
use super::session::{IscsiSession, Nexus, TRIES, Wire};
use crate::engine::LeafOp;
use crate::engine::session::conn::{Conn, Received};
use crate::engine::session::reconnecting::{self, DOUBTED, Lost, Protocol};
use crate::engine::session::sessions::{SessionOp, SessionRing};

/// Most commands of a session that are under way. No known target accepts more.
pub(super) const MAX_TASKS: usize = 256;
/// Most pings without an answer, so that a target that pings but does not read costs little memory.
const MAX_PINGS: usize = 16;
/// Most sense data in bytes that is kept, in the form of a response.
const MAX_SENSE: usize = 2 + 252;
/// Data of a read from this length on is received directly into the memory of the operation.
const IN_PLACE: u32 = 16 << 10;
/// The tag of a logout. No command has it, because the serial in a command's tag is above 0.
const LOGOUT_TAG: u32 = 0xff;
/// The bits of a tag that number the task. The other bits distinguish it from earlier tasks with
/// the number.
const TASK_MASK: u32 = MAX_TASKS as u32 - 1;
/// How long operations under way may take after the target has asked to end the session.
const LEAVING_NS: u64 = 2_000_000_000;

pub(super) type Work<'a> = reconnecting::Work<'a, IscsiProtocol>;

/// Shared by the sessions of a leaf, beside their connections.
pub(super) struct Facts {
    /// The properties of the unit when the leaf was opened.
    pub(super) volume: Volume,
    /// How often the unit has told that its map of blocks to port groups may have changed.
    pub(super) map_notices: AtomicU64,
}

impl Facts {
    fn hear(&self, ascq: u16) {
        if scsi::tells_of_map(ascq) {
            self.map_notices.fetch_add(1, Relaxed);
        }
    }
}

/// The protocol's state of an operation.
#[derive(Default)]
pub(super) struct IscsiOpState {
    tries: u32,
    /// `Some` for the flush after a write that must be durable, on a unit without FUA: the number
    /// of bytes of that write.
    pub(super) flushes: Option<u64>,
}

/// A command under way.
pub(super) struct Task {
    pub(super) tag: u32,
    pub(super) slot: u32,
    /// Number of bytes of the operation that the command covers.
    pub(super) piece: u64,
    /// The parameter list of an UNMAP.
    pub(super) unmap: [u8; UNMAP_LIST],
    pub(super) transfer: Transfer,
    /// The last batch that contains some of its data.
    pub(super) batch: u64,
    /// Number of its bursts that are not sent yet.
    pub(super) bursts: u8,
    /// Whether the target has answered.
    pub(super) has_ended: bool,
    /// The answer for the operation; `None` if the operation goes on with another command.
    pub(super) answer: Option<i64>,
}

/// Data that a target wants. It is sent in as many PDUs as it needs.
#[derive(Clone, Copy)]
pub(super) struct Burst {
    pub(super) task: u32,
    pub(super) next: DataOut,
    pub(super) end: u32,
}

/// The meaning of the next bytes from the target.
#[derive(Clone, Copy)]
enum Expecting {
    Header,
    /// Data of a read, at `at` in the operation's memory.
    Data {
        task: u32,
        at: u64,
        left: u32,
    },
    /// Another data segment, of which the beginning is kept.
    Segment {
        left: u32,
    },
    /// The padding behind a data segment.
    Padding {
        left: u32,
    },
}

/// The progress of ending a session because the target asked for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    /// Commands under way may end until then. No new commands are sent.
    Soon {
        /// Whether this side logs out. Otherwise the target hangs up.
        logout: bool,
        /// `None` until the next turn.
        until_ns: Option<u64>,
    },
    /// The logout was sent. The target must answer it until then.
    LoggedOut {
        until_ns: u64,
    },
}

/// The protocol's state of one session.
pub(super) struct IscsiProtocol {
    pub(super) conn: Conn<{ HEADER + pdu::DIGEST }>,
    pub(super) wire: Wire,
    /// The properties of the unit on this session, which may offer less than when the leaf was
    /// opened.
    pub(super) volume: Volume,
    nexus: Nexus,
    expecting: Expecting,
    /// The PDU whose data segment is being received.
    heard: Incoming,
    /// The beginning of its data segment, unless it is data of a read.
    segment: Vec<u8>,
    /// The tasks by number. They do not move, because the kernel may read the list of an UNMAP.
    pub(super) tasks: Box<[Option<Task>]>,
    pub(super) free: Vec<u32>,
    pub(super) serial: u32,
    /// Data to be sent.
    pub(super) bursts: VecDeque<Burst>,
    /// Answers to pings, and the logout.
    pub(super) pings: VecDeque<Header>,
    /// Tasks that the target has answered, while the kernel may still be sending their data.
    held: Vec<u32>,
    /// Operations for which the target had no room. They are sent again after another command has
    /// ended.
    busy: Vec<u32>,
    pub(super) leaving: Leaving,
}

impl Protocol for IscsiProtocol {
    type Connection = IscsiSession;
    type Facts = Facts;
    type OpState = IscsiOpState;
    type Mark = Nexus;

    fn mark(&self) -> Nexus {
        self.nexus.clone()
    }

    fn ends_doubt(session: &IscsiSession, lost: &Nexus) -> bool {
        // Each session has its own session identifier, so it is that of the lost session. A reset
        // of the unit also ends the commands.
        session.nexus().is_same(lost) || session.has_reset_unit()
    }

    fn new(session: IscsiSession) -> Option<IscsiProtocol> {
        let nexus = session.nexus().clone();
        let (socket, wire, volume) = session.into_parts();
        let heard = Incoming::parse(&[0; HEADER]);
        Some(IscsiProtocol {
            conn: Conn::new(socket?)?,
            wire,
            volume,
            nexus,
            expecting: Expecting::Header,
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

    fn turn(&mut self, work: &mut Work<'_>, ring: &mut SessionRing<'_>) -> Result<(), Lost> {
        if self.under_way() == 0 {
            work.ready.extend(self.busy.drain(..));
        }
        self.leave(ring.now_ns());
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
            (Received::End(_), _) if self.leaving != Leaving::No => {
                Err((DOUBTED, "the target has ended the session, as it said"))
            }
            (Received::End(errno), _) => Err((errno, "the target has closed it")),
            (Received::Input, _) => self.read(work),
            (Received::Place(come), Expecting::Data { task, at, left }) => {
                let come = (come as u32).min(left);
                self.expecting =
                    Expecting::Data { task, at: at + u64::from(come), left: left - come };
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
        for number in self.held {
            let task = self.tasks.get(number as usize).and_then(Option::as_ref);
            if let Some(Task { slot, answer: Some(answer @ ..0), .. }) = task {
                work.answer(*slot, *answer);
            }
        }
    }
}

/// Encodes a header, with its digest if that was negotiated. Returns the length.
pub(super) fn sealed(
    wire: &Wire,
    header: &Header,
    bytes: &mut [u8; HEADER + pdu::DIGEST],
) -> usize {
    let digest = if wire.agreed.digest { pdu::digest(header) } else { [0; pdu::DIGEST] };
    bytes.iter_mut().zip(header.iter().chain(&digest)).for_each(|(to, from)| *to = *from);
    wire.header_len()
}

impl IscsiProtocol {
    /// Number of commands that have not ended.
    fn under_way(&self) -> usize {
        MAX_TASKS - self.free.len() - self.held.len()
    }

    pub(super) fn task(&mut self, task: u32) -> Option<&mut Task> {
        self.tasks.get_mut(task as usize)?.as_mut()
    }

    /// The task with a tag. `Err` if there is none, or if it has ended.
    pub(super) fn tagged(&self, tag: u32) -> Result<u32, Lost> {
        let number = tag & TASK_MASK;
        let task = self.tasks.get(number as usize).and_then(Option::as_ref);
        match task {
            Some(task) if task.tag == tag && !task.has_ended => Ok(number),
            _ => Err((libc::EPROTO, "an answer to no command")),
        }
    }

    /// Starts to receive the next bytes.
    fn receive(&mut self, work: &mut Work<'_>, ring: &mut SessionRing<'_>) {
        if let Expecting::Data { task, at, left } = self.expecting
            && left >= IN_PLACE
            && let Some(op) = self.task(task).map(|task| task.slot).and_then(|op| work.ops.get(op))
        {
            // SAFETY: take_header() checked that the data lies within the memory that the operation
            // lends. The operation is answered only after all of this data has arrived, or when the
            // connection is quiet.
            unsafe { self.conn.receive_at(op.io.data.at(at).0, u64::from(left), ring) };
        } else {
            self.conn.receive(ring);
        }
    }

    /// Processes the received bytes. `Err` if the target violates the protocol, or if the session
    /// must end.
    fn read(&mut self, work: &mut Work<'_>) -> Result<(), Lost> {
        loop {
            let unread = self.conn.unread();
            let come = unread.len();
            match self.expecting {
                Expecting::Header => {
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
                Expecting::Data { left: 0, .. } | Expecting::Segment { left: 0 } => {
                    self.expecting = Expecting::Padding { left: pdu::padding(self.heard.data) };
                }
                Expecting::Padding { left: 0 } => {
                    self.expecting = Expecting::Header;
                    self.take_pdu(work)?;
                }
                _ if come == 0 => return Ok(()),
                Expecting::Data { task, at, left } => {
                    let bytes = come.min(left as usize);
                    let slot = self.tasks.get(task as usize).and_then(Option::as_ref);
                    if let Some(op) = slot.and_then(|task| work.ops.get(task.slot)) {
                        // SAFETY: `bytes` are unread, and take_header() checked that the data lies
                        // within the memory that the operation lends.
                        unsafe {
                            let to = op.io.data.at(at).0;
                            std::ptr::copy_nonoverlapping(unread.as_ptr(), to, bytes);
                        }
                    }
                    self.conn.consume(bytes);
                    self.expecting =
                        Expecting::Data { task, at: at + bytes as u64, left: left - bytes as u32 };
                }
                Expecting::Segment { left } => {
                    let bytes = come.min(left as usize);
                    let kept = bytes.min(MAX_SENSE - self.segment.len());
                    self.segment.extend_from_slice(unread.get(..kept).unwrap_or_default());
                    self.conn.consume(bytes);
                    self.expecting = Expecting::Segment { left: left - bytes as u32 };
                }
                Expecting::Padding { left } => {
                    let bytes = come.min(left as usize);
                    self.conn.consume(bytes);
                    self.expecting = Expecting::Padding { left: left - bytes as u32 };
                }
            }
        }
    }

    /// Processes a header, before its data segment.
    fn take_header(&mut self, incoming: Incoming) -> Result<(), Lost> {
        if let Heard::Broken(why) = incoming.heard {
            return Err((libc::EPROTO, why));
        }
        self.wire.count(&incoming.counters);
        self.heard = incoming;
        self.segment.clear();
        self.expecting = Expecting::Segment { left: incoming.data };
        if let Heard::DataIn { offset, .. } = incoming.heard {
            let number = self.tagged(incoming.tag)?;
            let Some(task) = self.task(number) else { return Ok(()) };
            task.transfer.came(offset, incoming.data).map_err(|why| (libc::EPROTO, why))?;
            let bytes = u64::from(task.transfer.bytes);
            self.conn.expect(bytes);
            self.expecting =
                Expecting::Data { task: number, at: u64::from(offset), left: incoming.data };
        }
        Ok(())
    }

    /// Processes a complete PDU.
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
            // Reason 0x0c: the target waits for a logout that it has asked for.
            Heard::Reject { reason: 0x0c } => self.take_event(1, [0; 3], work),
            Heard::Reject { .. } => Err((libc::EPROTO, "the target rejects a request")),
            Heard::Ping { .. }
            | Heard::Managed { .. }
            | Heard::Logout { .. }
            | Heard::Login { .. }
            | Heard::Broken(_) => Err((libc::EPROTO, "an answer to no request")),
        }
    }

    /// Processes an asynchronous event.
    fn take_event(
        &mut self,
        code: u8,
        [_, _, seconds]: [u16; 3],
        work: &Work<'_>,
    ) -> Result<(), Lost> {
        /// Sense data of a unit.
        const SCSI: u8 = 0;
        const LOGOUT: u8 = 1;
        const DROPS_CONNECTION: u8 = 2;
        const DROPS_SESSION: u8 = 3;
        const RENEGOTIATE: u8 = 4;
        let reconnector = &work.shared.reconnector;
        if let Some(suppressed) = reconnector.log.event.pass() {
            let leaf = reconnector.name();
            tracing::info!(leaf, code, seconds, suppressed, "the target tells of an event");
        }
        match code {
            SCSI => {
                let (key, ascq) = scsi::sense(&self.segment);
                work.shared.facts.hear(ascq);
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
            // Vendor-specific, or of a later standard.
            _ => Ok(()),
        }
    }

    /// Continues to end the session, if the target has asked for that.
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

    /// Processes the end of a command. `Err` if it cannot have ended like this.
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
        work.shared.facts.hear(ascq);
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
        let wants_flush = op.io.op == LeafOp::Write && op.io.fua && op.state.flushes.is_none();
        let answer = match outcome {
            Outcome::Good if wants_flush && !has_fua && has_cache => {
                op.state.flushes = Some(piece);
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
            Outcome::Again if op.state.tries < TRIES => {
                op.state.tries += 1;
                let leaf = work.shared.reconnector.name();
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
            // The operation keeps its deadline, so it does not wait for ever.
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

    /// Ends a task. Its operation gets the answer, if there is one, after the kernel has sent all
    /// of the task's data.
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

    /// Answers held tasks whose data the kernel does not use any more.
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
