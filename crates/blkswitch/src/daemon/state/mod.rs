//! The state folder: everything that the next daemon needs to go on with the devices of this one.
//! It has a file that describes the devices, and a file for each region map.
//!
//! The changes of a message are written to the map's file before the message is answered
//! ([`map_file`]). When the description changes, it is written under another name and then renamed
//! ([`description`]). Both kinds of file have checksums.
//!
//! There are two kinds of folder:
//!
//! * The folder for disks has what the disks need if the daemon is killed. It forces nothing to the
//!   medium, because neither it nor the disks survive a reboot.
//! * The folder of `serve --state` keeps every device. It forces the description, and the changes
//!   of each message, to the medium before they are answered.
//!
//! A daemon may be killed at any moment, and the next one must find every file that the description
//! names. So a map's file is removed only by a daemon that created it or found it in a description;
//! only after a description without it is on the medium; and only while no table uses it. A file
//! that no description names is left alone: a description that names it may come back from a
//! backup.
//!
//! Contract: one daemon per folder. For disks the control socket guarantees that, otherwise a lock.
//! Any thread; may block.

mod check;
mod checksum;
mod description;
pub(crate) mod files;
mod header;
#[cfg(test)]
pub(crate) mod journal;
mod map_file;

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use blkswitch_core::switch::Geometry;
use blkswitch_io::slots::Slots;

pub use self::check::{Report, check};
pub use self::description::{Description, SavedDevice, SavedMap, SavedVhostUser};
use self::files::Files;
use self::header::Shape;
pub use self::map_file::Owner;
use self::map_file::{FoundMap, MapFile};

/// The description in a folder that keeps every device.
const FILE: &str = "devices.json";
/// The description in a folder for disks.
const DISKS_FILE: &str = "disks.json";
/// The file that the daemon locks in a folder that keeps every device.
const LOCK: &str = "lock";
/// Prefix of the names of map files.
const MAP: &str = "map-";

/// A state folder, with its lock and its maps.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    file: &'static str,
    files: Files,
    /// Held while the description changes and while maps are removed.
    inner: Mutex<Inner>,
    next_map: AtomicU64,
    /// The locked file; `None` in a folder for disks.
    lock: Option<File>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The description on the medium; `None` if that is uncertain.
    saved: Option<Description>,
    /// The maps that the description on the medium names, or may name.
    named: HashSet<PathBuf>,
    /// Maps that this daemon created or found in a description, and has not removed yet.
    ours: HashSet<PathBuf>,
    /// Maps that tables use, or have used.
    held: HashMap<PathBuf, Held>,
}

/// A map that a table uses.
#[derive(Clone, Debug)]
struct Held {
    /// Upgrades for as long as a table uses the map.
    words: Weak<Path>,
    id: Option<u64>,
    generation: Arc<AtomicU64>,
    file: Arc<Mutex<Keeping>>,
}

/// Where the changes of a map are written.
#[derive(Debug)]
enum Keeping {
    File(MapFile),
    /// A file in the format without a header, and the error why it could not be converted.
    ReadOnly(io::Error),
}

impl Folder {
    /// The folder for disks at `path`. It is created when the first file is written.
    pub fn of_disks(path: PathBuf) -> Folder {
        Folder {
            path,
            file: DISKS_FILE,
            files: Files::new(false),
            inner: Mutex::default(),
            next_map: AtomicU64::new(0),
            lock: None,
        }
    }

    /// The folder for every device at `path`; it is created if it does not exist.
    ///
    /// Errors: another daemon uses it, or somebody else can write to it.
    pub fn of_all(path: PathBuf) -> io::Result<Folder> {
        Folder::of_all_with(path, Files::new(true))
    }

