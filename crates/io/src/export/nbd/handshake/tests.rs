//! Conversations. `C:` is sent by the client, and `S:` is the answer that it must get. See [`wire`]
//! for the notation.

use super::*;
use crate::export::nbd::testing::{Shelf, disk, hex, wire};
use crate::export::nbd::{ExportInfo, MAX_LIST_BYTES, MetaContext};
use proptest::prelude::*;

/// Plays the script after the greeting. Returns the state of the connection after the last line of
/// the client.
fn talk(dir: &Shelf, script: &str) -> Next {
    let mut handshake = Handshake::new();
    talk_on(&mut handshake, dir, script)
}

fn talk_on(handshake: &mut Handshake, dir: &Shelf, script: &str) -> Next {
    let mut next = Next::More;
    let mut expected: Vec<u8> = Vec::new();
    let mut got = Vec::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (who, bytes) = line.split_once(':').expect("a line without C: or S:");
        match who {
            "S" => expected.extend(wire(bytes)),
            "C" => {
                assert_eq!(hex(&got), hex(&expected), "before {line}");
                let bytes = wire(bytes);
                let progress = handshake.input(&bytes, dir, &mut got);
                next = progress.next;
                if matches!(next, Next::More) {
                    assert_eq!(progress.consumed, bytes.len(), "after {line}");
                }
            }
            _ => panic!("{line}"),
        }
    }
    assert_eq!(hex(&got), hex(&expected), "at the end");
    next
}

fn negotiated(next: Next) -> Negotiated {
    match next {
        Next::Transmission(negotiated) => *negotiated,
        other => panic!("no session but {other:?}"),
    }
}

fn close_reason(next: Next) -> CloseReason {
    match next {
        Next::Close(reason) => reason,
        other => panic!("not closed but {other:?}"),
    }
}

fn one() -> Shelf {
    Shelf(vec![disk("disk")])
}

fn two() -> Shelf {
    Shelf(vec![disk("disk"), ExportInfo { description: String::new(), ..disk("tape") }])
}

#[test]
fn greeting() {
    let mut out = Vec::new();
    Handshake::new().greeting(&mut out);
    assert_eq!(hex(&out), hex(&wire("'NBDMAGIC' 'IHAVEOPT' 0003")));
}

#[test]
fn client_flags_that_were_not_offered_end_the_connection() {
    assert_eq!(close_reason(talk(&one(), "C: 00000004")), CloseReason::ClientFlags(4));
    assert_eq!(close_reason(talk(&one(), "C: 80000003")), CloseReason::ClientFlags(0x8000_0003));
}

#[test]
fn export_name_without_padding() {
    let negotiated = negotiated(talk(
        &two(),
        "C: 00000003
         C: 'IHAVEOPT' 00000001 ['disk']
         S: 0000000000100000 0d6d",
    ));
    assert_eq!(negotiated.export, disk("disk"));
    assert_eq!(
        (negotiated.structured, negotiated.extended, negotiated.contexts),
        (false, false, Contexts::NONE)
    );
}

#[test]
fn export_name_with_padding_for_a_client_of_the_first_newstyle() {
    let script = format!(
        "C: 00000000
         C: 'IHAVEOPT' 00000001 []
         S: 0000000000100000 0d6d {}",
        "00".repeat(124)
    );
    assert_eq!(negotiated(talk(&one(), &script)).export.name, "disk");
}

#[test]
fn export_name_fails_by_closing() {
    for (name, why) in [
        ("'tap'", "there is no export 'tap'"),
        ("", "there is no default export: name one of the list"),
        ("ff", "'\\xff' is not UTF-8 without NUL"),
    ] {
        let next = talk(&two(), &format!("C: 00000003\nC: 'IHAVEOPT' 00000001 [{name}]"));
        assert_eq!(close_reason(next), CloseReason::ExportName(why.into()));
    }
    let next = talk(&two(), "C: 00000003\nC: 'IHAVEOPT' 00000001 00001001");
    assert_eq!(
        close_reason(next),
        CloseReason::ExportName("a name of 4097 bytes; at most 4096".into())
    );
}

