//! Simulated power cuts: everything that `serve --state` has answered is there afterwards, wherever
//! the power fails.
//!
//! The devices of a daemon go through a history. A [`Journal`] notes each step that the state
//! folder takes ([`crate::daemon::state::files`]), with the content of all files at that moment.
//! Then the test cuts the power after every step. Data that was not forced to the medium is lost,
//! kept, or half there. Names of files change one by one, in order or out of order
//! ([`Medium::names`]). From each folder that may remain, the test starts a daemon. It must find
//! the state that was answered last, or the one that was under way.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blkswitch_io::device::Interrupt;
use blkswitch_io::pool::PoolOptions;
use blkswitch_io::{Device, Pool, Target};

use crate::daemon::devices::Devices;
use crate::daemon::devices::message::How;
use crate::daemon::state::Folder;
use crate::daemon::state::files::Files;
use crate::daemon::state::journal::{Contents, FOLDER, Journal, Note, NotedStep};
use crate::daemon::tables::describe;
use crate::daemon::tables::targets::{More, Text};
use crate::protocol::{CreateDevice, LeafOptions, LoadTable, RemoveQuery, Rename};

/// Enough for a map to fill several blocks of a medium.
const REGIONS: u32 = 40_000;
/// Number of a file or folder. It stays when the name changes.
type Id = usize;
type Names = BTreeMap<PathBuf, Id>;
type ById = BTreeMap<Id, Vec<u8>>;

/// A change of a name in a folder.
#[derive(Clone, Debug)]
enum Naming {
    Is(PathBuf, Id),
    Renamed(PathBuf, PathBuf, Id),
    Removed(PathBuf),
}

impl Naming {
    fn apply(&self, names: &mut Names) {
        match self {
            Naming::Is(name, id) => drop(names.insert(name.clone(), *id)),
            Naming::Renamed(from, to, id) => {
                // The rename may reach the medium before the creation of the old name does.
                names.remove(from);
                names.insert(to.clone(), *id);
            }
            Naming::Removed(name) => drop(names.remove(name)),
        }
    }

    /// The folder that must be forced to make the change durable.
    fn folder(&self) -> &Path {
        let (Naming::Is(name, _) | Naming::Renamed(_, name, _) | Naming::Removed(name)) = self;
        name.parent().unwrap()
    }
}

/// A folder has no content; a file has the content that was forced last.
#[derive(Debug)]
enum Node {
    Folder,
    File(Vec<u8>),
}

/// The fate of data that was not forced.
#[derive(Clone, Copy, Debug)]
enum Data {
    Lost,
    Kept,
    Half,
    /// Every other sector is new.
    Mixed,
}

/// A medium writes whole sectors.
const SECTOR: usize = 512;

/// A medium: the content that is certainly on it, and the changes that may be.
#[derive(Default)]
struct Medium {
    nodes: Vec<Node>,
    /// The names as a program sees them.
    now: Names,
    /// The names that survive a power cut; changes in `pending` may follow.
    forced: Names,
    pending: Vec<Naming>,
}

impl Medium {
    fn step(&mut self, note: &Note) {
        match &note.step {
            NotedStep::MadeFolder(path) => self.make(path, Node::Folder),
            // A file of a known name keeps its node: until the file is forced, its old content may
            // come back.
            NotedStep::Made(path) if !self.now.contains_key(path) => {
                self.make(path, Node::File(Vec::new()))
            }
            NotedStep::Renamed(from, to) => {
                let id = self.now[from];
                self.name(Naming::Renamed(from.clone(), to.clone(), id));
            }
            // The name may be unknown: the history did not make the file of a map that has got a
            // new one.
            NotedStep::Removed(path) => self.name(Naming::Removed(path.clone())),
            NotedStep::Forced(path) => match self.now.get(path).map(|id| &mut self.nodes[*id]) {
                Some(Node::File(content)) => content.clone_from(&note.contents[path]),
                // A folder. The one that was there before the history has no node.
                _ => {
                    let (done, left): (Vec<_>, Vec<_>) =
                        self.pending.drain(..).partition(|naming| naming.folder() == path);
                    self.pending = left;
                    done.iter().for_each(|naming| naming.apply(&mut self.forced));
                }
            },
            NotedStep::Made(_) | NotedStep::Written | NotedStep::Answered(_) => {}
        }
    }

