//! Replays the recorded multipath devices through the daemon: tables, messages, reads over NBD with
//! the paths that served them (by the counters of each path), and the texts of `table` and
//! `status`.
//!
//! The disks of the recording become paths to one `sim:` memory. The test takes a path offline by
//! creating the file that its `cut=` names. The core's replay compares the log lines about paths.

use std::io;
use std::time::Duration;

use blkswitch::nbd_client::NbdClient;
use blkswitch::protocol::{Device, DeviceStats, route};
use serde_json::{Value, json};

use crate::fixture::{Daemon, SECTOR};
use crate::golden::{Verdict, check_suite, differs, errors_logged, text};

/// The recorded disks: name, number, and address without the part that depends on the folder.
const DISKS: [(&str, &str, &str); 6] = [
    ("sda", "8:0", "sim:8M,name=lun,path=sda"),
    ("sdb", "8:16", "sim:8M,name=lun,path=sdb"),
    ("sdc", "8:32", "sim:8M,name=lun,path=sdc"),
    ("sdd", "8:48", "sim:8M,name=lun,path=sdd"),
    ("ram0", "1:0", "sim:4M,name=ram,path=ram0"),
    ("ram1", "1:1", "sim:4M,name=ram,path=ram1"),
];
/// A request without an answer after this time counts as waiting.
const BLOCKED: Duration = Duration::from_millis(150);
const ANSWERED: Duration = Duration::from_secs(20);

struct Stage {
    daemon: Daemon,
    /// A client of the device under test.
    client: Option<NbdClient>,
    /// A client of the device above it.
    above: Option<NbdClient>,
}

fn list(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|word| word.as_str().unwrap()).collect()
}

impl Stage {
    fn new() -> Stage {
        // Without path checker and failback, as when the cases were recorded: multipathd was not
        // running.
        let daemon = Daemon::start_with(&["--path-checker-interval", "0", "--failback", "manual"]);
        Stage { daemon, client: None, above: None }
    }

    fn address(&self, disk: &str) -> String {
        let (.., address) = DISKS.iter().find(|known| known.0 == disk).unwrap();
        format!("{address},cut={}", self.daemon.path(disk).with_extension("cut").display())
    }

    /// Replaces the recorded names by those of this test.
    fn ours(&self, text: &str) -> String {
        let word = |word: &str| {
            let disk = DISKS
                .iter()
                .find(|(disk, number, _)| word == *number || word == format!("/dev/{disk}"));
            disk.map_or_else(|| word.to_owned(), |disk| self.address(disk.0))
        };
        text.split(' ').map(word).collect::<Vec<_>>().join(" ")
    }

    /// Replaces the names of this test by the recorded ones.
    fn theirs(text: &str) -> String {
        let word = |word: &str| {
            let disk = DISKS.iter().find(|(disk, ..)| word.contains(&format!("path={disk},")));
            disk.map_or_else(|| word.to_owned(), |disk| disk.1.to_owned())
        };
        text.split(' ').map(word).collect::<Vec<_>>().join(" ")
    }

    /// Creates a device, after removing the one before.
    fn make(&mut self, name: &str, table: &str) {
        self.clear(&[]);
        self.daemon.create(name, &self.ours(table)).expect_ok();
        self.client = Some(self.daemon.nbd(name));
    }

    fn clear(&mut self, names: &[&str]) {
        if let Some(client) = self.client.take() {
            client.disconnect().unwrap();
        }
        names.iter().for_each(|name| self.daemon.remove(name));
    }

    fn check_texts(&self, name: &str, case: &Value) -> Verdict {
        let device = self.daemon.describe(name);
        let lines = |rest: fn(&blkswitch::protocol::Segment) -> &str| {
            let segment = &device.live.as_ref().unwrap().segments[0];
            format!(
                "{} {} {} {}",
                segment.start,
                segment.length,
                segment.target,
                Self::theirs(rest(segment))
            )
        };
        differs("status", lines(|segment| &segment.status), text(case, "status_out").to_owned())?;
        match case["table_out"].as_str() {
            Some(table) => differs("table", lines(|segment| &segment.params), table.to_owned()),
            None => Ok(()),
        }
    }

