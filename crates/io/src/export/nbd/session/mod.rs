//! A session: the result of the handshake, and the parser of request headers.
//!
//! Contract: [`Session::parse`] is on the way of every request: no allocation, no panics, no state.
//! It accepts only requests that the session offers and that lie inside the announced size. For
//! others it returns the error to answer, with the payload to skip first, or a reason to drop the
//! connection.

use std::sync::Arc;

use super::contexts::{Contexts, MetaContext};
use super::proto::{
    Command, EXTENDED_REQUEST_LEN, EXTENDED_REQUEST_MAGIC, NbdError, REQUEST_LEN, REQUEST_MAGIC,
    Reader, command_flag, transmission_flag,
};
use super::{ExportInfo, MAX_REQUEST_BYTES, MAX_SKIPPED_PAYLOAD_BYTES};

/// Length of the effect length in the payload of a BLOCK_STATUS.
const STATUS_PAYLOAD_HEAD: u64 = 8;

/// Length of a context number in the payload of a BLOCK_STATUS.
const STATUS_PAYLOAD_ID: u64 = 4;

/// Longest correct payload of a BLOCK_STATUS, which names every context once.
pub const MAX_STATUS_PAYLOAD: usize =
    (STATUS_PAYLOAD_HEAD + STATUS_PAYLOAD_ID * MetaContext::ALL.len() as u64) as usize;

/// The result of the negotiation on a connection.
#[derive(Clone, Debug)]
pub struct Session {
    /// The device as it was announced. Its size stays the announced one.
    pub export: ExportInfo,
    /// Replies are chunks. Also true with extended headers.
    pub structured: bool,
    /// Headers are extended, in both directions.
    pub extended: bool,
    /// The contexts of BLOCK_STATUS.
    pub contexts: Contexts,
    /// The name of the client's connections that this one takes the place of
    /// ([`super::replaces`]).
    pub replaces: Option<Arc<str>>,
    /// Bits of an address that must be zero.
    unaligned: u64,
    /// Flags each command may have; `None` for commands that are not offered.
    allowed: [Option<u16>; Command::SLOTS],
}

/// The meaning of a request header.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A request to carry out.
    Request(Request),
    /// A request to answer with an error after `payload` bytes were skipped.
    Refused {
        /// Identifies the request to the client.
        cookie: u64,
        /// Offset of the request; extended replies repeat it.
        offset: u64,
        /// The command, if it is one.
        command: Option<Command>,
        /// The error to answer.
        error: NbdError,
        /// Bytes that follow on the wire and must be skipped.
        payload: u64,
        /// The same for people.
        reason: &'static str,
    },
    /// The client says goodbye: finish what is under way, then close. There is no answer.
    Disconnect,
    /// The stream cannot be followed any further: drop the connection.
    Broken(&'static str),
}

/// A request that may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Identifies the request to the client.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; `offset + len` lies inside the export and does not overflow. At most
    /// [`MAX_REQUEST_BYTES`] for READ and WRITE, as large as the export for others.
    pub len: u64,
    /// Bytes that follow on the wire: the data of a WRITE, or the input of
    /// [`Session::status_payload`].
    pub payload: u64,
    /// Answer when the data is on stable storage. Set for commands that write only.
    pub fua: bool,
    /// Answer a READ in one piece.
    pub df: bool,
    /// WRITE_ZEROES must allocate.
    pub no_hole: bool,
    /// WRITE_ZEROES fails with `NBD_ENOTSUP` rather than being as slow as a write.
    pub fast_zero: bool,
    /// BLOCK_STATUS answers one extent per context.
    pub req_one: bool,
    /// The length in the header was that of the payload.
    pub payload_len_flag: bool,
    /// Contexts that a BLOCK_STATUS asks for.
    pub contexts: Contexts,
}

impl Request {
    /// Whether it succeeds without doing anything. The protocol lets the server decide about
    /// requests of no bytes, and here they do nothing. (A FLUSH has no length but a meaning; a
    /// BLOCK_STATUS with a payload has its length there.)
    pub fn is_empty(&self) -> bool {
        self.len == 0 && self.payload == 0 && self.command != Command::Flush
    }
}

/// A request header on the wire.
#[derive(Clone, Copy)]
struct Wire {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u64,
}

