//! A request of an export to a device, and its answer.
//!
//! One stage at a time owns a [`Request`], which is answered exactly once: by the result of
//! [`crate::pipeline::Pipeline::start`], or later by a [`Done`] with its token. Offsets and lengths
//! are in bytes and multiples of the 512-byte sector. The export checks them against the size that
//! it announced, and the pipeline checks them against the live table, which may be shorter by then.

use std::io;

use crate::sys::aligned::AlignedBytes;
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

/// The bit of tokens from clients of this process. Tokens of ublk may have it as well, those of NBD
/// do not.
pub(crate) const CLIENT_TOKEN: Token = 1 << 62;

/// Whether a client of this process made the token.
pub(crate) fn is_client(token: Token) -> bool {
    token & (UBLK_TOKEN | CLIENT_TOKEN) == CLIENT_TOKEN
}

/// The highest bit of tokens from the vhost-user export.
pub const VHOST_USER_TOKEN: Token = 1 << 61;

/// Whether a token is from the vhost-user export.
#[inline]
pub(crate) fn is_vhost_user(token: Token) -> bool {
    token & (UBLK_TOKEN | CLIENT_TOKEN | VHOST_USER_TOKEN) == VHOST_USER_TOKEN
}

/// The owner of a request, as far as its token tells: the connection or hardware queue.
pub(crate) fn owner_of(token: Token) -> u64 {
    // The request's part of a token has 16 bits for a hardware queue or ring, and 32 for a
    // connection.
    let shift = if token & UBLK_TOKEN == 0 && !is_vhost_user(token) { 32 } else { 16 };
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

/// A request of the embedding program to a device of a [`Driver`](crate::driver::Driver), or to
/// that of a [`Client`](crate::client::Client).
#[derive(Debug)]
pub struct Ask {
    /// The operation.
    pub op: Op,
    /// Whether the write must be durable before its answer (force unit access). Only for writes.
    pub fua: bool,
    /// Start of the range on the device in bytes, a multiple of the device's logical block.
    pub offset: u64,
    /// Length of the range in bytes, a multiple of the device's logical block. 0 for a flush.
    pub len: u64,
    /// The data to write, or memory for the data to read, at least `len` bytes. Empty for other
    /// operations (`Default::default()`).
    pub data: AlignedBytes,
    /// A number of the caller's choice, which comes back with the answer.
    pub token: u64,
}

impl Ask {
    /// A read into all of `memory`, from `offset` on.
    #[must_use]
    pub fn read(offset: u64, memory: AlignedBytes, token: u64) -> Ask {
        Ask { op: Op::Read, fua: false, offset, len: memory.len() as u64, data: memory, token }
    }

    /// A write of all of `data` at `offset`.
    #[must_use]
    pub fn write(offset: u64, data: AlignedBytes, token: u64) -> Ask {
        Ask { op: Op::Write, fua: false, offset, len: data.len() as u64, data, token }
    }

    /// A flush: all writes that are answered by now become durable.
    #[must_use]
    pub fn flush(token: u64) -> Ask {
        let data = AlignedBytes::default();
        Ask { op: Op::Flush, fua: false, offset: 0, len: 0, data, token }
    }

    /// Whether it is in whole blocks, has enough memory, and asks for nothing that does not exist:
    /// else `EINVAL`.
    pub(crate) fn check(&self, logical_block: u64) -> Result<(), i32> {
        let block = logical_block.max(512);
        let is_whole = self.offset.is_multiple_of(block) && self.len.is_multiple_of(block);
        let is_enough = !self.op.has_data() || self.data.len() as u64 >= self.len;
        let is_sane = self.op != Op::Flush || (self.offset, self.len) == (0, 0);
        let is_write = self.op.is_write() || !self.fua;
        if is_whole && is_enough && is_sane && is_write { Ok(()) } else { Err(libc::EINVAL) }
    }
}

/// The answer to an [`Ask`].
#[derive(Debug)]
pub struct Answer {
    /// The token of the request.
    pub token: u64,
    /// Whether the request succeeded. An error has an errno ([`io::Error::raw_os_error`]). A write
    /// that failed may have been carried out, or a part of it.
    pub result: io::Result<()>,
    /// The memory of the request, after a read with the bytes.
    pub data: AlignedBytes,
}

impl Answer {
    /// An answer of the pipeline: 0, or a positive errno.
    pub(crate) fn new(token: u64, errno: i32, data: AlignedBytes) -> Answer {
        let error = || Err(io::Error::from_raw_os_error(errno));
        Answer { token, result: if errno == 0 { Ok(()) } else { error() }, data }
    }
}