#[test]
fn export_name_is_not_allowed_with_extended_headers() {
    let next = talk(
        &one(),
        "C: 00000003
         C: 'IHAVEOPT' 0000000b []
         S: 0003e889045565a9 0000000b 00000001 []
         C: 'IHAVEOPT' 00000001 ['disk']",
    );
    assert_eq!(
        close_reason(next),
        CloseReason::ExportName("not allowed after EXTENDED_HEADERS".into())
    );
}

#[test]
fn go_tells_everything_that_was_asked_for() {
    let negotiated = negotiated(talk(
        &two(),
        "C: 00000003
         C: 'IHAVEOPT' 00000007 [['disk'] 0004 0000 0001 0002 0003]
         S: 0003e889045565a9 00000007 00000003 [0000 0000000000100000 0d6d]
         S: 0003e889045565a9 00000007 00000003 [0003 00000200 00001000 02000000]
         S: 0003e889045565a9 00000007 00000003 [0001 'disk']
         S: 0003e889045565a9 00000007 00000003 [0002 'a disk']
         S: 0003e889045565a9 00000007 00000001 []",
    ));
    assert_eq!(negotiated.export, disk("disk"));
}

#[test]
fn info_tells_the_same_as_go_and_stays_in_the_negotiation() {
    let next = talk(
        &one(),
        "C: 00000003
         C: 'IHAVEOPT' 00000006 [[] 0000]
         S: 0003e889045565a9 00000006 00000003 [0000 0000000000100000 0d6d]
         S: 0003e889045565a9 00000006 00000003 [0003 00000200 00001000 02000000]
         S: 0003e889045565a9 00000006 00000001 []
         C: 'IHAVEOPT' 00000007 [[] 0000]
         S: 0003e889045565a9 00000007 00000003 [0000 0000000000100000 0d6d]
         S: 0003e889045565a9 00000007 00000003 [0003 00000200 00001000 02000000]
         S: 0003e889045565a9 00000007 00000001 []",
    );
    assert_eq!(negotiated(next).export.name, "disk");
}

#[test]
fn information_that_is_unknown_or_empty_or_asked_for_twice() {
    talk(
        &two(),
        "C: 00000003
         C: 'IHAVEOPT' 00000006 [['tape'] 0004 0002 0001 0001 7777]
         S: 0003e889045565a9 00000006 00000003 [0000 0000000000100000 0d6d]
         S: 0003e889045565a9 00000006 00000003 [0003 00000200 00001000 02000000]
         S: 0003e889045565a9 00000006 00000003 [0001 'tape']
         S: 0003e889045565a9 00000006 00000001 []",
    );
}

#[test]
fn an_unknown_export_can_be_followed_by_a_known_one() {
    let next = talk(
        &two(),
        "C: 00000003
         C: 'IHAVEOPT' 00000007 [['tap'] 0000]
         S: 0003e889045565a9 00000007 80000006 ['there is no export ' 27 'tap' 27]
         C: 'IHAVEOPT' 00000006 [[] 0000]
         S: 0003e889045565a9 00000006 80000006 ['there is no default export: name one of the list']
         C: 'IHAVEOPT' 00000001 ['tape']
         S: 0000000000100000 0d6d",
    );
    assert_eq!(negotiated(next).export.name, "tape");
}

