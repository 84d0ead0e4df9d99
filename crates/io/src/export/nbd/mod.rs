//! NBD export: the server side of the Network Block Device protocol, without sockets.
//!
//! Contract: a codec. Bytes of the client go in, bytes for the client come out; nothing here waits,
//! knows a socket, a ring, a thread or a clock, so every rule of the protocol can be tested as a
//! transcript. [`Handshake`] carries a connection from the greeting to [`Session`]; a `Session` is
//! what was negotiated, and from then on parses request headers and writes reply headers without
//! allocation and without panics. Hostile bytes end in an answer or in a reason to close, never in
//! memory beyond the limits below.
//!
//! ```text
//! accept -> Handshake::greeting -> out                          (handshake.rs, contexts.rs)
//!           Handshake::input(bytes, directory) -> out ... until Next::Transmission(session)
//!           Session::parse(header) -> Request | Refused | ...   (session.rs)
//!           Session::{read_ok, ok, error, block_status} -> out  (reply.rs)
//! ```
//!
//! Source of every fact: `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd> (branch
//! `master`), and of its branch `extension-ext-header` for extended headers; called "the document"
//! below. What the export does with each option, command and flag is told to users in
//! `docs/nbd.md`.

pub mod admission;
pub mod clients;
mod conn;
mod context;
pub mod contexts;
mod directory;
pub mod handshake;
pub(crate) mod inquiry;
mod peer;
pub mod reply;
pub(crate) mod server;
pub mod session;
#[cfg(test)]
mod testing;

pub use crate::device::names;
pub use crate::wire::nbd as proto;
pub use crate::wire::nbd::{Command, MAX_REQUEST_BYTES, MAX_STRING, NbdError};
pub use crate::wire::replaces;
pub(crate) use context::{Context, Order};
pub use contexts::{Contexts, MetaContext};
pub use handshake::{CloseReason, Handshake, Next, Progress};
pub use peer::Peer;
pub use reply::{MAX_REPLY_HEADER, StatusWriter};
pub use session::{Parsed, Request, Session};

/// Largest payload of a compact WRITE that is read and thrown away to answer with an error. Twice
/// the maximum covers clients that never asked for the limits and are a little too greedy; what is
/// longer ends the connection.
pub const MAX_SKIPPED_PAYLOAD_BYTES: u32 = 2 * MAX_REQUEST_BYTES;

/// Longest text that goes with an error during the handshake, in bytes: what the document
/// recommends for strings.
pub const MAX_REFUSAL_TEXT: usize = 256;

/// Most option data that is looked at as a whole, so the most a connection has to buffer: a name
/// and fifteen queries of full length, or a name and thirty thousand information requests. Longer
/// options are skipped as they stream.
pub const MAX_OPTION_BYTES: usize = 64 << 10;

/// Longest option that is skipped politely. More than the largest request is not negotiation but an
/// attack.
pub const MAX_SKIPPED_OPTION_BYTES: u32 = MAX_REQUEST_BYTES;

/// Most options on one connection. A client that wants to look at a few hundred devices with INFO
/// and LIST_META_CONTEXT before it chooses one is served; one that never chooses is closed.
pub const MAX_OPTIONS_PER_CONNECTION: u32 = 1024;

/// Most bytes one LIST answers with (about ten thousand devices); it ends with
/// `NBD_REP_ERR_TOO_BIG` beyond.
pub const MAX_LIST_BYTES: usize = 1 << 20;

/// Most bytes all answers of one handshake may have together: what a client that sends without
/// reading can make the server hold.
pub const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Most queries in one LIST_META_CONTEXT or SET_META_CONTEXT; there are two contexts to ask for.
pub const MAX_CONTEXT_QUERIES: u32 = 64;

/// Most extents in one chunk of a BLOCK_STATUS reply. The document allows 2^20; a client asks on
/// where the answer ends, and at this number the reply still fits a buffer of 64 KiB and a little.
pub const MAX_EXTENTS: usize = 4096;

/// Largest "minimum block size" the document allows.
const MAX_MIN_BLOCK: u32 = 64 << 10;

/// Smallest "preferred block size" the document allows.
const MIN_PREFERRED_BLOCK: u32 = 512;

/// What the handshake asks of the outside: the devices there are. Implemented by the daemon.
///
/// Names and descriptions are at most [`MAX_STRING`] bytes and have no NUL in them.
pub trait Directory {
    /// Calls `each` with name and description of every device.
    fn list(&self, each: &mut dyn FnMut(&str, &str));

    /// The device of that name; `""` means the only device, if there is exactly one.
    fn find(&self, name: &str) -> Option<ExportInfo>;

    /// A random number of this server. A server that is started again has another one: it knows
    /// nothing of requests that its predecessor had under way.
    fn instance(&self) -> u64;
}

/// What a client is told about a device when it connects; it stays so for the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportInfo {
    /// What the directory calls the device; not interpreted here.
    pub id: u32,
    /// Canonical export name.
    pub name: String,
    /// A sentence for humans, or empty.
    pub description: String,
    /// Size in bytes; a multiple of `min_block`, or its tail cannot be reached.
    pub size_bytes: u64,
    /// Writes of every kind are refused with `NBD_EPERM`.
    pub read_only: bool,
    /// Announces `NBD_FLAG_ROTATIONAL`.
    pub rotational: bool,
    /// Smallest unit and alignment of requests, a power of two from 1 to 65536; other values are
    /// rounded to one.
    pub min_block: u32,
    /// Unit of efficient requests, a power of two of at least 512 and `min_block`; other values are
    /// rounded to one.
    pub preferred_block: u32,
    /// Offers TRIM.
    pub can_discard: bool,
    /// Offers WRITE_ZEROES.
    pub can_zero: bool,
    /// Offers WRITE_ZEROES with FAST_ZERO (which may still fail with `NBD_ENOTSUP`, quickly).
    pub can_fast_zero: bool,
    /// Offers CACHE.
    pub can_cache: bool,
    /// A flush on one connection covers the completed writes of all connections to the device.
    pub can_multi_conn: bool,
}

impl ExportInfo {
    /// Minimum and preferred block size as announced and enforced: `min_block` and
    /// `preferred_block`, brought into the range and to the powers of two that the document
    /// demands.
    pub fn block_sizes(&self) -> (u32, u32) {
        let minimum = self.min_block.clamp(1, MAX_MIN_BLOCK).next_power_of_two();
        let smallest = minimum.max(MIN_PREFERRED_BLOCK);
        let preferred = self.preferred_block.clamp(smallest, MAX_REQUEST_BYTES).next_power_of_two();
        (minimum, preferred)
    }
}
