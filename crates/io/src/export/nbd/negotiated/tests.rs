//! Request headers and their meaning. Cookies and offsets are recognised by their digits:
//! `c0..` and `0f..`.

use super::*;
use crate::export::nbd::testing::{disk, wire};
use proptest::prelude::*;

const COOKIE: u64 = 0xc0c1_c2c3_c4c5_c6c7;

fn simple() -> Negotiated {
    Negotiated::new(disk("disk"), false, false, Contexts::NONE)
}

fn all_contexts() -> Contexts {
    MetaContext::ALL.into_iter().collect()
}

fn structured() -> Negotiated {
    Negotiated::new(disk("disk"), true, false, all_contexts())
}

fn extended() -> Negotiated {
    Negotiated::new(disk("disk"), false, true, all_contexts())
}

/// A header with this command, these flags, and this range, in the form of the session.
fn header(negotiated: &Negotiated, command: u16, flags: u16, offset: u64, len: u64) -> Vec<u8> {
    let (magic, len) = match negotiated.extended {
        true => ("21e41c71", format!("{len:016x}")),
        false => ("25609513", format!("{len:08x}")),
    };
    wire(&format!("{magic} {flags:04x} {command:04x} {COOKIE:016x} {offset:016x} {len}"))
}

fn parse(negotiated: &Negotiated, command: u16, flags: u16, offset: u64, len: u64) -> Parsed {
    negotiated.parse(&header(negotiated, command, flags, offset, len))
}

/// The request without any flag.
fn plain(command: NbdCommand, offset: u64, len: u64) -> WireRequest {
    WireRequest {
        command,
        cookie: COOKIE,
        offset,
        len,
        payload: 0,
        fua: false,
        df: false,
        no_hole: false,
        fast_zero: false,
        req_one: false,
        payload_len_flag: false,
        contexts: Contexts::NONE,
    }
}

