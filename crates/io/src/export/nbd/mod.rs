//! NBD export: the server side of the Network Block Device protocol, without sockets.
//!
//! Contract: a codec, which turns bytes of the client into bytes for the client. It never waits,
//! and knows no socket, ring, thread or clock, so every rule of the protocol can be tested as a
//! transcript. [`Handshake`] carries a connection from the greeting to a [`Negotiated`], the result
//! of the negotiation. The `Negotiated` parses request headers and writes reply headers without
//! allocation or panics. Hostile bytes lead to an answer or to a reason to close, and never take
//! memory beyond the limits below.
//!
//! ```text
//! accept -> Handshake::greeting -> out                          (handshake.rs, contexts.rs)
//!           Handshake::input(bytes, directory) -> out ... until Next::Transmission(session)
//!           Negotiated::parse(header) -> WireRequest | Refused | ...   (negotiated.rs)
//!           Negotiated::{read_ok, ok, error, block_status} -> out  (reply.rs)
//! ```
//!
//! Source of all facts: `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd> (branch
//! `master`), and of its branch `extension-ext-header` for extended headers. It is called "the
//! document" below. `docs/nbd.md` tells users what the export does with each option, command and
//! flag.

pub mod admission;
pub mod clients;
mod conn;
mod context;
pub mod contexts;
mod directory;
pub mod handshake;
pub(crate) mod inquiry;
pub mod negotiated;
mod peer;
pub mod reply;
pub(crate) mod server;
#[cfg(test)]
mod testing;

pub use crate::device::names;
pub use crate::wire::nbd as proto;
pub use crate::wire::nbd::{MAX_REQUEST_BYTES, MAX_STRING, NbdCommand, NbdError};
pub use crate::wire::replaces;
pub(crate) use context::{Context, Order};
pub use contexts::{Contexts, MetaContext};
pub use handshake::{CloseReason, Handshake, Next, Progress};
pub use negotiated::{Negotiated, Parsed, WireRequest};
pub use peer::Peer;
pub use reply::{MAX_REPLY_HEADER, StatusWriter};

/// Largest payload in bytes of a compact WRITE that is skipped to answer with an error. It is twice
/// the maximum, for clients that never asked for the limits and exceed them a little. A longer
/// payload ends the connection.
pub const MAX_SKIPPED_PAYLOAD_BYTES: u32 = 2 * MAX_REQUEST_BYTES;

/// Longest text of an error during the handshake in bytes, as the document recommends for strings.
pub const MAX_REFUSAL_TEXT: usize = 256;

/// Longest data of an option that is read as a whole, in bytes, and so the most that a connection
/// buffers. This allows a name and fifteen queries of full length, or a name and thirty thousand
/// information requests. Longer options are skipped as they arrive.
pub const MAX_OPTION_BYTES: usize = 64 << 10;

/// Longest option that is skipped and answered, in bytes. A longer one counts as an attack.
pub const MAX_SKIPPED_OPTION_BYTES: u32 = MAX_REQUEST_BYTES;

/// Most options on one connection. This is enough for a client that examines a few hundred devices
/// with INFO and LIST_META_CONTEXT. A client that never chooses a device is closed.
pub const MAX_OPTIONS_PER_CONNECTION: u32 = 1024;

/// Most bytes of the answer to one LIST (about ten thousand devices). A longer one ends with
/// `NBD_REP_ERR_TOO_BIG`.
pub const MAX_LIST_BYTES: usize = 1 << 20;

/// Most bytes of all answers of one handshake. This limits the memory for a client that sends
/// without reading.
pub const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Most queries in one LIST_META_CONTEXT or SET_META_CONTEXT. There are only two contexts.
pub const MAX_CONTEXT_QUERIES: u32 = 64;

/// Most extents in one chunk of a BLOCK_STATUS reply. The document allows 2^20, but a client asks
/// again from the end of the answer. With this number, the reply takes little more than 64 KiB.
pub const MAX_EXTENTS: usize = 4096;

/// Largest "minimum block size" that the document allows.
const MAX_MIN_BLOCK: u32 = 64 << 10;

/// Smallest "preferred block size" that the document allows.
const MIN_PREFERRED_BLOCK: u32 = 512;

/// The devices, as the handshake sees them. The registry of a pool implements it.
///
/// Names and descriptions have at most [`MAX_STRING`] bytes and contain no NUL.
pub trait Directory {
    /// Calls `each` with the name and description of every device.
    fn list(&self, each: &mut dyn FnMut(&str, &str));

    /// The device of this name. `""` means the only device, if there is exactly one.
    fn find(&self, name: &str) -> Option<ExportInfo>;

    /// A random number of this server. It changes when the server is started again, because the new
    /// server knows nothing of requests that the old one had under way.
    fn instance(&self) -> u64;
}

/// The properties of a device, as announced to a client. They stay the same for the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportInfo {
    /// The directory's id of the device. This module does not interpret it.
    pub id: u32,
    /// The canonical export name.
    pub name: String,
    /// A description for humans; may be empty.
    pub description: String,
    /// Size in bytes. If it is not a multiple of `min_block`, clients cannot reach the tail.
    pub size_bytes: u64,
    /// Whether all kinds of writes are refused with `NBD_EPERM`.
    pub read_only: bool,
    /// Whether the medium rotates (`NBD_FLAG_ROTATIONAL`).
    pub rotational: bool,
    /// Smallest unit and alignment of requests in bytes: a power of two from 1 to 65536. Other
    /// values are rounded.
    pub min_block: u32,
    /// Unit of efficient requests in bytes: a power of two, at least 512 and at least `min_block`.
    /// Other values are rounded.
    pub preferred_block: u32,
    /// Whether TRIM is offered.
    pub can_discard: bool,
    /// Whether WRITE_ZEROES is offered.
    pub can_zero: bool,
    /// Whether WRITE_ZEROES with FAST_ZERO is offered. It may still fail quickly with
    /// `NBD_ENOTSUP`.
    pub can_fast_zero: bool,
    /// Whether CACHE is offered.
    pub can_cache: bool,
    /// Whether a flush on one connection covers the completed writes of all connections to the
    /// device.
    pub can_multi_conn: bool,
}

impl ExportInfo {
    /// Minimum and preferred block size, as announced and enforced: `min_block` and
    /// `preferred_block`, rounded to the powers of two and the ranges that the document requires.
    pub fn block_sizes(&self) -> (u32, u32) {
        let minimum = self.min_block.clamp(1, MAX_MIN_BLOCK).next_power_of_two();
        let smallest = minimum.max(MIN_PREFERRED_BLOCK);
        let preferred = self.preferred_block.clamp(smallest, MAX_REQUEST_BYTES).next_power_of_two();
        (minimum, preferred)
    }
}
