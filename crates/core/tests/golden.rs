//! Replays recordings of a real kernel (`tests/golden/`), as far as the core decides the outcome:
//! constructors, table rules and messages. The cases with another outcome must be exactly those
//! that `docs/kernel-differences.md` lists.

mod common;

use std::sync::atomic::AtomicU64;

use blkswitch_core::args::{Word, split_in_place};
use blkswitch_core::error::{Errno, Error};
use blkswitch_core::switch::message::{EMPTY_MESSAGE, SECTOR_OUTSIDE_DEVICE, UNRECOGNISED_MESSAGE};
use blkswitch_core::switch::{Command, Geometry, Map, Message, Params, command};
use blkswitch_core::table::{self, Layout, TableLine, check_area, check_region_size};
use common::{check_suite, differs, text};
use serde_json::Value;

type BoxedMap = Map<Box<[AtomicU64]>>;

/// Memory of the recorded machine, as far as the size of a region table depends on it.
const MEMORY_BYTES: usize = 1 << 32;

/// Expands a recorded map: `0 1 2*3`, or `(0 1)*5` for a cycle over that many regions.
fn expand(map: &str) -> Vec<u32> {
    let number = |word: &str| word.parse::<u32>().unwrap();
    if let Some((cycle, count)) = map.strip_prefix('(').and_then(|rest| rest.split_once(")*")) {
        let cycle: Vec<u32> = cycle.split(' ').map(number).collect();
        return cycle.into_iter().cycle().take(count.parse().unwrap()).collect();
    }
    map.split(' ')
        .flat_map(|word| match word.split_once('*') {
            Some((path, count)) => vec![number(path); count.parse().unwrap()],
            None => vec![number(word)],
        })
        .collect()
}

// ---- Constructors ----

struct Device {
    number: &'static str,
    log_name: &'static str,
    sectors: u64,
    block_size: u32,
}

/// The devices of the recorded machine. `None` for other names: the core does not decide whether
/// those can be opened.
fn device(name: &str) -> Option<Device> {
    let (number, log_name, sectors, block_size) = match name {
        "/dev/ram0" | "/dev/link0" | "1:0" | "01:00" | "/dev/spa ce0" => ("1:0", "ram0", 8192, 512),
        "/dev/ram1" => ("1:1", "ram1", 8192, 512),
        "/dev/ram2" => ("1:2", "ram2", 8192, 512),
        "/dev/ram3" | "1:3" => ("1:3", "ram3", 8192, 512),
        "1:99" => ("1:99", "ram99", 8192, 512),
        "/dev/loop0" => ("7:0", "loop0", 4096, 512),
        "/dev/loop1" => ("7:1", "loop1", 100, 512),
        "/dev/loop2" => ("7:2", "loop2", 8192, 4096),
        "/dev/loop3" => ("7:3", "loop3", 8192, 512),
        "/dev/mapper/zero" => ("253:0", "dm-0", 1 << 60, 512),
        _ => return None,
    };
    Some(Device { number, log_name, sectors, block_size })
}

/// The errno that opening a path gave, from the kernel's log.
fn recorded_lookup(case: &Value) -> Option<Errno> {
    let log = case["load_kmsg"].to_string();
    let (_, rest) = log.split_once("Device lookup failed (-")?;
    let (name, _) = rest.split_once(')')?;
    let errno = (1..133).filter_map(Errno::from_number).find(|errno| errno.name() == name);
    Some(errno.unwrap_or_else(|| panic!("{name} is not among the core's errnos")))
}

struct Loaded {
    start: u64,
    line: String,
    geometry: Option<Geometry>,
    paths: Vec<(Device, u64)>,
}

struct Refused {
    errno: Errno,
    log: String,
}

