//! A carrier: the link of a leaf that is reached by connections which may be lost, whatever they
//! speak.
//!
//! An operation is `ready` until its protocol has sent it, then under way, then answered. When the
//! connection is lost (an error, the end, silence for longer than the timeout, an answer that is
//! none) it is ended; once nothing refers to the operations' memory any more, they are answered
//! with the reason, or, as long as the leaf's `reconnect` time has not run out for them, made ready
//! again for the next connection.
//!
//! Contract: as [`Link`]. What goes over the wire is the [`Protocol`]'s matter, what becomes of
//! operations without a connection is decided here. Operations are repeated only as wholes; reads,
//! writes, discards, zeroes and flushes may be.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use io_uring::{opcode, types};

use super::connector::Connector;
use super::links::{Finished, Link, Part, Port};
use super::uri::Patience;
use super::{LeafIo, LeafOp};
use crate::slab::Slab;

/// The most that a timer is set for, so that a link that ends need not wait long for it.
const SLICE_NS: u64 = 250_000_000;
/// How long operations in doubt wait at most when the leaf is closed.
const CLOSING_NS: u64 = 100_000_000;

/// Why a connection cannot be used any more: an errno, and a reason for the log.
pub(super) type Lost = (i32, &'static str);

/// The connection was dropped because the volume behind it may have changed, or because the other
/// side asked for it. Operations stay queued until the next connection has checked the volume's
/// identity; if that is unchanged, they are sent again and nobody gets an error.
pub(super) const DOUBTED: i32 = libc::ESTALE;

/// What a connection speaks.
pub(super) trait Protocol: Sized + 'static {
    /// What the leaf's connector makes.
    type Connection: Send + 'static;
    /// What was found out when the leaf was opened, the same on every connection.
    type Facts: Send + Sync + 'static;
    /// What is kept of a request for an operation; new whenever it is made ready.
    type Request: Default;
    /// What tells a connection from others, as far as [`Protocol::ends_doubt`] needs it.
    type Mark;

    /// Its mark.
    fn mark(&self) -> Self::Mark;

    /// Whether a connection that was made after one of that mark is known to have ended all that the
    /// other side still had of it.
    fn ends_doubt(connection: &Self::Connection, lost: &Self::Mark) -> bool;

    /// On a connection that is ready for requests; nothing if it has been lost already.
    fn new(connection: Self::Connection) -> Option<Self>;

    /// Whether it was lost while nobody looked.
    fn is_stale(&self) -> bool;

    /// Sends what is ready and has the ring wait for what comes.
    fn turn(&mut self, work: &mut Work<'_, Self>, port: &mut Port<'_>) -> Result<(), Lost>;

    /// One of its operations on the ring has completed.
    fn completed(&mut self, part: Part, result: i32, work: &mut Work<'_, Self>)
    -> Result<(), Lost>;

    /// A second or so has passed while [`Protocol::is_timed`], or while there are operations.
    fn tick(&mut self, _now_ns: u64) -> Result<(), Lost> {
        Ok(())
    }

    /// Whether something other than an operation has a deadline.
    fn is_timed(&self) -> bool {
        false
    }

    /// Says good-bye to the other side, if that can be done at once.
    fn say_goodbye(&mut self);

    /// It is lost: what it has on the ring is to complete soon.
    fn end(&mut self);

    /// One of its operations on the ring has completed after its end.
    fn completed_after_end(&mut self, part: Part, result: i32);

    /// The ring has nothing of it.
    fn is_quiet(&self) -> bool;

    /// It is quiet and goes. What it has answers for and has kept back is answered; afterwards it
    /// refers to no operation's memory.
    fn bury(self, work: &mut Work<'_, Self>);
}

/// What the carriers of a leaf have in common.
pub(super) struct Shared<P: Protocol> {
    /// Makes their connections.
    pub(super) connector: Arc<Connector<P::Connection>>,
    /// See [`Protocol::Facts`].
    pub(super) facts: P::Facts,
    /// How long to wait for what.
    pub(super) patience: Patience,
    /// Writes in doubt that were gone on with only because their time was over.
    pub(super) doubted: AtomicU64,
}

/// An operation.
pub(super) struct Op<R> {
    pub(super) io: LeafIo,
    /// Bytes of a discard or zeroing that were answered by earlier requests.
    pub(super) done: u64,
    pub(super) request: R,
    /// When it came, was answered in part, or a connection was there again; [`NOW`] until the next
    /// turn.
    since_ns: u64,
    /// When the connection was lost that it was to use first.
    lost_ns: Option<u64>,
    /// It changes the volume, and was sent on a connection that was lost.
    in_doubt: bool,
}

/// A time that is filled in at the next turn.
const NOW: u64 = u64::MAX;

impl<R> Op<R> {
    /// A request of it was answered and there is more of it to ask for: the next one has its own
    /// time.
    pub(super) fn again(&mut self) {
        self.since_ns = NOW;
    }
}

/// The operations of a carrier, as its protocol sees them.
pub(super) struct Work<'a, P: Protocol> {
    pub(super) shared: &'a Shared<P>,
    /// All that are not answered.
    pub(super) ops: &'a mut Slab<Op<P::Request>>,
    /// Those to be sent, in order.
    pub(super) ready: &'a mut VecDeque<u32>,
    out: &'a mut Finished,
    has_answered: &'a mut bool,
}

impl<P: Protocol> Work<'_, P> {
    /// Answers an operation.
    pub(super) fn answer(&mut self, slot: u32, result: i64) {
        *self.has_answered = true;
        if let Some(op) = self.ops.remove(slot) {
            self.out.push(&op.io, result);
        }
    }

    /// Whether operations outlive their connection.
    pub(super) fn reconnects(&self) -> bool {
        !self.shared.patience.reconnect.is_zero()
    }
}

