//! Replays recordings of multipath targets of a real kernel (`tests/golden/mpath.jsonl`): tables,
//! messages, the disk that served each read, and the status afterwards. The cases of one device
//! build on each other.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use blkswitch_core::args::{Words, split_in_place};
use blkswitch_core::error::Errno;
use blkswitch_core::multipath::outcome::EIO;
use blkswitch_core::multipath::{Ask, Choice, MessageError, Multipath, MultipathCommand, Verdict};
use blkswitch_core::switch::{Geometry, Map, Message};
use blkswitch_core::table::{self, check_area};
use serde_json::Value;

use super::common::{check_suite, differs, text};
use super::loading::{Loaded, Owned, load};

/// Name, number and sectors of the recorded machine's disks. Two of them are RAM disks.
const DISKS: [(&str, &str, u64); 6] = [
    ("sda", "8:0", 16384),
    ("sdb", "8:16", 16384),
    ("sdc", "8:32", 16384),
    ("sdd", "8:48", 16384),
    ("ram0", "1:0", 8192),
    ("ram1", "1:1", 8192),
];

/// Looks up a disk by name or number. A number without a disk is valid, but no path has it.
fn look_up(name: &str) -> Result<String, Errno> {
    let disk =
        DISKS.iter().find(|(disk, number, _)| name == format!("/dev/{disk}") || name == *number);
    match disk {
        Some((_, number, _)) => Ok((*number).to_owned()),
        None if name.starts_with('/') => Err(Errno::Enoent),
        None => Ok(name.to_owned()),
    }
}

/// A multipath device and the disks below it.
struct World {
    loaded: Loaded,
    /// The number of the multipath device in the log.
    number: &'static str,
    line: String,
    log: Vec<(u64, String)>,
    events: u64,
    now_ns: u64,
}

/// The outcome of a read: the disk that served it, or "EIO" or "blocked".
type ReadResult = Result<&'static str, &'static str>;

impl World {
    fn new(line: &str, number: &'static str) -> Self {
        Self::load(line, number).unwrap_or_else(|(_, log)| panic!("{line}: {log}"))
    }

    /// Loads a table. The error is the errno and the line of the log.
    fn load(line: &str, number: &'static str) -> Result<Self, (Errno, String)> {
        let target = table::lines(line.as_bytes()).next().unwrap().unwrap();
        assert_eq!(target.kind, b"multipath");
        let loaded =
            load(std::str::from_utf8(target.params).unwrap(), look_up).map_err(|error| {
                (
                    error.errno(),
                    format!(
                        "device-mapper: table: {number}: multipath: {error} ({})",
                        error.errno()
                    ),
                )
            })?;
        for device in &loaded.devices {
            let (name, _, sectors) = DISKS.iter().find(|disk| disk.1 == device).unwrap();
            check_area(0, target.len, *sectors, 512).map_err(|error| {
                (
                    error.errno(),
                    format!("device-mapper: table: {number}: {}", error.of_device(name)),
                )
            })?;
        }
        let line = format!("{} {} multipath", target.start, target.len);
        let log =
            loaded.warnings.iter().map(|text| (4, format!("device-mapper: {text}"))).collect();
        Ok(Self { loaded, number, line, log, events: 0, now_ns: 0 })
    }

    fn status(&self) -> String {
        let info =
            self.loaded.multipath.info(|path, f| f.write_str(&self.loaded.devices[path as usize]));
        format!("{} {info}", self.line)
    }

    fn table(&self) -> String {
        let table =
            self.loaded.multipath.table(|path, f| f.write_str(&self.loaded.devices[path as usize]));
        format!("{} {table}", self.line)
    }

    /// Calls `act` with the multipath; logs and counts the events.
    fn with<R>(
        &mut self,
        act: impl FnOnce(&Owned, &mut dyn FnMut(blkswitch_core::multipath::Event)) -> R,
    ) -> R {
        let Self { loaded, number, log, events, .. } = self;
        act(&loaded.multipath, &mut |event| {
            if let Some(path) = event.path() {
                let line = event.log_line(number, &loaded.devices[path as usize]);
                log.push((4, format!("device-mapper: {line}")));
            }
            *events += u64::from(event.is_counted());
        })
    }