    fn message(&self, name: &str, words: &str, case: &Value) -> Verdict {
        let reply = self.daemon.message(name, 0, self.ours(words).as_bytes());
        let logged =
            case["kmsg"].as_array().into_iter().flatten().map(|line| line[1].as_str().unwrap());
        let refusals: Vec<&str> = logged.filter(|line| !line.contains("ing path ")).collect();
        if reply.is_ok() {
            return differs("result", "ok", text(case, "result"));
        }
        let error = reply.error();
        differs("result", error.errno.name(), text(case, "result"))?;
        let kernel: Vec<String> = error.kernel.iter().map(|line| Self::theirs(line)).collect();
        differs("log", kernel.iter().map(String::as_str).collect(), refusals)?;
        differs("has a reason", error.reason.len() > 10, true)
    }

    fn send(&self, name: &str, words: &str) {
        self.daemon.message(name, 0, self.ours(words).as_bytes()).expect_ok();
    }

    /// Number of successful reads of each path.
    fn served(&self, name: &str) -> Vec<u64> {
        let stats: DeviceStats = self.daemon.on("GET", route::STATS, name, Value::Null).json();
        stats.paths.iter().map(|path| path.io.reads - path.io.errors).collect()
    }

    /// The disks that the paths of a device lead to.
    fn disks(&self, name: &str) -> Vec<&'static str> {
        let stats: DeviceStats = self.daemon.on("GET", route::STATS, name, Value::Null).json();
        let disk = |address: &str| {
            DISKS.iter().find(|disk| address.contains(&format!("path={},", disk.0))).unwrap().0
        };
        stats.paths.iter().map(|path| disk(&path.address)).collect()
    }

    /// Sends single reads, and compares the disks that served them.
    fn check_reads(&mut self, name: &str, case: &Value) -> Verdict {
        let Some(reads) = case["reads"].as_str() else { return Ok(()) };
        let disks = self.disks(name);
        let (mut results, mut paths) = (Vec::new(), Vec::new());
        for _ in reads.split(' ') {
            let before = self.served(name);
            let client = self.client.as_mut().unwrap();
            results.push(word(client.read(0, SECTOR)));
            let after = self.served(name);
            let grown =
                before.iter().zip(&after).zip(&disks).filter(|((before, after), _)| before < after);
            paths.extend(grown.map(|(_, disk)| *disk));
        }
        differs("reads", results.join(" "), reads.to_owned())?;
        differs("disks", paths.join(" "), text(case, "paths").to_owned())
    }

    fn offline(&self, case: &Value) {
        for disk in list(&case["down"]) {
            std::fs::write(self.daemon.path(disk).with_extension("cut"), "").unwrap();
        }
        for disk in list(&case["up"]) {
            std::fs::remove_file(self.daemon.path(disk).with_extension("cut")).unwrap();
        }
    }
}

fn word(read: io::Result<Vec<u8>>) -> &'static str {
    match read {
        Ok(_) => "ok",
        Err(error) if error.raw_os_error() == Some(5) => "EIO",
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            "blocked"
        }
        Err(error) => panic!("{error}"),
    }
}

fn replay_load(stage: &Stage, case: &Value) -> Verdict {
    const NAME: &str = "case";
    let reply = stage.daemon.create(NAME, &stage.ours(text(case, "table")));
    if reply.is_ok() {
        let verdict =
            differs("load", "ok", text(case, "load")).and_then(|()| stage.check_texts(NAME, case));
        stage.daemon.remove(NAME);
        return verdict;
    }
    let error = reply.error();
    differs("load", error.errno.name(), text(case, "load"))?;
    let number = error.device.map_or(String::new(), |[major, minor]| format!("{major}:{minor}"));
    let line = |line: &String| Stage::theirs(&line.replace(&number, "$DEV"));
    let kernel: Vec<String> = error.kernel.iter().map(line).collect();
    let recorded: Vec<String> = errors_logged(&case["load_kmsg"])
        .iter()
        .map(|line| line.replace("sda too small", "8:0 too small"))
        .collect();
    differs("log", kernel, recorded)?;
    differs("has a reason", error.reason.len() > 10, true)
}

fn replay_steps(stage: &mut Stage, case: &Value) -> Verdict {
    const NAME: &str = "mp";
    for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        stage
            .message(NAME, text(step, "msg"), step)
            .map_err(|text| format!("step {number}, {text}"))?;
    }
    stage.check_reads(NAME, case)?;
    let device: Device = stage.daemon.describe(NAME);
    differs("events", u64::from(device.event_nr), case["event_nr"].as_u64().unwrap())?;
    stage.check_texts(NAME, case)
}

