//! Encodes requests and decodes replies: the transmission phase on the client's side, without
//! sockets.
//!
//! Contract: pure, and never panics. Allocates only if a server answers a read with chunks out of
//! order. Received bytes are a reply, or a reason to drop the connection. The caller checks the
//! lengths in a reply against its request, with [`Covered`] for the chunks of a read.

use crate::wire::nbd::MAX_STRING;
use crate::wire::nbd::{
    NbdError, REQUEST_LEN, REQUEST_MAGIC, Reader, SIMPLE_REPLY_LEN, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_LEN, STRUCTURED_REPLY_MAGIC, chunk,
};

/// Longest payload of an error chunk in bytes: number, length, text, offset.
const MAX_ERROR_PAYLOAD: u32 = 6 + MAX_STRING as u32 + 8;
/// Bytes of a data chunk's payload before the data: the offset.
const OFFSET_LEN: u32 = 8;
/// Bytes of a hole chunk's payload: offset and length.
const HOLE_LEN: u32 = 12;
/// Bytes of an error chunk's payload before the text: number and length.
const ERROR_HEAD: u32 = 6;
/// Most chunks of one read that may be ahead of a missing one. Servers usually send chunks in
/// order, but the protocol does not require it.
const MAX_AHEAD: usize = 1024;

/// Encodes the header of a request. `offset` and `len` are in bytes.
pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_LEN] {
    let mut out = [0; REQUEST_LEN];
    let fields: [&[u8]; 6] = [
        &REQUEST_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    let mut rest = out.as_mut_slice();
    for field in fields {
        let (place, behind) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = behind;
    }
    out
}

/// The start of the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The header is not complete.
    More,
    /// A header of a reply, or of a chunk of one.
    Reply(Reply),
    /// Not a reply. The connection cannot be used any more.
    Broken(&'static str),
}

/// A header of a reply, or of a chunk of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Length of the header in bytes.
    pub header: usize,
    /// The cookie of the request that it answers.
    pub cookie: u64,
    /// Whether no further chunk follows.
    pub last: bool,
    /// The content of the reply.
    pub kind: ReplyKind,
}

/// The content of a reply or chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// A simple reply of success. For a read, all of its data follows.
    Simple,
    /// An empty chunk, which only ends a structured reply.
    Nothing,
    /// `len` bytes of data follow, from `offset` of the export.
    Data {
        /// Offset on the export in bytes.
        offset: u64,
        /// Length in bytes, at least 1.
        len: u32,
    },
    /// `len` zeroes at `offset` of the export. No data follows.
    Hole {
        /// Offset on the export in bytes.
        offset: u64,
        /// Length in bytes, at least 1.
        len: u32,
    },
    /// The request failed. `skip` bytes of text follow.
    Error {
        /// The error number of the protocol.
        code: u32,
        /// Number of bytes that follow.
        skip: u32,
    },
}

/// Decodes the header at the start of the bytes.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut reader = Reader::new(bytes);
    match reader.u32() {
        Some(SIMPLE_REPLY_MAGIC) => {
            let (Some(code), Some(cookie)) = (reader.u32(), reader.u64()) else {
                return Parsed::More;
            };
            let kind =
                if code == 0 { ReplyKind::Simple } else { ReplyKind::Error { code, skip: 0 } };
            Parsed::Reply(Reply { header: SIMPLE_REPLY_LEN, cookie, last: true, kind })
        }
        Some(STRUCTURED_REPLY_MAGIC) => structured(&mut reader),
        Some(_) => Parsed::Broken("a reply does not begin with a magic number of its own"),
        None => Parsed::More,
    }
}

fn structured(reader: &mut Reader<'_>) -> Parsed {
    let (Some(flags), Some(kind), Some(cookie), Some(len)) =
        (reader.u16(), reader.u16(), reader.u64(), reader.u32())
    else {
        return Parsed::More;
    };
    let last = flags & chunk::FLAG_DONE != 0;
    let reply = |head: u32, kind| {
        Parsed::Reply(Reply { header: STRUCTURED_REPLY_LEN + head as usize, cookie, last, kind })
    };
    match kind {
        chunk::NONE if len == 0 && last => reply(0, ReplyKind::Nothing),
        chunk::OFFSET_DATA if len > OFFSET_LEN => match reader.u64() {
            Some(offset) => reply(OFFSET_LEN, ReplyKind::Data { offset, len: len - OFFSET_LEN }),
            None => Parsed::More,
        },
        chunk::OFFSET_HOLE if len == HOLE_LEN => match (reader.u64(), reader.u32()) {
            (Some(_), Some(0)) => Parsed::Broken("a hole of no bytes"),
            (Some(offset), Some(len)) => reply(HOLE_LEN, ReplyKind::Hole { offset, len }),
            _ => Parsed::More,
        },
        kind if kind & chunk::ERROR_BIT != 0 && (ERROR_HEAD..=MAX_ERROR_PAYLOAD).contains(&len) => {
            match (reader.u32(), reader.u16()) {
                (Some(0), Some(_)) => Parsed::Broken("an error without a number"),
                (Some(code), Some(_)) => {
                    reply(ERROR_HEAD, ReplyKind::Error { code, skip: len - ERROR_HEAD })
                }
                _ => Parsed::More,
            }
        }
        _ => Parsed::Broken("a piece of a reply of unknown type or wrong length"),
    }
}

