//! The clients that have a device open over NBD, how to end them, and the work of a client's older
//! connections, for which a newer one waits.
//!
//! A client that has lost its connection sends unanswered requests again on a new one. Old writes
//! that are still under way here could overwrite newer, answered ones of the new connection. So the
//! handshake of a connection ends only when the writes of the same client
//! ([`Peer::is_same_client`]) on other connections have ended. A connection that the client has
//! closed ends before that: its requests are carried out or dropped.
//!
//! A client can also name the connections that a newer one takes the place of
//! ([`super::replaces`]). They end at once, whatever address they come from, and nothing is read from
//! them any more.
//!
//! The newer connection makes a [`Barrier`] and shares it with all connections that it waits for.
//! Each holds a reference until its work is done, and the last one to drop it notifies the newer
//! connection.

use std::sync::Arc;
use std::time::SystemTime;

use super::Order;
use super::Peer;
use crate::sys::mailbox::Post;

/// A connection that has a device open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The device's id.
    pub device: u32,
    /// The connection's number: no other of this pool ever has it.
    pub number: u64,
    /// The client.
    pub peer: Peer,
    /// The time of its acceptance.
    pub since: SystemTime,
    /// Requests between their header and their sent reply.
    pub in_flight: usize,
}

/// See the module's text.
pub struct Barrier {
    post: Arc<dyn Post<Order>>,
    queue: usize,
    conn: u32,
    number: u64,
}

/// The newer connection that waits for older work.
#[derive(Clone, Debug)]
pub struct Newer {
    /// The device.
    pub device: u32,
    /// The client.
    pub peer: Peer,
    /// The number of the newer connection.
    pub number: u64,
    /// The name of the older ones that it takes the place of.
    pub replaces: Option<Arc<str>>,
}

impl Barrier {
    /// For connection `conn` of `queue`, whose number is `number`.
    pub(super) fn new(post: Arc<dyn Post<Order>>, queue: usize, conn: u32, number: u64) -> Barrier {
        Barrier { post, queue, conn, number }
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        let settled = Order::Settled { conn: self.conn, number: self.number };
        self.post.send(self.queue, settled);
    }
}
