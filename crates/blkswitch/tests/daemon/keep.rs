//! Tables that go live with the map of the one before, or with one of their own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use blkswitch::protocol::{Errno, ErrorBody, route};
use serde_json::{Value, json};

use crate::fixture::{Daemon, PATIENCE, SECTOR, sector_of};
use crate::state::Kept;

/// Sectors of a region.
const REGION: u64 = 8;
/// Regions of the device.
const REGIONS: u64 = 512;

/// A table of the device over these disks.
fn table(daemon: &Daemon, disks: &[&str]) -> String {
    let paths: String =
        disks.iter().map(|disk| format!(" {} 0", daemon.path(disk).display())).collect();
    format!("0 {} switch {} {REGION} 0{paths}", REGIONS * REGION, disks.len())
}

fn load(daemon: &Daemon, body: Value) -> Result<(), ErrorBody> {
    let reply = daemon.on("PUT", route::TABLE, "vol", body);
    if reply.is_ok() { Ok(()) } else { Err(reply.error()) }
}

fn resume(daemon: &Daemon) {
    daemon.on("POST", route::RESUME, "vol", Value::Null).expect_ok();
}

/// The disk on which a region of the test's map is. Round robin has most of them elsewhere.
fn disk_of(region: u64) -> usize {
    (region / 3 + region / 50) as usize % 3
}

fn arguments() -> Vec<u8> {
    let edits = (0..REGIONS).map(|region| format!(" {region:x}:{:x}", disk_of(region)));
    ["set_region_mappings".to_owned()].into_iter().chain(edits).collect::<String>().into_bytes()
}

