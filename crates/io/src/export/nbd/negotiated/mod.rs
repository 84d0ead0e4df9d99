//! The result of the handshake, and the parser of request headers.
//!
//! Contract: [`Negotiated::parse`] is on the way of every request: no allocation, no panics, no
//! state. It accepts only requests that the session offers and that lie inside the announced size.
//! For others it returns the error to answer, with the payload to skip first, or a reason to drop
//! the connection.

use std::sync::Arc;

use super::contexts::{Contexts, MetaContext};
use super::proto::{
    EXTENDED_REQUEST_LEN, EXTENDED_REQUEST_MAGIC, NbdCommand, NbdError, REQUEST_LEN, REQUEST_MAGIC,
    Reader, command_flag, transmission_flag,
};
use super::{ExportInfo, MAX_REQUEST_BYTES, MAX_SKIPPED_PAYLOAD_BYTES};

/// Bytes of the effect length in the payload of a BLOCK_STATUS.
const STATUS_PAYLOAD_HEAD: u64 = 8;

/// Bytes of a context number in the payload of a BLOCK_STATUS.
const STATUS_PAYLOAD_ID: u64 = 4;

/// Longest correct payload of a BLOCK_STATUS in bytes, which names every context once.
pub const MAX_STATUS_PAYLOAD: usize =
    (STATUS_PAYLOAD_HEAD + STATUS_PAYLOAD_ID * MetaContext::ALL.len() as u64) as usize;

/// The result of the negotiation on a connection.
#[derive(Clone, Debug)]
pub struct Negotiated {
    /// The device as it was announced. Its size stays the announced one.
    pub export: ExportInfo,
    /// Whether replies are chunks. Also true with extended headers.
    pub structured: bool,
    /// Whether headers are extended, in both directions.
    pub extended: bool,
    /// The contexts that the client has selected for BLOCK_STATUS.
    pub contexts: Contexts,
    /// The name of the client's older connections that this one replaces ([`super::replaces`]).
    pub replaces: Option<Arc<str>>,
    /// The bits of an offset or length that must be zero.
    unaligned: u64,
    /// The flags that each command may have; `None` for commands that are not offered.
    allowed: [Option<u16>; NbdCommand::SLOTS],
}

/// The meaning of a request header.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A request to carry out.
    Request(WireRequest),
    /// A request to answer with an error after `payload` bytes were skipped.
    Refused {
        /// Identifies the request to the client.
        cookie: u64,
        /// Offset of the request; extended replies repeat it.
        offset: u64,
        /// The command; `None` if its number is unknown.
        command: Option<NbdCommand>,
        /// The error to answer.
        error: NbdError,
        /// Bytes that follow on the wire and must be skipped.
        payload: u64,
        /// The reason in words, for the client.
        reason: &'static str,
    },
    /// The client ends the session: finish the requests under way, then close. There is no answer.
    Disconnect,
    /// The stream cannot be parsed any further, so drop the connection.
    Broken(&'static str),
}

/// A request that may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireRequest {
    /// The command to carry out.
    pub command: NbdCommand,
    /// Identifies the request to the client.
    pub cookie: u64,
    /// Start of the range in bytes.
    pub offset: u64,
    /// Length in bytes. `offset + len` lies within the export and does not overflow. At most
    /// [`MAX_REQUEST_BYTES`] for READ and WRITE, and at most the size of the export for others.
    pub len: u64,
    /// Number of bytes that follow on the wire: the data of a WRITE, or the input of
    /// [`Negotiated::status_payload`].
    pub payload: u64,
    /// Whether to answer only when the data is durable. Set only for commands that write.
    pub fua: bool,
    /// Whether to answer a READ in one chunk.
    pub df: bool,
    /// Whether WRITE_ZEROES must keep the range allocated.
    pub no_hole: bool,
    /// Whether WRITE_ZEROES must fail with `NBD_ENOTSUP` rather than be as slow as a write.
    pub fast_zero: bool,
    /// Whether BLOCK_STATUS answers one extent per context.
    pub req_one: bool,
    /// Whether the length in the header was that of the payload.
    pub payload_len_flag: bool,
    /// The contexts for which a BLOCK_STATUS asks.
    pub contexts: Contexts,
}

