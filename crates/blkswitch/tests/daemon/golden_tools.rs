//! Replays the recorded `dmsetup` sessions with this program in place of dmsetup. The words go
//! through a shell; exit status, standard output and standard error must agree to the byte.
//!
//! [`Stage::as_recorded`] reverts three differences before the comparison:
//!
//! * A path is a file here, and its address appears where the kernel printed a number.
//! * The devices of this daemon have the major number 0 instead of 253.
//! * The lines that blkswitch adds to dmsetup's errors, indented by two spaces, are removed. They
//!   must contain the lines that the kernel logged.
//!
//! Commands about `/sys`, `/dev` and mounts have no counterpart and are skipped. For `blockdev`,
//! the test reads the export instead. The sessions build on one another, so they run in order on
//! one daemon.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use blkswitch::nbd_client::NbdClient;
use blkswitch_io::{Address, Leaf, LeafOptions, Queues};
use serde_json::Value;

use crate::fixture::{Daemon, SECTOR, eventually, program, sector_of};
use crate::golden::{Verdict, check_suite, differs, expand, text};

/// The device of most sessions.
const NAME: &str = "switch";
/// A request without an answer after this time counts as waiting.
const BLOCKED: Duration = Duration::from_millis(150);
/// Time limit for requests that must be answered.
const ANSWERED: Duration = Duration::from_secs(20);

/// Flags of the kernel's `struct dm_ioctl`.
const READ_ONLY: u64 = 1;
const SUSPENDED: u64 = 2;
const ACTIVE_PRESENT: u64 = 32;
const INACTIVE_PRESENT: u64 = 64;

struct Stage {
    daemon: Daemon,
    folder: String,
    /// The request that an earlier step left waiting: its client, and the number of bytes to read.
    waiting: RefCell<Option<(NbdClient, usize)>>,
    /// Lines that the previous command added to dmsetup's errors. The recording has the log lines
    /// of a command on a held device with the next command.
    added_before: RefCell<Vec<String>>,
}