/// Clients read all the time. A request that was routed by round robin, or by a number of another
/// table, would find another disk.
#[test]
fn no_request_is_routed_by_another_map_while_tables_are_loaded() {
    const ORDERS: [&[&str]; 5] = [
        &["ram0", "ram1", "ram2"],
        &["ram0", "ram1", "ram2", "ram3"],
        &["ram2", "ram0", "ram3", "ram1"],
        &["ram3", "ram2", "ram1", "ram0", "ram3"],
        &["ram0", "ram1", "ram2"],
    ];
    let daemon = Daemon::start();
    daemon.create("vol", &table(&daemon, ORDERS[0])).expect_ok();
    daemon.message("vol", 0, &arguments()).expect_ok();
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 1..3u64 {
            let (daemon, done, reads) = (&daemon, &done, &reads);
            scope.spawn(move || {
                let (mut client, mut random) = (daemon.nbd("vol"), seed);
                let begin = Instant::now();
                // If the loads fail, the test must end, too.
                while !done.load(Ordering::Relaxed) && begin.elapsed() < PATIENCE {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // The last region is changed by messages.
                    let sector = (random >> 33) % ((REGIONS - 1) * REGION);
                    let found = client.read(sector * SECTOR as u64, SECTOR).unwrap();
                    let disk = format!("ram{}", disk_of(sector / REGION));
                    assert_eq!(found, sector_of(&disk, sector), "sector {sector}");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..20 {
            let disks = ORDERS[round % ORDERS.len()];
            let force = round > 0;
            let body = json!({"table": table(&daemon, disks), "keep_map": true, "force": force});
            load(&daemon, body).unwrap();
            if round % 3 == 0 {
                let live = ORDERS[round.saturating_sub(1) % ORDERS.len()];
                let path = live.iter().position(|disk| *disk == "ram1").unwrap();
                let message = format!("set_region_mappings {:x}:{path}", REGIONS - 1);
                daemon.message("vol", 0, message.as_bytes()).expect_ok();
            }
            let map = daemon.map("vol", 0);
            let before: Vec<_> = map.iter().map(|path| path_of(&daemon, *path)).collect();
            resume(&daemon);
            let map = daemon.map("vol", 0);
            let after: Vec<_> = map.iter().map(|path| path_of(&daemon, *path)).collect();
            assert_eq!(after, before, "round {round}");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(reads.into_inner() > 100);
}

/// The disk that a path of the live table leads to.
fn path_of(daemon: &Daemon, path: u32) -> String {
    let segment = daemon.describe("vol").live.unwrap().segments.remove(0);
    let words: Vec<_> = segment.params.split_whitespace().map(str::to_owned).collect();
    words[3 + 2 * path as usize].clone()
}

#[test]
fn a_map_that_cannot_be_kept_is_refused_with_the_reason() {
    let daemon = Daemon::start();
    let three = table(&daemon, &["ram0", "ram1", "ram2"]);
    daemon.create("vol", &three).expect_ok();
    daemon.message("vol", 0, b"set_region_mappings 0:0 R1,1ff 5:2 :2 9:2").expect_ok();
    let keep = |table: &str| load(&daemon, json!({"table": table, "keep_map": true}));
    let smaller = three.replacen("4096 switch", "4088 switch", 1);
    let two = table(&daemon, &["ram0", "ram1"]);
    for (table, part) in [
        (three.replace("3 8 0", "3 16 0"), "regions of 16 sectors and the old one of 8"),
        (smaller, "has 511 regions and the old one 512"),
        (table(&daemon, &["ram0", "ram2", "ram1"]), "ram1) is path 2 in the new table"),
        (two.clone(), "lose their path: 5-6 on path 2, 9 on path 2. The new table has no path"),
        (three.replace("ram2 0", "ram2 8"), "5-6 on path 2, 9 on path 2"),
        ("0 4096 linear mem:2M 0".to_owned(), "no switch segment that begins there"),
    ] {
        let error = keep(&table).unwrap_err();
        assert!(error.errno == Errno::Einval && error.reason.contains(part), "{}", error.reason);
        assert!(daemon.describe("vol").inactive.is_none());
    }
    // Nothing of the map is on path 2, but a message puts a region there before the resume.
    daemon.message("vol", 0, b"set_region_mappings 5:0 :0 9:0").expect_ok();
    keep(&two).unwrap();
    daemon.message("vol", 0, b"set_region_mappings 1ff:2").expect_ok();
    let error = daemon.on("POST", route::RESUME, "vol", Value::Null).error();
    assert!(error.reason.contains("lose their path: 511 on path 2"), "{}", error.reason);
    assert_eq!((daemon.map("vol", 0)[511], path_of(&daemon, 2).ends_with("ram2")), (2, true));
    daemon.message("vol", 0, b"set_region_mappings 1ff:1").expect_ok();
    resume(&daemon);
    assert_eq!(daemon.map("vol", 0)[510..], [0, 1]);
    // The same paths: the same map, and the same generation. New regions are round robin.
    let generation = daemon.describe("vol").generation;
    keep(&two).unwrap();
    daemon.message("vol", 0, b"set_region_mappings 0:1").expect_ok();
    resume(&daemon);
    assert_eq!(daemon.describe("vol").generation, generation + 1, "only the message");
    assert_eq!(daemon.map("vol", 0)[..2], [1, 0]);
    keep(&two.replacen("4096 switch", "4120 switch", 1)).unwrap();
    resume(&daemon);
    assert_eq!(daemon.map("vol", 0)[510..], [0, 1, 0, 1, 0]);
    let ran = daemon.run(&["load", "vol", "--keep-map", "--map", "x", "--table", &two]);
    assert!(String::from_utf8(ran.stderr).unwrap().contains("cannot be used with"));
}

#[test]
fn a_table_can_come_with_a_map() {
    let daemon = Daemon::start();
    let three = table(&daemon, &["ram0", "ram1", "ram2"]);
    let file = daemon.path("map");
    let file = file.to_str().unwrap();
    std::fs::write(file, "# by hand\nset_region_mappings 0:2 # two\n:1 R2,1fe\n# generation 5\n")
        .unwrap();
    let ran = daemon.run(&["create", "vol", "--table", &three, "--map", file]);
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(daemon.map("vol", 0)[508..], [2, 1, 2, 1]);
    for (map, part) in [
        ("set_region_mappings 0:2 0:3", "0:3"),
        ("get_region_mappings", "begins with 'get_region_mappings': it must be"),
        ("", "begins with ''"),
    ] {
        let error = load(&daemon, json!({"table": three, "map": map})).unwrap_err();
        assert!(error.errno == Errno::Einval && error.reason.contains(part), "{}", error.reason);
    }
    // A message between load and resume would be lost.
    let body = json!({"table": three, "map": "set_region_mappings 0:0 R1,1ff"});
    load(&daemon, body.clone()).unwrap();
    daemon.message("vol", 0, b"set_region_mappings 0:1").expect_ok();
    let error = daemon.on("POST", route::RESUME, "vol", Value::Null).error();
    assert_eq!((error.errno.name(), error.generation), ("ESTALE", Some(2)), "{}", error.reason);
    assert_eq!(daemon.map("vol", 0)[..2], [1, 1]);
    load(&daemon, body).unwrap();
    resume(&daemon);
    assert_eq!(daemon.map("vol", 0)[..2], [0, 0]);
    let error = daemon.request(
        "POST",
        route::DEVICES,
        json!({"name": "bare", "map": "set_region_mappings"}),
    );
    assert!(error.error().reason.contains("has no table"));
}

#[test]
fn a_kept_map_survives_restarts() {
    let kept = Kept::new();
    let mut daemon = kept.start();
    kept.create(&daemon, "vol", REGIONS);
    daemon.message("vol", 0, b"set_region_mappings 0:2 R1,1fe").expect_ok();
    let three = kept.table(REGIONS);
    let four = format!("{} {} 0", three.replacen("switch 3", "switch 4", 1), kept.path(3));
    for (round, table) in [&three, &four, &four].into_iter().enumerate() {
        let leaves = json!({"make_files": true});
        load(&daemon, json!({"table": table, "keep_map": true, "leaves": leaves})).unwrap();
        let message = format!("set_region_mappings {round:x}:1");
        daemon.message("vol", 0, message.as_bytes()).expect_ok();
        resume(&daemon);
        let (map, generation) = (daemon.map("vol", 0), daemon.describe("vol").generation);
        assert_eq!((map[round], map[round + 1], map[REGIONS as usize - 2]), (1, 2, 2));
        daemon.kill();
        daemon = kept.start();
        assert_eq!(daemon.map("vol", 0), map, "round {round}");
        assert_eq!(daemon.describe("vol").generation, generation);
    }
}
