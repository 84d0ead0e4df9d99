//! Replays the recorded constructors and messages through the daemon. They go in over the control
//! protocol. The resulting map is read back in two ways: from the daemon, and by reads over NBD.
//!
//! The test replaces the devices of the recording as follows, and restores the names in answers
//! before it compares them.
//!
//! | recorded | here |
//! |---|---|
//! | `/dev/ram0` .. `/dev/ram3`, their numbers `1:N`, `01:00`, `1:99` | files of 8192 sectors (numbers of block devices are parsed by unit tests) |
//! | `/dev/loop0`, `/dev/loop1`, `/dev/loop3` | files of 4096, 100 and 8192 sectors |
//! | `/dev/loop2`, 4096-byte blocks | `sim:` with 4096-byte blocks |
//! | `/dev/link0`, `/tmp/plain` | a symbolic link, a file |
//! | `/dev/mapper/control`, a character device | `/dev/null` |
//! | `/dev/mapper/zero` | a device of this daemon with one `zero` target |
//! | `@SELF` | `/dev/blkswitch/case` |

use std::path::Path;
use std::sync::Arc;

use blkswitch::protocol::{Device, route};
use blkswitch_io::{Address, Leaf, LeafOptions, Queues};
use serde_json::{Value, json};

use crate::fixture::{Daemon, SECTOR, make_disk, sector_of};
use crate::golden::{Verdict, check_suite, differs, errors_logged, expand, latin1, text};

/// The device under test.
const CASE: &str = "case";

/// A path of a loaded table: the disk and the offset.
type Path2 = (String, u64);

struct Stage {
    daemon: Daemon,
}

impl Stage {
    fn new() -> Stage {
        let daemon = Daemon::start();
        for (name, sectors) in
            [("loop0", 4096), ("loop1", 100), ("loop3", 8192), ("plain", 8192), ("ram99", 8192)]
        {
            make_disk(&daemon.path(name), sectors);
        }
        std::os::unix::fs::symlink(daemon.path("ram0"), daemon.path("link0")).unwrap();
        daemon.create("zero", "0 18014398509481983 zero").expect_ok();
        Stage { daemon }
    }

    fn folder(&self) -> &Path {
        self.daemon.folder.path()
    }

    /// A recorded table with the names of this test. Spaces stay as they are.
    fn ours(&self, table: &str) -> String {
        let lines: Vec<String> = table
            .split('\n')
            .map(|line| {
                line.split(' ').map(|word| self.our_word(word)).collect::<Vec<_>>().join(" ")
            })
            .collect();
        lines.join("\n")
    }

    fn our_word(&self, word: &str) -> String {
        let file = |name: &str| self.folder().join(name).display().to_string();
        match word {
            "/dev/loop2" => LOOP2.to_owned(),
            "/tmp/plain" => file("plain"),
            "/dev/mapper/control" => "/dev/null".to_owned(),
            "@SELF" => format!("/dev/blkswitch/{CASE}"),
            "01:00" => file("ram0"),
            _ => match word.strip_prefix("1:").filter(|minor| minor.parse::<u32>().is_ok()) {
                Some(minor) => file(&format!("ram{minor}")),
                None if ["/dev/ra", "/dev/loop", "/dev/link", "/dev/spa"]
                    .iter()
                    .any(|p| word.starts_with(p)) =>
                {
                    file(word.trim_start_matches("/dev/"))
                }
                None => word.to_owned(),
            },
        }
    }

    /// Replaces a name of this test by the number of the disk, as the kernel prints it.
    fn their_word(&self, word: &str) -> String {
        let folder = format!("{}/", self.folder().display());
        match word.strip_prefix(&folder).unwrap_or(word) {
            "link0" => "1:0".to_owned(),
            "/dev/blkswitch/zero" => "253:0".to_owned(),
            name if name.starts_with("sim:") => "7:2".to_owned(),
            name => match (name.strip_prefix("ram"), name.strip_prefix("loop")) {
                (Some(number), _) => format!("1:{number}"),
                (_, Some(number)) => format!("7:{number}"),
                _ => name.to_owned(),
            },
        }
    }

    /// The lines that `dmsetup table` would have printed.
    fn table_lines(&self, device: &Device) -> Vec<String> {
        let segments =
            device.live.as_ref().map(|table| table.segments.as_slice()).unwrap_or_default();
        let line = |segment: &blkswitch::protocol::Segment| {
            let params = segment
                .params
                .split(' ')
                .map(|word| self.their_word(word))
                .collect::<Vec<_>>()
                .join(" ");
            format!("{} {} {} {params}", segment.start, segment.length, segment.target)
                .trim_end()
                .to_owned()
        };
        segments.iter().map(line).collect()
    }

    /// The disks and offsets of the paths of a device's first segment.
    fn paths(&self, device: &Device) -> Vec<Path2> {
        let folder = format!("{}/", self.folder().display());
        let segment = &device.live.as_ref().unwrap().segments[0];
        let words: Vec<&str> = segment.params.split(' ').skip(3).collect();
        let path = |pair: &[&str]| {
            (pair[0].trim_start_matches(&folder).to_owned(), pair[1].parse().unwrap())
        };
        words.chunks(2).map(path).collect()
    }

