//! Events: what `monitor` tells of devices, and what the log and `/metrics` say of failing paths.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use blkswitch::protocol::route;
use serde_json::Value;

use crate::fixture::{Daemon, PATIENCE, SECTOR, eventually};

/// `blkswitch monitor`, which watches already.
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
        // It watches once it tells of this.
        daemon.create("noise", "0 64 switch 2 32 0 null:1M 0 null:1M 0").expect_ok();
        eventually("the monitor watches", || {
            daemon.message("noise", 0, b"set_region_mappings 0:1").expect_ok();
            watcher.lines.recv_timeout(Duration::from_millis(100)).is_ok()
        });
        daemon.remove("noise");
        watcher
    }

    /// What it tells until all of these events were told, without the time, each under the event's
    /// name.
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
            // The end of the daemon is an event of no device.
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

/// The path of a switch that is not a multipath device fails: the client gets the error, and the
/// administrator learns which path it was, from the monitor, the log and the metrics.
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
