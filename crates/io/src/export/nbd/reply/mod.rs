//! Replies: the headers in front of data, and replies that consist of a header only.
//!
//! Contract: written into the caller's memory, without allocation or panics. A session uses one
//! form of reply for everything: simple replies; structured chunks, once those were negotiated
//! (required for READ and BLOCK_STATUS, and allowed for all, with room for an error text); extended
//! chunks after EXTENDED_HEADERS (required for all). Every chunk of success, except those of
//! BLOCK_STATUS, is the last of its reply: the header of a READ is written when all of its data is
//! there, so nothing can fail afterwards.

use super::MAX_EXTENTS;
use super::contexts::MetaContext;
use super::negotiated::{Negotiated, WireRequest};
use super::proto::{
    self, EXTENDED_REPLY_MAGIC, NbdError, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
};

/// Largest header in bytes that [`Negotiated::read_ok`], [`Negotiated::ok`] and
/// [`Negotiated::error`] write: two cache lines.
pub const MAX_REPLY_HEADER: usize = 128;

/// Longest text of an error in bytes: the rest of [`MAX_REPLY_HEADER`] in an extended chunk.
pub const MAX_ERROR_TEXT: usize = MAX_REPLY_HEADER - EXTENDED_CHUNK_LEN - ERROR_HEAD;

/// Largest chunk of a BLOCK_STATUS reply in bytes, and so the most memory that a [`StatusWriter`]
/// uses.
pub const MAX_STATUS_CHUNK: usize =
    EXTENDED_CHUNK_LEN + STATUS_EXT_HEAD + MAX_EXTENTS * EXTENT_EXT_LEN;

/// Lengths of the headers of an extended and of a structured chunk, in bytes.
const EXTENDED_CHUNK_LEN: usize = 32;
const STRUCTURED_CHUNK_LEN: usize = 20;
/// Bytes in front of the data of a READ: the offset.
const OFFSET_LEN: usize = 8;
/// Bytes in front of the text of an error: its number and length.
const ERROR_HEAD: usize = 6;
/// Bytes in front of the extents of a structured chunk (the context), and of an extended one
/// (context and count).
const STATUS_HEAD: usize = 4;
const STATUS_EXT_HEAD: usize = 8;
/// Bytes of an extent (length and status) in a structured and in an extended chunk.
const EXTENT_LEN: usize = 8;
const EXTENT_EXT_LEN: usize = 16;

impl Negotiated {
    /// Writes the header of a READ that succeeded as a whole. `len` bytes of data follow it.
    /// Returns the length of the header.
    ///
    /// A READ of no bytes is answered like a command without data, because a data chunk must not be
    /// empty.
    pub fn read_ok(
        &self,
        cookie: u64,
        offset: u64,
        len: u64,
        out: &mut [u8; MAX_REPLY_HEADER],
    ) -> usize {
        if !self.structured || len == 0 {
            return self.ok(cookie, offset, out);
        }
        let mut put = Put::new(out);
        self.chunk(
            &mut put,
            chunk::FLAG_DONE,
            chunk::OFFSET_DATA,
            cookie,
            offset,
            OFFSET_LEN as u64 + len,
        );
        put.u64(offset);
        put.at
    }

    /// Writes a success without data. Returns its length.
    pub fn ok(&self, cookie: u64, offset: u64, out: &mut [u8; MAX_REPLY_HEADER]) -> usize {
        let mut put = Put::new(out);
        match self.structured {
            true => self.chunk(&mut put, chunk::FLAG_DONE, chunk::NONE, cookie, offset, 0),
            false => simple(&mut put, 0, cookie),
        }
        put.at
    }

    /// Writes an error, the only or last chunk of its reply. `text` is for humans, may be empty,
    /// and is cut at [`MAX_ERROR_TEXT`]. Simple replies have no room for it. Returns the length.
    pub fn error(
        &self,
        cookie: u64,
        offset: u64,
        error: NbdError,
        text: &str,
        out: &mut [u8; MAX_REPLY_HEADER],
    ) -> usize {
        let mut put = Put::new(out);
        if !self.structured {
            simple(&mut put, error.code(), cookie);
            return put.at;
        }
        let text = proto::at_most(text, MAX_ERROR_TEXT);
        let len = ERROR_HEAD + text.len();
        self.chunk(&mut put, chunk::FLAG_DONE, chunk::ERROR, cookie, offset, len as u64);
        put.u32(error.code());
        put.u16(text.len() as u16);
        put.bytes(text.as_bytes());
        put.at
    }

