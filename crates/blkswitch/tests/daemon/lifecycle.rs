//! The lifecycle of the daemon: sockets, signals, a kill under load.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blkswitch::nbd_client::NbdClient;
use serde_json::json;

use crate::fixture::{Daemon, PATIENCE, SECTOR, eventually, serve, signal, spawn};

fn switch_over_rams(daemon: &Daemon) -> String {
    let paths: String =
        (0..3).map(|ram| format!(" {} 0", daemon.path(&format!("ram{ram}")).display())).collect();
    format!("0 8192 switch 3 128 0{paths}")
}

#[test]
fn sockets_are_private_and_gone_after_a_clean_end() {
    let mut daemon = Daemon::start();
    for name in ["control.sock", "nbd.sock"] {
        assert_eq!(daemon.path(name).metadata().unwrap().mode() & 0o777, 0o600, "{name}");
    }
    daemon.terminate();
    let (status, log) = daemon.wait();
    assert_eq!(status, Some(0), "{log}");
    assert!(log.contains("blkswitch::daemon: stopped"), "{log}");
    for name in ["control.sock", "nbd.sock"] {
        assert!(!daemon.path(name).exists(), "{name} stays behind");
    }
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start();
    let second = serve(daemon.folder.path(), &[]).output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(error.contains("somebody listens there already"), "{error}");
    assert!(daemon.run(&["ls"]).status.success());
    UnixStream::connect(daemon.path("nbd.sock")).unwrap();
}

#[test]
fn the_sockets_of_a_daemon_that_was_killed_are_replaced() {
    let mut daemon = Daemon::start();
    daemon.kill();
    assert!(daemon.path("control.sock").exists());
    let daemon = daemon.restart();
    assert_eq!(String::from_utf8_lossy(&daemon.run(&["ls"]).stdout), "No devices found\n");
}

#[test]
fn a_folder_is_made_for_the_sockets_and_logs_can_be_json() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b");
    let mut daemon = spawn(&deep, &["--log-format", "json"]);
    signal(daemon.child.id(), "INT");
    let (status, log) = daemon.wait();
    assert!(status.success(), "{log}");
    assert!(log.lines().count() >= 3, "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["fields"]["message"].is_string(), "{line}");
    }
}

#[test]
fn a_device_is_offered_over_tcp_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = spawn(
        folder.path(),
        &[
            "--nbd",
            "tcp:127.0.0.1:0",
            "--nbd",
            &format!("unix:{}/other nbd", folder.path().display()),
        ],
    );
    let socket = folder.path().join("control.sock");
    let table = json!({"name": "m", "table": "0 2048 linear mem:1M 0"});
    crate::http::request(&socket, "POST", "/v1/devices", &table).expect_ok();
    let version: blkswitch::protocol::Version =
        crate::http::request(&socket, "GET", "/v1/version", &serde_json::Value::Null).json();
    let [tcp, unix] = version.nbd.as_slice() else { panic!("{version:?}") };
    assert!(unix.ends_with("/other%20nbd"), "{unix}");
    let mut client = NbdClient::tcp(tcp.strip_prefix("nbd://").unwrap(), "m").unwrap();
    client.write(512, &[7; 512], true).unwrap();
    let mut other = NbdClient::unix(&folder.path().join("other nbd"), "").unwrap();
    assert_eq!(other.read(512, 512).unwrap(), [7; 512]);
}

/// Starts a daemon with these options, and a write that takes ten minutes.
fn daemon_that_waits(options: &[&str]) -> (Daemon, NbdClient) {
    let daemon = Daemon::start_with(options);
    daemon.create("slow", "0 2048 linear sim:1M,delay=600s 0").expect_ok();
    let mut client = daemon.nbd("slow");
    client.send_write(0, &[1; 4096]).unwrap();
    // The queue must have the write before the signal comes.
    eventually("the write is under way", || daemon.describe("slow").clients[0].in_flight == 1);
    (daemon, client)
}