#[test]
fn lengths_that_do_not_add_up_are_invalid() {
    talk(
        &one(),
        "C: 00000003
         C: 'IHAVEOPT' 00000007 []
         S: 0003e889045565a9 00000007 80000003 ['the option ends before what its lengths announce']
         C: 'IHAVEOPT' 00000007 [00000005 'disk']
         S: 0003e889045565a9 00000007 80000003 ['the option ends before what its lengths announce']
         C: 'IHAVEOPT' 00000007 [['disk'] 0002 0003]
         S: 0003e889045565a9 00000007 80000003 ['the option ends before what its lengths announce']
         C: 'IHAVEOPT' 00000006 [['disk'] 0001 0003 00]
         S: 0003e889045565a9 00000006 80000003 ['1 bytes behind the last information request']
         C: 'IHAVEOPT' 00000007 [00001001 'disk']
         S: 0003e889045565a9 00000007 80000003 ['a string of 4097 bytes; at most 4096']
         C: 'IHAVEOPT' 00000007 [['di' 00 'k'] 0000]
         S: 0003e889045565a9 00000007 80000003 [27 'di\\x00k' 27 ' is not UTF-8 without NUL']
         C: 'IHAVEOPT' 00000007 [[c3] 0000]
         S: 0003e889045565a9 00000007 80000003 [27 '\\xc3' 27 ' is not UTF-8 without NUL']",
    );
}

#[test]
fn list() {
    talk(
        &two(),
        "C: 00000003
         C: 'IHAVEOPT' 00000003 []
         S: 0003e889045565a9 00000003 00000002 [['disk'] 'a disk']
         S: 0003e889045565a9 00000003 00000002 [['tape']]
         S: 0003e889045565a9 00000003 00000001 []
         C: 'IHAVEOPT' 00000003 ['*']
         S: 0003e889045565a9 00000003 80000003 ['option 3 has no data']",
    );
    talk(
        &Shelf(Vec::new()),
        "C: 00000003
         C: 'IHAVEOPT' 00000003 []
         S: 0003e889045565a9 00000003 00000001 []",
    );
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    for data in ["[]", "['so long']"] {
        let next = talk(
            &one(),
            &format!(
                "C: 00000003\nC: 'IHAVEOPT' 00000002 {data}\nS: 0003e889045565a9 00000002 00000001 []"
            ),
        );
        assert_eq!(close_reason(next), CloseReason::Abort);
    }
}

#[test]
fn there_is_no_tls() {
    talk(
        &one(),
        "C: 00000003
         C: 'IHAVEOPT' 00000005 []
         S: 0003e889045565a9 00000005 80000001 ['there is no TLS here']
         C: 'IHAVEOPT' 00000005 [00]
         S: 0003e889045565a9 00000005 80000003 ['option 5 has no data']",
    );
}

#[test]
fn unknown_options_are_skipped() {
    talk(
        &one(),
        "C: 00000003
         C: 'IHAVEOPT' 00000004 ['PEEK_EXPORT'] 'IHAVEOPT' ffffffff []
         S: 0003e889045565a9 00000004 80000001 ['option 4 is not known here']
         S: 0003e889045565a9 ffffffff 80000001 ['option 4294967295 is not known here']
         C: 'IHAVEOPT' 00000003 []
         S: 0003e889045565a9 00000003 00000002 [['disk'] 'a disk']
         S: 0003e889045565a9 00000003 00000001 []",
    );
}

#[test]
fn long_options_are_skipped_as_they_stream() {
    // An option, its longest announced length, and the answer.
    for (option, len, answer) in [
        (77u32, MAX_SKIPPED_OPTION_BYTES, "8000 0001 ['option 77 is not known here']"),
        (7, 65537, "8000 0009 ['option 7 with 65537 bytes of data; at most 65536 are read']"),
        (10, 65537, "8000 0009 ['option 10 with 65537 bytes of data; at most 65536 are read']"),
        (8, 70000, "8000 0003 ['option 8 has no data']"),
    ] {
        let mut handshake = Handshake::new();
        let mut out = Vec::new();
        let header =
            [b"\0\0\0\x03IHAVEOPT", &option.to_be_bytes()[..], &len.to_be_bytes()].concat();
        assert_eq!(handshake.input(&header, &one(), &mut out).consumed, header.len());
        let mut left = len as usize;
        while left > 0 {
            assert_eq!(out, [], "no answer before the last byte");
            let piece = left.min(50_000);
            assert_eq!(handshake.input(&vec![0xaa; piece], &one(), &mut out).consumed, piece);
            left -= piece;
        }
        assert_eq!(hex(&out), hex(&wire(&format!("0003e889045565a9 {option:08x} {answer}"))));
        out.clear();
        handshake.input(b"IHAVEOPT\0\0\0\x08\0\0\0\0", &one(), &mut out);
        assert_eq!(hex(&out), hex(&wire("0003e889045565a9 00000008 00000001 []")));
    }
}

