//! Allocation queries to an NBD server: `NBD_CMD_BLOCK_STATUS` with `base:allocation`, on a
//! connection of its own.
//!
//! The leaf's helper thread makes the connection for the first query. So neither the leaf's data
//! nor its probes wait for an answer. Answers are not cached, because another host may write to a
//! hole at any time.
//!
//! Contract: calls block, at most until the deadline. Answers are checked and bounded. If the
//! allocation cannot be found out, the range counts as data, which is always correct.

use std::io;
use std::time::{Duration, Instant};

use super::address::NbdAddress;
use super::handshake::{Offer, shake_hands_for_status};
use super::wire;
use crate::engine::session::socket::Socket;
use crate::wire::nbd::{
    NbdCommand, REQUEST_LEN, Reader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, allocation, chunk,
    command_flag,
};

/// Longest wait for an answer. A copy that waits longer would be faster without the query.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause before the next query to a server that could not answer.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest range of a query in bytes.
const MAX_RANGE: u64 = 1 << 30;
/// Longest chunk that is read, in bytes. The query asks for one extent, but a server may send more.
const MAX_CHUNK: u32 = 4 + 8 * 512;
/// Most chunks of one answer.
const MAX_CHUNKS: usize = 16;
/// Bytes of a simple reply, and of the header of a chunk, after their magic numbers.
const SIMPLE_REST: usize = 12;
const CHUNK_REST: usize = 16;

/// The connection for allocation queries of one leaf.
pub(super) struct Status {
    address: NbdAddress,
    offer: Offer,
    session: Option<Inquiry>,
    not_before: Option<Instant>,
}

struct Inquiry {
    socket: Socket,
    /// The number that the server has given to `base:allocation`.
    context: u32,
    cookie: u64,
}

impl Status {
    pub(super) fn new(address: NbdAddress, offer: Offer) -> Status {
        Status { address, offer, session: None, not_before: None }
    }

    /// Returns the number of bytes from `offset` on, 1 to `len`, in one state, and their flags.
    /// `None` if the server cannot say.
    pub(super) fn ask(&mut self, offset: u64, len: u64) -> Option<(u64, u32)> {
        let now = Instant::now();
        if self.not_before.is_some_and(|time| now < time) {
            return None;
        }
        let block = u64::from(self.offer.min_block);
        let len = len.min(MAX_RANGE) / block * block;
        if len == 0 || !offset.is_multiple_of(block) {
            return None;
        }
        let had_session = self.session.is_some();
        let mut answer = self.try_to_ask(offset, len, now + PATIENCE);
        if answer.is_err() && had_session {
            // The connection may have been lost since the last question.
            self.session = None;
            answer = self.try_to_ask(offset, len, now + PATIENCE);
        }
        match answer {
            Ok(Some(found)) => Some(found),
            Ok(None) => {
                self.not_before = Some(now + PAUSE);
                None
            }
            Err(error) => {
                tracing::debug!(leaf = %self.address, %error, "the allocation is not known");
                self.session = None;
                self.not_before = Some(now + PAUSE);
                None
            }
        }
    }

    fn try_to_ask(
        &mut self,
        offset: u64,
        len: u64,
        deadline: Instant,
    ) -> io::Result<Option<(u64, u32)>> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => match self.connect(deadline)? {
                Some(session) => session,
                None => return Ok(None),
            },
        };
        session.socket.set_deadline(deadline);
        let answer = session.ask(offset, len)?;
        self.session = Some(session);
        Ok(answer)
    }

    fn connect(&self, deadline: Instant) -> io::Result<Option<Inquiry>> {
        let mut socket =
            Socket::connect(&self.address.place, self.address.patience.timeout, deadline)?;
        let Some((now, context)) = shake_hands_for_status(&mut socket, &self.address.export)?
        else {
            return Ok(None);
        };
        match self.offer.changed(&now) {
            None => Ok(Some(Inquiry { socket, context, cookie: 0 })),
            Some(why) => Err(io::Error::new(io::ErrorKind::InvalidData, why)),
        }
    }
}

impl Inquiry {
    /// Sends a query and reads its answer. `None` if the server answers with an error.
    fn ask(&mut self, offset: u64, len: u64) -> io::Result<Option<(u64, u32)>> {
        self.cookie += 1;
        let flags = command_flag::REQ_ONE;
        let request: [u8; REQUEST_LEN] =
            wire::request(flags, NbdCommand::BlockStatus as u16, self.cookie, offset, len as u32);
        self.socket.write_all(&request)?;
        let mut found = None;
        for _ in 0..MAX_CHUNKS {
            let (kind, last, payload) = self.chunk()?;
            match kind {
                chunk::BLOCK_STATUS => {
                    found = found.or(self.extent(&payload, len)?);
                }
                kind if kind & chunk::ERROR_BIT != 0 => found = None,
                chunk::NONE => {}
                _ => return Err(broken("a chunk that answers no question about extents")),
            }
            if last {
                return Ok(found);
            }
        }
        Err(broken("an answer of too many chunks"))
    }

    /// Reads the next chunk: its type, whether it is the last, and its payload. A simple reply is
    /// an error here and becomes an error chunk.
    fn chunk(&mut self) -> io::Result<(u16, bool, Vec<u8>)> {
        let magic = u32::from_be_bytes(self.socket.array::<4>()?);
        if magic == SIMPLE_REPLY_MAGIC {
            let rest = self.socket.array::<SIMPLE_REST>()?;
            let mut reader = Reader::new(&rest);
            return match (reader.u32(), reader.u64()) {
                (Some(code), Some(cookie)) if code != 0 && cookie == self.cookie => {
                    Ok((chunk::ERROR, true, Vec::new()))
                }
                _ => Err(broken("a simple reply that is no error")),
            };
        }
        if magic != STRUCTURED_REPLY_MAGIC {
            return Err(broken("a reply does not begin with a magic number of its own"));
        }
        let rest = self.socket.array::<CHUNK_REST>()?;
        let mut reader = Reader::new(&rest);
        let (Some(flags), Some(kind), Some(cookie), Some(len)) =
            (reader.u16(), reader.u16(), reader.u64(), reader.u32())
        else {
            return Err(broken("half of a chunk"));
        };
        if cookie != self.cookie || len > MAX_CHUNK {
            return Err(broken("a chunk of another request, or too long"));
        }
        let mut payload = vec![0; len as usize];
        self.socket.read_exact(&mut payload)?;
        Ok((kind, flags & chunk::FLAG_DONE != 0, payload))
    }

    /// The first extent of a chunk. `None` if the chunk is of another context.
    fn extent(&self, payload: &[u8], len: u64) -> io::Result<Option<(u64, u32)>> {
        let mut reader = Reader::new(payload);
        match (reader.u32(), reader.u32(), reader.u32()) {
            (Some(context), ..) if context != self.context => Ok(None),
            (Some(_), Some(extent), Some(flags)) if extent > 0 => {
                // The last extent may extend beyond the range.
                let flags = flags & (allocation::HOLE | allocation::ZERO);
                Ok(Some((u64::from(extent).min(len), flags)))
            }
            _ => Err(broken("an extent of no bytes, or none")),
        }
    }
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
