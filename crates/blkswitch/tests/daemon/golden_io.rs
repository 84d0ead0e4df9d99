//! Replays the recorded reads, writes, flushes, discards and zeroings over NBD. It compares the
//! data of reads, the places of writes on the disks, and the operations on each path, including
//! flushes and FUA.
//!
//! The disks are files of 8192 or 16384 sectors that contain their own numbers. `/dev/mapper/bad`
//! is a device with an `error` target. Cases that only an ioctl, a page cache or a request queue
//! can show have no meaning over NBD and are skipped ([`NO_MEANING`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::{fmt, io};

use blkswitch::nbd_client::NbdClient;
use blkswitch::protocol::{DeviceStats, PathStats, route};
use serde_json::Value;

use crate::fixture::{Daemon, SECTOR, make_disk, sector_of};
use crate::golden::{Verdict, check_suite, differs, listed_differences, listed_texts, text};

/// Parts of the names of the cases that have no meaning over NBD. docs/kernel-differences.md lists
/// their ids and the reasons.
const NO_MEANING: [&str; 7] = [
    "queue limits",
    "SG_IO",
    "HDIO_GETGEO",
    "unknown ioctl",
    "BLKSECDISCARD",
    "fallocate punch hole",
    "page dirtied before a remap",
];

/// A disk that fails every request.
const BAD: &str = "bad";
/// The device under test.
const CASE: &str = "sw";

/// Sectors of a disk. The recorded SCSI disks are larger.
fn disk_sectors(name: &str) -> u64 {
    if name.starts_with("sd") { 16384 } else { 8192 }
}

/// The operation of a case.
struct Operation {
    verb: &'static str,
    at: u64,
    sectors: u64,
    /// Whether a flush follows. (`O_DSYNC` means both: the kernel's write is FUA, and then it syncs
    /// the file.)
    then_flush: bool,
}

/// Parses the name of a case: the part after the last colon, or for a vector the lengths after the
/// plus.
fn operation(case: &Value) -> Operation {
    let name = text(case, "name");
    let known = [
        ("buffered write", "write c3"),
        ("O_DSYNC write", "write a5 fua"),
        ("then fsync", "write 11"),
        ("write", "write a5"),
        ("discard", "discard"),
        ("BLKZEROOUT", "zero"),
        ("zero range", "zero"),
        ("fsync", "flush"),
        ("read", "read"),
        ("messages reach", "read"),
        ("regions count from the target", "read"),
    ];
    let verb =
        known.iter().find(|(part, _)| name.contains(part)).unwrap_or_else(|| panic!("{name}?")).1;
    let (at, sectors) =
        range_in(name).or_else(|| case["bios"][0].as_str().and_then(range_in)).unwrap_or((0, 0));
    let then_flush =
        verb.starts_with("write") && (name.contains("fsync") || name.contains("O_DSYNC"));
    Operation { verb, at, sectors, then_flush }
}

/// Parses `124+8`, or `125+(2, 4, 2)` for a vector.
fn range_in(text: &str) -> Option<(u64, u64)> {
    let plus = text
        .match_indices('+')
        .find(|(at, _)| text[..*at].ends_with(|c: char| c.is_ascii_digit()))?
        .0;
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let before: String =
        digits(&text[..plus].chars().rev().collect::<String>()).chars().rev().collect();
    let after = &text[plus + 1..];
    let sectors = match after.strip_prefix('(') {
        Some(vector) => {
            vector.split(')').next()?.split(", ").map(|n| n.parse::<u64>().unwrap()).sum()
        }
        None => digits(after).parse().ok()?,
    };
    Some((before.parse().ok()?, sectors))
}

/// Joins neighbouring sectors, one run per line: `ram0 124+4`.
fn runs(sectors: impl IntoIterator<Item = (String, u64, String)>) -> Vec<String> {
    let mut runs: Vec<(String, u64, u64, String)> = Vec::new();
    for (disk, sector, what) in sectors {
        match runs.last_mut() {
            Some((d, start, count, w)) if *d == disk && *start + *count == sector && *w == what => {
                *count += 1
            }
            _ => runs.push((disk, sector, 1, what)),
        }
    }
    let line = |(disk, start, count, what): (String, u64, u64, String)| {
        format!("{disk} {start}+{count} {what}").trim_end().to_owned()
    };
    runs.into_iter().map(line).collect()
}

/// The disks and sectors that the data of a read came from.
fn sources(data: &[u8]) -> Vec<String> {
    runs(data.chunks(SECTOR).map(|sector| {
        let text = String::from_utf8_lossy(&sector[..16]);
        let mut words = text.split_whitespace();
        let disk = words.next().unwrap_or("?").to_owned();
        let number = words.next().and_then(|number| number.parse().ok()).unwrap_or(u64::MAX);
        assert_eq!(sector, sector_of(&disk, number), "a sector that no disk holds");
        (disk, number, String::new())
    }))
}