    fn make(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        self.name(Naming::Is(path.to_owned(), self.nodes.len() - 1));
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.now);
        self.pending.push(naming);
    }

    /// The contents of the files that have a name now.
    fn by_id(&self, contents: &Contents) -> ById {
        contents
            .iter()
            .filter_map(|(name, content)| Some((*self.now.get(name)?, content.clone())))
            .collect()
    }

    /// The sets of names that a power cut may leave: the forced names with the first n pending
    /// changes; with a single pending change; and with all but one.
    fn names(&self) -> Vec<Names> {
        let all = self.pending.len();
        let first = (0..=all).map(|n| (0..n).collect::<Vec<_>>());
        let alone = (0..all).map(|n| vec![n]);
        let but_one = (0..all).map(|but| (0..all).filter(|n| *n != but).collect());
        let chosen: BTreeSet<Vec<usize>> = first.chain(alone).chain(but_one).collect();
        let with = |chosen: Vec<usize>| {
            let mut names = self.forced.clone();
            chosen.iter().for_each(|n| self.pending[*n].apply(&mut names));
            names
        };
        chosen.into_iter().map(with).collect()
    }

    /// The files that a power cut leaves under `names`; `data` decides over data that was not
    /// forced.
    fn left(&self, names: &Names, contents: &ById, data: Data) -> Contents {
        let mut left = Contents::new();
        for (name, id) in names {
            let Node::File(forced) = &self.nodes[*id] else { continue };
            let is_reached = name
                .ancestors()
                .skip(1)
                .filter(|above| !above.as_os_str().is_empty())
                .all(|above| names.contains_key(above));
            if !is_reached {
                continue;
            }
            // A file that has lost its name, for example one that was replaced, has no newer
            // content.
            let content = match (data, contents.get(id)) {
                (Data::Lost, _) | (_, None) => forced.clone(),
                (Data::Kept, Some(now)) => now.clone(),
                (Data::Half, Some(now)) => {
                    let half = now.len() / 2 / SECTOR * SECTOR;
                    let rest = forced.get(half..).unwrap_or_default();
                    [&now[..half], rest].concat()
                }
                (Data::Mixed, Some(now)) => {
                    let sector = |(n, new): (usize, _)| {
                        let old = forced.chunks(SECTOR).nth(n).filter(|old| old.len() == SECTOR);
                        old.filter(|_| n % 2 == 0).unwrap_or(new).to_vec()
                    };
                    now.chunks(SECTOR).enumerate().flat_map(sector).collect()
                }
            };
            left.insert(name.clone(), content);
        }
        left
    }
}

/// The properties of a kept device that a user can see.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    name: String,
    uuid: String,
    minor: u32,
    suspended: bool,
    table: String,
    maps: Vec<Vec<u32>>,
    generation: u64,
}

fn known(devices: &Devices) -> Vec<Known> {
    let kept = |device: Arc<Device>| {
        let (info, table) = (device.info(), device.live()?);
        let maps = table.segments().iter().filter_map(|segment| match &segment.target {
            Target::Switch { map, .. } => {
                Some((0..u64::from(REGIONS)).map_while(|region| map.path(region)).collect())
            }
            _ => None,
        });
        Some(Known {
            name: info.name,
            uuid: info.uuid,
            minor: info.id,
            suspended: info.suspended,
            table: describe::text(&table),
            maps: maps.collect(),
            generation: info.generation,
        })
    };
    devices.list().into_iter().filter_map(kept).collect()
}

