//! Tables that take over the map of the live table (`load --keep-map`), or that come with a map of
//! their own (`--map`).
//!
//! The work is done at the load, while messages and requests go on. If the paths and the regions
//! are the same, both tables have the same words, and nothing more is to be done. Otherwise the map
//! is carried over into the new table's. If messages have changed it since, a resume carries it
//! over once more: under the message lock, before the gate closes. So the gate is closed only for
//! the exchange of the tables, and no request is routed by a map that lacks a message.
//!
//! Contract: as [`super`]. With `serve --state`, the file of the new map is complete and forced
//! before a description names it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use blkswitch_core::map::diff::Diff;
use blkswitch_core::map::keep::{self, KeepError, Kept};
use blkswitch_core::switch::{Command, Message, command};
use blkswitch_io::table::RegionMap;
use blkswitch_io::{Below, Device, Segment, Table, Target, To};

use crate::daemon::devices::Devices;
use crate::daemon::failure::Failure;
use crate::daemon::tables::targets::switch::bad_argument;
use crate::daemon::tables::words::address;
use crate::protocol::{Errno, LoadTable};

/// Most ranges of regions that a refusal lists.
const LISTED_MAX: usize = 16;

/// The origin of a map that a table takes over.
#[derive(Debug)]
enum Source {
    /// The maps of the table that was live at the load.
    Live {
        old: Weak<Table>,
        /// For each switch segment of that table: its first sector, and the new numbers of its
        /// paths.
        segments: Vec<(u64, Numbers)>,
    },
    /// A map that came with the table.
    Given,
}

/// For each old path, its number in the new table; `None` if the words are shared.
type Numbers = Option<Vec<Option<u32>>>;

/// An inactive table that takes over a map.
#[derive(Debug)]
pub(super) struct Pending {
    source: Source,
    /// The generation that the map had; `None` if a message was under way.
    generation: Option<u64>,
}

/// The inactive tables that take over a map, by device number.
#[derive(Debug, Default)]
pub(crate) struct Takeovers(Mutex<HashMap<u32, (Weak<Table>, Pending)>>);

impl Takeovers {
    /// Notes what the inactive table of a device takes over. The caller has just loaded it.
    pub(super) fn note(&self, device: &Device, pending: Option<Pending>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&device.id());
        if let (Some(pending), Some(table)) = (pending, device.inactive()) {
            all.insert(device.id(), (Arc::downgrade(&table), pending));
        }
    }

    /// Forgets a table that went live.
    pub(super) fn forget(&self, device: &Device) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&device.id());
    }

    fn take(&self, device: &Device, table: &Arc<Table>) -> Option<Pending> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, pending) = all.remove(&device.id())?;
        std::ptr::eq(of.as_ptr(), Arc::as_ptr(table)).then_some(pending)
    }
}

impl Devices {
    /// Gives a new table the map that `load` asks for.
    pub(super) fn keep(
        &self,
        device: &Arc<Device>,
        table: &mut Table,
        load: &LoadTable,
    ) -> Result<Option<Pending>, Failure> {
        match (&load.map, load.keep_map) {
            (None, false) => Ok(None),
            (Some(_), true) => {
                let reason = "a table has one map: either --keep-map or --map FILE";
                Err(Failure::new(Errno::Einval, reason))
            }
            (Some(text), false) => {
                let generation = device.generation_at_rest().ok_or_else(|| {
                    Failure::new(Errno::Ebusy, "a message to the map is under way: try again")
                })?;
                self.give(device, table, text)?;
                if device.live().is_none() {
                    // Regions are elsewhere than in a new device.
                    device.restore_generation(generation + 1);
                }
                let generation = Some(device.generation());
                Ok(Some(Pending { source: Source::Given, generation }))
            }
            (None, true) => self.keep_live(device, table, load.force).map(Some),
        }
    }

    fn give(&self, device: &Device, table: &Table, text: &str) -> Result<(), Failure> {
        let maps: Vec<_> = table.maps().collect();
        let [(_, map)] = maps.as_slice() else {
            let reason = format!(
                "the table has {} switch segments: a map can be given to a table with one",
                maps.len()
            );
            return Err(Failure::new(Errno::Einval, reason));
        };
        let text = text.lines().map(without_comment).collect::<Vec<_>>().join("\n");
        let text = text.trim_start();
        let (first, arguments) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        if command(first.as_bytes()) != Some(Command::SetRegionMappings) {
            let word: String = first.chars().take(64).collect();
            let reason = format!(
                "the map begins with '{word}': it must be a set_region_mappings message, as map \
                 export writes it"
            );
            return Err(Failure::new(Errno::Einval, reason));
        }
        self.begin_change(device, map, device.generation() + 1)?;
        let mut writer = map.writer().ok_or_else(in_use)?;
        let applied = Message::new().apply_text(&mut writer, arguments.as_bytes(), true);
        applied.map_err(|refused| bad_argument(arguments.as_bytes(), refused))?;
        drop(writer);
        self.save_new(map)
    }