#[test]
fn the_longest_option_that_is_read() {
    let mut handshake = Handshake::new();
    let mut out = Vec::new();
    let requests = (MAX_OPTION_BYTES - 4 - 4 - 2) / 2;
    let mut input = wire("00000003 'IHAVEOPT' 00000006 00010000 ['disk']");
    input.extend((requests as u16).to_be_bytes());
    input.extend(std::iter::repeat_n([0x77, 0x77], requests).flatten());
    let all_but_one = &input[..input.len() - 1];
    let progress = handshake.input(all_but_one, &one(), &mut out);
    assert!(matches!(progress.next, Next::More));
    let kept = &input[progress.consumed..];
    assert_eq!((kept.len(), out.len()), (MAX_OPTION_BYTES, 0));
    handshake.input(kept, &one(), &mut out);
    assert_eq!(hex(&out[out.len() - 20..]), hex(&wire("0003e889045565a9 00000006 00000001 []")));
}

#[test]
fn options_that_are_no_negotiation_end_the_connection() {
    let next = talk(&one(), "C: 00000003\nC: 'IHAVEOPT' 00000007 02000001");
    assert_eq!(close_reason(next), CloseReason::OptionTooLong { option: 7, bytes: (32 << 20) + 1 });
    let next = talk(&one(), "C: 00000003\nC: 'IHAVEOPS' 00000007 00000000");
    assert_eq!(close_reason(next), CloseReason::OptionMagic(u64::from_be_bytes(*b"IHAVEOPS")));
}

#[test]
fn structured_replies_make_a_difference_to_the_flags() {
    let next = talk(
        &one(),
        "C: 00000003
         C: 'IHAVEOPT' 00000008 []
         S: 0003e889045565a9 00000008 00000001 []
         C: 'IHAVEOPT' 00000008 ['x']
         S: 0003e889045565a9 00000008 80000003 ['option 8 has no data']
         C: 'IHAVEOPT' 00000001 ['disk']
         S: 0000000000100000 0ded",
    );
    let negotiated = negotiated(next);
    assert_eq!((negotiated.structured, negotiated.extended), (true, false));
}

#[test]
fn extended_headers_take_precedence() {
    let next = talk(
        &one(),
        "C: 00000003
         C: 'IHAVEOPT' 00000008 []
         S: 0003e889045565a9 00000008 00000001 []
         C: 'IHAVEOPT' 0000000b [00]
         S: 0003e889045565a9 0000000b 80000003 ['option 11 has no data']
         C: 'IHAVEOPT' 0000000b []
         S: 0003e889045565a9 0000000b 00000001 []
         C: 'IHAVEOPT' 00000008 []
         S: 0003e889045565a9 00000008 8000000a ['extended headers were negotiated and include structured replies']
         C: 'IHAVEOPT' 00000007 [['disk'] 0000]
         S: 0003e889045565a9 00000007 00000003 [0000 0000000000100000 0ded]
         S: 0003e889045565a9 00000007 00000003 [0003 00000200 00001000 02000000]
         S: 0003e889045565a9 00000007 00000001 []",
    );
    let negotiated = negotiated(next);
    assert_eq!((negotiated.structured, negotiated.extended), (true, true));
}

