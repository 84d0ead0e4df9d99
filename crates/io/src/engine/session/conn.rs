//! The bytes of one connection: received and outgoing ones, and the owner of their memory.
//!
//! Contract: the kernel has at most one receive and one send at a time. Their memory (the input
//! buffer, the headers and the memory of the operations in the batch, the memory of a read) stays
//! in place until they complete. [`Conn::is_quiet`] says when the kernel has none.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::{opcode, types};

use crate::engine::session::sessions::{SessionOp, SessionRing};
use crate::sys::buffer::Buffer;
use crate::sys::gather::{Gather, is_closed, reset_on_close, shutdown};

/// Size of the input buffer in bytes: the replies of a deep queue of small reads.
const INPUT_BYTES: usize = 128 << 10;
/// Length in bytes from which the data of a read is received in place, and little of it together
/// with its header.
const LARGE_READ: u64 = 32 << 10;
/// Bytes received along with headers while large reads are answered.
const SHORT_INPUT: usize = 4 << 10;
/// Most requests that are sent with one system call.
pub(crate) const BATCH: usize = 128;

/// The destination of the receive under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Nothing,
    Input,
    Place,
}

/// One connection, with headers of at most `HEADER` bytes.
pub(crate) struct Conn<const HEADER: usize> {
    socket: OwnedFd,
    input: Buffer,
    start: usize,
    end: usize,
    input_cap: usize,
    receiving: Receiving,
    gather: Gather,
    headers: Vec<[u8; HEADER]>,
    /// The number of the batch that is being filled or sent.
    batch: u64,
    sending: bool,
    said_goodbye: bool,
}

/// The result of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes in the input, perhaps none.
    Input,
    /// This number of bytes at the place of [`Conn::receive_at`].
    Place(u64),
    /// The server has closed the connection, or it is lost: an errno.
    End(i32),
}

impl<const HEADER: usize> Conn<HEADER> {
    /// Uses a socket that is ready for requests. `None` if there is no memory to receive into.
    pub(crate) fn new(socket: OwnedFd) -> Option<Self> {
        let Ok(input) = Buffer::alone(INPUT_BYTES) else {
            tracing::warn!("a connection is dropped: there is no memory for what it receives");
            return None;
        };
        Some(Conn {
            socket,
            input,
            start: 0,
            end: 0,
            input_cap: INPUT_BYTES,
            receiving: Receiving::Nothing,
            gather: Gather::default(),
            headers: Vec::with_capacity(BATCH),
            batch: 0,
            sending: false,
            said_goodbye: false,
        })
    }

    /// Whether the server has closed an idle connection.
    pub(crate) fn is_stale(&self) -> bool {
        is_closed(self.socket.as_fd())
    }

