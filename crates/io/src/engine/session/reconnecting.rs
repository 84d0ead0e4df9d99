//! [`Reconnecting`]: the session of a leaf that is reached over connections, for any protocol.
//!
//! An operation is `ready` until its protocol has sent it, then under way, then answered. A
//! connection is lost after an error, its end, silence for longer than the timeout, or a wrong
//! answer. The session then ends the connection and waits until nothing refers to the operations'
//! memory any more. Then it answers them with the reason, or makes them ready for the next
//! connection if the leaf's `reconnect` time is not over.
//!
//! Contract: as [`Session`]. The [`Protocol`] decides what goes over the wire; this module decides
//! about operations without a connection. It repeats reads, writes, discards, zeroes and flushes,
//! and only as wholes.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use io_uring::{opcode, types};

use super::reconnector::Reconnector;
use super::sessions::{Finished, Session, SessionOp, SessionRing};
use super::uri::Patience;
use crate::engine::io::{LeafIo, LeafOp};
use crate::sys::slab::Slab;

/// Longest time of a timer, so that a session that ends waits only briefly for it.
const SLICE_NS: u64 = 250_000_000;
/// Longest wait of operations in doubt when the leaf is closed.
const CLOSING_NS: u64 = 100_000_000;

/// Why a connection cannot be used any more: an errno, and a reason for the log.
pub(crate) type Lost = (i32, &'static str);

/// The connection was dropped because the volume behind it may have changed, or because the other
/// side asked for it. Operations stay queued until the next connection has checked the volume's
/// identity. If the identity is unchanged, they are sent again and no client gets an error. An
/// operation under which connections are dropped for longer than the timeout counts as lost: a
/// server that never answers it and always asks to be left must not hold it for ever.
pub(crate) const DOUBTED: i32 = libc::ESTALE;

/// The protocol of a connection.
pub(crate) trait Protocol: Sized + 'static {
    /// The connections that the leaf's reconnector makes.
    type Connection: Send + 'static;
    /// The facts found when the leaf was opened, which are the same on every connection.
    type Facts: Send + Sync + 'static;
    /// The protocol's state of an operation; reset whenever the operation becomes ready.
    type OpState: Default;
    /// Identifies a connection for [`Protocol::ends_doubt`].
    type Mark;

    /// The mark of this connection.
    fn mark(&self) -> Self::Mark;

    /// Whether the other side is known to have ended all operations of the `lost` connection when
    /// it accepted `connection`.
    fn ends_doubt(connection: &Self::Connection, lost: &Self::Mark) -> bool;

    /// Starts on a connection that is ready for requests; `None` if it is lost already, or if there
    /// is no memory for it.
    fn new(connection: Self::Connection) -> Option<Self>;

    /// Whether it was lost while it was idle.
    fn is_stale(&self) -> bool;

    /// Sends the ready operations and has the ring wait for answers.
    fn turn(&mut self, work: &mut Work<'_, Self>, ring: &mut SessionRing<'_>) -> Result<(), Lost>;

    /// One of its operations on the ring has completed.
    fn completed(
        &mut self,
        part: SessionOp,
        result: i32,
        work: &mut Work<'_, Self>,
    ) -> Result<(), Lost>;

    /// About a second has passed, while [`Protocol::is_timed`] or while there are operations.
    fn tick(&mut self, _now_ns: u64) -> Result<(), Lost> {
        Ok(())
    }

    /// Whether something other than an operation has a deadline.
    fn is_timed(&self) -> bool {
        false
    }

    /// Tells the other side that the session ends, if that is possible at once.
    fn say_goodbye(&mut self);

    /// Ends a lost connection, so that its operations on the ring complete soon.
    fn end(&mut self);

    /// One of its operations on the ring has completed after its end.
    fn completed_after_end(&mut self, part: SessionOp, result: i32);

    /// Whether the ring has nothing of it.
    fn is_quiet(&self) -> bool;

    /// Drops a quiet connection. It first answers operations whose answers it had kept back.
    /// Afterwards it refers to no operation's memory.
    fn bury(self, work: &mut Work<'_, Self>);
}

/// The common state of a leaf's sessions.
pub(crate) struct Shared<P: Protocol> {
    /// Makes the connections of the leaf.
    pub(crate) reconnector: Arc<Reconnector<P::Connection>>,
    /// The facts of [`Protocol::Facts`].
    pub(crate) facts: P::Facts,
    /// Time limits of connections and answers.
    pub(crate) patience: Patience,
    /// Number of writes in doubt that went on only because their time was over.
    pub(crate) doubted: AtomicU64,
    /// Whether each session has writes in doubt now. The reconnector reads it.
    pub(crate) in_doubt: InDoubt,
}

/// A flag for each session ([`Shared::in_doubt`]).
pub(crate) type InDoubt = Arc<[AtomicBool]>;

/// Flags of `sessions` sessions without writes in doubt.
pub(crate) fn no_doubt(sessions: usize) -> InDoubt {
    (0..sessions).map(|_| AtomicBool::new(false)).collect()
}

/// An operation without an answer.
pub(crate) struct PendingOp<R> {
    pub(crate) io: LeafIo,
    /// Bytes of a discard or zeroing that were answered by earlier requests.
    pub(crate) done: u64,
    pub(crate) state: R,
    /// Start of its time limit: when it came, when a part of it was answered, or when a connection
    /// was there again. [`NOW`] until the next turn.
    since_ns: u64,
    /// When the first connection that it was to use was lost.
    lost_ns: Option<u64>,
    /// When a connection was first dropped under it because the other side wanted that
    /// ([`DOUBTED`]).
    dropped_ns: Option<u64>,
    /// Whether it changes the volume and was sent on a lost connection.
    in_doubt: bool,
}

/// A time that is filled in at the next turn.
const NOW: u64 = u64::MAX;

impl<R> PendingOp<R> {
    /// Restarts the time limit, after a request for a part of it was answered.
    pub(crate) fn again(&mut self) {
        self.since_ns = NOW;
        self.dropped_ns = None;
    }
}

/// The operations of a session, as its protocol sees them.
pub(crate) struct Work<'a, P: Protocol> {
    pub(crate) shared: &'a Shared<P>,
    /// All operations without an answer.
    pub(crate) ops: &'a mut Slab<PendingOp<P::OpState>>,
    /// The operations to send, in order.
    pub(crate) ready: &'a mut VecDeque<u32>,
    out: &'a mut Finished,
    has_answered: &'a mut bool,
}

