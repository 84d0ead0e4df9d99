//! What the next daemon needs to go on with the devices of this one: a file that describes them, and the region maps
//! as files of their own.
//!
//! A map lives in its file ([`blkswitch_io::slots`]), so every acknowledged change is there. The description is written
//! anew, under another name and then renamed, whenever it changes. There are two kinds of folder. That of the disks
//! keeps what the disks of a daemon that was killed need, and forces nothing to a medium: it need not outlive the
//! machine, as the disks do not. That of `serve --state` keeps every device, and forces the description and each
//! message's changes to the medium before they are answered.
//!
//! Contract: one daemon per folder (for the disks the control socket sees to that, else a lock). Any thread; may block.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use blkswitch_io::slots::{Keep, Slots};
use serde::{Deserialize, Serialize};

use crate::protocol::LeafCache;

/// Version of the description: another one is refused.
const VERSION: u32 = 1;
/// The description.
const FILE: &str = "devices.json";
/// What a daemon holds a lock on that keeps everything here.
const LOCK: &str = "lock";
/// What the files of maps begin with.
const MAP: &str = "map-";
/// The state is its user's alone: it says where things are, and maps decide where data goes.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The devices that are kept, what is below first.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// The devices.
    pub devices: Vec<SavedDevice>,
}

impl Default for State {
    fn default() -> Self {
        State { version: VERSION, devices: Vec::new() }
    }
}

/// A device as it is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDevice {
    /// Its name.
    pub name: String,
    /// Its uuid; empty if it has none.
    pub uuid: String,
    /// Its number.
    pub minor: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether its gate is closed.
    pub suspended: bool,
    /// How its leaves are opened.
    pub cache: LeafCache,
    /// Its live table.
    pub table: String,
    /// The files of the maps, a name per switch segment.
    pub maps: Vec<PathBuf>,
    /// The ublk driver's number of the disk, if it is one itself.
    pub disk: Option<u32>,
}

/// The folder with all that.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keep: Keep,
    next_map: AtomicU64,
    /// Locked, of a folder that keeps every device.
    lock: Option<File>,
}

impl Folder {
    /// The folder at `path` for disks; made when something is to be put there.
    pub fn of_disks(path: PathBuf) -> Folder {
        Folder { path, keep: Keep::default(), next_map: AtomicU64::new(0), lock: None }
    }

    /// The folder at `path`, made if there is none, for every device. Errors: another daemon has it.
    pub fn of_all(path: PathBuf) -> io::Result<Folder> {
        let mut folder = Folder::of_disks(path);
        folder.make()?;
        let mut open = OpenOptions::new();
        let file =
            open.write(true).create(true).truncate(false).mode(FILE_MODE).open(folder.path.join(LOCK))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(ErrorKind::ResourceBusy, "another daemon uses it"),
            TryLockError::Error(error) => error,
        })?;
        folder.lock = Some(file);
        Ok(folder)
    }

    /// Whether every device is kept here, not only what disks need.
    pub fn keeps_all(&self) -> bool {
        self.lock.is_some()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was saved last. Errors: it cannot be read, or is not ours.
    pub fn load(&self) -> io::Result<State> {
        let text = match std::fs::read(self.path.join(FILE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::default()),
            text => text?,
        };
        let state: State = serde_json::from_slice(&text)?;
        if state.version != VERSION {
            let text = format!("version {} where {VERSION} is understood", state.version);
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        Ok(state)
    }

    /// Saves these devices in place of what was saved before; when there are none, nothing is left.
    pub fn save(&self, devices: Vec<SavedDevice>) -> io::Result<()> {
        let file = self.path.join(FILE);
        if devices.is_empty() {
            return match std::fs::remove_file(&file) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                removed => removed.and_then(|()| self.sync()),
            };
        }
        self.make()?;
        let new = self.path.join(format!("{FILE}.new"));
        let text = serde_json::to_vec_pretty(&State { version: VERSION, devices })?;
        let mut open = OpenOptions::new();
        let mut written = open.write(true).create(true).truncate(true).mode(FILE_MODE).open(&new)?;
        written.write_all(&text)?;
        if self.keeps_all() {
            written.sync_all()?;
        }
        std::fs::rename(&new, &file)?;
        self.sync()
    }

    /// Forces the names of the files here to the medium.
    fn sync(&self) -> io::Result<()> {
        if self.keeps_all() { File::open(&self.path)?.sync_all() } else { Ok(()) }
    }

    /// Words for a new map, in a file here.
    pub fn new_map(&self, len: usize) -> io::Result<Slots> {
        self.make()?;
        loop {
            let number = self.next_map.fetch_add(1, Ordering::Relaxed);
            match Slots::in_new_file(&self.path.join(format!("{MAP}{number}")), len, &self.keep) {
                // Of a daemon before us.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => return made,
            }
        }
    }

    /// The words of a map that was saved.
    pub fn saved_map(&self, name: &Path, len: usize) -> io::Result<Slots> {
        Slots::in_file(&self.path.join(name), len, &self.keep)
    }

    /// Maps stay when they go: the next daemon will come for them.
    pub fn keep(&self) {
        self.keep.keep();
    }

    /// Removes the maps that no saved device has. Before the first new map is made.
    pub fn sweep(&self, state: &State) {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let name = PathBuf::from(entry.file_name());
            let is_map = name.to_str().is_some_and(|name| name.starts_with(MAP));
            if is_map && !state.devices.iter().any(|device| device.maps.contains(&name)) {
                // A file too many does no harm.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, map: &str) -> SavedDevice {
        SavedDevice {
            name: name.into(),
            uuid: String::new(),
            minor: 3,
            read_only: false,
            suspended: true,
            cache: LeafCache::Direct,
            table: "0 1 error\n".into(),
            maps: vec![map.into()],
            disk: Some(7),
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_the_rest_is_swept() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::of_disks(temporary.path().join("below"));
        assert_eq!(folder.load().unwrap().devices, []);
        let (one, two) = (folder.new_map(10).unwrap(), folder.new_map(10).unwrap());
        one.as_ref()[9].store(5, Ordering::Relaxed);
        let name = one.file().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let saved = vec![device("a", &name)];
        folder.save(saved.clone()).unwrap();
        folder.keep();
        let other = two.file().unwrap().to_owned();
        drop((one, two));
        assert!(other.exists(), "kept");
        let next = Folder::of_disks(folder.path().to_owned());
        let state = next.load().unwrap();
        assert_eq!(state.devices, saved);
        next.sweep(&state);
        assert!(!other.exists(), "nobody will come for it");
        assert_eq!(next.saved_map(name.as_ref(), 10).unwrap().as_ref()[9].load(Ordering::Relaxed), 5);
        next.save(Vec::new()).unwrap();
        next.save(Vec::new()).unwrap();
        assert_eq!(std::fs::read_dir(next.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_version_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::of_disks(temporary.path().to_owned());
        std::fs::write(temporary.path().join(FILE), r#"{"version": 2, "devices": []}"#).unwrap();
        assert!(folder.load().unwrap_err().to_string().contains("version 2 where 1"));
    }

    #[test]
    fn a_folder_for_every_device_is_one_daemons() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("state");
        let folder = Folder::of_all(path.clone()).unwrap();
        assert!(folder.keeps_all());
        assert_eq!(Folder::of_all(path.clone()).unwrap_err().to_string(), "another daemon uses it");
        folder.save(vec![device("a", "map-0")]).unwrap();
        drop(folder);
        assert_eq!(Folder::of_all(path).unwrap().load().unwrap().devices[0].name, "a");
    }
}
