//! The connections of one queue, between the ring and the pipeline.
//!
//! Contract: one thread uses a [`Server`]. A token consists of the connection's index and the index
//! of the request within it. A connection is dropped only when the kernel and the pipeline have
//! returned everything of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::admission::Place;
use super::clients::{Barrier, Client, Newer};
use super::conn::Conn;
use super::context::{Context, Order};
use super::inquiry::Described;
use crate::request::Done;
use crate::sys::lock::lock;
use crate::sys::log_limit::LogLimit;
use crate::sys::ring::{Completion, Tag};
use crate::sys::slab::Slab;

/// Number of connections served between two readings of the clock.
const ROUNDS_A_LOOK: usize = 8;
const ROUNDS_A_LOOK_LAST: usize = ROUNDS_A_LOOK - 1;

/// The NBD connections of one queue.
#[derive(Default)]
pub(crate) struct Server {
    conns: Slab<Box<Conn>>,
    /// Connections that need a turn. They go before the heavy ones.
    light: Vec<u32>,
    /// The same of connections that moved much data in their last round ([`Conn::is_heavy`]). A
    /// client of small requests does not wait until a hundred others have had their megabyte.
    heavy: Vec<u32>,
    /// Connections that wait for memory, the longest wait first.
    starved: Vec<u32>,
    stopping: bool,
}

impl Server {
    pub(crate) fn obey(&mut self, order: Order, context: &mut Context<'_>) {
        match order {
            Order::Connect { socket, place } => self.connect(socket, place, context),
            Order::Clients { found, ack } => {
                lock(&found).extend(self.clients());
                ack.done();
            }
            Order::Disconnect { numbers, ack } => {
                let is_one = |client: &Client| numbers.contains(&client.number);
                self.disconnect(is_one, context);
                ack.done();
            }
            Order::Settle { newer, barrier } => self.settle(&newer, &barrier, context),
            Order::Settled { conn, number } => self.settled(conn, number),
            Order::Described(described) => self.described(&described, context),
        }
    }

    /// Whether there are no connections.
    pub(crate) fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// Whether no connection needs a turn.
    pub(crate) fn is_quiet(&self) -> bool {
        self.light.is_empty() && self.heavy.is_empty() && self.starved.is_empty()
    }

    /// Serves a connection from its greeting on.
    pub(crate) fn connect(&mut self, socket: OwnedFd, place: Place, context: &mut Context<'_>) {
        static LIMIT: LogLimit = LogLimit::new();
        if self.stopping {
            return;
        }
        let Ok(conn) = Conn::new(socket, place, context).map(Box::new) else {
            if let Some(suppressed) = LIMIT.pass() {
                tracing::warn!(suppressed, "connection refused: there is no memory for it");
            }
            return;
        };
        let id = self.conns.insert(conn);
        self.touch(id);
    }

