//! The context in which the connections of a queue work, and the orders of control and other
//! queues.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use super::admission::Place;
use super::clients::{Barrier, Client, Newer};
use super::inquiry::Described;
use crate::device::Registry;
use crate::engine::session::turn::Turn;
use crate::pipeline::Pipeline;
use crate::sys::buffer::Buffers;
use crate::sys::latch::Ack;
use crate::sys::mailbox::Post;

/// The parts of a queue that it lends to its connections for one call.
pub(crate) struct Context<'a> {
    /// The number of the queue.
    pub(crate) queue: usize,
    /// The queue's ring, and the sessions on it.
    pub(crate) turn: &'a mut Turn,
    /// The pipeline for requests to devices.
    pub(crate) pipeline: &'a mut Pipeline,
    /// The queue's buffers for request data.
    pub(crate) buffers: &'a mut Buffers,
    /// Names of devices, for handshakes.
    pub(crate) registry: &'a Arc<Registry>,
    /// The mailboxes of all queues.
    pub(crate) post: &'a Arc<dyn Post<Order>>,
}

/// An order to the connections of a queue.
pub(crate) enum Order {
    /// Serve an accepted connection.
    Connect {
        /// The socket of the connection.
        socket: OwnedFd,
        /// The connection's place from [`super::admission`].
        place: Place,
    },
    /// Report the clients that have a device open.
    Clients {
        /// The list to which each queue adds its clients.
        found: Arc<Mutex<Vec<Client>>>,
        /// Acknowledged when they are added.
        ack: Ack,
    },
    /// End the connections with these numbers.
    Disconnect {
        /// Numbers of connections, [`Client::number`].
        numbers: Arc<[u64]>,
        /// Acknowledged when they can no longer send requests.
        ack: Ack,
    },
    /// A newer connection waits for work of its client's older connections.
    Settle {
        newer: Newer,
        /// Held by older connections until their work has ended.
        barrier: Arc<Barrier>,
    },
    /// The work for which a connection of this queue waited has ended.
    Settled {
        /// The index of the connection.
        conn: u32,
        /// The number of the connection.
        number: u64,
    },
    /// The answer to an allocation inquiry of a connection of this queue.
    Described(Box<Described>),
}
