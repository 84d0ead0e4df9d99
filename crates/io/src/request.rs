//! A request of an export to a device, and its answer.
//!
//! One stage at a time owns a [`Request`], which is answered exactly once: by the result of
//! [`crate::pipeline::Pipeline::start`], or later by a [`Done`] with its token. Offsets and lengths
//! are in bytes and multiples of the 512-byte sector. The export checks them against the size that
//! it announced, and the pipeline checks them against the live table, which may be shorter by then.

use crate::sys::pages::Pages;
pub use crate::sys::span::Span;

/// The kind of a request. Every stage matches all kinds. `repr(u8)` keeps the tag in its own byte.
/// Without it the compiler hides the tag in a niche of a field, and every match pays for decoding
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Fill the buffer from the device.
    Read,
    /// Write the buffer to the device.
    Write,
    /// Make every completed write durable, on every leaf with unflushed writes.
    Flush,
    /// The range is not needed any more. This is a hint.
    Discard,
    /// Make the range read as zeroes.
    WriteZeroes {
        /// Whether the range must stay allocated (NBD's NO_HOLE).
        no_hole: bool,
        /// Whether to fail with ENOTSUP rather than write zeroes (NBD's FAST_ZERO).
        fast: bool,
    },
}

impl Op {
    /// Whether the operation changes the contents of the device.
    ///
    pub fn is_write(self) -> bool {
        matches!(self, Op::Write | Op::Discard | Op::WriteZeroes { .. })
    }

    /// Whether the operation moves bytes from or to the request's memory.
    pub fn has_data(self) -> bool {
        matches!(self, Op::Read | Op::Write)
    }
}

/// Identifies a request to its export, which chooses the value.
pub type Token = u64;

/// The bit of tokens from the ublk export.
pub const UBLK_TOKEN: Token = 1 << 63;

/// The owner of a request, as far as its token tells: the connection or hardware queue.
pub(crate) fn owner_of(token: Token) -> u64 {
    // The request's part of a token has 16 bits for a hardware queue, and 32 for a connection.
    let shift = if token & UBLK_TOKEN == 0 { 32 } else { 16 };
    token >> shift << shift
}

/// One request to one device.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The kind of the request.
    pub op: Op,
    /// Whether the write must be durable before its answer (force unit access). Only for writes.
    pub fua: bool,
    /// Start of the range on the device, in bytes.
    pub offset: u64,
    /// Length of the range in bytes. 0 for a flush.
    pub len: u64,
    /// The data of a read or write, `len` bytes. Null for other requests.
    pub data: Span,
    /// The pages that hold the data, if it is in pages. Then `data` is memory to copy it to and
    /// from.
    pub pages: Option<Pages>,
    /// The token, which [`Done`] returns.
    pub token: Token,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The token of the request.
    pub token: Token,
    /// 0, or a positive errno: the worst of the request's parts.
    pub errno: i32,
}
