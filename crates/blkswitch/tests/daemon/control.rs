//! Tests the control protocol where no recording shows the right answer: long and stalled messages,
//! all-or-nothing, refusals of tables, devices below devices, events, metrics, malformed requests.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use blkswitch::protocol::{
    self, DeviceStats, Errno, IoStats, MessageReply, Removed, device_path, route,
};
use serde_json::{Value, json};

use crate::fixture::{Daemon, SECTOR, eventually, sector_of};
use crate::http;

/// A million regions of one sector on three paths.
const MILLION: u64 = 1 << 20;

fn million(daemon: &Daemon) {
    let size = MILLION / 2;
    let table = format!("0 {MILLION} switch 3 1 0 null:{size}K 0 null:{size}K 0 null:{size}K 0");
    daemon.create("m", &table).expect_ok();
}

/// Resident memory of the daemon in KiB: the current and the highest value.
fn memory_kib(daemon: &Daemon) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}

#[test]
fn a_message_of_any_length_takes_little_memory() {
    let daemon = Daemon::start();
    million(&daemon);
    let mut text = b"set_region_mappings".to_vec();
    // The whole map three times, some 24 MB.
    for round in 0..3u64 {
        for region in 0..MILLION {
            write!(text, " {region:x}:{:x}", (region / 7 + round) % 3).unwrap();
        }
    }
    let (before, _) = memory_kib(&daemon);
    let reply: MessageReply = daemon.message("m", 0, &text).json();
    assert_eq!(reply.arguments, 3 * MILLION);
    let (_, highest) = memory_kib(&daemon);
    assert!(text.len() > 20 << 20);
    assert!(highest - before < 8 << 10, "{before} KiB before, {highest} KiB at most");
    let map = daemon.map("m", 0);
    assert!((0..MILLION).all(|region| map[region as usize] == ((region / 7 + 2) % 3) as u32));
}

#[test]
fn a_refused_word_in_a_long_message_is_told_and_what_came_before_stays() {
    let daemon = Daemon::start();
    million(&daemon);
    let text =
        format!("set_region_mappings 0:2 {} bad {}", ":1 ".repeat(200_000), ":0 ".repeat(800_000));
    let error = daemon.message("m", 0, text.as_bytes()).error();
    assert_eq!(error.errno, Errno::Einval);
    assert_eq!(
        error.kernel,
        ["device-mapper: switch: invalid set_region_mappings argument: 'bad'"]
    );
    assert!(error.reason.starts_with("argument 200002 'bad': "), "{}", error.reason);
    let map = daemon.map("m", 0);
    assert_eq!(map[..3], [2, 1, 1]);
    assert_eq!((map[200_000], map[200_001]), (1, (200_001 % 3) as u32));
}

#[test]
fn an_atomic_message_is_applied_whole_or_not_at_all() {
    let daemon = Daemon::start();
    million(&daemon);
    let before = daemon.map("m", 0);
    let path = format!("{}?atomic=true", device_path(route::MESSAGE, "m"));
    let send = |text: &str| http::send(&daemon.socket(), "POST", &path, text.as_bytes());
    let long = ":1 ".repeat(300_000);
    let error = send(&format!("set_region_mappings 0:2 {long} 0:9")).error();
    assert_eq!(error.kernel, ["device-mapper: switch: invalid set_region_mappings device: 9 >= 3"]);
    assert_eq!(daemon.map("m", 0), before);
    let reply: MessageReply = send(&format!("set_region_mappings 0:2 {long}")).json();
    assert_eq!(reply.arguments, 300_001);
    assert_eq!(daemon.map("m", 0)[300_000], 1);
}

/// Sends the head of a request and the beginning of a chunked body, and then nothing more.
fn stall(daemon: &Daemon, name: &str, words: &str) -> std::os::unix::net::UnixStream {
    let mut stream = http::connect(&daemon.socket());
    let path = device_path(route::MESSAGE, name);
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .unwrap();
    write!(stream, "{:x}\r\n{words}\r\n", words.len()).unwrap();
    stream
}