/// The content that a sector was overwritten with.
fn content(sector: &[u8]) -> String {
    match sector[0] {
        _ if sector.iter().any(|byte| *byte != sector[0]) => "mixed".to_owned(),
        0 => "zero".to_owned(),
        byte => format!("fill-{byte:02x}"),
    }
}

/// The operations on a path: bytes read, bytes written, and whether there were discards or zeroings
/// (whose bytes are not counted).
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Asked {
    read: u64,
    written: u64,
    discards: bool,
    zeroes: bool,
}

/// The operations that the kernel's target sent to each disk. The kernel writes zeroes as data.
fn sent_by_the_kernel(case: &Value, verb: &str) -> (BTreeMap<String, Asked>, Durability) {
    let mut disks = BTreeMap::<String, Asked>::new();
    let mut durability = Durability::default();
    for bio in strings(&case["bios"]) {
        let words: Vec<&str> = bio.split(' ').collect();
        let ["bio_queue", disk, flags, range] = words.as_slice() else { continue };
        let bytes = range_in(range).map_or(0, |(_, sectors)| sectors * SECTOR as u64);
        if *disk == CASE {
            continue;
        }
        // A leading F asks for a flush before the data, if there is any. A later F is FUA.
        let (preflush, operation) = (flags.starts_with('F'), flags.trim_start_matches('F'));
        if preflush {
            *durability.flushes.entry((*disk).to_owned()).or_default() += 1;
        }
        if bytes == 0 {
            continue;
        }
        if operation.contains('F') {
            durability.fua.insert((*disk).to_owned());
        }
        let asked = disks.entry((*disk).to_owned()).or_default();
        match operation.chars().next() {
            Some('N') => asked.zeroes = true,
            Some('W') if verb == "zero" => asked.zeroes = true,
            Some('W') => asked.written += bytes,
            Some('D') => asked.discards = true,
            Some('R') => asked.read += bytes,
            _ => panic!("{bio}?"),
        }
    }
    (disks, durability)
}

/// The requests for durability that each disk got.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Durability {
    flushes: BTreeMap<String, u64>,
    /// The disks that were written with FUA.
    fua: BTreeSet<String>,
}

impl fmt::Display for Durability {
    /// The form of docs/kernel-differences.md: `flush of a, b; FUA on c`, or `nothing`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |words: Vec<String>| words.join(", ");
        let counted = |(disk, times): (&String, &u64)| match times {
            1 => disk.clone(),
            _ => format!("{disk} ({times} times)"),
        };
        let flushes = join(self.flushes.iter().map(counted).collect());
        let fua = join(self.fua.iter().cloned().collect());
        match (flushes.as_str(), fua.as_str()) {
            ("", "") => f.write_str("nothing"),
            (flushes, "") => write!(f, "flush of {flushes}"),
            ("", fua) => write!(f, "FUA on {fua}"),
            (flushes, fua) => write!(f, "flush of {flushes}; FUA on {fua}"),
        }
    }
}

struct Stage {
    daemon: Daemon,
    /// Cases in which the operations on the paths differ from the kernel's.
    other_paths: RefCell<BTreeMap<String, String>>,
    /// Cases in which other paths were asked for durability: the kernel's, and blkswitch's.
    other_durability: RefCell<BTreeMap<String, [String; 2]>>,
    compared: Cell<u32>,
    /// The original content of every disk.
    images: RefCell<BTreeMap<String, Vec<u8>>>,
}

