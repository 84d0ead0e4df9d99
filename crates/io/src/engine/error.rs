//! Errors of opening and using a leaf, and what they mean for the caller.
//!
//! Contract: plain data.

use std::io;

use crate::engine::io::Properties;
use crate::engine::mode::Unfit;

/// Why a leaf cannot be used. Each text is a sentence that quotes the address.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The address has an unknown form.
    #[error(
        "'{0}' is no address: give a path that starts with '/', nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, \
         iscsi://[USER@]PORTAL[:PORT]/TARGET/LUN, mem:SIZE, null:SIZE or sim:SIZE[,option...]"
    )]
    Address(String),
    /// The address has an invalid size.
    #[error(
        "'{0}': the size must be a number of bytes with an optional K, M, G or T, a multiple of 512 above 0"
    )]
    Size(String),
    /// The address has an unknown option, or an option with an invalid value.
    #[error("'{address}': bad option '{option}': {allowed}")]
    Option {
        /// The whole address, with any secret masked.
        address: String,
        /// The option as it was written.
        option: String,
        /// The allowed options or values.
        allowed: &'static str,
    },
    /// An `nbd+unix` address without a socket.
    #[error(
        "'{0}': socket=PATH is missing, the absolute path of the server's socket: nbd+unix:///EXPORT?socket=PATH"
    )]
    NoSocket(String),
    /// A system call failed.
    #[error("cannot {what} '{name}': {source}")]
    System {
        /// The action that failed, such as `open`.
        what: &'static str,
        /// The path or address.
        name: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// Another process writes to the leaf.
    #[error(
        "'{0}' is in use: another process holds a lock on it (or it is mounted); one writer at a time"
    )]
    Busy(String),
    /// The path is neither a regular file nor a block device.
    #[error("'{0}' is neither a regular file nor a block device")]
    NotBlock(String),
    /// The leaf is read-only, and the table needs to write to it.
    #[error("'{0}' is read-only: make it writable, or load the table read-only (--readonly)")]
    ReadOnly(String),
    /// The leaf is a zoned disk. Its zones must be written sequentially, which a table cannot
    /// guarantee.
    #[error(
        "'{0}' is a zoned disk, whose zones must be written from front to back: what goes through a table of devices \
         cannot promise that"
    )]
    Zoned(String),
    /// The leaf is open in another mode (direct or cached), and that mode cannot change.
    #[error("'{name}' is open {now} already, for another table, and stays so: {why}")]
    Mode {
        /// The path of the file.
        name: String,
        /// The mode in which it is open.
        now: &'static str,
        /// Why that mode cannot change.
        why: Unfit,
    },
    /// A custom leaf has invalid properties.
    #[error(
        "'{name}' has properties that make no sense: {properties:?}; it needs at least one sector, and blocks of 512 bytes or more, \
         the logical one a power of two of at most 64 KiB"
    )]
    Properties {
        /// The name of the custom leaf.
        name: String,
        /// The properties that it gave.
        properties: Properties,
    },
    /// The file is smaller than one sector.
    #[error(
        "'{0}' is empty: it must hold at least one sector of 512 bytes (create --make-files makes files)"
    )]
    Empty(String),
}

impl LeafError {
    /// Whether the leaf cannot be reached now, rather than being unusable.
    pub fn is_unreachable(&self) -> bool {
        let LeafError::System { source, .. } = self else { return false };
        let kinds =
            [io::ErrorKind::TimedOut, io::ErrorKind::NotConnected, io::ErrorKind::UnexpectedEof];
        source.raw_os_error().is_some() || kinds.contains(&source.kind())
    }

    /// Whether the leaf can be reached but not written.
    pub fn is_read_only(&self) -> bool {
        match self {
            LeafError::ReadOnly(_) => true,
            LeafError::System { what: "open", source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EACCES | libc::EROFS))
            }
            _ => false,
        }
    }

    /// The errno that the kernel's device mapper would return.
    pub fn errno(&self) -> i32 {
        match self {
            LeafError::Address(_)
            | LeafError::Size(_)
            | LeafError::NoSocket(_)
            | LeafError::Option { .. } => libc::EINVAL,
            LeafError::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            LeafError::Busy(_) => libc::EBUSY,
            LeafError::NotBlock(_) => libc::ENOTBLK,
            LeafError::ReadOnly(_) => libc::EACCES,
            LeafError::Mode { .. } => libc::EBUSY,
            LeafError::Empty(_) | LeafError::Zoned(_) | LeafError::Properties { .. } => {
                libc::EINVAL
            }
        }
    }
}