/// The error, the payload to skip, and the reason of a refusal.
fn refused(parsed: Parsed) -> (NbdError, u64, &'static str) {
    match parsed {
        Parsed::Refused { cookie: COOKIE, error, payload, reason, .. } => (error, payload, reason),
        other => panic!("not refused but {other:?}"),
    }
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

const MIB: u64 = 1 << 20;

#[test]
fn a_compact_header_byte_by_byte() {
    let negotiated = simple();
    assert_eq!(negotiated.header_len(), 28);
    let bytes = wire("25609513 0001 0001 c0c1c2c3c4c5c6c7 0000000000000e00 00000200");
    let expected = WireRequest { payload: 512, fua: true, ..plain(NbdCommand::Write, 0xe00, 512) };
    assert_eq!(negotiated.parse(&bytes), Parsed::Request(expected));
}

#[test]
fn an_extended_header_byte_by_byte() {
    let negotiated = extended();
    assert_eq!(negotiated.header_len(), 32);
    let bytes = wire("21e41c71 0021 0001 c0c1c2c3c4c5c6c7 0000000000000e00 0000000000000200");
    let expected = WireRequest {
        payload: 512,
        fua: true,
        payload_len_flag: true,
        ..plain(NbdCommand::Write, 0xe00, 512)
    };
    assert_eq!(negotiated.parse(&bytes), Parsed::Request(expected));
}

#[test]
fn flags_that_commands_have() {
    let (compact, wide) = (structured(), extended());
    let status =
        WireRequest { contexts: all_contexts(), ..plain(NbdCommand::BlockStatus, 512, 1024) };
    let zeroes = plain(NbdCommand::WriteZeroes, 512, 1024);
    for (negotiated, command, flags, expected) in [
        (&compact, READ, DF, WireRequest { df: true, ..plain(NbdCommand::Read, 512, 1024) }),
        (&compact, TRIM, FUA, WireRequest { fua: true, ..plain(NbdCommand::Trim, 512, 1024) }),
        (&compact, ZEROES, 0, zeroes),
        (
            &compact,
            ZEROES,
            FUA | NO_HOLE | FAST_ZERO,
            WireRequest { fua: true, no_hole: true, fast_zero: true, ..zeroes },
        ),
        (&compact, CACHE, 0, plain(NbdCommand::Cache, 512, 1024)),
        (&compact, STATUS, 0, status),
        (&compact, STATUS, REQ_ONE, WireRequest { req_one: true, ..status }),
        (&wide, READ, DF, WireRequest { df: true, ..plain(NbdCommand::Read, 512, 1024) }),
        (&wide, STATUS, REQ_ONE, WireRequest { req_one: true, ..status }),
        // FUA is valid on every command, but has no effect on those that do not write.
        (&compact, READ, FUA, plain(NbdCommand::Read, 512, 1024)),
        (&compact, CACHE, FUA, plain(NbdCommand::Cache, 512, 1024)),
        (&compact, STATUS, FUA, status),
    ] {
        assert_eq!(
            parse(negotiated, command, flags, 512, 1024),
            Parsed::Request(expected),
            "{command} {flags:#x}"
        );
    }
    assert_eq!(parse(&compact, FLUSH, FUA, 0, 0), Parsed::Request(plain(NbdCommand::Flush, 0, 0)));
}

#[test]
fn flags_that_commands_do_not_have() {
    let no_fast_zero = ExportInfo { can_fast_zero: false, ..disk("disk") };
    let slow = Negotiated::new(no_fast_zero, true, false, Contexts::NONE);
    let why = "a flag that this command does not have on this connection";
    for (negotiated, command, flags) in [
        (&simple(), READ, DF), // announced with structured replies only
        (&structured(), READ, NO_HOLE),
        (&structured(), READ, PAYLOAD_LEN),
        (&structured(), TRIM, NO_HOLE),
        (&structured(), CACHE, DF),
        (&structured(), ZEROES, DF),
        (&structured(), ZEROES, REQ_ONE),
        (&slow, ZEROES, FAST_ZERO),
        (&structured(), STATUS, DF),
        (&structured(), STATUS, PAYLOAD_LEN),
        (&structured(), READ, 1 << 6),
        (&structured(), ZEROES, 1 << 15),
    ] {
        let parsed = parse(negotiated, command, flags, 512, 1024);
        assert_eq!(refused(parsed), (NbdError::Inval, 0, why), "{command} {flags:#x}");
    }
    assert_eq!(refused(parse(&structured(), FLUSH, DF, 0, 0)), (NbdError::Inval, 0, why));
    // The data of a WRITE follows, whatever else is wrong with it.
    for flags in [DF, PAYLOAD_LEN, REQ_ONE | FUA] {
        assert_eq!(
            refused(parse(&structured(), WRITE, flags, 512, 1024)),
            (NbdError::Inval, 1024, why)
        );
    }
}

#[test]
fn commands_that_are_not_offered() {
    let poor = ExportInfo { can_discard: false, can_zero: false, can_cache: false, ..disk("disk") };
    let negotiated = Negotiated::new(poor, true, false, Contexts::NONE);
    for command in [TRIM, CACHE, ZEROES, STATUS] {
        let expected = (NbdError::Inval, 0, "the export did not offer this command");
        assert_eq!(refused(parse(&negotiated, command, 0, 512, 1024)), expected, "{command}");
    }
    assert_eq!(negotiated.transmission_flags(), 0b1_1000_1101);
    // Contexts need chunks, so without chunks there are none.
    let negotiated = Negotiated::new(disk("disk"), false, false, all_contexts());
    assert!(negotiated.contexts.is_empty());
    assert_eq!(refused(parse(&negotiated, STATUS, 0, 512, 1024)).0, NbdError::Inval);
}

#[test]
fn unknown_commands() {
    for command in [8, 9, 0x0101, u16::MAX] {
        assert_eq!(
            refused(parse(&structured(), command, 0, 0, 4096)),
            (NbdError::Inval, 0, "unknown command")
        );
        let parsed = parse(&extended(), command, PAYLOAD_LEN, 0, 4096);
        assert_eq!(refused(parsed), (NbdError::Inval, 4096, "unknown command"));
    }
}

#[test]
fn read_only_refuses_what_writes() {
    let export = ExportInfo { read_only: true, ..disk("disk") };
    let negotiated = Negotiated::new(export, true, false, all_contexts());
    for (command, payload) in [(WRITE, 512), (TRIM, 0), (ZEROES, 0)] {
        let expected = (NbdError::Perm, payload, "the export is read-only");
        assert_eq!(refused(parse(&negotiated, command, 0, 0, 512)), expected, "{command}");
    }
    for command in [READ, CACHE, STATUS] {
        assert!(matches!(parse(&negotiated, command, 0, 0, 512), Parsed::Request(_)), "{command}");
    }
    assert!(matches!(parse(&negotiated, FLUSH, 0, 0, 0), Parsed::Request(_)));
    // HAS_FLAGS READ_ONLY SEND_FLUSH SEND_FUA SEND_DF CAN_MULTI_CONN SEND_CACHE
    assert_eq!(negotiated.transmission_flags(), 0b101_1000_1111);
}

#[test]
fn what_an_export_is_shows_in_its_flags() {
    assert_eq!(simple().transmission_flags(), 0b1101_0110_1101);
    assert_eq!(structured().transmission_flags(), 0b1101_1110_1101);
    assert_eq!(extended().transmission_flags(), 0b1_1101_1110_1101);
    let nothing = Negotiated::new(ExportInfo::default(), false, false, Contexts::NONE);
    assert_eq!(nothing.transmission_flags(), 0b1101);
    let slow = ExportInfo { rotational: true, can_fast_zero: true, ..ExportInfo::default() };
    // FAST_ZERO needs WRITE_ZEROES.
    assert_eq!(Negotiated::new(slow, false, false, Contexts::NONE).transmission_flags(), 0b1_1101);
}

#[test]
fn the_end_of_the_export() {
    let negotiated = structured();
    for command in [READ, WRITE, TRIM, CACHE, ZEROES, STATUS] {
        assert!(
            matches!(parse(&negotiated, command, 0, MIB - 512, 512), Parsed::Request(_)),
            "{command}"
        );
        let error =
            if matches!(command, WRITE | ZEROES) { NbdError::NoSpc } else { NbdError::Inval };
        for (offset, len) in
            [(MIB - 512, 1024), (MIB, 512), (1 << 62, 512), (u64::MAX - 511, 512), (512, MIB)]
        {
            let payload = if command == WRITE { len } else { 0 };
            let expected = (error, payload, "beyond the end of the export");
            assert_eq!(
                refused(parse(&negotiated, command, 0, offset, len)),
                expected,
                "{command} {offset:#x}+{len}"
            );
        }
    }
    let wide = extended();
    for (offset, len) in [(0, !511), (512, !511), (!511, 1024)] {
        let parsed = parse(&wide, ZEROES, 0, offset, len);
        assert_eq!(refused(parsed), (NbdError::NoSpc, 0, "beyond the end of the export"));
    }
}

#[test]
fn alignment() {
    let negotiated = structured();
    for command in [READ, WRITE, TRIM, CACHE, ZEROES, STATUS] {
        for (offset, len) in [(1, 512), (512, 511), (256, 256)] {
            let payload = if command == WRITE { len } else { 0 };
            let expected = (NbdError::Inval, payload, "not aligned to the minimum block size");
            assert_eq!(
                refused(parse(&negotiated, command, 0, offset, len)),
                expected,
                "{command} {offset}+{len}"
            );
        }
    }
    let bytes =
        Negotiated::new(ExportInfo { min_block: 1, ..disk("disk") }, false, false, Contexts::NONE);
    assert_eq!(parse(&bytes, READ, 0, 3, 5), Parsed::Request(plain(NbdCommand::Read, 3, 5)));
}

#[test]
fn block_sizes_are_what_the_document_allows() {
    for (min_block, preferred_block, expected) in [
        (512, 4096, (512, 4096)),
        (1, 1, (1, 512)),
        (0, 0, (1, 512)),
        (4096, 512, (4096, 4096)),
        (513, 5000, (1024, 8192)),
        (1 << 20, u32::MAX, (65536, MAX_REQUEST_BYTES)),
    ] {
        let export = ExportInfo { min_block, preferred_block, ..disk("disk") };
        assert_eq!(export.block_sizes(), expected, "{min_block} {preferred_block}");
    }
}

#[test]
fn requests_of_no_bytes() {
    let negotiated = structured();
    for command in [READ, WRITE, TRIM, CACHE, ZEROES] {
        for offset in [0, MIB] {
            match parse(&negotiated, command, 0, offset, 0) {
                Parsed::Request(request) => assert!(request.is_empty()),
                other => panic!("{command}: {other:?}"),
            }
        }
        assert_eq!(
            refused(parse(&negotiated, command, 0, MIB + 512, 0)).2,
            "beyond the end of the export"
        );
    }
    assert_eq!(
        refused(parse(&negotiated, STATUS, 0, 0, 0)),
        (NbdError::Inval, 0, "a BLOCK_STATUS of no bytes")
    );
    let Parsed::Request(flush) = parse(&negotiated, FLUSH, 0, 0, 0) else { panic!() };
    assert!(!flush.is_empty());
    for (offset, len) in [(0, 1), (512, 0)] {
        let expected = (NbdError::Inval, 0, "a FLUSH with offset or length");
        assert_eq!(refused(parse(&negotiated, FLUSH, 0, offset, len)), expected);
    }
}

#[test]
fn requests_that_are_too_long() {
    let big = |structured, extended| {
        let export = ExportInfo { size_bytes: 1 << 40, ..disk("disk") };
        Negotiated::new(export, structured, extended, all_contexts())
    };
    let (simple, structured, extended) = (big(false, false), big(true, false), big(false, true));
    let max = u64::from(MAX_REQUEST_BYTES);
    for negotiated in [&simple, &structured, &extended] {
        assert!(matches!(parse(negotiated, READ, 0, 0, max), Parsed::Request(_)));
        // For commands without data, the size of the export is the only limit.
        for command in [TRIM, CACHE, ZEROES] {
            assert!(
                matches!(parse(negotiated, command, 0, 0, 0xffff_fe00), Parsed::Request(_)),
                "{command}"
            );
        }
    }
    assert!(matches!(parse(&extended, ZEROES, 0, 0, 1 << 40), Parsed::Request(_)));
    assert!(matches!(parse(&extended, STATUS, 0, 0, 1 << 40), Parsed::Request(_)));
    let read = "a READ above the announced maximum";
    assert_eq!(refused(parse(&simple, READ, 0, 0, max + 512)), (NbdError::Inval, 0, read));
    assert_eq!(refused(parse(&structured, READ, DF, 0, max + 512)), (NbdError::Overflow, 0, read));
    assert_eq!(refused(parse(&extended, READ, 0, 0, 1 << 40)), (NbdError::Overflow, 0, read));
    // Compact writes are skipped up to twice the maximum.
    let write = "a WRITE above the announced maximum";
    assert!(matches!(parse(&structured, WRITE, 0, 0, max), Parsed::Request(_)));
    assert_eq!(
        refused(parse(&structured, WRITE, 0, 0, max + 512)),
        (NbdError::Inval, max + 512, write)
    );
    assert_eq!(refused(parse(&simple, WRITE, 0, 0, 2 * max)), (NbdError::Inval, 2 * max, write));
    let broken = Parsed::Broken("a WRITE of more than twice the announced maximum");
    assert_eq!(parse(&simple, WRITE, 0, 0, 2 * max + 1), broken);
    // Extended payloads end the connection at once, on any command.
    assert!(matches!(parse(&extended, WRITE, PAYLOAD_LEN, 0, max), Parsed::Request(_)));
    for command in [WRITE, READ, FLUSH, STATUS, 99] {
        for len in [max + 1, u64::MAX] {
            let broken = Parsed::Broken("a payload above the announced maximum");
            assert_eq!(parse(&extended, command, PAYLOAD_LEN, 0, len), broken);
        }
    }
}

#[test]
fn payloads_in_the_wrong_place() {
    let negotiated = extended();
    for command in [READ, FLUSH, TRIM, CACHE, ZEROES] {
        let expected =
            (NbdError::Inval, 512, "a flag that this command does not have on this connection");
        assert_eq!(
            refused(parse(&negotiated, command, PAYLOAD_LEN, 0, 512)),
            expected,
            "{command}"
        );
    }
}

/// QEMU 10 sends WRITE with FUA without PAYLOAD_LEN, and its data follows.
#[test]
fn an_extended_write_without_its_flag_has_its_payload() {
    let negotiated = extended();
    for (flags, fua) in [(0, false), (FUA, true)] {
        let expected = WireRequest { payload: 512, fua, ..plain(NbdCommand::Write, 0, 512) };
        assert_eq!(parse(&negotiated, WRITE, flags, 0, 512), Parsed::Request(expected));
    }
    // If it is refused, its payload is skipped. If the payload is too long, the connection ends.
    let flag = (NbdError::Inval, 512, "a flag that this command does not have on this connection");
    assert_eq!(refused(parse(&negotiated, WRITE, NO_HOLE, 0, 512)), flag);
    let max = u64::from(MAX_REQUEST_BYTES);
    let broken = Parsed::Broken("a payload above the announced maximum");
    assert_eq!(parse(&negotiated, WRITE, FUA, 0, max + 512), broken);
}

#[test]
fn goodbye() {
    for negotiated in [simple(), structured(), extended()] {
        assert_eq!(parse(&negotiated, DISC, 0, 0, 0), Parsed::Disconnect);
        assert_eq!(parse(&negotiated, DISC, 0xffff, 1, 1), Parsed::Disconnect);
    }
}

#[test]
fn headers_that_are_none() {
    let magic = Parsed::Broken("a request does not begin with the magic number of its form");
    assert_eq!(
        simple().parse(&wire("25609514 0000 0000 c0c1c2c3c4c5c6c7 0000000000000000 00000200")),
        magic
    );
    let mut compact_in_extended = header(&simple(), READ, 0, 0, 512);
    compact_in_extended.extend([0; 4]);
    assert_eq!(extended().parse(&compact_in_extended), magic);
    assert_eq!(simple().parse(&header(&extended(), READ, 0, 0, 512)[..28]), magic);
    for len in [0, 27, 29, 32] {
        let broken = Parsed::Broken("a request header of the wrong length");
        assert_eq!(simple().parse(&vec![0; len]), broken);
    }
}

/// A BLOCK_STATUS with a payload in the notation of [`wire`].
fn status_payload(negotiated: &Negotiated, offset: u64, flags: u16, payload: &str) -> Parsed {
    let payload = wire(payload);
    match parse(negotiated, STATUS, PAYLOAD_LEN | flags, offset, payload.len() as u64) {
        Parsed::Request(request) => {
            assert_eq!((request.payload, request.len), (payload.len() as u64, 0));
            assert!(
                request.payload_len_flag
                    && payload.len() <= MAX_STATUS_PAYLOAD
                    && !request.is_empty()
            );
            negotiated.status_payload(&request, &payload)
        }
        other => other,
    }
}

#[test]
fn block_status_chooses_contexts_by_payload() {
    let negotiated = extended();
    let expected = WireRequest {
        contexts: [MetaContext::Path].into_iter().collect(),
        req_one: true,
        payload_len_flag: true,
        ..plain(NbdCommand::BlockStatus, 512, 1024)
    };
    let parsed = status_payload(&negotiated, 512, REQ_ONE, "0000000000000400 00000002");
    assert_eq!(parsed, Parsed::Request(expected));
    let Parsed::Request(both) =
        status_payload(&negotiated, 0, 0, "0000000000000400 00000002 00000001")
    else {
        panic!()
    };
    assert_eq!((both.contexts, both.payload), (all_contexts(), 0));
}

#[test]
fn block_status_payloads_that_are_wrong() {
    let negotiated = extended();
    let allocation_only =
        Negotiated::new(disk("disk"), false, true, [MetaContext::Allocation].into_iter().collect());
    let (length, context) = (
        "a BLOCK_STATUS payload of the wrong length",
        "a metadata context that is unknown or named twice",
    );
    for (negotiated, payload, expected) in [
        (&negotiated, "", (NbdError::Inval, 0, length)),
        (&negotiated, "0000000000000400", (NbdError::Inval, 8, length)),
        (&negotiated, "0000000000000400 000000", (NbdError::Inval, 11, length)),
        (&negotiated, "0000000000000400 00000001 00000002 00000001", (NbdError::Inval, 20, length)),
        (&allocation_only, "0000000000000400 00000001 00000002", (NbdError::Inval, 16, length)),
        (&allocation_only, "0000000000000400 00000002", (NbdError::Inval, 0, context)),
        (&negotiated, "0000000000000400 00000001 00000001", (NbdError::Inval, 0, context)),
        (&negotiated, "0000000000000400 00000003", (NbdError::Inval, 0, context)),
        (
            &negotiated,
            "0000000000000000 00000001",
            (NbdError::Inval, 0, "a BLOCK_STATUS of no bytes"),
        ),
        (
            &negotiated,
            "0000000000100000 00000001",
            (NbdError::Inval, 0, "beyond the end of the export"),
        ),
        (
            &negotiated,
            "0000000000000401 00000001",
            (NbdError::Inval, 0, "not aligned to the minimum block size"),
        ),
    ] {
        assert_eq!(refused(status_payload(negotiated, 512, 0, payload)), expected, "{payload}");
    }
}

proptest! {
    /// Accepted requests keep the promises of [`WireRequest`], and skipped payloads are bounded.
    #[test]
    fn accepted_requests_are_sound(
        form in 0..3,
        read_only: bool,
        min_shift in 0u32..13,
        (command, flags) in (0u16..9, prop_oneof![Just(0u16), 0u16..64, any::<u16>()]),
        offset in prop_oneof![0..2 * MIB, any::<u64>()],
        len in prop_oneof![0..2 * MIB, (0u64..2048).prop_map(|n| n * 4096), any::<u64>()],
        noise in prop::option::weighted(0.1, (0usize..32, any::<u8>())),
    ) {
        let export = ExportInfo { read_only, min_block: 1 << min_shift, ..disk("disk") };
        let negotiated = Negotiated::new(export, form == 1, form == 2, all_contexts());
        let len = if negotiated.extended { len } else { len & 0xffff_ffff };
        let mut bytes = header(&negotiated, command, flags, offset, len);
        if let Some((at, byte)) = noise
            && let Some(place) = bytes.get_mut(at)
        {
            *place = byte;
        }
        match negotiated.parse(&bytes) {
            Parsed::Request(request) => {
                prop_assert!(
                    request.offset.checked_add(request.len).unwrap() <= MIB
                        || request.payload_len_flag
                );
                let unit = 1 << min_shift;
                if !(request.command == NbdCommand::BlockStatus && request.payload_len_flag) {
                    prop_assert!(request.offset % unit == 0 && request.len % unit == 0);
                }
                prop_assert!(!read_only || !request.command.writes());
                prop_assert!(!request.fua || request.command.writes());
                match request.command {
                    NbdCommand::Write => prop_assert_eq!(request.payload, request.len),
                    NbdCommand::BlockStatus => prop_assert!(
                        request.payload <= MAX_STATUS_PAYLOAD as u64
                    ),
                    _ => prop_assert_eq!(request.payload, 0),
                }
            }
            Parsed::Refused { payload, .. } => prop_assert!(
                payload <= u64::from(MAX_SKIPPED_PAYLOAD_BYTES)
            ),
            Parsed::Disconnect | Parsed::Broken(_) => {}
        }
    }
}