impl Stage {
    /// Restores the disks, and creates the device on them. The table may be refused.
    fn set_up(&self, case: &Value) -> Result<Vec<String>, String> {
        let table = text(case, "table");
        let mut disks: Vec<String> = table
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("/dev/"))
            .map(str::to_owned)
            .collect();
        disks.sort();
        disks.dedup();
        disks.retain(|disk| !disk.starts_with("mapper/"));
        for disk in &disks {
            self.as_new(disk);
        }
        let folder = self.daemon.folder.path().display().to_string();
        // Only these cases depend on the size of the disk's blocks.
        let loop2 = if text(case, "name").starts_with("4096-byte blocks") {
            "sim:4M,block=4096".to_owned()
        } else {
            format!("{folder}/loop2")
        };
        let ours = table.replace("/dev/mapper/", "/DEV/").replace("/dev/loop2", &loop2);
        let ours = ours.replace("/dev/", &format!("{folder}/")).replace("/DEV/", "/dev/mapper/");
        let reply = self.daemon.create(CASE, &ours);
        if reply.is_ok() {
            Ok(disks)
        } else {
            Err(format!("the table is refused: {}", reply.error().reason))
        }
    }

    /// Restores the original content of a disk.
    fn as_new(&self, disk: &str) {
        let path = self.daemon.path(disk);
        let mut images = self.images.borrow_mut();
        match images.get(disk) {
            Some(image) if std::fs::read(&path).unwrap() == *image => {}
            Some(image) => std::fs::write(&path, image).unwrap(),
            None => {
                make_disk(&path, disk_sectors(disk));
                images.insert(disk.to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }

    /// The changes on the disks.
    fn landed(&self, disks: &[String]) -> Vec<String> {
        let images = self.images.borrow();
        let mut changed = Vec::new();
        for disk in disks {
            let now = std::fs::read(self.daemon.path(disk)).unwrap();
            let sectors = now.chunks(SECTOR).zip(images[disk].chunks(SECTOR)).zip(0u64..);
            let differ = sectors.filter(|((now, new), _)| now != new);
            changed.extend(differ.map(|((now, _), number)| (disk.clone(), number, content(now))));
        }
        runs(changed)
    }

    fn replay(&self, case: &Value) -> Verdict {
        let disks = self.set_up(case)?;
        for message in case["messages"].as_array().into_iter().flatten() {
            self.send(message.as_str().unwrap());
        }
        let mut client = self.daemon.nbd(CASE);
        // The first flush reaches all files, because an earlier user of the files may have left
        // unflushed writes. Only after that do flushes of the case itself show.
        client.flush().unwrap();
        let first = self.flushes();
        assert!(
            disks.iter().all(|disk| first.get(disk) == Some(&1)),
            "{}: first flush: {first:?}",
            case["id"]
        );
        let verdict = if text(case, "name").starts_with("remapping between reads") {
            self.remap_between_reads(case, &mut client)
        } else {
            self.one_operation(case, &mut client, &disks)
        };
        if verdict.is_ok() {
            self.compare_paths(case, &mut client, &first);
        }
        client.disconnect().unwrap();
        self.daemon.remove(CASE);
        verdict
    }

    /// Compares the operations on each path, since the `first` flushes, with those of the kernel's
    /// target.
    fn compare_paths(&self, case: &Value, client: &mut NbdClient, first: &BTreeMap<String, u64>) {
        let id = text(case, "id").to_owned();
        let operation = operation(case);
        let mut disks = BTreeMap::<String, Asked>::new();
        // Disks with failed operations, and whether those were reads or writes.
        let mut failed = BTreeMap::<String, [bool; 2]>::new();
        let mut ours = Durability { flushes: self.flushes(), fua: BTreeSet::new() };
        let stats = self.stats();
        for path in &stats.paths {
            let asked = disks.entry(disk_of(path)).or_default();
            asked.read += path.io.read_bytes;
            asked.written += path.io.written_bytes;
            asked.discards |= path.io.discards > 0;
            asked.zeroes |= path.io.write_zeroes > 0;
            if path.io.errors > 0 {
                failed.insert(disk_of(path), [path.io.reads > 0, path.io.writes > 0]);
            }
            // A failed write needs no flush.
            if path.io.writes > path.io.errors {
                ours.fua.insert(disk_of(path));
            }
        }
        let requested = u64::from(operation.then_flush || operation.verb == "flush");
        assert_eq!(stats.total.flushes, 1 + requested, "{id}: flushes of the device");
        // No counter shows FUA. But the leaf's flag for FUA also decides whether a write counts as
        // unflushed. So a path that was written, was not flushed and needs no flush now was written
        // with FUA.
        client.flush().unwrap();
        let last = self.flushes();
        ours.fua.retain(|disk| last[disk] == first[disk]);
        for (disk, times) in &mut ours.flushes {
            *times -= first[disk];
        }
        ours.flushes.retain(|_, times| *times > 0);
        self.compared.set(self.compared.get() + 1);
        let (mut asked, kernel) = sent_by_the_kernel(case, operation.verb);
        // Bytes of failed operations are not counted, so only the kinds can be compared there.
        for (disk, kinds) in failed {
            let sent = asked.entry(disk.clone()).or_default();
            assert_eq!([sent.read > 0, sent.written > 0], kinds, "{id}: asked of {disk}");
            (sent.read, sent.written) = (disks[&disk].read, disks[&disk].written);
        }
        for side in [&mut disks, &mut asked] {
            side.retain(|_, asked| *asked != Asked::default());
        }
        if let Err(difference) = differs("paths", disks, asked) {
            self.other_paths.borrow_mut().insert(id.clone(), difference);
        }
        if ours != kernel {
            self.other_durability.borrow_mut().insert(id, [kernel.to_string(), ours.to_string()]);
        }
    }

    /// Number of flushes of each disk so far.
    fn flushes(&self) -> BTreeMap<String, u64> {
        let mut disks = BTreeMap::new();
        for path in &self.stats().paths {
            *disks.entry(disk_of(path)).or_default() += path.io.flushes;
        }
        disks
    }

    fn stats(&self) -> DeviceStats {
        self.daemon.on("GET", route::STATS, CASE, Value::Null).json()
    }

    /// Sends a message: `set_region_mappings ...`, or `@SECTOR ARGUMENTS RESULT`.
    fn send(&self, message: &str) {
        let Some(rest) = message.strip_prefix('@') else {
            self.daemon.message(CASE, 0, message.as_bytes()).expect_ok();
            return;
        };
        let words: Vec<&str> = rest.split(' ').collect();
        let [sector, arguments, result] = words.as_slice() else { panic!("{message}") };
        let text = format!("set_region_mappings {arguments}");
        let reply = self.daemon.message(CASE, sector.parse().unwrap(), text.as_bytes());
        let ours =
            if reply.is_ok() { "ok".to_owned() } else { reply.error().errno.name().to_owned() };
        assert_eq!(ours, *result, "{message}");
    }

    fn remap_between_reads(&self, case: &Value, client: &mut NbdClient) -> Verdict {
        for expected in case["value"].as_array().unwrap() {
            let disk = expected[0].as_str().unwrap().split(' ').next().unwrap();
            let path = disk.strip_prefix("ram").unwrap();
            self.daemon
                .message(CASE, 0, format!("set_region_mappings 1:{path}").as_bytes())
                .expect_ok();
            let data = client.read(128 * SECTOR as u64, SECTOR).unwrap();
            differs("read", sources(&data), strings(expected))?;
        }
        Ok(())
    }

    fn one_operation(&self, case: &Value, client: &mut NbdClient, disks: &[String]) -> Verdict {
        let Operation { verb, at, sectors, then_flush } = operation(case);
        let (offset, length) = (at * SECTOR as u64, sectors as usize * SECTOR);
        let mut words = verb.split(' ');
        let (verb, fill) = (words.next().unwrap(), words.next());
        let fua = words.next().is_some();
        let mut read = Vec::new();
        let result = match verb {
            "read" => client.read(offset, length).map(|data| read = data),
            "write" => {
                let fill = u8::from_str_radix(fill.unwrap(), 16).unwrap();
                client.write(offset, &vec![fill; length], fua)
            }
            "discard" => client.trim(offset, length as u32),
            "zero" => client.write_zeroes(offset, length as u32),
            "flush" => client.flush(),
            other => panic!("{other}?"),
        };
        let result = if then_flush { result.and_then(|()| client.flush()) } else { result };
        differs("result", errno_name(&result), text(case, "result"))?;
        if verb == "read" && result.is_ok() {
            differs("read", sources(&read), strings(&case["value"]))?;
        }
        differs("landed", self.landed(disks), strings(&case["landed"]))
    }
}

/// The name of the disk that a path leads to.
fn disk_of(path: &PathStats) -> String {
    path.address.rsplit('/').next().unwrap().to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|line| line.as_str().unwrap().to_owned()).collect()
}

fn errno_name(result: &io::Result<()>) -> &'static str {
    match result {
        Ok(()) => "ok",
        Err(error) => match error.raw_os_error() {
            Some(number) => blkswitch::protocol::Errno::from_number(number).name(),
            None => panic!("{error}"),
        },
    }
}