    pub(crate) fn of_all_with(path: PathBuf, files: Files) -> io::Result<Folder> {
        let mut folder = Folder { file: FILE, files, ..Folder::of_disks(path) };
        folder.make()?;
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

    /// Returns whether the folder keeps every device, not only what disks need.
    pub fn keeps_all(&self) -> bool {
        self.lock.is_some()
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Loads the saved description, without disks if the machine has been booted since.
    ///
    /// Errors: the description cannot be read, is damaged, belongs to another user, or is missing
    /// while maps exist.
    pub fn load(&self) -> io::Result<Description> {
        let text = match Files::read(&self.path.join(self.file)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.check_never_used()?;
                return Ok(Description::new(Vec::new()));
            }
            text => text?,
        };
        let state = Description::from_text(&text)
            .map_err(|error| io::Error::new(error.kind(), format!("'{}': {error}", self.file)))?;
        let mut inner = self.inner();
        inner.named = state.files();
        inner.ours.extend(state.files());
        let unused = state.unused.iter().filter(|map| self.is_unused(map));
        inner.ours.extend(unused.map(|map| map.file.clone()));
        inner.saved = (!state.is_old()).then(|| state.clone());
        Ok(state.without_gone_disks())
    }

    /// Returns whether a map that a description has given up is unchanged. If it has changed, a
    /// later description may use it.
    fn is_unused(&self, map: &SavedMap) -> bool {
        let found = map.check_name().and_then(|()| FoundMap::open(&self.path.join(&map.file)));
        found.is_ok_and(|found| found.is_exactly(map))
    }

    /// Checks that a folder without a description is new and has not lost it.
    fn check_never_used(&self) -> io::Result<()> {
        let maps = if self.keeps_all() { self.maps_there() } else { Vec::new() };
        let Some(first) = maps.first() else { return Ok(()) };
        let text = format!(
            "'{}' is missing, but {} region maps are there ('{}' and on): put it back. To begin \
             without devices, move the maps away",
            self.file,
            maps.len(),
            first.display()
        );
        Err(io::Error::new(ErrorKind::InvalidData, text))
    }

    /// Saves `devices` if they differ from the saved ones, and removes maps that are not used any
    /// more.
    pub fn save(&self, devices: Vec<SavedDevice>) -> io::Result<()> {
        let mut inner = self.inner();
        let mut state = Description::new(devices);
        state.unused = inner.unused(&state);
        if !inner.saved.as_ref().is_some_and(|saved| saved.is_as_good_as(&state)) {
            self.describe(&mut inner, state)?;
        }
        self.sweep_but_named(&mut inner);
        Ok(())
    }

    fn describe(&self, inner: &mut Inner, state: Description) -> io::Result<()> {
        let file = self.path.join(self.file);
        let names = state.files();
        if state.devices.is_empty() && !self.keeps_all() {
            inner.saved = None;
            self.files.remove(&file)?;
            // Force even if no file was removed: the previous attempt may have failed just here.
            self.files.force(&self.path)?;
        } else {
            self.make()?;
            let new = self.path.join(format!("{}.new", self.file));
            self.files.write(&new, &state.to_text()?)?;
            // Until the folder is forced, a power cut may leave either description.
            inner.saved = None;
            inner.named.extend(names.iter().cloned());
            self.files.rename(&new, &file)?;
            self.files.force(&self.path)?;
        }
        (inner.saved, inner.named) = (Some(state), names);
        Ok(())
    }

    /// The words of a new map, with a file in this folder.
    pub fn new_map(&self, geometry: &Geometry, owner: &Owner) -> io::Result<Slots> {
        self.make()?;
        let mut inner = self.inner();
        if self.keeps_all() && inner.saved.is_none() && inner.named.is_empty() {
            // Write a description first: a folder with maps but no description counts as one that
            // has lost it.
            self.describe(&mut inner, Description::new(Vec::new()))?;
        }
        let (name, file) = self.new_file(&mut inner, geometry, owner)?;
        let slots = self.words(geometry, &name)?;
        hold(&mut inner, name, &slots, Keeping::File(file));
        Ok(slots)
    }

    /// Creates a file and forces its length and name. That must happen before a description names
    /// the file: without forcing the folder, either name may reach the medium first.
    fn new_file(
        &self,
        inner: &mut Inner,
        geometry: &Geometry,
        owner: &Owner,
    ) -> io::Result<(PathBuf, MapFile)> {
        loop {
            let number = self.next_map.fetch_add(1, Ordering::Relaxed);
            let name = PathBuf::from(format!("{MAP}{number}"));
            let path = self.path.join(&name);
            match MapFile::make(&self.files, &path, Shape::of(geometry), owner) {
                // A file of an earlier daemon has this name.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    let file = made?;
                    inner.ours.insert(name.clone());
                    file.force(&self.files)?;
                    self.files.force(&self.path)?;
                    return Ok((name, file));
                }
            }
        }
    }

