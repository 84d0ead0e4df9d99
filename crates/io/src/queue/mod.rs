//! A queue: one thread, one ring, one pipeline, any number of connections, ublk hardware queues and
//! clients of this process, and rings of vhost-user front ends.
//!
//! One turn of its loop: wait for completions (this also hands the last turn's submissions to the
//! kernel), give each to its owner, carry the answers that became ready to their connections, let
//! every touched connection send and receive. So a batch of requests costs one system call, however
//! many leaves it touches, and a send per connection.

mod order;

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, mpsc};

use io_uring::{opcode, types};

use crate::device::Registry;
use crate::engine::session::turn::Turn;
use crate::export::nbd::admission::Admission;
use crate::export::nbd::server::Server;
use crate::export::nbd::{self, Peer};
use crate::export::{Listener, UBLK_TOKEN, VHOST_USER_TOKEN, client, ublk, vhost_user};
use crate::pipeline::Pipeline;
use crate::request::{Done, is_client};
use crate::sys::buffer::Buffers;
use crate::sys::gather::shutdown;
use crate::sys::latch::Ack;
use crate::sys::lock::lock;
use crate::sys::log_limit::LogLimit;
use crate::sys::mailbox::{Mailboxes, Post};
use crate::sys::ring::{Completion, Tag, user_data};
pub(crate) use order::{QueueOrder, Watch};

/// How a queue has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything is answered, and nothing else refers to the queue's memory.
    Finished,
    /// The kernel does not give back some of the queue's memory.
    GivenUp,
}

/// Shared by the queues of a pool.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) mailboxes: Arc<Mailboxes<QueueOrder>>,
    /// Where to report.
    pub(crate) watcher: mpsc::Sender<Watch>,
    pub(crate) registry: Arc<Registry>,
    /// How many clients are let in.
    pub(crate) admission: Arc<Admission>,
}

/// See the module's text.
pub(crate) struct Queue {
    number: usize,
    shared: Shared,
    /// The mailboxes, as the exports use them.
    post: Arc<dyn Post<nbd::Order>>,
    turn: Turn,
    pipeline: Pipeline,
    buffers: Buffers,
    server: Server,
    ublk: ublk::server::Server,
    clients: client::server::Server,
    vhost_user: vhost_user::server::Server,
    listeners: Vec<Listener>,
    /// The queue that the next connection goes to.
    next_queue: usize,
    /// Where the kernel writes the eventfd's count; boxed because its address is given away.
    wake_count: Box<u64>,
    stopping: Option<Ack>,
    is_given_up: bool,
    /// A tick is to come.
    ticking: bool,
    /// Listeners whose last accept failed: tried again at the next tick, for the reason (no
    /// descriptors) may last.
    refused: Vec<usize>,
    done: Vec<Done>,
}

impl Queue {
    /// Queue number `number`, on the thread that will run it.
    pub(crate) fn new(number: usize, shared: Shared) -> io::Result<Queue> {
        let memory = shared.registry.memory().clone();
        let buffers = Buffers::new(memory, shared.mailboxes.len());
        Ok(Queue {
            number,
            post: shared.mailboxes.clone(),
            shared,
            turn: Turn::new()?,
            pipeline: Pipeline::new(number),
            buffers,
            server: Server::default(),
            ublk: ublk::server::Server::default(),
            clients: client::server::Server::default(),
            vhost_user: vhost_user::server::Server::default(),
            listeners: Vec::new(),
            next_queue: 0,
            wake_count: Box::new(0),
            stopping: None,
            is_given_up: false,
            ticking: false,
            refused: Vec::new(),
            done: Vec::new(),
        })
    }

