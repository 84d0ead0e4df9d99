//! Multipath devices from the user's point of view: checker, failback, queueing, events, and tables
//! that are refused.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use blkswitch::nbd_client::NbdClient;
use blkswitch::protocol::{Events, MonitorEvent, route};
use serde_json::{Value, json};

use crate::events::Watcher;
use crate::fixture::{Daemon, PATIENCE, SECTOR, eventually, sector_of, serve};

const QUICK: [&str; 2] = ["--path-checker-interval", "0.1"];
/// A request without an answer after this time counts as waiting.
const BLOCKED: Duration = Duration::from_millis(150);

/// The address of a path to the memory `volume`.
fn address(daemon: &Daemon, volume: &str, path: &str) -> String {
    let cut = daemon.path(path).with_extension("cut");
    format!("sim:1M,name={volume},path={path},timeout=50ms,cut={}", cut.display())
}

/// Creates `volume` with the paths a and b, each in a group of its own.
fn make(daemon: &Daemon, volume: &str, features: &str) -> NbdClient {
    let [a, b] = ["a", "b"].map(|path| address(daemon, volume, path));
    let table =
        format!("0 2048 multipath {features} 0 2 1 round-robin 0 1 0 {a} round-robin 0 1 0 {b}");
    daemon.create(volume, &table).expect_ok();
    daemon.nbd(volume)
}

fn cut(daemon: &Daemon, path: &str, how: &str) {
    std::fs::write(daemon.path(path).with_extension("cut"), how).unwrap();
}

fn join(daemon: &Daemon, path: &str) {
    std::fs::remove_file(daemon.path(path).with_extension("cut")).unwrap();
}

/// The words of the status without the addresses: `A`, `E`, `F` and numbers.
fn status(daemon: &Daemon, volume: &str) -> String {
    let device = daemon.describe(volume);
    let words = device.live.unwrap().segments[0].status.clone();
    words
        .split(' ')
        .filter(|word| !word.starts_with("sim:"))
        .collect::<Vec<_>>()
        .join(" ")
        .trim()
        .to_owned()
}

#[test]
fn a_path_that_fails_is_noticed_reinstated_and_used_again_and_all_is_told() {
    let daemon = Daemon::start_with(&QUICK);
    let mut client = make(&daemon, "told", "0");
    let watcher = Watcher::new(&daemon, &[]);
    client.write(0, &[7; SECTOR], false).unwrap();
    cut(&daemon, "a", "");
    assert_eq!(client.read(0, SECTOR).unwrap(), [7; SECTOR]);
    eventually("the other group", || {
        status(&daemon, "told") == "2 0 0 0 2 2 E 0 1 0 F 1 A 0 1 0 A 0"
    });
    join(&daemon, "a");
    let wanted = ["PATH_FAILED", "GROUP_SWITCHED", "PATH_REINSTATED", "GROUP_CHOSEN"];
    let told = watcher.until(&wanted);
    // Each event comes once. The order is not fixed, because another thread than the checker's
    // reports the findings of a queue.
    assert_eq!(told.len(), wanted.len(), "{told:?}");
    let of = |event: &str| &told.iter().find(|(name, _)| name == event).unwrap().1;
    assert!(
        of("PATH_FAILED").ends_with("paths_up=1") && of("PATH_FAILED").contains("path=a"),
        "{told:?}"
    );
    assert!(
        of("PATH_REINSTATED").contains("path=a") && of("GROUP_CHOSEN").ends_with("group=1"),
        "{told:?}"
    );
    assert_eq!(client.read(0, SECTOR).unwrap(), [7; SECTOR]);
    assert_eq!(status(&daemon, "told"), "2 0 0 0 2 1 A 0 1 0 A 1 E 0 1 0 A 0");
    let metrics =
        || String::from_utf8(daemon.request("GET", route::METRICS, Value::Null).body).unwrap();
    let has = |name: &str, value: &str| {
        metrics()
            .lines()
            .any(|line| line.starts_with(name) && line.contains("told") && line.ends_with(value))
    };
    // A thread of its own counts the findings of queues, after the request was answered.
    eventually("both switches are counted", || has("blkswitch_group_switches_total{", " 2"));
    assert!(
        has("blkswitch_path_up{", " 1.0") && has("blkswitch_path_failures_total{", " 1"),
        "{}",
        metrics()
    );
    assert!(has("blkswitch_held_requests{", " 0.0"), "{}", metrics());
}