#[test]
fn reads_writes_flushes_discards_zeroings() {
    let stage = Stage {
        daemon: Daemon::start(),
        other_paths: RefCell::default(),
        other_durability: RefCell::default(),
        compared: Cell::default(),
        images: RefCell::default(),
    };
    stage.daemon.create(BAD, "0 8192 error").expect_ok();
    let mut left_out = BTreeSet::new();
    let mut replayed = 0;
    check_suite("io", 176, |case| {
        if NO_MEANING.iter().any(|part| text(case, "name").contains(part)) {
            left_out.insert(text(case, "id").to_owned());
            return Ok(());
        }
        replayed += 1;
        let verdict = stage.replay(case);
        if verdict.is_err() && stage.daemon.run(&["info", CASE]).status.success() {
            stage.daemon.remove(CASE);
        }
        verdict
    });
    assert_eq!(
        left_out,
        listed_differences("io", &["left out"]),
        "not replayed; listed as `left out`"
    );
    assert!(replayed >= 150, "{replayed} replayed");
    let found = stage.other_durability.into_inner();
    assert_eq!(found, listed_texts("io", "durability"), "[kernel, ours], as found and as listed");
    let (other, compared) = (stage.other_paths.into_inner(), stage.compared.get());
    let found: BTreeSet<String> = other.keys().cloned().collect();
    assert_eq!(
        found,
        listed_differences("io", &["paths"]),
        "paths of {compared} cases: {other:#?}"
    );
    assert!(compared >= 100, "the paths of {compared} cases compared");
}