    /// Words in memory for the map in file `name` of this folder.
    fn words(&self, geometry: &Geometry, name: &Path) -> io::Result<Slots> {
        let words = Slots::in_memory(geometry.nr_slots()).ok_or(ErrorKind::OutOfMemory)?;
        words.kept_in(self.path.join(name).into())
    }

    /// Loads a saved map. A map in the old format gets a new file in the current format.
    pub fn saved_map(
        &self,
        saved: &SavedMap,
        geometry: &Geometry,
        owner: &Owner,
    ) -> io::Result<Slots> {
        saved.check_name()?;
        let mut inner = self.inner();
        let is_held = |held: &Held| held.words.strong_count() > 0;
        if inner.held.get(&saved.file).is_some_and(is_held) {
            let text = "another device has the same map";
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        let found = FoundMap::open(&self.path.join(&saved.file))?;
        found.check_identity(saved)?;
        let slots = self.words(geometry, &saved.file)?;
        if found.header.is_none() {
            found.read_old(geometry, &slots)?;
            return Ok(self.renew(&mut inner, saved, &found, geometry, owner).unwrap_or_else(
                |error| {
                    tracing::warn!(map = %saved.file.display(), device = %owner.name, %error,
                    "a map in the format of older daemons cannot be written anew: it is used, and \
                     messages to it are refused");
                    hold(&mut inner, saved.file.clone(), &slots, Keeping::ReadOnly(error));
                    slots
                },
            ));
        }
        if found.lacks_copy {
            tracing::warn!(map = %saved.file.display(), device = %owner.name,
                "one of the two headers of this map is damaged: the other one serves");
        }
        let mut file = found.read(geometry, &slots)?;
        if file.is_open() {
            tracing::info!(map = %saved.file.display(), device = %owner.name,
                "a message to this map was under way when the daemon or the machine ended: a part \
                 of it may be there");
            // The words are good and must stay so from now on. If the header cannot be written, the
            // next message fails and says so.
            let _ = file.close(&self.files);
        }
        hold(&mut inner, saved.file.clone(), &slots, Keeping::File(file));
        Ok(slots)
    }

    /// Copies a map in the old format into a new file.
    fn renew(
        &self,
        inner: &mut Inner,
        saved: &SavedMap,
        found: &FoundMap,
        geometry: &Geometry,
        owner: &Owner,
    ) -> io::Result<Slots> {
        let (name, mut file) = self.new_file(inner, geometry, owner)?;
        let slots = self.words(geometry, &name)?;
        found.read_old(geometry, &slots)?;
        file.finish(&self.files, &slots)?;
        tracing::info!(map = %saved.file.display(), new = %name.display(), device = %owner.name,
            "the map is written anew, with checksums");
        hold(inner, name, &slots, Keeping::File(file));
        Ok(slots)
    }

    /// The entry of a map in the description; `None` if the map is not in this folder.
    pub fn saved_as(&self, map: &Slots) -> Option<SavedMap> {
        let file = PathBuf::from(map.file()?.file_name()?);
        let held = self.inner().held.get(&file)?.clone();
        Some(held.saved_as(file))
    }

    /// The generation in the file of a saved map; `None` if the file is damaged or away.
    pub fn generation_in(&self, saved: &SavedMap) -> Option<u64> {
        saved.check_name().ok()?;
        let found = FoundMap::open(&self.path.join(&saved.file)).ok()?;
        found.check_identity(saved).ok()?;
        found.header.map(|(header, _)| header.generation)
    }

    /// Called before the first store of a message, which leads to the device's `generation`.
    ///
    /// Errors: the message must store nothing.
    pub fn begin_change(&self, map: &Slots, owner: &Owner, generation: u64) -> io::Result<()> {
        let Some(file) = self.file_of(map) else { return Ok(()) };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *file {
            Keeping::File(file) => file.begin(&self.files, owner, generation),
            Keeping::ReadOnly(error) => Err(again(error)),
        }
    }

    /// Writes the changes of a message, and forces them to the medium if the folder promises that.
    pub fn end_change(&self, map: &Slots) -> io::Result<()> {
        let Some(file) = self.file_of(map) else { return Ok(()) };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *file {
            Keeping::File(file) => file.finish(&self.files, map),
            Keeping::ReadOnly(error) => Err(again(error)),
        }
    }

    fn file_of(&self, map: &Slots) -> Option<Arc<Mutex<Keeping>>> {
        let name = map.file()?.file_name()?;
        Some(self.inner().held.get(Path::new(name))?.file.clone())
    }

    /// Removes the maps that neither the description nor a table uses.
    pub fn sweep(&self) {
        self.sweep_but_named(&mut self.inner());
    }

    fn sweep_but_named(&self, inner: &mut Inner) {
        let Inner { named, ours, held, .. } = inner;
        held.retain(|name, held| {
            held.words.strong_count() > 0 || (!named.contains(name) && ours.contains(name))
        });
        ours.retain(|name| {
            let has_words = held.get(name).is_some_and(|held| held.words.strong_count() > 0);
            if named.contains(name) || has_words {
                return true;
            }
            held.remove(name);
            let path = self.path.join(name);
            match self.files.remove(&path) {
                Ok(()) => false,
                // A file that stays behind does no harm.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error,
                        "the file of a region map stays behind");
                    true
                }
            }
        });
    }

    /// Removes maps that no daemon needs. The caller knows that no disk is left that could need
    /// them.
    pub fn sweep_strangers(&self) {
        let inner = self.inner();
        for name in self.maps_there() {
            if !inner.named.contains(&name) && !inner.held.contains_key(&name) {
                // A file that stays behind does no harm.
                let _ = self.files.remove(&self.path.join(name));
            }
        }
    }

    /// Called when the daemon ends. Writes the current generations of the maps into the
    /// description, and removes maps that it does not name.
    pub fn end(&self) {
        let mut inner = self.inner();
        if let Some(saved) = inner.saved.clone().filter(|_| self.keeps_all()) {
            let mut now = saved.clone();
            for map in now.devices.iter_mut().flat_map(|device| &mut device.maps) {
                if let Some(held) = inner.held.get(&map.file) {
                    *map = held.saved_as(map.file.clone());
                }
            }
            if now != saved
                && let Err(error) = self.describe(&mut inner, now)
            {
                // The old description is valid, too; only its generations are older.
                tracing::warn!(folder = %self.path.display(), %error,
                    "the description cannot be brought up to date");
            }
        }
        for name in inner.ours.iter().filter(|name| !inner.named.contains(*name)) {
            // A file that stays behind does no harm.
            let _ = self.files.remove(&self.path.join(name));
        }
    }

    /// Names of the files that may be maps, sorted.
    fn maps_there(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut names: Vec<PathBuf> = entries
            .map(|entry| PathBuf::from(entry.file_name()))
            .filter(|name| name.to_str().is_some_and(|name| name.starts_with(MAP)))
            .collect();
        names.sort();
        names
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) -> io::Result<()> {
        if !self.path.is_dir() || self.lock.is_none() {
            self.files.make_folder(&self.path)?;
        }
        Files::check_folder(&self.path)
    }
}

