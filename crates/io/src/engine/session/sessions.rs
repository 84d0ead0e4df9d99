//! Sessions of leaves on other machines. A session carries the operations of one queue for one
//! leaf, over a connection that only this queue's thread uses and this queue's ring drives. A
//! session outlives its connection.
//!
//! Contract: one thread owns [`Sessions`] beside its [`Ring`], and lends both to an engine as a
//! [`Turn`], so that the engine reaches its session. [`Sessions::submit`] only queues an operation
//! on a session. [`Sessions::turn`], called once a turn of the queue's loop, makes every session
//! with work send all of it and prepare to receive. [`Sessions::take_finished`] returns each
//! finished operation exactly once, when nothing in the kernel refers to its memory any more. A
//! session is dropped only when the kernel has given back all of its memory.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};

use super::turn::Turn;
use crate::engine::io::{LeafIo, Submitted};
use crate::sys::eventfd::EventFd;
use crate::sys::ring::{Completion, Ring, Tag, user_data};
use crate::sys::slab::Slab;

/// The kind of a session's operation on the ring. It stands above the session's index in the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SessionOp {
    /// Bytes from its socket, or its readiness.
    Receive = 0,
    /// Bytes to its socket.
    Send = 1,
    /// Its [`SessionWaker`] was used.
    Wake = 2,
    /// Its timer is over.
    Timer = 3,
}

/// A session of a leaf on one queue. All calls come from the queue's thread.
pub trait Session {
    /// Takes an operation. Its memory is lent until the answer.
    fn submit(&mut self, io: &LeafIo, now_ns: u64, out: &mut Finished);

    /// One of its operations on the ring has completed.
    fn completed(&mut self, part: SessionOp, result: i32, out: &mut Finished);

    /// Submits its work to the ring. Called after any of the others.
    fn turn(&mut self, ring: &mut SessionRing<'_>, out: &mut Finished);

    /// About a second has passed, while [`Session::is_timed`].
    fn tick(&mut self, now_ns: u64, out: &mut Finished);

    /// Whether something of it has a deadline.
    fn is_timed(&self) -> bool;

    /// Ends it: nothing more will be submitted. Operations under way are answered.
    fn close(&mut self, now_ns: u64, out: &mut Finished);

    /// Whether it has ended, and nothing refers to its memory.
    fn is_over(&self) -> bool;
}

/// The finished operations: their parts, and their results as in
/// [`Submitted::Done`](crate::engine::Submitted::Done).
#[derive(Default)]
pub struct Finished(Vec<(u32, i64)>);

impl Finished {
    /// Adds a finished operation.
    pub fn push(&mut self, io: &LeafIo, result: i64) {
        self.push_part(io.part, result);
    }

    /// Adds the finished operation of this part.
    pub fn push_part(&mut self, part: u32, result: i64) {
        self.0.push((part, result));
    }
}

/// The ring, as one session uses it.
pub struct SessionRing<'a> {
    ring: &'a mut Ring,
    session: u32,
}

impl SessionRing<'_> {
    /// The ring's clock in nanoseconds, as [`Ring::now_ns`].
    pub fn now_ns(&self) -> u64 {
        self.ring.now_ns()
    }

    /// Queues a submission.
    ///
    /// # Safety
    /// The memory that the entry points to stays valid until its completion. The session is not
    /// over before that.
    pub unsafe fn push(&mut self, part: SessionOp, entry: io_uring::squeue::Entry) {
        let id = u64::from(self.session) | (part as u64) << 32;
        // SAFETY: the caller guarantees it.
        unsafe { self.ring.push(&entry.user_data(user_data(Tag::Session, id))) };
    }
}

/// A session, and whether it needs a turn.
struct Entry {
    session: Box<dyn Session>,
    touched: bool,
}

/// The sessions of one queue.
#[derive(Default)]
pub struct Sessions {
    sessions: Slab<Entry>,
    /// Sessions that need a turn.
    touched: Vec<u32>,
    finished: Finished,
}

impl Sessions {
    /// Adds a session and returns its number for submissions.
    pub fn join(&mut self, session: Box<dyn Session>) -> u32 {
        let id = self.sessions.insert(Entry { session, touched: false });
        self.touch(id);
        id
    }

    /// Takes an operation for a session.
    pub fn submit(&mut self, session: u32, io: &LeafIo, now_ns: u64) {
        match self.sessions.get_mut(session) {
            Some(to) => to.session.submit(io, now_ns, &mut self.finished),
            None => self.finished.push(io, -i64::from(libc::ENOTCONN)),
        }
        self.touch(session);
    }