#[test]
fn a_stalled_client_does_not_keep_others_out() {
    let daemon = Daemon::start();
    million(&daemon);
    // A short message that stalls does not take the lock. A long one loses the lock after ten
    // seconds.
    let _short = stall(&daemon, "m", "set_region_mappings 0:2");
    let begun = Instant::now();
    daemon.message("m", 0, b"set_region_mappings 0:1").expect_ok();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let long = format!("set_region_mappings {}", ":2 ".repeat(200_000));
    let mut stalled = stall(&daemon, "m", &long);
    thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    daemon.message("m", 0, b"set_region_mappings 0:1").expect_ok();
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let error = http::read_reply(&mut stalled).error();
    assert_eq!(error.errno, Errno::Etimedout);
    assert!(error.reason.contains("the message stalled"), "{}", error.reason);
}

#[test]
fn a_client_that_is_lost_in_a_message_harms_nobody() {
    let daemon = Daemon::start();
    million(&daemon);
    for _ in 0..20 {
        drop(stall(&daemon, "m", &format!("set_region_mappings {}", ":2 ".repeat(200_000))));
    }
    // Blocks of the lost clients may still be applied before or after this message. They must not
    // delay it, and when no more are left, this message stays.
    eventually("the lost clients' messages have run dry", || {
        daemon.message("m", 0, b"set_region_mappings 0:1 R1,fffff").expect_ok();
        daemon.map("m", 0).iter().all(|path| *path == 1)
    });
}

