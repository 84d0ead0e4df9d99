//! A queue: one thread, one ring, one pipeline, any number of connections and ublk hardware queues.
//!
//! One turn of its loop: wait for completions (this also hands the last turn's submissions to the
//! kernel), give each to its owner, carry the answers that became ready to their connections, let
//! every touched connection send and receive. So a batch of requests costs one system call, however
//! many leaves it touches, and a send per connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use io_uring::{opcode, types};

use crate::device::table::Live;
use crate::engine::session::turn::Turn;
use crate::export::nbd::Peer;
use crate::export::nbd::admission::Place;
use crate::export::nbd::clients::{Barrier, Client, Newer};
use crate::export::nbd::inquiry::Described;
use crate::export::nbd::server::Server;
use crate::export::{Listener, UBLK_TOKEN, ublk};
use crate::pipeline::{Pipeline, Unfinished};
use crate::pool::{Ack, Mailboxes, Registry};
use crate::request::Done;
use crate::stats::Counters;
use crate::sys::buffer::Buffers;
use crate::sys::gather::shutdown;
use crate::sys::lock::lock;
use crate::sys::log_limit::LogLimit;
use crate::sys::ring::{Completion, Tag, user_data};

/// What control asks of a queue.
pub enum Command {
    /// A device exists.
    Install {
        /// Its id.
        device: u32,
        /// Where to count, a line per queue.
        counters: Arc<[Counters]>,
        /// Answered at once.
        ack: Ack,
    },
    /// A device that nobody uses is gone.
    Remove {
        /// Its id.
        device: u32,
        /// Answered at once.
        ack: Ack,
    },
    /// Let no request in.
    Close {
        /// Its id.
        device: u32,
        /// Hold what finds no path of a multipath device.
        noflush: bool,
        /// Answered when none is in flight.
        ack: Ack,
    },
    /// Let what waits for a path of a multipath device ask again.
    Release {
        /// Its id.
        device: u32,
    },
    /// Fail what the requests of a device have waiting for a path or at a gate below.
    FailHeld {
        /// Its id.
        device: u32,
    },
    /// Let requests in.
    Open {
        /// Its id.
        device: u32,
        /// What they meet.
        live: Option<Arc<Live>>,
        /// Answered at once.
        ack: Ack,
    },
    /// Meet this once the gate opens: it is closed.
    Exchange {
        /// Its id.
        device: u32,
        /// What requests will meet.
        live: Arc<Live>,
        /// Answered at once.
        ack: Ack,
    },
    /// Accept connections.
    Listen {
        /// Where.
        listener: Listener,
        /// Answered at once.
        ack: Ack,
    },
    /// Serve a connection.
    Connect {
        /// Its socket.
        socket: OwnedFd,
        /// Its place among the connections that are let in.
        place: Place,
    },
    /// Tell who is connected.
    Clients {
        /// Where to.
        found: Arc<Mutex<Vec<Client>>>,
        /// Answered at once.
        ack: Ack,
    },
    /// End connections.
    Disconnect {
        /// Their numbers.
        numbers: Arc<[u64]>,
        /// Answered at once.
        ack: Ack,
    },
    /// A newer connection waits for what its client has under way on older ones.
    Settle {
        /// It.
        newer: Newer,
        /// Dropped by all when that has ended.
        barrier: Arc<Barrier>,
    },
    /// What a connection of this queue waited for has ended.
    Settled {
        /// Its index.
        conn: u32,
        /// Its number.
        number: u64,
    },
    /// Leaves have told of their allocation, for a connection of this queue.
    Described(Box<Described>),
    /// Serve a hardware queue of a ublk device.
    ServeUblk {
        /// It.
        queue: Box<ublk::HwQueue>,
        /// Answered when its first commands are on their way.
        ack: Ack,
    },
    /// Refuse the requests that ublk has for a device, those that wait at a gate included.
    FailUblk {
        /// Its id.
        device: u32,
        /// Answered at once.
        ack: Ack,
    },
    /// Panic, for a test.
    #[cfg(test)]
    Panic,
    /// Finish what is in flight and end.
    Stop {
        /// Answered when the thread is about to end.
        ack: Ack,
    },
    /// The time for that is over: end without what does not.
    GiveUp {
        /// What each queue that has not ended has not finished.
        found: Arc<Mutex<Vec<Vec<Unfinished>>>>,
        /// Answered at once.
        ack: Ack,
    },
}

/// What the parts of a queue work with, lent for one call.
pub struct Context<'a> {
    /// The number of the queue.
    pub queue: usize,
    /// The ring.
    pub turn: &'a mut Turn,
    /// The pipeline.
    pub pipeline: &'a mut Pipeline,
    /// The buffers.
    pub buffers: &'a mut Buffers,
    /// Names of devices, for handshakes.
    pub registry: &'a Arc<Registry>,
}