#[test]
fn events_are_objects_of_json_and_lines_of_the_log() {
    let daemon = Daemon::start_with(&QUICK);
    let mut client = make(&daemon, "told", "0");
    let watcher = Watcher::new(&daemon, &["--json"]);
    let before = daemon.describe("told").event_nr;
    let mut wait = daemon.client();
    wait.args(["wait", "told", &before.to_string(), "--json"]).stdout(Stdio::piped());
    let wait = wait.spawn().unwrap();
    cut(&daemon, "a", "");
    client.read(0, SECTOR).unwrap();
    join(&daemon, "a");
    let mut wanted = vec!["PATH_FAILED", "GROUP_SWITCHED", "PATH_REINSTATED", "GROUP_CHOSEN"];
    while !wanted.is_empty() {
        let line = watcher
            .lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("nothing of {wanted:?}"));
        let event: MonitorEvent =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("no event: {line}"));
        if event.device == "told" {
            wanted.retain(|name| *name != event.event);
            assert_eq!(event.path.is_some(), event.event.starts_with("PATH"), "{line}");
            assert_eq!(event.group.is_some(), event.event.starts_with("GROUP"), "{line}");
        }
    }
    let waited = wait.wait_with_output().unwrap();
    let events: Events = serde_json::from_slice(&waited.stdout).unwrap();
    assert!(waited.status.success() && events.changed && events.event_nr != before, "{events:?}");
    let log = daemon.log();
    for (level, start, end) in [
        ("WARN", "multipath: told: Failing path sim:", ""),
        ("INFO", "multipath: told: Reinstating path sim:", ""),
        ("INFO", "multipath: told: Using priority group ", "2."),
    ] {
        let is_it =
            |line: &str| line.contains(level) && line.contains(start) && line.ends_with(end);
        assert!(log.lines().any(is_it), "{start}: {log}");
    }
}

#[test]
fn a_path_that_nobody_uses_is_checked_too() {
    let daemon = Daemon::start_with(&QUICK);
    let _client = make(&daemon, "idle", "0");
    cut(&daemon, "b", "silent");
    eventually("the silent path fails", || status(&daemon, "idle").ends_with("E 0 1 0 F 1"));
    join(&daemon, "b");
    eventually("and is back", || status(&daemon, "idle").ends_with("E 0 1 0 A 1"));
}

#[test]
fn failback_waits_for_its_time_or_for_a_message() {
    for option in ["manual", "2"] {
        let daemon = Daemon::start_with(&[QUICK[0], QUICK[1], "--failback", option]);
        let mut client = make(&daemon, "failback", "0");
        client.read(0, SECTOR).unwrap();
        cut(&daemon, "a", "");
        client.read(0, SECTOR).unwrap();
        assert!(status(&daemon, "failback").starts_with("2 0 0 0 2 2 E"));
        // The time starts before the path can be back, so that delays of this thread cannot make it
        // look shorter.
        let joined = Instant::now();
        join(&daemon, "a");
        if option != "manual" {
            eventually("the group is back", || {
                client.read(0, SECTOR).unwrap();
                status(&daemon, "failback").starts_with("2 0 0 0 2 1 A")
            });
            // The time may be shorter than the configured one, because the checker's thread may
            // have been delayed.
            assert!(
                joined.elapsed() > Duration::from_millis(1500),
                "too early: {:?}",
                joined.elapsed()
            );
            continue;
        }
        eventually("the path is back", || status(&daemon, "failback").contains("A 1 A 0"));
        std::thread::sleep(3 * BLOCKED);
        client.read(0, SECTOR).unwrap();
        assert!(status(&daemon, "failback").starts_with("2 0 0 0 2 2 E"));
        daemon.message("failback", 0, b"switch_group 1").expect_ok();
        client.read(0, SECTOR).unwrap();
        assert!(status(&daemon, "failback").starts_with("2 0 0 0 2 1 A"));
    }
}

