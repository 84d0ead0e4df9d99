//! The ublk export: a device as a disk of this machine, `/dev/ublkbN`.
//!
//! The kernel's ublk driver hands each request of the disk to the thread that serves its hardware
//! queue, as the completion of a command on the ring that also carries the leaves' I/O. The answer
//! is the next command. So one system call per turn serves both sides. One thread serves any number
//! of hardware queues of any devices beside its NBD connections. `Documentation/block/ublk.rst` of
//! the kernel describes the protocol.
//!
//! With Linux 6.16 or later, and if it pays ([`crate::Table::gains_by_pages`]), the server does not
//! copy data at all: the driver puts a request's pages into the ring's table of buffers, and leaves
//! read and write those (zero copy, `UBLK_F_SUPPORT_ZERO_COPY` with `UBLK_F_AUTO_BUF_REG`). A disk
//! keeps this property, but its device may get another table. For a leaf that cannot use pages, the
//! data is copied with reads and writes of the character device (`UBLK_F_USER_COPY`;
//! [`crate::sys::pages`]). Linux 6.15 also has zero copy, but it needs two more commands per
//! request, so it is not used.
//!
//! Otherwise the driver copies data once in each direction, between the request and an area that
//! its tag owns, as part of the commands for the request. User copy would make the same copy with
//! one more system call per request, or through the ring with a worker thread, because the
//! character device has no non-blocking mode (`ublk_ch_fops`, Linux 6.12).
//!
//! A disk outlives its server (`UBLK_F_USER_RECOVERY` with `_REISSUE`). Without a server, its
//! requests wait. The driver sends the requests of a dead server again to the next one, so a write
//! may reach its leaf twice. [`crate::Pool::recover_ublk`] takes a disk over, and [`found`] finds
//! such disks.
//!
//! Limits: the size, block sizes and boundaries of a disk are those of the table that was live when
//! it was attached. A reload cannot change them; a request beyond the end of a shorter table fails.
//! A queue uses up to `depth` × [`MAX_IO_BYTES`] of memory, and keeps the pages that large requests
//! have touched.
//!
//! Needs root (CAP_SYS_ADMIN), the module `ublk_drv`, and Linux 6.5.

mod abi;
mod attach;
mod control;
mod hw_queue;
mod in_use;
mod leftover;
mod params;
pub(crate) mod server;

use std::io;

pub(crate) use attach::Exports;
pub use hw_queue::HwQueue;
pub use leftover::{Found, Server, found, remove_leftover, wait_until_left};
pub(crate) use server::{Context, Order};

/// Largest read or write in bytes: the size of a tag's data area. The kernel's own loop driver
/// takes no more at once.
pub const MAX_IO_BYTES: u32 = 512 << 10;
/// Default number of requests in flight of a hardware queue, as in ublk's own tools.
pub const DEFAULT_DEPTH: u16 = 128;
/// Largest depth of a hardware queue (`UBLK_MAX_QUEUE_DEPTH`).
pub const MAX_DEPTH: u16 = abi::MAX_QUEUE_DEPTH;
/// Most hardware queues (`UBLK_MAX_NR_QUEUES`). The kernel makes no more than it has processors.
pub const MAX_QUEUES: u16 = 4096;

/// The features of the driver for zero copy: pages in the ring's table without a separate command,
/// and a way to copy where that is necessary.
const ZERO_COPY: u64 =
    abi::feature::SUPPORT_ZERO_COPY | abi::feature::AUTO_BUF_REG | abi::feature::USER_COPY;

/// Options for attaching a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Number of hardware queues; `None` for as many as the pool has queues.
    pub queues: Option<u16>,
    /// Requests in flight per hardware queue; `None` for [`DEFAULT_DEPTH`].
    pub depth: Option<u16>,
    /// Whether to use zero copy, if the kernel can; `None` to use it where it pays.
    pub zero_copy: Option<bool>,
}

/// A disk of this machine that is an attached device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The driver's number of the disk.
    pub id: u32,
    /// Number of hardware queues.
    pub queues: u16,
    /// Requests in flight per hardware queue.
    pub depth: u16,
    /// Whether data is moved without a copy to and from leaves that can do so.
    pub zero_copy: bool,
    /// Size in sectors, which does not change.
    pub sectors: u64,
    /// Logical block size in bytes, which does not change.
    pub logical_block: u32,
}

impl Node {
    /// The path of the block device, `/dev/ublkbN`.
    pub fn path(&self) -> String {
        block_node(self.id)
    }
}

/// Whether the driver does not copy the data of the device's requests.
fn is_zero_copy(info: &abi::DevInfo) -> bool {
    info.flags & ZERO_COPY == ZERO_COPY
}

