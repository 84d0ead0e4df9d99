//! A table in the making: what it stands on, and the leaves and devices that its words name.
//!
//! Contract: leaves that only a refused table used are closed again. May block (opening leaves); any
//! thread.

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
use crate::protocol::{self, Errno, LeafCache, LoadTable};

/// What a table is built from beside its text.
pub(crate) struct Site<'a> {
    /// The devices it may stand on.
    pub registry: &'a Registry,
    /// The leaves that are open already.
    pub leaves: &'a Leaves,
    /// The device it is for: it may not stand on itself.
    pub device: &'a Arc<Device>,
    /// The queues that its leaves are opened for.
    pub queues: Queues,
    /// Where the words of its maps come from.
    pub maps: Maps<'a>,
    /// Where it is noted what is being opened.
    pub opening: &'a Opening,
    /// The table was served before: a path that has become read-only counts as failed, and stops
    /// nothing else.
    pub restores: bool,
}

/// Where the words of a table's region maps come from.
pub(crate) struct Maps<'a> {
    folder: &'a Folder,
    /// The saved ones, segment by segment, if there are any, and which is next.
    saved: Option<(&'a [SavedMap], Cell<usize>)>,
}

impl<'a> Maps<'a> {
    /// New ones. In files where devices are kept, or disks are made of them, so that they survive
    /// the daemon.
    pub(crate) fn new(folder: &'a Folder) -> Maps<'a> {
        Maps { folder, saved: None }
    }

    /// Those that were saved.
    pub(crate) fn saved(folder: &'a Folder, names: &'a [SavedMap]) -> Maps<'a> {
        Maps { folder, saved: Some((names, Cell::new(0))) }
    }

    /// The table is built again from its first map.
    pub(crate) fn rewind(&self) {
        if let Some((_, next)) = &self.saved {
            next.set(0);
        }
    }

    /// The words of the next map, for `device`. Errors: there is no room for them, or what was
    /// saved is of no use.
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
            // Any call may have failed: the map itself need not be too large.
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

/// A table in the making.
pub(crate) struct Builder<'a> {
    pub(super) site: &'a Site<'a>,
    options: LeafOptions,
    pub(super) table: TableBuilder,
    /// The words of the paths of the target that is being made, as they can stand in a table again.
    pub(super) words: Vec<Box<str>>,
    /// The word of each of the table's leaves, in the table's order.
    pub(super) leaf_names: Vec<String>,
    /// Its last target must be the only one.
    pub(super) stands_alone: bool,
}

/// A path of a multipath.
pub(crate) enum PathLeaf {
    /// It can be reached, at this address.
    Open(Box<Address>, Arc<Leaf>),
    /// It cannot, and why.
    Absent(Box<Address>, Failure),
}

/// A device below that could not be had: the errno and the reason, for the constructor to put in
/// its words.
pub(crate) type LookupError = Failure;

impl<'a> Builder<'a> {
    pub(super) fn new(site: &'a Site<'a>, load: &LoadTable) -> Self {
        let options = leaf_options(load.leaves, load.read_only, site.queues);
        let table = TableBuilder::new(load.read_only);
        let (words, leaf_names) = (Vec::new(), Vec::new());
        Builder { site, options, table, words, leaf_names, stands_alone: false }
    }

    /// The leaf that a word names. One that may come back later and cannot be reached now is told
    /// by its address.
    pub(crate) fn path(&mut self, word: &[u8]) -> Result<PathLeaf, LookupError> {
        let Found::Leaf(address) = find(word, self.site.registry)? else {
            let reason = format!("'{}' is a device of ours: paths are leaves", Printable(word));
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

    /// A leaf that cannot be opened. Of a table that was served before nothing is misspelt: its file
    /// is away, and nobody should make a new one.
    fn refused(&self, address: &Address, error: LeafError) -> Failure {
        if self.site.restores {
            return error.into();
        }
        missing::leaf(address, error, self.site.registry)
    }

    fn open(&self, address: &Address) -> Result<Arc<Leaf>, LeafError> {
        let open = || self.site.leaves.open(address, &self.options);
        self.site.opening.at(&address.to_string(), open)
    }

    /// A path that could be written when the table was served before, and can only be read now: what
    /// is written to it fails, which is better than to serve nothing.
    fn open_degraded(&self, address: &Address, error: LeafError) -> Result<Arc<Leaf>, LeafError> {
        if !self.site.restores || !error.is_read_only() {
            return Err(error);
        }
        tracing::warn!(device = %self.site.device.name(), path = %address,
            "has become read-only: writes to this path fail until the table is loaded again");
        let options = LeafOptions { read_only: true, ..self.options };
        self.site.leaves.open(address, &options)
    }

    /// A leaf for a path that cannot be reached: another way to the volume of `other`.
    pub(crate) fn absent(&self, address: &Address, other: &Leaf) -> Arc<Leaf> {
        self.site.leaves.absent(address, &self.options, other)
    }

    /// Makes the leaf at an address the next path of the target. The word stays that of the table:
    /// another table may name the same leaf by another, which may lead elsewhere one day.
    pub(crate) fn adopt(&mut self, address: &Address, leaf: Arc<Leaf>) -> Below {
        let word = address.to_string();
        let below = self.table.leaf(leaf);
        self.words.push(word.as_str().into());
        // The table numbers its leaves in the order they come; one it has already keeps its number.
        if below == Below::Leaf(self.leaf_names.len() as u32) {
            self.leaf_names.push(word);
        }
        below
    }

    /// The device that a word names, made part of the table.
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
                // Its name is looked up when it is shown.
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
