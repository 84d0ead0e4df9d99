//! Sends hostile bytes as NBD requests. Nothing panics, accepted requests lie inside the export,
//! and a client can parse every reply to them.
//!
//! The first byte chooses the negotiated features, the second and third the export. Then come
//! headers, each without its magic number (which is sometimes wrong), and payloads of BLOCK_STATUS.

#![no_main]

use blkswitch_io::export::nbd::negotiated::MAX_STATUS_PAYLOAD;
use blkswitch_io::export::nbd::{
    Contexts, ExportInfo, MAX_REPLY_HEADER, MAX_REQUEST_BYTES, MAX_SKIPPED_PAYLOAD_BYTES,
    NbdCommand,
    MetaContext, Parsed, WireRequest, Negotiated,
};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 1 << 40;

fuzz_target!(|data: &[u8]| {
    let [form, flags, block, rest @ ..] = data else { return };
    let bit = |n: u8| flags & (1 << n) != 0;
    let export = ExportInfo {
        size_bytes: SIZE,
        read_only: bit(0),
        can_discard: bit(1),
        can_zero: bit(2),
        can_fast_zero: bit(3),
        can_cache: bit(4),
        min_block: 1 << (block % 17),
        ..ExportInfo::default()
    };
    let contexts: Contexts =
        MetaContext::ALL.into_iter().filter(|context| form & (1 << context.id()) != 0).collect();
    let negotiated = Negotiated::new(export, form & 1 != 0, form & 8 != 0, contexts);
    let body = negotiated.header_len() - 4;
    let mut rest = rest;
    while let Some((header, behind)) = rest.split_at_checked(body) {
        rest = behind;
        let good: u32 = if negotiated.extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let magic = if header[0] == 0xff { !good } else { good };
        match negotiated.parse(&[&magic.to_be_bytes(), header].concat()) {
            Parsed::Request(request)
                if request.command == NbdCommand::BlockStatus && request.payload > 0 =>
            {
                assert!(request.payload <= MAX_STATUS_PAYLOAD as u64);
                let Some((payload, behind)) = rest.split_at_checked(request.payload as usize)
                else {
                    return;
                };
                rest = behind;
                match negotiated.status_payload(&request, payload) {
                    Parsed::Request(request) => carry_out(&negotiated, &request, payload),
                    refused => refuse(&negotiated, refused),
                }
            }
            Parsed::Request(request) => carry_out(&negotiated, &request, rest),
            Parsed::Disconnect | Parsed::Broken(_) => return,
            refused => refuse(&negotiated, refused),
        }
    }
});

/// Checks the guarantees for a request and answers it.
fn carry_out(negotiated: &Negotiated, request: &WireRequest, noise: &[u8]) {
    assert!(request.offset.checked_add(request.len).is_some_and(|end| end <= SIZE));
    assert!(!request.command.writes() || !negotiated.export.read_only);
    let block = u64::from(negotiated.export.block_sizes().0);
    assert!(request.offset.is_multiple_of(block) && request.len.is_multiple_of(block));
    let mut out = [0; MAX_REPLY_HEADER];
    let written = match request.command {
        NbdCommand::Read => {
            assert!(request.len <= u64::from(MAX_REQUEST_BYTES));
            negotiated.read_ok(request.cookie, request.offset, request.len, &mut out)
        }
        NbdCommand::BlockStatus => return report(negotiated, request, noise),
        _ => negotiated.ok(request.cookie, request.offset, &mut out),
    };
    let data = if request.command == NbdCommand::Read { request.len } else { 0 };
    check_reply(negotiated, &out[..written], data);
}

fn refuse(negotiated: &Negotiated, refused: Parsed) {
    let Parsed::Refused { cookie, offset, error, payload, reason, .. } = refused else {
        panic!("{refused:?}")
    };
    assert!(payload <= u64::from(MAX_SKIPPED_PAYLOAD_BYTES));
    let mut out = [0; MAX_REPLY_HEADER];
    let written = negotiated.error(cookie, offset, error, reason, &mut out);
    check_reply(negotiated, &out[..written], 0);
}

/// Answers a BLOCK_STATUS with extents made of noise.
fn report(negotiated: &Negotiated, request: &WireRequest, noise: &[u8]) {
    assert!(request.len > 0 && !request.contexts.is_empty());
    let mut memory = vec![0; noise.len() * 4];
    for context in request.contexts.iter() {
        let mut writer = negotiated.block_status(request, context, &mut memory);
        let _ = noise.iter().all(|&byte| writer.extent(1 << (byte % 64), u32::from(byte >> 6)));
        if let Some(written) = writer.finish() {
            check_reply(negotiated, &memory[..written], 0);
        }
    }
}

/// Checks the lengths on the wire: `reply` and `data` bytes behind it are one message.
fn check_reply(negotiated: &Negotiated, reply: &[u8], data: u64) {
    let number =
        |bytes: &[u8]| bytes.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let (header, announced) = match (negotiated.structured, negotiated.extended) {
        (_, true) => (32, number(&reply[24..32])),
        (true, false) => (20, number(&reply[16..20])),
        (false, false) => return assert_eq!(reply.len(), 16),
    };
    assert_eq!(reply.len() as u64 - header + data, announced);
}
