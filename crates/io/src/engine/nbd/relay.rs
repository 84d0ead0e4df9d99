//! The relay: one connection for all queues, on a thread of its own.
//!
//! A server without `CAN_MULTI_CONN` guarantees nothing about several connections to one export: a
//! flush on one need not cover writes on another, and a read on another may return old data. So
//! there is one connection. The queues hand their operations to its thread, which hands the answers
//! back. A batch costs a lock and a wake-up in either direction. Servers with `CAN_MULTI_CONN` do
//! not need a relay.
//!
//! Contract: the thread answers every operation, and ends when the leaf is closed and its
//! connection has ended. A queue's end of the relay answers on that queue's thread.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use super::Shared;
use crate::engine::session::reconnecting::Reconnecting;
use crate::engine::session::sessions::{
    Finished, Session, SessionOp, SessionRing, SessionSlot, SessionWaker,
};
use crate::engine::session::turn::Turn;
use crate::engine::{LeafIo, LeafOp, Submitted};
use crate::request::Span;
use crate::sys::buffer::Buffer;
use crate::sys::lock::lock;
use crate::sys::process;
use crate::sys::ring::{Tag, user_data};
use crate::sys::slab::Slab;

/// An operation on its way to the relay's thread.
struct Order {
    io: LeafIo,
    from: From,
}

// SAFETY: an operation lends its memory to the engine, not to a thread. The lender does not touch
// it until the answer, and the engine touches it on one thread at a time, the owner of the order.
unsafe impl Send for Order {}

/// The origin of an order, which gets its answer.
enum From {
    /// The queue with this number.
    Queue(usize),
    /// The control side. The order owns the buffer, because the caller may give up before the
    /// answer.
    Control(Buffer, mpsc::Sender<(Buffer, i64)>),
}

/// The state of one queue's end.
struct End {
    slot: SessionSlot,
    /// Finished parts, with their results.
    answers: Mutex<Vec<(u32, i64)>>,
}

/// The relay of one leaf.
pub(super) struct Relay {
    shared: Arc<Shared>,
    orders: Mutex<Vec<Order>>,
    waker: SessionWaker,
    ends: Box<[End]>,
    closed: AtomicBool,
}

impl Relay {
    /// Starts the thread for this number of queues. The connection is ready for the first
    /// session of the reconnector.
    pub(super) fn start(shared: Arc<Shared>, queues: usize) -> io::Result<Arc<Relay>> {
        let end = |_| Ok(End { slot: SessionSlot::new()?, answers: Mutex::default() });
        let ends = (0..queues).map(end).collect::<io::Result<_>>()?;
        let (orders, waker, closed) =
            (Mutex::default(), SessionWaker::new()?, AtomicBool::new(false));
        let relay = Arc::new(Relay { shared, orders, waker, ends, closed });
        let (started, starts) = mpsc::channel();
        let worker = relay.clone();
        std::thread::Builder::new().name("nbd-relay".into()).spawn(move || {
            // The ring is made on this thread, because only the thread that made it may use it.
            let turn = Turn::new();
            let _ = started
                .send(turn.as_ref().map(drop).map_err(|error| io::Error::from(error.kind())));
            if let Ok(turn) = turn {
                let _panic = process::FailOnPanic("the relay to an NBD server");
                Worker {
                    relay: worker,
                    turn,
                    asked: Slab::default(),
                    count: Box::new(0),
                    ticking: false,
                }
                .run();
            }
        })?;
        starts.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(relay)
    }

    /// Takes an operation from a queue.
    pub(super) fn submit(self: &Arc<Self>, io: &LeafIo, turn: &mut Turn) -> Submitted {
        let make = || Box::new(RelayEnd::new(self.clone(), io.queue)) as Box<dyn Session>;
        match self.ends.get(io.queue) {
            Some(end) => end.slot.submit(io, turn, make),
            None => Submitted::Done(-i64::from(libc::ENOTCONN)),
        }
    }

    /// Flushes, or reads `bytes` from the start of the export, for the control side. Blocks.
    pub(super) fn call(&self, op: LeafOp, bytes: usize, deadline: Instant) -> io::Result<()> {
        let (answer, answers) = mpsc::channel();
        let buffer = Buffer::alone(bytes)?;
        let data = if op == LeafOp::Read { Span(buffer.as_ptr()) } else { Span::NONE };
        let io = LeafIo {
            op,
            fua: false,
            fast: false,
            offset: 0,
            len: bytes as u64,
            data,
            pages: None,
            part: 0,
            queue: 0,
        };
        self.send([Order { io, from: From::Control(buffer, answer) }]);
        match answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((_, result)) if result >= 0 => Ok(()),
            Ok((_, result)) => Err(io::Error::from_raw_os_error(-result as i32)),
            Err(_) => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
        }
    }

    /// Closes the leaf: the thread ends.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waker.wake();
        self.ends.iter().for_each(|end| end.slot.waker().wake());
    }

    fn send(&self, orders: impl IntoIterator<Item = Order>) {
        lock(&self.orders).extend(orders);
        self.waker.wake();
    }
}

/// The state of the relay's thread.
struct Worker {
    relay: Arc<Relay>,
    turn: Turn,
    /// The origin of each operation, and the part number there.
    asked: Slab<(From, u32)>,
    count: Box<u64>,
    ticking: bool,
}