impl<P: Protocol> Work<'_, P> {
    /// Answers an operation and forgets it.
    pub(crate) fn answer(&mut self, slot: u32, result: i64) {
        *self.has_answered = true;
        if let Some(op) = self.ops.remove(slot) {
            self.out.push(&op.io, result);
        }
    }

    /// Whether operations outlive their connection.
    pub(crate) fn reconnects(&self) -> bool {
        !self.shared.patience.reconnect.is_zero()
    }
}

enum Phase<P> {
    /// There is no connection, and no attempt has failed yet.
    Connecting,
    Up(Box<P>),
    /// The connection is lost, but the ring still has some of it.
    Ending(Box<P>, i32),
    Down {
        since_ns: u64,
    },
}

/// The session of a leaf on one queue.
pub(crate) struct Reconnecting<P: Protocol> {
    shared: Arc<Shared<P>>,
    number: usize,
    phase: Phase<P>,
    ops: Slab<PendingOp<P::OpState>>,
    ready: VecDeque<u32>,
    /// The kernel writes the number of wake-ups here.
    wake_count: Box<u64>,
    wake_armed: bool,
    settling: Option<Settling<P::Mark>>,
    /// The kernel reads the timer's length here.
    timer: Box<types::Timespec>,
    /// The ring has the timer.
    timer_armed: bool,
    /// Whether the current connection has answered something.
    has_answered: bool,
    closing: bool,
}

/// Operations in doubt, which wait. They change the volume, were sent on a lost connection, and the
/// other side may still carry them out. A late first copy could overwrite newer data that was
/// written after the second copy. So they are neither answered nor sent again before the other side
/// is known to have ended them ([`Protocol::ends_doubt`]), or before `until_ns` (docs/leaves.md,
/// writes in doubt).
struct Settling<M> {
    /// The errno for their answers.
    errno: i32,
    until_ns: u64,
    /// The mark of the lost connection, if it had one.
    lost: Option<M>,
}

/// Borrows the fields that a protocol may use.
macro_rules! work {
    ($self:ident, $out:ident) => {
        Work {
            shared: &$self.shared,
            ops: &mut $self.ops,
            ready: &mut $self.ready,
            out: $out,
            has_answered: &mut $self.has_answered,
        }
    };
}