#[test]
fn a_stop_does_not_wait_longer_than_it_was_told_and_says_for_what() {
    let (mut daemon, mut client) = daemon_that_waits(&["--stop-timeout", "0.2"]);
    daemon.terminate();
    let (status, log) = daemon.wait();
    assert_eq!(status, Some(1), "{log}");
    assert!(log.contains("stopping: 'sim:1048576,"), "{log}");
    assert!(log.contains("' has not answered 1 operation ("), "{log}");
    assert!(log.contains("stopped, but not in good order"), "{log}");
    assert!(client.receive(0).is_err(), "nobody has answered");
    for name in ["control.sock", "nbd.sock"] {
        assert!(!daemon.path(name).exists(), "{name} stays behind");
    }
}

#[test]
fn a_second_signal_ends_a_stop_that_waits() {
    let (mut daemon, _client) = daemon_that_waits(&[]);
    daemon.terminate();
    eventually("it says so", || daemon.log().contains("a second signal ends at once"));
    daemon.terminate();
    let (status, log) = daemon.wait();
    assert_eq!(status, Some(130), "{log}");
    assert!(log.contains("ended at once: what was in flight may be lost"), "{log}");
}

/// Writes round after round to a range of its own, with the number of the round in each sector.
/// Returns when the daemon is gone: the last round that was answered completely, and the last that
/// was flushed. `progress` has the latter meanwhile.
fn write_rounds(
    mut client: NbdClient,
    first: u64,
    sectors: u64,
    progress: &AtomicU64,
) -> (u64, u64) {
    let (mut answered, mut flushed) = (0, 0);
    for round in 1u64.. {
        for sector in first..first + sectors {
            let data: Vec<u8> = round.to_le_bytes().repeat(SECTOR / 8);
            if client.write(sector * SECTOR as u64, &data, false).is_err() {
                return (answered, flushed);
            }
        }
        answered = round;
        if round % 4 == 0 {
            if client.flush().is_err() {
                return (answered, flushed);
            }
            flushed = round;
            progress.store(flushed, Ordering::Release);
        }
    }
    (answered, flushed)
}

/// The smallest and the largest round in a range of the volume, read from the files.
fn rounds_on_disk(daemon: &Daemon, first: u64, sectors: u64) -> (u64, u64) {
    let images: Vec<Vec<u8>> =
        (0..3).map(|ram| std::fs::read(daemon.path(&format!("ram{ram}"))).unwrap()).collect();
    let round = |sector: u64| {
        let path = (sector / 128 % 3) as usize;
        let at = sector as usize * SECTOR;
        let words: Vec<u64> = images[path][at..at + SECTOR]
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert!(words.iter().all(|word| *word == words[0]), "sector {sector} is torn");
        words[0]
    };
    let rounds: Vec<u64> = (first..first + sectors).map(round).collect();
    (*rounds.iter().min().unwrap(), *rounds.iter().max().unwrap())
}

/// Sectors of each writer's range. A range spans two regions.
const RANGE: u64 = 16;
/// First sectors of the writers' ranges. Each range crosses a region boundary.
const RANGES: [u64; 3] = [120, 504, 4088];

