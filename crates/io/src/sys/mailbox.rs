//! Mailboxes of threads that wait on a ring: each has a list, and an eventfd that wakes the reader.
//!
//! A layer below the queues knows only its own orders ([`Post`]). Each queue has one mailbox for
//! the orders of all layers, in the order in which they were given.
//!
//! Contract: mail to a thread that is gone is dropped, with its acknowledgement.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use io_uring::squeue;

use super::eventfd::EventFd;
use super::lock::lock;

/// The mailbox of one thread.
pub(crate) struct Mailbox<M> {
    /// `None` after the reader has gone.
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

    /// Sends mail and wakes the reader.
    pub(crate) fn send(&self, mail: M) {
        match lock(&self.mail).as_mut() {
            Some(waiting) => waiting.push_back(mail),
            None => return,
        }
        self.wake();
    }

    /// Wakes the reader for a turn.
    fn wake(&self) {
        self.wake.signal();
    }

    /// Takes all mail, oldest first.
    pub(crate) fn take(&self) -> VecDeque<M> {
        lock(&self.mail).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Closes the mailbox: drops its mail, and any later mail.
    pub(crate) fn close(&self) {
        let waiting = lock(&self.mail).take();
        drop(waiting);
    }
}

/// The mailboxes of all queues.
pub(crate) struct Mailboxes<M>(Vec<Mailbox<M>>);

impl<M> Mailboxes<M> {
    /// Creates `count` empty mailboxes.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new(count: usize) -> io::Result<Mailboxes<M>> {
        (0..count).map(|_| Mailbox::new()).collect::<io::Result<_>>().map(Mailboxes)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The mailbox of one queue.
    pub(crate) fn get(&self, queue: usize) -> Option<&Mailbox<M>> {
        self.0.get(queue)
    }

    /// All mailboxes, by queue.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mailbox<M>> {
        self.0.iter()
    }

    /// Sends mail to every queue.
    pub(crate) fn send_all(&self, mut mail: impl FnMut(usize) -> M) {
        self.0.iter().enumerate().for_each(|(queue, mailbox)| mailbox.send(mail(queue)));
    }
}

/// Sends orders of one layer to the queues.
pub(crate) trait Post<M>: Send + Sync {
    fn queues(&self) -> usize;

    /// Sends an order to one queue.
    fn send(&self, queue: usize, order: M);

    /// Wakes every queue for a turn.
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