    /// The connections that have a device open.
    pub(crate) fn clients(&self) -> impl Iterator<Item = Client> + '_ {
        self.conns.iter().filter_map(|(_, conn)| conn.client())
    }

    /// Ends the connections of these clients. Gives up their requests that wait at a gate.
    pub(crate) fn disconnect(
        &mut self,
        is_one: impl Fn(&Client) -> bool,
        context: &mut Context<'_>,
    ) {
        for id in self.ids() {
            if let Some(conn) = self.conns.get_mut(id)
                && conn.client().is_some_and(|client| is_one(&client))
            {
                conn.end_now();
                self.give_up(id, context);
            }
        }
    }

    /// Makes the older connections of a client hold `barrier` until their work has ended. The
    /// client's newer connection waits for that before it is answered.
    pub(crate) fn settle(
        &mut self,
        newer: &Newer,
        barrier: &Arc<Barrier>,
        context: &mut Context<'_>,
    ) {
        let is_older = |client: Client| {
            client.device == newer.device
                && client.number < newer.number
                && client.peer.is_same_client(&newer.peer)
        };
        for id in self.ids() {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            if conn.is_replaced_by(newer) {
                conn.yield_place(barrier);
                self.give_up(id, context);
            } else if conn.client().is_some_and(is_older) && conn.yield_to(barrier) {
                self.give_up(id, context);
            }
        }
    }

    /// Ends a connection's wait for the work of older connections.
    pub(crate) fn settled(&mut self, id: u32, number: u64) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.settled(number);
            self.touch(id);
        }
    }

    /// Passes the answer of an inquiry to its connection.
    pub(crate) fn described(&mut self, described: &Described, context: &mut Context<'_>) {
        if let Some(conn) = self.conns.get_mut(described.conn) {
            conn.described(described.conn, described, context);
            self.touch(described.conn);
        }
    }

    /// Gives up a connection's requests that wait at a gate or for a path.
    fn give_up(&mut self, id: u32, context: &mut Context<'_>) {
        let is_its = |token| token >> 32 == u64::from(id);
        context.pipeline.abandon(libc::ESHUTDOWN, is_its, context.turn);
        self.touch(id);
    }

    /// Processes a completed receive or send of a connection.
    pub(crate) fn complete(&mut self, completion: &Completion, context: &mut Context<'_>) {
        let id = completion.id as u32;
        let Some(conn) = self.conns.get_mut(id) else { return };
        match completion.tag {
            Tag::Receive => conn.received(completion.result),
            _ => conn.sent(completion.result, context),
        }
        self.touch(id);
    }

    /// Passes the pipeline's answer to the request's connection.
    pub(crate) fn answered(&mut self, done: Done, context: &mut Context<'_>) {
        let (id, slot) = ((done.token >> 32) as u32, done.token as u32);
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.answered(slot, done.errno, context);
        self.touch(id);
    }

    /// Serves touched connections until the turn has used up its budget: the light ones, then the
    /// heavy ones, and at least one of each. The connections that are left are the first ones of
    /// the next turn. Returns `true` if it must be called again after the answers were passed on.
    pub(crate) fn turn(&mut self, context: &mut Context<'_>) -> bool {
        self.feed(context);
        let Server { conns, light, heavy, starved, .. } = self;
        let (light_reached, has_light) = read_round(light, conns, context);
        let (heavy_reached, has_heavy) = read_round(heavy, conns, context);
        if (has_light || has_heavy) && !context.turn.is_spent_now() {
            return true;
        }
        arm_round(light, light_reached, conns, starved, context);
        light.retain(|&id| {
            let is_heavy = conns.get(id).is_some_and(|conn| conn.is_heavy);
            if is_heavy {
                heavy.push(id);
            }
            !is_heavy
        });
        arm_round(heavy, heavy_reached, conns, starved, context);
        if context.buffers.memory().is_awaited(context.turn.now_ns())
            && context.buffers.take_given()
        {
            // Other connections need the buffers that are kept for reuse.
            context.buffers.trim(true);
            context.buffers.take_given();
            context.post.wake_all();
        }
        !self.light.is_empty() || !self.heavy.is_empty()
    }

    /// Lets connections go on if the memory that they wait for is available.
    fn feed(&mut self, context: &Context<'_>) {
        for id in std::mem::take(&mut self.starved) {
            match self.conns.get(id) {
                Some(conn) if conn.starved.is_some() && !conn.can_be_fed(context) => {
                    self.starved.push(id);
                }
                _ => self.touch(id),
            }
        }
    }

    /// Stops: no more requests are read. Connections close when their requests in flight are
    /// answered.
    pub(crate) fn stop(&mut self, now_ns: u64) {
        self.stopping = true;
        for id in self.ids() {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.stop(now_ns);
            }
            self.touch(id);
        }
    }

    /// Shuts down all sockets, because they may otherwise stay open until the process ends.
    pub(crate) fn cut_off(&mut self) {
        self.conns.iter().for_each(|(_, conn)| conn.cut_off());
    }

    /// Whether there are connections. Then call [`Server::tick`] about every second.
    pub(crate) fn is_timed(&self) -> bool {
        !self.conns.is_empty()
    }

    /// Drops connections that have reached a deadline, whose client has gone, or whose client holds
    /// memory and does nothing. Returns unused memory.
    pub(crate) fn tick(&mut self, context: &mut Context<'_>) {
        for id in self.ids() {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            conn.expire(context.turn.now_ns());
            if conn.look(context) {
                self.give_up(id, context);
            } else if conn.is_to_go_on() {
                self.touch(id);
            }
        }
        let awaited = context.buffers.memory().is_awaited(context.turn.now_ns());
        context.buffers.trim(awaited || self.conns.is_empty());
        if !self.starved.is_empty() {
            context.buffers.memory().await_at(context.turn.now_ns());
        }
    }

    fn ids(&self) -> Vec<u32> {
        self.conns.iter().map(|(id, _)| id).collect()
    }

    fn touch(&mut self, id: u32) {
        if let Some(conn) = self.conns.get_mut(id)
            && !conn.touched
        {
            conn.touched = true;
            if conn.is_heavy { self.heavy.push(id) } else { self.light.push(id) }
        }
    }
}

/// Lets connections read requests until the turn has used up its budget, but at least the first
/// one. Returns how many had their round, and whether there is more to do at once.
fn read_round(
    ids: &[u32],
    conns: &mut Slab<Box<Conn>>,
    context: &mut Context<'_>,
) -> (usize, bool) {
    let (mut more, mut reached) = (false, 0);
    for &id in ids {
        // Read the clock only sometimes, because most rounds are short.
        let is_spent = match reached % ROUNDS_A_LOOK {
            ROUNDS_A_LOOK_LAST => context.turn.is_spent_now(),
            _ => context.turn.is_spent(),
        };
        if is_spent && reached > 0 {
            return (reached, true);
        }
        reached += 1;
        let Some(conn) = conns.get_mut(id) else { continue };
        conn.read_requests(id, context);
        more |= conn.has_more || context.pipeline.has_done();
    }
    (reached, more)
}

/// Lets the first `reached` connections send and receive. Afterwards, those that were not reached
/// come first, then those that go on.
fn arm_round(
    ids: &mut Vec<u32>,
    reached: usize,
    conns: &mut Slab<Box<Conn>>,
    starved: &mut Vec<u32>,
    context: &mut Context<'_>,
) {
    ids.rotate_left(reached);
    let mut unread = ids.len() - reached;
    ids.retain(|&id| {
        if unread > 0 {
            unread -= 1;
            return true;
        }
        let Some(conn) = conns.get_mut(id) else { return false };
        conn.touched = conn.arm(id, context) || conn.has_more;
        let again = conn.touched;
        if conn.starved.is_some() && !starved.contains(&id) {
            starved.push(id);
        }
        if conn.is_over()
            && let Some(conn) = conns.remove(id)
        {
            conn.release(context);
            return false;
        }
        again
    });
}
