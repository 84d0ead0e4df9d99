//! Controls a device whose requests are held below it: a switch over a multipath that has no path
//! and queues. None of the requests in flight ends, and yet every verb returns.

use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::fixture::{Daemon, SECTOR, eventually, make_disk, signal};

/// Longer than any verb takes. A wait without end exceeds it.
const SOON: Duration = Duration::from_secs(20);

/// A daemon, and a write to `sw` that `member` holds.
fn held() -> (Daemon, JoinHandle<Option<i32>>) {
    let daemon = Daemon::start_with(&["--path-checker-interval", "0"]);
    let ram = daemon.path("ram");
    make_disk(&ram, 8192);
    let ram = ram.display();
    let member = format!("0 8192 multipath 1 queue_if_no_path 0 1 1 round-robin 0 1 1 {ram} 1000");
    daemon.create("member", &member).expect_ok();
    daemon.create("sw", "0 8192 switch 1 128 0 /dev/blkswitch/member 0").expect_ok();
    daemon.message("member", 0, format!("fail_path {ram}").as_bytes()).expect_ok();
    let mut client = daemon.nbd("sw");
    let write = std::thread::spawn(move || {
        client.write(0, &[7; SECTOR], false).err().map(|error| error.raw_os_error().unwrap_or(-1))
    });
    eventually("the write is held", || in_flight(&daemon) == 1);
    (daemon, write)
}

fn in_flight(daemon: &Daemon) -> usize {
    daemon.describe("sw").clients.iter().map(|client| client.in_flight as usize).sum()
}

fn start(daemon: &Daemon, words: &[&str]) -> Child {
    let mut command: Command = daemon.client();
    command.args(words).stderr(Stdio::piped()).spawn().unwrap()
}

fn ends(child: &mut Child) -> bool {
    let until = Instant::now() + SOON;
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status.success(),
            None => assert!(Instant::now() < until, "this verb hangs"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The path comes back, and the write ends because the gate is open.
fn goes_on(daemon: &Daemon, write: JoinHandle<Option<i32>>) {
    assert!(!daemon.describe("sw").suspended);
    let ram = daemon.path("ram").display().to_string();
    daemon.message("member", 0, format!("reinstate_path {ram}").as_bytes()).expect_ok();
    assert_eq!(write.join().unwrap(), None);
    daemon.nbd("sw").read(0, SECTOR).unwrap();
}

/// Waits until the daemon has received the suspend. No counter shows it.
fn is_waiting(suspend: &mut Child) {
    std::thread::sleep(Duration::from_millis(300));
    assert!(suspend.try_wait().unwrap().is_none(), "nothing in flight has ended");
}

#[test]
fn a_suspend_that_is_given_up_opens_the_gate_again() {
    let (daemon, write) = held();
    let mut suspend = start(&daemon, &["suspend", "sw"]);
    is_waiting(&mut suspend);
    signal(suspend.id(), "INT");
    suspend.wait().unwrap();
    goes_on(&daemon, write);
}

#[test]
fn a_resume_ends_a_suspend_that_waits() {
    let (daemon, write) = held();
    let mut suspend = start(&daemon, &["suspend", "sw"]);
    is_waiting(&mut suspend);
    assert!(ends(&mut start(&daemon, &["resume", "sw"])));
    assert!(!ends(&mut suspend), "it has not been suspended");
    goes_on(&daemon, write);
}

#[test]
fn a_removal_by_force_ends_its_clients_and_removes() {
    let (daemon, write) = held();
    assert!(ends(&mut start(&daemon, &["remove", "--force", "sw"])));
    assert_eq!(write.join().unwrap(), Some(5), "the client gets the error before it is cut off");
    assert!(!daemon.run(&["table", "sw"]).status.success(), "it is gone");
    // A device on top is another user: nobody is disconnected.
    daemon.create("upper", "0 8192 linear /dev/blkswitch/member 0").expect_ok();
    let mut client = daemon.nbd("member");
    assert!(!ends(&mut start(&daemon, &["remove", "--force", "member"])));
    for _ in 0..2 {
        assert_eq!(client.read(0, SECTOR).unwrap_err().raw_os_error(), Some(5));
    }
    daemon.remove("upper");
    assert!(ends(&mut start(&daemon, &["remove", "--force", "member"])));
    assert!(client.read(0, SECTOR).is_err());
}

#[test]
fn a_deferred_removal_by_force_fails_what_is_held() {
    let (daemon, write) = held();
    let mut suspend = start(&daemon, &["suspend", "sw"]);
    is_waiting(&mut suspend);
    // The last user leaves when it gets the error, and the device goes with it.
    assert!(ends(&mut start(&daemon, &["remove", "--force", "--deferred", "sw"])));
    assert!(!ends(&mut suspend), "it has not been suspended");
    assert_eq!(write.join().unwrap(), Some(5));
    eventually("the device is gone", || {
        !daemon.run(&["info", "sw"]).status.success()
            || !String::from_utf8_lossy(&daemon.run(&["ls"]).stdout).contains("sw")
    });
    daemon.remove("member");
}