#[test]
fn contexts_need_chunks() {
    let refused = "['metadata contexts need structured replies or extended headers first']";
    talk(
        &one(),
        &format!(
            "C: 00000003
             C: 'IHAVEOPT' 00000009 [['disk'] 00000000]
             S: 0003e889045565a9 00000009 80000003 {refused}
             C: 'IHAVEOPT' 0000000a [['disk'] 00000000]
             S: 0003e889045565a9 0000000a 80000003 {refused}"
        ),
    );
}

#[test]
fn list_meta_context() {
    talk(
        &one(),
        "C: 00000003 'IHAVEOPT' 00000008 []
         S: 0003e889045565a9 00000008 00000001 []
         C: 'IHAVEOPT' 00000009 [['disk'] 00000000]
         S: 0003e889045565a9 00000009 00000004 [00000000 'base:allocation']
         S: 0003e889045565a9 00000009 00000004 [00000000 'blkswitch:path']
         S: 0003e889045565a9 00000009 00000001 []
         C: 'IHAVEOPT' 00000009 [['disk'] 00000001 ['base:']]
         S: 0003e889045565a9 00000009 00000004 [00000000 'base:allocation']
         S: 0003e889045565a9 00000009 00000001 []
         C: 'IHAVEOPT' 00000009 [['disk'] 00000003 ['qemu:'] ['blkswitch:path'] ['blkswitch:']]
         S: 0003e889045565a9 00000009 00000004 [00000000 'blkswitch:path']
         S: 0003e889045565a9 00000009 00000001 []
         C: 'IHAVEOPT' 00000009 [[] 00000001 ['base:nothing']]
         S: 0003e889045565a9 00000009 00000001 []",
    );
}

/// The server confirms the name of a connection with a number of its own. The last name counts.
#[test]
fn the_client_names_the_connections_that_it_replaces() {
    let next = talk(
        &one(),
        "C: 00000003 'IHAVEOPT' 00000008 []
         S: 0003e889045565a9 00000008 00000001 []
         C: 'IHAVEOPT' 00000009 [['disk'] 00000001 ['blkswitch:replaces=a b']]
         S: 0003e889045565a9 00000009 80000003 [\
            'blkswitch:replaces=' 27 'a b' 27 ': 1 to 64 letters, digits, dots and hyphens']
         C: 'IHAVEOPT' 00000009 [['disk'] 00000001 ['blkswitch:replaces=a.1']]
         S: 0003e889045565a9 00000009 00000004 [00000000 'blkswitch:replaces=a.1@0000000000001234']
         S: 0003e889045565a9 00000009 00000001 []
         C: 'IHAVEOPT' 00000001 ['disk']
         S: 0000000000100000 0ded",
    );
    assert_eq!(negotiated(next).replaces.as_deref(), Some("a.1"));
}

#[test]
fn set_meta_context_selects_by_name_only() {
    let next = talk(
        &one(),
        "C: 00000003 'IHAVEOPT' 00000008 []
         S: 0003e889045565a9 00000008 00000001 []
         C: 'IHAVEOPT' 0000000a [['disk'] 00000004 ['base:'] ['blkswitch:path'] ['blkswitch:'] ['x-y:z']]
         S: 0003e889045565a9 0000000a 00000004 [00000002 'blkswitch:path']
         S: 0003e889045565a9 0000000a 00000001 []
         C: 'IHAVEOPT' 00000001 ['disk']
         S: 0000000000100000 0ded",
    );
    assert_eq!(negotiated(next).contexts.iter().collect::<Vec<_>>(), [MetaContext::Path]);
}

/// The flags of the export say that BLOCK_STATUS may choose among contexts.
#[test]
fn set_meta_context_with_extended_headers() {
    let next = talk(
        &one(),
        "C: 00000003 'IHAVEOPT' 0000000b []
         S: 0003e889045565a9 0000000b 00000001 []
         C: 'IHAVEOPT' 0000000a [['disk'] 00000002 ['blkswitch:path'] ['base:allocation']]
         S: 0003e889045565a9 0000000a 00000004 [00000001 'base:allocation']
         S: 0003e889045565a9 0000000a 00000004 [00000002 'blkswitch:path']
         S: 0003e889045565a9 0000000a 00000001 []
         C: 'IHAVEOPT' 00000007 [['disk'] 0000]
         S: 0003e889045565a9 00000007 00000003 [0000 0000000000100000 1ded]
         S: 0003e889045565a9 00000007 00000003 [0003 00000200 00001000 02000000]
         S: 0003e889045565a9 00000007 00000001 []",
    );
    assert_eq!(negotiated(next).contexts, MetaContext::ALL.into_iter().collect());
}