enum State<P> {
    /// There is no connection, but no attempt has failed either.
    Connecting,
    Up(Box<P>),
    /// Lost; the ring has not let go of it yet.
    Ending(Box<P>, i32),
    Down {
        since_ns: u64,
    },
}

/// See the module's text.
pub(super) struct Carrier<P: Protocol> {
    shared: Arc<Shared<P>>,
    berth: usize,
    state: State<P>,
    ops: Slab<Op<P::Request>>,
    ready: VecDeque<u32>,
    /// Where the kernel writes the bell's count.
    bell_count: Box<u64>,
    bell_armed: bool,
    settling: Option<Settling<P::Mark>>,
    /// Where the kernel reads how long the timer is.
    timer: Box<types::Timespec>,
    /// The ring has the timer.
    timer_armed: bool,
    /// The connection there is has answered something.
    has_answered: bool,
    closing: bool,
}

/// Operations in doubt wait: they change the volume, were sent on a connection that was lost, and may
/// still be carried out. A second copy, over another connection or another path, must not be
/// overtaken by the first, for by then something newer may have been written. So they are neither
/// answered nor sent again before the other side is known to have ended them
/// ([`Protocol::ends_doubt`]), or the time is over in which it carries them out, if it ever does
/// (docs/leaves.md, writes in doubt).
struct Settling<M> {
    /// What they are answered with.
    errno: i32,
    until_ns: u64,
    /// The connection that was lost, if one was known.
    lost: Option<M>,
}

/// Borrows the fields that a protocol works with, beside its own.
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

impl<P: Protocol> Carrier<P> {
    /// The carrier of a berth, which takes its connections from there.
    pub(super) fn new(shared: Arc<Shared<P>>, berth: usize) -> Carrier<P> {
        Carrier {
            shared,
            berth,
            state: State::Connecting,
            ops: Slab::default(),
            ready: VecDeque::new(),
            bell_count: Box::new(0),
            bell_armed: false,
            settling: None,
            timer: Box::default(),
            timer_armed: false,
            has_answered: false,
            closing: false,
        }
    }

    /// Uses the connection that is ready, if there is one; not while operations in doubt wait.
    fn adopt(&mut self, now_ns: u64) {
        if self.settling.is_some() {
            return;
        }
        let connector = &self.shared.connector;
        let made = connector.take(self.berth);
        match made.map(|made| P::new(made).filter(|protocol| !protocol.is_stale())) {
            Some(Some(protocol)) => {
                self.state = State::Up(Box::new(protocol));
                for &slot in &self.ready {
                    if let Some(op) = self.ops.get_mut(slot) {
                        op.since_ns = now_ns;
                        op.in_doubt = false;
                    }
                }
            }
            // Nobody has looked after it since the leaf was opened.
            Some(None) => connector.want(self.berth),
            None => connector.want_if_idle(self.berth),
        }
    }

    /// The connection cannot be used any more. Its operations are answered when the ring has let go
    /// of it.
    fn lose(&mut self, (errno, why): Lost) {
        match std::mem::replace(&mut self.state, State::Connecting) {
            State::Up(mut protocol) => {
                if !self.closing {
                    tracing::warn!(
                        leaf = self.shared.connector.name(),
                        why,
                        errno,
                        "connection lost"
                    );
                }
                protocol.end();
                self.state = State::Ending(protocol, errno);
            }
            other => self.state = other,
        }
    }