    /// Runs until it is stopped. Errors: the ring fails (nothing can be served any more).
    pub(crate) fn run(&mut self) -> io::Result<Ended> {
        let mut completions = Vec::new();
        self.arm_wake();
        let mut has_more = false;
        let result = loop {
            self.turn.under_way(self.pipeline.in_flight());
            if let Err(error) = self.turn.wait(has_more, &mut completions) {
                break Err(error);
            }
            for completion in &completions {
                self.dispatch(completion);
            }
            completions.clear();
            if self.is_given_up {
                break Ok(Ended::GivenUp);
            }
            self.turn.next_stage();
            has_more = !self.is_quiet() && self.carry_answers();
            self.pipeline.answer_drains();
            if self.pipeline.has_events() {
                for (device, event) in self.pipeline.take_events() {
                    let _ = self.shared.watcher.send(Watch::Event(device, event));
                }
            }
            if self.pipeline.has_failures() {
                for failure in self.pipeline.take_failures() {
                    let _ = self.shared.watcher.send(Watch::Failure(failure));
                }
            }
            if self.stopping.is_some()
                && self.server.is_empty()
                && self.vhost_user.is_empty()
                && self.pipeline.in_flight() == 0
            {
                // The kernel gives back the memory of their connections in a moment.
                self.turn.sessions.close(self.turn.now_ns());
                self.carry_answers();
                if self.turn.sessions.is_empty() {
                    break Ok(Ended::Finished);
                }
            }
        };
        // Any other has not answered what it was asked: give_up() says so.
        if matches!(result, Ok(Ended::Finished)) {
            if let Some(mailbox) = self.shared.mailboxes.get(self.number) {
                mailbox.close();
            }
            if let Some(ack) = self.stopping.take() {
                ack.done();
            }
        }
        result
    }

    /// Drops it, after it has ended with [`Ended::Finished`]. If it serves hardware queues, the
    /// ring stays open until the process ends.
    ///
    /// A ring that a running thread closes takes the driver's commands back on another thread. If
    /// the driver hands this thread a request at that moment, Linux 6.12 ends one command twice:
    /// the ring never ends and its disk stays with us for good, or the kernel crashes (mended in
    /// Linux 6.15). The driver hands nothing to a thread that has exited.
    pub(crate) fn end(self) {
        // Bound in this order so that, where it is dropped, the ring goes first.
        let Queue { ublk, wake_count, turn, .. } = self;
        if !ublk.is_empty() {
            std::mem::forget((turn, wake_count));
        }
    }

    /// It has failed or was given up, and nothing of it is ever touched again: whoever waits for an
    /// answer to a command is told that there will be none.
    pub(crate) fn give_up(&mut self) {
        if let Some(mailbox) = self.shared.mailboxes.get(self.number) {
            mailbox.close();
        }
        self.stopping = None;
        self.clients.give_up();
        self.pipeline.forget_commands();
    }

    /// There is nothing to be carried: what came was answered where it came from.
    fn is_quiet(&self) -> bool {
        !self.pipeline.has_done()
            && self.server.is_quiet()
            && self.clients.is_quiet()
            && self.vhost_user.is_quiet()
            && self.turn.sessions.is_quiet()
    }

    #[inline]
    fn dispatch(&mut self, completion: &Completion) {
        match completion.tag {
            Tag::Part | Tag::Window => self.pipeline.complete(completion, &mut self.turn),
            Tag::Wake => {
                for command in
                    self.shared.mailboxes.get(self.number).map(|m| m.take()).unwrap_or_default()
                {
                    self.obey(command);
                }
                self.arm_wake();
            }
            Tag::Accept => self.accepted(completion),
            Tag::Receive | Tag::Send => {
                let (server, mut context) = self.nbd();
                server.complete(completion, &mut context);
            }
            Tag::Session => self.turn.sessions.complete(completion),
            Tag::Client => self.clients.rung(completion),
            Tag::Ublk => {
                let (ublk, mut context) = self.ublk();
                ublk.complete(completion, &mut context);
            }
            Tag::VhostUser => {
                let (vhost_user, mut context) = self.vhost_user();
                vhost_user.complete(completion, &mut context);
            }
            Tag::Tick => {
                self.ticking = false;
                self.vhost_user.tick();
                let (server, mut context) = self.nbd();
                server.tick(&mut context);
                self.turn.sessions.tick(self.turn.now_ns());
                std::mem::take(&mut self.refused)
                    .into_iter()
                    .for_each(|listener| self.arm_accept(listener));
                self.keep_ticking();
            }
            Tag::Ignored => {}
        }
    }

