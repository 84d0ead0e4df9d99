//! What goes out on a connection: replies in batches, each batch with one system call.
//!
//! Contract: while a send is with the kernel ([`Sending::active`]), header, vectors, replies and text stay where they
//! are and are not touched.

use std::collections::VecDeque;

use super::MAX_REPLY_HEADER;
use crate::buffer::{Buffer, Buffers};

/// Replies sent with one system call.
const BATCH: usize = 128;

/// A reply to be sent: a header, and the data behind it.
pub(super) struct Reply {
    pub(super) header: [u8; MAX_REPLY_HEADER],
    pub(super) header_len: usize,
    pub(super) body: Option<(Buffer, usize)>,
    /// Bytes that leave the account of lent bytes when it is sent.
    pub(super) lent: usize,
}

/// What the kernel is sending.
#[derive(Default)]
pub(super) struct Sending {
    pub(super) active: bool,
    /// Bytes of the handshake, or a batch of replies.
    text: Vec<u8>,
    batch: Vec<Reply>,
    iovecs: Vec<libc::iovec>,
    /// First of `iovecs` not wholly sent.
    at: usize,
    message: Option<Box<libc::msghdr>>,
}

impl Sending {
    /// Replies being sent.
    pub(super) fn replies(&self) -> usize {
        self.batch.len()
    }

    /// Nothing is left of what it held.
    pub(super) fn is_done(&self) -> bool {
        self.at >= self.iovecs.len()
    }

    /// Takes the next bytes to send: a text, or a batch of replies.
    pub(super) fn fill(&mut self, text: &mut Vec<u8>, replies: &mut VecDeque<Reply>) {
        self.at = 0;
        if !text.is_empty() {
            std::mem::swap(&mut self.text, text);
            self.iovecs.push(iovec(self.text.as_ptr(), self.text.len()));
            return;
        }
        let count = replies.len().min(BATCH);
        self.batch.extend(replies.drain(..count));
        // Only now, when the replies stay where they are, their addresses are taken.
        for reply in &self.batch {
            if reply.header_len > 0 {
                self.iovecs.push(iovec(reply.header.as_ptr(), reply.header_len));
            }
            if let Some((buffer, len)) = &reply.body {
                self.iovecs.push(iovec(buffer.as_ptr(), *len));
            }
        }
    }

    /// The header of the message to be sent, if there is anything.
    pub(super) fn message(&mut self) -> Option<*const libc::msghdr> {
        let left = self.iovecs.get_mut(self.at..).filter(|left| !left.is_empty())?;
        let (first, count) = (left.as_mut_ptr(), left.len());
        // SAFETY: msghdr is plain data; all zeroes means no address, no control data, no flags.
        let message = self.message.get_or_insert_with(|| Box::new(unsafe { std::mem::zeroed() }));
        message.msg_iov = first;
        message.msg_iovlen = count as _;
        Some(&raw const **message)
    }

    /// `bytes` more have been sent.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while let Some(iovec) = self.iovecs.get_mut(self.at) {
            if bytes < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.wrapping_byte_add(bytes);
                iovec.iov_len -= bytes;
                return;
            }
            bytes -= iovec.iov_len;
            self.at += 1;
        }
    }

    /// Lets go of what was sent (or never will be). Returns the bytes that are lent no more.
    pub(super) fn clear(&mut self, buffers: &mut Buffers) -> usize {
        let mut lent = 0;
        for reply in self.batch.drain(..) {
            lent += reply.lent;
            if let Some((buffer, _)) = reply.body {
                buffers.put(buffer);
            }
        }
        self.iovecs.clear();
        self.text.clear();
        self.at = 0;
        lent
    }
}

fn iovec(from: *const u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: from.cast_mut().cast(), iov_len: len }
}
