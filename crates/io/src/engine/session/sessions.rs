//! Links to leaves on other machines. A link carries the operations of one queue for one leaf, over
//! a connection that only this queue's thread uses and this queue's ring drives.
//!
//! Contract: one thread owns [`Links`] beside its [`Ring`], and lends both to an engine as a
//! [`Turn`], so that the engine reaches its link. [`Links::submit`] only queues an operation on a
//! link. [`Links::turn`], called once a turn of the queue's loop, makes every link with work send
//! all of it and prepare to receive. [`Links::take_finished`] returns each finished operation
//! exactly once, when nothing in the kernel refers to its memory any more. A link is dropped only
//! when the kernel has given back all of its memory.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};

use super::turn::Turn;
use crate::engine::io::{LeafIo, Submitted};
use crate::sys::eventfd::EventFd;
use crate::sys::ring::{Completion, Ring, Tag, user_data};
use crate::sys::slab::Slab;

/// The kind of a link's operation on the ring. It stands above the link's index in the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// Bytes from its socket, or its readiness.
    Receive = 0,
    /// Bytes to its socket.
    Send = 1,
    /// Its [`Bell`] was rung.
    Bell = 2,
    /// Its timer is over.
    Timer = 3,
}

/// A link. All calls come from the queue's thread.
pub trait Link {
    /// Takes an operation. Its memory is lent until the answer.
    fn submit(&mut self, io: &LeafIo, now_ns: u64, out: &mut Finished);

    /// One of its operations on the ring has completed.
    fn completed(&mut self, part: Part, result: i32, out: &mut Finished);

    /// Submits its work to the ring. Called after any of the others.
    fn turn(&mut self, port: &mut Port<'_>, out: &mut Finished);

    /// About a second has passed, while [`Link::is_timed`].
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

/// The ring, as one link uses it.
pub struct Port<'a> {
    ring: &'a mut Ring,
    link: u32,
}

impl Port<'_> {
    /// The ring's clock in nanoseconds, as [`Ring::now_ns`].
    pub fn now_ns(&self) -> u64 {
        self.ring.now_ns()
    }

    /// Queues a submission.
    ///
    /// # Safety
    /// The memory that the entry points to stays valid until its completion. The link is not over
    /// before that.
    pub unsafe fn push(&mut self, part: Part, entry: io_uring::squeue::Entry) {
        let id = u64::from(self.link) | (part as u64) << 32;
        // SAFETY: the caller guarantees it.
        unsafe { self.ring.push(&entry.user_data(user_data(Tag::Link, id))) };
    }
}

/// A link, and whether it needs a turn.
struct Entry {
    link: Box<dyn Link>,
    touched: bool,
}

/// The links of one queue.
#[derive(Default)]
pub struct Links {
    links: Slab<Entry>,
    /// Links that need a turn.
    touched: Vec<u32>,
    finished: Finished,
}

impl Links {
    /// Adds a link and returns its number for submissions.
    pub fn join(&mut self, link: Box<dyn Link>) -> u32 {
        let id = self.links.insert(Entry { link, touched: false });
        self.touch(id);
        id
    }

    /// Takes an operation for a link.
    pub fn submit(&mut self, link: u32, io: &LeafIo, now_ns: u64) {
        match self.links.get_mut(link) {
            Some(to) => to.link.submit(io, now_ns, &mut self.finished),
            None => self.finished.push(io, -i64::from(libc::ENOTCONN)),
        }
        self.touch(link);
    }

    /// Takes a completion with [`Tag::Link`].
    pub fn complete(&mut self, completion: &Completion) {
        let id = completion.id as u32;
        let Some(Entry { link, .. }) = self.links.get_mut(id) else { return };
        let part = match completion.id >> 32 {
            0 => Part::Receive,
            1 => Part::Send,
            2 => Part::Bell,
            _ => Part::Timer,
        };
        link.completed(part, completion.result, &mut self.finished);
        self.touch(id);
    }