    /// Carries answers to those who asked until no more come, then lets the connections send and
    /// receive, those of sessions last: what the others have asked for leaves in one batch. True if
    /// the turn has cost enough before everything was done: the rest is for the next turn, which
    /// must not wait.
    fn carry_answers(&mut self) -> bool {
        loop {
            while let Some((part, result)) = self.turn.sessions.take_finished() {
                let completion = Completion::of_part(part, result);
                self.pipeline.complete(&completion, &mut self.turn);
            }
            if self.pipeline.has_done() {
                let mut done = std::mem::take(&mut self.done);
                self.pipeline.take_done(&mut done);
                self.turn.answered(done.len());
                for done in done.drain(..) {
                    match done.token & (UBLK_TOKEN | VHOST_USER_TOKEN) {
                        0 if is_client(done.token) => self.clients.answered(done),
                        0 => {
                            let (server, mut context) = self.nbd();
                            server.answered(done, &mut context);
                        }
                        VHOST_USER_TOKEN => {
                            let (vhost_user, mut context) = self.vhost_user();
                            vhost_user.answered(done.token, done.errno, &mut context);
                        }
                        _ => {
                            let (ublk, mut context) = self.ublk();
                            ublk.answered(done.token, done.errno, &mut context);
                        }
                    }
                }
                self.done = done;
            }
            let (server, mut context) = self.nbd();
            let mut has_more = server.turn(&mut context);
            let (clients, mut context) = self.clients();
            has_more |= clients.turn(&mut context);
            if !self.vhost_user.is_quiet() {
                let (vhost_user, mut context) = self.vhost_user();
                has_more |= vhost_user.turn(&mut context);
            }
            if self.pipeline.has_done() || (has_more && !self.turn.is_spent()) {
                continue;
            }
            self.turn.run_sessions();
            if !self.turn.sessions.has_finished() {
                self.clients.tell();
                self.keep_ticking();
                return has_more;
            }
        }
    }

    /// The connections, and what they work with.
    #[inline]
    fn nbd(&mut self) -> (&mut Server, nbd::Context<'_>) {
        let context = nbd::Context {
            queue: self.number,
            turn: &mut self.turn,
            pipeline: &mut self.pipeline,
            buffers: &mut self.buffers,
            registry: &self.shared.registry,
            post: &self.post,
        };
        (&mut self.server, context)
    }

    /// The hardware queues, and what they work with.
    #[inline]
    fn ublk(&mut self) -> (&mut ublk::server::Server, ublk::Context<'_>) {
        let context = ublk::Context { turn: &mut self.turn, pipeline: &mut self.pipeline };
        (&mut self.ublk, context)
    }

    /// The clients of this process, and what they work with.
    fn clients(&mut self) -> (&mut client::server::Server, client::server::Context<'_>) {
        let context =
            client::server::Context { turn: &mut self.turn, pipeline: &mut self.pipeline };
        (&mut self.clients, context)
    }

    /// The rings of front ends, and what they work with.
    #[inline]
    fn vhost_user(&mut self) -> (&mut vhost_user::server::Server, vhost_user::Context<'_>) {
        let context = vhost_user::Context {
            turn: &mut self.turn,
            pipeline: &mut self.pipeline,
            buffers: &mut self.buffers,
        };
        (&mut self.vhost_user, context)
    }