    fn message(&mut self, message: &str) -> &'static str {
        let mut bytes = message.as_bytes().to_vec();
        let words: Vec<&[u8]> = split_in_place(&mut bytes).collect();
        let result = MultipathCommand::parse(&words).and_then(|command| {
            let device = command.device().map(|name| look_up(std::str::from_utf8(name).unwrap()));
            let device = device.transpose().map_err(|errno| MessageError::Device { errno })?;
            let devices = self.loaded.devices.clone();
            let is_meant = |path| Some(&devices[path as usize]) == device.as_ref();
            self.with(|multipath, mut on| multipath.apply(&command, is_meant, &mut on))
        });
        let Err(error) = result else { return "ok" };
        let log = error.of_word(error.word(&words)).to_string();
        if !log.is_empty() {
            self.log.push((4, format!("device-mapper: multipath: {log}")));
        }
        error.errno().name()
    }

    /// Sends one read until it succeeds or no path is left. Disks in `down` answer with an error.
    fn read(&mut self, down: &BTreeSet<String>) -> ReadResult {
        self.now_ns += 1000;
        let ask = Ask { bytes: 512, now_ns: self.now_ns, cpu: 0 };
        let mut attempt = match self.with(|multipath, mut on| multipath.select(ask, &mut on)) {
            Choice::Send(attempt) => attempt,
            Choice::Hold => return Err("blocked"),
            Choice::Fail(errno) => return Err(Errno::from_number(errno).unwrap().name()),
        };
        loop {
            self.now_ns += 1000;
            let number = &self.loaded.devices[attempt.path() as usize];
            let (disk, ..) = DISKS.iter().find(|disk| disk.1 == number).unwrap();
            let errno = if down.contains(*disk) { EIO } else { 0 };
            let now_ns = self.now_ns;
            let verdict =
                self.with(|multipath, mut on| multipath.judge(attempt, errno, now_ns, &mut on));
            attempt = match verdict {
                Verdict::Done => return Ok(disk),
                Verdict::Retry(attempt) => attempt,
                Verdict::Hold => return Err("blocked"),
                Verdict::Fail(errno) => return Err(Errno::from_number(errno).unwrap().name()),
            };
        }
    }

    fn check_log(&mut self, what: &str, kmsg: &Value) -> Result<(), String> {
        differs(what, std::mem::take(&mut self.log), recorded_log(kmsg))
    }

    /// Checks the eight reads of a case, if it has any.
    fn check_reads(&mut self, case: &Value, down: &BTreeSet<String>) -> Result<(), String> {
        let Some(reads) = case["reads"].as_str() else { return Ok(()) };
        let results: Vec<ReadResult> = reads.split(' ').map(|_| self.read(down)).collect();
        let words: Vec<&str> =
            results.iter().map(|read| read.map_or_else(|error| error, |_| "ok")).collect();
        differs("reads", words.join(" "), reads.to_owned())?;
        let disks: Vec<&str> = results.into_iter().flatten().collect();
        differs("disks", disks.join(" "), text(case, "paths").to_owned())
    }

    fn check_texts(&self, case: &Value) -> Result<(), String> {
        differs("status", self.status().as_str(), text(case, "status_out"))?;
        match case["table_out"].as_str() {
            Some(table) => differs("table", self.table().as_str(), table),
            None => Ok(()),
        }
    }
}

fn recorded_log(kmsg: &Value) -> Vec<(u64, String)> {
    let lines = kmsg.as_array().unwrap().iter();
    lines.map(|line| (line[0].as_u64().unwrap(), line[1].as_str().unwrap().to_owned())).collect()
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Loads a table and checks its texts.
fn replay_load(case: &Value) -> Result<(), String> {
    let mut log = recorded_log(&case["load_kmsg"]);
    log.retain(|(level, _)| *level < 5);
    match World::load(text(case, "table"), "$DEV") {
        Ok(mut world) => {
            differs("load", "ok", text(case, "load"))?;
            differs("log", std::mem::take(&mut world.log), log)?;
            world.check_texts(case)
        }
        Err((errno, line)) => {
            differs("load", errno.name(), text(case, "load"))?;
            differs("log", (3, line), log.swap_remove(0))
        }
    }
}

/// Sends the messages of a case, then checks its reads.
fn replay_steps(world: &mut World, case: &Value) -> Result<(), String> {
    for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        differs(&format!("step {number}"), world.message(text(step, "msg")), text(step, "result"))?;
        world.check_log(&format!("log of step {number}"), &step["kmsg"])?;
    }
    world.check_reads(case, &BTreeSet::new())?;
    world.check_log("log", &case["kmsg"])?;
    differs("events", world.events, case["event_nr"].as_u64().unwrap())?;
    world.check_texts(case)
}