#[test]
fn devices_have_settings_of_their_own() {
    let settings =
        ["--failback", "manual", "--failback", "two=immediate", "--no-path-retry", "one=fail"];
    let daemon = Daemon::start_with(&[&QUICK[..], &settings].concat());
    let mut one = make(&daemon, "one", "1 queue_if_no_path");
    let mut two = make(&daemon, "two", "1 queue_if_no_path");
    let queues =
        |volume| daemon.describe(volume).live.unwrap().segments[0].params.starts_with("1 queue_if");
    eventually("queueing of one is off", || !queues("one"));
    assert!(queues("two"));
    cut(&daemon, "a", "");
    for (volume, client) in [("one", &mut one), ("two", &mut two)] {
        client.read(0, SECTOR).unwrap();
        assert!(status(&daemon, volume).starts_with("2 0 0 0 2 2 E"));
    }
    join(&daemon, "a");
    eventually("two is back at its first group", || {
        two.read(0, SECTOR).unwrap();
        status(&daemon, "two").starts_with("2 0 0 0 2 1 A")
    });
    eventually("the path of one is back", || status(&daemon, "one").contains("A 1 A 0"));
    std::thread::sleep(3 * BLOCKED);
    one.read(0, SECTOR).unwrap();
    assert!(status(&daemon, "one").starts_with("2 0 0 0 2 2 E"));
    ["a", "b"].iter().for_each(|path| cut(&daemon, path, ""));
    assert_eq!(one.read(0, SECTOR).unwrap_err().raw_os_error(), Some(5));
    let held = std::thread::spawn(move || two.read(0, SECTOR));
    std::thread::sleep(3 * BLOCKED);
    assert!(!held.is_finished(), "two holds what finds no path");
    ["a", "b"].iter().for_each(|path| join(&daemon, path));
    held.join().unwrap().unwrap();
}

#[test]
fn without_a_path_io_waits_for_so_many_rounds() {
    let daemon = Daemon::start_with(&["--path-checker-interval", "0.4", "--no-path-retry", "3"]);
    let mut client = make(&daemon, "rounds", "0");
    eventually("queueing is on", || {
        daemon.describe("rounds").live.unwrap().segments[0].params.starts_with("1 queue_if_no_path")
    });
    // Three rounds end at least two intervals after the first path was cut, because a round may
    // have begun some time before.
    let started = Instant::now();
    ["a", "b"].iter().for_each(|path| cut(&daemon, path, ""));
    assert_eq!(client.read(0, SECTOR).unwrap_err().raw_os_error(), Some(5));
    assert!(
        started.elapsed() > Duration::from_millis(450),
        "held for a while: {:?}",
        started.elapsed()
    );
    ["a", "b"].iter().for_each(|path| join(&daemon, path));
    eventually("queueing is on again", || {
        daemon.describe("rounds").live.unwrap().segments[0].params.starts_with("1 queue_if_no_path")
    });
    client.read(0, SECTOR).unwrap();
}