fn load(case: &Value) -> Result<Vec<Loaded>, Refused> {
    let mut layout = Layout::new();
    let mut targets = Vec::new();
    for target in table::lines(text(case, "table").as_bytes()) {
        let target = target.expect("every recorded table can be read");
        targets.push(load_target(case, &mut layout, &target)?);
    }
    layout.finish().map_err(|error| refuse("", error))?;
    for target in &targets {
        let Some(geometry) = target.geometry else { continue };
        for (device, offset) in &target.paths {
            let refuse = |error: Error| Refused {
                errno: error.errno(),
                log: error.of_device(device.log_name).to_string(),
            };
            check_area(*offset, geometry.len_sectors(), device.sectors, device.block_size)
                .map_err(refuse)?;
            check_region_size(geometry.region_size(), geometry.nr_regions(), device.block_size)
                .map_err(refuse)?;
        }
    }
    Ok(targets)
}

/// The line that the kernel logs for an error, after the device's name.
fn refuse(kind: &str, error: Error) -> Refused {
    let log = match error {
        Error::ZeroLength | Error::TooLarge { .. } => error.to_string(),
        Error::UnknownType => format!("{kind}: {error}"),
        _ => format!("{kind}: {error} ({})", error.errno()),
    };
    Refused { errno: error.errno(), log }
}

fn load_target(
    case: &Value,
    layout: &mut Layout,
    target: &TableLine<'_>,
) -> Result<Loaded, Refused> {
    let kind = std::str::from_utf8(target.kind).unwrap();
    let refuse = |error| refuse(kind, error);
    Layout::extent(target.start, target.len).map_err(refuse)?;
    if !matches!(kind, "switch" | "linear" | "error") {
        return Err(refuse(Error::UnknownType));
    }
    layout.append(target.start, target.len).map_err(refuse)?;
    let mut params = target.params.to_vec();
    let words: Vec<&[u8]> = split_in_place(&mut params).collect();
    let prefix = format!("{} {} {kind}", target.start, target.len);
    if kind != "switch" {
        let words = words
            .iter()
            .map(|word| format!(" {}", String::from_utf8_lossy(word)))
            .collect::<String>();
        let line = format!("{prefix}{}", words.replace("/dev/ram3", "1:3"));
        return Ok(Loaded { start: target.start, line, geometry: None, paths: Vec::new() });
    }
    let mut line = prefix;
    let params = Params::parse(words.into_iter()).map_err(refuse)?;
    let (num_paths, region_size) = (params.num_paths(), params.region_size());
    line.push_str(&format!(" {num_paths} {region_size} 0"));
    let mut paths = Vec::new();
    for path in params {
        let name = std::str::from_utf8(path.device).unwrap();
        let held = text(case, "name") == "device held exclusively" && name == "/dev/ram3";
        let device = match device(name) {
            Some(device) if !held => device,
            _ => {
                let errno =
                    recorded_lookup(case).unwrap_or_else(|| panic!("the kernel opened {name}"));
                return Err(refuse(path.lookup_failed(errno)));
            }
        };
        let offset = path.offset().map_err(refuse)?;
        line.push_str(&format!(" {} {offset}", device.number));
        paths.push((device, offset));
    }
    let geometry = Geometry::new(target.len, num_paths, region_size).map_err(refuse)?;
    if geometry.nr_slots() > MEMORY_BYTES / 8 {
        return Err(refuse(Error::RegionTableMemory { regions: geometry.nr_regions() }));
    }
    Ok(Loaded { start: target.start, line, geometry: Some(geometry), paths })
}

fn new_map(geometry: Geometry) -> BoxedMap {
    Map::new(geometry, bytemuck::zeroed_slice_box(geometry.nr_slots())).unwrap()
}

fn paths(map: &BoxedMap) -> Vec<u32> {
    (0..map.geometry().nr_regions()).map(|region| map.path(region).unwrap()).collect()
}