const SELECT: &str = "
    C: 00000003 'IHAVEOPT' 00000008 []
    S: 0003e889045565a9 00000008 00000001 []
    C: 'IHAVEOPT' 0000000a [['disk'] 00000001 ['base:allocation']]
    S: 0003e889045565a9 0000000a 00000004 [00000001 'base:allocation']
    S: 0003e889045565a9 0000000a 00000001 []";

const GO: &str = "
    C: 'IHAVEOPT' 00000001 ['disk']
    S: 0000000000100000 0ded";

#[test]
fn a_selection_is_replaced_also_by_one_that_fails() {
    for (replacement, expected) in [
        ("", [MetaContext::Allocation].into_iter().collect()),
        (
            "C: 'IHAVEOPT' 0000000a [['disk'] 00000001 ['blkswitch:path']]
             S: 0003e889045565a9 0000000a 00000004 [00000002 'blkswitch:path']
             S: 0003e889045565a9 0000000a 00000001 []",
            [MetaContext::Path].into_iter().collect(),
        ),
        (
            "C: 'IHAVEOPT' 0000000a [['disk'] 00000000]
             S: 0003e889045565a9 0000000a 00000001 []",
            Contexts::NONE,
        ),
        (
            "C: 'IHAVEOPT' 0000000a [['disc'] 00000001 ['blkswitch:path']]
             S: 0003e889045565a9 0000000a 80000006 ['there is no export ' 27 'disc' 27]",
            Contexts::NONE,
        ),
        (
            "C: 'IHAVEOPT' 0000000a ['disk']
             S: 0003e889045565a9 0000000a 80000003 ['a string of 1684632427 bytes; at most 4096']",
            Contexts::NONE,
        ),
    ] {
        let next = talk(&one(), &format!("{SELECT}\n{replacement}\n{GO}"));
        assert_eq!(negotiated(next).contexts, expected, "{replacement}");
    }
}

#[test]
fn a_selection_counts_for_the_name_it_was_made_for() {
    let go_tape = "C: 'IHAVEOPT' 00000001 ['tape']\nS: 0000000000100000 0ded";
    assert_eq!(negotiated(talk(&two(), &format!("{SELECT}\n{go_tape}"))).contexts, Contexts::NONE);
    let go_default = "C: 'IHAVEOPT' 00000001 []\nS: 0000000000100000 0ded";
    assert_eq!(
        negotiated(talk(&one(), &format!("{SELECT}\n{go_default}"))).contexts,
        Contexts::NONE
    );
}

#[test]
fn malformed_queries() {
    talk(
        &one(),
        "C: 00000003 'IHAVEOPT' 00000008 []
         S: 0003e889045565a9 00000008 00000001 []
         C: 'IHAVEOPT' 00000009 [['disk'] 00000001 ['base']]
         S: 0003e889045565a9 00000009 80000003 ['query ' 27 'base' 27 ' is not of the form namespace:leaf']
         C: 'IHAVEOPT' 00000009 [['disk'] 00000002 ['base:']]
         S: 0003e889045565a9 00000009 80000003 ['the option ends before what its lengths announce']
         C: 'IHAVEOPT' 00000009 [['disk'] 00000000 ['base:']]
         S: 0003e889045565a9 00000009 80000003 ['9 bytes behind the last query']
         C: 'IHAVEOPT' 00000009 [['disk'] 00000041]
         S: 0003e889045565a9 00000009 80000009 ['65 queries; at most 64 are answered']
         C: 'IHAVEOPT' 00000009 [['disk'] 00000001 [ff]]
         S: 0003e889045565a9 00000009 80000003 [27 '\\xff' 27 ' is not UTF-8 without NUL']",
    );
}