impl Worker {
    fn run(&mut self) {
        let mut completions = Vec::new();
        let mut orders = Vec::new();
        let mut answers: Vec<Vec<(u32, i64)>> =
            self.relay.ends.iter().map(|_| Vec::new()).collect();
        self.listen();
        loop {
            if let Err(error) = self.turn.wait(false, &mut completions) {
                let leaf = self.relay.shared.reconnector.name();
                process::fail(&format!("the relay to '{leaf}': its turn failed: {error}"));
            }
            for completion in completions.drain(..) {
                match completion.tag {
                    Tag::Wake => {
                        mem::swap(&mut *lock(&self.relay.orders), &mut orders);
                        orders.drain(..).for_each(|order| self.take(order));
                        self.listen();
                    }
                    Tag::Session => self.turn.sessions.complete(&completion),
                    Tag::Tick => {
                        self.ticking = false;
                        let now_ns = self.turn.now_ns();
                        self.turn.sessions.tick(now_ns);
                    }
                    _ => {}
                }
            }
            if self.relay.closed.load(Ordering::Acquire) {
                let now_ns = self.turn.now_ns();
                self.turn.sessions.close(now_ns);
            }
            self.turn.run_sessions();
            while let Some((part, result)) = self.turn.sessions.take_finished() {
                self.answer(part, result, &mut answers);
            }
            for (end, answers) in
                self.relay.ends.iter().zip(&mut answers).filter(|(_, a)| !a.is_empty())
            {
                lock(&end.answers).append(answers);
                end.slot.waker().wake();
            }
            if self.relay.closed.load(Ordering::Acquire) && self.turn.sessions.is_empty() {
                return;
            }
            if !self.ticking && self.turn.sessions.is_timed() {
                self.ticking = true;
                self.turn.tick();
            }
        }
    }

    fn listen(&mut self) {
        let entry = self.relay.waker.entry(&mut self.count).user_data(user_data(Tag::Wake, 0));
        // SAFETY: the count and the waker live as long as this thread, which outlives its ring's
        // operations.
        unsafe { self.turn.push(&entry) };
    }

    fn take(&mut self, order: Order) {
        let part = self.asked.insert((order.from, order.io.part));
        let io = LeafIo { part, queue: 0, ..order.io };
        let shared = &self.relay.shared;
        let make = || Box::new(Reconnecting::new(shared.clone(), 0)) as Box<dyn Session>;
        if let Some(slot) = shared.reconnector.slot(0) {
            slot.submit(&io, &mut self.turn, make);
        }
    }

    fn answer(&mut self, part: u32, result: i64, answers: &mut [Vec<(u32, i64)>]) {
        match self.asked.remove(part) {
            Some((From::Queue(queue), part)) => {
                if let Some(answers) = answers.get_mut(queue) {
                    answers.push((part, result));
                }
            }
            Some((From::Control(buffer, answer), _)) => {
                // The caller may have given up.
                let _ = answer.send((buffer, result));
            }
            None => {}
        }
    }
}

/// A queue's end, as a session on that queue.
struct RelayEnd {
    relay: Arc<Relay>,
    queue: usize,
    orders: Vec<Order>,
    /// Number of operations without an answer.
    left: usize,
    count: Box<u64>,
    armed: bool,
    closing: bool,
}

impl RelayEnd {
    fn new(relay: Arc<Relay>, queue: usize) -> RelayEnd {
        let (orders, count) = (Vec::new(), Box::new(0));
        RelayEnd { relay, queue, orders, left: 0, count, armed: false, closing: false }
    }
}

impl Session for RelayEnd {
    fn submit(&mut self, io: &LeafIo, _now_ns: u64, _out: &mut Finished) {
        self.left += 1;
        self.orders.push(Order { io: *io, from: From::Queue(self.queue) });
    }

    fn completed(&mut self, _part: SessionOp, _result: i32, out: &mut Finished) {
        self.armed = false;
        let Some(end) = self.relay.ends.get(self.queue) else { return };
        for (part, result) in lock(&end.answers).drain(..) {
            self.left -= 1;
            out.push_part(part, result);
        }
    }

    fn turn(&mut self, ring: &mut SessionRing<'_>, _out: &mut Finished) {
        self.closing |= self.relay.closed.load(Ordering::Acquire);
        if !self.orders.is_empty() {
            self.relay.send(self.orders.drain(..));
        }
        let Some(end) = self.relay.ends.get(self.queue) else { return };
        let has_ended = self.closing && self.left == 0;
        if !self.armed && !has_ended {
            self.armed = true;
            let entry = end.slot.waker().entry(&mut self.count);
            // SAFETY: the count and the descriptor live until is_over(), which waits for the
            // completion.
            unsafe { ring.push(SessionOp::Wake, entry) };
        }
        if self.is_over() {
            end.slot.leave();
        }
    }

    fn tick(&mut self, _now_ns: u64, _out: &mut Finished) {}

    fn is_timed(&self) -> bool {
        // The relay's own session has the deadlines.
        false
    }

    fn close(&mut self, _now_ns: u64, _out: &mut Finished) {
        self.closing = true;
        if let Some(end) = self.relay.ends.get(self.queue) {
            end.slot.waker().wake();
        }
    }

    fn is_over(&self) -> bool {
        self.closing && self.left == 0 && !self.armed
    }
}