/// Lets three clients write until `end` has ended the daemon. Then it checks the content of the
/// disks.
fn end_under_load(end: impl FnOnce(&mut Daemon)) -> Daemon {
    let mut daemon = Daemon::start();
    let table = switch_over_rams(&daemon);
    daemon.create("switch", &table).expect_ok();
    let progress: Arc<[AtomicU64; 3]> = Arc::default();
    let writers = [0, 1, 2].map(|number| {
        let (client, progress) = (daemon.nbd("switch"), progress.clone());
        thread::spawn(move || write_rounds(client, RANGES[number], RANGE, &progress[number]))
    });
    eventually("every writer has flushed a few rounds", || {
        progress.iter().all(|flushed| flushed.load(Ordering::Acquire) >= 4)
    });
    thread::sleep(Duration::from_millis(300));
    end(&mut daemon);
    for (first, writer) in RANGES.into_iter().zip(writers) {
        let (answered, flushed) = writer.join().unwrap();
        let (oldest, newest) = rounds_on_disk(&daemon, first, RANGE);
        assert!(flushed >= 4, "the writer at {first} got no further than round {answered}");
        assert!(
            oldest >= flushed,
            "round {flushed} at {first} was flushed, but round {oldest} is on the disk"
        );
        // A file keeps the data of a writer that dies, so every answered write must be there.
        assert!(
            oldest >= answered,
            "round {answered} at {first} was answered, but {oldest} is on the disk"
        );
        assert!(newest <= answered + 1, "round {newest} at {first} was never sent");
    }
    daemon
}

#[test]
fn what_was_flushed_survives_a_kill_and_a_restart() {
    let daemon = end_under_load(|daemon| daemon.kill()).restart();
    let table = switch_over_rams(&daemon);
    daemon.create("switch", &table).expect_ok();
    let mut client = daemon.nbd("switch");
    let first = client.read(RANGES[0] * SECTOR as u64, SECTOR).unwrap();
    let word = u64::from_le_bytes(first[..8].try_into().unwrap());
    assert!(word >= 4, "the writer's last round is still there, not {word}");
}

#[test]
fn sigterm_under_load_ends_in_good_order() {
    end_under_load(|daemon| {
        daemon.terminate();
        let (status, log) = daemon.wait();
        assert_eq!(status, Some(0), "{log}");
        assert!(log.contains("blkswitch::daemon: stopped"), "{log}");
    });
}

#[test]
fn sigterm_does_not_wait_for_who_waits_for_events() {
    let mut daemon = Daemon::start();
    daemon.create("z", "0 8 zero").expect_ok();
    let mut poll = crate::http::begin(&daemon, "z", "/v1/devices/z/events?after=0");
    let begun = Instant::now();
    daemon.terminate();
    assert_eq!(daemon.wait().0, Some(0));
    // A poll that does not end by itself would be aborted after ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(!crate::http::read_reply(&mut poll).json::<blkswitch::protocol::Events>().changed);
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut daemon = Daemon::start();
    // Reads that take minutes delay the stop after the first signal.
    daemon.create("slow", "0 1024 linear sim:1M,delay=300s 0\n1024 8 zero").expect_ok();
    let mut client = daemon.nbd("slow");
    client.send_read(0, SECTOR).unwrap();
    // Requests of a connection are started in order, so after this answer the read is under way.
    assert_eq!(client.read(1024 * SECTOR as u64, SECTOR).unwrap(), [0; SECTOR]);
    daemon.terminate();
    // The daemon listens for a second signal only after the first.
    eventually("the first signal has come", || {
        daemon.log().contains("stopping: finishing what is under way")
    });
    thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    daemon.terminate();
    let (status, log) = daemon.wait();
    assert_eq!(status, Some(130), "{log}");
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
}

#[test]
fn a_suspended_device_does_not_hold_up_the_end() {
    let mut daemon = Daemon::start();
    daemon.create("m", "0 2048 linear mem:1M 0").expect_ok();
    let mut client = daemon.nbd("m");
    daemon.on("POST", "/v1/devices/{name}/suspend", "m", serde_json::Value::Null).expect_ok();
    let waiting = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            // The request waits for a resume that never comes. It must end with an error and not
            // hang.
            assert!(client.read(0, SECTOR).is_err());
            waiting.store(false, Ordering::Release);
        });
        thread::sleep(Duration::from_millis(200));
        assert!(waiting.load(Ordering::Acquire), "a read of a suspended device was answered");
        daemon.terminate();
        assert_eq!(daemon.wait().0, Some(0));
    });
}
