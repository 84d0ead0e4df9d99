//! What happens to devices, for who watches.
//!
//! Contract: an observer is called on the thread that made a change, or on the pool's watcher for
//! what a queue has found out; never on a queue. It must not block. Changes that are made at once
//! are told in any order.

use blkswitch_core::multipath::Event;

use crate::device::Device;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Something on a multipath device.
    Multipath {
        /// What.
        event: Event,
        /// The address of the path it is about.
        path: Option<String>,
    },
    /// A message has changed a region map.
    Remapped {
        /// The first sector of the segment.
        sector: u64,
        /// Arguments of the message that were applied.
        arguments: u64,
    },
}

/// Is told of everything that happens.
pub type Observer = Box<dyn Fn(&Device, What) + Send + Sync>;
