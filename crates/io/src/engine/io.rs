//! The words that all engines share: one operation on a leaf, what became of it, and what is known of
//! the leaf.

use std::io;

use blkswitch_core::multipath::outcome::is_path_error;

use crate::request::Span;
use crate::sys::pages::Pages;

/// Status of an extent that is not allocated, and of one that reads as zeroes (NBD's
/// base:allocation).
pub const HOLE: u32 = 1;
/// See [`HOLE`].
pub const ZERO: u32 = 2;

/// Size, block size and abilities of a leaf, read when it is opened.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Size in 512-byte sectors (a last partial sector is not counted).
    pub sectors: u64,
    /// Smallest I/O in bytes: offsets and lengths must be multiples.
    pub logical_block: u32,
    /// What the medium writes at once, in bytes.
    pub physical_block: u32,
    /// Opened for reading only, or a read-only medium.
    pub read_only: bool,
    /// Seeks are slow.
    pub rotational: bool,
    /// Real device numbers of a block device.
    pub device_numbers: Option<(u32, u32)>,
}

impl Limits {
    /// Limits of something in memory.
    pub fn memory(bytes: u64) -> Limits {
        Limits {
            sectors: bytes / 512,
            logical_block: 512,
            physical_block: 4096,
            read_only: false,
            rotational: false,
            device_numbers: None,
        }
    }
}

/// What a part asks of a leaf. (A byte of its own: as [`crate::request::Op`].)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LeafOp {
    /// Read into the data.
    Read,
    /// Write the data.
    Write,
    /// Make completed writes stable.
    Flush,
    /// Drop the range.
    Discard,
    /// Zero the range without transferring zeroes; keep the space if `no_hole`.
    Zero {
        /// Keep the space allocated.
        no_hole: bool,
    },
}

/// One operation on a leaf. `data` follows the contract of [`Span`].
#[derive(Clone, Copy, Debug)]
pub struct LeafIo {
    /// What to do.
    pub op: LeafOp,
    /// Stable before completion; only with writes, and only if [`Engine::has_fua`](super::Engine::has_fua).
    pub fua: bool,
    /// Fail with EOPNOTSUPP rather than be as slow as a write; only with zeroing.
    pub fast: bool,
    /// Byte offset on the leaf.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The data of a read or write.
    pub data: Span,
    /// Where the data really is, if the leaf is to take it from there ([`Engine::takes_pages`](super::Engine::takes_pages)).
    pub pages: Option<Pages>,
    /// The part, for the completion.
    pub part: u32,
    /// The queue that submits.
    pub queue: usize,
}

/// Bytes that an engine copies at once, on the queue's thread: a tenth of a millisecond, or a few if
/// the memory is new. What is longer is done a stretch at a time, so that others have their turn.
pub(crate) const COPY_STEP: u64 = 512 << 10;
/// Bytes that an engine gives back to the system at once.
pub(crate) const FREE_STEP: u64 = 8 << 20;

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// Done: a count of bytes or a negative errno. A read or write of fewer bytes than were asked
    /// for, and more than none, is to be asked for the rest. So is a discard or zeroing; that may
    /// also say 0 for all of it.
    Done(i64),
    /// The ring will tell.
    Pending,
}

/// What a probe makes of an answer: an error that fails no path says that the path is there. Only
/// for answers: the same number from an attempt to connect says that it is not.
pub(crate) fn answered(answer: io::Result<()>) -> io::Result<()> {
    match answer {
        Err(error) if error.raw_os_error().is_some_and(|errno| !is_path_error(errno)) => Ok(()),
        answer => answer,
    }
}
