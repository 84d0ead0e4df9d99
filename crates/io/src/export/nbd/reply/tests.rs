//! Replies byte by byte. Cookies are `c0..`, offsets `0f..`.

use super::*;
use crate::export::nbd::testing::{disk, hex, wire};
use crate::export::nbd::{Contexts, NbdCommand, Parsed};
use proptest::prelude::*;

const COOKIE: u64 = 0xc0c1_c2c3_c4c5_c6c7;
const OFFSET: u64 = 0x0f00;

fn contexts() -> Contexts {
    MetaContext::ALL.into_iter().collect()
}

fn simple_negotiated() -> Negotiated {
    Negotiated::new(disk("disk"), false, false, Contexts::NONE)
}

fn structured_negotiated() -> Negotiated {
    Negotiated::new(disk("disk"), true, false, contexts())
}

fn extended_negotiated() -> Negotiated {
    Negotiated::new(disk("disk"), false, true, contexts())
}

/// Compares what was written with the notation of [`wire`].
fn check(write: impl FnOnce(&mut [u8; MAX_REPLY_HEADER]) -> usize, expected: &str) {
    let mut out = [0xee; MAX_REPLY_HEADER];
    let len = write(&mut out);
    assert_eq!(hex(&out[..len]), hex(&wire(expected)));
    assert!(out[len..].iter().all(|&byte| byte == 0xee), "written beyond the length");
}

#[test]
fn success_without_data() {
    check(|out| simple_negotiated().ok(COOKIE, OFFSET, out), "67446698 00000000 c0c1c2c3c4c5c6c7");
    check(
        |out| structured_negotiated().ok(COOKIE, OFFSET, out),
        "668e33ef 0001 0000 c0c1c2c3c4c5c6c7 00000000",
    );
    check(
        |out| extended_negotiated().ok(COOKIE, OFFSET, out),
        "6e8a278c 0001 0000 c0c1c2c3c4c5c6c7 0000000000000f00 0000000000000000",
    );
}

#[test]
fn data_of_a_read() {
    let len = 0x1000;
    check(
        |out| simple_negotiated().read_ok(COOKIE, OFFSET, len, out),
        "67446698 00000000 c0c1c2c3c4c5c6c7",
    );
    check(
        |out| structured_negotiated().read_ok(COOKIE, OFFSET, len, out),
        "668e33ef 0001 0001 c0c1c2c3c4c5c6c7 00001008 0000000000000f00",
    );
    check(
        |out| extended_negotiated().read_ok(COOKIE, OFFSET, len, out),
        "6e8a278c 0001 0001 c0c1c2c3c4c5c6c7 0000000000000f00 0000000000001008 0000000000000f00",
    );
}

/// A data chunk must not be empty.
#[test]
fn data_of_a_read_of_no_bytes() {
    check(
        |out| simple_negotiated().read_ok(COOKIE, OFFSET, 0, out),
        "67446698 00000000 c0c1c2c3c4c5c6c7",
    );
    check(
        |out| structured_negotiated().read_ok(COOKIE, OFFSET, 0, out),
        "668e33ef 0001 0000 c0c1c2c3c4c5c6c7 00000000",
    );
}

#[test]
fn errors() {
    let text = "beyond the end";
    check(
        |out| simple_negotiated().error(COOKIE, OFFSET, NbdError::Inval, text, out),
        "67446698 00000016 c0c1c2c3c4c5c6c7",
    );
    check(
        |out| structured_negotiated().error(COOKIE, OFFSET, NbdError::NoSpc, text, out),
        "668e33ef 0001 8001 c0c1c2c3c4c5c6c7 00000014 0000001c 000e 'beyond the end'",
    );
    check(
        |out| extended_negotiated().error(COOKIE, OFFSET, NbdError::Perm, text, out),
        "6e8a278c 0001 8001 c0c1c2c3c4c5c6c7 0000000000000f00 0000000000000014 00000001 000e 'beyond the end'",
    );
    check(
        |out| structured_negotiated().error(COOKIE, OFFSET, NbdError::Shutdown, "", out),
        "668e33ef 0001 8001 c0c1c2c3c4c5c6c7 00000006 0000006c 0000",
    );
}

#[test]
fn long_texts_are_cut_between_characters() {
    let text = format!("x{}", "ü".repeat(100));
    let mut out = [0; MAX_REPLY_HEADER];
    let len = extended_negotiated().error(COOKIE, OFFSET, NbdError::Io, &text, &mut out);
    assert_eq!(len, MAX_REPLY_HEADER - 1);
    assert_eq!(str::from_utf8(&out[38..len]).unwrap(), format!("x{}", "ü".repeat(44)));
    assert_eq!(out[36..38], [0, 89]);
}

