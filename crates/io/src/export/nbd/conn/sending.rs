//! The output of a connection: replies in batches, each batch with one system call.
//!
//! Contract: while the kernel has a send ([`Sending::active`]), headers, list, replies and text
//! stay in place and are not touched.

use std::collections::VecDeque;

use super::MAX_REPLY_HEADER;
use crate::sys::buffer::{Buffer, Buffers};
use crate::sys::gather::Gather;

/// Most replies that are sent with one system call.
///
const BATCH: usize = 128;

/// A reply: a header and the data behind it.
pub(super) struct Reply {
    pub(super) header: [u8; MAX_REPLY_HEADER],
    pub(super) header_len: usize,
    pub(super) body: Option<(Buffer, usize)>,
    /// Number of lent bytes that are returned after it is sent.
    pub(super) lent: usize,
}

/// The bytes that the kernel is sending.
#[derive(Default)]
pub(super) struct Sending {
    pub(super) active: bool,
    /// Bytes of the handshake, or a batch of replies.
    text: Vec<u8>,
    batch: Vec<Reply>,
    pub(super) gather: Gather,
}

impl Sending {
    /// Number of replies being sent.
    pub(super) fn replies(&self) -> usize {
        self.batch.len()
    }

    /// Whether all bytes were sent.
    pub(super) fn is_done(&self) -> bool {
        self.gather.is_done()
    }

    /// Takes the next bytes to send: a text, or a batch of replies.
    pub(super) fn fill(&mut self, text: &mut Vec<u8>, replies: &mut VecDeque<Reply>) {
        self.gather.clear();
        if !text.is_empty() {
            std::mem::swap(&mut self.text, text);
            self.gather.push(self.text.as_ptr(), self.text.len());
            return;
        }
        let count = replies.len().min(BATCH);
        self.batch.extend(replies.drain(..count));
        // Take the addresses of the replies only now, when they stay in place.
        for reply in &self.batch {
            if reply.header_len > 0 {
                self.gather.push(reply.header.as_ptr(), reply.header_len);
            }
            if let Some((buffer, len)) = &reply.body {
                self.gather.push(buffer.as_ptr(), *len);
            }
        }
    }

    /// Drops replies that were sent or will never be sent. Returns the number of bytes that are no
    /// longer lent.
    pub(super) fn clear(&mut self, buffers: &mut Buffers) -> usize {
        let mut lent = 0;
        for reply in self.batch.drain(..) {
            lent += reply.lent;
            if let Some((buffer, _)) = reply.body {
                buffers.put(buffer);
            }
        }
        self.gather.clear();
        self.text.clear();
        lent
    }
}