/// The errno for a server's error. A server that answers with an error is alive, so only ESHUTDOWN
/// may fail a path ([`blkswitch_core::multipath::outcome`]). An I/O error of the server becomes
/// EREMOTEIO, and so does a number that the protocol does not define.
pub fn errno(code: u32) -> i32 {
    match NbdError::from_code(code) {
        Some(NbdError::Perm) => libc::EPERM,
        Some(NbdError::NoMem) => libc::ENOMEM,
        Some(NbdError::Inval | NbdError::Overflow) => libc::EINVAL,
        Some(NbdError::NoSpc) => libc::ENOSPC,
        Some(NbdError::NotSup) => libc::EOPNOTSUPP,
        Some(NbdError::Shutdown) => libc::ESHUTDOWN,
        Some(NbdError::Io) | None => libc::EREMOTEIO,
    }
}

/// The bytes of a read that have been answered. Each byte must arrive exactly once. A missing byte
/// would leave the client with old contents of the memory.
#[derive(Debug, Default)]
pub struct Covered {
    /// All bytes below this offset have arrived.
    prefix: u64,
    /// Ranges that have arrived beyond `prefix`, sorted and disjoint.
    ahead: Vec<(u64, u64)>,
}

impl Covered {
    /// Resets to no bytes.
    pub fn clear(&mut self) {
        self.prefix = 0;
        self.ahead.clear();
    }

    /// Notes that `len` bytes from `start` have arrived. Returns `false` if some of them had
    /// arrived before, or if too many chunks are out of order.
    pub fn add(&mut self, start: u64, len: u64) -> bool {
        let end = start + len;
        if start < self.prefix {
            return false;
        }
        if start == self.prefix && self.ahead.is_empty() {
            self.prefix = end;
            return true;
        }
        let at = self.ahead.partition_point(|piece| piece.0 < start);
        let overlaps_before =
            at.checked_sub(1).and_then(|at| self.ahead.get(at)).is_some_and(|p| p.1 > start);
        let overlaps_behind = self.ahead.get(at).is_some_and(|piece| piece.0 < end);
        if overlaps_before || overlaps_behind || self.ahead.len() >= MAX_AHEAD {
            return false;
        }
        self.ahead.insert(at, (start, end));
        let joined = self.ahead.iter().take_while(|piece| {
            let joins = piece.0 == self.prefix;
            if joins {
                self.prefix = piece.1;
            }
            joins
        });
        let joined = joined.count();
        self.ahead.drain(..joined);
        true
    }

