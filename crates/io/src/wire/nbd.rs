//! The numbers of the NBD protocol, and a reader of big-endian bytes. Both sides use them: the
//! export ([`crate::export::nbd`]) and the leaf ([`crate::engine::nbd`]).
//!
//! Contract: only translation. Names are those of the specification, without the prefix that the
//! module gives (`NBD_OPT_GO` is [`opt::GO`]). Everything on the wire is big-endian.

/// Largest READ or WRITE in bytes, announced as "maximum payload" with `NBD_INFO_BLOCK_SIZE`. 2^25
/// is the size that every client may use if nothing was announced, and the largest payload that
/// does not count as an attack.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;

/// Longest string (export name, query, description) in bytes, a limit of the specification.
pub const MAX_STRING: usize = 4096;

/// First magic of the greeting, `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second magic of the greeting and first word of every option, `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First word of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Length of a compact request header in bytes.
pub const REQUEST_LEN: usize = 28;
/// Length of a simple reply in bytes.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Length of the header of a structured reply chunk in bytes.
pub const STRUCTURED_REPLY_LEN: usize = 20;
/// Length of an extended request header in bytes.
pub const EXTENDED_REQUEST_LEN: usize = 32;
/// Length of the client flags in bytes.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Length of an option before its data, in bytes.
pub const OPTION_HEADER_LEN: usize = 16;
/// Length of an option reply before its data, in bytes.
pub const OPTION_REPLY_LEN: usize = 20;
/// Number of zero bytes after the answer to EXPORT_NAME, unless `NO_ZEROES` was negotiated.
pub const EXPORT_NAME_PADDING: usize = 124;

/// Handshake flags, also the client's flags.
pub mod handshake_flag {
    /// Options other than EXPORT_NAME exist.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No padding after the answer to EXPORT_NAME.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: the abilities of an export.
pub mod transmission_flag {
    /// Set by every server of the current protocol.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// The export refuses writes.
    pub const READ_ONLY: u16 = 1 << 1;
    /// The export has FLUSH.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Commands may have the FUA flag.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The medium rotates, so seeks are slow.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// The export has TRIM.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// The export has WRITE_ZEROES.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// READ may have the DF flag.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers the completed writes of all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// The export has CACHE.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// WRITE_ZEROES may have the FAST_ZERO flag.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS may have a payload that selects contexts.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Options of the handshake.
pub mod opt {
    /// Choose an export and start. The server can refuse only by closing the connection.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session during the handshake.
    pub const ABORT: u32 = 2;
    /// List the exports of the server.
    pub const LIST: u32 = 3;
    /// Upgrade the connection to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export as GO does, without starting.
    pub const INFO: u32 = 6;
    /// Choose an export and start transmission.
    pub const GO: u32 = 7;
    /// Use structured replies, which come as chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts for BLOCK_STATUS.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use 64-bit lengths in requests and replies.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies. Errors have bit 31 set.
pub mod rep {
    /// The option succeeded; the last reply to it.
    pub const ACK: u32 = 1;
    /// An export, in the answer to LIST.
    pub const SERVER: u32 = 2;
    /// A piece of information about an export.
    pub const INFO: u32 = 3;
    /// A metadata context, with its number and name.
    pub const META_CONTEXT: u32 = 4;
    /// The server does not know the option.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// The server requires TLS first.
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    /// The bit of every reply that is an error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is malformed, or not allowed now.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// The export does not exist.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    /// The request or its answer is too large.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    /// Extended headers were negotiated (or would be needed).
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// Kinds of information about an export.
pub mod info {
    /// Size and transmission flags of the export.
    pub const EXPORT: u16 = 0;
    /// The canonical name of the export.
    pub const NAME: u16 = 1;
    /// A description for humans.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum and preferred block, maximum payload.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Flags of a command in a request.
pub mod command_flag {
    /// Answer when the data is on stable storage.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES must keep the range allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ must be answered in one chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS answers one extent per context.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES fails rather than being slow.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length counts payload bytes after the header (extended headers only).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Chunk flags and types of structured and extended replies.
pub mod chunk {
    /// Flag: the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// No content: success without data.
    pub const NONE: u16 = 0;
    /// An offset and the data found there.
    pub const OFFSET_DATA: u16 = 1;
    /// An offset and the length of the zeroes found there.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents with 32-bit lengths.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents with 64-bit lengths.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The bit of every type that is an error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error, perhaps with a text.
    pub const ERROR: u16 = ERROR_BIT + 1;
}

/// Bits of the status of a `base:allocation` extent.
pub mod allocation {
    /// The extent is not allocated.
    pub const HOLE: u32 = 1 << 0;
    /// The extent reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// Commands that are answered. `NBD_CMD_DISC` has no reply, so it is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NbdCommand {
    /// `NBD_CMD_READ`: returns data.
    Read = 0,
    /// `NBD_CMD_WRITE`: its payload is the data.
    Write = 1,
    /// `NBD_CMD_FLUSH`: makes completed writes durable.
    Flush = 3,
    /// `NBD_CMD_TRIM`: a hint that the range is not needed.
    Trim = 4,
    /// `NBD_CMD_CACHE`: a hint that the range will be read.
    Cache = 5,
    /// `NBD_CMD_WRITE_ZEROES`: makes the range read as zeroes.
    WriteZeroes = 6,
    /// `NBD_CMD_BLOCK_STATUS`: returns extents of metadata contexts.
    BlockStatus = 7,
}

impl NbdCommand {
    /// The number of `NBD_CMD_DISC`, which ends the session.
    pub const DISCONNECT: u16 = 2;
    /// One more than the largest number of a command, for tables by command.
    pub const SLOTS: usize = 8;

