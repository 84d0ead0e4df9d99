//! What an export asks of a device, and what comes back.
//!
//! A [`Request`] is owned by one stage at a time and answered exactly once: by what
//! [`crate::pipeline::Pipeline::start`] returns, or later by a [`Done`] with its token. Offsets and
//! lengths are bytes, multiples of the 512-byte sector; the export checks them against the size it
//! announced, the pipeline against the live table (a table may have shrunk meanwhile).

use crate::sys::pages::Pages;

/// Kind of a request. Closed set: every stage matches all of it. (`repr(u8)` keeps the tag in its
/// own byte. Without it the compiler hides the tag in a niche of a field, and every match pays for
/// decoding it.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Fill the buffer from the device.
    Read,
    /// Write the buffer to the device.
    Write,
    /// Make every completed write stable, on every leaf that holds one.
    Flush,
    /// The range is not needed any more (a hint).
    Discard,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// Keep the space allocated (NBD's NO_HOLE).
        no_hole: bool,
        /// Fail with ENOTSUP rather than write the zeroes out (NBD's FAST_ZERO).
        fast: bool,
    },
}

impl Op {
    /// Whether the operation changes what the device holds.
    pub fn is_write(self) -> bool {
        matches!(self, Op::Write | Op::Discard | Op::WriteZeroes { .. })
    }

    /// Whether it moves bytes from or to the request's memory.
    pub fn has_data(self) -> bool {
        matches!(self, Op::Read | Op::Write)
    }
}

/// Names a request to the export that made it. The export chooses the value.
pub type Token = u64;

/// One request to one device.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Stable before it is answered (force unit access). Only with writes.
    pub fua: bool,
    /// Byte offset on the device.
    pub offset: u64,
    /// Length in bytes. 0 for a flush.
    pub len: u64,
    /// The data of a read or write, `len` bytes; null otherwise.
    pub data: Span,
    /// Where the data really is, if not there: `data` is then memory to copy it to and from.
    pub pages: Option<Pages>,
    /// Given back in [`Done`].
    pub token: Token,
}

/// A piece of memory that an export lends to the pipeline for the life of a request.
///
/// Contract: whoever puts a span in a [`Request`] keeps the memory valid, and neither moves nor
/// touches it, until the request is answered: its start has returned an answer, or its [`Done`] was
/// taken. The pipeline touches it only in between.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub *mut u8);

impl Span {
    /// No data.
    pub const NONE: Span = Span(std::ptr::null_mut());

    /// The span `bytes` further on.
    pub fn at(self, bytes: u64) -> Span {
        Span(self.0.wrapping_add(bytes as usize))
    }
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The request's token.
    pub token: Token,
    /// 0, or a positive errno: the worst of the request's parts.
    pub errno: i32,
}