    fn obey(&mut self, command: QueueOrder) {
        match command {
            QueueOrder::Device(order) => self.pipeline.obey(order, &mut self.turn),
            QueueOrder::Listen { listener, ack } => {
                self.listeners.push(listener);
                self.arm_accept(self.listeners.len() - 1);
                ack.done();
            }
            QueueOrder::Nbd(order) => {
                let (server, mut context) = self.nbd();
                server.obey(order, &mut context);
                self.keep_ticking();
            }
            QueueOrder::Ublk(order) => {
                let (ublk, mut context) = self.ublk();
                ublk.obey(order, &mut context);
            }
            QueueOrder::Client(order) => {
                let (clients, mut context) = self.clients();
                clients.obey(order, &mut context);
            }
            QueueOrder::VhostUser(order) => {
                let (vhost_user, mut context) = self.vhost_user();
                vhost_user.obey(order, &mut context);
            }
            #[cfg(test)]
            QueueOrder::Panic => panic!("a test wants it"),
            QueueOrder::Stop { ack } => {
                // The accept under way has a hold on the socket beyond its close: the next daemon
                // could not listen there until this one's ring is gone.
                for listener in self.listeners.drain(..) {
                    shutdown(listener.socket.as_fd(), libc::SHUT_RDWR);
                }
                self.stopping = Some(ack);
                // First: what waits at a gate is not to be refused but left to the next server.
                self.ublk.stop();
                let (vhost_user, mut context) = self.vhost_user();
                vhost_user.stop(&mut context);
                self.pipeline.refuse(libc::ESHUTDOWN, &mut self.turn);
                self.server.stop(self.turn.now_ns());
                self.clients.stop();
                self.keep_ticking();
            }
            QueueOrder::GiveUp { found, ack } => {
                let unfinished = self.pipeline.unfinished(crate::sys::ring::clock_ns());
                lock(&found).push(unfinished);
                self.server.cut_off();
                self.pipeline.drop_idle_tables();
                self.is_given_up = true;
                ack.done();
            }
        }
    }

    /// Has a tick come if there is something to look at then.
    fn keep_ticking(&mut self) {
        if !self.ticking
            && (self.server.is_timed()
                || self.vhost_user.is_timed()
                || self.buffers.keeps_any()
                || self.turn.sessions.is_timed()
                || !self.refused.is_empty())
        {
            self.ticking = true;
            self.turn.tick();
        }
    }

    fn arm_wake(&mut self) {
        let Some(mailbox) = self.shared.mailboxes.get(self.number) else { return };
        let entry = mailbox.wake_entry(&mut self.wake_count);
        // SAFETY: the count and the descriptor live as long as the queue, which outlives its ring's
        // operations.
        unsafe { self.turn.push(&entry.user_data(user_data(Tag::Wake, 0))) };
    }

    fn arm_accept(&mut self, index: usize) {
        let Some(listener) = self.listeners.get(index) else { return };
        let fd = types::Fd(listener.socket.as_raw_fd());
        let none = std::ptr::null_mut();
        let entry = opcode::Accept::new(fd, none, none.cast()).flags(libc::SOCK_CLOEXEC).build();
        // SAFETY: nothing is pointed to; a listener that is dropped meanwhile ends the operation
        // with an error.
        unsafe { self.turn.push(&entry.user_data(user_data(Tag::Accept, index as u64))) };
    }

    /// A connection came: it goes to the next queue in turn.
    fn accepted(&mut self, completion: &Completion) {
        if completion.result >= 0 {
            // SAFETY: the kernel has just made this descriptor for us.
            let socket = unsafe { OwnedFd::from_raw_fd(completion.result) };
            self.admit(socket);
            self.arm_accept(completion.id as usize);
        } else if completion.result != -libc::ECANCELED && self.stopping.is_none() {
            static LIMIT: LogLimit = LogLimit::new();
            if let Some(suppressed) = LIMIT.pass() {
                let error = io::Error::from_raw_os_error(-completion.result);
                tracing::warn!(%error, suppressed, "accept failed");
            }
            self.refused.push(completion.id as usize);
            self.keep_ticking();
        }
    }

    /// Gives a connection to the queue whose turn it is, if it can be let in.
    fn admit(&mut self, socket: OwnedFd) {
        static LIMIT: LogLimit = LogLimit::new();
        match self.shared.admission.admit(socket.as_fd()) {
            Ok(place) => {
                if let Some(mailbox) = self.shared.mailboxes.get(self.next_queue) {
                    mailbox.send(nbd::Order::Connect { socket, place }.into());
                }
                self.next_queue = (self.next_queue + 1) % self.shared.mailboxes.len();
            }
            Err(reason) => {
                if let Some(suppressed) = LIMIT.pass() {
                    let client = Peer::of(socket.as_fd());
                    tracing::warn!(%client, reason, suppressed, "connection refused");
                }
            }
        }
    }
}
