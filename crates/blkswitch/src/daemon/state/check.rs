//! `state check`: inspects everything in a state folder, and changes nothing.
//!
//! Contract: for a folder that no daemon uses. If the folder has a lock file, its lock is held
//! meanwhile. May block.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use blkswitch_core::args::is_space;
use blkswitch_core::switch::{Geometry, Params};
use blkswitch_core::table;
use blkswitch_io::slots::Slots;

use super::description::{Description, SavedDevice, SavedMap};
use super::files::{Files, NO_FOLLOW};
use super::map_file::FoundMap;
use super::{DISKS_FILE, FILE, Folder, LOCK};

/// The result of a check.
#[derive(Debug, Default)]
pub struct Report {
    /// One line for each file.
    pub lines: Vec<String>,
    /// Number of files that are damaged or missing.
    pub damages: usize,
}

impl Report {
    fn good(&mut self, file: &Path, text: impl std::fmt::Display) {
        self.lines.push(format!("{}: {text}", file.display()));
    }

    fn damage(&mut self, file: &Path, error: &io::Error) {
        self.damages += 1;
        self.lines.push(format!("{}: DAMAGED: {error}", file.display()));
    }
}

/// Checks the folder of `serve --state`, or the folder of disks.
///
/// Errors: there is no such folder, or a daemon uses it.
pub fn check(path: &Path) -> io::Result<Report> {
    std::fs::read_dir(path)?;
    let _lock = lock(path)?;
    let mut report = Report::default();
    if let Err(error) = Files::check_folder(path) {
        report.damage(path, &error);
    }
    let is_there = |file: &&str| path.join(file).symlink_metadata().is_ok();
    let file = [FILE, DISKS_FILE].into_iter().find(is_there).unwrap_or(FILE);
    let folder = Folder { file, ..Folder::of_disks(path.to_owned()) };
    let there = folder.maps_there();
    let mut named = HashSet::new();
    match read_description(&folder, &there) {
        Ok(None) => report.good(Path::new(file), "is not there, and no map is"),
        Ok(Some(state)) => {
            let devices = state.devices.len();
            let sum = if state.is_old() { "no checksum (older format)" } else { "checksum right" };
            report.good(Path::new(file), format!("{devices} devices, {sum}"));
            for device in &state.devices {
                check_device(&mut report, path, device, &mut named);
            }
            named.extend(state.unused.iter().map(|map| map.file.clone()));
        }
        Err(error) => report.damage(Path::new(file), &error),
    }
    for name in there.iter().filter(|name| !named.contains(*name)) {
        check_unnamed(&mut report, path, name);
    }
    Ok(report)
}

/// Reads the description; `None` if the folder was never used.
fn read_description(folder: &Folder, maps: &[PathBuf]) -> io::Result<Option<Description>> {
    match Files::read(&folder.path.join(folder.file)) {
        Err(error) if error.kind() == ErrorKind::NotFound && maps.is_empty() => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = format!("it is missing, but {} region maps are there", maps.len());
            Err(io::Error::new(ErrorKind::NotFound, text))
        }
        text => Description::from_text(&text?).map(Some),
    }
}

fn check_device(
    report: &mut Report,
    path: &Path,
    device: &SavedDevice,
    named: &mut HashSet<PathBuf>,
) {
    let geometries = geometries(&device.table);
    if geometries.len() != device.maps.len() {
        let text = format!(
            "the table has {} switches, and {} maps are named",
            geometries.len(),
            device.maps.len()
        );
        let name = format!("device '{}'", device.name.escape_debug());
        report.damage(Path::new(&name), &io::Error::new(ErrorKind::InvalidData, text));
    }
    for (map, geometry) in device.maps.iter().zip(&geometries) {
        let is_first = named.insert(map.file.clone());
        let twice = || io::Error::new(ErrorKind::InvalidData, "two devices have it");
        let checked = is_first.then_some(()).ok_or_else(twice);
        match checked.and_then(|()| check_map(path, map, geometry)) {
            Ok(text) => {
                report.good(&map.file, format!("device '{}', {text}", device.name.escape_debug()));
            }
            Err(error) => report.damage(&map.file, &error),
        }
    }
}

fn check_map(path: &Path, map: &SavedMap, geometry: &Geometry) -> io::Result<String> {
    map.check_name()?;
    let found = FoundMap::open(&path.join(&map.file))?;
    found.check_identity(map)?;
    let words = Slots::in_memory(geometry.nr_slots()).ok_or(ErrorKind::OutOfMemory)?;
    let Some((header, _)) = &found.header else {
        found.read_old(geometry, &words)?;
        return Ok("older format, without checksums".to_owned());
    };
    let text = describe(&found, header);
    if found.lacks_copy {
        let text = format!("{text}: one of its two headers is damaged, the other one serves");
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    found.read(geometry, &words)?;
    Ok(text)
}

fn describe(found: &FoundMap, header: &super::header::Header) -> String {
    let mut text = format!("{}, generation {}", header.shape, header.generation);
    if header.is_open {
        text.push_str(", open: a message was under way when the daemon or the machine ended");
    }
    if found.is_longer() {
        text.push_str(", longer than it need be");
    }
    text
}

/// Checks a map that the description does not name. Another description may name it.
fn check_unnamed(report: &mut Report, path: &Path, name: &Path) {
    let checked = FoundMap::open(&path.join(name)).and_then(|found| {
        found.check()?;
        Ok(match &found.header {
            None => "older format".to_owned(),
            Some((header, _)) => {
                let device = header.name.escape_debug();
                format!("last of device '{device}', {}", describe(&found, header))
            }
        })
    });
    let text = match checked {
        Ok(text) => text,
        Err(error) => format!("damaged: {error}"),
    };
    report.good(name, format!("not named by the description ({text})"));
}

/// The geometries of the table's switches, as far as the text can be parsed.
fn geometries(text: &str) -> Vec<Geometry> {
    let lines = table::lines(text.as_bytes()).flatten().filter(|line| line.kind == b"switch");
    let geometry = |line: table::TableLine<'_>| {
        let words: Vec<&[u8]> =
            line.params.split(|byte| is_space(*byte)).filter(|word| !word.is_empty()).collect();
        let params = Params::parse(words.iter().copied()).ok()?;
        Geometry::new(line.len, params.num_paths(), params.region_size()).ok()
    };
    lines.filter_map(geometry).collect()
}

/// Takes the lock of the folder; `None` if no daemon has left a lock file.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let open = OpenOptions::new().read(true).custom_flags(NO_FOLLOW).open(path.join(LOCK));
    match open {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        file => {
            let file = file?;
            match file.try_lock() {
                Ok(()) => Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {
                    let text = "a daemon uses it: stop that first";
                    Err(io::Error::new(ErrorKind::ResourceBusy, text))
                }
                Err(TryLockError::Error(error)) => Err(error),
            }
        }
    }
}
