//! The vhost-user export: a device as a disk of virtual machines, without a network protocol.
//!
//! A front end (QEMU, Cloud Hypervisor, libblkio) connects to the device's socket, and shares the
//! memory of its guest and the rings of a virtio-blk device in it. A queue takes requests out of
//! the rings, and leaves read and write the guest's own memory: no data is copied. Notifications
//! are eventfds on the queue's io_uring, so one system call per turn serves the guest and the
//! leaves.
//!
//! A thread of its own speaks the protocol with the front end ([`front_end`]). It hands a ring to a
//! queue when everything about it is known, and takes it back before anything of it changes. So the
//! queue never sees half of a change, and shares nothing with that thread.
//!
//! Requests that were taken and not answered are noted in memory that the front end keeps
//! ([`inflight`]). So a daemon that was killed or upgraded comes back under a running guest. For a
//! migration, written pages are logged ([`log`]).
//!
//! This is own code, as it is for NBD and ublk. On the data path every line is ours. Beside it, the
//! crate `vhost` would parse the messages, and bring its own mappings of the guest's memory. Those
//! end the process if a front end shrinks its file ([`crate::sys::guarded`] does not), so only the
//! parser would be left: some 200 lines, which are fuzzed here.
//!
//! Limits: [`MAX_RINGS`] rings of [`RING_SIZE_MAX`] entries, [`MAX_DESCRIPTORS`] descriptors of a
//! chain, [`MAX_IO_BYTES`] of a request, [`MAX_UNDER_WAY`] parts of requests under way for each
//! ring, [`MAX_REGIONS`] regions of memory. One front end at a time; the next one waits.

mod asked;
mod attach;
mod config;
mod front_end;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod fuzzing;
mod inflight;
mod log;
pub(crate) mod memory;
pub mod message;
mod rings;
pub(crate) mod server;
mod trouble;
mod vring;

use std::io;

pub(crate) use attach::Exports;
pub(crate) use server::{Context, Order};

/// Most rings of a device.
pub const MAX_RINGS: u16 = 256;
/// Rings of a device, unless something else is said. A front end uses as many as its guest has
/// processors, and refuses a device that allows fewer; what is not used costs nothing.
pub const DEFAULT_RINGS: u16 = 64;
/// Most entries of a ring, as in QEMU.
const RING_SIZE_MAX: u16 = 1024;
/// Most segments of a request's data. With its header and status it fits into QEMU's default ring.
const MAX_SEGMENTS: usize = 126;
/// Most descriptors of a chain: the segments, and room for a header and status in pieces.
const MAX_DESCRIPTORS: usize = MAX_SEGMENTS + 34;
/// Longest read or write in bytes, as for NBD.
const MAX_IO_BYTES: u64 = 32 << 20;
/// Most parts of requests that a ring has under way. Beyond that it takes none until some are
/// answered.
const MAX_UNDER_WAY: usize = 1024;
/// Most regions of a guest's memory.
const MAX_REGIONS: usize = 32;
/// Memory that is aligned to so many bytes can be used in place.
const ALIGN: usize = 512;

/// Options for attaching a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Most rings that a front end may use; `None` for [`DEFAULT_RINGS`].
    pub queues: Option<u16>,
}

/// The socket of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its path.
    pub path: String,
    /// Most rings that a front end may use.
    pub queues: u16,
    /// Whether a front end is connected.
    pub connected: bool,
}

/// Why a device cannot be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// A system call failed.
    #[error("cannot {what} for vhost-user: {source}")]
    System {
        /// The action that failed.
        what: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// An option is out of range.
    #[error("vhost-user queues {given} is out of range: 1 to {MAX_RINGS} is allowed")]
    Range {
        /// The value that was given.
        given: u16,
    },
    /// The device has no live table.
    #[error("device '{0}' has no live table")]
    Table(String),
    /// The device has a socket already.
    #[error("device '{0}' is attached to vhost-user already")]
    Attached(String),
    /// The device has no socket.
    #[error("device '{0}' is not attached to vhost-user")]
    NotAttached(String),
    /// A front end is connected.
    #[error("device '{0}' is in use: a vhost-user front end is connected")]
    InUse(String),
    /// The device is being removed, or the pool is stopping.
    #[error("device '{0}' is being removed, or the pool is stopping")]
    Stopping(String),
}

impl VhostUserError {
    /// The errno that a kernel interface would return.
    pub fn errno(&self) -> i32 {
        match self {
            VhostUserError::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            VhostUserError::Range { .. } | VhostUserError::Table(_) => libc::EINVAL,
            VhostUserError::Attached(_) | VhostUserError::InUse(_) => libc::EBUSY,
            VhostUserError::NotAttached(_) => libc::ENXIO,
            VhostUserError::Stopping(_) => libc::ESHUTDOWN,
        }
    }
}