/// The request that `negotiated` parses from a BLOCK_STATUS.
fn status_request(negotiated: &Negotiated, offset: u64, len: u64, req_one: bool) -> WireRequest {
    let (magic, len) = match negotiated.extended {
        true => ("21e41c71", format!("{len:016x}")),
        false => ("25609513", format!("{len:08x}")),
    };
    let flags = if req_one { 8 } else { 0 };
    match negotiated
        .parse(&wire(&format!("{magic} {flags:04x} 0007 {COOKIE:016x} {offset:016x} {len}")))
    {
        Parsed::Request(request) => request,
        other => panic!("{other:?}"),
    }
}

/// Chunks for all contexts of the request, made of these extents.
fn status(negotiated: &Negotiated, request: &WireRequest, extents: &[(u64, u32)]) -> Vec<u8> {
    let mut reply = Vec::new();
    for context in request.contexts.iter() {
        let mut out = vec![0; MAX_STATUS_CHUNK];
        let mut writer = negotiated.block_status(request, context, &mut out);
        let _ = extents.iter().all(|&(len, status)| writer.extent(len, status));
        let len = writer.finish().expect("at least one extent");
        reply.extend_from_slice(&out[..len]);
    }
    reply
}

#[test]
fn block_status_of_two_contexts() {
    let negotiated = structured_negotiated();
    let request = status_request(&negotiated, OFFSET & !511, 0x1000, false);
    let reply = status(&negotiated, &request, &[(0x200, 3), (0x400, 0), (0x600, 0), (0x99999, 1)]);
    let expected = "668e33ef 0000 0005 c0c1c2c3c4c5c6c7 0000001c 00000001
                        00000200 00000003 00000a00 00000000 00000400 00000001
                    668e33ef 0001 0005 c0c1c2c3c4c5c6c7 0000001c 00000002
                        00000200 00000003 00000a00 00000000 00000400 00000001";
    assert_eq!(hex(&reply), hex(&wire(expected)));
}

#[test]
fn block_status_with_extended_headers() {
    let negotiated = extended_negotiated();
    let whole = WireRequest {
        contexts: [MetaContext::Path].into_iter().collect(),
        ..status_request(&negotiated, 0, 1 << 20, false)
    };
    let reply = status(&negotiated, &whole, &[(0x8_0000, 5), (0, 6), (0x8_0000, 7)]);
    let expected =
        "6e8a278c 0001 0006 c0c1c2c3c4c5c6c7 0000000000000000 0000000000000028 00000002 00000002
                        0000000000080000 0000000000000005 0000000000080000 0000000000000007";
    assert_eq!(hex(&reply), hex(&wire(expected)));
}

#[test]
fn block_status_of_one_extent() {
    let negotiated = structured_negotiated();
    let request = status_request(&negotiated, 0, 0x1000, true);
    let one = WireRequest { contexts: [MetaContext::Allocation].into_iter().collect(), ..request };
    for (extents, len) in [
        (&[(0x800, 1), (0x400, 1), (0x400, 0)][..], "00000c00"),
        (&[(0x800, 1), (0x800, 1), (0x800, 1)], "00001000"),
        (&[(u64::MAX, 1)], "00001000"),
        (&[(0x200, 1), (0x200, 0), (0x200, 1)], "00000200"),
    ] {
        let expected =
            format!("668e33ef 0001 0005 c0c1c2c3c4c5c6c7 0000000c 00000001 {len} 00000001");
        assert_eq!(hex(&status(&negotiated, &one, extents)), hex(&wire(&expected)), "{extents:x?}");
    }
}

#[test]
fn block_status_needs_an_extent_and_room_for_it() {
    let negotiated = structured_negotiated();
    let request = status_request(&negotiated, 0, 0x1000, false);
    let mut out = [0; 64];
    assert_eq!(negotiated.block_status(&request, MetaContext::Path, &mut out).finish(), None);
    for room in 0..32 {
        let mut writer = negotiated.block_status(&request, MetaContext::Path, &mut out[..room]);
        assert!(!writer.extent(512, 0), "{room}");
        assert_eq!(writer.finish(), None, "{room}");
    }
    let mut writer = negotiated.block_status(&request, MetaContext::Path, &mut out[..32]);
    assert!(writer.extent(512, 0));
    assert!(!writer.extent(512, 1));
    assert_eq!(writer.finish(), Some(32));
}

