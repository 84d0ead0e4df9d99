//! What the next daemon needs to go on with the devices of this one: a file that describes them,
//! and the region maps as files of their own.
//!
//! A map lives in its file ([`blkswitch_io::slots`]), so every acknowledged change is there. The
//! description is written anew, under another name and then renamed, whenever it changes. There are
//! two kinds of folder. That of the disks keeps what the disks of a daemon that was killed need,
//! and forces nothing to a medium: it need not outlive the machine, as the disks do not. That of
//! `serve --state` keeps every device, and forces the description and each message's changes to the
//! medium before they are answered.
//!
//! A map's file is removed only once a description is on its medium that does not name it, and
//! while no table has it: at every other moment a daemon may be killed, and the next one finds all
//! that it is told of.
//!
//! Contract: one daemon per folder (for the disks the control socket sees to that, else a lock).
//! Any thread; may block.

mod files;
#[cfg(test)]
mod power;

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blkswitch_io::slots::Slots;
use serde::{Deserialize, Serialize};

use self::files::Files;
use crate::protocol::LeafCache;

/// Version of the description: another one is refused.
const VERSION: u32 = 1;
/// The description of every device.
const FILE: &str = "devices.json";
/// That of the disks.
const DISKS_FILE: &str = "disks.json";
/// What the kernel calls its life since it was started: numbers of disks mean nothing in another.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// What a daemon holds a lock on that keeps everything here.
const LOCK: &str = "lock";
/// What the files of maps begin with.
const MAP: &str = "map-";

/// The devices that are kept, what is below first.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// In which life of the machine.
    #[serde(default)]
    boot: String,
    /// The devices.
    pub devices: Vec<SavedDevice>,
}

impl Default for State {
    fn default() -> Self {
        State { version: VERSION, boot: boot(), devices: Vec::new() }
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
    /// Bytes of the logical blocks that users were told of; 0 where that was not saved.
    #[serde(default)]
    pub block: u32,
}

/// The folder with all that.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    file: &'static str,
    files: Files,
    /// The maps that the description has, or may have.
    named: Mutex<HashSet<PathBuf>>,
    next_map: AtomicU64,
    /// Locked, of a folder that keeps every device.
    lock: Option<File>,
}

impl Folder {
    /// The folder at `path` for disks; made when something is to be put there.
    pub fn of_disks(path: PathBuf) -> Folder {
        Folder {
            path,
            file: DISKS_FILE,
            files: Files::new(false),
            named: Mutex::default(),
            next_map: AtomicU64::new(0),
            lock: None,
        }
    }

    /// The folder at `path`, made if there is none, for every device. Errors: another daemon has
    /// it.
    pub fn of_all(path: PathBuf) -> io::Result<Folder> {
        Folder::of_all_with(path, Files::new(true))
    }

    fn of_all_with(path: PathBuf, files: Files) -> io::Result<Folder> {
        let mut folder = Folder { file: FILE, files, ..Folder::of_disks(path) };
        folder.files.make_folder(&folder.path)?;
        let file = Files::open_or_make(&folder.path.join(LOCK))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                io::Error::new(ErrorKind::ResourceBusy, "another daemon uses it")
            }
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

    /// What was saved last; without the numbers of disks, if the machine was started anew since.
    /// Errors: it cannot be read, or is not ours.
    pub fn load(&self) -> io::Result<State> {
        let text = match std::fs::read(self.path.join(self.file)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::default()),
            text => text?,
        };
        let mut state: State = serde_json::from_slice(&text)?;
        if state.version != VERSION {
            let text = format!("version {} where {VERSION} is understood", state.version);
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        if state.boot != boot() {
            state.devices.iter_mut().for_each(|device| device.disk = None);
        }
        *self.named() = names(&state.devices);
        Ok(state)
    }

    /// Saves these devices in place of what was saved before; when there are none, no description
    /// is left. Maps that nobody has any more are removed.
    pub fn save(&self, devices: Vec<SavedDevice>) -> io::Result<()> {
        let mut named = self.named();
        let names = names(&devices);
        // Until it is known which of the two descriptions is there.
        named.extend(names.iter().cloned());
        self.describe(devices)?;
        *named = names;
        self.sweep_but(&named);
        Ok(())
    }

    fn describe(&self, devices: Vec<SavedDevice>) -> io::Result<()> {
        let file = self.path.join(self.file);
        if devices.is_empty() {
            self.files.remove(&file)?;
            // Also if there was none: it may be that only this failed the last time.
            return self.files.force(&self.path);
        }
        self.make()?;
        let new = self.path.join(format!("{}.new", self.file));
        let text = serde_json::to_vec_pretty(&State { devices, ..State::default() })?;
        self.files.write(&new, &text)?;
        self.files.rename(&new, &file)?;
        self.files.force(&self.path)
    }