/// Reinstates all paths, then (if the case says so) turns queueing on and fails all paths. Reads,
/// releases the read as the case says, and reads again.
fn replay_queued(world: &mut World, case: &Value) -> Result<(), String> {
    let up = BTreeSet::new();
    let as_recorded = |read: ReadResult| read.map_or_else(|error| error, |_| "lun 0");
    let all = ["8:0", "8:16", "8:32", "8:48"];
    if text(case, "read") == "blocked" {
        all.iter()
            .for_each(|path| assert_eq!(world.message(&format!("reinstate_path {path}")), "ok"));
        world.log.clear();
        assert_eq!(world.message("queue_if_no_path"), "ok");
        all.iter().for_each(|path| assert_eq!(world.message(&format!("fail_path {path}")), "ok"));
    } else {
        all.iter()
            .for_each(|path| assert_eq!(world.message(&format!("reinstate_path {path}")), "ok"));
    }
    differs("read", as_recorded(world.read(&up)), text(case, "read"))?;
    if let Some(status) = case["status_while_queued"].as_str() {
        differs("status while queued", world.status().as_str(), status)?;
    }
    for message in case["release"].as_array().into_iter().flatten() {
        differs("release", world.message(text(message, "msg")), text(message, "result"))?;
    }
    differs("read after", as_recorded(world.read(&up)), text(case, "read_after"))?;
    world.check_log("log", &case["kmsg"])?;
    world.check_texts(case)
}

/// Takes disks down and up, sends messages, then checks reads.
fn replay_disks(
    world: &mut World,
    down: &mut BTreeSet<String>,
    case: &Value,
) -> Result<(), String> {
    down.extend(list(&case["down"]));
    list(&case["up"]).iter().for_each(|disk| assert!(down.remove(disk)));
    list(&case["messages"]).iter().for_each(|message| assert_eq!(world.message(message), "ok"));
    world.check_reads(case, down)?;
    world.check_log("log", &case["kmsg"])?;
    world.check_texts(case)
}

/// A switch whose two paths are multipath devices.
struct TwoLayers {
    switch: Map<Box<[AtomicU64]>>,
    members: Vec<World>,
    down: BTreeSet<String>,
}

impl TwoLayers {
    fn switch_message(&self, message: &str) {
        let mut words = Words::new(message.as_bytes());
        words.next();
        Message::new().apply_text(&mut self.switch.writer().unwrap(), words.rest(), true).unwrap();
    }

    /// Reads from the switch. Adds the parts to `members` and `disks`, as `member0 120+8`.
    fn read(
        &mut self,
        mut at: u64,
        mut len: u64,
        members: &mut Vec<String>,
        disks: &mut Vec<String>,
    ) -> &'static str {
        let mut result = "ok";
        while len > 0 {
            let route = self.switch.route(at);
            let part = len.min(route.left);
            members.push(format!("member{} {at}+{part}", route.path));
            match self.members[route.path as usize].read(&self.down) {
                Ok(disk) => disks.push(format!("{disk} {at}+{part}")),
                Err(error) => result = error,
            }
            (at, len) = (at + part, len - part);
        }
        result
    }

    fn log(&mut self) -> Vec<(u64, String)> {
        self.members.iter_mut().flat_map(|member| std::mem::take(&mut member.log)).collect()
    }
}

fn replay_two_layers(both: &mut TwoLayers, case: &Value) -> Result<(), String> {
    both.down.extend(list(&case["down"]));
    list(&case["up"]).iter().for_each(|disk| assert!(both.down.remove(disk)));
    list(&case["messages"]).iter().for_each(|message| both.switch_message(message));
    for message in case["member_messages"].as_array().unwrap() {
        let member = usize::from(message[0] == "member1");
        assert_eq!(both.members[member].message(message[1].as_str().unwrap()), "ok");
    }
    let (mut members, mut disks) = (Vec::new(), Vec::new());
    let reads = case["reads"].as_array().unwrap().iter();
    let results: Vec<&str> = reads
        .map(|read| {
            both.read(
                read[0].as_u64().unwrap(),
                read[1].as_u64().unwrap(),
                &mut members,
                &mut disks,
            )
        })
        .collect();
    differs("results", results, list(&case["results"]).iter().map(String::as_str).collect())?;
    differs("members", members, list(&case["members"]))?;
    differs("disks", disks, list(&case["disks"]))?;
    differs("log", both.log(), recorded_log(&case["kmsg"]))?;
    for (number, member) in both.members.iter().enumerate() {
        differs(
            "status",
            member.status().as_str(),
            text(&case["status"], &format!("member{number}")),
        )?;
    }
    Ok(())
}