impl Stage {
    fn replay(&self, case: &Value) -> Verdict {
        let mut first = Ok(());
        for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            // The session goes on after a difference, because later steps build on all earlier
            // ones.
            let verdict = self.step(case, step).map_err(|text| format!("step {number}, {text}"));
            first = first.and(verdict);
        }
        first
    }

    fn step(&self, case: &Value, step: &Value) -> Verdict {
        let (key, value) = step.as_object().unwrap().iter().next().unwrap();
        match key.as_str() {
            "cmd" => self.command(step),
            "while open" => {
                let client = self.daemon.nbd(NAME);
                let verdict = self.command(value);
                client.disconnect().unwrap();
                self.until_closed();
                verdict
            }
            "ram3 held" => {
                let held = hold(&self.daemon.path("ram3"));
                let verdict = self.command(value);
                drop(held);
                verdict
            }
            "ioctl" => self.check_info(value),
            "map" => self.check_map(value.as_str().unwrap()),
            "read" => self.check_read(value.as_str().unwrap()),
            "write" => {
                let mut client = self.daemon.nbd(NAME);
                let errno = errno_name(client.write(0, &[0; SECTOR], false));
                client.disconnect().unwrap();
                self.until_closed();
                differs("write", errno.as_str(), value.as_str().unwrap())
            }
            "the same I/O later" => {
                differs("later", self.finish(case), value.as_str().unwrap().to_owned())
            }
            "ram1 sector 0" => {
                let disk = std::fs::read(self.daemon.path("ram1")).unwrap();
                let word: String = disk[..4].iter().map(|byte| format!("{byte:02x}")).collect();
                // Restores the disk for the sessions that follow.
                restore(&self.daemon, "ram1");
                differs("ram1", word.as_str(), value.as_str().unwrap())
            }
            "reads" => {
                let mut client = self.daemon.nbd(NAME);
                for sector in value.as_array().unwrap() {
                    let at =
                        sector.as_str().unwrap().split(' ').nth(1).unwrap().parse::<u64>().unwrap();
                    let data = client.read(at * SECTOR as u64, SECTOR).unwrap();
                    differs("reads", source(&data).as_str(), sector.as_str().unwrap())?;
                }
                client.disconnect().unwrap();
                self.until_closed();
                Ok(())
            }
            "O_EXCL open of a path" => {
                // Another process of blkswitch finds the file locked.
                let second = Leaf::open(&Address::Path(self.daemon.path("ram0")), &leaf_options())
                    .unwrap_err();
                differs("a second user of a path", second.errno(), 16)
            }
            "four threads, fifty messages each" => self.messages_at_once(value),
            other => match other.strip_prefix("I/O at sector ") {
                Some(sector) => {
                    let ours = self.begin(case, sector.parse().unwrap());
                    differs(other, ours.as_str(), value.as_str().unwrap())
                }
                None => panic!("{other}?"),
            },
        }
    }

    /// Runs a command through a shell, and compares everything.
    fn command(&self, step: &Value) -> Verdict {
        let recorded = text(step, "cmd");
        if let Some(rest) = recorded.strip_prefix("/usr/sbin/blockdev ") {
            return self.blockdev(rest, text(step, "stdout"));
        }
        if !recorded.contains("dmsetup") {
            return Ok(());
        }
        let ours =
            recorded.replace("/dev/ram", &format!("{}/ram", self.folder)).replace("-j 253", "-j 0");
        let mut shell = std::process::Command::new("sh");
        let script = format!("dmsetup() {{ '{}' \"$@\"; }}\n{ours}", program().display());
        shell.args(["-c", &script]).env("BLKSWITCH_SOCKET", self.daemon.socket());
        shell.env("LC_ALL", "C").env_remove("LANG").stdin(Stdio::null());
        let Output { status, stdout, stderr } = shell.output().unwrap();
        let (stdout, stderr) =
            (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        let (ours, added): (Vec<&str>, Vec<&str>) =
            stderr.lines().partition(|line| !line.starts_with("  "));
        differs("rc", i64::from(status.code().unwrap()), step["rc"].as_i64().unwrap())?;
        if recorded.contains("devnos_used") {
            // A column is as wide as its contents, and addresses are longer than numbers.
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            differs(
                "words of stdout",
                words(&self.as_recorded(&stdout)),
                words(text(step, "stdout")),
            )?;
        } else {
            differs("stdout", self.as_recorded(&stdout), text(step, "stdout").to_owned())?;
        }
        let kernel: Vec<&str> = text(step, "stderr").lines().collect();
        // A usage text names the program's own verbs and switches. It is sufficient that there is
        // one.
        let usage = |lines: &[&str]| lines.iter().position(|line| line.starts_with("Usage:"));
        if let (Some(ours_at), Some(kernel_at)) = (usage(&ours), usage(&kernel)) {
            return differs("stderr before the usage", &ours[..ours_at], &kernel[..kernel_at]);
        }
        differs(
            "stderr",
            ours.iter().map(|line| self.as_recorded(line)).collect::<Vec<_>>(),
            owned(&kernel),
        )?;
        let before = self.added_before.replace(owned(&added));
        for line in
            step["kmsg"].as_array().into_iter().flatten().filter(|_| status.code() == Some(1))
        {
            let line = line[1].as_str().unwrap();
            let mut all = added.iter().copied().chain(before.iter().map(String::as_str));
            let found = all.any(|added| self.as_recorded(added).trim() == line);
            differs(&format!("'{line}' among {added:?}"), found, true)?;
        }
        Ok(())
    }

    /// Replaces the addresses and numbers in a text by those of the recorded machine.
    fn as_recorded(&self, ours: &str) -> String {
        let mut text = String::new();
        for line in ours.split_inclusive('\n') {
            let mut line = line.to_owned();
            let separator = if line.contains("dependencies") { ", " } else { ":" };
            for ram in 0..4 {
                line = line
                    .replace(&format!("{}/ram{ram}", self.folder), &format!("1{separator}{ram}"));
            }
            for (low, number) in [("low0", 0), ("low1", 1)] {
                line = line.replace(&format!("/dev/blkswitch/{low}"), &format!("253:{number}"));
            }
            // All places where the number of a device appears: a tree, deps and ls, the log, info,
            // columns.
            for minor in 0..3 {
                for form in [
                    "(M:N)",
                    "(M, N)",
                    "table: M:N:",
                    "minor:      M, N",
                    "switch:M:N:",
                    "switch|M|N|",
                ] {
                    let number =
                        |major: &str| form.replace('M', major).replace('N', &minor.to_string());
                    line = line.replace(&number("0"), &number("253"));
                }
                line = line.replace(&format!("   0   {minor} L"), &format!(" 253   {minor} L"));
            }
            text.push_str(&line);
        }
        text
    }

    fn blockdev(&self, words: &str, recorded: &str) -> Verdict {
        let client = self.daemon.nbd(NAME);
        let (size, read_only) = (client.size(), client.read_only());
        client.disconnect().unwrap();
        self.until_closed();
        match words.split(' ').next().unwrap() {
            "--getsize" => differs("size", (size / 512).to_string(), recorded.trim().to_owned()),
            "--getsize64" => {
                differs("size", Some(size.to_string().as_str()), recorded.lines().next())
            }
            "--getro" => {
                differs("read-only", u8::from(read_only).to_string(), recorded.trim().to_owned())
            }
            other => panic!("blockdev {other}?"),
        }
    }

    fn check_info(&self, recorded: &Value) -> Verdict {
        let device = self.daemon.describe(NAME);
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let flags = flag(device.read_only, READ_ONLY)
            | flag(device.suspended, SUSPENDED)
            | flag(device.live.is_some(), ACTIVE_PRESENT)
            | flag(device.inactive.is_some(), INACTIVE_PRESENT);
        let targets = device.live.as_ref().map_or(0, |table| table.segments.len() as u64);
        let ours = [flags, u64::from(device.event_nr), u64::from(device.open_count), targets];
        let kernel =
            ["flags", "event_nr", "open", "targets"].map(|field| recorded[field].as_u64().unwrap());
        differs("flags, event_nr, open, targets", ours, kernel)
    }

    /// Compares the map with the recorded one, as the daemon reports it and as reads show it.
    fn check_map(&self, recorded: &str) -> Verdict {
        let expected = expand(recorded);
        differs("map", self.daemon.map(NAME, 0), expected.clone())?;
        let params = |name| self.daemon.describe(name).live.unwrap().segments[0].params.clone();
        let size: u64 = params(NAME).split(' ').nth(1).unwrap().parse().unwrap();
        let low1 = if params(NAME).contains("low1") { params("low1") } else { String::new() };
        let mut client = self.daemon.nbd(NAME);
        for (path, region) in expected.iter().zip(0u64..) {
            let data = client.read(region * size * SECTOR as u64, SECTOR).unwrap();
            // In the stacked session, path 1 is a linear device that is moved to another disk.
            let disk = if low1.contains("ram2") && *path == 1 { 2 } else { *path };
            differs("read", source(&data), format!("ram{disk} {}", region * size))?;
        }
        client.disconnect().unwrap();
        self.until_closed();
        Ok(())
    }

    fn check_read(&self, recorded: &str) -> Verdict {
        let ours = match NbdClient::unix(&self.daemon.path("nbd.sock"), NAME) {
            // Without a table there is no export to open.
            Err(error) if error.kind() == ErrorKind::NotFound => "ENOENT".to_owned(),
            Err(error) => panic!("{error}"),
            Ok(mut client) => {
                client.set_patience(BLOCKED).unwrap();
                let ours = match client.read(0, SECTOR) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => "blocked".to_owned(),
                    read => errno_name(read.map(drop)),
                };
                drop(client);
                self.until_closed();
                ours
            }
        };
        differs("read", ours, recorded.to_owned())
    }

    /// Sends a read, or a write in a session about writes. Returns the outcome.
    fn begin(&self, case: &Value, sector: u64) -> String {
        let mut client = self.daemon.nbd(NAME);
        client.set_patience(BLOCKED).unwrap();
        let length = if text(case, "name").contains("write") {
            client.send_write(sector * SECTOR as u64, &[0x77; SECTOR]).unwrap();
            0
        } else {
            client.send_read(sector * SECTOR as u64, SECTOR).unwrap();
            SECTOR
        };
        match client.receive(length) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                *self.waiting.borrow_mut() = Some((client, length));
                "blocked".to_owned()
            }
            answer => outcome(answer),
        }
    }

    /// The outcome of the request that [`Stage::begin`] left waiting.
    fn finish(&self, case: &Value) -> String {
        let (mut client, length) = self.waiting.borrow_mut().take().unwrap();
        let resumed =
            !text(case, "name").contains("stacked") || !self.daemon.describe("low1").suspended;
        client.set_patience(if resumed { ANSWERED } else { BLOCKED }).unwrap();
        let answer = client.receive(length);
        if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            *self.waiting.borrow_mut() = Some((client, length));
            return "blocked".to_owned();
        }
        client.disconnect().unwrap();
        self.until_closed();
        outcome(answer)
    }

    /// Waits until the daemon has noticed that a client is gone.
    fn until_closed(&self) {
        eventually("a client that is gone counts no more", || {
            let reply =
                self.daemon.on("GET", blkswitch::protocol::route::DEVICE, NAME, Value::Null);
            !reply.is_ok() || reply.json::<blkswitch::protocol::Device>().open_count == 0
        });
    }

    fn messages_at_once(&self, recorded: &Value) -> Verdict {
        let paths: String = (0..3).map(|ram| format!(" {}/ram{ram} 0", self.folder)).collect();
        self.daemon.create(NAME, &format!("0 2048 switch 3 128 0{paths}")).expect_ok();
        let daemon = &self.daemon;
        let send = |path: u32| {
            let text = format!("set_region_mappings 0:{path} R1,f");
            (0..50).filter(|_| !daemon.message(NAME, 0, text.as_bytes()).is_ok()).count()
        };
        let failures = std::thread::scope(|scope| {
            let threads = [0, 1, 2, 0].map(|path| scope.spawn(move || send(path)));
            let mut client = self.daemon.nbd(NAME);
            for _ in 0..50 {
                let data = client.read(0, SECTOR).unwrap();
                assert!(
                    (0..3).any(|ram| data == sector_of(&format!("ram{ram}"), 0)),
                    "no path's sector 0"
                );
            }
            client.disconnect().unwrap();
            threads.map(|thread| thread.join().unwrap())
        });
        let map = self.daemon.map(NAME, 0);
        self.daemon.remove(NAME);
        differs("all on one path", map.iter().all(|path| *path == map[0]), true)?;
        differs("failures", failures.iter().sum(), recorded["failures"].as_array().unwrap().len())
    }
}

