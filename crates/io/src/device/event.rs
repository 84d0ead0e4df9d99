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
    /// A path of a device that is no multipath has answered with errors.
    PathErrors {
        /// The path, counted over all segments of the table.
        number: u32,
        /// The path, as the table has it.
        path: String,
        /// What it answered.
        errno: i32,
        /// How often, since this was last told.
        count: u64,
    },
    /// A path of a multipath device flaps, or no longer does.
    Flapping {
        /// The path, as the table has it.
        path: String,
        /// Which.
        is_marginal: bool,
    },
    /// The device is there.
    Created,
    /// The device is gone.
    Removed,
    /// The device has another name now.
    Renamed {
        /// The name that it had.
        from: String,
    },
    /// The device's gate is closed: requests wait.
    Suspended,
    /// The gate is open.
    Resumed {
        /// Another table is live now.
        swapped: bool,
    },
}

/// Is told of everything that happens.
pub type Observer = Box<dyn Fn(&Device, What) + Send + Sync>;