    /// Gives every link that needs one its turn.
    pub fn turn(&mut self, ring: &mut Ring) {
        let Links { links, touched, finished } = self;
        for id in touched.drain(..) {
            let Some(Entry { link, touched }) = links.get_mut(id) else { continue };
            *touched = false;
            link.turn(&mut Port { ring, link: id }, finished);
            if link.is_over() {
                links.remove(id);
            }
        }
    }

    /// A finished operation: its part and its result.
    pub fn take_finished(&mut self) -> Option<(u32, i64)> {
        self.finished.0.pop()
    }

    /// Whether no link needs a turn, and no finished operation waits.
    pub fn is_quiet(&self) -> bool {
        self.touched.is_empty() && self.finished.0.is_empty()
    }

    /// Whether finished operations wait.
    pub fn has_finished(&self) -> bool {
        !self.finished.0.is_empty()
    }

    /// Whether a link has a deadline. Then call [`Links::tick`] about every second.
    pub fn is_timed(&self) -> bool {
        self.links.iter().any(|(_, entry)| entry.link.is_timed())
    }

    /// Ends operations that have taken too long.
    pub fn tick(&mut self, now_ns: u64) {
        self.each(|link, out| link.tick(now_ns, out));
    }

    /// Ends all links. Their operations under way are answered.
    pub fn close(&mut self, now_ns: u64) {
        self.each(|link, out| link.close(now_ns, out));
    }

    /// Whether there are no links.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    fn each(&mut self, mut call: impl FnMut(&mut dyn Link, &mut Finished)) {
        let ids: Vec<u32> = self.links.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(entry) = self.links.get_mut(id) {
                call(&mut *entry.link, &mut self.finished);
            }
            self.touch(id);
        }
    }

    fn touch(&mut self, id: u32) {
        if let Some(entry) = self.links.get_mut(id)
            && !entry.touched
        {
            entry.touched = true;
            self.touched.push(id);
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for id in self.links.iter().map(|(id, _)| id).collect::<Vec<_>>() {
            // The ring has failed before the links ended, so the kernel may still write to their
            // memory.
            mem::forget(self.links.remove(id));
        }
    }
}

/// The place where an engine finds its link on a queue.
///
/// It has a cache line of its own, because it belongs to one queue.
#[repr(align(128))]
pub struct Seat {
    /// The link's number. It is relaxed because only the queue's thread uses it.
    link: AtomicU32,
    bell: Bell,
}

/// The number of a seat without a link.
const NO_LINK: u32 = u32::MAX;

impl Seat {
    /// Creates a seat without a link.
    pub fn new() -> io::Result<Seat> {
        Ok(Seat { link: AtomicU32::new(NO_LINK), bell: Bell::new()? })
    }

    /// Submits an operation to the link, on its queue's thread. Makes the link if there is none.
    pub fn submit(
        &self,
        io: &LeafIo,
        turn: &mut Turn,
        make: impl FnOnce() -> Box<dyn Link>,
    ) -> Submitted {
        let mut link = self.link.load(Ordering::Relaxed);
        if link == NO_LINK {
            link = turn.links.join(make());
            self.link.store(link, Ordering::Relaxed);
        }
        turn.links.submit(link, io, turn.ring.now_ns());
        Submitted::Pending
    }

    /// Forgets the link, which is about to end.
    pub fn leave(&self) {
        self.link.store(NO_LINK, Ordering::Relaxed);
    }

    /// The bell that wakes the link.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }
}

/// Wakes a queue for one link: an eventfd on which the queue has a read under way.
pub struct Bell(EventFd);

impl Bell {
    /// Creates a bell that has not been rung.
    pub fn new() -> io::Result<Bell> {
        EventFd::new().map(Bell)
    }

    /// Wakes the queue, now or when it next waits. From any thread.
    pub fn ring(&self) {
        self.0.signal();
    }

    /// The submission that completes when the bell is rung.
    pub fn entry(&self, count: &mut u64) -> io_uring::squeue::Entry {
        self.0.read_into(count)
    }
}