#[test]
fn rounds_are_not_counted_without_a_checker() {
    let folder = tempfile::tempdir().unwrap();
    let refused = serve(folder.path(), &["--path-checker-interval", "0", "--no-path-retry", "3"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("'--no-path-retry 3'"), "{said}");
}

#[test]
fn held_io_goes_on_when_the_checker_finds_a_path_and_survives_a_reload() {
    let daemon = Daemon::start_with(&QUICK);
    let mut client = make(&daemon, "held", "1 queue_if_no_path");
    ["a", "b"].iter().for_each(|path| cut(&daemon, path, ""));
    client.send_write(0, &[3; SECTOR]).unwrap();
    client.set_patience(BLOCKED).unwrap();
    assert!(client.receive(0).is_err(), "held");
    let ok = |words: &[&str]| assert!(daemon.run(words).status.success(), "{words:?}");
    ok(&["suspend", "--noflush", "held"]);
    let [b, c] = ["b", "c"].map(|path| address(&daemon, "held", path));
    let table = format!("0 2048 multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 0 {b} {c}");
    ok(&["load", "held", "--table", &table]);
    ok(&["resume", "held"]);
    client.set_patience(PATIENCE).unwrap();
    client.receive(0).unwrap();
    ["a", "b"].iter().for_each(|path| join(&daemon, path));
    eventually("the path is back", || status(&daemon, "held").ends_with("A 1 A 0"));
    assert_eq!(client.read(0, SECTOR).unwrap(), [3; SECTOR]);
    // All paths fail again, and one comes back.
    ["b", "c"].iter().for_each(|path| cut(&daemon, path, ""));
    client.send_write(0, &[4; SECTOR]).unwrap();
    client.set_patience(BLOCKED).unwrap();
    assert!(client.receive(0).is_err(), "held");
    join(&daemon, "c");
    client.set_patience(PATIENCE).unwrap();
    client.receive(0).unwrap();
}

#[test]
fn a_path_that_is_down_when_the_table_is_loaded_begins_as_failed_and_comes_when_it_can() {
    let daemon = Daemon::start_with(&QUICK);
    cut(&daemon, "a", "");
    let mut client = make(&daemon, "absent", "0");
    assert!(status(&daemon, "absent").contains("F 1"), "{}", status(&daemon, "absent"));
    client.write(0, &[5; SECTOR], false).unwrap();
    client.flush().unwrap();
    join(&daemon, "a");
    eventually("the path comes", || status(&daemon, "absent").contains("A 1"));
    cut(&daemon, "b", "");
    assert_eq!(client.read(0, SECTOR).unwrap(), [5; SECTOR]);
    // A path that leads to another volume never comes up.
    cut(&daemon, "c", "");
    let [a, c] = ["a", "c"].map(|path| address(&daemon, "absent", path));
    let table =
        format!("0 2048 multipath 0 0 1 1 round-robin 0 2 0 {a} {}", c.replace("sim:1M", "sim:2M"));
    daemon.create("elsewhere", &table).expect_ok();
    join(&daemon, "c");
    std::thread::sleep(3 * BLOCKED);
    assert!(status(&daemon, "elsewhere").ends_with("F 1"));
    // Without any path the table is refused.
    ["a", "c"].iter().for_each(|path| cut(&daemon, path, ""));
    let table =
        format!("0 2048 multipath 0 0 1 1 round-robin 0 1 0 {}", address(&daemon, "none", "a"));
    assert_eq!(daemon.create("none", &table).error().errno.name(), "EIO");
}

/// Regression: the checker applied the option up to a second after the table had gone live, and
/// requests failed until then.
#[test]
fn a_device_without_a_path_holds_requests_from_its_first_moment() {
    let daemon = Daemon::start_with(&["--path-checker-interval", "0", "--no-path-retry", "queue"]);
    let path = address(&daemon, "early", "a");
    let table = format!("0 2048 multipath 0 0 1 1 round-robin 0 1 1 {path} 1");
    daemon.create("early", &table).expect_ok();
    daemon.message("early", 0, format!("fail_path {path}").as_bytes()).expect_ok();
    let mut client = daemon.nbd("early");
    client.send_write(0, &[6; SECTOR]).unwrap();
    client.set_patience(BLOCKED).unwrap();
    assert!(client.receive(0).is_err(), "held");
    daemon.message("early", 0, format!("reinstate_path {path}").as_bytes()).expect_ok();
    client.set_patience(PATIENCE).unwrap();
    client.receive(0).unwrap();
}

#[test]
fn what_cannot_be_a_multipath_is_refused_with_the_reason() {
    let daemon = Daemon::start();
    daemon.create("below", "0 2048 zero").expect_ok();
    let group = |words: &str| format!("0 2048 multipath 0 0 1 1 round-robin 0 2 0 {words}");
    for (table, errno, reason) in [
        (group("sim:1M,name=x,path=a sim:2M,name=x,path=b"), "EINVAL", "one size"),
        (group("sim:1M,name=x,path=a sim:1M,name=y,path=b"), "EINVAL", "not to one"),
        (group("null:1M /dev/blkswitch/below"), "EINVAL", "are files, disks and servers"),
        (group("null:1M /nonexistent"), "ENOENT", "/nonexistent"),
        (group("null:512K null:512K"), "EINVAL", "1024"),
        (format!("{}\n2048 8 zero", group("null:1M null:1M")), "EINVAL", "the only line"),
        ("0 8 zero\n8 2048 multipath 0 0 0 0".to_owned(), "EINVAL", "the only line"),
    ] {
        let error = daemon.create("refused", &table).error();
        assert_eq!(error.errno.name(), errno, "{table}: {error:?}");
        assert!(error.reason.contains(reason), "{table}: {}", error.reason);
    }
    // Paths are accepted if they lead to one volume, or if nothing is known about their volumes.
    daemon.create("x", &group("sim:1M,name=x,path=a sim:1M,name=x,path=b")).expect_ok();
    daemon.create("y", &group("mem:1M null:1M")).expect_ok();
}

/// The address of a path to an export of another daemon.
fn nbd_path(daemon: &Daemon, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}&timeout=10", daemon.path("nbd.sock").display())
}

