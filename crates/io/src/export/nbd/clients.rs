//! The clients that have a device open over NBD, the ways to end them, and the work of a client's
//! older connections, for which a newer one waits.
//!
//! A client that has lost its connection sends unanswered requests again on a new one. Old writes
//! that are still under way here could overwrite newer, answered ones of the new connection. So the
//! handshake of a connection ends only when the writes of the same client
//! ([`Peer::is_same_client`]) on other connections have ended. A connection that the client has
//! closed ends first: its requests are carried out or dropped.
//!
//! A client can also name the connections that a newer one replaces ([`super::replaces`]). These
//! end at once, from whatever address they come, and nothing more is read from them.
//!
//! The newer connection makes a [`Barrier`] and shares it with all connections for which it waits.
//! Each holds a reference until its work is done. The last one to drop it notifies the newer
//! connection.

use std::sync::Arc;
use std::time::SystemTime;

use super::Order;
use super::Peer;
use crate::sys::mailbox::Post;

/// A connection that has a device open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The id of the device.
    pub device: u32,
    /// The connection's number, which no other connection of this pool ever has.
    pub number: u64,
    /// The other end of the connection.
    pub peer: Peer,
    /// The time at which the connection was accepted.
    pub since: SystemTime,
    /// Number of requests between their header and their sent reply.
    pub in_flight: usize,
}

/// Notifies a newer connection when the last reference is dropped.
pub struct Barrier {
    post: Arc<dyn Post<Order>>,
    queue: usize,
    conn: u32,
    number: u64,
}

/// The newer connection that waits for older work.
#[derive(Clone, Debug)]
pub struct Newer {
    /// The id of the device that it has opened.
    pub device: u32,
    /// The other end of the connection.
    pub peer: Peer,
    /// The number of the newer connection.
    pub number: u64,
    /// The name of the older connections that it replaces.
    pub replaces: Option<Arc<str>>,
}

impl Barrier {
    /// A barrier for connection `conn` of `queue`, whose number is `number`.
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
