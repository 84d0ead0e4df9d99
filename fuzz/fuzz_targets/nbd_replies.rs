//! Parses hostile bytes as NBD replies, as the leaf does. Nothing panics, no byte is read before it
//! has arrived, the lengths of a reply are bounded, and every byte of a read counts exactly once.
//!
//! The input is a row of replies, each with a byte before it that chooses its magic number. Data
//! and text after a header are left out. All replies answer one read.

#![no_main]

use blkswitch_io::core::multipath::outcome::is_path_error;
use blkswitch_io::engine::nbd::wire::{Covered, Parsed, ReplyKind, errno, parse};
use blkswitch_io::nbd::{SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};
use libfuzzer_sys::fuzz_target;

/// Bytes of the read, from the start of the export.
const LEN: u64 = 2048;
/// Longest header: that of a hole.
const MAX_HEADER: usize = 32;
/// The document's longest string, and the fields around it in a reply.
const MAX_SKIPPED: u32 = 4096 + 8;
const ESHUTDOWN: u32 = 108;

fuzz_target!(|data: &[u8]| {
    let (mut covered, mut model) = (Covered::default(), vec![false; LEN as usize]);
    let mut rest = data;
    while let Some((form, behind)) = rest.split_first() {
        let magic = match form % 8 {
            0 | 1 => SIMPLE_REPLY_MAGIC,
            7 => u32::from(*form),
            _ => STRUCTURED_REPLY_MAGIC,
        };
        let body = &behind[..behind.len().min(MAX_HEADER - 4)];
        let bytes = [&magic.to_be_bytes(), body].concat();
        let reply = match parse(&bytes) {
            Parsed::Reply(reply) => reply,
            Parsed::More => {
                assert!(bytes.len() < MAX_HEADER);
                assert!((0..bytes.len()).all(|cut| parse(&bytes[..cut]) == Parsed::More));
                return;
            }
            Parsed::Broken(_) => return,
        };
        rest = &behind[reply.header - 4..];
        // A cut header gives `More`, and bytes after a header are not read.
        assert!((0..reply.header).all(|cut| parse(&bytes[..cut]) == Parsed::More));
        assert_eq!(parse(&bytes[..reply.header]), Parsed::Reply(reply));
        match reply.kind {
            ReplyKind::Simple => assert!(reply.last),
            ReplyKind::Nothing => assert!(reply.last),
            ReplyKind::Error { code, skip } => {
                assert!(code != 0 && skip <= MAX_SKIPPED);
                let errno = errno(code);
                assert!(errno > 0 && is_path_error(errno) == (code == ESHUTDOWN), "{code}");
            }
            ReplyKind::Data { offset, len } | ReplyKind::Hole { offset, len } => {
                assert!(len > 0);
                // Small offsets and lengths, so that chunks overlap.
                let (offset, len) = (offset % LEN, 1 + u64::from(len - 1) % 256);
                let Some(bytes) = model.get_mut(offset as usize..(offset + len) as usize) else {
                    continue;
                };
                let is_new = bytes.iter().all(|is_there| !is_there);
                assert_eq!(covered.add(offset, len), is_new);
                if is_new {
                    bytes.fill(true);
                }
                assert_eq!(covered.is(LEN), model.iter().all(|is_there| *is_there));
            }
        }
    }
});