    fn keep_live(
        &self,
        device: &Arc<Device>,
        table: &mut Table,
        force: bool,
    ) -> Result<Pending, Failure> {
        self.check_there(device)?;
        let old = device.live().filter(|live| live.maps().next().is_some());
        let old = old.ok_or_else(|| {
            let reason = "there is no map to keep: no segment of the live table is a switch";
            Failure::new(Errno::Einval, reason)
        })?;
        let generation = device.generation_at_rest();
        let mut segments = Vec::new();
        for segment in old.segments() {
            let Target::Switch { map, paths } = &segment.target else { continue };
            let numbers = match_segment(&old, segment, paths, table, force)?;
            let shared = numbers.is_same && table.share_map(segment.start, map);
            let numbers = (!shared).then_some(numbers.numbers);
            if let Some(numbers) = &numbers {
                self.begin(device, table, segment)?;
                self.carry(&old, table, segment, numbers, true)?;
            }
            segments.push((segment.start, numbers));
        }
        Ok(Pending { source: Source::Live { old: Arc::downgrade(&old), segments }, generation })
    }

    /// Called for a table that is about to go live, under the message lock. Brings its map up to
    /// date.
    ///
    /// Errors: the map cannot be kept; the old table must stay.
    pub(super) fn keep_again(&self, device: &Device, table: &Arc<Table>) -> Result<(), Failure> {
        let Some(mut pending) = self.takeovers.take(device, table) else { return Ok(()) };
        let done = self.bring_up_to_date(device, table, &pending);
        if done.is_ok() {
            pending.generation = Some(device.generation());
        }
        // The swap may still fail. Then the next resume looks again.
        let mut all = self.takeovers.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(device.id(), (Arc::downgrade(table), pending));
        done
    }

    fn bring_up_to_date(
        &self,
        device: &Device,
        table: &Arc<Table>,
        pending: &Pending,
    ) -> Result<(), Failure> {
        let (loaded, now) = (pending.generation, device.generation());
        let Source::Live { old, segments } = &pending.source else {
            if loaded == Some(now) {
                return Ok(());
            }
            let reason = "the map has changed since the table was loaded with another one: load it \
                          again to replace the map";
            return Err(Failure::new(Errno::Estale, reason).with_generation(now));
        };
        let live = device.live();
        let old = old.upgrade().filter(|old| live.is_some_and(|live| Arc::ptr_eq(&live, old)));
        let old = old.ok_or_else(|| {
            let reason = "another table is live since this one was loaded with --keep-map: load it \
                          again";
            Failure::new(Errno::Estale, reason)
        })?;
        if loaded == Some(now) {
            return Ok(());
        }
        for (start, numbers) in segments {
            let segment = old.segment_at(*start);
            if let (Some(numbers), Some(segment)) = (numbers, segment) {
                self.begin(device, table, segment)?;
                self.carry(&old, table, segment, numbers, false)?;
            }
        }
        Ok(())
    }

    /// Announces a change of the new table's map in its file, with the generation that the swap
    /// leads to. Without a higher number, a reader of the file could take the older of its two
    /// headers.
    fn begin(&self, device: &Device, table: &Table, segment: &Segment) -> Result<(), Failure> {
        let new = map_at(table, segment.start).ok_or_else(|| no_partner(segment))?;
        self.begin_change(device, new, device.generation() + 1)
    }

    /// Writes the map of a segment of `old` into the new table's, and into its file.
    fn carry(
        &self,
        old: &Table,
        table: &Table,
        segment: &Segment,
        numbers: &[Option<u32>],
        is_new: bool,
    ) -> Result<(), Failure> {
        let Target::Switch { map, .. } = &segment.target else { return Ok(()) };
        let new = map_at(table, segment.start).ok_or_else(|| no_partner(segment))?;
        refuse_lost(old, segment, map, numbers)?;
        let mut writer = new.writer().ok_or_else(in_use)?;
        let keeps_numbers = new.geometry().num_paths() == map.geometry().num_paths()
            && numbers.iter().zip(0..).all(|(new, old)| *new == Some(old));
        let last = map.geometry().nr_regions();
        match Diff::new(new, map) {
            // Only what differs is written: a map of a billion regions may have few changes.
            Ok(diff) if keeps_numbers => {
                for change in diff.changes(0, u64::MAX) {
                    for region in change.first..change.first + change.count {
                        writer.set(region, change.to);
                    }
                }
            }
            _ if keeps_numbers && is_new => {
                let mut next = map.next_changed(0, last);
                while let Some(region) = next {
                    writer.set(region, map.path(region).unwrap_or_default());
                    next = map.next_changed(region + 1, last);
                }
            }
            _ => keep::carry_over(map, &mut writer, numbers, || true).map_err(refused)?,
        }
        drop(writer);
        self.save_new(new)
    }