/// mpath-089: a held read stays with its member even if its region moves meanwhile.
fn replay_held_below(both: &mut TwoLayers, case: &Value) -> Result<(), String> {
    let read =
        |both: &mut TwoLayers, at: u64| match both.read(at, 1, &mut Vec::new(), &mut Vec::new()) {
            "ok" => format!("lun {at}"),
            error => error.to_owned(),
        };
    both.members[1].message("queue_if_no_path");
    for path in ["8:48", "8:0", "8:16"] {
        assert_eq!(both.members[1].message(&format!("fail_path {path}")), "ok");
    }
    differs("first", vec![read(both, 0), read(both, 128)], list(&case["first"]))?;
    both.switch_message("set_region_mappings 0:0 R1,f");
    let held = both.members[1].read(&both.down).unwrap_err();
    differs(
        "after the message",
        vec![read(both, 128), held.to_owned()],
        list(&case["after_the_message"]),
    )?;
    assert_eq!(both.members[1].message("reinstate_path 8:0"), "ok");
    let held =
        both.members[1].read(&both.down).map_or_else(str::to_owned, |_| "lun 128".to_owned());
    differs("after reinstate", held.as_str(), text(case, "after_reinstate"))?;
    differs("log", both.log(), recorded_log(&case["kmsg"]))
}

#[test]
fn multipath() {
    let two_groups =
        "0 8192 multipath 0 0 2 1 round-robin 0 2 1 8:0 1 8:16 1 round-robin 0 2 1 8:32 1 8:48 1";
    let member =
        |groups: &str, number| World::new(&format!("0 8192 multipath 0 0 2 1 {groups}"), number);
    let mut by_message = World::new(two_groups, "$DEV");
    let mut by_disk = World::new(two_groups, "$DEV");
    let mut down = BTreeSet::new();
    let geometry = Geometry::new(8192, 2, 128).unwrap();
    let mut both = TwoLayers {
        switch: Map::new(geometry, bytemuck::zeroed_slice_box(geometry.nr_slots())).unwrap(),
        members: vec![
            member("round-robin 0 2 1 8:0 1 8:16 1 round-robin 0 1 1 8:32 1", "253:0"),
            member("round-robin 0 1 1 8:48 1 round-robin 0 2 1 8:0 1 8:16 1", "253:1"),
        ],
        down: BTreeSet::new(),
    };
    check_suite("mpath", 90, |case| {
        match text(case, "id")["mpath-".len()..].parse::<u32>().unwrap() {
            1 => {
                let disks: Vec<Value> = DISKS[..4]
                    .iter()
                    .map(|(name, number, sectors)| {
                        serde_json::json!([format!("/dev/{name}"), number, sectors])
                    })
                    .collect();
                differs("disks", &Value::from(disks), &case["disks"])
            }
            2..=37 | 90 => replay_load(case),
            38..=60 => replay_steps(&mut by_message, case),
            61..=64 => replay_queued(&mut by_message, case),
            65..=71 => replay_disks(&mut by_disk, &mut down, case),
            72 => {
                // `dmsetup wait` waits until this count of events goes up.
                let before = by_disk.events;
                assert_eq!(by_disk.message("fail_path 8:0"), "ok");
                differs(
                    "events",
                    by_disk.events > before,
                    !case["returned_before"].as_bool().unwrap(),
                )
            }
            number @ 73..=74 => {
                let member = &both.members[number as usize - 73];
                differs("table", member.table().trim_end(), text(case, "table").trim_end())
            }
            // These two record the switch's own table and a transcript of dmsetup, which the daemon
            // decides.
            75..=76 => Ok(()),
            77..=88 => replay_two_layers(&mut both, case),
            89 => replay_held_below(&mut both, case),
            number => Err(format!("nobody knows what to do with case {number}")),
        }
    });
}

/// `Multipath::new` refuses groups and paths of different tables. No recorded table can show that.
#[test]
fn groups_and_paths_of_different_tables_do_not_fit() {
    let load = |line| load(line, look_up).unwrap().multipath;
    let (one, two) = ("0 0 1 1 round-robin 0 1 0 8:0", "0 0 1 1 round-robin 0 2 0 8:0 8:16");
    let parts = |line: &str| {
        let mut bytes = line.as_bytes().to_vec();
        let words: Vec<&[u8]> = split_in_place(&mut bytes).collect();
        let mut params = blkswitch_core::multipath::Params::parse(&words).unwrap();
        let (mut groups, mut paths) = (Vec::new(), Vec::new());
        while let Some(item) = params.next_item().unwrap() {
            match item {
                blkswitch_core::multipath::Item::Group(group) => groups.push(group.group()),
                blkswitch_core::multipath::Item::Path(path) => {
                    paths.push(path.path().unwrap().path)
                }
            }
        }
        (*params.features(), groups, paths)
    };
    assert_eq!((load(one).num_paths(), load(two).num_paths()), (1, 2));
    let ((features, one_group, one_path), (_, two_group, two_path)) = (parts(one), parts(two));
    assert!(Multipath::new(features, 1, one_group, two_path).is_none());
    assert!(Multipath::new(features, 1, two_group, one_path).is_none());
}