fn replay_constructor(case: &Value) -> Result<(), String> {
    let targets = match load(case) {
        Ok(targets) => targets,
        Err(Refused { errno, log }) => {
            differs("load", errno.name(), text(case, "load"))?;
            // The kernel logs warnings (level 4) before the error.
            let lines = case["load_kmsg"].as_array().unwrap();
            let first =
                lines.iter().find(|line| line[0] == 3).map_or("", |line| line[1].as_str().unwrap());
            return differs("log", format!("device-mapper: table: $DEV: {log}"), first.to_owned());
        }
    };
    differs("load", "ok", text(case, "load"))?;
    let lines: Vec<&str> = targets.iter().map(|target| target.line.as_str()).collect();
    let recorded: Vec<&str> =
        case["table_out"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    differs("table", lines, recorded)?;
    if let ([Loaded { start: 0, geometry: Some(geometry), .. }], Some(regions)) =
        (&targets[..], case["nr_regions"].as_u64())
    {
        differs("regions", geometry.nr_regions(), regions)?;
        // If the sectors of a disk were not written first, the record has no map, only the data
        // that the disk returned.
        if let Some(map) = case["map"].as_str().filter(|map| !map.starts_with('b')) {
            differs("map", paths(&new_map(*geometry)), expand(map))?;
        }
    }
    Ok(())
}

#[test]
fn constructors() {
    check_suite("ctr", 156, replay_constructor);
}

// ---- Messages ----

/// Sends a message. Returns the errno's name or "ok", and the lines of the log.
fn send(map: &BoxedMap, step: &Value) -> Option<(&'static str, Vec<(u64, String)>)> {
    // Recorded text is Latin-1: a character is a byte.
    let mut bytes: Vec<u8> = text(step, "msg").chars().map(|c| u8::try_from(c).unwrap()).collect();
    let refuse =
        |level, text: String| Some(("EINVAL", vec![(level, format!("device-mapper: {text}"))]));
    let whole = bytes.clone();
    let mut words = split_in_place(&mut bytes);
    let Some(first) = words.next() else {
        return refuse(3, format!("ioctl: {EMPTY_MESSAGE}"));
    };
    if first.starts_with(b"@") {
        return None; // The device-mapper core answers these itself.
    }
    if step["sector"].as_u64().unwrap() >= map.geometry().len_sectors() {
        return refuse(3, format!("ioctl: {SECTOR_OUTSIDE_DEVICE}"));
    }
    if command(first) != Some(Command::SetRegionMappings) {
        return refuse(4, format!("switch: {UNRECOGNISED_MESSAGE}"));
    }
    // Apply the same arguments once more as text, to a second map. Both must end alike.
    let twin = new_map(*map.geometry());
    let mut writer = twin.writer().unwrap();
    for run in map.runs(0, u64::MAX) {
        assert!((run.start..run.start + run.count).all(|region| writer.set(region, run.path)));
    }
    let mut text_words = blkswitch_core::args::Words::new(&whole);
    text_words.next();
    let as_text = Message::new()
        .apply_text(&mut writer, text_words.rest(), true)
        .map_err(|refused| refused.error)
        .map(|_| ());
    let mut message = Message::new();
    let mut verdict = Some(("ok", Vec::new()));
    let mut as_words = Ok(());
    for word in words {
        if let Err(error) = message.apply_word(&mut map.writer().unwrap(), word) {
            verdict = refuse(4, format!("switch: {}", error.of_argument(Word::literal(word))));
            as_words = Err(error);
            break;
        }
    }
    assert_eq!(as_text, as_words);
    assert_eq!(paths(&twin), paths(map));
    verdict
}

fn replay_messages(case: &Value) -> Result<(), String> {
    let targets = load(case).map_err(|refused| refused.log)?;
    let map = new_map(targets[0].geometry.unwrap());
    for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        let at = |what: &str| format!("step {number}, {what}");
        if let Some((result, log)) = send(&map, step) {
            let kmsg = step["kmsg"].as_array().unwrap();
            let kmsg = kmsg
                .iter()
                .map(|line| (line[0].as_u64().unwrap(), line[1].as_str().unwrap().to_owned()));
            differs(&at("result"), result, text(step, "result"))?;
            differs(&at("log"), log, kmsg.collect())?;
        }
        differs(&at("map"), paths(&map), expand(text(step, "map")))?;
    }
    Ok(())
}

#[test]
fn messages() {
    check_suite("msg", 141, replay_messages);
}

#[test]
fn random_messages() {
    check_suite("fuzz", 14, replay_messages);
}
