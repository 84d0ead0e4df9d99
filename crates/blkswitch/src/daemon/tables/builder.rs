//! A table that is being built, and the leaves and devices that its words name.
//!
//! Contract: if a table is refused, the leaves that only it used are closed again. May block
//! (opening leaves); any thread.

use std::cell::Cell;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use blkswitch_core::args::Printable;
use blkswitch_core::error::Error;
use blkswitch_core::switch::Geometry;
use blkswitch_io::pool::Registry;
use blkswitch_io::slots::Slots;
use blkswitch_io::{Address, Below, Device, Leaf, LeafError, LeafOptions, Queues, TableBuilder};

use crate::daemon::failure::{Failure, errno_of};
use crate::daemon::process::privileges::UBLK_CONTROL;
use crate::daemon::state::{Folder, Owner, SavedMap};
use crate::daemon::tables::lookup::{Found, Leaves, find};
use crate::daemon::tables::missing;
use crate::daemon::tables::opening::Opening;
use crate::daemon::tables::words::word_of;
use crate::protocol::{self, Errno, LeafCache, LoadTable};

/// Everything but the text that a table is built from.
pub(crate) struct Site<'a> {
    /// The devices that the table may stand on.
    pub registry: &'a Registry,
    /// The leaves that are open already.
    pub leaves: &'a Leaves,
    /// The device that gets the table. The table must not stand on it.
    pub device: &'a Arc<Device>,
    /// The queues that the leaves are opened for.
    pub queues: Queues,
    /// Source of the words of region maps.
    pub maps: Maps<'a>,
    /// Records which address is being opened.
    pub opening: &'a Opening,
    /// Whether the table was served before. Then a path that has become read-only does not stop the
    /// table: a multipath has it as a failed path, other targets fail writes to it.
    pub restores: bool,
}

/// Source of the words of a table's region maps.
pub(crate) struct Maps<'a> {
    folder: &'a Folder,
    /// The saved maps, one per segment, and the index of the next; `None` for a new table.
    saved: Option<(&'a [SavedMap], Cell<usize>)>,
}

impl<'a> Maps<'a> {
    /// New maps. If devices are kept, or a ublk driver can make disks of them, each map gets a
    /// file, so that it survives the daemon.
    pub(crate) fn new(folder: &'a Folder) -> Maps<'a> {
        Maps { folder, saved: None }
    }

    /// Maps that were saved.
    pub(crate) fn saved(folder: &'a Folder, names: &'a [SavedMap]) -> Maps<'a> {
        Maps { folder, saved: Some((names, Cell::new(0))) }
    }

    /// Starts again with the first map, because the table is built again.
    pub(crate) fn rewind(&self) {
        if let Some((_, next)) = &self.saved {
            next.set(0);
        }
    }

    /// The words of the next map, for `device`.
    ///
    /// Errors: there is no memory or no space for them, or the saved map cannot be used.
    pub(crate) fn next(&self, device: &Device, geometry: &Geometry) -> Result<Slots, Failure> {
        let info = device.info();
        let owner = Owner { name: info.name, uuid: info.uuid };
        let folder = self.folder.path().display();
        if let Some((names, next)) = &self.saved {
            let Some(saved) = names.get(next.replace(next.get() + 1)) else {
                let reason = "the description has fewer region maps than the table";
                return Err(Failure::new(Errno::Einval, reason));
            };
            return self.folder.saved_map(saved, geometry, &owner).map_err(|error| {
                let name = saved.file.display();
                Failure::io(&error, format!("the region map '{folder}/{name}' is of no use"))
            });
        }
        let keeps_all = self.folder.keeps_all();
        let no_memory = |reason: Option<String>| {
            let error = Error::RegionTableMemory { regions: geometry.nr_regions() };
            let text = format!("switch: {error} ({})", error.errno());
            let reason = reason.unwrap_or_else(|| error.explain(None).to_string());
            Failure::target(errno_of(&error), text, reason)
        };
        let in_memory = || Slots::in_memory(geometry.nr_slots()).ok_or_else(|| no_memory(None));
        if !keeps_all && !Path::new(UBLK_CONTROL).exists() {
            return in_memory();
        }
        match self.folder.new_map(geometry, &owner) {
            // Any call may have run out of memory, so the map is not necessarily too large. The
            // reason quotes the error.
            Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                let regions = geometry.nr_regions();
                let what = format!("cannot keep a map of {regions} regions in '{folder}': {error}");
                Err(no_memory(Some(what)))
            }
            Err(error) if keeps_all => {
                Err(Failure::io(&error, format!("cannot keep a region map in '{folder}'")))
            }
            Err(error) => {
                tracing::warn!(%folder, %error,
                    "a region map is kept in memory, and does not survive the daemon");
                in_memory()
            }
            Ok(slots) => Ok(slots),
        }
    }
}

/// A table that is being built.
pub(crate) struct Builder<'a> {
    pub(super) site: &'a Site<'a>,
    options: LeafOptions,
    pub(super) table: TableBuilder,
    /// The words of the current target's paths, in the form that a table text can have.
    pub(super) words: Vec<Box<str>>,
    /// The word of each leaf of the table, in the table's order.
    pub(super) leaf_names: Vec<String>,
    /// The last target must be the only one of the table.
    pub(super) stands_alone: bool,
}

