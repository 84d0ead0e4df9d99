//! What the connections of a queue work with, and what control or another queue asks of them.

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

/// What a queue lends for one call.
pub(crate) struct Context<'a> {
    /// The number of the queue.
    pub(crate) queue: usize,
    /// The ring.
    pub(crate) turn: &'a mut Turn,
    /// The pipeline.
    pub(crate) pipeline: &'a mut Pipeline,
    /// The buffers.
    pub(crate) buffers: &'a mut Buffers,
    /// Names of devices, for handshakes.
    pub(crate) registry: &'a Arc<Registry>,
    /// The connections of other queues.
    pub(crate) post: &'a Arc<dyn Post<Order>>,
}

/// What is asked of the connections.
pub(crate) enum Order {
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
}
