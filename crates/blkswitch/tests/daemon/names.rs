//! Names and words with unusual characters: their spelling in other places, and that they cannot
//! command a terminal or forge a line of the log.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use blkswitch::nbd_client::NbdClient;
use blkswitch::protocol::{Errno, route};
use serde_json::json;

use crate::fixture::{Daemon, SECTOR};

#[test]
fn an_export_has_the_name_that_is_meant() {
    let daemon = Daemon::start();
    let ram = daemon.path("ram0").display().to_string();
    let table = format!("0 16 linear {ram} 0");
    for name in ["my disk", "größe 💾"] {
        let made = daemon.run(&["create", name, "--table", &table]);
        assert!(made.status.success(), "{made:?}");
        assert_eq!(daemon.nbd(name).size(), 16 * SECTOR as u64, "{name}");
    }
    let stored = String::from_utf8(daemon.run(&["ls"]).stdout).unwrap();
    assert!(stored.contains("my\\x20disk\t(0:0)\n"), "as dmsetup shows it: {stored}");
    daemon.nbd("my\\x20disk").read(0, SECTOR).unwrap();
    // Names with one export name belong to one device.
    assert_eq!(daemon.create("my disk", &table).error().errno, Errno::Ebusy);
    assert!(daemon.run(&["rename", "my disk", "yours"]).status.success());
    daemon.create("my disk", &table).expect_ok();
    // A printed table with a space in a name can be loaded again.
    let upper = r"0 8 linear /dev/blkswitch/my\x20disk 8";
    daemon.create("upper", upper).expect_ok();
    let shown = String::from_utf8(daemon.run(&["table", "upper"]).stdout).unwrap();
    assert_eq!(shown.trim(), upper);
    daemon.on("PUT", route::TABLE, "upper", json!({"table": shown})).expect_ok();
}

#[test]
fn words_that_are_no_utf_8_pass_as_bytes() {
    let daemon = Daemon::start();
    let ram = daemon.path("ram0").display().to_string();
    daemon.create("sw", &format!("0 16 switch 2 8 0 {ram} 0 {ram} 16")).expect_ok();
    let word = OsStr::from_bytes(b"set_region_mappings \x805:1");
    let refused = daemon.client().args(["message", "sw", "0"]).arg(word).output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("device-mapper: message ioctl on sw"), "{error}");
    assert!(error.contains("device-mapper: switch: invalid"), "the kernel's text: {error}");
    let missing = daemon.client().arg("info").arg(OsStr::from_bytes(b"\xff")).output().unwrap();
    let error = String::from_utf8(missing.stderr).unwrap();
    assert!(error.starts_with("Device does not exist.\n  there is no device '\\xff': "), "{error}");
}

/// Escape sequences and line breaks reach neither a terminal nor the log.
#[test]
fn nothing_that_comes_from_outside_commands_a_terminal_or_forges_a_line_of_the_log() {
    let daemon = Daemon::start_with(&["--log-level", "trace"]);
    let evil = "x\u{1b}[2J\nERROR forged";
    for (name, table) in
        [(evil, "0 8 zero"), ("plain", "0 8 linear /\u{1b}[2J 0"), ("plain", "0 8 \u{9b}x")]
    {
        let refused = daemon.create(name, table).error();
        assert_eq!(refused.errno, Errno::Einval);
        assert!(!refused.reason.contains(char::is_control), "{:?}", refused.reason);
    }
    daemon.create("disk", "0 8 zero").expect_ok();
    assert!(NbdClient::unix(&daemon.path("nbd.sock"), evil).is_err());
    let log = daemon.log();
    assert!(!log.contains('\u{1b}') && !log.lines().any(|line| line.starts_with("ERROR")), "{log}");
}
