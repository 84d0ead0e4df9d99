//! From the text of a table to a table that can route requests.
//!
//! The checks come in the kernel's order with the kernel's texts: line by line the place of the
//! target, its type, its own constructor ([`crate::daemon::tables::targets`]); when all targets stand, whether
//! every device below is large enough and aligned.
//!
//! Contract: a refused table leaves everything as it was: leaves that only it used are closed
//! again, files that were made for it are removed. May block (opening leaves); any thread.

pub mod describe;
pub mod lookup;
pub(in crate::daemon) mod missing;
pub mod opening;
pub mod targets;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blkswitch_core::args::{Printable, is_space};
use blkswitch_core::error::Error;
use blkswitch_core::switch::Geometry;
use blkswitch_core::table::{self, Layout, SECTOR_SIZE};
use blkswitch_io::pool::Registry;
use blkswitch_io::slots::Slots;
use blkswitch_io::{
    Address, Below, Device, Leaf, LeafError, LeafOptions, Queues, Table, TableBuilder, TableError,
};

use crate::daemon::failure::{Failure, errno_of};
use crate::daemon::tables::lookup::{Found, Leaves, find};

use crate::daemon::process::privileges::UBLK_CONTROL;
use crate::daemon::state::{Folder, Owner, SavedMap};
use crate::daemon::tables::opening::Opening;
use crate::protocol::{self, Errno, LeafCache, LoadTable};

/// What a table is built from beside its text.
pub struct Site<'a> {
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
pub struct Maps<'a> {
    folder: &'a Folder,
    /// The saved ones, segment by segment, if there are any, and which is next.
    saved: Option<(&'a [SavedMap], Cell<usize>)>,
}

impl<'a> Maps<'a> {
    /// New ones. In files where devices are kept, or disks are made of them, so that they survive
    /// the daemon.
    pub fn new(folder: &'a Folder) -> Maps<'a> {
        Maps { folder, saved: None }
    }

    /// Those that were saved.
    pub fn saved(folder: &'a Folder, names: &'a [SavedMap]) -> Maps<'a> {
        Maps { folder, saved: Some((names, Cell::new(0))) }
    }

    /// The table is built again from its first map.
    pub(in crate::daemon) fn rewind(&self) {
        if let Some((_, next)) = &self.saved {
            next.set(0);
        }
    }

    /// The words of the next map, for `device`. Errors: there is no room for them, or what was
    /// saved is of no use.
    pub(in crate::daemon) fn next(
        &self,
        device: &Device,
        geometry: &Geometry,
    ) -> Result<Slots, Failure> {
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

/// The table of a load.
pub fn build(site: &Site<'_>, load: &LoadTable) -> Result<Table, Failure> {
    check_shown(&load.table)?;
    let mut made = MadeFiles::default();
    if load.leaves.make_files {
        made.make_missing(site, load)?;
    }
    let mut builder = Builder::new(site, load);
    let mut layout = Layout::new();
    for line in table::lines(load.table.as_bytes()) {
        let line = line.map_err(|error| Failure::new(Errno::Einval, error.to_string()))?;
        builder.target(&mut layout, &line)?;
    }
    layout.finish().map_err(|error| {
        let reason = error.explain(None).to_string();
        Failure::new(errno_of(&error), reason).logged("populate_table: no targets specified")
    })?;
    let names = builder.leaf_names;
    let table = builder.table.build().map_err(|error| refused(site, &names, error))?;
    made.keep();
    Ok(table)
}

/// Refuses control characters but white space: words of tables are shown in logs, by `table`, and
/// wherever a path is named.
fn check_shown(text: &str) -> Result<(), Failure> {
    let is_bad = |one: char| one.is_control() && !one.is_ascii_whitespace() && one != '\x0b';
    let Some(bad) = text.chars().find(|one| is_bad(*one)) else { return Ok(()) };
    let reason = format!("the table has a control character in it: {}", bad.escape_debug());
    Err(Failure::new(Errno::Einval, reason))
}

/// A table that the library refuses, although all its targets stand.
fn refused(site: &Site<'_>, leaf_names: &[String], error: TableError) -> Failure {
    let TableError::Path { below, error, .. } = error else {
        return Failure::new(Errno::Einval, error.to_string());
    };
    let address = match below {
        Below::Leaf(leaf) => leaf_names.get(leaf as usize).cloned().unwrap_or_default(),
        Below::Device(id) => {
            site.registry.by_id(id).map(|device| device.name()).unwrap_or_default()
        }
    };
    let reason = format!("path '{address}': {}", error.explain(None));
    Failure::limits(&error, short_name(&address), reason)
}

/// A table in the making.
pub(in crate::daemon) struct Builder<'a> {
    site: &'a Site<'a>,
    options: LeafOptions,
    table: TableBuilder,
    /// The words of the paths of the target that is being made, as they can stand in a table again.
    words: Vec<Box<str>>,
    /// The word of each of the table's leaves, in the table's order.
    leaf_names: Vec<String>,
    has_multipath: bool,
}

/// A path of a multipath.
pub(in crate::daemon) enum PathLeaf {
    /// It can be reached, at this address.
    Open(Box<Address>, Arc<Leaf>),
    /// It cannot, and why.
    Absent(Box<Address>, Failure),
}

/// A device below that could not be had: the errno and the reason, for the constructor to put in
/// its words.
pub(in crate::daemon) type LookupError = Failure;

impl<'a> Builder<'a> {
    fn new(site: &'a Site<'a>, load: &LoadTable) -> Self {
        let options = leaf_options(load.leaves, load.read_only, site.queues);
        let table = TableBuilder::new(load.read_only);
        let (words, leaf_names) = (Vec::new(), Vec::new());
        Builder { site, options, table, words, leaf_names, has_multipath: false }
    }