#[test]
fn block_status_stops_at_the_limit() {
    let export = crate::export::nbd::ExportInfo { size_bytes: 1 << 30, ..disk("disk") };
    let negotiated = Negotiated::new(export, false, true, contexts());
    let request = status_request(&negotiated, 0, 1 << 30, false);
    let mut out = vec![0; 2 * MAX_STATUS_CHUNK];
    let mut writer = negotiated.block_status(&request, MetaContext::Path, &mut out);
    let taken = (0..u32::MAX).take_while(|&number| writer.extent(512, number)).count();
    assert_eq!((taken, writer.finish()), (MAX_EXTENTS, Some(MAX_STATUS_CHUNK)));
}

/// The content of a status chunk as a client reads it: context, whether it is the last, extents.
fn read_status(negotiated: &Negotiated, mut chunk: &[u8]) -> Vec<(u64, u64)> {
    let mut number = |len: usize| {
        let (head, rest) = chunk.split_at(len);
        chunk = rest;
        head.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
    };
    let (header, unit) = if negotiated.extended { (24, 8) } else { (16, 4) };
    number(header);
    let len = number(unit) as usize;
    number(4);
    let head = if negotiated.extended {
        assert_eq!(number(4) as usize, (len - 8) / 16);
        8
    } else {
        4
    };
    (0..(len - head) / (2 * unit)).map(|_| (number(unit), number(unit))).collect()
}

proptest! {
    /// The output is a prefix of the input: every byte has its status, and neighbours differ.
    #[test]
    fn block_status_tells_a_prefix_of_the_truth(
        extents in prop::collection::vec((0u64..64, 0u32..3), 1..200),
        req_one: bool,
        wide: bool,
        room in 0usize..2000,
        len in 1u64..2048,
    ) {
        let negotiated = if wide { extended_negotiated() } else { structured_negotiated() };
        let request = status_request(&negotiated, 0, len * 512, req_one);
        let mut out = vec![0; room];
        let mut writer = negotiated.block_status(&request, MetaContext::Path, &mut out);
        for &(blocks, status) in &extents {
            writer.extent(blocks * 512, status);
        }
        let truth: Vec<u32> =
            extents
            .iter()
            .flat_map(|&(blocks, status)| (0..blocks).map(move |_| status))
            .take(len as usize)
            .collect();
        let (head, unit) = if wide { (40, 16) } else { (24, 8) };
        let most = if req_one { 1 } else { room.saturating_sub(head) / unit };
        let Some(written) = writer.finish() else {
            prop_assert!(truth.is_empty() || room < head + unit);
            return Ok(());
        };
        let told = read_status(&negotiated, &out[..written]);
        prop_assert!(!told.is_empty() && (!req_one || told.len() == 1));
        prop_assert!(told.windows(2).all(|pair| pair[0].1 != pair[1].1));
        let blocks: Vec<u32> =
            told
            .iter()
            .flat_map(|&(len, status)| (0..len / 512).map(move |_| status as u32))
            .collect();
        prop_assert_eq!(&blocks[..], &truth[..blocks.len()]);
        // The answer is shorter only if the chunk is full.
        prop_assert!(blocks.len() == truth.len() || told.len() == most);
    }
}

/// A session never mixes forms of reply. The first word of a reply shows its form.
#[test]
fn one_form_of_reply_per_negotiated() {
    for (negotiated, magic) in [
        (simple_negotiated(), SIMPLE_REPLY_MAGIC),
        (structured_negotiated(), STRUCTURED_REPLY_MAGIC),
        (extended_negotiated(), EXTENDED_REPLY_MAGIC),
    ] {
        let mut out = [0; MAX_REPLY_HEADER];
        let starts = |out: &[u8]| assert_eq!(out[..4], magic.to_be_bytes());
        negotiated.ok(COOKIE, OFFSET, &mut out);
        starts(&out);
        negotiated.read_ok(COOKIE, OFFSET, 512, &mut out);
        starts(&out);
        negotiated.error(COOKIE, OFFSET, NbdError::Io, "", &mut out);
        starts(&out);
        if negotiated.structured {
            let request = status_request(&negotiated, 0, 512, false);
            assert_eq!(request.command, NbdCommand::BlockStatus);
            negotiated.block_status(&request, MetaContext::Path, &mut out);
            starts(&out);
        }
    }
}