impl<P: Protocol> Reconnecting<P> {
    /// Session `number` of the leaf.
    pub(crate) fn new(shared: Arc<Shared<P>>, number: usize) -> Reconnecting<P> {
        Reconnecting {
            shared,
            number,
            phase: Phase::Connecting,
            ops: Slab::default(),
            ready: VecDeque::new(),
            wake_count: Box::new(0),
            wake_armed: false,
            settling: None,
            timer: Box::default(),
            timer_armed: false,
            has_answered: false,
            closing: false,
        }
    }

    /// Takes the connection that is ready, if there is one and no operation in doubt waits.
    fn adopt(&mut self, now_ns: u64) {
        if self.settling.is_some() {
            return;
        }
        let reconnector = &self.shared.reconnector;
        let made = reconnector.take(self.number);
        match made.map(|made| P::new(made).filter(|protocol| !protocol.is_stale())) {
            Some(Some(protocol)) => {
                self.phase = Phase::Up(Box::new(protocol));
                for &slot in &self.ready {
                    if let Some(op) = self.ops.get_mut(slot) {
                        op.since_ns = now_ns;
                        op.in_doubt = false;
                    }
                }
            }
            // It was lost while it waited, or cannot be used. A pause follows a connection that did
            // not last.
            Some(None) => reconnector.want(self.number),
            None => reconnector.want_if_idle(self.number),
        }
    }

    /// Gives the connection up. Its operations are answered when the ring has nothing of it any
    /// more.
    fn lose(&mut self, (errno, why): Lost) {
        match std::mem::replace(&mut self.phase, Phase::Connecting) {
            Phase::Up(mut protocol) => {
                let reconnector = &self.shared.reconnector;
                if !self.closing
                    && let Some(suppressed) = reconnector.log.lost.pass()
                {
                    let leaf = reconnector.name();
                    tracing::warn!(leaf, why, errno, suppressed, "connection lost");
                }
                protocol.end();
                self.phase = Phase::Ending(protocol, errno);
            }
            other => self.phase = other,
        }
    }

    /// The ring has nothing of the lost connection any more, if there was one. Answers its
    /// operations or makes them ready again.
    fn bury(&mut self, errno: i32, now_ns: u64, out: &mut Finished) {
        let (is_doubted, errno) = match errno {
            DOUBTED => (!self.closing, libc::ENOTCONN),
            errno => (false, errno),
        };
        let next = if is_doubted { Phase::Connecting } else { Phase::Down { since_ns: now_ns } };
        let before = std::mem::replace(&mut self.phase, next);
        let mut lost = None;
        if let Phase::Up(protocol) | Phase::Ending(protocol, _) = before {
            lost = Some(protocol.mark());
            protocol.bury(&mut work!(self, out));
        }
        let settle = self.shared.patience.settling(errno == libc::ETIMEDOUT);
        let until_ns = now_ns.saturating_add(settle.as_nanos() as u64);
        let unsent: BTreeSet<u32> = self.ready.drain(..).collect();
        let slots: Vec<u32> = self.ops.iter().map(|(slot, _)| slot).collect();
        let timeout_ns = self.shared.patience.timeout.as_nanos() as u64;
        for slot in slots {
            let Some(op) = self.ops.get_mut(slot) else { continue };
            let dropped_ns = *op.dropped_ns.get_or_insert(now_ns);
            if !is_doubted || now_ns.saturating_sub(dropped_ns) >= timeout_ns {
                op.lost_ns.get_or_insert(now_ns);
            }
            op.state = P::OpState::default();
            let changes = !matches!(op.io.op, LeafOp::Read | LeafOp::Flush);
            if changes && !unsent.contains(&slot) {
                op.in_doubt = true;
                let lost = lost.take();
                self.settling.get_or_insert(Settling { errno, until_ns, lost });
            }
            self.ready.push_back(slot);
        }
        self.give_up(now_ns, errno, out);
        if self.settling.is_some() {
            self.tell_doubt(true);
        }
        let has_answered = std::mem::take(&mut self.has_answered);
        if !self.closing {
            self.shared.reconnector.want_after(self.number, has_answered);
        }
    }

    /// Answers operations that have waited for a connection for `reconnect`.
    fn give_up(&mut self, now_ns: u64, errno: i32, out: &mut Finished) {
        let patience_ns = if self.closing { 0 } else { self.reconnect_ns() };
        let settling = self.settling.is_some();
        self.answer_ready(errno, out, |op| {
            let is_over =
                op.lost_ns.is_some_and(|lost_ns| now_ns.saturating_sub(lost_ns) >= patience_ns);
            is_over && !(settling && op.in_doubt)
        });
    }

