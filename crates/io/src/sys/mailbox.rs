//! Mail to threads that wait on a ring: a list each, and an eventfd that wakes its reader.
//!
//! A layer that is below the queues knows only the orders that it gives ([`Post`]). The queues have
//! one mailbox each for the orders of all layers, in the order in which they were given.
//!
//! Contract: mail to a thread that is gone is dropped, and with it its acknowledgement.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use io_uring::squeue;

use super::eventfd::EventFd;
use super::lock::lock;

/// The mail of one thread.
pub(crate) struct Mailbox<M> {
    /// Nothing once the reader is gone.
    mail: Mutex<Option<VecDeque<M>>>,
    wake: EventFd,
}

impl<M> Mailbox<M> {
    fn new() -> io::Result<Mailbox<M>> {
        Ok(Mailbox { mail: Mutex::new(Some(VecDeque::new())), wake: EventFd::new()? })
    }

    /// The submission that completes when there is mail. The kernel writes to `count`.
    pub(crate) fn wake_entry(&self, count: &mut u64) -> squeue::Entry {
        self.wake.read_into(count)
    }

    /// Sends.
    pub(crate) fn send(&self, mail: M) {
        match lock(&self.mail).as_mut() {
            Some(waiting) => waiting.push_back(mail),
            None => return,
        }
        self.wake();
    }

    /// Has the reader take a turn.
    fn wake(&self) {
        self.wake.signal();
    }

    /// Takes what was sent.
    pub(crate) fn take(&self) -> VecDeque<M> {
        lock(&self.mail).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Nothing more is taken: what is there and what comes is dropped.
    pub(crate) fn close(&self) {
        let waiting = lock(&self.mail).take();
        drop(waiting);
    }
}

/// The mailboxes of all queues.
pub(crate) struct Mailboxes<M>(Vec<Mailbox<M>>);

impl<M> Mailboxes<M> {
    /// `count` empty ones.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new(count: usize) -> io::Result<Mailboxes<M>> {
        (0..count).map(|_| Mailbox::new()).collect::<io::Result<_>>().map(Mailboxes)
    }

    /// How many queues there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// One queue's.
    pub(crate) fn get(&self, queue: usize) -> Option<&Mailbox<M>> {
        self.0.get(queue)
    }

    /// All, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mailbox<M>> {
        self.0.iter()
    }

    /// Sends something to every queue.
    pub(crate) fn send_all(&self, mut mail: impl FnMut(usize) -> M) {
        self.0.iter().enumerate().for_each(|(queue, mailbox)| mailbox.send(mail(queue)));
    }
}

/// Takes orders of one layer to the queues.
pub(crate) trait Post<M>: Send + Sync {
    /// How many queues there are.
    fn queues(&self) -> usize;

    /// Sends an order to one queue.
    fn send(&self, queue: usize, order: M);

    /// Has every queue take a turn.
    fn wake_all(&self);
}

impl<M, N: From<M> + Send> Post<M> for Mailboxes<N> {
    fn queues(&self) -> usize {
        self.len()
    }

    fn send(&self, queue: usize, order: M) {
        if let Some(mailbox) = self.get(queue) {
            mailbox.send(order.into());
        }
    }

    fn wake_all(&self) {
        self.iter().for_each(Mailbox::wake);
    }
}

impl<M> dyn Post<M> + '_ {
    /// Sends an order to every queue.
    pub(crate) fn send_all(&self, mut order: impl FnMut(usize) -> M) {
        (0..self.queues()).for_each(|queue| self.send(queue, order(queue)));
    }
}