/// If a server's disk cannot read the block that probes read, the path is up all the same: an error
/// answer proves that the server is there.
#[test]
fn a_bad_block_under_the_probes_fails_no_path() {
    let (host, server) = (Daemon::start_with(&QUICK), Daemon::start());
    let table = format!("0 8 error\n8 2040 linear {} 8", server.path("ram0").display());
    server.create("volume", &table).expect_ok();
    let address = nbd_path(&server, "volume");
    let paths = [address.clone(), address.replace("timeout=10", "timeout=11")];
    let [first, second] = &paths;
    let table = format!(
        "0 2048 multipath 1 queue_if_no_path 0 2 1 round-robin 0 1 0 {first} round-robin 0 1 0 {second}"
    );
    host.create("volume", &table).expect_ok();
    let mut client = host.nbd("volume");
    let elsewhere = 16 * SECTOR as u64;
    let mut goes_on = |byte: u8| {
        client.write(elsewhere, &[byte; SECTOR], false).unwrap();
        assert_eq!(client.read(elsewhere, SECTOR).unwrap(), [byte; SECTOR]);
        assert_eq!(client.read(0, SECTOR).unwrap_err().raw_os_error(), Some(5));
    };
    let is = |state: &str| {
        let text = String::from_utf8(host.run(&["status", "volume"]).stdout).unwrap();
        paths.iter().all(|path| text.contains(&format!("{path} {state}")))
    };
    for _ in 0..5 {
        std::thread::sleep(BLOCKED);
        goes_on(1);
        assert!(is("A 0"), "a path has failed");
    }
    for path in &paths {
        host.message("volume", 0, format!("fail_path {path}").as_bytes()).expect_ok();
    }
    eventually("probes reinstate both", || is("A 1"));
    goes_on(2);
    assert!(is("A 1"));
}

/// Size and name of an NBD export are compared when a table is loaded, when a path that was down
/// comes up, and when a path comes back. An export that differs is neither read nor written.
#[test]
fn an_export_of_another_size_or_name_is_no_path() {
    let (host, near, mut far) = (Daemon::start_with(&QUICK), Daemon::start(), Daemon::start());
    let volume = |daemon: &Daemon, name: &str, sectors: u64| {
        let table = format!("0 {sectors} linear {} 0", daemon.path("ram0").display());
        daemon.create(name, &table).expect_ok();
    };
    let (first, second) = (nbd_path(&far, "volume"), nbd_path(&near, "volume"));
    let group = |first: &str| {
        format!("0 2048 multipath 0 0 2 1 round-robin 0 1 0 {first} round-robin 0 1 0 {second}")
    };
    let is_up = || {
        let text = String::from_utf8(host.run(&["status", "volume"]).stdout).unwrap();
        assert_ne!(
            text.contains(&format!("{first} A ")),
            text.contains(&format!("{first} F ")),
            "{text}"
        );
        text.contains(&format!("{first} A "))
    };
    let refused = |table: &str, reason: &str| {
        let error = host.create("refused", table).error();
        assert!(error.errno.name() == "EINVAL" && error.reason.contains(reason), "{error:?}");
    };
    volume(&near, "volume", 2048);
    volume(&far, "volume", 4096);
    volume(&far, "other", 2048);
    refused(&group(&first), "one size");
    refused(&group(&nbd_path(&far, "other")), "not to one");
    far.remove("volume");
    let read_only = json!({"name": "volume", "table": "0 2048 zero", "read_only": true});
    far.request("POST", route::DEVICES, read_only).expect_ok();
    let error = host.create("refused", &group(&first)).error();
    assert!(error.errno.name() == "EACCES" && error.reason.contains("is read-only"), "{error:?}");

    // The server is down at first, and then offers another volume.
    far.kill();
    host.create("volume", &group(&first)).expect_ok();
    let mut client = host.nbd("volume");
    far.start_again();
    volume(&far, "volume", 4096);
    let mut stays_away = |byte: u8| {
        std::thread::sleep(3 * BLOCKED);
        client.write(0, &[byte; SECTOR], false).unwrap();
        assert_eq!(client.read(0, SECTOR).unwrap(), [byte; SECTOR]);
        assert!(!is_up());
    };
    stays_away(1);
    far.remove("volume");
    volume(&far, "volume", 2048);
    eventually("the volume is there", is_up);

    // The server offered the volume, and comes back with another one. (If the volume only grew, it
    // would be used, up to its old size.)
    far.kill();
    eventually("it is gone", || !is_up());
    far.start_again();
    volume(&far, "volume", 1024);
    stays_away(2);
    let theirs = std::fs::read(far.path("ram0")).unwrap();
    assert_eq!(theirs[..SECTOR], sector_of("ram0", 0), "nothing was written to it");
    far.remove("volume");
    volume(&far, "volume", 2048);
    eventually("the volume is there again", is_up);
}