/// The leaf of a multipath's path.
pub(crate) enum PathLeaf {
    /// It was opened at this address.
    Open(Box<Address>, Arc<Leaf>),
    /// It cannot be reached, with the reason.
    Absent(Box<Address>, Failure),
}

/// A failed look-up of a device below: the errno and the reason, which the constructor puts into
/// its own text.
pub(crate) type LookupError = Failure;

impl<'a> Builder<'a> {
    pub(super) fn new(site: &'a Site<'a>, load: &LoadTable) -> Self {
        let options = leaf_options(load.leaves, load.read_only, site.queues);
        let table = TableBuilder::new(load.read_only);
        let (words, leaf_names) = (Vec::new(), Vec::new());
        Builder { site, options, table, words, leaf_names, stands_alone: false }
    }

    /// Opens the leaf that a word names. If it cannot be reached now but may come back later, the
    /// result has its address.
    pub(crate) fn path(&mut self, word: &[u8]) -> Result<PathLeaf, LookupError> {
        let Found::Leaf(address) = find(word, self.site.registry)? else {
            let reason = format!(
                "'{}' is a device of this daemon: the paths of a multipath are files, disks and servers",
                Printable(word)
            );
            return Err(Failure::new(Errno::Einval, reason));
        };
        match self.open(&address) {
            Ok(leaf) => Ok(PathLeaf::Open(Box::new(address), leaf)),
            Err(error)
                if address.may_be_absent() && error.is_unreachable()
                    || self.site.restores && error.is_read_only() =>
            {
                Ok(PathLeaf::Absent(Box::new(address), error.into()))
            }
            Err(error) => Err(self.refused(&address, error)),
        }
    }

    /// The error for a leaf that cannot be opened. In a table that was served before, no word is
    /// misspelt: the file is away, and the error must not suggest to make a new one.
    fn refused(&self, address: &Address, error: LeafError) -> Failure {
        if self.site.restores {
            return error.into();
        }
        missing::leaf(address, error, self.site.registry)
    }

    fn open(&self, address: &Address) -> Result<Arc<Leaf>, LeafError> {
        let open = || self.site.leaves.open(address, &self.options);
        self.site.opening.at(&word_of(address), open)
    }

    /// Opens a path for reading that was writable when the table was served before. Writes to it
    /// fail, which is better than serving nothing.
    fn open_degraded(&self, address: &Address, error: LeafError) -> Result<Arc<Leaf>, LeafError> {
        if !self.site.restores || !error.is_read_only() {
            return Err(error);
        }
        tracing::warn!(device = %self.site.device.name(), path = %address,
            "has become read-only: writes to this path fail until the table is loaded again");
        let options = LeafOptions { read_only: true, ..self.options };
        self.site.leaves.open(address, &options)
    }

    /// A leaf for a path that cannot be reached: another path to the volume of `other`.
    pub(crate) fn absent(&self, address: &Address, other: &Leaf) -> Arc<Leaf> {
        self.site.leaves.absent(address, &self.options, other)
    }

    /// Makes `leaf` the next path of the target. The path keeps the word of this table. Another
    /// table may name the same leaf by another word, which may lead elsewhere one day.
    pub(crate) fn adopt(&mut self, address: &Address, leaf: Arc<Leaf>) -> Below {
        let word = word_of(address);
        let below = self.table.leaf(leaf);
        self.words.push(word.as_str().into());
        // The table numbers its leaves in the order of their first use, so a new number means a new
        // leaf.
        if below == Below::Leaf(self.leaf_names.len() as u32) {
            self.leaf_names.push(word);
        }
        below
    }

    /// Adds the device or leaf that a word names to the table.
    pub(crate) fn below(&mut self, word: &[u8]) -> Result<Below, LookupError> {
        match find(word, self.site.registry)? {
            Found::Device(device) if Arc::ptr_eq(&device, self.site.device) => {
                let reason = format!(
                    "'{}' is the device itself: it cannot stand on itself",
                    Printable(word)
                );
                Err(Failure::new(Errno::Einval, reason))
            }
            Found::Device(device) => {
                // The name of a device is looked up when it is shown, because it may change.
                self.words.push("".into());
                self.table.device(&device).ok_or_else(|| {
                    Failure::new(Errno::Enxio, format!("'{}' is being removed", Printable(word)))
                })
            }
            Found::Leaf(address) => {
                let opened =
                    self.open(&address).or_else(|error| self.open_degraded(&address, error));
                let leaf = opened.map_err(|error| self.refused(&address, error))?;
                Ok(self.adopt(&address, leaf))
            }
        }
    }

    /// The words of the next region map.
    pub(crate) fn slots(&self, geometry: &Geometry) -> Result<Slots, Failure> {
        self.site.maps.next(self.site.device, geometry)
    }
}

fn leaf_options(leaves: protocol::LeafOptions, read_only: bool, queues: Queues) -> LeafOptions {
    let direct = match leaves.cache {
        LeafCache::Auto => None,
        LeafCache::Direct => Some(true),
        LeafCache::Buffered => Some(false),
    };
    LeafOptions { direct, read_only, queues, make_bytes: None }
}