    /// Compares the map with the recorded one, as the daemon reports it and as reads show it.
    fn check_map(&self, recorded: &str, region_size: u64, paths: &[Path2]) -> Verdict {
        let expected = expand(recorded);
        differs("map", self.daemon.map(CASE, 0), expected.clone())?;
        let mut client = self.daemon.nbd(CASE);
        let image =
            client.read(0, client.size() as usize).map_err(|error| format!("read: {error}"))?;
        client.disconnect().unwrap();
        for (region, path) in expected.iter().enumerate() {
            let start = region as u64 * region_size;
            let (disk, offset) = &paths[*path as usize];
            let at = start as usize * SECTOR;
            let disk = if disk == "link0" { "ram0" } else { disk };
            differs(
                "first sector of a region",
                &image[at..at + SECTOR],
                &sector_of(disk, start + offset)[..],
            )
            .map_err(|text| format!("region {region}, {text}"))?;
        }
        Ok(())
    }
}

/// Replaces a disk of 8192 sectors with 4096-byte blocks.
const LOOP2: &str = "sim:4194304,seed=0,name=loop2,block=4096";

fn replay_table(stage: &Stage, case: &Value) -> Verdict {
    let daemon = &stage.daemon;
    daemon.request("POST", route::DEVICES, json!({"name": CASE})).expect_ok();
    let number = daemon.describe(CASE).minor;
    let held = text(case, "name") == "device held exclusively";
    let _held = held.then(|| hold(&daemon.path("ram3")));
    let load =
        json!({"table": stage.ours(text(case, "table")), "read_only": case["flags"] == "ro"});
    let reply = daemon.on("PUT", route::TABLE, CASE, load);
    let verdict = if reply.is_ok() {
        differs("load", "ok", text(case, "load")).and_then(|()| check_loaded(stage, case))
    } else {
        let error = reply.error();
        let unnumber =
            |line: &String| line.replace(&format!("0:{number}"), "$DEV").replace(LOOP2, "loop2");
        let kernel: Vec<String> = error.kernel.iter().map(unnumber).collect();
        let live = daemon.describe(CASE);
        differs("load", error.errno.name(), text(case, "load"))
            .and_then(|()| differs("log", kernel, errors_logged(&case["load_kmsg"])))
            .and_then(|()| {
                differs("slots after a refusal", (live.live, live.inactive), (None, None))
            })
            .and_then(|()| differs("has a reason", error.reason.len() > 10, true))
    };
    daemon.remove(CASE);
    verdict
}

fn check_loaded(stage: &Stage, case: &Value) -> Verdict {
    let daemon = &stage.daemon;
    let resumed = daemon.on("POST", route::RESUME, CASE, Value::Null);
    differs("resume", if resumed.is_ok() { "ok" } else { "refused" }, text(case, "resume"))?;
    let device = daemon.describe(CASE);
    let recorded: Vec<String> = case["table_out"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line.as_str().unwrap().to_owned())
        .collect();
    differs("table", stage.table_lines(&device), recorded)?;
    differs("read-only", device.read_only, case["flags"] == "ro")?;
    if let Some(regions) = case["nr_regions"].as_u64() {
        let to = format!("{}?cells=1", blkswitch::protocol::device_path(route::MAP_PICTURE, CASE));
        let picture: Value = daemon.request("GET", &to, Value::Null).json();
        differs("regions", picture["regions"].as_u64(), Some(regions))?;
    }
    // If a disk's sectors had not been written, the recording has the raw bytes of the reads, and
    // no map.
    match case["map"].as_str().filter(|map| !map.starts_with('b')) {
        Some(map) => {
            let size = device.live.as_ref().unwrap().segments[0]
                .params
                .split(' ')
                .nth(1)
                .unwrap()
                .parse()
                .unwrap();
            stage.check_map(map, size, &stage.paths(&device))
        }
        None => Ok(()),
    }
}

/// Takes the lock that another writer would have. It is held until the result is dropped.
fn hold(path: &Path) -> Arc<Leaf> {
    let options = LeafOptions::new(Queues::of_pipelines(1));
    Leaf::open(&Address::Path(path.to_owned()), &options).unwrap()
}

#[test]
fn constructors() {
    let stage = Stage::new();
    check_suite("ctr", 156, |case| replay_table(&stage, case));
}

fn replay_messages(stage: &Stage, case: &Value) -> Verdict {
    let daemon = &stage.daemon;
    daemon.create(CASE, &stage.ours(text(case, "table"))).expect_ok();
    let device = daemon.describe(CASE);
    let paths = stage.paths(&device);
    let size = device.live.as_ref().unwrap().segments[0]
        .params
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let steps = case["steps"].as_array().unwrap().iter().enumerate();
    let verdict = steps.map(|(number, step)| {
        replay_step(stage, step, size, &paths)
            .map_err(|difference| format!("step {number}, {difference}"))
    });
    let verdict = verdict.collect();
    daemon.remove(CASE);
    verdict
}

fn replay_step(stage: &Stage, step: &Value, region_size: u64, paths: &[Path2]) -> Verdict {
    let words = latin1(text(step, "msg"));
    let reply = stage.daemon.message(CASE, step["sector"].as_u64().unwrap(), &words);
    let kmsg = step["kmsg"].as_array().unwrap();
    let recorded: Vec<&str> = kmsg.iter().map(|line| line[1].as_str().unwrap()).collect();
    if reply.is_ok() {
        differs("result", "ok", text(step, "result"))?;
        differs("log", Vec::new(), recorded)?;
    } else {
        let error = reply.error();
        differs("result", error.errno.name(), text(step, "result"))?;
        differs("log", error.kernel.iter().map(String::as_str).collect(), recorded)?;
    }
    stage.check_map(text(step, "map"), region_size, paths)
}

#[test]
fn messages() {
    let stage = Stage::new();
    check_suite("msg", 141, |case| replay_messages(&stage, case));
}

#[test]
fn random_messages() {
    let stage = Stage::new();
    check_suite("fuzz", 14, |case| replay_messages(&stage, case));
}
