//! Sends hostile bytes to the NBD handshake. Nothing panics, memory is bounded, and the answers do
//! not depend on how the stream is cut.
//!
//! The first byte chooses the cuts, and whether the rest is the stream itself or a list of options
//! (number, length, data). This target frames those options, so that the fuzzer need not find the
//! magic number again and again.

#![no_main]

use blkswitch_io::export::nbd::{
    Directory, ExportInfo, Handshake, MAX_ANSWER_BYTES, MAX_LIST_BYTES, MAX_OPTION_BYTES, Next,
};
use libfuzzer_sys::fuzz_target;

struct TwoDisks;

impl Directory for TwoDisks {
    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        each("a", "first");
        each("b", "");
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        let size_bytes = if name == "a" { 1 << 20 } else { 1 << 50 };
        matches!(name, "a" | "b").then(|| ExportInfo {
            name: name.into(),
            size_bytes,
            ..ExportInfo::default()
        })
    }

    fn instance(&self) -> u64 {
        1
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let stream = if how & 1 == 0 { rest.to_vec() } else { framed(rest) };
    let whole = run(&stream, stream.len().max(1));
    let cut = run(&stream, usize::from(how >> 1) + 1);
    assert_eq!(whole, cut);
});

fn framed(mut list: &[u8]) -> Vec<u8> {
    let mut stream = b"\0\0\0\x03".to_vec();
    while let [option, len, rest @ ..] = list {
        let (data, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        stream.extend(b"IHAVEOPT");
        stream.extend(u32::from(option % 13).to_be_bytes());
        stream.extend((data.len() as u32).to_be_bytes());
        stream.extend(data);
        list = rest;
    }
    stream
}

/// Feeds the stream in pieces of this size, like a connection.
fn run(stream: &[u8], piece: usize) -> (Vec<u8>, usize, String) {
    let mut handshake = Handshake::new();
    let (mut out, mut kept, mut total) = (Vec::new(), Vec::new(), 0);
    for bytes in stream.chunks(piece) {
        kept.extend_from_slice(bytes);
        let progress = handshake.input(&kept, &TwoDisks, &mut out);
        kept.drain(..progress.consumed);
        total += progress.consumed;
        assert!(out.len() <= MAX_ANSWER_BYTES + MAX_LIST_BYTES + 1000);
        match progress.next {
            Next::More => assert!(kept.len() < MAX_OPTION_BYTES),
            end => return (out, total, format!("{end:?}")),
        }
    }
    (out, total, "more".into())
}
