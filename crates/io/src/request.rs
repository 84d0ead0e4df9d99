//! What an export asks of a device, and what comes back.
//!
//! A [`Request`] is owned by one stage at a time and answered exactly once: by what
//! [`crate::pipeline::Pipeline::start`] returns, or later by a [`Done`] with its token. Offsets and
//! lengths are bytes, multiples of the 512-byte sector; the export checks them against the size it
//! announced, the pipeline against the live table (a table may have shrunk meanwhile).

use crate::sys::pages::Pages;
pub use crate::sys::span::Span;

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

/// The mark of a token that the ublk export made.
pub const UBLK_TOKEN: Token = 1 << 63;

/// Who made a request: the connection or hardware queue, as far as its token tells.
pub(crate) fn owner_of(token: Token) -> u64 {
    // The tag of a request of a hardware queue has 16 bits, the number of one of a connection 32.
    let shift = if token & UBLK_TOKEN == 0 { 32 } else { 16 };
    token >> shift << shift
}

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

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The request's token.
    pub token: Token,
    /// 0, or a positive errno: the worst of the request's parts.
    pub errno: i32,
}