#[test]
fn texts_of_errors_are_short_and_cut_between_characters() {
    let mut out = Vec::new();
    let name = "ü".repeat(2048);
    let input = wire(&format!("00000003 'IHAVEOPT' 00000006 [['{name}'] 0000]"));
    Handshake::new().input(&input, &one(), &mut out);
    let text = str::from_utf8(&out[20..]).unwrap();
    assert_eq!(text, format!("there is no export '{}", "ü".repeat(118)));
    assert_eq!(text.len(), 256);
}

#[test]
fn a_server_that_goes_away_says_so() {
    let mut handshake = Handshake::new();
    handshake.shut_down();
    let next = talk_on(
        &mut handshake,
        &one(),
        "C: 00000003
         C: 'IHAVEOPT' 00000007 [['disk'] 0000]
         S: 0003e889045565a9 00000007 80000007 ['the server is shutting down']
         C: 'IHAVEOPT' 00000004 []
         S: 0003e889045565a9 00000004 80000001 ['option 4 is not known here']
         C: 'IHAVEOPT' 00000002 []
         S: 0003e889045565a9 00000002 00000001 []",
    );
    assert_eq!(close_reason(next), CloseReason::Abort);
    let mut handshake = Handshake::new();
    handshake.shut_down();
    let next = talk_on(&mut handshake, &one(), "C: 00000003\nC: 'IHAVEOPT' 00000001 ['disk']");
    assert_eq!(close_reason(next), CloseReason::ExportName("the server is shutting down".into()));
}

#[test]
fn what_follows_the_handshake_is_left_alone() {
    let mut handshake = Handshake::new();
    let mut out = Vec::new();
    let input = wire("00000003 'IHAVEOPT' 00000001 ['disk'] 25609513");
    let progress = handshake.input(&input, &one(), &mut out);
    assert_eq!(progress.consumed, input.len() - 4);
    negotiated(progress.next);
    let progress = handshake.input(&input, &one(), &mut out);
    assert_eq!((progress.consumed, close_reason(progress.next)), (0, CloseReason::Over));
}

#[test]
fn a_flood_of_options_ends_the_connection() {
    let mut handshake = Handshake::new();
    let mut out = Vec::new();
    let mut input = wire("00000003");
    input.extend(wire("'IHAVEOPT' 00000008 []").repeat(MAX_OPTIONS_PER_CONNECTION as usize));
    assert!(matches!(handshake.input(&input, &one(), &mut out).next, Next::More));
    assert_eq!(out.len(), 20 * MAX_OPTIONS_PER_CONNECTION as usize);
    let next = handshake.input(&wire("'IHAVEOPT' 00000008 []"), &one(), &mut out).next;
    assert_eq!(close_reason(next), CloseReason::TooManyOptions);
}

#[test]
fn a_list_is_cut_and_many_lists_end_the_connection() {
    let many = Shelf((0..40_000).map(|number| disk(&format!("disk{number:05}"))).collect());
    let mut handshake = Handshake::new();
    let mut out = Vec::new();
    handshake.input(&wire("00000003 'IHAVEOPT' 00000003 []"), &many, &mut out);
    let listed = MAX_LIST_BYTES / 39 + 1;
    let end = format!(
        "0003e889045565a9 00000003 80000009 ['the list is cut at 1048576 bytes; {} more exports exist']",
        40_000 - listed
    );
    let end = wire(&end);
    assert_eq!(out.len(), listed * 39 + end.len());
    assert_eq!(hex(&out[listed * 39..]), hex(&end));
    let next = handshake.input(&wire("'IHAVEOPT' 00000003 []").repeat(100), &many, &mut out).next;
    assert_eq!(close_reason(next), CloseReason::TooMuchAnswered);
    assert!(out.len() < MAX_ANSWER_BYTES + 2 * MAX_LIST_BYTES, "{}", out.len());
}