    /// Answers the ready operations for which `is_one` is true.
    fn answer_ready(
        &mut self,
        errno: i32,
        out: &mut Finished,
        is_one: impl Fn(&PendingOp<P::OpState>) -> bool,
    ) {
        for _ in 0..self.ready.len() {
            let Some(slot) = self.ready.pop_front() else { return };
            if !self.ops.get(slot).is_some_and(&is_one) {
                self.ready.push_back(slot);
            } else if let Some(op) = self.ops.remove(slot) {
                out.push(&op.io, -i64::from(errno));
            }
        }
    }

    fn reconnect_ns(&self) -> u64 {
        self.shared.patience.reconnect.as_nanos() as u64
    }

    fn tell_doubt(&self, is_doubted: bool) {
        if let Some(doubt) = self.shared.in_doubt.get(self.number) {
            doubt.store(is_doubted, Ordering::Release);
        }
    }

    /// Ends the doubt if the other side has ended the operations, or if their time is over.
    fn settle(&mut self, now_ns: u64, out: &mut Finished) {
        let Some(Settling { until_ns, lost, .. }) = &self.settling else { return };
        let reconnector = &self.shared.reconnector;
        let is_over = now_ns >= *until_ns;
        let has_ended = |lost| reconnector.peek(self.number, |made| P::ends_doubt(made, lost));
        let is_ended = lost.as_ref().and_then(has_ended) == Some(true);
        if !is_over && !is_ended {
            return;
        }
        let Some(Settling { errno, .. }) = self.settling.take() else { return };
        self.tell_doubt(false);
        let mut count = 0;
        for &slot in &self.ready {
            if let Some(op) = self.ops.get_mut(slot).filter(|op| op.in_doubt) {
                (op.in_doubt, count) = (false, count + 1);
            }
        }
        let leaf = reconnector.name();
        let suppressed = reconnector.log.settled.pass();
        if !is_ended {
            let all = self.shared.doubted.fetch_add(count, Ordering::Relaxed) + count;
            if suppressed.is_some() {
                let text = "writes in doubt: going on after the time to settle";
                tracing::warn!(leaf, count, all, suppressed, "{text}");
            }
        } else if suppressed.is_some() {
            let text = "writes in doubt: the other side has ended them";
            tracing::info!(leaf, count, suppressed, "{text}");
        }
        self.give_up(now_ns, errno, out);
    }

    /// Sets a timer for operations in doubt.
    fn time(&mut self, ring: &mut SessionRing<'_>) {
        let Some(Settling { until_ns, .. }) = self.settling.as_ref().filter(|_| !self.timer_armed)
        else {
            return;
        };
        let left_ns = until_ns.saturating_sub(ring.now_ns()).clamp(1, SLICE_NS);
        self.timer_armed = true;
        *self.timer = types::Timespec::new().nsec(left_ns as u32);
        let entry = opcode::Timeout::new(&raw const *self.timer).build();
        // SAFETY: the time it points to stays where it is until is_over(), which waits for the
        // completion.
        unsafe { ring.push(SessionOp::Timer, entry) };
    }

    /// The first attempt to connect has failed.
    fn fall(&mut self, now_ns: u64, out: &mut Finished) {
        self.phase = Phase::Down { since_ns: now_ns };
        for &slot in &self.ready {
            if let Some(op) = self.ops.get_mut(slot) {
                op.lost_ns.get_or_insert(now_ns);
            }
        }
        self.give_up(now_ns, libc::ENOTCONN, out);
    }

    /// Has the ring wait for a wake-up.
    fn listen(&mut self, ring: &mut SessionRing<'_>) {
        let Some(slot) = self.shared.reconnector.slot(self.number).filter(|_| !self.wake_armed)
        else {
            return;
        };
        self.wake_armed = true;
        let entry = slot.waker().entry(&mut self.wake_count);
        // SAFETY: the count and the descriptor live until is_over(), which waits for the
        // completion.
        unsafe { ring.push(SessionOp::Wake, entry) };
    }
}

impl<P: Protocol> Session for Reconnecting<P> {
    fn submit(&mut self, io: &LeafIo, now_ns: u64, out: &mut Finished) {
        let mut lost_ns = None;
        if let Phase::Down { since_ns } = self.phase {
            self.adopt(now_ns);
            if let Phase::Down { .. } = self.phase {
                // A connection is there, but waits for older operations in doubt.
                let is_made = self.shared.reconnector.peek(self.number, |_| ()).is_some();
                if self.closing
                    || !is_made && now_ns.saturating_sub(since_ns) >= self.reconnect_ns()
                {
                    return out.push(io, -i64::from(libc::ENOTCONN));
                }
                lost_ns = Some(since_ns).filter(|_| !is_made);
            }
        }
        let state = P::OpState::default();
        let op = PendingOp {
            io: *io,
            done: 0,
            state,
            since_ns: now_ns,
            lost_ns,
            dropped_ns: None,
            in_doubt: false,
        };
        let slot = self.ops.insert(op);
        self.ready.push_back(slot);
    }

