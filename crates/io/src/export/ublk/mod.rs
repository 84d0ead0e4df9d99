//! The ublk export: a device as a disk of this machine, `/dev/ublkbN`.
//!
//! The kernel's ublk driver hands each request of the disk to the thread that serves its hardware
//! queue, as the completion of a command on the same ring that carries the leaves' I/O; the answer
//! is the next command. So one system call per turn serves both sides, and one thread serves any
//! number of hardware queues of any number of devices beside its NBD connections.
//! `Documentation/block/ublk.rst` of the kernel describes the protocol.
//!
//! Where the driver can (Linux 6.16) and it pays ([`crate::Table::gains_by_pages`]), data is not
//! copied on this side at all: the driver puts a request's pages into the table of buffers of the
//! ring, and leaves read and write these (zero copy, `UBLK_F_SUPPORT_ZERO_COPY` with
//! `UBLK_F_AUTO_BUF_REG`). That is a property of the disk for good, but its device may get another
//! table: what a leaf cannot take so is copied by reads and writes of the character device
//! (`UBLK_F_USER_COPY`; [`crate::sys::pages`]). Linux 6.15 has zero copy, too, at two more commands per
//! request: not used.
//!
//! Elsewhere data is copied once each way, by the driver, into and out of an area that a tag owns,
//! as part of the commands that carry the request anyway. User copy would make the same copy with
//! one more system call per request, or through the ring with a worker thread, because the
//! character device has no non-blocking mode (`ublk_ch_fops`, Linux 6.12).
//!
//! A disk outlives its server (`UBLK_F_USER_RECOVERY` with `_REISSUE`): while there is none its
//! requests wait, and those that a dead server had are sent again to the next one, so a write may
//! reach its leaf twice. It is taken over with [`crate::Pool::recover_ublk`]; [`found`] finds
//! what there is.
//!
//! Limits: size, block sizes and boundaries of a disk are those of the table that was live when it
//! was attached; a reload can change none of them (a request beyond the end of a shorter table
//! fails). A queue takes up to `depth` × [`MAX_IO_BYTES`] of memory, and keeps what large requests
//! have touched.
//!
//! Needs: root (CAP_SYS_ADMIN), the module `ublk_drv`, Linux 6.5.

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

/// Largest read or write: the size of a tag's data area. The kernel's own loop driver takes no more
/// at once.
pub const MAX_IO_BYTES: u32 = 512 << 10;
/// Requests of a hardware queue in flight unless told otherwise: what ublk's own tools take.
pub const DEFAULT_DEPTH: u16 = 128;
/// Deepest hardware queue (`UBLK_MAX_QUEUE_DEPTH`).
pub const MAX_DEPTH: u16 = abi::MAX_QUEUE_DEPTH;
/// Most hardware queues; the kernel makes no more than it has processors (`UBLK_MAX_NR_QUEUES`).
pub const MAX_QUEUES: u16 = 4096;

/// What zero copy takes of the driver: pages in the ring's table without a command of their own,
/// and a way to copy what must be copied all the same.
const ZERO_COPY: u64 =
    abi::feature::SUPPORT_ZERO_COPY | abi::feature::AUTO_BUF_REG | abi::feature::USER_COPY;

/// How a device is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Hardware queues; as many as the pool has queues if not given.
    pub queues: Option<u16>,
    /// Requests per hardware queue; [`DEFAULT_DEPTH`] if not given.
    pub depth: Option<u16>,
    /// Zero copy if the kernel can, or none; where it pays if not given.
    pub zero_copy: Option<bool>,
}

/// A disk of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The driver's number of it.
    pub id: u32,
    /// Hardware queues.
    pub queues: u16,
    /// Requests per hardware queue.
    pub depth: u16,
    /// Data is not copied on its way to leaves that can do without.
    pub zero_copy: bool,
    /// Its size in sectors, which it keeps.
    pub sectors: u64,
    /// Its logical block size in bytes, which it keeps.
    pub logical_block: u32,
}

impl Node {
    /// The block device, `/dev/ublkbN`.
    pub fn path(&self) -> String {
        block_node(self.id)
    }
}

/// Whether the driver leaves the data of the device's requests where it is.
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
    /// The module is not there.
    #[error(
        "no ublk driver: /dev/ublk-control does not exist (kernel {release}). Load it with 'modprobe ublk_drv'; a \
         kernel without that module (Debian 12's 6.1) cannot do it, Debian's 6.12 can"
    )]
    NoDriver {
        /// The kernel's release.
        release: String,
    },
    /// Not root.
    #[error("ublk needs root (CAP_SYS_ADMIN): {0}")]
    NotPermitted(io::Error),
    /// The driver lacks what we build on.
    #[error("the ublk driver of kernel {release} lacks {lacks}: Linux 6.5 or newer is needed")]
    TooOld {
        /// The kernel's release.
        release: String,
        /// What is missing.
        lacks: &'static str,
    },
    /// The driver refused a command.
    #[error("the ublk driver refused {command}: {source}")]
    Command {
        /// The command.
        command: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {what} {name}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// With what.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A bad option.
    #[error("ublk {what} {given} is out of range: 1 to {most} is allowed")]
    Range {
        /// Which.
        what: &'static str,
        /// What was given.
        given: u16,
        /// The largest that is allowed.
        most: u16,
    },
    /// Nothing to export, or the driver cannot.
    #[error("device '{0}' has no live table with a logical block size of 512 to 4096 bytes")]
    Table(String),
    /// The first reads of the disk would wait for ever.
    #[error("device '{0}' is suspended: resume it first")]
    Suspended(String),
    /// It is one disk already, or becomes or ceases to be one just now.
    #[error("device '{0}' is attached already, or is being attached or detached just now")]
    Attached(String),
    /// It is none.
    #[error("device '{0}' is not attached to ublk")]
    NotAttached(String),
    /// Mounted, or below another device.
    #[error("{node} is in use: it is mounted or another device stands on it")]
    InUse {
        /// The block device.
        node: String,
    },
    /// Not a disk of a dead server of ours.
    #[error("/dev/ublkb{id} cannot be taken over: {why}")]
    NotLeftover {
        /// The driver's number of it.
        id: u32,
        /// What it is instead.
        why: String,
    },
    /// The disk's users send requests that the table cannot take.
    #[error(
        "/dev/ublkb{id} has blocks of {disk} bytes, which a disk keeps, and the table of device \
         '{device}' needs blocks of {table} bytes"
    )]
    Block {
        /// The driver's number of it.
        id: u32,
        /// The disk's.
        disk: u32,
        /// The device.
        device: String,
        /// Those of its table.
        table: u32,
    },
    /// The device is being removed, or the pool is going down.
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

    /// The errno a caller of the kernel would see.
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