#[test]
fn the_monitor_tells_of_the_devices_that_are_named() {
    let daemon = Daemon::start();
    for name in ["one", "two"] {
        daemon.create(name, "0 64 switch 2 32 0 null:1M 0 null:1M 0").expect_ok();
    }
    let path = format!("{}?devices=two", route::MONITOR);
    let mut stream = crate::http::connect(&daemon.socket());
    crate::http::write_request(&mut stream, "GET", &path, &[]);
    // The head of the answer arrives when the daemon watches.
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
    }
    daemon.message("one", 0, b"set_region_mappings 0:1").expect_ok();
    daemon.message("two", 0, b"set_region_mappings 0:1 :1").expect_ok();
    let mut event: Option<MonitorEvent> = None;
    while event.is_none() {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
        event = serde_json::from_str(line.trim()).ok();
    }
    let event = event.unwrap();
    assert_eq!(
        (event.device.as_str(), event.event.as_str(), event.arguments),
        ("two", "REMAPPED", Some(2))
    );
    daemon.terminate();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""event":"DAEMON_ENDS""#), "{rest}");
    let refused = daemon.run(&["monitor", "missing"]);
    assert!(!refused.status.success());
}

/// A path that comes and goes is used last. It becomes marginal after two failures within a minute,
/// and normal again after a time without failures. While it is marginal, it is used only if no
/// other is up.
#[test]
fn a_path_that_flaps_is_used_last_until_it_was_quiet() {
    let options = ["--marginal-path", "2/60", "--marginal-path-quiet", "3"];
    let daemon = Daemon::start_with(&[&QUICK[..], &options].concat());
    let mut client = make(&daemon, "flaps", "0");
    let watcher = Watcher::new(&daemon, &[]);
    // The state of the first path and its number of failures.
    let first =
        || status(&daemon, "flaps").split(' ').skip(10).take(2).collect::<Vec<_>>().join(" ");
    let marginal = || {
        let paths = daemon.describe("flaps").troubled_paths;
        paths.iter().filter(|path| path.marginal).map(|path| path.path.clone()).collect::<Vec<_>>()
    };
    for failures in 1..=2 {
        assert_eq!(first(), format!("A {}", failures - 1));
        cut(&daemon, "a", "");
        client.write(0, &[failures; SECTOR], false).unwrap();
        eventually("it has failed", || first() == format!("F {failures}"));
        join(&daemon, "a");
        if failures == 1 {
            eventually("it is back", || first() == "A 1");
            assert!(marginal().is_empty(), "once is no flapping");
        }
    }
    eventually("it is marginal", || marginal().len() == 1 && marginal()[0].contains("path=a,"));
    let text = String::from_utf8(daemon.run(&["info", "flaps"]).stdout).unwrap();
    assert!(text.contains("Marginal path:     sim:1048576,seed=0,name=flaps,path=a,"), "{text}");
    watcher.until(&["PATH_MARGINAL"]);
    // The first path answers, but the other one is used. If the other one fails, the first is used
    // at once.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(first(), "F 2");
    cut(&daemon, "b", "");
    client.write(0, &[3; SECTOR], false).unwrap();
    assert_eq!(client.read(0, SECTOR).unwrap(), [3; SECTOR]);
    join(&daemon, "b");
    eventually("the other one is used again", || first() == "F 2");
    watcher.until(&["PATH_QUIET"]);
    eventually("it is one like any other", || first() == "A 2" && marginal().is_empty());
}