    fn completed(&mut self, part: SessionOp, result: i32, out: &mut Finished) {
        match &mut self.phase {
            _ if part == SessionOp::Wake => self.wake_armed = false,
            _ if part == SessionOp::Timer => self.timer_armed = false,
            Phase::Up(protocol) => {
                if let Err(lost) = protocol.completed(part, result, &mut work!(self, out)) {
                    self.lose(lost);
                }
            }
            Phase::Ending(protocol, _) => protocol.completed_after_end(part, result),
            Phase::Connecting | Phase::Down { .. } => {}
        }
    }

    fn turn(&mut self, ring: &mut SessionRing<'_>, out: &mut Finished) {
        let now_ns = ring.now_ns();
        self.settle(now_ns, out);
        if self.shared.reconnector.is_closed() && !self.closing {
            self.close(now_ns, out);
        }
        if let Phase::Connecting = self.phase
            && self.shared.reconnector.has_failed(self.number)
        {
            self.fall(now_ns, out);
        }
        if let Phase::Connecting | Phase::Down { .. } = self.phase
            && !self.closing
        {
            self.adopt(now_ns);
        }
        for &slot in &self.ready {
            if let Some(op) = self.ops.get_mut(slot).filter(|op| op.since_ns == NOW) {
                op.since_ns = now_ns;
            }
        }
        if let Phase::Up(protocol) = &mut self.phase
            && let Err(lost) = protocol.turn(&mut work!(self, out), ring)
        {
            self.lose(lost);
        }
        if let Phase::Ending(protocol, errno) = &self.phase
            && protocol.is_quiet()
        {
            let errno = *errno;
            self.bury(errno, now_ns, out);
        }
        if !self.closing {
            self.listen(ring);
        }
        self.time(ring);
        if self.is_over()
            && let Some(slot) = self.shared.reconnector.slot(self.number)
        {
            slot.leave();
        }
    }

    fn tick(&mut self, now_ns: u64, out: &mut Finished) {
        if let Phase::Up(protocol) = &mut self.phase
            && let Err(lost) = protocol.tick(now_ns)
        {
            return self.lose(lost);
        }
        let timeout_ns = self.shared.patience.timeout.as_nanos() as u64;
        let is_late = |op: &PendingOp<_>| now_ns.saturating_sub(op.since_ns) >= timeout_ns;
        match self.phase {
            Phase::Up(_) if self.ops.iter().any(|(_, op)| is_late(op)) => {
                self.lose((libc::ETIMEDOUT, "no answer in time"));
            }
            Phase::Connecting => {
                let settling = self.settling.is_some();
                let is_one = |op: &PendingOp<_>| is_late(op) && !(settling && op.in_doubt);
                self.answer_ready(libc::ETIMEDOUT, out, is_one);
            }
            Phase::Down { .. } => self.give_up(now_ns, libc::ENOTCONN, out),
            Phase::Up(_) | Phase::Ending(..) => {}
        }
    }

    fn is_timed(&self) -> bool {
        let is_timed = matches!(&self.phase, Phase::Up(protocol) if protocol.is_timed());
        is_timed || !self.ops.is_empty()
    }

    fn close(&mut self, now_ns: u64, out: &mut Finished) {
        self.closing = true;
        if let Some(settling) = &mut self.settling {
            settling.until_ns = settling.until_ns.min(now_ns.saturating_add(CLOSING_NS));
        }
        if let Some(slot) = self.shared.reconnector.slot(self.number) {
            slot.waker().wake();
        }
        if let Phase::Up(protocol) = &mut self.phase {
            if self.ops.is_empty() {
                protocol.say_goodbye();
            }
            self.lose((libc::ENOTCONN, "the leaf is closed"));
        }
        if let Phase::Connecting | Phase::Down { .. } = self.phase {
            self.bury(libc::ENOTCONN, now_ns, out);
        }
    }

    fn is_over(&self) -> bool {
        self.closing
            && !self.wake_armed
            && !self.timer_armed
            && self.settling.is_none()
            && self.ops.is_empty()
            && matches!(self.phase, Phase::Down { .. })
    }
}