    /// Takes a completion with [`Tag::Session`].
    pub fn complete(&mut self, completion: &Completion) {
        let id = completion.id as u32;
        let Some(Entry { session, .. }) = self.sessions.get_mut(id) else { return };
        let part = match completion.id >> 32 {
            0 => SessionOp::Receive,
            1 => SessionOp::Send,
            2 => SessionOp::Wake,
            _ => SessionOp::Timer,
        };
        session.completed(part, completion.result, &mut self.finished);
        self.touch(id);
    }

    /// Gives every session that needs one its turn.
    pub fn turn(&mut self, ring: &mut Ring) {
        let Sessions { sessions, touched, finished } = self;
        for id in touched.drain(..) {
            let Some(Entry { session, touched }) = sessions.get_mut(id) else { continue };
            *touched = false;
            session.turn(&mut SessionRing { ring, session: id }, finished);
            if session.is_over() {
                sessions.remove(id);
            }
        }
    }

    /// A finished operation: its part and its result.
    pub fn take_finished(&mut self) -> Option<(u32, i64)> {
        self.finished.0.pop()
    }

    /// Whether no session needs a turn, and no finished operation waits.
    pub fn is_quiet(&self) -> bool {
        self.touched.is_empty() && self.finished.0.is_empty()
    }

    /// Whether finished operations wait.
    pub fn has_finished(&self) -> bool {
        !self.finished.0.is_empty()
    }

    /// Whether a session has a deadline. Then call [`Sessions::tick`] about every second.
    pub fn is_timed(&self) -> bool {
        self.sessions.iter().any(|(_, entry)| entry.session.is_timed())
    }

    /// Ends operations that have taken too long.
    pub fn tick(&mut self, now_ns: u64) {
        self.each(|session, out| session.tick(now_ns, out));
    }

    /// Ends all sessions. Their operations under way are answered.
    pub fn close(&mut self, now_ns: u64) {
        self.each(|session, out| session.close(now_ns, out));
    }

    /// Whether there are no sessions.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn each(&mut self, mut call: impl FnMut(&mut dyn Session, &mut Finished)) {
        let ids: Vec<u32> = self.sessions.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(entry) = self.sessions.get_mut(id) {
                call(&mut *entry.session, &mut self.finished);
            }
            self.touch(id);
        }
    }

    fn touch(&mut self, id: u32) {
        if let Some(entry) = self.sessions.get_mut(id)
            && !entry.touched
        {
            entry.touched = true;
            self.touched.push(id);
        }
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        for id in self.sessions.iter().map(|(id, _)| id).collect::<Vec<_>>() {
            // The ring has failed before the sessions ended, so the kernel may still write to their
            // memory.
            mem::forget(self.sessions.remove(id));
        }
    }
}

/// The place where an engine finds its session on a queue.
///
/// It has a cache line of its own, because it belongs to one queue.
#[repr(align(128))]
pub struct SessionSlot {
    /// The session's number. It is relaxed because only the queue's thread uses it.
    session: AtomicU32,
    waker: SessionWaker,
}

/// The number of a slot without a session.
const NO_SESSION: u32 = u32::MAX;

impl SessionSlot {
    /// Creates a slot without a session.
    pub fn new() -> io::Result<SessionSlot> {
        Ok(SessionSlot { session: AtomicU32::new(NO_SESSION), waker: SessionWaker::new()? })
    }

    /// Submits an operation to the session, on its queue's thread. Creates the session if there is
    /// none.
    pub fn submit(
        &self,
        io: &LeafIo,
        turn: &mut Turn,
        make: impl FnOnce() -> Box<dyn Session>,
    ) -> Submitted {
        let mut session = self.session.load(Ordering::Relaxed);
        if session == NO_SESSION {
            session = turn.sessions.join(make());
            self.session.store(session, Ordering::Relaxed);
        }
        turn.sessions.submit(session, io, turn.ring.now_ns());
        Submitted::Pending
    }

    /// Forgets the session, which is about to end.
    pub fn leave(&self) {
        self.session.store(NO_SESSION, Ordering::Relaxed);
    }

    /// Wakes the session from other threads.
    pub fn waker(&self) -> &SessionWaker {
        &self.waker
    }
}

/// Wakes a queue for one session: an eventfd on which the queue has a read under way.
pub struct SessionWaker(EventFd);

impl SessionWaker {
    /// Creates a waker that nobody has used yet.
    pub fn new() -> io::Result<SessionWaker> {
        EventFd::new().map(SessionWaker)
    }

    /// Wakes the queue, now or when it next waits. From any thread.
    pub fn wake(&self) {
        self.0.signal();
    }

    /// The submission that completes after a wake-up.
    pub fn entry(&self, count: &mut u64) -> io_uring::squeue::Entry {
        self.0.read_into(count)
    }
}