impl WireRequest {
    /// Whether the request succeeds without any action. The protocol leaves requests of no bytes to
    /// the server, and here they do nothing. A FLUSH has no length but an action, and a
    /// BLOCK_STATUS with a payload has its length there.
    pub fn is_empty(&self) -> bool {
        self.len == 0 && self.payload == 0 && self.command != NbdCommand::Flush
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

impl Negotiated {
    /// The result for `export`. Contexts are dropped without chunks; extended headers include
    /// chunks.
    pub fn new(export: ExportInfo, structured: bool, extended: bool, contexts: Contexts) -> Self {
        let structured = structured || extended;
        let contexts = if structured { contexts } else { Contexts::NONE };
        let (minimum, _) = export.block_sizes();
        let mut negotiated = Negotiated {
            export,
            structured,
            extended,
            contexts,
            replaces: None,
            unaligned: u64::from(minimum) - 1,
            allowed: [None; NbdCommand::SLOTS],
        };
        negotiated.allowed = negotiated.allowed_flags();
        negotiated
    }

    /// The flags that each command may have. FUA is valid on every command, but has no effect on
    /// commands that do not write.
    fn allowed_flags(&self) -> [Option<u16>; NbdCommand::SLOTS] {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        let when = |offered: bool, flag: u16| if offered { flag } else { 0 };
        let export = &self.export;
        let mut allowed = [None; NbdCommand::SLOTS];
        let mut allow = |command: NbdCommand, offered: bool, flags: u16| {
            allowed[command as usize] = offered.then_some(FUA | flags);
        };
        allow(NbdCommand::Read, true, when(self.structured, DF));
        allow(NbdCommand::Write, true, when(self.extended, PAYLOAD_LEN));
        allow(NbdCommand::Flush, true, 0);
        allow(NbdCommand::Trim, export.can_discard, 0);
        allow(NbdCommand::Cache, export.can_cache, 0);
        allow(
            NbdCommand::WriteZeroes,
            export.can_zero,
            NO_HOLE | when(export.can_fast_zero, FAST_ZERO),
        );
        allow(
            NbdCommand::BlockStatus,
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

    /// Length of a request header in bytes: 28, or 32 with extended headers.
    pub fn header_len(&self) -> usize {
        if self.extended { EXTENDED_REQUEST_LEN } else { REQUEST_LEN }
    }

    /// Parses a header of exactly [`Negotiated::header_len`] bytes.
    pub fn parse(&self, header: &[u8]) -> Parsed {
        let Some((magic, wire)) = self.read(header) else {
            return Parsed::Broken("a request header of the wrong length");
        };
        if magic != if self.extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC } {
            return Parsed::Broken("a request does not begin with the magic number of its form");
        }
        if wire.kind == NbdCommand::DISCONNECT {
            return Parsed::Disconnect;
        }
        let command = NbdCommand::from_wire(wire.kind);
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

    /// Parses the payload of a BLOCK_STATUS with `payload_len_flag`: the length and the requested
    /// contexts. The resulting request has no payload, and a refusal has none to skip.
    pub fn status_payload(&self, request: &WireRequest, payload: &[u8]) -> Parsed {
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

    /// Number of bytes that follow the header, whether the request is accepted or not. `Err` if
    /// they are too many to read.
    fn payload(&self, command: Option<NbdCommand>, wire: &Wire) -> Result<u64, &'static str> {
        if self.extended {
            // The document requires PAYLOAD_LEN on every WRITE. QEMU 10 sends WRITE with FUA
            // without it, followed by the data, and QEMU's own server accepts that. Without this
            // exception, the data would be parsed as the next header.
            let has_payload =
                wire.flags & command_flag::PAYLOAD_LEN != 0 || command == Some(NbdCommand::Write);
            match has_payload {
                // The document requires to drop the connection at once if the announced maximum is
                // exceeded.
                true if wire.len > u64::from(MAX_REQUEST_BYTES) => {
                    Err("a payload above the announced maximum")
                }
                true => Ok(wire.len),
                false => Ok(0),
            }
        } else {
            match command {
                Some(NbdCommand::Write) if wire.len > u64::from(MAX_SKIPPED_PAYLOAD_BYTES) => {
                    Err("a WRITE of more than twice the announced maximum")
                }
                Some(NbdCommand::Write) => Ok(wire.len),
                _ => Ok(0),
            }
        }
    }

    fn check(
        &self,
        command: NbdCommand,
        wire: &Wire,
        payload: u64,
    ) -> Result<WireRequest, Refusal> {
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
        let request = WireRequest {
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
            contexts: if command == NbdCommand::BlockStatus {
                self.contexts
            } else {
                Contexts::NONE
            },
        };
        self.check_len(&request)?;
        if command == NbdCommand::BlockStatus && request.payload_len_flag {
            // The payload contains the length to check.
            return Ok(WireRequest { len: 0, ..request });
        }
        self.check_range(&request)?;
        Ok(request)
    }

    /// Checks rules about the length that only one command has.
    fn check_len(&self, request: &WireRequest) -> Result<(), Refusal> {
        let too_long = request.len > u64::from(MAX_REQUEST_BYTES);
        match request.command {
            // A structured reply could have several chunks, so the document has a separate error
            // for not doing that.
            NbdCommand::Read if too_long && self.structured => {
                Err((NbdError::Overflow, "a READ above the announced maximum"))
            }
            NbdCommand::Read if too_long => {
                Err((NbdError::Inval, "a READ above the announced maximum"))
            }
            NbdCommand::Write if too_long => {
                Err((NbdError::Inval, "a WRITE above the announced maximum"))
            }
            NbdCommand::Flush if request.offset != 0 || request.len != 0 => {
                Err((NbdError::Inval, "a FLUSH with offset or length"))
            }
            NbdCommand::BlockStatus if request.payload_len_flag => {
                self.check_status_payload_len(request.payload)
            }
            NbdCommand::BlockStatus if request.len == 0 => {
                Err((NbdError::Inval, "a BLOCK_STATUS of no bytes"))
            }
            _ => Ok(()),
        }
    }

    /// Checks the length of a payload, which must name at least one context. If it names more than
    /// there are, one is unknown or named twice.
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

    fn check_range(&self, request: &WireRequest) -> Result<(), Refusal> {
        let inside = request
            .offset
            .checked_add(request.len)
            .is_some_and(|end| end <= self.export.size_bytes);
        if !inside {
            let error = match request.command {
                NbdCommand::Write | NbdCommand::WriteZeroes => NbdError::NoSpc,
                _ => NbdError::Inval,
            };
            return Err((error, "beyond the end of the export"));
        }
        if (request.offset | request.len) & self.unaligned != 0 {
            return Err((NbdError::Inval, "not aligned to the minimum block size"));
        }
        Ok(())
    }

    fn chosen_contexts(
        &self,
        request: &WireRequest,
        payload: &[u8],
    ) -> Result<WireRequest, Refusal> {
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
        let chosen = WireRequest { len, payload: 0, contexts, ..*request };
        self.check_range(&chosen)?;
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests;