fn block_node(id: u32) -> String {
    format!("/dev/ublkb{id}")
}

fn char_node(id: u32) -> String {
    format!("/dev/ublkc{id}")
}

/// Why a device cannot be attached, detached or taken over.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    /// The ublk driver is not loaded.
    #[error(
        "no ublk driver: /dev/ublk-control does not exist (kernel {release}). Load it with 'modprobe ublk_drv'; a \
         kernel without that module (Debian 12's 6.1) cannot do it, Debian's 6.12 can"
    )]
    NoDriver {
        /// The kernel's release, as `uname -r` prints it.
        release: String,
    },
    /// The process lacks CAP_SYS_ADMIN.
    #[error("ublk needs root (CAP_SYS_ADMIN): {0}")]
    NotPermitted(io::Error),
    /// The driver lacks a required feature.
    #[error("the ublk driver of kernel {release} lacks {lacks}: Linux 6.5 or newer is needed")]
    TooOld {
        /// The kernel's release, as `uname -r` prints it.
        release: String,
        /// The feature that is missing.
        lacks: &'static str,
    },
    /// The driver refused a command.
    #[error("the ublk driver refused {command}: {source}")]
    Command {
        /// The name of the command.
        command: &'static str,
        /// The error that the driver answered.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {what} {name}: {source}")]
    System {
        /// The action that failed.
        what: &'static str,
        /// The object of the action.
        name: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// An option is out of range.
    #[error("ublk {what} {given} is out of range: 1 to {most} is allowed")]
    Range {
        /// The name of the option.
        what: &'static str,
        /// The value that was given.
        given: u16,
        /// The largest allowed value.
        most: u16,
    },
    /// The device has no live table, or the driver does not support its block size.
    #[error("device '{0}' has no live table with a logical block size of 512 to 4096 bytes")]
    Table(String),
    /// The device is suspended, so the first reads of the disk would wait for ever.
    #[error("device '{0}' is suspended: resume it first")]
    Suspended(String),
    /// The device is attached already, or is being attached or detached.
    #[error("device '{0}' is attached already, or is being attached or detached just now")]
    Attached(String),
    /// The device is not attached.
    #[error("device '{0}' is not attached to ublk")]
    NotAttached(String),
    /// The disk is mounted, or below another device.
    #[error("{node} is in use: it is mounted or another device stands on it")]
    InUse {
        /// The path of the block device.
        node: String,
    },
    /// The disk does not belong to a dead blkswitch server.
    #[error("/dev/ublkb{id} cannot be taken over: {why}")]
    NotLeftover {
        /// The driver's number of the disk.
        id: u32,
        /// The actual state of the disk.
        why: String,
    },
    /// The block size of the table is larger than that of the disk, whose users may send smaller
    /// requests.
    #[error(
        "/dev/ublkb{id} has blocks of {disk} bytes, which a disk keeps, and the table of device \
         '{device}' needs blocks of {table} bytes"
    )]
    Block {
        /// The driver's number of the disk.
        id: u32,
        /// The disk's logical block size in bytes.
        disk: u32,
        /// The name of the device.
        device: String,
        /// The logical block size of its table in bytes.
        table: u32,
    },
    /// The device is being removed, or the pool is stopping.
    #[error("device '{0}' is being removed, or the pool is stopping")]
    Stopping(String),
}

impl UblkError {
    fn command(command: abi::Control, source: io::Error) -> UblkError {
        match source.raw_os_error() {
            Some(libc::EPERM) => UblkError::NotPermitted(source),
            _ => UblkError::Command { command: command.name(), source },
        }
    }

    /// The errno that a kernel interface would return.
    pub fn errno(&self) -> i32 {
        match self {
            UblkError::NoDriver { .. } => libc::ENODEV,
            UblkError::NotPermitted(_) => libc::EPERM,
            UblkError::TooOld { .. } => libc::EOPNOTSUPP,
            UblkError::Command { source, .. } | UblkError::System { source, .. } => {
                source.raw_os_error().unwrap_or(libc::EIO)
            }
            UblkError::Range { .. } | UblkError::Table(_) | UblkError::Block { .. } => libc::EINVAL,
            UblkError::Suspended(_) | UblkError::Attached(_) | UblkError::InUse { .. } => {
                libc::EBUSY
            }
            UblkError::NotAttached(_) => libc::ENXIO,
            UblkError::NotLeftover { .. } => libc::EBUSY,
            UblkError::Stopping(_) => libc::ESHUTDOWN,
        }
    }
}