    /// The command with this number; `None` if there is none.
    pub const fn from_wire(number: u16) -> Option<NbdCommand> {
        Some(match number {
            0 => NbdCommand::Read,
            1 => NbdCommand::Write,
            3 => NbdCommand::Flush,
            4 => NbdCommand::Trim,
            5 => NbdCommand::Cache,
            6 => NbdCommand::WriteZeroes,
            7 => NbdCommand::BlockStatus,
            _ => return None,
        })
    }

    /// Whether the command may change data.
    pub const fn writes(self) -> bool {
        matches!(self, NbdCommand::Write | NbdCommand::Trim | NbdCommand::WriteZeroes)
    }
}

/// The errors of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NbdError {
    /// `NBD_EPERM`: not permitted, above all writes to a read-only export.
    Perm = 1,
    /// `NBD_EIO`: an I/O error of the device.
    Io = 5,
    /// `NBD_ENOMEM`: the server has no memory.
    NoMem = 12,
    /// `NBD_EINVAL`: the request is invalid, or lies beyond the end.
    Inval = 22,
    /// `NBD_ENOSPC`: no space, or a write beyond the end.
    NoSpc = 28,
    /// `NBD_EOVERFLOW`: too long to be answered in one chunk.
    Overflow = 75,
    /// `NBD_ENOTSUP`: zeroing would not be fast.
    NotSup = 95,
    /// `NBD_ESHUTDOWN`: the server is going away.
    Shutdown = 108,
}

impl NbdError {
    /// The error's number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The error for a client, by an errno of this system, as the specification maps them.
    /// `EOPNOTSUPP` becomes `NBD_EINVAL`, because `NBD_ENOTSUP` is reserved for FAST_ZERO. If a
    /// leaf cannot be reached from here, the error is `NBD_ESHUTDOWN` and not `NBD_EIO`: the volume
    /// is well, and a client should use another path to it if it has one, as it would if this
    /// server went away.
    pub const fn from_errno(errno: i32) -> NbdError {
        match errno {
            libc::EPERM | libc::EACCES | libc::EROFS => NbdError::Perm,
            libc::ENOMEM => NbdError::NoMem,
            libc::EINVAL | libc::EOPNOTSUPP => NbdError::Inval,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => NbdError::NoSpc,
            libc::EOVERFLOW => NbdError::Overflow,
            libc::ESHUTDOWN
            | libc::ENOTCONN
            | libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::ECONNABORTED
            | libc::EPIPE
            | libc::ETIMEDOUT
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::ENETUNREACH => NbdError::Shutdown,
            _ => NbdError::Io,
        }
    }

    /// The error with this number; `None` if there is none.
    pub const fn from_code(code: u32) -> Option<NbdError> {
        Some(match code {
            1 => NbdError::Perm,
            5 => NbdError::Io,
            12 => NbdError::NoMem,
            22 => NbdError::Inval,
            28 => NbdError::NoSpc,
            75 => NbdError::Overflow,
            95 => NbdError::NotSup,
            108 => NbdError::Shutdown,
            _ => return None,
        })
    }
}

/// Reads big-endian numbers and byte strings from the front of a slice. `None` if the slice is too
/// short.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Number of bytes that are left.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }
}

/// The longest prefix of `text` that has at most `bytes` bytes and ends at a character boundary.
#[must_use]
pub fn at_most(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magics_spell_what_the_document_says() {
        assert_eq!(&INIT_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn commands_keep_their_numbers() {
        for number in 0..=u16::MAX {
            match NbdCommand::from_wire(number) {
                Some(command) => {
                    assert_eq!(command as u16, number);
                    assert!((command as usize) < NbdCommand::SLOTS);
                }
                None => assert!(number == NbdCommand::DISCONNECT || number > 7, "{number}"),
            }
        }
    }

    #[test]
    fn errnos_become_the_errors_the_document_names() {
        for (errno, expected) in [
            (libc::EPERM, 1),
            (libc::EROFS, 1),
            (libc::EIO, 5),
            (libc::ETIMEDOUT, 108),
            (libc::ENOTCONN, 108),
            (libc::ENOMEM, 12),
            (libc::EINVAL, 22),
            (libc::EOPNOTSUPP, 22),
            (libc::ENOSPC, 28),
            (libc::EDQUOT, 28),
            (libc::EFBIG, 28),
            (libc::EOVERFLOW, 75),
            (libc::ESHUTDOWN, 108),
        ] {
            assert_eq!(NbdError::from_errno(errno).code(), expected, "errno {errno}");
        }
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!((at_most("abc", 3), at_most("abc", 2), at_most("abc", 9)), ("abc", "ab", "abc"));
        assert_eq!((at_most("a\u{e4}", 2), at_most("\u{e4}", 1), at_most("", 0)), ("a", "", ""));
    }

    #[test]
    fn reader_stops_at_the_end() {
        let mut reader = Reader::new(&[0, 1, 2, 3, 4]);
        assert_eq!(reader.u16(), Some(1));
        assert_eq!(reader.u32(), None);
        assert_eq!(reader.bytes(4), None);
        assert_eq!(reader.bytes(3), Some(&[2, 3, 4][..]));
        assert_eq!(reader.len(), 0);
    }
}