impl Inner {
    /// Maps that tables still use, and that a description of `state` does not name.
    fn unused(&self, state: &Description) -> Vec<SavedMap> {
        let names = state.files();
        let before = self.saved.iter().flat_map(|saved| saved.maps().chain(&saved.unused));
        let left = before.filter(|map| !names.contains(&map.file));
        left.filter_map(|map| {
            let held = self.held.get(&map.file)?;
            (held.words.strong_count() > 0).then(|| held.saved_as(map.file.clone()))
        })
        .collect()
    }
}

impl Held {
    fn saved_as(&self, file: PathBuf) -> SavedMap {
        let generation = self.generation.load(Ordering::Relaxed);
        SavedMap { file, id: self.id.map(|id| format!("{id:016x}")), generation }
    }
}

/// Notes where the changes of a map are written from now on.
fn hold(inner: &mut Inner, name: PathBuf, slots: &Slots, file: Keeping) {
    let Some(words) = slots.file().map(Arc::downgrade) else { return };
    let (id, generation) = match &file {
        Keeping::File(file) => {
            let (id, generation) = file.identity();
            (Some(id), generation)
        }
        Keeping::ReadOnly(_) => (None, Arc::default()),
    };
    inner.held.insert(name, Held { words, id, generation, file: Arc::new(Mutex::new(file)) });
}