/// Returns whether `found` is the state before or after a change. During a message, each region of
/// a map may be in either state, but if one has changed, the generation has risen.
fn is_between(found: &[Known], before: &[Known], after: &[Known]) -> bool {
    if found == before || found == after {
        return true;
    }
    let without_maps = |all: &[Known]| -> Vec<Known> {
        let without = |known: &Known| Known { maps: Vec::new(), generation: 0, ..known.clone() };
        all.iter().map(without).collect()
    };
    let is_numbered = |(found, (before, after)): (&Known, (&Known, &Known))| {
        found.generation == after.generation
            || (found.generation == before.generation && found.maps == before.maps)
    };
    let maps = |all: &[Known]| -> Vec<u32> {
        all.iter().flat_map(|known| known.maps.iter().flatten()).copied().collect()
    };
    let (found_maps, before_maps, after_maps) = (maps(found), maps(before), maps(after));
    let is_one = |(found, (before, after)): (&u32, (&u32, &u32))| found == before || found == after;
    without_maps(found) == without_maps(before)
        && without_maps(found) == without_maps(after)
        && found.iter().zip(before.iter().zip(after)).all(is_numbered)
        && found_maps.len() == before_maps.len()
        && found_maps.iter().zip(before_maps.iter().zip(&after_maps)).all(is_one)
}

fn start(folder: Folder) -> anyhow::Result<Arc<Devices>> {
    let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() })?;
    let devices = Arc::new(Devices::new(pool, folder, None));
    devices.recover(false)?;
    Ok(devices)
}

/// A sequence of changes to the devices, and the state after each of them.
struct History {
    journal: Arc<Journal>,
    /// Holds the files of the paths.
    files: tempfile::TempDir,
    devices: Arc<Devices>,
    states: Vec<Vec<Known>>,
}

impl History {
    fn begin(base: &Path) -> History {
        let journal = Journal::new(base);
        let devices = Self::start(&journal);
        let files = tempfile::tempdir().unwrap();
        let history = History { journal, files, devices, states: vec![Vec::new()] };
        history.journal.push(NotedStep::Answered(0));
        history
    }

    fn start(journal: &Arc<Journal>) -> Arc<Devices> {
        let path = journal.base.join(FOLDER);
        start(Folder::of_all_with(path, Files::noted(journal.clone())).unwrap()).unwrap()
    }

    /// Makes a change that counts as answered when `change` returns.
    fn change(&mut self, change: impl FnOnce(&Devices)) {
        change(&self.devices);
        self.states.push(known(&self.devices));
        self.journal.push(NotedStep::Answered(self.states.len() - 1));
    }

    /// Kills the daemon, and starts the next one.
    fn killed(&mut self) {
        let before = known(&self.devices);
        let elsewhere = self.files.path().join("of no use");
        let nothing = start(Folder::of_disks(elsewhere)).unwrap();
        drop(std::mem::replace(&mut self.devices, nothing));
        self.devices = Self::start(&self.journal);
        assert_eq!(known(&self.devices), before);
    }

    fn table(&self, paths: u32, offset: u32) -> String {
        let paths: String = (0..paths).map(|nr| format!(" {} {offset}", self.path(nr))).collect();
        format!("0 {} switch {} 8 0{paths}", REGIONS * 8, paths.split_whitespace().count() / 2)
    }

    fn path(&self, nr: u32) -> String {
        self.files.path().join(format!("path{nr}")).display().to_string()
    }

    fn create(&mut self, name: &str, table: String) {
        let leaves = LeafOptions { make_files: true, ..LeafOptions::default() };
        let request = CreateDevice {
            name: name.into(),
            table: Some(table),
            leaves,
            ..CreateDevice::default()
        };
        self.change(|devices| drop(devices.create(request).unwrap()));
    }

    fn message(&mut self, name: &str, text: &str, atomic: bool) {
        self.change(|devices| {
            drop(devices.message_whole(&devices.find(name).unwrap(), text, atomic))
        });
    }

    /// A long message that expects the present generation, in two parts.
    fn message_staged(&mut self, name: &str, head: &str, rest: &str) {
        self.change(|devices| {
            let device = devices.find(name).unwrap();
            let if_generation = Some(device.generation());
            let mut parts = vec![More::End, More::Bytes(rest.into())];
            let next = &mut || parts.pop().unwrap();
            let text = Text { head: head.into(), complete: false, next };
            devices.message(&device, 0, How { if_generation, ..How::default() }, text).unwrap();
        });
    }