    /// The ring has let go of the connection that was lost, if there was one.
    fn bury(&mut self, errno: i32, now_ns: u64, out: &mut Finished) {
        let (is_doubted, errno) = match errno {
            DOUBTED => (!self.closing, libc::ENOTCONN),
            errno => (false, errno),
        };
        let next = if is_doubted { State::Connecting } else { State::Down { since_ns: now_ns } };
        let before = std::mem::replace(&mut self.state, next);
        let mut lost = None;
        if let State::Up(protocol) | State::Ending(protocol, _) = before {
            lost = Some(protocol.mark());
            protocol.bury(&mut work!(self, out));
        }
        let settle = self.shared.patience.settling(errno == libc::ETIMEDOUT);
        let until_ns = now_ns.saturating_add(settle.as_nanos() as u64);
        let unsent: BTreeSet<u32> = self.ready.drain(..).collect();
        let slots: Vec<u32> = self.ops.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let Some(op) = self.ops.get_mut(slot) else { continue };
            if !is_doubted {
                op.lost_ns.get_or_insert(now_ns);
            }
            op.request = P::Request::default();
            let changes = !matches!(op.io.op, LeafOp::Read | LeafOp::Flush);
            if changes && !unsent.contains(&slot) {
                op.in_doubt = true;
                let lost = lost.take();
                self.settling.get_or_insert(Settling { errno, until_ns, lost });
            }
            self.ready.push_back(slot);
        }
        if !is_doubted {
            self.give_up(now_ns, errno, out);
        }
        let has_answered = std::mem::take(&mut self.has_answered);
        if !self.closing {
            self.shared.connector.want_after(self.berth, has_answered);
        }
    }

    /// Answers what has waited for a connection for as long as it may.
    fn give_up(&mut self, now_ns: u64, errno: i32, out: &mut Finished) {
        let patience_ns = if self.closing { 0 } else { self.reconnect_ns() };
        let settling = self.settling.is_some();
        self.answer_ready(errno, out, |op| {
            let is_over =
                op.lost_ns.is_some_and(|lost_ns| now_ns.saturating_sub(lost_ns) >= patience_ns);
            is_over && !(settling && op.in_doubt)
        });
    }

    /// Answers those operations that are ready and of which `is_one` is true.
    fn answer_ready(
        &mut self,
        errno: i32,
        out: &mut Finished,
        is_one: impl Fn(&Op<P::Request>) -> bool,
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

    /// Operations in doubt are so no longer, if the other side has ended them or their time is over.
    fn settle(&mut self, now_ns: u64, out: &mut Finished) {
        let Some(Settling { until_ns, lost, .. }) = &self.settling else { return };
        let connector = &self.shared.connector;
        let is_over = now_ns >= *until_ns;
        let has_ended = |lost| connector.peek(self.berth, |made| P::ends_doubt(made, lost));
        let is_ended = lost.as_ref().and_then(has_ended) == Some(true);
        if !is_over && !is_ended {
            return;
        }
        let Some(Settling { errno, .. }) = self.settling.take() else { return };
        let mut count = 0;
        for &slot in &self.ready {
            if let Some(op) = self.ops.get_mut(slot).filter(|op| op.in_doubt) {
                (op.in_doubt, count) = (false, count + 1);
            }
        }
        let leaf = connector.name();
        if is_ended {
            tracing::info!(leaf, count, "writes in doubt: the target has ended their session");
        } else {
            let all = self.shared.doubted.fetch_add(count, Ordering::Relaxed) + count;
            tracing::warn!(leaf, count, all, "writes in doubt: going on after the time to settle");
        }
        self.give_up(now_ns, errno, out);
    }

    /// Has the ring say when to look after operations in doubt.
    fn time(&mut self, port: &mut Port<'_>) {
        let Some(Settling { until_ns, .. }) = self.settling.as_ref().filter(|_| !self.timer_armed)
        else {
            return;
        };
        let left_ns = until_ns.saturating_sub(port.now_ns()).clamp(1, SLICE_NS);
        self.timer_armed = true;
        *self.timer = types::Timespec::new().nsec(left_ns as u32);
        let entry = opcode::Timeout::new(&raw const *self.timer).build();
        // SAFETY: the time it points to stays where it is until is_over(), which waits for the
        // completion.
        unsafe { port.push(Part::Timer, entry) };
    }

    /// No attempt to connect had failed so far; now one has.
    fn fall(&mut self, now_ns: u64, out: &mut Finished) {
        self.state = State::Down { since_ns: now_ns };
        for &slot in &self.ready {
            if let Some(op) = self.ops.get_mut(slot) {
                op.lost_ns.get_or_insert(now_ns);
            }
        }
        self.give_up(now_ns, libc::ENOTCONN, out);
    }

    /// Has the ring wait for the bell.
    fn listen(&mut self, port: &mut Port<'_>) {
        let Some(seat) = self.shared.connector.seat(self.berth).filter(|_| !self.bell_armed) else {
            return;
        };
        self.bell_armed = true;
        let entry = seat.bell().entry(&mut self.bell_count);
        // SAFETY: the count and the descriptor live until is_over(), which waits for the
        // completion.
        unsafe { port.push(Part::Bell, entry) };
    }
}

