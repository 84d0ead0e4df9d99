//! Typical mistakes of a newcomer, and the program's answers. Each answer quotes the input and says
//! what is allowed or what to do.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::fixture::{Daemon, program};

/// A command, and parts of the expected answer.
const WRONG: &[(&[&str], &[&str])] = &[
    (
        &["create", "x", "--table", "0 1G switch"],
        &["unknown target type", "without a unit, so 1G is 2097152"],
    ),
    (
        &["create", "x", "--table", "0 8 swicth 1 8 0 mem:1M 0"],
        &["'swicth': did you mean 'switch'?", "error, linear, multipath, striped, switch, zero"],
    ),
    (
        &["create", "x", "--table", "2048 switch"],
        &["Invalid format on line 1 of table .\n", "'2048 switch': a line is START LENGTH TYPE"],
    ),
    (
        &["create", "x", "--table", "0 8 switch 1 8 0 low 0"],
        &["'low' is a device's name", "/dev/blkswitch/low"],
    ),
    (
        &["create", "x", "--table", "0 8 linear /dev/blkswitch/lov 0"],
        &["-ENOENT", "there is no device 'lov': did you mean 'low'?"],
    ),
    (
        &["create", "x", "--table", "0 8 linear nbd+unix:///x 0"],
        &["'nbd+unix:///x': socket=PATH is missing"],
    ),
    (
        &["create", "x", "--table", "0 8 linear FOLDER/no/such/a 0"],
        &["'FOLDER/no/such/a': there is no folder 'FOLDER/no'", "mkdir -p"],
    ),
    (
        &["create", "x", "--make-files", "--table", "0 8 switch 2 8 0 FOLDER/no/b 0 FOLDER/no/a 0"],
        &["'FOLDER/no/a': there is no folder 'FOLDER/no'"],
    ),
    (
        &["create", "x", "--table", "0 8 linear FOLDER/nosuch 0"],
        &["'FOLDER/nosuch': there is no such file", "--make-files"],
    ),
    (&["create", "x", "FOLDER/nosuch"], &["Couldn't open 'FOLDER/nosuch'", "No such file"]),
    (&["create", "y", "--table", "0 8 zero", "--minor", "7"], &["missing: --major <MAJOR>"]),
    (&["create"], &["Please provide a name", "create NAME --table"]),
    (&["messag", "sw", "0"], &["Unknown command.\n", "'messag': did you mean 'message'?"]),
    (&["map", "foo"], &["Unknown command.\n", "'foo': map has show, export, import", "Usage: "]),
    (&["state", "chek"], &["'chek': did you mean 'check'?"]),
    (&["help", "mesage"], &["no verb 'mesage': did you mean 'message'?"]),
    (&["ls", "extra"], &["Incorrect number", "'extra' is one word too many"]),
    (&["attach", "low"], &["missing: <--ublk|--vhost-user>"]),
    (&["map", "show", "mp"], &["the device is multipath, and only switch has a region map"]),
    (&["map", "export", "low"], &["the device is zero, and only switch has a region map"]),
    (&["map", "show", "low", "--sector", "3"], &["the segment at sector 3 is zero"]),
    (&["message", "low", "0", "x"], &["only switch and multipath do"]),
    (
        &["message", "sw", "0", "set_region_mapings", "0:0"],
        &["'set_region_mapings'", "did you mean 'set_region_mappings'?", "get_region_mappings"],
    ),
    (&["message", "sw", "x", "set_region_mappings"], &["Invalid sector.\n", "'x': ", "decimal"]),
    (&["info", "loww"], &["Device does not exist.\n", "'loww': did you mean 'low'?"]),
    (&["resume", "loww"], &["there is no device 'loww': did you mean 'low'?"]),
];

fn said(command: &mut Command) -> String {
    let ran = command.output().unwrap();
    let text = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{text}");
    text
}

fn stage() -> Daemon {
    let daemon = Daemon::start();
    let ram = daemon.path("ram0").display().to_string();
    let multipath = format!("0 16 multipath 0 0 1 1 round-robin 0 1 0 {ram}");
    daemon.create("low", "0 8 zero").expect_ok();
    daemon.create("sw", "0 16 switch 1 8 0 mem:1M 0").expect_ok();
    daemon.create("mp", &multipath).expect_ok();
    daemon
}

#[test]
fn an_error_quotes_the_input_and_says_what_is_allowed() {
    let daemon = stage();
    let folder = daemon.path("").display().to_string();
    let folder = folder.trim_end_matches('/');
    for (words, parts) in WRONG {
        let words: Vec<String> = words.iter().map(|word| word.replace("FOLDER", folder)).collect();
        let text = said(daemon.client().args(&words));
        for part in *parts {
            assert!(text.contains(&part.replace("FOLDER", folder)), "{words:?}: {part}: {text}");
        }
        // The answer as JSON, for programs.
        let text = said(daemon.client().args(&words).arg("--json"));
        let json: Value =
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{words:?}: {text}"));
        assert!(json["error"].as_str().is_some_and(|error| !error.is_empty()), "{text}");
    }
    let text = said(daemon.client().args(["--json", "resume", "loww"]));
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["errno"], &json["ioctl"]), (&"ENXIO".into(), &"resume".into()));
    assert!(json["reason"].as_str().unwrap().contains("did you mean 'low'?"), "{text}");
}

/// A daemon of another user must not be reported as one that has to be started.
#[test]
fn a_socket_that_may_not_be_used_is_said() {
    let daemon = stage();
    let me = std::fs::metadata("/proc/self").unwrap();
    let is_root = std::os::unix::fs::MetadataExt::uid(&me) == 0;
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(&daemon.path(""), 0o755);
    set(&daemon.socket(), if is_root { 0o600 } else { 0 });
    // Root may use every socket, so root runs the client as nobody.
    let mut command = Command::new(if is_root { Path::new("setpriv") } else { program() });
    if is_root {
        let reach = program()
            .ancestors()
            .all(|at| std::fs::metadata(at).is_ok_and(|at| at.permissions().mode() & 0o001 != 0));
        if !reach || Command::new("setpriv").arg("--version").output().is_err() {
            eprintln!("not tested: nobody cannot run the program here");
            return;
        }
        command.args(["--reuid", "65534", "--clear-groups"]).arg(program());
    }
    let text = said(command.arg("ls").env("BLKSWITCH_SOCKET", daemon.socket()));
    assert!(text.contains("may not use this socket: it belongs to user"), "{text}");
    assert!(!text.contains("Start it with"), "{text}");
}