    fn load(&mut self, name: &str, load: LoadTable) {
        self.change(|devices| devices.load(&devices.find(name).unwrap(), &load).unwrap());
    }

    fn resume(&mut self, name: &str) {
        self.change(|devices| {
            devices.resume(&devices.find(name).unwrap(), &Interrupt::default()).unwrap()
        });
    }

    /// A load that keeps the map, and messages before the resume.
    fn swap_kept(&mut self, name: &str, table: String, messages: &[&str]) {
        self.load(name, LoadTable { table, keep_map: true, ..LoadTable::default() });
        messages.iter().for_each(|text| self.message(name, text, false));
        let wanted = |states: &[Vec<Known>]| {
            let known = states.last().unwrap().iter().find(|known| known.name == name).unwrap();
            known.maps.clone()
        };
        let before = wanted(&self.states);
        self.resume(name);
        assert_eq!(wanted(&self.states), before, "the map is kept");
    }

    fn swap(&mut self, name: &str, table: String) {
        let load = LoadTable { table, ..LoadTable::default() };
        self.change(|devices| {
            let device = devices.find(name).unwrap();
            devices.load(&device, &load).unwrap();
            devices.resume(&device, &Interrupt::default()).unwrap();
        });
    }

    fn remove(&mut self, name: &str) {
        let how = RemoveQuery::default();
        self.change(|devices| {
            devices.remove(&devices.find(name).unwrap(), how, &Interrupt::default()).unwrap()
        });
    }
}

/// Makes every kind of change that is kept.
fn everything(history: &mut History) {
    // The files have room for every table, whatever its offset.
    for nr in 0..5 {
        std::fs::File::create(history.path(nr))
            .unwrap()
            .set_len(u64::from(REGIONS + 64) * 8 * 512)
            .unwrap();
    }
    history.create("disk", history.table(3, 0));
    history.message("disk", "set_region_mappings 0:1 R1,9c3f", false);
    history.message("disk", "set_region_mappings 5:0 :2 9c3f:2", true);
    history.message_staged("disk", "set_region_mappings 9:1 R1,", "ff 8000:2 :1");
    // The edits before the mistake are applied.
    history.message("disk", "set_region_mappings 7:0 9000:0 8:9", false);
    history.create("upper", format!("0 80 linear {}/disk 8", "/dev/blkswitch"));
    history.change(|devices| {
        let name = Rename::Name("other".into());
        devices.rename(&devices.find("upper").unwrap(), &name).unwrap();
    });
    history.change(|devices| {
        let uuid = Rename::Uuid("id-1".into());
        devices.rename(&devices.find("disk").unwrap(), &uuid).unwrap();
    });
    history.swap("disk", history.table(2, 8));
    history.message("disk", "set_region_mappings 0:1 R1,100", false);
    history.change(|devices| {
        devices.suspend(&devices.find("other").unwrap(), false, &Interrupt::default()).unwrap()
    });
    history.killed();
    history.message("disk", "set_region_mappings 0:0 :1 R2,9c3e", false);
    history.change(|devices| {
        devices.resume(&devices.find("other").unwrap(), &Interrupt::default()).unwrap()
    });
    history.create(
        "second",
        format!(
            "0 80 linear {} 0\n80 {} switch 1 8 0 {} 80",
            history.path(3),
            REGIONS,
            history.path(3)
        ),
    );
    history.remove("other");
    history.swap("disk", history.table(3, 16));
    history.change(|devices| {
        devices.wipe(&devices.find("second").unwrap(), false, &Interrupt::default()).unwrap()
    });
    history.remove("second");
    history.killed();
    history.remove("disk");
    history.create("again", history.table(3, 0));
    history.message("again", "set_region_mappings 0:2 R1,9c3f", false);
    // The same words; a path more; a path less, of which no region is left; and a map of its own.
    history.swap_kept("again", history.table(3, 0), &["set_region_mappings 7:1"]);
    history.swap_kept("again", history.table(4, 0), &["set_region_mappings 8:1 9000:0"]);
    history.killed();
    history.message("again", "set_region_mappings 9:3", false);
    history.swap_kept(
        "again",
        history.table(5, 0),
        &["set_region_mappings 9:2", "set_region_mappings :2"],
    );
    let map = Some("set_region_mappings 0:1 R1,9c3e\n# generation 5\n".to_owned());
    history.load("again", LoadTable { table: history.table(2, 0), map, ..LoadTable::default() });
    history.resume("again");
    history.killed();
    history.devices.leave_disks();
    history.journal.push(NotedStep::Answered(history.states.len() - 1));
}

