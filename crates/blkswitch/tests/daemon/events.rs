//! Events: the output of `monitor`, and what the log and `/metrics` say about failing paths.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use blkswitch::protocol::{MonitorEvent, route};
use serde_json::Value;

use crate::fixture::{Daemon, PATIENCE, SECTOR, eventually};

/// A `blkswitch monitor` that is already watching.
pub(crate) struct Watcher {
    child: Child,
    pub(crate) lines: Receiver<String>,
}

impl Watcher {
    pub(crate) fn new(daemon: &Daemon, words: &[&str]) -> Watcher {
        let mut command = daemon.client();
        let mut child = command.arg("monitor").args(words).stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let watcher = Watcher { child, lines };
        // The monitor watches as soon as it reports one of these remaps.
        daemon.create("noise", "0 64 switch 2 32 0 null:1M 0 null:1M 0").expect_ok();
        eventually("the monitor watches", || {
            daemon.message("noise", 0, b"set_region_mappings 0:1").expect_ok();
            watcher.lines.recv_timeout(Duration::from_millis(100)).is_ok()
        });
        daemon.remove("noise");
        watcher
    }

    /// The events until all of `wanted` have been seen, without the time. Each comes with its name.
    #[track_caller]
    pub(crate) fn until(&self, wanted: &[&str]) -> Vec<(String, String)> {
        let mut told: Vec<(String, String)> = Vec::new();
        while !wanted.iter().all(|event| told.iter().any(|(name, _)| name == event)) {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("{wanted:?}; only {told:?}"));
            if line.contains("noise") {
                continue;
            }
            let line = line.split_once("] ").map_or(line.as_str(), |(_, line)| line).to_owned();
            // The end of the daemon is an event without a device.
            let words = line.split_once(": ").map_or(line.as_str(), |(_, words)| words);
            let name = words.split(' ').next().unwrap_or_default().to_owned();
            told.push((name, line));
        }
        told
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The path of a switch that is not a multipath device fails. The client gets the error, and the
/// administrator learns from the monitor, the log and the metrics which path it was.
#[test]
fn errors_of_a_path_of_a_switch_are_told() {
    let daemon = Daemon::start();
    let cut = daemon.path("cut");
    let path = format!("sim:1M,name=v,path=bad,timeout=50ms,cut={}", cut.display());
    daemon.create("sw", &format!("0 128 switch 2 64 0 mem:1M 0 {path} 0")).expect_ok();
    let watcher = Watcher::new(&daemon, &[]);
    let mut client = daemon.nbd("sw");
    std::fs::write(&cut, "").unwrap();
    client.read(0, SECTOR).unwrap();
    for _ in 0..20 {
        assert!(client.read(64 * 512, SECTOR).is_err());
    }
    let told = watcher.until(&["PATH_ERRORS"]);
    let (_, line) = told.last().unwrap();
    assert!(line.starts_with("sw: PATH_ERRORS sim:"), "{line}");
    assert!(line.contains(" errno=") && line.contains(" count="), "{line}");
    let logged = |daemon: &Daemon| daemon.log().matches("requests to a path failed").count();
    eventually("it is logged", || logged(&daemon) > 0);
    assert!(logged(&daemon) <= 2, "twenty errors within a second are at most two lines");
    let up = |number: usize| {
        let metrics = daemon.request("GET", route::METRICS, Value::Null).body;
        let metrics = String::from_utf8(metrics).unwrap();
        let label = format!("path=\"{number}\"");
        let mut lines = metrics.lines().filter(|line| line.starts_with("blkswitch_path_up{"));
        lines.find(|line| line.contains(&label)).map(|line| line.ends_with(" 1.0"))
    };
    assert_eq!((up(0), up(1)), (Some(true), Some(false)));
    std::fs::remove_file(&cut).unwrap();
    assert_eq!(up(1), Some(true));
}

#[test]
fn what_control_does_to_devices_is_told() {
    let daemon = Daemon::start();
    let watcher = Watcher::new(&daemon, &[]);
    let verb = |words: &[&str]| assert!(daemon.run(words).status.success(), "{words:?}");
    let table = "0 64 linear mem:1M 0";
    daemon.create("first", table).expect_ok();
    verb(&["suspend", "first"]);
    verb(&["resume", "first"]);
    verb(&["load", "first", "--table", table]);
    verb(&["resume", "first"]);
    verb(&["rename", "first", "second"]);
    daemon.remove("second");
    let told = watcher.until(&["REMOVED"]);
    let told: Vec<&str> = told.iter().map(|(_, line)| line.as_str()).collect();
    let of_second = told.iter().position(|line| line.starts_with("second")).unwrap();
    assert_eq!(told[of_second..], ["second: RENAMED from=first", "second: REMOVED"]);
    for event in ["CREATED", "SUSPENDED", "RESUMED", "TABLE_SWAPPED"] {
        assert!(told.contains(&format!("first: {event}").as_str()), "{event}: {told:?}");
    }
    daemon.terminate();
    watcher.until(&["DAEMON_ENDS"]);
}

#[test]
fn a_remap_is_told_with_who_asked() {
    let daemon = Daemon::start();
    let watcher = Watcher::new(&daemon, &["--json"]);
    daemon.create("vol", "0 64 switch 2 8 0 mem:1M 0 mem:1M 0").expect_ok();
    daemon.message("vol", 0, b"set_region_mappings 0:1 :0").expect_ok();
    let event: MonitorEvent = loop {
        let line = watcher.lines.recv_timeout(PATIENCE).unwrap();
        let event: MonitorEvent = serde_json::from_str(&line).unwrap();
        if event.device == "vol" && event.event == "REMAPPED" {
            break event;
        }
    };
    let me = std::fs::metadata("/proc/self").unwrap().uid();
    assert_eq!((event.uid, event.pid), (Some(me), Some(std::process::id())));
    assert_eq!((event.generation, event.arguments), (Some(1), Some(2)));
    assert_eq!(event.source.as_deref(), Some("message"));
}

/// An export of another daemon comes back smaller than before, and the leaf does not use it.
/// `info`, `status -v` and the event name the promise that is broken. When the export has its old
/// size again, an event says so, and the leaf is used.
#[test]
fn the_reason_of_a_refused_reconnection_is_told() {
    let (far, near) = (Daemon::start_with(&[]), Daemon::start_with(&[]));
    far.create("far", "0 8192 linear mem:4M:v 0").expect_ok();
    let socket = far.path("nbd.sock");
    let leaf = format!("nbd+unix:///far?socket={}", socket.display());
    near.create("disk", &format!("0 8192 linear {leaf} 0")).expect_ok();
    assert_eq!(near.describe("disk").troubled_paths, []);
    // A connection that was never used is checked when it is used.
    near.nbd("disk").write(0, &[1; SECTOR], false).unwrap();
    let watcher = Watcher::new(&near, &[]);
    let resize = |sectors: u64| {
        let table = format!("0 {sectors} linear mem:4M:v 0");
        for words in [&["load", "far", "--table", &table][..], &["resume", "far"]] {
            assert!(far.run(words).status.success(), "{words:?}");
        }
        assert!(far.run(&["disconnect", "far"]).status.success());
    };
    resize(4096);
    let reason = "the export is not what it was: it has 2097152 bytes, and had 4194304";
    let told = watcher.until(&["PATH_UNREACHABLE"]);
    // The export may be missing for a moment before it is back.
    let mut line = told.last().unwrap().1.clone();
    while !line.contains(reason) {
        line = watcher.lines.recv_timeout(PATIENCE).unwrap();
    }
    assert!(line.contains(&format!("disk: PATH_UNREACHABLE {leaf}")), "{line}");
    for verb in [&["info", "disk"][..], &["status", "-v", "disk"]] {
        let text = String::from_utf8(near.run(verb).stdout).unwrap();
        assert!(text.contains(&format!("Unusable path:     {leaf}: {reason}")), "{text}");
    }
    let [path] = &near.describe("disk").troubled_paths[..] else { panic!("one path") };
    assert_eq!((path.reason.as_deref(), path.doubted_writes), (Some(reason), 0));
    resize(8192);
    watcher.until(&["PATH_REACHABLE"]);
    eventually("it is used again", || near.describe("disk").troubled_paths.is_empty());
    near.nbd("disk").write(0, &[1; SECTOR], false).unwrap();
}

/// A silent server may carry out a write late. The leaf counts the writes that it sent again or
/// failed only because `settle` was over.
#[test]
fn writes_in_doubt_are_counted() {
    let (far, near) = (Daemon::start_with(&[]), Daemon::start_with(&[]));
    far.create("far", "0 8192 linear mem:4M 0").expect_ok();
    let socket = far.path("nbd.sock");
    let leaf = format!("nbd+unix:///far?socket={}&timeout=1&settle=0.5", socket.display());
    near.create("disk", &format!("0 8192 linear {leaf} 0")).expect_ok();
    let mut client = near.nbd("disk");
    client.write(0, &[1; SECTOR], false).unwrap();
    crate::fixture::signal(far.pid(), "STOP");
    assert!(client.write(0, &[2; SECTOR], false).is_err());
    crate::fixture::signal(far.pid(), "CONT");
    let doubted = || near.describe("disk").troubled_paths.first().map(|path| path.doubted_writes);
    eventually("it is counted", || doubted() == Some(1));
    let metrics = near.request("GET", route::METRICS, Value::Null).body;
    let metrics = String::from_utf8(metrics).unwrap();
    let is_it = |line: &&str| line.starts_with("blkswitch_path_doubted_writes_total{");
    let line = metrics.lines().find(is_it).unwrap();
    assert!(line.contains("path=\"0\"") && line.ends_with(" 1"), "{line}");
    let text = String::from_utf8(near.run(&["info", "disk"]).stdout).unwrap();
    assert!(text.contains("Doubted writes:    nbd+unix:///far?"), "{text}");
}