fn leaf_options() -> LeafOptions {
    LeafOptions::new(Queues::of_pipelines(1))
}

/// Takes the lock that another writer would have. It is held until the result is dropped.
fn hold(path: &std::path::Path) -> Arc<Leaf> {
    Leaf::open(&Address::Path(path.to_owned()), &leaf_options()).unwrap()
}

/// Restores the first sector of a disk.
fn restore(daemon: &Daemon, disk: &str) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(daemon.path(disk)).unwrap();
    file.write_all_at(&sector_of(disk, 0), 0).unwrap();
}

fn owned(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

/// The disk and number in a sector.
fn source(data: &[u8]) -> String {
    String::from_utf8_lossy(&data[..16]).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn outcome(answer: io::Result<Vec<u8>>) -> String {
    match answer {
        Ok(data) if data.is_empty() => "wrote 1".to_owned(),
        Ok(data) => source(&data),
        Err(error) => errno_name(Err(error)),
    }
}

fn errno_name(result: io::Result<()>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(number) => blkswitch::protocol::Errno::from_number(number).name().to_owned(),
            None => panic!("{error}"),
        },
    }
}

#[test]
fn sessions() {
    let daemon = Daemon::start();
    let folder = daemon.folder.path().display().to_string();
    let stage =
        Stage { daemon, folder, waiting: RefCell::default(), added_before: RefCell::default() };
    let mut commands = BTreeMap::<bool, usize>::new();
    check_suite("tools", 44, |case| {
        for step in case["steps"].as_array().unwrap() {
            *commands
                .entry(step["cmd"].as_str().is_some_and(|cmd| cmd.contains("dmsetup")))
                .or_default() += 1;
        }
        stage.replay(case)
    });
    assert!(commands[&true] >= 150, "{commands:?}");
}