/// Copies an error, because [`io::Error`] cannot be cloned.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use blkswitch_core::switch::Map;

    use super::*;
    use crate::protocol::LeafCache;

    fn device(name: &str, map: &str) -> SavedDevice {
        SavedDevice {
            map_from: None,
            name: name.into(),
            uuid: String::new(),
            minor: 3,
            read_only: false,
            suspended: true,
            cache: LeafCache::Direct,
            table: "0 1 error\n".into(),
            maps: vec![SavedMap { file: map.into(), id: None, generation: 0 }],
            disk: Some(7),
            vhost_user: None,
            block: 512,
            generation: 0,
        }
    }

    /// The map has 20 words of 16 regions each.
    fn geometry() -> Geometry {
        Geometry::new(320 * 8, 5, 8).unwrap()
    }

    fn new_map(folder: &Folder) -> Map<Slots> {
        Map::new(geometry(), folder.new_map(&geometry(), &Owner::default()).unwrap()).unwrap()
    }

    fn name(map: &Map<Slots>) -> String {
        map.storage().file().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn set(folder: &Folder, map: &Map<Slots>, region: u64, path: u32) {
        let generation = folder.saved_as(map.storage()).unwrap().generation + 1;
        folder.begin_change(map.storage(), &Owner::default(), generation).unwrap();
        map.writer().unwrap().set(region, path);
        folder.end_change(map.storage()).unwrap();
    }

    fn saved_map(folder: &Folder, saved: &SavedMap) -> io::Result<Map<Slots>> {
        let slots = folder.saved_map(saved, &geometry(), &Owner::default())?;
        Ok(Map::new(geometry(), slots).unwrap())
    }

    #[test]
    fn what_is_saved_is_loaded_and_the_rest_is_swept() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::of_disks(temporary.path().join("below"));
        assert_eq!(folder.load().unwrap().devices, []);
        let (one, two) = (new_map(&folder), new_map(&folder));
        set(&folder, &one, 319, 0);
        let map = folder.saved_as(one.storage()).unwrap();
        let saved = vec![SavedDevice { maps: vec![map.clone()], ..device("a", "") }];
        folder.save(saved.clone()).unwrap();
        let other = two.storage().file().unwrap().to_path_buf();
        assert!(other.exists(), "a table has it");
        drop((one, two));
        let next = Folder::of_disks(folder.path().to_owned());
        let state = next.load().unwrap();
        assert_eq!(state.devices, saved);
        next.sweep();
        assert!(other.exists(), "another description may name it");
        let map = saved_map(&next, &map).unwrap();
        assert_eq!(map.path(319), Some(0));
        next.save(Vec::new()).unwrap();
        assert!(map.storage().file().unwrap().exists(), "the table has it still");
        drop(map);
        next.save(Vec::new()).unwrap();
        assert_eq!(next.maps_there(), [Path::new("map-1")]);
        next.sweep_strangers();
        assert_eq!(std::fs::read_dir(next.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_description_that_could_not_be_saved_costs_no_map() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::of_all(temporary.path().join("state")).unwrap();
        let one = new_map(&folder);
        folder.save(vec![device("a", &name(&one))]).unwrap();
        // The description is written under this name first, so a folder of that name makes the
        // write fail.
        std::fs::create_dir(folder.path().join("devices.json.new")).unwrap();
        let two = new_map(&folder);
        folder.save(vec![device("a", &name(&two))]).unwrap_err();
        let paths = [&one, &two].map(|map| map.storage().file().unwrap().to_path_buf());
        drop((one, two));
        folder.sweep();
        assert!(paths[0].exists() && !paths[1].exists(), "only one was ever described");
        let named = &folder.load().unwrap().devices[0].maps[0].file;
        assert_eq!(*named, Path::new(paths[0].file_name().unwrap()));
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