/// Begins with all paths up and sends a read. If the case says that the read blocks, queueing is
/// turned on and all paths are failed before. Then the steps of the case follow, and the read is
/// checked again.
fn replay_queued(stage: &mut Stage, case: &Value) -> Verdict {
    const NAME: &str = "mp";
    let all = ["8:0", "8:16", "8:32", "8:48"];
    let resumes = text(case, "id") == "mpath-064";
    if resumes {
        stage.daemon.on("POST", route::RESUME, NAME, json!({})).expect_ok();
    }
    all.iter().for_each(|path| stage.send(NAME, &format!("reinstate_path {path}")));
    let blocks = text(case, "read") == "blocked";
    if blocks {
        stage.send(NAME, "queue_if_no_path");
        all.iter().for_each(|path| stage.send(NAME, &format!("fail_path {path}")));
    }
    let client = stage.client.as_mut().unwrap();
    // The read of mpath-063 is the one that ends in mpath-064.
    if !resumes {
        client.send_read(0, SECTOR).unwrap();
    }
    client.set_patience(if blocks { BLOCKED } else { ANSWERED }).unwrap();
    let as_recorded = |word: &'static str| if word == "ok" { "lun 0" } else { word };
    differs("read", as_recorded(word(client.receive(SECTOR))), text(case, "read"))?;
    if case["suspend"].is_string() {
        stage.daemon.on("POST", route::SUSPEND, NAME, json!({})).expect_ok();
    }
    for message in case["release"].as_array().into_iter().flatten() {
        stage.message(NAME, text(message, "msg"), message)?;
    }
    let client = stage.client.as_mut().unwrap();
    let patience = if text(case, "read_after") == "blocked" { BLOCKED } else { ANSWERED };
    client.set_patience(patience).unwrap();
    if blocks {
        differs("read after", as_recorded(word(client.receive(SECTOR))), text(case, "read_after"))?;
    }
    client.set_patience(ANSWERED).unwrap();
    stage.check_texts(NAME, case)
}

fn replay_disks(stage: &mut Stage, case: &Value) -> Verdict {
    const NAME: &str = "by_disk";
    stage.offline(case);
    list(&case["messages"]).iter().for_each(|message| stage.send(NAME, message));
    stage.check_reads(NAME, case)?;
    stage.check_texts(NAME, case)
}

/// `blkswitch wait` returns when a path fails, and not before.
fn replay_wait(stage: &Stage, case: &Value) -> Verdict {
    let number = stage.daemon.describe("by_disk").event_nr.to_string();
    let mut wait = stage.daemon.client().args(["wait", "by_disk", &number]).spawn().unwrap();
    std::thread::sleep(BLOCKED);
    differs(
        "returned before",
        wait.try_wait().unwrap().is_some(),
        case["returned_before"].as_bool().unwrap(),
    )?;
    stage.send("by_disk", "fail_path 8:0");
    differs("status", wait.wait().unwrap().code(), Some(0))
}

fn replay_members(stage: &mut Stage, case: &Value, number: u32) -> Verdict {
    let name = ["member0", "member1", "switch"][number as usize];
    stage.make(name, text(case, "table"));
    if name == "switch" {
        stage.above = stage.client.take();
    }
    differs("load", "ok", text(case, "load"))
}

fn replay_two_layers(stage: &mut Stage, case: &Value) -> Verdict {
    stage.offline(case);
    list(&case["messages"]).iter().for_each(|message| stage.send("switch", message));
    for message in case["member_messages"].as_array().unwrap() {
        stage.send(message[0].as_str().unwrap(), message[1].as_str().unwrap());
    }
    let members = ["member0", "member1"];
    let disks = members.map(|member| stage.disks(member));
    let (mut results, mut served) = (Vec::new(), Vec::new());
    for read in case["reads"].as_array().unwrap() {
        let (at, sectors) = (read[0].as_u64().unwrap(), read[1].as_u64().unwrap());
        let before = members.map(|member| stage.served(member));
        let client = stage.above.as_mut().unwrap();
        results.push(word(client.read(at * SECTOR as u64, sectors as usize * SECTOR)));
        for ((member, before), disks) in members.iter().zip(before).zip(&disks) {
            let after = stage.served(member);
            let grown =
                before.iter().zip(&after).zip(disks).filter(|((before, after), _)| before < after);
            served.extend(grown.map(|(_, disk)| *disk));
        }
    }
    differs("results", results, list(&case["results"]))?;
    let recorded: Vec<&str> =
        list(&case["disks"]).iter().map(|part| part.split(' ').next().unwrap()).collect();
    differs("disks", served, recorded)?;
    for member in members {
        let status = json!({ "status_out": case["status"][member] });
        stage.check_texts(member, &status)?;
    }
    Ok(())
}