/// An error and its reason.
type Refusal = (NbdError, &'static str);

impl Session {
    /// A session with `export`. Metadata contexts need chunks, extended headers bring them along.
    pub fn new(export: ExportInfo, structured: bool, extended: bool, contexts: Contexts) -> Self {
        let structured = structured || extended;
        let contexts = if structured { contexts } else { Contexts::NONE };
        let (minimum, _) = export.block_sizes();
        let mut session = Session {
            export,
            structured,
            extended,
            contexts,
            replaces: None,
            unaligned: u64::from(minimum) - 1,
            allowed: [None; Command::SLOTS],
        };
        session.allowed = session.allowed_flags();
        session
    }

    /// The flags each command may have. FUA is valid on every command; where nothing is written it
    /// has no effect.
    fn allowed_flags(&self) -> [Option<u16>; Command::SLOTS] {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        let when = |offered: bool, flag: u16| if offered { flag } else { 0 };
        let export = &self.export;
        let mut allowed = [None; Command::SLOTS];
        let mut allow = |command: Command, offered: bool, flags: u16| {
            allowed[command as usize] = offered.then_some(FUA | flags);
        };
        allow(Command::Read, true, when(self.structured, DF));
        allow(Command::Write, true, when(self.extended, PAYLOAD_LEN));
        allow(Command::Flush, true, 0);
        allow(Command::Trim, export.can_discard, 0);
        allow(Command::Cache, export.can_cache, 0);
        allow(
            Command::WriteZeroes,
            export.can_zero,
            NO_HOLE | when(export.can_fast_zero, FAST_ZERO),
        );
        allow(
            Command::BlockStatus,
            !self.contexts.is_empty(),
            REQ_ONE | when(self.extended, PAYLOAD_LEN),
        );
        allowed
    }

    /// The transmission flags that announce the export's features.
    pub fn transmission_flags(&self) -> u16 {
        use transmission_flag::*;
        let export = &self.export;
        let writable = !export.read_only;
        let offers = [
            (export.read_only, READ_ONLY),
            (export.rotational, ROTATIONAL),
            (writable && export.can_discard, SEND_TRIM),
            (writable && export.can_zero, SEND_WRITE_ZEROES),
            (writable && export.can_zero && export.can_fast_zero, SEND_FAST_ZERO),
            (self.structured, SEND_DF),
            (export.can_multi_conn, CAN_MULTI_CONN),
            (export.can_cache, SEND_CACHE),
            (self.extended && !self.contexts.is_empty(), BLOCK_STATUS_PAYLOAD),
        ];
        let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA;
        offers
            .into_iter()
            .filter(|(offered, _)| *offered)
            .fold(always, |flags, (_, flag)| flags | flag)
    }

    /// Bytes of a request header: 28, or 32 with extended headers.
    pub fn header_len(&self) -> usize {
        if self.extended { EXTENDED_REQUEST_LEN } else { REQUEST_LEN }
    }

    /// Parses a header of exactly [`Session::header_len`] bytes.
    pub fn parse(&self, header: &[u8]) -> Parsed {
        let Some((magic, wire)) = self.read(header) else {
            return Parsed::Broken("a request header of the wrong length");
        };
        if magic != if self.extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC } {
            return Parsed::Broken("a request does not begin with the magic number of its form");
        }
        if wire.kind == Command::DISCONNECT {
            return Parsed::Disconnect;
        }
        let command = Command::from_wire(wire.kind);
        let payload = match self.payload(command, &wire) {
            Ok(payload) => payload,
            Err(broken) => return Parsed::Broken(broken),
        };
        let checked = match command {
            Some(command) => self.check(command, &wire, payload),
            None => Err((NbdError::Inval, "unknown command")),
        };
        match checked {
            Ok(request) => Parsed::Request(request),
            Err((error, reason)) => Parsed::Refused {
                cookie: wire.cookie,
                offset: wire.offset,
                command,
                error,
                payload,
                reason,
            },
        }
    }

    /// Reads the payload of a BLOCK_STATUS with `payload_len_flag`: the length in question and the
    /// contexts wanted. The request it returns has no payload; a refusal has none to skip.
    pub fn status_payload(&self, request: &Request, payload: &[u8]) -> Parsed {
        match self.chosen_contexts(request, payload) {
            Ok(request) => Parsed::Request(request),
            Err((error, reason)) => Parsed::Refused {
                cookie: request.cookie,
                offset: request.offset,
                command: Some(request.command),
                error,
                payload: 0,
                reason,
            },
        }
    }

    #[inline]
    fn read(&self, header: &[u8]) -> Option<(u32, Wire)> {
        if header.len() != self.header_len() {
            return None;
        }
        let mut reader = Reader::new(header);
        let magic = reader.u32()?;
        let (flags, kind) = (reader.u16()?, reader.u16()?);
        let (cookie, offset) = (reader.u64()?, reader.u64()?);
        let len = if self.extended { reader.u64()? } else { u64::from(reader.u32()?) };
        Some((magic, Wire { flags, kind, cookie, offset, len }))
    }

    /// Bytes that follow the header, whatever the result of the request. `Err` if they are too many
    /// to read.
    fn payload(&self, command: Option<Command>, wire: &Wire) -> Result<u64, &'static str> {
        if self.extended {
            // The document demands PAYLOAD_LEN on every WRITE. QEMU 10 sends WRITE with FUA
            // without it, and the data follows all the same; QEMU's own server takes it too.
            // Read as a header without data, the data would be the next header.
            let has_payload =
                wire.flags & command_flag::PAYLOAD_LEN != 0 || command == Some(Command::Write);
            match has_payload {
                // The document wants the connection dropped at once when the announced maximum is
                // exceeded.
                true if wire.len > u64::from(MAX_REQUEST_BYTES) => {
                    Err("a payload above the announced maximum")
                }
                true => Ok(wire.len),
                false => Ok(0),
            }
        } else {
            match command {
                Some(Command::Write) if wire.len > u64::from(MAX_SKIPPED_PAYLOAD_BYTES) => {
                    Err("a WRITE of more than twice the announced maximum")
                }
                Some(Command::Write) => Ok(wire.len),
                _ => Ok(0),
            }
        }
    }

    fn check(&self, command: Command, wire: &Wire, payload: u64) -> Result<Request, Refusal> {
        if command.writes() && self.export.read_only {
            return Err((NbdError::Perm, "the export is read-only"));
        }
        let Some(allowed) = self.allowed[command as usize] else {
            return Err((NbdError::Inval, "the export did not offer this command"));
        };
        if wire.flags & !allowed != 0 {
            return Err((
                NbdError::Inval,
                "a flag that this command does not have on this connection",
            ));
        }
        let has = |flag: u16| wire.flags & flag != 0;
        let request = Request {
            command,
            cookie: wire.cookie,
            offset: wire.offset,
            len: wire.len,
            payload,
            fua: command.writes() && has(command_flag::FUA),
            df: has(command_flag::DF),
            no_hole: has(command_flag::NO_HOLE),
            fast_zero: has(command_flag::FAST_ZERO),
            req_one: has(command_flag::REQ_ONE),
            payload_len_flag: has(command_flag::PAYLOAD_LEN),
            contexts: if command == Command::BlockStatus { self.contexts } else { Contexts::NONE },
        };
        self.check_len(&request)?;
        if command == Command::BlockStatus && request.payload_len_flag {
            // The length to check is in the payload.
            return Ok(Request { len: 0, ..request });
        }
        self.check_range(&request)?;
        Ok(request)
    }

    /// Rules about the length that only one command has.
    fn check_len(&self, request: &Request) -> Result<(), Refusal> {
        let too_long = request.len > u64::from(MAX_REQUEST_BYTES);
        match request.command {
            // A structured reply could come in pieces, so the document has an own error for not
            // doing that.
            Command::Read if too_long && self.structured => {
                Err((NbdError::Overflow, "a READ above the announced maximum"))
            }
            Command::Read if too_long => {
                Err((NbdError::Inval, "a READ above the announced maximum"))
            }
            Command::Write if too_long => {
                Err((NbdError::Inval, "a WRITE above the announced maximum"))
            }
            Command::Flush if request.offset != 0 || request.len != 0 => {
                Err((NbdError::Inval, "a FLUSH with offset or length"))
            }
            Command::BlockStatus if request.payload_len_flag => {
                self.check_status_payload_len(request.payload)
            }
            Command::BlockStatus if request.len == 0 => {
                Err((NbdError::Inval, "a BLOCK_STATUS of no bytes"))
            }
            _ => Ok(()),
        }
    }

    /// The payload must name at least one context; one that names more than there are names one
    /// twice or one unknown.
    fn check_status_payload_len(&self, payload: u64) -> Result<(), Refusal> {
        match payload.checked_sub(STATUS_PAYLOAD_HEAD) {
            Some(ids)
                if ids > 0
                    && ids.is_multiple_of(STATUS_PAYLOAD_ID)
                    && ids / STATUS_PAYLOAD_ID <= self.contexts.len() as u64 =>
            {
                Ok(())
            }
            _ => Err((NbdError::Inval, "a BLOCK_STATUS payload of the wrong length")),
        }
    }

    fn check_range(&self, request: &Request) -> Result<(), Refusal> {
        let inside = request
            .offset
            .checked_add(request.len)
            .is_some_and(|end| end <= self.export.size_bytes);
        if !inside {
            let error = match request.command {
                Command::Write | Command::WriteZeroes => NbdError::NoSpc,
                _ => NbdError::Inval,
            };
            return Err((error, "beyond the end of the export"));
        }
        if (request.offset | request.len) & self.unaligned != 0 {
            return Err((NbdError::Inval, "not aligned to the minimum block size"));
        }
        Ok(())
    }

    fn chosen_contexts(&self, request: &Request, payload: &[u8]) -> Result<Request, Refusal> {
        const MALFORMED: Refusal = (NbdError::Inval, "a BLOCK_STATUS payload of the wrong length");
        self.check_status_payload_len(payload.len() as u64)?;
        let mut reader = Reader::new(payload);
        let len = reader.u64().ok_or(MALFORMED)?;
        let mut contexts = Contexts::NONE;
        while reader.len() > 0 {
            let id = reader.u32().ok_or(MALFORMED)?;
            match MetaContext::from_id(id) {
                Some(context) if self.contexts.contains(context) && contexts.insert(context) => {}
                _ => {
                    return Err((
                        NbdError::Inval,
                        "a metadata context that is unknown or named twice",
                    ));
                }
            }
        }
        if len == 0 {
            return Err((NbdError::Inval, "a BLOCK_STATUS of no bytes"));
        }
        let chosen = Request { len, payload: 0, contexts, ..*request };
        self.check_range(&chosen)?;
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests;
