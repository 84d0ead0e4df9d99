//! Who has a device open over NBD, and the way to end that; and work of a client's older
//! connections, which a newer one waits for.
//!
//! A client that has lost its connection sends what was not answered again on a new one. Were the
//! old writes still under way here, they could overwrite what the new connection has written and
//! got answered. So a connection is told that its handshake is over only when the writes which
//! the same client ([`Peer::is_same_client`]) has under way on other connections have ended. A
//! connection that the client has closed ends first: what it had sent is carried out or dropped.
//!
//! A [`Barrier`] is made by the newer connection and shared by all that it waits for: each holds a
//! reference until its work is done, and the last to let go sends the news.

use std::sync::Arc;
use std::time::SystemTime;

use super::Peer;
use crate::pool::Registry;
use crate::queue::Command;

/// A connection that has a device open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The device's id.
    pub device: u32,
    /// The connection's number: no other of this pool ever has it.
    pub number: u64,
    /// Who it is.
    pub peer: Peer,
    /// When it was accepted.
    pub since: SystemTime,
    /// Requests between their header and their sent reply.
    pub in_flight: usize,
}

/// See the module's text.
pub struct Barrier {
    registry: Arc<Registry>,
    queue: usize,
    conn: u32,
    number: u64,
}

/// Whose older work is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Newer {
    /// The device.
    pub device: u32,
    /// The client.
    pub peer: Peer,
    /// The number of the newer connection.
    pub number: u64,
}

impl Barrier {
    /// For connection `conn` of `queue`, whose number is `number`.
    pub(super) fn new(registry: Arc<Registry>, queue: usize, conn: u32, number: u64) -> Barrier {
        Barrier { registry, queue, conn, number }
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        let settled = Command::Settled { conn: self.conn, number: self.number };
        self.registry.send(self.queue, settled);
    }
}