impl<P: Protocol> Link for Carrier<P> {
    fn submit(&mut self, io: &LeafIo, now_ns: u64, out: &mut Finished) {
        let mut lost_ns = None;
        if let State::Down { since_ns } = self.state {
            self.adopt(now_ns);
            if let State::Down { .. } = self.state {
                // There is one, which waits for older operations that are in doubt.
                let is_made = self.shared.connector.peek(self.berth, |_| ()).is_some();
                if self.closing
                    || !is_made && now_ns.saturating_sub(since_ns) >= self.reconnect_ns()
                {
                    return out.push(io, -i64::from(libc::ENOTCONN));
                }
                lost_ns = Some(since_ns).filter(|_| !is_made);
            }
        }
        let request = P::Request::default();
        let op = Op { io: *io, done: 0, request, since_ns: now_ns, lost_ns, in_doubt: false };
        let slot = self.ops.insert(op);
        self.ready.push_back(slot);
    }

    fn completed(&mut self, part: Part, result: i32, out: &mut Finished) {
        match &mut self.state {
            _ if part == Part::Bell => self.bell_armed = false,
            _ if part == Part::Timer => self.timer_armed = false,
            State::Up(protocol) => {
                if let Err(lost) = protocol.completed(part, result, &mut work!(self, out)) {
                    self.lose(lost);
                }
            }
            State::Ending(protocol, _) => protocol.completed_after_end(part, result),
            State::Connecting | State::Down { .. } => {}
        }
    }

    fn turn(&mut self, port: &mut Port<'_>, out: &mut Finished) {
        let now_ns = port.now_ns();
        self.settle(now_ns, out);
        if self.shared.connector.is_closed() && !self.closing {
            self.close(now_ns, out);
        }
        if let State::Connecting = self.state
            && self.shared.connector.has_failed(self.berth)
        {
            self.fall(now_ns, out);
        }
        if let State::Connecting | State::Down { .. } = self.state
            && !self.closing
        {
            self.adopt(now_ns);
        }
        for &slot in &self.ready {
            if let Some(op) = self.ops.get_mut(slot).filter(|op| op.since_ns == NOW) {
                op.since_ns = now_ns;
            }
        }
        if let State::Up(protocol) = &mut self.state
            && let Err(lost) = protocol.turn(&mut work!(self, out), port)
        {
            self.lose(lost);
        }
        if let State::Ending(protocol, errno) = &self.state
            && protocol.is_quiet()
        {
            let errno = *errno;
            self.bury(errno, now_ns, out);
        }
        if !self.closing {
            self.listen(port);
        }
        self.time(port);
        if self.is_over()
            && let Some(seat) = self.shared.connector.seat(self.berth)
        {
            seat.leave();
        }
    }

    fn tick(&mut self, now_ns: u64, out: &mut Finished) {
        if let State::Up(protocol) = &mut self.state
            && let Err(lost) = protocol.tick(now_ns)
        {
            return self.lose(lost);
        }
        let timeout_ns = self.shared.patience.timeout.as_nanos() as u64;
        let is_late = |op: &Op<_>| now_ns.saturating_sub(op.since_ns) >= timeout_ns;
        match self.state {
            State::Up(_) if self.ops.iter().any(|(_, op)| is_late(op)) => {
                self.lose((libc::ETIMEDOUT, "no answer in time"));
            }
            State::Connecting => {
                let settling = self.settling.is_some();
                let is_one = |op: &Op<_>| is_late(op) && !(settling && op.in_doubt);
                self.answer_ready(libc::ETIMEDOUT, out, is_one);
            }
            State::Down { .. } => self.give_up(now_ns, libc::ENOTCONN, out),
            State::Up(_) | State::Ending(..) => {}
        }
    }

    fn is_timed(&self) -> bool {
        let is_timed = matches!(&self.state, State::Up(protocol) if protocol.is_timed());
        is_timed || !self.ops.is_empty()
    }

    fn close(&mut self, now_ns: u64, out: &mut Finished) {
        self.closing = true;
        if let Some(settling) = &mut self.settling {
            settling.until_ns = settling.until_ns.min(now_ns.saturating_add(CLOSING_NS));
        }
        if let Some(seat) = self.shared.connector.seat(self.berth) {
            seat.bell().ring();
        }
        if let State::Up(protocol) = &mut self.state {
            if self.ops.is_empty() {
                protocol.say_goodbye();
            }
            self.lose((libc::ENOTCONN, "the leaf is closed"));
        }
        if let State::Connecting | State::Down { .. } = self.state {
            self.bury(libc::ENOTCONN, now_ns, out);
        }
    }

    fn is_over(&self) -> bool {
        self.closing
            && !self.bell_armed
            && !self.timer_armed
            && self.settling.is_none()
            && self.ops.is_empty()
            && matches!(self.state, State::Down { .. })
    }
}
