//! Events of devices, for observers.
//!
//! Contract: an observer is called on the thread that made a change, or on the pool's watcher
//! thread for events that a queue found out, but never on a queue. It must not block. Simultaneous
//! changes are reported in any order.

use blkswitch_core::multipath::Event;

use crate::device::Device;

/// A kind of event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// A change on a multipath device.
    Multipath {
        /// The kind of the change.
        event: Event,
        /// The address of the path that it is about, if it is about one.
        path: Option<String>,
    },
    /// A message has changed a region map.
    Remapped {
        /// The first sector of the segment.
        sector: u64,
        /// Arguments of the message that were applied.
        arguments: u64,
        /// The device's generation after the message.
        generation: u64,
        /// The caller that asked for it.
        who: Who,
    },
    /// A path has answered with errors. Only for devices that are not multipath.
    PathErrors {
        /// The number of the path, counted over all segments of the table.
        number: u32,
        /// The path in the words of the table.
        path: String,
        /// The errno that it answered.
        errno: i32,
        /// Number of such errors since the last report.
        count: u64,
    },
    /// A path of a multipath device has begun or ceased to flap.
    Flapping {
        /// The path in the words of the table.
        path: String,
        /// Whether the path flaps now.
        is_marginal: bool,
    },
    /// The device was created.
    Created,
    /// The device was removed.
    Removed,
    /// The device was renamed.
    Renamed {
        /// The name before the change.
        from: String,
    },
    /// The device's gate is closed, so requests wait.
    Suspended,
    /// The device's gate is open.
    Resumed {
        /// Whether the resume swapped in another table.
        swapped: bool,
    },
}

/// The caller that asked for a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// The user of the process that asked; `None` if it was this process itself.
    pub uid: Option<u32>,
    /// The number of the process; `None` if it is not known.
    pub pid: Option<u32>,
    /// The kind of the caller, in a word.
    pub source: String,
}

/// A function that is called for every event.
pub type Observer = Box<dyn Fn(&Device, DeviceEvent) + Send + Sync>;
