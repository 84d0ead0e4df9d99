//! Whether the paths of a switch visibly lead to different storage. A message moves no data, so a
//! remap between such paths makes a region show other data.
//!
//! Contract: it only looks, and says so only where it is sure: two files, two memories, two disks
//! or units with world wide names, two exports. Paths of different kinds may well lead to one
//! volume. May block (names of disks are files of the kernel).

use std::sync::{Arc, Mutex, PoisonError, Weak};

use blkswitch_io::{Below, Device, Leaf, Table, Target, To};

use crate::daemon::devices::switch::Switch;

/// Devices below one another that are looked through.
const DEPTH_MAX: usize = 4;
/// Paths of a switch that are looked at.
const PATHS_MAX: usize = 4096;

/// Where a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// What kind of name the volume has: names of two kinds cannot be compared.
    kind: &'static str,
    volume: String,
    sector: u64,
}

/// The devices that something was said of.
#[derive(Debug, Default)]
pub(crate) struct Noted(Mutex<Vec<Weak<Device>>>);

impl Noted {
    /// Whether nothing was said of the device before.
    fn is_new(&self, device: &Arc<Device>) -> bool {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.retain(|known| known.strong_count() > 0);
        if noted.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(device))) {
            return false;
        }
        noted.push(Arc::downgrade(device));
        true
    }

    /// What is to be said of a remap of a device, once.
    pub(crate) fn of_remap(&self, device: &Arc<Device>, sector: u64) -> Option<String> {
        let switch = Switch::of(device, Some(sector)).ok()?;
        let (one, other) = switch.different_paths()?;
        self.is_new(device).then(|| {
            format!(
                "a message moves no data: paths {one} and {other} lead to different storage, so a \
                 region that changes its path shows other data (said once for each device)"
            )
        })
    }
}

/// Two paths that lead to different storage.
pub(crate) fn different(table: &Table, paths: &[To]) -> Option<(usize, usize)> {
    let mut seen: Vec<(usize, Place)> = Vec::new();
    for (path, to) in paths.iter().enumerate().take(PATHS_MAX) {
        let Some(place) = place(table, *to, DEPTH_MAX) else { continue };
        match seen.iter().find(|(_, known)| known.kind == place.kind) {
            Some((other, known)) if *known != place => return Some((*other, path)),
            Some(_) => {}
            None => seen.push((path, place)),
        }
    }
    None
}

fn place(table: &Table, to: To, depth: usize) -> Option<Place> {
    let Below::Device(id) = to.below else { return place_of(table.leaf_of(to)?, to.offset) };
    let device = table.devices().find(|device| device.id() == id)?;
    let below = device.live().filter(|_| depth > 0)?;
    let [segment] = below.segments() else { return None };
    let next = match &segment.target {
        Target::Linear(next) => place(&below, *next, depth - 1),
        Target::Multipath { paths, .. } => {
            paths.iter().find_map(|path| place(&below, *path, depth - 1))
        }
        _ => None,
    }?;
    Some(Place { sector: next.sector.saturating_add(to.offset), ..next })
}

fn place_of(leaf: &Leaf, sector: u64) -> Option<Place> {
    let (kind, volume) = match leaf.engine().identity() {
        Some(identity) if leaf.name().starts_with("nbd") => ("export", identity),
        Some(identity) => ("volume", identity),
        None if leaf.key().starts_with("file:") => ("file", leaf.key().to_owned()),
        None if leaf.name().starts_with("mem:") => ("memory", leaf.key().to_owned()),
        None => return None,
    };
    Some(Place { kind, volume, sector })
}