    /// Writes a map that is not live yet to its file, and forces it.
    pub(super) fn save_new(&self, map: &RegionMap) -> Result<(), Failure> {
        self.folder.end_change(map.storage()).map_err(|error| {
            let folder = self.folder.path().display();
            Failure::io(&error, format!("the new map cannot be saved in '{folder}'"))
        })
    }
}

/// A line up to the first word that begins with `#`.
fn without_comment(line: &str) -> &str {
    let begins = |at: &usize| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    let comment = line.match_indices('#').map(|(at, _)| at).find(begins);
    &line[..comment.unwrap_or(line.len())]
}

fn refused(error: KeepError) -> Failure {
    Failure::new(Errno::Einval, error.to_string())
}

pub(super) fn in_use() -> Failure {
    Failure::new(Errno::Ebusy, "the map is being changed by something else: try again")
}

fn map_at(table: &Table, start: u64) -> Option<&RegionMap> {
    table.maps().find(|(at, _)| *at == start).map(|(_, map)| map)
}

fn no_partner(segment: &Segment) -> Failure {
    let reason = format!(
        "the map of the switch segment at sector {} cannot be kept: the new table has no switch \
         segment that begins there",
        segment.start
    );
    Failure::new(Errno::Einval, reason)
}

/// The paths of a segment among those of the new table.
struct Matched {
    numbers: Vec<Option<u32>>,
    is_same: bool,
}

/// Finds the paths of a switch segment among those of its partner in the new table.
fn match_segment(
    old: &Table,
    segment: &Segment,
    paths: &[To],
    table: &Table,
    force: bool,
) -> Result<Matched, Failure> {
    let partner = table.segment_at(segment.start).filter(|one| one.start == segment.start);
    let Some((Target::Switch { map: new, paths: new_paths }, partner)) =
        partner.map(|one| (&one.target, one))
    else {
        return Err(no_partner(segment));
    };
    if let Target::Switch { map, .. } = &segment.target {
        keep::check_sizes(map.geometry(), new.geometry()).map_err(refused)?;
    }
    let keys = |table: &Table, paths: &[To]| -> Vec<(String, u64)> {
        paths.iter().map(|to| (key(table, *to), to.offset)).collect()
    };
    let (before, after) = (keys(old, paths), keys(table, new_paths));
    let (mut numbers, mut order) = (vec![None; before.len()], vec![0; after.len()]);
    let kept = keep::match_paths(&before, &after, &mut numbers, &mut order);
    if let Kept::Changed { moved: 1.., .. } = kept
        && !force
        && let Some((path, number)) = (0..).zip(&numbers).find_map(|(path, number)| {
            number.filter(|number| *number != path).map(|number| (path, number))
        })
    {
        let reason = format!(
            "path {path} ({}) is path {number} in the new table: the numbers in messages would mean \
             other paths. --force allows it; regions stay on their paths",
            address(old, segment, path as usize)
        );
        return Err(Failure::new(Errno::Einval, reason));
    }
    let is_same = kept == Kept::Same && partner.len >= segment.len;
    Ok(Matched { numbers, is_same })
}

/// The identity of what a path leads to.
fn key(table: &Table, to: To) -> String {
    match to.below {
        Below::Device(id) => {
            let below = table.devices().find(|device| device.id() == id);
            let uuid = below.map(|device| device.info().uuid).filter(|uuid| !uuid.is_empty());
            uuid.map_or_else(|| format!("minor:{id}"), |uuid| format!("uuid:{uuid}"))
        }
        // A null leaf has no data, so one is as good as another.
        Below::Leaf(_) => table.leaf_of(to).map_or_else(String::new, |leaf| {
            let name = leaf.name();
            if name.starts_with("null:") { name.to_owned() } else { leaf.key().to_owned() }
        }),
    }
}

/// Refuses a table that lacks the path of a region.
fn refuse_lost(
    old: &Table,
    segment: &Segment,
    map: &RegionMap,
    numbers: &[Option<u32>],
) -> Result<(), Failure> {
    let mut lost = keep::lost(map, numbers).peekable();
    let Some(first) = lost.peek() else { return Ok(()) };
    let path = address(old, segment, first.path as usize);
    let mut list = String::new();
    for run in lost.by_ref().take(LISTED_MAX) {
        let separator = if list.is_empty() { "" } else { ", " };
        let _ = match run.count {
            1 => write!(list, "{separator}{} on path {}", run.start, run.path),
            count => {
                write!(
                    list,
                    "{separator}{}-{} on path {}",
                    run.start,
                    run.start + count - 1,
                    run.path
                )
            }
        };
    }
    if lost.next().is_some() {
        list.push_str(", and more");
    }
    let reason = format!(
        "regions would lose their path: {list}. The new table has no path like the first of them, \
         '{path}': put the regions on other paths (map set), or add the path"
    );
    Err(Failure::new(Errno::Einval, reason))
}
