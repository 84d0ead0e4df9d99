//! The orders of control to a queue, and the reports of a queue.

use std::sync::{Arc, Mutex};

use blkswitch_core::multipath::Event;

use crate::device;
use crate::device::failing::Failure;
use crate::export::{self, Listener};
use crate::pipeline::Unfinished;
use crate::sys::latch::Ack;

/// An order of control to a queue: for one of the layers below, or for the loop itself.
pub(crate) enum QueueOrder {
    /// For the pipeline, about a device.
    Device(device::host::Order),
    /// For the connections.
    Nbd(export::nbd::Order),
    /// For the clients of this process.
    Client(export::client::server::Order),
    /// For the hardware queues of disks.
    Ublk(export::ublk::Order),
    /// For the rings of front ends.
    VhostUser(export::vhost_user::Order),
    /// Accept connections.
    Listen {
        /// Where.
        listener: Listener,
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
        /// The unfinished work of each queue that has not ended.
        found: Arc<Mutex<Vec<Vec<Unfinished>>>>,
        /// Answered at once.
        ack: Ack,
    },
}

impl From<device::host::Order> for QueueOrder {
    fn from(order: device::host::Order) -> QueueOrder {
        QueueOrder::Device(order)
    }
}

impl From<export::nbd::Order> for QueueOrder {
    fn from(order: export::nbd::Order) -> QueueOrder {
        QueueOrder::Nbd(order)
    }
}

impl From<export::client::server::Order> for QueueOrder {
    fn from(order: export::client::server::Order) -> QueueOrder {
        QueueOrder::Client(order)
    }
}

impl From<export::ublk::Order> for QueueOrder {
    fn from(order: export::ublk::Order) -> QueueOrder {
        QueueOrder::Ublk(order)
    }
}

impl From<export::vhost_user::Order> for QueueOrder {
    fn from(order: export::vhost_user::Order) -> QueueOrder {
        QueueOrder::VhostUser(order)
    }
}

/// A report of a queue, for the thread that logs and counts it.
pub(crate) enum Watch {
    /// Something has changed on the multipath device of this id.
    Event(u32, Event),
    /// A path has failed requests.
    Failure(Arc<Failure>),
    /// The pool stops.
    Stop,
}