    /// Whether exactly the first `len` bytes have arrived.
    pub fn is(&self, len: u64) -> bool {
        self.prefix == len && self.ahead.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sim::Random;

    fn simple(code: u32, cookie: u64) -> Vec<u8> {
        [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &code.to_be_bytes(), &cookie.to_be_bytes()].concat()
    }

    fn piece(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
        let len = payload.len() as u32;
        let parts: [&[u8]; 6] = [
            &STRUCTURED_REPLY_MAGIC.to_be_bytes(),
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &cookie.to_be_bytes(),
            &len.to_be_bytes(),
            payload,
        ];
        parts.concat()
    }

    #[test]
    fn a_request_is_what_the_document_says() {
        let bytes = request(1, 6, 0x0102_0304_0506_0708, 4096, 512);
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6]);
        assert_eq!(bytes[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[16..], [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn replies_are_read_when_they_are_whole() {
        let offset = 4096u64.to_be_bytes();
        let hole = [&offset[..], &512u32.to_be_bytes()].concat();
        let error = [&5u32.to_be_bytes()[..], &2u16.to_be_bytes(), b"no"].concat();
        for (bytes, header, last, kind) in [
            (simple(0, 7), 16, true, ReplyKind::Simple),
            (simple(28, 7), 16, true, ReplyKind::Error { code: 28, skip: 0 }),
            (piece(1, 0, 7, &[]), 20, true, ReplyKind::Nothing),
            (
                piece(0, 1, 7, &[&offset[..], b"abcd"].concat()),
                28,
                false,
                ReplyKind::Data { offset: 4096, len: 4 },
            ),
            (piece(1, 2, 7, &hole), 32, true, ReplyKind::Hole { offset: 4096, len: 512 }),
            (piece(1, 0x8001, 7, &error), 26, true, ReplyKind::Error { code: 5, skip: 2 }),
            (
                piece(0, 0x8002, 7, &[&error[..], &offset].concat()),
                26,
                false,
                ReplyKind::Error { code: 5, skip: 10 },
            ),
        ] {
            for cut in 0..header {
                assert_eq!(parse(&bytes[..cut]), Parsed::More, "{kind:?} cut at {cut}");
            }
            assert_eq!(parse(&bytes), Parsed::Reply(Reply { header, cookie: 7, last, kind }));
        }
    }

    #[test]
    fn what_is_no_reply_is_broken() {
        for bytes in [
            vec![0; 4],
            b"HTTP/1.1 400 Bad Request".to_vec(),
            piece(0, 0, 1, &[]),
            piece(1, 0, 1, &[0]),
            piece(1, 1, 1, &[0; 8]),
            piece(1, 2, 1, &[0; 11]),
            piece(1, 2, 1, &[0; 12]),
            piece(1, 5, 1, &[0; 12]),
            piece(1, 3, 1, &[]),
            piece(1, 0x8001, 1, &[0; 5]),
            piece(1, 0x8001, 1, &[0; 6]),
            piece(1, 0x8001, 1, &[1; 6 + 4096 + 9]),
        ] {
            assert!(matches!(parse(&bytes), Parsed::Broken(_)), "{bytes:x?}");
        }
    }

    #[test]
    fn any_bytes_at_all_are_read_without_harm() {
        let mut random = Random::new(1);
        let magics = [SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, 0];
        for _ in 0..100_000 {
            let mut bytes: Vec<u8> = (0..random.below(48)).map(|_| random.bits() as u8).collect();
            let magic = magics[random.below(3) as usize].to_be_bytes();
            bytes.splice(..bytes.len().min(4), magic);
            if bytes.len() > 8 && random.chance(500_000) {
                bytes[4..8].copy_from_slice(&[
                    0,
                    random.below(2) as u8,
                    (random.below(2) * 128) as u8,
                    random.below(4) as u8,
                ]);
            }
            if let Parsed::Reply(reply) = parse(&bytes) {
                assert!(reply.header <= bytes.len());
                if let ReplyKind::Error { skip, .. } = reply.kind {
                    assert!(skip <= MAX_ERROR_PAYLOAD);
                }
            }
        }
    }

    #[test]
    fn only_a_server_that_goes_fails_a_path() {
        use blkswitch_core::multipath::outcome::is_path_error;
        let failing: Vec<u32> = (1..200).filter(|code| is_path_error(errno(*code))).collect();
        assert_eq!(failing, [108]);
        assert!((1..200).all(|code| ![libc::EINTR, libc::EAGAIN, 0].contains(&errno(code))));
    }

    #[test]
    fn every_byte_must_come_exactly_once() {
        let mut random = Random::new(2);
        for _ in 0..2000 {
            let len = 1 + random.below(64);
            let mut pieces = Vec::new();
            let mut at = 0;
            while at < len {
                let piece = 1 + random.below(len - at);
                pieces.push((at, piece));
                at += piece;
            }
            for n in (1..pieces.len()).rev() {
                pieces.swap(n, random.below(n as u64 + 1) as usize);
            }
            let mut covered = Covered::default();
            for (n, (start, piece)) in pieces.iter().enumerate() {
                assert!(!covered.is(len), "{n} of {pieces:?}");
                assert!(covered.add(*start, *piece), "{n} of {pieces:?}");
                let (start, piece) = pieces[random.below(n as u64 + 1) as usize];
                assert!(!covered.add(start, piece), "{n} of {pieces:?} again");
            }
            assert!(covered.is(len));
        }
        let mut covered = Covered::default();
        let far = (0..).map(|n| 1 + n * 2).take_while(|at| covered.add(*at, 1)).count();
        assert_eq!(far, MAX_AHEAD, "a server cannot make us remember more");
        covered.clear();
        assert!(covered.add(0, 5) && covered.is(5));
    }
}