/// mpath-089: a held read stays with its member, wherever its region has moved meanwhile.
fn replay_held_below(stage: &mut Stage, case: &Value) -> Verdict {
    stage.send("member1", "queue_if_no_path");
    ["8:48", "8:0", "8:16"]
        .iter()
        .for_each(|path| stage.send("member1", &format!("fail_path {path}")));
    let mut held = stage.daemon.nbd("switch");
    let read = |client: &mut NbdClient, at: u64| {
        client.set_patience(ANSWERED).unwrap();
        match word(client.read(at * SECTOR as u64, SECTOR)) {
            "ok" => format!("lun {at}"),
            error => error.to_owned(),
        }
    };
    let first = read(stage.above.as_mut().unwrap(), 0);
    held.send_read(128 * SECTOR as u64, SECTOR).unwrap();
    held.set_patience(BLOCKED).unwrap();
    differs("first", vec![first.as_str(), word(held.receive(SECTOR))], list(&case["first"]))?;
    stage.send("switch", "set_region_mappings 0:0 R1,f");
    let moved = read(stage.above.as_mut().unwrap(), 128);
    differs(
        "after the message",
        vec![moved.as_str(), word(held.receive(SECTOR))],
        list(&case["after_the_message"]),
    )?;
    stage.send("member1", "reinstate_path 8:0");
    held.set_patience(ANSWERED).unwrap();
    differs("after reinstate", word(held.receive(SECTOR)), "ok")
}

/// Compares the program's output about the two layers.
fn replay_tools(stage: &Stage, case: &Value) -> Verdict {
    for step in case["steps"].as_array().unwrap() {
        let command: Vec<&str> = text(step, "cmd").split(' ').skip(1).collect();
        let output = stage.daemon.run(&command);
        // Disks are in parentheses, as names or as numbers.
        let in_parentheses = |word: &str| {
            let mut disks = DISKS.iter().filter(|_| word.starts_with('('));
            let disk = disks.find(|(disk, ..)| word.contains(&format!("path={disk},")));
            disk.map_or_else(
                || word.to_owned(),
                |disk| format!("({})", if command[0] == "deps" { disk.0 } else { disk.1 }),
            )
        };
        let theirs = |line: &str| {
            let line = line.split(' ').map(in_parentheses).collect::<Vec<_>>().join(" ");
            let line = Stage::theirs(&line);
            // The devices of this daemon appear as addresses and have the major number 0.
            let line = line.replace("/dev/blkswitch/member", "253:");
            let line = line.replace("(0, ", "(253, ").replace("(0:", "(253:");
            line.replace("            0   ", "          253   ")
        };
        let stdout: String = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| theirs(line) + "\n")
            .collect();
        // The open count of the switch depends on this test's client.
        let stdout = stdout
            .replace("L--w    1    1      0  ", "L--w  OPEN")
            .replace("L--w    0    1      0  ", "L--w  OPEN");
        let recorded = text(step, "stdout")
            .replace("L--w    1    1      0  ", "L--w  OPEN")
            .replace("L--w    0    1      0  ", "L--w  OPEN");
        differs(text(step, "cmd"), stdout, recorded)?;
        differs("rc", output.status.code().map(i64::from), step["rc"].as_i64())?;
    }
    Ok(())
}

#[test]
fn multipath() {
    let mut stage = Stage::new();
    check_suite("mpath", 90, |case| {
        let number: u32 = text(case, "id")["mpath-".len()..].parse().unwrap();
        match number {
            38 => stage.make("mp", text(case, "table")),
            65 => stage.make("by_disk", text(case, "table")),
            73 => stage.clear(&["mp", "by_disk"]),
            _ => {}
        }
        match number {
            1 => Ok(()),
            2..=37 | 90 => replay_load(&stage, case),
            38..=60 => replay_steps(&mut stage, case),
            61..=64 => replay_queued(&mut stage, case),
            65..=71 => replay_disks(&mut stage, case),
            72 => replay_wait(&stage, case),
            73..=75 => replay_members(&mut stage, case, number - 73),
            76 => replay_tools(&stage, case),
            77..=88 => replay_two_layers(&mut stage, case),
            89 => replay_held_below(&mut stage, case),
            _ => Err(format!("nobody knows what to do with case {number}")),
        }
    });
}