#[test]
fn exported_maps_are_imported_anywhere() {
    let daemon = Daemon::start();
    million(&daemon);
    daemon.message("m", 0, b"set_region_mappings 1000:1 :2 R2,10 fffff:0 5:0 :0 :0 :1").expect_ok();
    let map = daemon.map("m", 0);
    let exported = daemon.run(&["map", "export", "m"]).stdout;
    assert!(exported.len() < 300, "{}", String::from_utf8_lossy(&exported));
    daemon.message("m", 0, b"set_region_mappings 0:2 R1,fffff").expect_ok();
    let file = daemon.path("map");
    std::fs::write(&file, exported).unwrap();
    let imported = daemon.run(&["map", "import", "m", file.to_str().unwrap(), "--atomic"]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    assert_eq!(daemon.map("m", 0), map);
}

/// The kernel loses such a message and reports success.
#[test]
fn a_message_without_a_live_table_is_an_error() {
    let daemon = Daemon::start();
    daemon.request("POST", route::DEVICES, json!({"name": "s", "table": null})).expect_ok();
    let refused = || {
        let error = daemon.message("s", 0, b"set_region_mappings 0:1").error();
        assert_eq!((error.errno, error.ioctl.as_str()), (Errno::Einval, "message"));
        assert_eq!(error.kernel, ["device-mapper: ioctl: The device has no table."]);
        assert!(error.reason.contains("no live table: load one and resume"), "{}", error.reason);
    };
    refused();
    // A table in the inactive slot does not count.
    let table = json!({"table": "0 2048 switch 2 128 0 mem:1M 0 mem:1M 0"});
    daemon.on("PUT", route::TABLE, "s", table).expect_ok();
    refused();
    let ran = daemon.run(&["message", "s", "0", "set_region_mappings", "0:1"]);
    assert!(!ran.status.success());
    daemon.on("POST", route::RESUME, "s", Value::Null).expect_ok();
    assert_eq!(daemon.map("s", 0)[..3], [0, 1, 0], "nothing of them was kept");
    daemon.message("s", 0, b"set_region_mappings 0:1").expect_ok();
    assert_eq!(daemon.map("s", 0)[..3], [1, 1, 0]);
}

#[test]
fn a_reload_begins_with_round_robin_and_an_exported_map_carries_over() {
    let daemon = Daemon::start();
    let table = "0 2048 switch 2 128 0 mem:1M 0 mem:1M 0";
    daemon.create("s", table).expect_ok();
    daemon.message("s", 0, b"set_region_mappings 0:1 R1,7").expect_ok();
    let (map, exported) = (daemon.map("s", 0), daemon.run(&["map", "export", "s"]).stdout);
    daemon.on("PUT", route::TABLE, "s", json!({"table": table})).expect_ok();
    daemon.on("POST", route::RESUME, "s", Value::Null).expect_ok();
    assert_eq!(daemon.map("s", 0)[..4], [0, 1, 0, 1]);
    daemon.message("s", 0, exported.trim_ascii()).expect_ok();
    assert_eq!(daemon.map("s", 0), map);
}

#[test]
fn parts_of_a_map_and_wrong_parts() {
    let daemon = Daemon::start();
    daemon
        .create(
            "s",
            "0 1000 switch 2 10 0 mem:1M 0 mem:1M 0\n1000 100 zero\n1100 20 switch 1 1 0 mem:1M 0",
        )
        .expect_ok();
    let get =
        |query: &str| daemon.request("GET", &format!("/v1/devices/s/map?{query}"), Value::Null);
    let map: protocol::RegionMap = get("sector=5&from=98&to=99").json();
    assert_eq!((map.regions, map.paths, map.region_size), (100, 2, 10));
    let runs: Vec<_> = map.runs.iter().map(|run| (run.start, run.count, run.path)).collect();
    assert_eq!(runs, [(98, 1, 0), (99, 1, 1)]);
    for (query, part) in [
        ("", "2 switch segments, at sectors [0, 1100]"),
        ("sector=1050", "is zero, and only switch has a region map"),
        ("sector=1120", "past the end"),
        ("sector=0&from=3&to=2", "the regions 3 to 2"),
        ("sector=0&to=100", "nor the last above 99"),
        ("sector=x", "sector=x"),
        ("colour=red", "colour"),
    ] {
        let error = get(query).error();
        assert_eq!(error.errno, Errno::Einval);
        assert!(error.reason.contains(part), "{query}: {}", error.reason);
    }
}

#[test]
fn tables_of_other_targets_are_refused_with_the_kernels_words() {
    let daemon = Daemon::start();
    let ram = daemon.path("ram0").display().to_string();
    for (table, line, reason) in [
        ("0 8 linear", "linear: Invalid argument count (-EINVAL)", "a device and an offset"),
        (
            "0 8 linear RAM -1",
            "linear: Invalid device sector (-EINVAL)",
            "'-1' must be a decimal number",
        ),
        (
            "0 8 linear /dev/nosuch 0",
            "linear: Device lookup failed (-ENOENT)",
            "cannot open '/dev/nosuch'",
        ),
        ("0 8 linear mem:100 0", "linear: Device lookup failed (-EINVAL)", "a multiple of 512"),
        ("0 8 linear sim:1M,luck=none 0", "linear: Device lookup failed (-EINVAL)", "luck=none"),
        (
            "0 9000 linear RAM 0",
            "ram0 too small for target: start=0, len=9000, dev_size=8192",
            "has only 8192 sectors",
        ),
        (
            "0 8 striped 2",
            "striped: Not enough arguments (-EINVAL)",
            "a stripe count and a chunk size",
        ),
        ("0 8 striped 0 4 RAM 0", "striped: Invalid stripe count (-EINVAL)", "'0' must be"),
        ("0 8 striped 2 x RAM 0", "striped: Invalid chunk_size (-EINVAL)", "'x' must be"),
        (
            "0 9 striped 2 4 RAM 0 RAM 8",
            "striped: Target length not divisible by number of stripes (-EINVAL)",
            "2 stripes",
        ),
        (
            "0 16 striped 2 3 RAM 0 RAM 8",
            "striped: Target length not divisible by chunk size (-EINVAL)",
            "chunk of 3",
        ),
        (
            "0 16 striped 2 4 RAM 0 RAM",
            "striped: Not enough destinations specified (-EINVAL)",
            "but 3 words follow",
        ),
        (
            "0 16 striped 2 4 RAM 0 RAM x",
            "striped: Couldn't parse stripe destination (-EINVAL)",
            "'x' must be",
        ),
        (
            "0 16 striped 2 4 RAM 0 /dev/nosuch 0",
            "striped: Couldn't parse stripe destination (-ENOENT)",
            "/dev/nosuch",
        ),
        ("0 8 zero 1", "zero: No arguments required (-EINVAL)", "no parameters"),
        ("0 8 error 1", "error: Invalid argument count (-EINVAL)", "no parameters"),
        (
            "0 8 zero\n0 8 zero",
            "zero: Gap in table (-EINVAL)",
            "line 2: the target starts at sector 0",
        ),
        ("0 8 linear 259:1048576 0", "linear: Device lookup failed (-EOVERFLOW)", "below 1048576"),
        ("0 8 linear 0:99 0", "linear: Device lookup failed (-ENXIO)", "no blkswitch device 0:99"),
    ] {
        let error = daemon.create("t", &table.replace("RAM", &ram)).error();
        assert_eq!(error.kernel[0], format!("device-mapper: table: 0:0: {line}"), "{table}");
        assert!(error.reason.contains(reason), "{table}: {}", error.reason);
        assert_eq!((error.ioctl.as_str(), error.device), ("reload", Some([0, 0])));
    }
    assert_eq!(
        daemon.create("t", " \n# nothing\n").error().kernel,
        ["device-mapper: ioctl: populate_table: no targets specified"]
    );
    assert_eq!(daemon.run(&["ls"]).stdout, b"No devices found\n");
}

#[test]
fn stripes_go_where_they_should() {
    let daemon = Daemon::start();
    let rams = [0, 1].map(|ram| daemon.path(&format!("ram{ram}")).display().to_string());
    daemon.create("s", &format!("0 64 striped 2 8 {} 100 {} 200", rams[0], rams[1])).expect_ok();
    let mut client = daemon.nbd("s");
    let data = client.read(0, 64 * SECTOR).unwrap();
    for sector in 0..64u64 {
        let (chunk, within) = (sector / 8, sector % 8);
        let (ram, base) = if chunk % 2 == 0 { ("ram0", 100) } else { ("ram1", 200) };
        let at = sector as usize * SECTOR;
        assert_eq!(
            data[at..at + SECTOR],
            sector_of(ram, base + chunk / 2 * 8 + within),
            "sector {sector}"
        );
    }
    let device = daemon.describe("s");
    let segment = &device.live.unwrap().segments[0];
    assert_eq!(segment.params, format!("2 8 {} 100 {} 200", rams[0], rams[1]));
    assert_eq!(segment.status, format!("2 {} {} 1 AA", rams[0], rams[1]));
}

#[test]
fn devices_stand_on_devices_by_name_and_number() {
    let daemon = Daemon::start();
    daemon.create("low", "0 2048 linear mem:1M 0").expect_ok();
    daemon.create("by-name", "0 8 linear /dev/blkswitch/low 0").expect_ok();
    daemon.create("by-number", "0 8 linear 0:0 8").expect_ok();
    let low = daemon.describe("low");
    assert_eq!(low.open_count, 2);
    let deps = daemon.describe("by-number").live.unwrap().deps;
    assert_eq!(
        (deps.len(), deps[0].is_device, deps[0].address.as_str()),
        (1, true, "/dev/blkswitch/low")
    );
    daemon.nbd("by-name").write(0, &[1; 512], false).unwrap();
    daemon.nbd("by-number").write(0, &[2; 512], false).unwrap();
    assert_eq!(daemon.nbd("low").read(0, 512).unwrap(), [1; 512]);
    assert_eq!(daemon.nbd("low").read(8 * 512, 512).unwrap(), [2; 512]);
    // A device below appears under its current name.
    daemon.on("POST", route::RENAME, "low", json!({"name": "lower"})).expect_ok();
    assert_eq!(
        daemon.describe("by-name").live.unwrap().segments[0].params,
        "/dev/blkswitch/lower 0"
    );
    // A loop is refused, however long it is.
    let around = json!({"table": "0 8 linear /dev/blkswitch/by-name 0"});
    let error = daemon.on("PUT", route::TABLE, "lower", around).error();
    assert_eq!(error.errno, Errno::Einval);
    assert!(error.reason.contains("stand on itself"), "{}", error.reason);
    assert!(daemon.describe("lower").inactive.is_none());
}

#[test]
fn remove_all_takes_stacks_apart_and_leaves_what_is_open() {
    let daemon = Daemon::start();
    daemon.create("a", "0 2048 linear mem:1M 0").expect_ok();
    daemon.create("b", "0 8 linear /dev/mapper/a 0").expect_ok();
    daemon.create("open", "0 8 zero").expect_ok();
    let client = daemon.nbd("open");
    let removed: Removed = daemon.request("POST", route::REMOVE_ALL, json!({})).json();
    assert_eq!(
        (removed.removed, removed.busy),
        (vec!["b".into(), "a".into()], vec!["open".into()])
    );
    // With `force` an open device is wiped but stays. With `deferred` it goes with its last user.
    let removed: Removed =
        daemon.request("POST", route::REMOVE_ALL, json!({"force": true, "deferred": true})).json();
    assert_eq!(removed.busy, ["open"]);
    let device = daemon.describe("open");
    assert_eq!(
        (device.deferred_remove, device.live.unwrap().segments[0].target.as_str()),
        (true, "error")
    );
    client.disconnect().unwrap();
    eventually("a device that is to go with its last user goes", || {
        daemon.run(&["ls"]).stdout == b"No devices found\n"
    });
}

#[test]
fn a_file_is_one_leaf_for_all_tables_and_nobody_elses() {
    let daemon = Daemon::start();
    let ram = daemon.path("ram0").display().to_string();
    daemon.create("a", &format!("0 8 linear {ram} 0")).expect_ok();
    daemon.create("b", &format!("0 8 linear {ram} 0")).expect_ok();
    daemon.nbd("a").write(0, &[9; 512], false).unwrap();
    assert_eq!(daemon.nbd("b").read(0, 512).unwrap(), [9; 512]);
    let other = Daemon::start();
    let error = other.create("c", &format!("0 8 linear {ram} 0")).error();
    assert_eq!(error.errno, Errno::Ebusy);
    assert!(error.reason.contains("one writer at a time"), "{}", error.reason);
    // The file is free each time the devices are removed and created again at once.
    for _ in 0..20 {
        daemon.remove("a");
        daemon.remove("b");
        daemon.create("a", &format!("0 8 linear {ram} 0")).expect_ok();
        daemon.create("b", &format!("0 8 linear {ram} 0")).expect_ok();
    }
}

#[test]
fn missing_files_are_made_when_asked_for_and_not_left_by_a_refused_table() {
    let daemon = Daemon::start();
    let file = daemon.path("new").display().to_string();
    let create = |table: String| {
        daemon.request(
            "POST",
            route::DEVICES,
            json!({"name": "n", "table": table, "leaves": {"make_files": true}}),
        )
    };
    assert_eq!(create(format!("0 100 linear {file} 8\n100 8 nosuch")).error().errno, Errno::Einval);
    assert!(!daemon.path("new").exists());
    create(format!("0 100 linear {file} 8\n100 64 striped 2 8 {file} 0 {file} 200")).expect_ok();
    // The first target needs 8 + 100 sectors, the second 200 + 32.
    assert_eq!(daemon.path("new").metadata().unwrap().len(), 232 * 512);
}

#[test]
fn a_flush_reaches_every_path_with_unflushed_writes_and_no_other() {
    let daemon = Daemon::start();
    let paths: String =
        (0..3).map(|ram| format!(" {} 0", daemon.path(&format!("ram{ram}")).display())).collect();
    daemon.create("s", &format!("0 2048 switch 3 128 0{paths}")).expect_ok();
    let mut client = daemon.nbd("s");
    // The first flush reaches every file, because an earlier user of the files may have left
    // unflushed writes.
    client.flush().unwrap();
    client.write(0, &[1; 512], false).unwrap();
    // The flush of another connection covers the write. The second write is to path 2.
    client.write(256 * 512, &[1; 512], false).unwrap();
    daemon.nbd("s").flush().unwrap();
    client.flush().unwrap();
    let stats: DeviceStats = daemon.on("GET", route::STATS, "s", Value::Null).json();
    assert_eq!((stats.total.writes, stats.total.flushes), (2, 3));
    let flushes: Vec<u64> = stats.paths.iter().map(|path| path.io.flushes).collect();
    assert_eq!(flushes, [2, 1, 2], "each dirty path once, and nothing when all is clean");
    assert!(stats.total.write_latency.p50_ns > 0 && stats.total.read_latency.p50_ns == 0);
}

/// A request that ends at a device below without a leaf is counted for the path that led there, and
/// for that device.
#[test]
fn what_error_and_zero_targets_answer_is_counted_on_the_way_there() {
    let daemon = Daemon::start();
    daemon.create("bad", "0 1024 error\n1024 1024 zero").expect_ok();
    daemon.create("s", "0 2048 switch 2 1024 0 /dev/blkswitch/bad 0 mem:1M 0").expect_ok();
    daemon.create("t", "0 2048 linear /dev/blkswitch/bad 0").expect_ok();
    let mut client = daemon.nbd("s");
    assert_eq!(client.read(0, 4096).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(client.write(4096, &[1; 4096], false).unwrap_err().raw_os_error(), Some(5));
    client.read(1024 * 512, 512).unwrap();
    // One request that meets both kinds: each piece counts.
    assert!(daemon.nbd("t").read(1023 * 512, 1024).is_err());
    let stats = |name| daemon.on("GET", route::STATS, name, Value::Null).json::<DeviceStats>();
    let [s, t, bad] = ["s", "t", "bad"].map(stats);
    let counts = |io: &IoStats| (io.reads, io.writes, io.errors);
    assert_eq!(counts(&s.total), (2, 1, 2));
    assert_eq!([counts(&s.paths[0].io), counts(&s.paths[1].io)], [(1, 1, 2), (1, 0, 0)]);
    assert_eq!(counts(&t.total), (1, 0, 1));
    assert_eq!(counts(&t.paths[0].io), (2, 0, 1));
    assert_eq!(counts(&bad.total), (3, 1, 3));
}

#[test]
fn events_are_raised_by_renames_and_by_the_end() {
    let daemon = Daemon::start();
    daemon.create("e", "0 8 zero").expect_ok();
    let wait = |name: &str, after: u32| {
        http::begin(&daemon, name, &format!("/v1/devices/{name}/events?after={after}"))
    };
    let mut renamed = wait("e", 0);
    daemon.on("POST", route::RENAME, "e", json!({"name": "f"})).expect_ok();
    let events: protocol::Events = http::read_reply(&mut renamed).json();
    assert_eq!(events, protocol::Events { event_nr: 1, changed: true });
    let mut removed = wait("f", 1);
    daemon.remove("f");
    assert!(http::read_reply(&mut removed).json::<protocol::Events>().changed);
}

#[test]
fn names_uuids_and_numbers_are_one_devices_own() {
    let daemon = Daemon::start();
    let create = |body: Value| daemon.request("POST", route::DEVICES, body);
    create(json!({"name": "a", "uuid": "U", "minor": 7})).expect_ok();
    assert_eq!(daemon.describe("a").minor, 7);
    for body in
        [json!({"name": "a"}), json!({"name": "b", "uuid": "U"}), json!({"name": "b", "minor": 7})]
    {
        let error = create(body).error();
        assert_eq!((error.errno, error.ioctl.as_str()), (Errno::Ebusy, "create"));
    }
    assert_eq!(create(json!({"name": "b", "minor": 1 << 20})).error().errno, Errno::Einval);
    create(json!({"name": "b"})).expect_ok();
    let rename = |body: Value| daemon.on("POST", route::RENAME, "b", body);
    let error = rename(json!({"name": "a"})).error();
    assert_eq!(error.errno, Errno::Ebusy);
    assert_eq!(
        error.kernel,
        [
            "device-mapper: ioctl: Unable to change name on mapped device b to one that already exists: a"
        ]
    );
    assert_eq!(rename(json!({"uuid": "U"})).error().errno, Errno::Ebusy);
    rename(json!({"uuid": "V"})).expect_ok();
    assert_eq!(rename(json!({"uuid": "W"})).error().errno, Errno::Einval);
    assert_eq!(rename(json!({"name": "x/y"})).error().errno, Errno::Einval);
}

#[test]
fn metrics_count_devices_and_paths() {
    let daemon = Daemon::start();
    daemon.create("m", "0 2048 switch 2 128 0 mem:1M 0 mem:1M 0").expect_ok();
    let mut client = daemon.nbd("m");
    client.write(128 * 512, &[1; 4096], false).unwrap();
    client.read(0, 512).unwrap();
    let reply = daemon.request("GET", route::METRICS, Value::Null).expect_ok();
    let text = String::from_utf8(reply.body).unwrap();
    for line in [
        r#"blkswitch_requests_total{device="m",op="read"} 1"#,
        r#"blkswitch_bytes_total{device="m",op="write"} 4096"#,
        r#"blkswitch_path_requests_total{device="m",segment="0",path="1",address="mem:1048576",op="write"} 1"#,
        r#"blkswitch_latency_seconds_count{device="m",op="read"} 1"#,
        r#"blkswitch_latency_seconds_bucket{le="+Inf",device="m",op="write"} 1"#,
        r#"blkswitch_opens{device="m"} 1.0"#,
        r#"blkswitch_size_bytes{device="m"} 1048576.0"#,
        r#"blkswitch_regions{device="m"} 16.0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "'{line}' is missing in:\n{text}");
    }
}

#[test]
fn malformed_requests_get_an_answer_of_the_protocol() {
    let daemon = Daemon::start();
    daemon.create("m", "0 8 zero").expect_ok();
    let send =
        |method: &str, path: &str, body: &[u8]| http::send(&daemon.socket(), method, path, body);
    for (method, path, body, status, part) in [
        ("GET", "/v2/devices", b"".as_slice(), 404, "no route GET /v2/devices"),
        ("PATCH", "/v1/devices/m", b"", 405, "does not take PATCH"),
        ("POST", "/v1/devices", b"{\"name\": 5}", 400, "invalid type"),
        (
            "POST",
            "/v1/devices",
            b"{\"name\": \"x\", \"tabel\": \"\"}",
            400,
            "unknown field `tabel`",
        ),
        ("POST", "/v1/devices", b"\xff\xfe", 400, "the body is not"),
        ("POST", "/v1/devices", b"", 400, "missing field `name`"),
        ("POST", "/v1/devices", b"[\"x\"]", 400, "expected an object"),
        ("POST", "/v1/devices", b"{\"name\": \"x\", \"ublk\": {}}", 400, "without a table"),
        ("POST", "/v1/devices/m/suspend", b"[]", 400, "expected an object"),
        ("POST", "/v1/devices/m/suspend", b"null", 400, "expected an object"),
        ("POST", "/v1/devices/m/suspend", b"{} {}", 400, "trailing characters"),
        ("DELETE", "/v1/devices/m?force=maybe", b"", 400, "force=maybe"),
        ("GET", "/v1/devices/m/map/picture?cells=0", b"", 400, "from 1 to 65536"),
        ("GET", "/v1/devices/%FF", b"", 400, "UTF-8"),
        ("GET", "/v1/devices/nobody", b"", 404, "no device 'nobody'"),
        ("POST", "/v1/devices/m/message", b"@stats_list", 400, "blkswitch stats"),
        ("POST", "/v1/devices/m/message", b"@cancel_deferred_remove now", 400, "stands alone"),
    ] {
        let reply = send(method, path, body);
        assert_eq!(reply.status, status, "{method} {path}: {reply}");
        assert!(reply.error().reason.contains(part), "{method} {path}: {reply}");
    }
    // Longer than any table may be.
    let long = format!(
        "{{\"name\": \"x\", \"table\": \"{}\"}}",
        "#".repeat(2 * protocol::TABLE_MAX_BYTES)
    );
    let mut stream = http::connect(&daemon.socket());
    stream.write_all(&http::head("POST", "/v1/devices", long.len())).unwrap();
    // The daemon may close the connection before it has received everything.
    let _ = stream.write_all(long.as_bytes());
    assert_eq!(http::read_reply(&mut stream).error().errno, Errno::E2big);
}

/// A client may send a body where none is wanted, and may send it slowly. The daemon does not close
/// the connection.
#[test]
fn a_body_that_no_one_wants_is_taken_all_the_same() {
    let daemon = Daemon::start();
    daemon.create("m", "0 8 zero").expect_ok();
    for (method, route) in
        [("POST", route::RESUME), ("DELETE", route::TABLE), ("DELETE", route::DEVICE)]
    {
        let mut stream = http::connect(&daemon.socket());
        stream.write_all(&http::head(method, &device_path(route, "m"), 2)).unwrap();
        // Long enough for an answer, if the daemon does not wait for the rest.
        thread::sleep(Duration::from_millis(100));
        stream.write_all(b"{}").unwrap();
        http::read_reply(&mut stream).expect_ok();
    }
}
