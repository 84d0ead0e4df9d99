//! Types that all engines share: an operation on a leaf, its result, and the properties of the
//! leaf.

use std::io;

use blkswitch_core::multipath::outcome::is_path_error;

use crate::request::Span;
use crate::sys::pages::Pages;

/// Status flag of an extent that is not allocated (NBD's base:allocation).
pub const HOLE: u32 = 1;
/// Status flag of an extent that reads as zeroes (NBD's base:allocation).
pub const ZERO: u32 = 2;

/// Size, block size and abilities of a leaf, read when it is opened.
#[derive(Clone, Debug)]
pub struct Properties {
    /// Size in sectors of 512 bytes. A last partial sector is not counted.
    pub sectors: u64,
    /// Smallest I/O in bytes. Offsets and lengths must be multiples of it.
    pub logical_block: u32,
    /// Number of bytes that the medium writes at once.
    pub physical_block: u32,
    /// The leaf was opened for reading only, or its medium is read-only.
    pub read_only: bool,
    /// The medium rotates, so seeks are slow.
    pub rotational: bool,
    /// Major and minor number; `None` if the leaf is not a block device.
    pub device_numbers: Option<(u32, u32)>,
}

impl Properties {
    /// The properties of a leaf of `bytes` bytes in memory.
    pub fn memory(bytes: u64) -> Properties {
        Properties {
            sectors: bytes / 512,
            logical_block: 512,
            physical_block: 4096,
            read_only: false,
            rotational: false,
            device_numbers: None,
        }
    }
}

/// The kind of an operation on a leaf. `repr(u8)` keeps the tag in its own byte, as for
/// [`crate::request::Op`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LeafOp {
    /// Read the range into the data.
    Read,
    /// Write the data to the range.
    Write,
    /// Make completed writes durable.
    Flush,
    /// Discard the range. Its contents are undefined afterwards.
    Discard,
    /// Make the range read as zeroes, without a transfer of zeroes.
    Zero {
        /// Whether the range must stay allocated.
        no_hole: bool,
    },
}

/// One operation on a leaf. `data` follows the contract of [`Span`].
#[derive(Clone, Copy, Debug)]
pub struct LeafIo {
    /// The kind of the operation.
    pub op: LeafOp,
    /// Whether the write must be durable before it completes. Only for writes to an engine with
    /// [`Engine::has_fua`](super::Engine::has_fua).
    pub fua: bool,
    /// Whether to fail with `EOPNOTSUPP` rather than be as slow as a write. Only for zeroing.
    pub fast: bool,
    /// Start of the range on the leaf, in bytes.
    pub offset: u64,
    /// Length of the range in bytes.
    pub len: u64,
    /// The memory of a read or write.
    pub data: Span,
    /// The pages that hold the data, if the leaf must use them instead of `data`
    /// ([`Engine::takes_pages`](super::Engine::takes_pages)).
    pub pages: Option<Pages>,
    /// The id of the part; its completion carries it.
    pub part: u32,
    /// The number of the queue that submits.
    pub queue: usize,
}

/// Most bytes that an engine copies at once on the queue's thread. That takes a tenth of a
/// millisecond, or a few if the memory is new. Longer copies are done in steps, so that other
/// requests get their turn.
pub(crate) const COPY_STEP: u64 = 512 << 10;
/// Most bytes that an engine returns to the system at once.
pub(crate) const FREE_STEP: u64 = 8 << 20;

/// The result of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// The operation is done: a count of bytes or a negative errno. If a read or write returns
    /// fewer bytes than were asked for, but more than none, the caller submits the rest. So it does
    /// for a discard or zeroing, whose count may also be 0 for all of the range.
    Done(i64),
    /// The ring or a session will deliver the completion.
    Pending,
}

/// Converts the answer to a probe: an I/O error that fails no path counts as success, because the
/// path has answered. Use it only for answers. The same errno from an attempt to connect means that
/// the path is down.
pub(crate) fn answered(answer: io::Result<()>) -> io::Result<()> {
    match answer {
        Err(error) if error.raw_os_error().is_some_and(|errno| !is_path_error(errno)) => Ok(()),
        answer => answer,
    }
}