    /// Words for a new map, in a file here.
    pub fn new_map(&self, len: usize) -> io::Result<Slots> {
        self.make()?;
        loop {
            let number = self.next_map.fetch_add(1, Ordering::Relaxed);
            match self.files.make_map(&self.path.join(format!("{MAP}{number}")), len) {
                // Of a daemon before us.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => return made,
            }
        }
    }

    /// Forces what was stored to a map so far to its medium, where that is promised.
    pub fn sync_map(&self, map: &Slots) -> io::Result<()> {
        self.files.force_map(map)
    }

    /// The words of a map that was saved.
    pub fn saved_map(&self, name: &Path, len: usize) -> io::Result<Slots> {
        self.files.open_map(&self.path.join(name), len)
    }

    /// Removes the maps that neither the description nor a table has.
    pub fn sweep(&self) {
        self.sweep_but(&self.named());
    }

    fn sweep_but(&self, named: &HashSet<PathBuf>) {
        self.unnamed(named).for_each(|path| self.files.remove_unused_map(&path));
    }

    /// Removes the maps that the description does not have: the daemon ends.
    pub fn end(&self) {
        // A file too many does no harm.
        self.unnamed(&self.named()).for_each(|path| drop(self.files.remove(&path)));
    }

    /// Maps that `named` does not have.
    fn unnamed(&self, named: &HashSet<PathBuf>) -> impl Iterator<Item = PathBuf> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let name = PathBuf::from(entry.file_name());
            let is_map = name.to_str().is_some_and(|name| name.starts_with(MAP));
            (is_map && !named.contains(&name)).then(|| entry.path())
        })
    }

    /// Held while the description changes and while maps are removed.
    fn named(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) -> io::Result<()> {
        if self.path.is_dir() { Ok(()) } else { self.files.make_folder(&self.path) }
    }
}

fn names(devices: &[SavedDevice]) -> HashSet<PathBuf> {
    devices.iter().flat_map(|device| device.maps.iter().cloned()).collect()
}

/// Empty where the kernel does not say.
fn boot() -> String {
    std::fs::read_to_string(BOOT).map(|text| text.trim().to_owned()).unwrap_or_default()
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
            block: 512,
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
        let other = two.file().unwrap().to_owned();
        assert!(other.exists(), "a table has it");
        drop((one, two));
        let next = Folder::of_disks(folder.path().to_owned());
        let state = next.load().unwrap();
        assert_eq!(state.devices, saved);
        next.sweep();
        assert!(!other.exists(), "nobody will come for it");
        let map = next.saved_map(name.as_ref(), 10).unwrap();
        assert_eq!(map.as_ref()[9].load(Ordering::Relaxed), 5);
        next.save(Vec::new()).unwrap();
        assert!(map.file().unwrap().exists(), "the table has it still");
        drop(map);
        next.save(Vec::new()).unwrap();
        assert_eq!(std::fs::read_dir(next.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_description_that_could_not_be_saved_costs_no_map() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::of_all(temporary.path().join("state")).unwrap();
        let one = folder.new_map(10).unwrap();
        let name =
            |slots: &Slots| slots.file().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        folder.save(vec![device("a", &name(&one))]).unwrap();
        // What it is written to first is a folder.
        std::fs::create_dir(folder.path().join("devices.json.new")).unwrap();
        let two = folder.new_map(10).unwrap();
        folder.save(vec![device("a", &name(&two))]).unwrap_err();
        let paths = [&one, &two].map(|slots| slots.file().unwrap().to_owned());
        drop((one, two));
        folder.sweep();
        assert!(paths.iter().all(|path| path.exists()));
        assert_eq!(
            folder.load().unwrap().devices[0].maps[0],
            Path::new(paths[0].file_name().unwrap())
        );
    }

    #[test]
    fn numbers_of_disks_mean_nothing_to_a_machine_started_anew() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::of_disks(temporary.path().to_owned());
        folder.save(vec![device("a", "map-0")]).unwrap();
        assert_eq!(folder.load().unwrap().devices[0].disk, Some(7));
        let file = temporary.path().join(DISKS_FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(&boot(), "another")).unwrap();
        assert_eq!(folder.load().unwrap().devices[0].disk, None);
    }

    #[test]
    fn another_version_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::of_disks(temporary.path().to_owned());
        std::fs::write(temporary.path().join(DISKS_FILE), r#"{"version": 2, "devices": []}"#)
            .unwrap();
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