/// An option as clients send it, or as they should not.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec![&b"disk"[..], b"", b"tape", b"nothing", b"\xff"]);
    let query =
        prop::sample::select(vec!["base:", "base:allocation", "blkswitch:path", "x:", "no"]);
    let with_len = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let info =
        (name.clone(), prop::collection::vec(0u16..5, 0..5)).prop_map(move |(name, wanted)| {
            let list: Vec<u8> = wanted.iter().flat_map(|kind| kind.to_be_bytes()).collect();
            [with_len(name), (wanted.len() as u16).to_be_bytes().to_vec(), list].concat()
        });
    let contexts =
        (name.clone(), prop::collection::vec(query, 0..4)).prop_map(move |(name, queries)| {
            let list: Vec<u8> =
                queries.iter().flat_map(|query| with_len(query.as_bytes())).collect();
            [with_len(name), (queries.len() as u32).to_be_bytes().to_vec(), list].concat()
        });
    let noise = prop::collection::vec(any::<u8>(), 0..40);
    let option = prop_oneof![
        1 => (Just(opt::EXPORT_NAME), name.prop_map(<[u8]>::to_vec)),
        6 => (prop_oneof![9 => Just(opt::INFO), 1 => Just(opt::GO)], info),
        6 => (prop_oneof![Just(opt::LIST_META_CONTEXT), Just(opt::SET_META_CONTEXT)], contexts),
        6 => (
            prop_oneof![
                Just(opt::LIST),
                Just(opt::STRUCTURED_REPLY),
                Just(opt::EXTENDED_HEADERS)
            ],
            Just(Vec::new()),
        ),
        4 => (0u32..14, noise),
    ];
    option.prop_map(|(option, data)| {
        [b"IHAVEOPT", &option.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), &data].concat()
    })
}

/// Feeds the stream in parts and keeps the rest that is not consumed, as a connection does.
fn in_pieces(stream: &[u8], cuts: &[usize]) -> (Vec<u8>, usize, String) {
    let (mut handshake, mut out, mut kept) = (Handshake::new(), Vec::new(), Vec::new());
    let mut total = 0;
    let mut pieces: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    pieces.extend([0, stream.len()]);
    pieces.sort_unstable();
    for ends in pieces.windows(2) {
        kept.extend_from_slice(&stream[ends[0]..ends[1]]);
        let progress = handshake.input(&kept, &two(), &mut out);
        kept.drain(..progress.consumed);
        assert!(kept.len() <= MAX_OPTION_BYTES || !matches!(progress.next, Next::More));
        total += progress.consumed;
        if !matches!(progress.next, Next::More) {
            return (out, total, format!("{:?}", progress.next));
        }
    }
    (out, total, "More".into())
}

proptest! {
    #[test]
    fn where_the_stream_is_cut_makes_no_difference(
        options in prop::collection::vec(any_option(), 0..12),
        cuts in prop::collection::vec(any::<usize>(), 0..30),
    ) {
        let stream = [b"\0\0\0\x03".to_vec(), options.concat()].concat();
        let whole = in_pieces(&stream, &[]);
        prop_assert_eq!(&in_pieces(&stream, &cuts), &whole);
        let every: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(&in_pieces(&stream, &every), &whole);
    }

    #[test]
    fn noise_is_answered_within_bounds(
        flags in 0u32..5,
        noise in prop::collection::vec(any::<u8>(), 0..5000),
        head in prop::collection::vec(any_option(), 0..3),
    ) {
        let stream = [&flags.to_be_bytes()[..], &head.concat(), b"IHAVEOPT", &noise].concat();
        let (out, total, _) = in_pieces(&stream, &[17, 900]);
        prop_assert!(total <= stream.len());
        prop_assert!(out.len() <= stream.len() / 16 * 400 + 1000);
    }
}