/// A folder that a power cut may leave, and the two states that may be found in it: the last
/// answered one, and the one that was under way.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Left {
    files: Contents,
    between: [usize; 2],
}

#[test]
fn what_was_answered_is_there_after_a_power_cut_at_any_step() {
    let base = tempfile::tempdir().unwrap();
    let mut history = History::begin(base.path());
    everything(&mut history);
    let History { journal, states, devices, files: _files } = history;
    drop(devices);
    let notes = std::mem::take(&mut *journal.notes.lock().unwrap());
    let mut medium = Medium::default();
    let contents: Vec<ById> = notes
        .iter()
        .map(|note| {
            medium.step(note);
            medium.by_id(&note.contents)
        })
        .collect();
    let (mut medium, mut answered) = (Medium::default(), 0);
    let (mut seen, mut cuts) = (HashSet::new(), 0);
    for (at, note) in notes.iter().enumerate() {
        medium.step(note);
        if let NotedStep::Answered(state) = note.step {
            answered = state;
        }
        // Until the next step takes effect, maps may change and a file may be partly written.
        let under_way = (answered + 1).min(states.len() - 1);
        let next = (at + 1).min(notes.len() - 1);
        let is_answer = matches!(note.step, NotedStep::Answered(_));
        for (contents, between) in [
            (&contents[at], [answered, if is_answer { answered } else { under_way }]),
            (&contents[next], [answered, under_way]),
        ] {
            for names in medium.names() {
                for data in [Data::Lost, Data::Kept, Data::Half, Data::Mixed] {
                    cuts += 1;
                    let left = Left { files: medium.left(&names, contents, data), between };
                    if !seen.insert(left) {
                        continue;
                    }
                    let files = medium.left(&names, contents, data);
                    check(&files, &states, between).unwrap_or_else(|why| {
                        let steps: Vec<_> = notes[..=at].iter().map(|note| &note.step).collect();
                        panic!("after {steps:?}\nwith {names:?}, data not forced {data:?}:\n{why}")
                    });
                }
            }
        }
    }
    println!("{} steps, {cuts} power cuts, {} of them different", notes.len(), seen.len());
    assert!(
        states.len() >= 20 && seen.len() >= 150,
        "{} states, {} folders",
        states.len(),
        seen.len()
    );
}

fn check(files: &Contents, states: &[Vec<Known>], between: [usize; 2]) -> Result<(), String> {
    let base = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = base.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let folder = Folder::of_all(base.path().join(FOLDER)).unwrap();
    let devices =
        start(folder).map_err(|error| format!("the next daemon does not start: {error:#}"))?;
    let found = known(&devices);
    let [before, after] = between.map(|state| &states[state]);
    if is_between(&found, before, after) {
        return Ok(());
    }
    let brief = |all: &[Known]| {
        let maps = |known: &Known| -> Vec<_> {
            known.maps.iter().map(|map| map[..8.min(map.len())].to_vec()).collect()
        };
        all.iter()
            .map(|known| format!("\n  {:?}", Known { maps: maps(known), ..known.clone() }))
            .collect::<String>()
    };
    Err(format!("found {}\nanswered {}\nunder way {}", brief(&found), brief(before), brief(after)))
}
