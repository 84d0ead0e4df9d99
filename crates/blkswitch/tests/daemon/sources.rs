//! Devices whose map comes from a file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blkswitch::protocol::{ErrorBody, MapSource, RegionMap, route};
use serde_json::{Value, json};

use crate::fixture::Daemon;
use crate::state::Kept;

const TABLE: &str = "0 64 switch 2 8 0 mem:1M:v 0 mem:1M:v 0";
const ALL_ZERO: &str = "set_region_mappings 0:0 R1,7\n";
const ALL_ONE: &str = "# by a script\nset_region_mappings 0:1 R1,7\n";

/// Replaces the file as a careful script does.
fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn paths(daemon: &Daemon) -> Vec<u32> {
    let map: RegionMap = daemon.request("GET", "/v1/devices/vol/map", Value::Null).json();
    map.runs.iter().flat_map(|run| vec![run.path; run.count as usize]).collect()
}

fn source(daemon: &Daemon) -> MapSource {
    daemon.describe("vol").map_source.unwrap()
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn created(daemon: &Daemon) -> PathBuf {
    let file = daemon.path("vol.map");
    put(&file, ALL_ONE);
    let from = format!("file:{}", file.display());
    let body = json!({"name": "vol", "table": TABLE, "map_from": from});
    daemon.request("POST", route::DEVICES, body).expect_ok();
    file
}

#[test]
fn a_file_supplies_the_map_before_the_first_request_and_whenever_it_is_replaced() {
    let daemon = Daemon::start();
    let file = created(&daemon);
    // No request was routed by another map: the table went live with it.
    assert_eq!(paths(&daemon), [1; 8]);
    let generation = daemon.describe("vol").generation;
    put(&file, ALL_ZERO);
    until("the new file is applied", || paths(&daemon) == [0; 8]);
    assert_eq!(daemon.describe("vol").generation, generation + 1);
    until("the reading is shown", || source(&daemon).generation == Some(generation + 1));
    // A file that makes no sense, or is not complete, changes nothing and is reported.
    for (text, why) in [
        ("set_region_mappings 0:1", "it names no path for region 1 and 6 more"),
        ("set_region_mappings 0:1 R1,7 9:1", "'9:1': the region 9"),
        ("hello", "it begins with 'hello'"),
    ] {
        let failures = source(&daemon).failures;
        put(&file, text);
        until("it is refused", || source(&daemon).failures > failures);
        let error = source(&daemon).error.unwrap_or_default();
        assert!(error.contains(why), "{text}: {error}");
        assert_eq!(paths(&daemon), [0; 8]);
    }
    let ran = daemon.run(&["info", "vol"]);
    let info = String::from_utf8(ran.stdout).unwrap();
    assert!(info.contains("\nMap from:          file:"), "{info}");
    assert!(info.contains("\nMap not read:      no map from file:"), "{info}");
    let metrics = daemon.request("GET", route::METRICS, Value::Null).to_string();
    assert!(metrics.contains("\nblkswitch_map_source_failing{device=\"vol\"} 1"), "{metrics}");
    put(&file, ALL_ONE);
    until("a good file is taken again", || paths(&daemon) == [1; 8]);
    until("nothing is wrong", || source(&daemon).error.is_none());
    // A table that is loaded later goes live with the map, too.
    daemon.on("PUT", route::TABLE, "vol", json!({"table": TABLE})).expect_ok();
    daemon.on("POST", route::RESUME, "vol", Value::Null).expect_ok();
    assert_eq!(paths(&daemon), [1; 8]);
    std::fs::remove_file(&file).unwrap();
    let error: ErrorBody = daemon.on("PUT", route::TABLE, "vol", json!({"table": TABLE})).error();
    assert!(error.reason.contains("No such file"), "{error:?}");
    until("it is reported", || source(&daemon).error.is_some());
    assert_eq!(paths(&daemon), [1; 8]);
    // A kept map needs no source. Nothing changes it before the table is live: not its paths, and
    // not its generation, although both tables have the same memory.
    put(&file, ALL_ONE);
    until("it is read again", || source(&daemon).error.is_none());
    let generation = daemon.describe("vol").generation;
    std::fs::remove_file(&file).unwrap();
    let body = json!({"table": TABLE, "keep_map": true});
    daemon.on("PUT", route::TABLE, "vol", body).expect_ok();
    daemon.on("POST", route::RESUME, "vol", Value::Null).expect_ok();
    assert_eq!((paths(&daemon), daemon.describe("vol").generation), (vec![1; 8], generation));
    let body = json!({"table": TABLE, "map": ALL_ZERO});
    let error: ErrorBody = daemon.on("PUT", route::TABLE, "vol", body).error();
    assert!(error.reason.contains("either --map FILE or that of file:"), "{error:?}");
}

#[test]
fn what_cannot_be_a_source_is_refused_and_leaves_nothing() {
    let daemon = Daemon::start();
    let file = daemon.path("none");
    let missing = format!("file:{}", file.display());
    for (table, from, expected) in [
        (TABLE, "file:map", "'map' must be an absolute path"),
        (TABLE, "etcd", "there is no source of maps 'etcd'"),
        (TABLE, &missing, "No such file"),
        (TABLE, "referrals", "no map from referrals: "),
        ("0 64 zero", "file:/m", "the table has no switch segment"),
    ] {
        let body = json!({"name": "vol", "table": table, "map_from": from});
        let error: ErrorBody = daemon.request("POST", route::DEVICES, body).error();
        assert!(error.reason.contains(expected), "{from}: {error:?}");
        let listed = daemon.run(&["ls"]);
        assert!(!String::from_utf8(listed.stdout).unwrap().contains("vol"));
    }
    let body = json!({"name": "vol", "map_from": "file:/m"});
    let error: ErrorBody = daemon.request("POST", route::DEVICES, body).error();
    assert!(error.reason.contains("without a table"), "{error:?}");
}

#[test]
fn a_message_to_a_supplied_map_needs_force() {
    let daemon = Daemon::start();
    let file = created(&daemon);
    let words = ["message", "vol", "0", "set_region_mappings", "0:0"];
    let ran = daemon.run(&words);
    let text = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1));
    assert!(text.contains("the map of 'vol' comes from file:"), "{text}");
    assert_eq!(paths(&daemon), [1; 8]);
    let ran = daemon.run(&["message", "--force", "vol", "0", "set_region_mappings", "0:0"]);
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(paths(&daemon)[..2], [0, 1]);
    put(&file, ALL_ZERO);
    until("the source is read again", || paths(&daemon) == [0; 8]);
}

/// The kept map serves until the source is read, and the source is known after a restart.
#[test]
fn a_restarted_daemon_follows_on() {
    let kept = Kept::new();
    let file = kept.folder.path().join("vol.map");
    put(&file, "set_region_mappings 0:2 R1,7");
    let mut daemon = kept.start();
    let from = format!("file:{}", file.display());
    let leaves = json!({"make_files": true});
    let body = json!({"name": "vol", "table": kept.table(8), "map_from": from, "leaves": leaves});
    daemon.request("POST", route::DEVICES, body).expect_ok();
    let generation = daemon.describe("vol").generation;
    daemon.kill();
    // The file is away: the map goes on as it was.
    std::fs::rename(&file, file.with_extension("away")).unwrap();
    let mut daemon = kept.start();
    assert_eq!(paths(&daemon), [2; 8]);
    assert_eq!(daemon.describe("vol").generation, generation);
    until("the missing file is reported", || source(&daemon).error.is_some());
    daemon.kill();
    put(&file, ALL_ZERO);
    let daemon = kept.start();
    until("the file is read", || paths(&daemon) == [0; 8]);
    assert_eq!(source(&daemon).source, from);
}
