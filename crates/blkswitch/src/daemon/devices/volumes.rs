//! Finds out whether the paths of a switch certainly lead to different storage. A message moves no
//! data, so after a remap between such paths a region shows other data.
//!
//! Contract: reads only, and reports only certain cases: two files, two memories, two disks or
//! units with world wide names, two exports. Paths of different kinds may lead to one volume. May
//! block: names of disks come from files of the kernel.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use blkswitch_io::{Below, Device, Leaf, Table, Target, To};

use crate::daemon::devices::switch::Switch;

/// Most devices below one another that are followed.
const DEPTH_MAX: usize = 4;
/// Most paths of a switch that are compared.
const PATHS_MAX: usize = 4096;

/// The storage that a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// The kind of the volume's name. Names of different kinds cannot be compared.
    kind: &'static str,
    volume: String,
    sector: u64,
}

/// The devices that a warning was given for.
#[derive(Debug, Default)]
pub(crate) struct Noted(Mutex<Vec<Weak<Device>>>);

impl Noted {
    /// Returns whether the device is noted for the first time.
    fn is_new(&self, device: &Arc<Device>) -> bool {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.retain(|known| known.strong_count() > 0);
        if noted.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(device))) {
            return false;
        }
        noted.push(Arc::downgrade(device));
        true
    }

    /// The warning for a remap of a device; `None` if it was given before or there is no reason for
    /// it.
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

/// Finds two paths that lead to different storage.
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
