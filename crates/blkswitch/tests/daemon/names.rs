//! Names and words with unusual characters: their spelling in other places, and that they cannot
//! command a terminal or forge a line of the log.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use blkswitch::nbd_client::NbdClient;
use blkswitch::protocol::{Errno, route};
use serde_json::json;

use crate::fixture::{Daemon, SECTOR};
use crate::state::Kept;

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

/// A command line with words of any bytes.
fn run_bytes(daemon: &Daemon, words: &[&[u8]]) -> std::process::Output {
    daemon.client().args(words.iter().map(|word| OsStr::from_bytes(word))).output().unwrap()
}

/// The words of a table are bytes: they pass from a file, from standard input and from `--table`,
/// over a restart, and back to standard output.
#[test]
fn a_path_that_is_no_utf_8_is_a_path() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    let folder = kept.folder.path().as_os_str().as_bytes();
    // The second character would be taken for a byte if it passed unchanged.
    let names: [&[u8]; 2] = [b"disk\x80\xff", "\u{10fe80}".as_bytes()];
    let paths: Vec<Vec<u8>> = names.iter().map(|name| [folder, b"/", name].concat()).collect();
    for path in &paths {
        std::fs::write(OsStr::from_bytes(path), [7; 16 * SECTOR]).unwrap();
    }
    let table = [b"0 16 switch 2 8 0 ", &*paths[0], b" 0 ", &paths[1], b" 0\n"].concat();
    let file = [folder, b"/table\x80"].concat();
    std::fs::write(OsStr::from_bytes(&file), &table).unwrap();
    for words in [
        &[b"create".as_slice(), b"one", b"--table", &table] as &[&[u8]],
        &[b"create", b"two", &file],
        &[b"load", b"one", &file],
    ] {
        let made = run_bytes(&daemon, words);
        assert!(made.status.success(), "{words:?}: {made:?}");
    }
    let mut typed = daemon.client();
    typed.args(["create", "three"]).stdin(std::fs::File::open(OsStr::from_bytes(&file)).unwrap());
    assert!(typed.status().unwrap().success());
    let concise = daemon.run(&["table", "--concise", "three"]).stdout;
    assert!(daemon.run(&["remove", "three"]).status.success());
    assert!(run_bytes(&daemon, &[b"create", b"--concise", &concise]).status.success());
    for end in ["as made", "after a restart", "with its paths away", "with its paths back"] {
        for name in ["one", "two", "three"] {
            let shown = daemon.run(&["table", name]).stdout;
            assert_eq!(shown.trim_ascii_end(), table.trim_ascii_end(), "{name}, {end}: {shown:?}");
        }
        let deps = daemon.run(&["ls", "--tree", "-o", "blkdevname"]).stdout;
        if end != "with its paths away" {
            assert!(deps.windows(6).any(|part| part == b"disk\x80\xff"), "{deps:?}");
            assert_eq!(daemon.nbd("one").read(0, SECTOR).unwrap(), [7; SECTOR], "{end}");
            daemon.kill();
        }
        match end {
            "after a restart" => paths.iter().for_each(|path| {
                let away = [path.as_slice(), b"-away"].concat();
                std::fs::rename(OsStr::from_bytes(path), OsStr::from_bytes(&away)).unwrap();
            }),
            "with its paths away" => {
                daemon.kill();
                paths.iter().for_each(|path| {
                    let away = [path.as_slice(), b"-away"].concat();
                    std::fs::rename(OsStr::from_bytes(&away), OsStr::from_bytes(path)).unwrap();
                });
            }
            "with its paths back" => break,
            _ => {}
        }
        drop(daemon);
        daemon = kept.start();
    }
}

#[test]
fn bytes_that_are_no_utf_8_are_refused_where_they_cannot_be() {
    let kept = Kept::new();
    let daemon = kept.start();
    let text = |output: std::process::Output| String::from_utf8(output.stderr).unwrap();
    let missing = run_bytes(&daemon, &[b"create", b"x", b"--table", b"0 8 linear /no\x80 0"]);
    let shown = missing.stderr;
    assert!(shown.windows(4).any(|part| part == b"/no\x80"), "{}", shown.escape_ascii());
    let server = b"0 8 linear nbd://h/\x80 0";
    let refused = text(run_bytes(&daemon, &[b"create", b"x", b"--table", server]));
    assert!(refused.contains(r"'nbd://h/\x80' has bytes that are not UTF-8"), "{refused}");
    // As libdm does, the command line writes such a byte of a name as \xNN. The daemon has no
    // other names.
    let made = run_bytes(&daemon, &[b"create", b"n\x80", b"--table", b"0 8 zero"]);
    assert!(made.status.success(), "{}", text(made));
    assert_eq!(daemon.run(&["ls"]).stdout, b"n\\x80\t(0:0)\n");
    daemon.nbd(r"n\x80").read(0, SECTOR).unwrap();
    for (name, uuid) in [("\u{10fe80}", ""), ("y", "\u{10fe80}")] {
        let body = json!({"name": name, "uuid": uuid, "table": "0 8 zero"});
        let refused = daemon.request("POST", route::DEVICES, body).error();
        assert!(refused.reason.contains("is not UTF-8: write such a byte as \\xNN"), "{refused:?}");
    }
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
