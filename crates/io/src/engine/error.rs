//! Why a leaf cannot be used, and what that means to whoever wanted it.
//!
//! Contract: plain data.

use std::io;

use crate::engine::io::Limits;
use crate::engine::mode::Unfit;

/// Why a leaf cannot be used. Each is a sentence that quotes the address.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The address is not of a known form.
    #[error(
        "'{0}' is no address: give a path that starts with '/', nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, \
         iscsi://[USER@]PORTAL[:PORT]/TARGET/LUN, mem:SIZE, null:SIZE or sim:SIZE[,option...]"
    )]
    Address(String),
    /// The size in an address is wrong.
    #[error(
        "'{0}': the size must be a number of bytes with an optional K, M, G or T, a multiple of 512 above 0"
    )]
    Size(String),
    /// An option in an address is unknown or has a bad value.
    #[error("'{address}': bad option '{option}': {allowed}")]
    Option {
        /// The whole address.
        address: String,
        /// The word that is wrong.
        option: String,
        /// What would be right.
        allowed: &'static str,
    },
    /// The address of a unix socket's export without the socket.
    #[error(
        "'{0}': socket=PATH is missing, the absolute path of the server's socket: nbd+unix:///EXPORT?socket=PATH"
    )]
    NoSocket(String),
    /// The system refused.
    #[error("cannot {what} '{name}': {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The path.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody else writes to it.
    #[error(
        "'{0}' is in use: another process holds a lock on it (or it is mounted); one writer at a time"
    )]
    Busy(String),
    /// Neither a regular file nor a block device.
    #[error("'{0}' is neither a regular file nor a block device")]
    NotBlock(String),
    /// It can only be read, and is to be written.
    #[error("'{0}' is read-only: make it writable, or load the table read-only (--readonly)")]
    ReadOnly(String),
    /// A disk that is written zone by zone.
    #[error(
        "'{0}' is a zoned disk, whose zones must be written from front to back: what goes through a table of devices \
         cannot promise that"
    )]
    Zoned(String),
    /// It is open in the other mode, and cannot change.
    #[error("'{name}' is open {now} already, for another table, and stays so: {why}")]
    Mode {
        /// The path.
        name: String,
        /// How it is open.
        now: &'static str,
        /// Why it stays so.
        why: Unfit,
    },
    /// A custom leaf with limits that make no sense.
    #[error(
        "'{name}' has limits that make no sense: {limits:?}; it needs at least one sector, and blocks of 512 bytes or more, \
         the logical one a power of two of at most 64 KiB"
    )]
    Limits {
        /// Its name.
        name: String,
        /// Its limits.
        limits: Limits,
    },
    /// A file of no whole sector.
    #[error(
        "'{0}' is empty: it must hold at least one sector of 512 bytes (create --make-files makes files)"
    )]
    Empty(String),
}

impl LeafError {
    /// Whether it cannot be reached, rather than being wrong.
    pub fn is_unreachable(&self) -> bool {
        let LeafError::System { source, .. } = self else { return false };
        let kinds =
            [io::ErrorKind::TimedOut, io::ErrorKind::NotConnected, io::ErrorKind::UnexpectedEof];
        source.raw_os_error().is_some() || kinds.contains(&source.kind())
    }

    /// Whether it is there and cannot be written.
    pub fn is_read_only(&self) -> bool {
        match self {
            LeafError::ReadOnly(_) => true,
            LeafError::System { what: "open", source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EACCES | libc::EROFS))
            }
            _ => false,
        }
    }

    /// The errno a caller of the kernel would see.
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
            LeafError::Empty(_) | LeafError::Zoned(_) | LeafError::Limits { .. } => libc::EINVAL,
        }
    }
}