/// How a queue has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything is answered, and nobody has anything of it.
    Finished,
    /// What the kernel has does not come back.
    GivenUp,
}

/// See the module's text.
pub struct Queue {
    number: usize,
    mailboxes: Arc<Mailboxes>,
    registry: Arc<Registry>,
    turn: Turn,
    pipeline: Pipeline,
    buffers: Buffers,
    server: Server,
    ublk: ublk::server::Server,
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
    pub fn new(
        number: usize,
        mailboxes: Arc<Mailboxes>,
        registry: Arc<Registry>,
    ) -> io::Result<Queue> {
        let buffers = Buffers::new(registry.memory().clone(), mailboxes.len());
        Ok(Queue {
            number,
            mailboxes,
            registry,
            turn: Turn::new()?,
            pipeline: Pipeline::new(number),
            buffers,
            server: Server::default(),
            ublk: ublk::server::Server::default(),
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
    pub fn run(&mut self) -> io::Result<Ended> {
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
            if self.pipeline.has_events() {
                for (device, event) in self.pipeline.take_events() {
                    self.mailboxes.report(device, event);
                }
            }
            if self.pipeline.has_failures() {
                self.pipeline.take_failures().for_each(|one| self.mailboxes.report_failure(one));
            }
            if self.stopping.is_some() && self.server.is_empty() && self.pipeline.in_flight() == 0 {
                // What the kernel still has of their connections it gives back in a moment.
                self.turn.links.close(self.turn.now_ns());
                self.carry_answers();
                if self.turn.links.is_empty() {
                    break Ok(Ended::Finished);
                }
            }
        };
        // Any other has not answered what it was asked: give_up() says so.
        if matches!(result, Ok(Ended::Finished)) {
            if let Some(mailbox) = self.mailboxes.get(self.number) {
                mailbox.close();
            }
            if let Some(ack) = self.stopping.take() {
                ack.done();
            }
        }
        result
    }

    /// Drops it, after it has ended with [`Ended::Finished`]. If it serves hardware queues, the ring
    /// stays open until the process ends.
    ///
    /// A ring that a running thread closes takes the driver's commands back on another thread. If
    /// the driver hands this thread a request at that moment, Linux 6.12 ends one command twice:
    /// the ring never ends and its disk stays with us for good, or the kernel crashes (mended in
    /// Linux 6.15). The driver hands nothing to a thread that has exited.
    pub fn end(self) {
        // Bound in this order so that, where it is dropped, the ring goes first.
        let Queue { ublk, wake_count, turn, .. } = self;
        if !ublk.is_empty() {
            std::mem::forget((turn, wake_count));
        }
    }

    /// It has failed or was given up, and nothing of it is ever touched again: whoever waits for an answer to a
    /// command is told that there will be none.
    pub fn give_up(&mut self) {
        if let Some(mailbox) = self.mailboxes.get(self.number) {
            mailbox.close();
        }
        self.stopping = None;
        self.pipeline.forget_commands();
    }

    /// There is nothing to be carried: what came was answered where it came from.
    fn is_quiet(&self) -> bool {
        !self.pipeline.has_done() && self.server.is_quiet() && self.turn.links.is_quiet()
    }

    #[inline]
    fn dispatch(&mut self, completion: &Completion) {
        match completion.tag {
            Tag::Part | Tag::Window => self.pipeline.complete(completion, &mut self.turn),
            Tag::Wake => {
                for command in self.mailboxes.get(self.number).map(|m| m.take()).unwrap_or_default()
                {
                    self.obey(command);
                }
                self.arm_wake();
            }
            Tag::Accept => self.accepted(completion),
            Tag::Receive | Tag::Send => {
                let (server, _, mut context) = self.split();
                server.complete(completion, &mut context);
            }
            Tag::Link => self.turn.links.complete(completion),
            Tag::Ublk => {
                let (_, ublk, mut context) = self.split();
                ublk.complete(completion, &mut context);
            }
            Tag::Tick => {
                self.ticking = false;
                let (server, _, mut context) = self.split();
                server.tick(&mut context);
                self.turn.links.tick(self.turn.now_ns());
                std::mem::take(&mut self.refused)
                    .into_iter()
                    .for_each(|listener| self.arm_accept(listener));
                self.keep_ticking();
            }
            Tag::Ignored => {}
        }
    }

    /// Carries answers to those who asked until no more come, then lets the connections send and
    /// receive, those of links last: what the others have asked for leaves in one batch. True if the
    /// turn has cost enough before everything was done: the rest is for the next turn, which must
    /// not wait.
    fn carry_answers(&mut self) -> bool {
        loop {
            while let Some((part, result)) = self.turn.links.take_finished() {
                let completion = Completion::of_part(part, result);
                self.pipeline.complete(&completion, &mut self.turn);
            }
            if self.pipeline.has_done() {
                let mut done = std::mem::take(&mut self.done);
                self.pipeline.take_done(&mut done);
                self.turn.answered(done.len());
                let (server, ublk, mut context) = self.split();
                for done in done.drain(..) {
                    match done.token & UBLK_TOKEN {
                        0 => server.answered(done, &mut context),
                        _ => ublk.answered(done.token, done.errno, &mut context),
                    }
                }
                self.done = done;
            }
            let (server, _, mut context) = self.split();
            let has_more = server.turn(&mut context);
            if self.pipeline.has_done() || (has_more && !self.turn.is_spent()) {
                continue;
            }
            self.turn.run_links();
            if !self.turn.links.has_finished() {
                self.keep_ticking();
                return has_more;
            }
        }
    }

    fn split(&mut self) -> (&mut Server, &mut ublk::server::Server, Context<'_>) {
        let context = Context {
            queue: self.number,
            turn: &mut self.turn,
            pipeline: &mut self.pipeline,
            buffers: &mut self.buffers,
            registry: &self.registry,
        };
        (&mut self.server, &mut self.ublk, context)
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Install { device, counters, ack } => {
                self.pipeline.install(device, counters);
                ack.done();
            }
            Command::Remove { device, ack } => {
                self.pipeline.remove(device);
                ack.done();
            }
            Command::Close { device, noflush, ack } => {
                self.pipeline.close(device, noflush, ack, &mut self.turn);
            }
            Command::Release { device } => self.pipeline.release(device, &mut self.turn),
            Command::FailHeld { device } => {
                self.pipeline.fail_held(device, libc::EIO, &mut self.turn);
            }
            Command::Open { device, live, ack } => {
                self.pipeline.open(device, live, &mut self.turn);
                ack.done();
            }
            Command::Exchange { device, live, ack } => {
                self.pipeline.exchange(device, live);
                ack.done();
            }
            Command::Listen { listener, ack } => {
                self.listeners.push(listener);
                self.arm_accept(self.listeners.len() - 1);
                ack.done();
            }
            Command::Connect { socket, place } => {
                let (server, _, mut context) = self.split();
                server.connect(socket, place, &mut context);
                self.keep_ticking();
            }
            Command::Clients { found, ack } => {
                let mut found = lock(&found);
                found.extend(self.server.clients());
                ack.done();
            }
            Command::Disconnect { numbers, ack } => {
                let (server, _, mut context) = self.split();
                let is_one = |client: &Client| numbers.contains(&client.number);
                server.disconnect(is_one, &mut context);
                ack.done();
            }
            Command::Settle { newer, barrier } => {
                let (server, _, mut context) = self.split();
                server.settle(&newer, &barrier, &mut context);
            }
            Command::Settled { conn, number } => self.server.settled(conn, number),
            Command::Described(described) => {
                let (server, _, mut context) = self.split();
                server.described(&described, &mut context);
            }
            Command::ServeUblk { queue, ack } => {
                let (_, ublk, mut context) = self.split();
                ublk.serve(queue, &mut context);
                ack.done();
            }
            Command::FailUblk { device, ack } => {
                let (_, ublk, mut context) = self.split();
                ublk.fail(device, &mut context);
                ack.done();
            }
            #[cfg(test)]
            Command::Panic => panic!("a test wants it"),
            Command::Stop { ack } => {
                // The accept under way has a hold on the socket beyond its close: the next daemon
                // could not listen there until this one's ring is gone.
                for listener in self.listeners.drain(..) {
                    shutdown(listener.socket.as_fd(), libc::SHUT_RDWR);
                }
                self.stopping = Some(ack);
                // First: what waits at a gate is not to be refused but left to the next server.
                self.ublk.stop();
                self.pipeline.refuse(libc::ESHUTDOWN, &mut self.turn);
                self.server.stop(self.turn.now_ns());
                self.keep_ticking();
            }
            Command::GiveUp { found, ack } => {
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
                || self.buffers.keeps_any()
                || self.turn.links.is_timed()
                || !self.refused.is_empty())
        {
            self.ticking = true;
            self.turn.tick();
        }
    }

    fn arm_wake(&mut self) {
        let Some(mailbox) = self.mailboxes.get(self.number) else { return };
        let into = (&raw mut *self.wake_count).cast();
        let entry = opcode::Read::new(types::Fd(mailbox.wake_fd()), into, 8).build();
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
        match self.registry.admission().admit(socket.as_fd()) {
            Ok(place) => {
                if let Some(mailbox) = self.mailboxes.get(self.next_queue) {
                    mailbox.send(Command::Connect { socket, place });
                }
                self.next_queue = (self.next_queue + 1) % self.mailboxes.len();
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