    /// Begins the chunk that answers `context` of a BLOCK_STATUS. A reply has one chunk for each of
    /// `request.contexts`, in their order. The last one has the flag for that.
    ///
    /// The writer takes as many extents as fit into `out`, up to [`MAX_EXTENTS`].
    /// [`MAX_STATUS_CHUNK`] bytes are always enough.
    pub fn block_status<'a>(
        &self,
        request: &WireRequest,
        context: MetaContext,
        out: &'a mut [u8],
    ) -> StatusWriter<'a> {
        let flags = if request.contexts.last() == Some(context) { chunk::FLAG_DONE } else { 0 };
        let kind = if self.extended { chunk::BLOCK_STATUS_EXT } else { chunk::BLOCK_STATUS };
        let mut put = Put::new(out);
        // finish() writes the length and the count.
        self.chunk(&mut put, flags, kind, request.cookie, request.offset, 0);
        put.u32(context.id());
        if self.extended {
            put.u32(0);
        }
        let extent_len = if self.extended { EXTENT_EXT_LEN } else { EXTENT_LEN };
        let room = put.room() / extent_len;
        StatusWriter {
            put,
            extended: self.extended,
            limit: if request.req_one { room.min(1) } else { room.min(MAX_EXTENTS) },
            count: 0,
            left: request.len,
            pending: None,
        }
    }

    /// Writes the header of a chunk with `len` bytes of payload.
    fn chunk(&self, put: &mut Put<'_>, flags: u16, kind: u16, cookie: u64, offset: u64, len: u64) {
        put.u32(if self.extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC });
        put.u16(flags);
        put.u16(kind);
        put.u64(cookie);
        if self.extended {
            put.u64(offset);
            put.u64(len);
        } else {
            put.u32(len as u32);
        }
    }
}

fn simple(put: &mut Put<'_>, error: u32, cookie: u64) {
    put.u32(SIMPLE_REPLY_MAGIC);
    put.u32(error);
    put.u64(cookie);
}

/// Takes the extents of one context in order, and makes a chunk of them.
///
/// Neighbours of equal status become one extent, and nothing beyond the request is reported. The
/// caller decides where extents end; the document requires multiples of the minimum block size.
#[derive(Debug)]
pub struct StatusWriter<'a> {
    put: Put<'a>,
    extended: bool,
    /// Most extents of the chunk.
    limit: usize,
    /// Number of extents written, without the pending one.
    count: usize,
    /// Number of bytes of the request that no extent covers yet.
    left: u64,
    /// Length and status of the last extent, which may grow.
    pending: Option<(u64, u32)>,
}

impl StatusWriter<'_> {
    /// Adds an extent of `len` bytes with this status. Returns `false` when no further extent is
    /// needed, because the request is covered or the chunk is full. Later extents are ignored, so
    /// the answer never has a gap.
    pub fn extent(&mut self, len: u64, status: u32) -> bool {
        let len = len.min(self.left);
        if len == 0 {
            return self.left > 0;
        }
        match &mut self.pending {
            Some((pending, same)) if *same == status => *pending += len,
            _ => {
                self.write_pending();
                if self.count == self.limit {
                    self.left = 0;
                    return false;
                }
                self.pending = Some((len, status));
            }
        }
        self.left -= len;
        self.left > 0
    }

    /// Completes the chunk and returns its length. `None` if there was no extent; then the request
    /// must be answered with an error.
    pub fn finish(mut self) -> Option<usize> {
        self.write_pending();
        if self.count == 0 {
            return None;
        }
        let end = self.put.at;
        if self.extended {
            self.put.at = EXTENDED_CHUNK_LEN - size_of::<u64>();
            self.put.u64((end - EXTENDED_CHUNK_LEN) as u64);
            self.put.at = EXTENDED_CHUNK_LEN + STATUS_HEAD;
            self.put.u32(self.count as u32);
        } else {
            self.put.at = STRUCTURED_CHUNK_LEN - size_of::<u32>();
            self.put.u32((end - STRUCTURED_CHUNK_LEN) as u32);
        }
        Some(end)
    }

    fn write_pending(&mut self) {
        let Some((len, status)) = self.pending.take() else { return };
        if self.extended {
            self.put.u64(len);
            self.put.u64(u64::from(status));
        } else {
            // Compact requests, and so the covered part of them, are shorter than 2^32.
            self.put.u32(len as u32);
            self.put.u32(status);
        }
        self.count += 1;
    }
}

/// Writes big-endian numbers one after the other. Bytes that do not fit are not written. Callers
/// provide enough room, or ask for it.
#[derive(Debug)]
struct Put<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Put<'a> {
    fn new(out: &'a mut [u8]) -> Self {
        Put { out, at: 0 }
    }

    fn room(&self) -> usize {
        self.out.len().saturating_sub(self.at)
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        if let Some(place) = self.out.get_mut(self.at..end) {
            place.copy_from_slice(bytes);
        }
        self.at = end;
    }

    #[inline]
    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    #[inline]
    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    #[inline]
    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