    /// The received bytes that were not consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        self.input.bytes().get(self.start..self.end).unwrap_or_default()
    }

    /// Consumes this number of bytes.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
    }

    /// Chooses the size of receives for answers with this much data.
    pub(crate) fn expect(&mut self, data: u64) {
        self.input_cap = if data >= LARGE_READ { SHORT_INPUT } else { INPUT_BYTES };
    }

    /// Processes a completed receive.
    pub(crate) fn received(&mut self, result: i32) -> Received {
        let into = std::mem::replace(&mut self.receiving, Receiving::Nothing);
        match (result, into) {
            (1.., Receiving::Place) => Received::Place(result as u64),
            (1.., _) => {
                self.end += result as usize;
                Received::Input
            }
            (0, _) => Received::End(libc::ECONNRESET),
            (_, _) if result == -libc::EINTR || result == -libc::EAGAIN => Received::Input,
            _ => Received::End(-result),
        }
    }

    /// Processes a completed send. `Err` if the connection is lost.
    pub(crate) fn sent(&mut self, result: i32) -> Result<(), i32> {
        self.sending = false;
        if result < 0 && result != -libc::EINTR && result != -libc::EAGAIN {
            return Err(-result);
        }
        self.gather.advance(result.max(0) as usize);
        Ok(())
    }

    /// Whether the kernel may still read the memory of a request of this batch.
    pub(crate) fn may_send(&self, batch: u64) -> bool {
        batch == self.batch && (self.sending || !self.gather.is_done())
    }

    /// Whether a new batch can be filled.
    pub(crate) fn can_fill(&self) -> bool {
        !self.sending && self.gather.is_done()
    }

    /// Begins a batch and returns its number.
    pub(crate) fn begin_batch(&mut self) -> u64 {
        self.gather.clear();
        self.headers.clear();
        self.batch += 1;
        self.batch
    }

    /// Adds a request to the batch, at most [`BATCH`] times, with the memory of a write behind it.
    /// A header is at most as long as `HEADER`.
    ///
    /// # Safety
    /// `data` is valid for its length until [`Conn::may_send`] says no.
    pub(crate) unsafe fn add(&mut self, header: &[u8], data: Option<(*const u8, usize)>) {
        debug_assert!(self.headers.len() < BATCH, "headers may not move");
        let (mut place, len) = ([0; HEADER], header.len().min(HEADER));
        place.iter_mut().zip(header).for_each(|(to, from)| *to = *from);
        self.headers.push(place);
        if let Some(header) = self.headers.last() {
            self.gather.push(header.as_ptr(), len);
        }
        if let Some((from, len)) = data {
            self.gather.push(from, len);
        }
    }

    /// Adds bytes behind the request that was added last.
    pub(crate) fn pad(&mut self, bytes: &'static [u8]) {
        if !bytes.is_empty() {
            self.gather.push(bytes.as_ptr(), bytes.len());
        }
    }

    /// Number of requests that the batch can still take.
    pub(crate) fn room(&self) -> usize {
        BATCH - self.headers.len()
    }

    /// Sends the batch: as much as the socket takes at once, and the rest through the ring.
    pub(crate) fn send(&mut self, ring: &mut SessionRing<'_>) {
        if self.sending || self.gather.is_done() {
            return;
        }
        self.gather.send_now(self.socket.as_fd());
        if let Some(entry) =
            self.gather.entry(self.socket.as_fd()).filter(|_| !self.gather.is_done())
        {
            self.sending = true;
            // SAFETY: headers, list and the memory of the requests do not change until the
            // completion, because is_quiet() and may_send() wait for it.
            unsafe { ring.push(SessionOp::Send, entry) };
        }
    }

    /// Receives more into the input, unless a receive is under way.
    pub(crate) fn receive(&mut self, ring: &mut SessionRing<'_>) {
        if self.receiving != Receiving::Nothing {
            return;
        }
        self.compact();
        let place = self.input.as_ptr().wrapping_add(self.end);
        let len = (self.input.size() - self.end).min(self.input_cap);
        let entry =
            opcode::Recv::new(types::Fd(self.socket.as_raw_fd()), place, len as u32).build();
        self.receiving = Receiving::Input;
        // SAFETY: the input stays in place until the completion, because is_quiet() waits for it.
        unsafe { ring.push(SessionOp::Receive, entry) };
    }

    /// Receives `len` bytes of data at `place`, unless a receive is under way.
    ///
    /// # Safety
    /// `place` is valid for `len` bytes until the completion.
    pub(crate) unsafe fn receive_at(
        &mut self,
        place: *mut u8,
        len: u64,
        ring: &mut SessionRing<'_>,
    ) {
        if self.receiving != Receiving::Nothing {
            return;
        }
        let socket = types::Fd(self.socket.as_raw_fd());
        let entry = opcode::Recv::new(socket, place, len as u32).flags(libc::MSG_WAITALL).build();
        self.receiving = Receiving::Place;
        // SAFETY: the caller guarantees it.
        unsafe { ring.push(SessionOp::Receive, entry) };
    }

    /// Moves unread bytes to the front when the rest of the buffer gets short. They are less than a
    /// header, so there is always room.
    fn compact(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.input.size() - self.end < self.input.size() / 2 {
            let (start, end) = (self.start, self.end);
            self.input.bytes_mut().copy_within(start..end, 0);
            (self.start, self.end) = (0, end - start);
        }
    }

    /// Sends these bytes as the last ones of the connection, if the socket takes them.
    pub(crate) fn say_goodbye(&mut self, bytes: &[u8]) {
        if self.can_fill() {
            self.begin_batch();
            // SAFETY: there is no data.
            unsafe { self.add(bytes, None) };
            self.gather.send_now(self.socket.as_fd());
            self.gather.clear();
            self.said_goodbye = true;
        }
    }

    /// Ends the receive and send under way. Bytes that were not delivered are not delivered any
    /// more, except after [`Conn::say_goodbye`].
    pub(crate) fn shut_down(&self) {
        if !self.said_goodbye {
            reset_on_close(self.socket.as_fd());
        }
        shutdown(self.socket.as_fd(), libc::SHUT_RDWR);
    }

    /// Whether the kernel has nothing of it.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.sending && self.receiving == Receiving::Nothing
    }
}