    fn target(&mut self, layout: &mut Layout, line: &table::Target<'_>) -> Result<(), Failure> {
        let kind = Printable(line.kind).to_string();
        let refuse = |error: Error| {
            let text = match error {
                Error::ZeroLength | Error::TooLarge { .. } => error.to_string(),
                Error::UnknownType => format!("{kind}: {error}"),
                _ => format!("{kind}: {error} ({})", error.errno()),
            };
            let why = match error {
                Error::UnknownType => missing::target_type(&kind, line.len),
                _ => error.explain(None).to_string(),
            };
            let reason = format!("line {}: {why}", line.line);
            Failure::target(errno_of(&error), text, reason)
        };
        Layout::extent(line.start, line.len).map_err(refuse)?;
        let constructor = targets::by_name(line.kind).ok_or(Error::UnknownType).map_err(refuse)?;
        layout.append(line.start, line.len).map_err(refuse)?;
        self.check_alone(line)?;
        let target = constructor(self, line.len, &words(line.params)).map_err(|mut failure| {
            failure.reason = format!("line {}: {}", line.line, failure.reason);
            failure
        })?;
        let words = std::mem::take(&mut self.words);
        self.table.push_named(line.len, target, words.into());
        Ok(())
    }

    /// A multipath is the only target of its table.
    fn check_alone(&mut self, line: &table::Target<'_>) -> Result<(), Failure> {
        let is_multipath = line.kind == b"multipath";
        if line.start > 0 && (is_multipath || self.has_multipath) {
            let text = "multipath: must be the only target of its table (-EINVAL)";
            let reason = format!(
                "line {}: a multipath is the only line of its table: put a device on top",
                line.line
            );
            return Err(Failure::target(Errno::Einval, text, reason));
        }
        self.has_multipath = is_multipath;
        Ok(())
    }

    /// The leaf that a word names. One that may come back later and cannot be reached now is told
    /// by its address.
    pub(in crate::daemon) fn path(&mut self, word: &[u8]) -> Result<PathLeaf, LookupError> {
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
    pub(in crate::daemon) fn absent(&self, address: &Address, other: &Leaf) -> Arc<Leaf> {
        self.site.leaves.absent(address, &self.options, other)
    }

    /// Makes the leaf at an address the next path of the target. The word stays that of the table:
    /// another table may name the same leaf by another, which may lead elsewhere one day.
    pub(in crate::daemon) fn adopt(&mut self, address: &Address, leaf: Arc<Leaf>) -> Below {
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
    pub(in crate::daemon) fn below(&mut self, word: &[u8]) -> Result<Below, LookupError> {
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
    pub(in crate::daemon) fn slots(&self, geometry: &Geometry) -> Result<Slots, Failure> {
        self.site.maps.next(self.site.device, geometry)
    }
}

/// What stands for a block device's name: the file name of a path, any other address as it is.
pub(in crate::daemon) fn short_name(address: &str) -> &str {
    match address.rsplit_once('/') {
        Some((_, name)) if address.starts_with('/') => name,
        _ => address,
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

/// The words of a target. Nothing is an escape: `dmsetup` doubles the backslashes of a table before
/// the kernel takes one of each pair away.
pub(in crate::daemon) fn words(params: &[u8]) -> Vec<&[u8]> {
    params.split(|byte| is_space(*byte)).filter(|word| !word.is_empty()).collect()
}

/// Files made for a table; removed again unless the table is kept.
#[derive(Default)]
struct MadeFiles {
    paths: Vec<PathBuf>,
}

impl MadeFiles {
    /// Makes the files that the table names and that are missing, sparse, as long as the table
    /// needs them.
    fn make_missing(&mut self, site: &Site<'_>, load: &LoadTable) -> Result<(), Failure> {
        let mut needed = BTreeMap::<PathBuf, u64>::new();
        for line in table::lines(load.table.as_bytes()).flatten() {
            for (word, sectors) in targets::needed_sectors(&line) {
                if let Ok(Found::Leaf(Address::Path(path))) = find(word, site.registry) {
                    let most = needed.entry(path).or_default();
                    *most = sectors.max(*most);
                }
            }
        }
        for (path, sectors) in needed {
            if !path.exists() {
                self.make(path, sectors)?;
            }
        }
        Ok(())
    }

    fn make(&mut self, path: PathBuf, sectors: u64) -> Result<(), Failure> {
        /// What is written to a device is its user's alone.
        const MODE: u32 = 0o600;
        let failed = |path: &PathBuf, error: std::io::Error| {
            let failure = Failure::io(&error, format!("cannot make '{}'", path.display()));
            match missing::folder(path).filter(|_| error.kind() == ErrorKind::NotFound) {
                Some(reason) => Failure { reason, ..failure },
                None => failure,
            }
        };
        let made = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path);
        let file = made.map_err(|error| failed(&path, error))?;
        let sized =
            file.set_len(sectors.saturating_mul(SECTOR_SIZE)).map_err(|error| failed(&path, error));
        self.paths.push(path);
        sized
    }

    fn keep(&mut self) {
        self.paths.clear();
    }
}

impl Drop for MadeFiles {
    fn drop(&mut self) {
        for path in &self.paths {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "a file made for a refused table stays behind");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backslashes_of_a_table_are_literal() {
        assert_eq!(
            words(br" 1  128\ 0 /dev/a\b "),
            [b"1".as_slice(), br"128\", b"0", br"/dev/a\b"]
        );
    }

    #[test]
    fn short_names_are_those_of_block_devices() {
        assert_eq!(short_name("/dev/vg1/switch0"), "switch0");
        assert_eq!(short_name("sim:1M,seed=1"), "sim:1M,seed=1");
        assert_eq!(short_name("low0"), "low0");
    }
}
