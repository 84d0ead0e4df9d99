//! `blkswitch demo` shows a newcomer a device at work, succeeds, and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::fixture::{program, signal};

fn demo() -> (Command, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.arg("demo").env("TMPDIR", folder.path()).env("LC_ALL", "C").stdin(Stdio::null());
    (command, folder)
}

#[test]
fn everything_is_shown_and_nothing_left_behind() {
    let (mut command, folder) = demo();
    let run = command.output().unwrap();
    let out = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success(), "{out}\n{}", String::from_utf8_lossy(&run.stderr));
    for part in [
        "$ blkswitch message switch 0 set_region_mappings 0:0 :1 :2 :0 :1 :2 :1\n",
        "0 2048 switch 3 128 0 ",
        "0 1 2 0 1 2 1 1 2 0 1 2 0 1 2 0",
        "switch1 holds the regions [1, 4, 6, 7, 10, 13] and nothing else",
        "nbd+unix:///switch?socket=",
    ] {
        assert!(out.contains(part), "'{part}' is missing in:\n{out}");
    }
    assert!(!out.contains('\x1b'), "colours where there is no terminal:\n{out}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn keep_serves_until_it_is_interrupted() {
    let (mut command, folder) = demo();
    let mut child = command.arg("--keep").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let socket = lines
        .find_map(|line| line.trim().strip_prefix("export BLKSWITCH_SOCKET=").map(str::to_owned));
    let words = ["message", "switch", "0", "set_region_mappings", "0:2", "R1,f"];
    let client = |words: &[&str]| {
        Command::new(program())
            .env("BLKSWITCH_SOCKET", socket.as_ref().unwrap())
            .args(words)
            .output()
            .unwrap()
    };
    assert!(client(&words).status.success());
    let exported = client(&["map", "export", "switch", "--plain"]);
    assert_eq!(String::from_utf8_lossy(&exported.stdout), "set_region_mappings 0:2 R1,f\n");
    signal(child.id(), "INT");
    let rest: Vec<String> = lines.collect();
    assert!(child.wait().unwrap().success());
    assert!(rest.iter().any(|line| line.contains("All of it was as it should be")), "{rest:?}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_group_moves_regions_and_loses_members_under_load() {
    let (mut command, folder) = demo();
    let figure = tempfile::tempdir().unwrap();
    let file = figure.path().join("group.svg");
    let run = command
        .args(["group", "--members", "3", "--act", "0.5", "--figure"])
        .arg(&file)
        .output()
        .unwrap();
    let out = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success(), "{out}\n{}", String::from_utf8_lossy(&run.stderr));
    for part in [
        "one message tells the host",
        "member 2 dies",
        "none failed",
        "each holds what was written last",
    ] {
        assert!(out.contains(part), "'{part}' is missing in:\n{out}");
    }
    let figure = std::fs::read_to_string(&file).unwrap();
    assert!(figure.starts_with("<svg") && figure.trim_end().ends_with("</svg>"));
    assert_eq!(figure.matches("<circle").count(), 8, "one mark an event");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_group_that_is_interrupted_leaves_nothing_behind() {
    let (mut command, folder) = demo();
    command.args(["group", "--members", "2"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.contains("without a pause")).expect("the group does not run");
    signal(child.id(), "INT");
    let rest: Vec<String> = lines.collect();
    let run = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && said.contains("interrupted"), "{rest:?}\n{said}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}
