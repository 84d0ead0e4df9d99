//! A table, as the pipeline runs it: segments, the places to which they send requests, and all
//! leaves.
//!
//! Contract: control builds and checks a [`Table`] with [`TableBuilder::build`], the one way to
//! make one. Afterwards only the region slots of its switch maps change (atomics, written under the
//! device's message lock). Building opens nothing. Dropping the last reference closes the leaves
//! and releases the devices below.
//!
//! Positions and lengths are in sectors of 512 bytes, unless a name says bytes.

use std::sync::Arc;

use blkswitch_core::error::Error;
use blkswitch_core::multipath::{Group, Multipath, Path};
use blkswitch_core::switch::geometry::Geometry;
use blkswitch_core::switch::regions::Map;
use blkswitch_core::table::{Layout, check_area, check_region_size};

use crate::device::{Device, OpenDevice};
use crate::engine::Properties;
use crate::leaf::Leaf;
use crate::queues::Queues;
use crate::stats::{Counters, Totals};
use crate::sys::slots::Slots;

/// Most devices on top of each other. This limits the work for a request and the size of a part.
pub const MAX_DEPTH: usize = 8;

/// The packed map of a switch segment in this process.
pub type RegionMap = Map<Slots>;

/// The priority groups of a multipath device in this process.
pub type PathGroups = Multipath<Box<[Group]>, Box<[Path]>>;

/// The destination of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// A leaf, by its index in the table.
    Leaf(u32),
    /// Another device, by its id.
    Device(u32),
}

/// A path: its destination, and the sector there that corresponds to the first of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct To {
    /// The leaf or device.
    pub below: Below,
    /// Offset on it, in sectors.
    pub offset: u64,
}

/// The rule by which a segment serves its requests. `repr(u8)` keeps the tag in its own byte, as
/// for [`crate::request::Op`].
#[repr(u8)]
pub enum Target {
    /// Sends each region to the path that the map names.
    Switch {
        /// The map of regions to paths.
        map: RegionMap,
        /// The paths, in the order of the table line.
        paths: Box<[To]>,
    },
    /// Sends everything to one place.
    Linear(To),
    /// Sends chunks to the stripes in turn.
    Striped {
        /// Length of a chunk in sectors.
        chunk: u64,
        /// The stripes, in order.
        stripes: Box<[To]>,
    },
    /// Sends each request to one of several paths to one volume. It is the only segment of its
    /// table. The paths are leaves, each from its first sector.
    Multipath {
        /// The priority groups, which select a path and judge its answers.
        groups: PathGroups,
        /// The paths, in the order of the table line.
        paths: Box<[To]>,
    },
    /// Every request fails, as with the kernel's target.
    Error,
    /// Reads return zeroes, and writes are discarded.
    Zero,
}

impl Target {
    /// The target's name in a table line.
    pub fn name(&self) -> &'static str {
        match self {
            Target::Switch { .. } => "switch",
            Target::Linear(_) => "linear",
            Target::Striped { .. } => "striped",
            Target::Multipath { .. } => "multipath",
            Target::Error => "error",
            Target::Zero => "zero",
        }
    }

    /// The target's paths, in the order of the table line.
    pub fn paths(&self) -> &[To] {
        match self {
            Target::Switch { paths, .. } | Target::Multipath { paths, .. } => paths,
            Target::Linear(to) => std::slice::from_ref(to),
            Target::Striped { stripes, .. } => stripes,
            Target::Error | Target::Zero => &[],
        }
    }
}

/// A contiguous range of a device.
pub struct Segment {
    /// The first sector of the segment.
    pub start: u64,
    /// Length of the segment in sectors.
    pub len: u64,
    /// The rule by which the segment serves its requests.
    pub target: Target,
    /// The number of its first path among all paths of the table. The builder sets it.
    pub first_path: u32,
    /// The words of the table line for its paths, in order. Empty for a device below, which may be
    /// renamed. A leaf may have several names, and one of them may later mean another medium.
    pub words: Box<[Box<str>]>,
}

/// A table of segments that fit together and whose paths exist.
pub struct Table {
    segments: Box<[Segment]>,
    /// Length of all segments in sectors.
    len: u64,
    leaves: Box<[Arc<Leaf>]>,
    devices: Box<[OpenDevice]>,
    read_only: bool,
    logical_block: u32,
    physical_block: u32,
    rotational: bool,
    path_count: u32,
    /// The first path that leads to each leaf and to each device. A flush of it is counted there.
    leaf_paths: Box<[u32]>,
    device_paths: Box<[u32]>,
    /// By queue, then by path. Empty until the queues of the table are known.
    counters: Box<[Counters]>,
}

/// Why a table cannot be built. Segments and paths are counted from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The extent of a segment, or of all of them, is not valid: it is missing, empty or too large.
    #[error("segment {segment}: {}", .error.explain(None))]
    Extent {
        /// The number of the segment; 0 if there is none.
        segment: usize,
        /// Why it is not valid.
        error: Error,
    },
    /// A path's destination is too small for the segment, or its block size does not fit.
    #[error("segment {segment}, path {path}: {}", .error.explain(None))]
    Path {
        /// The number of the segment.
        segment: usize,
        /// The number of the path within the segment.
        path: usize,
        /// The destination that does not fit.
        below: Below,
        /// Why the destination does not fit.
        error: Error,
    },
    /// A path leads to a leaf or device that was not added to the builder.
    #[error(
        "segment {segment}, path {path}: {below:?} is not in this table: add it with \
         TableBuilder::leaf or TableBuilder::device"
    )]
    Unknown {
        /// The number of the segment.
        segment: usize,
        /// The number of the path within the segment.
        path: usize,
        /// The destination that is not in the table.
        below: Below,
    },
    /// A map or a multipath is for another number of paths than the segment has.
    #[error("segment {segment}: there are {has} paths, and {needs} are needed")]
    PathCount {
        /// The number of the segment.
        segment: usize,
        /// Number of paths of the segment.
        has: usize,
        /// Number of paths of its map or groups.
        needs: usize,
    },
    /// A map is for a target of another length.
    #[error("segment {segment}: its map is for {map} sectors, and its length is {len} sectors")]
    MapLength {
        /// The number of the segment.
        segment: usize,
        /// Length of the map's geometry in sectors.
        map: u64,
        /// Length of the segment in sectors.
        len: u64,
    },
    /// The chunks of the stripes do not fill the segment.
    #[error(
        "segment {segment}: a chunk of {chunk} sectors must be at least 1, and {len} sectors a \
         multiple of the chunk times the {stripes} stripes"
    )]
    Chunk {
        /// The number of the segment.
        segment: usize,
        /// Length of a chunk in sectors.
        chunk: u64,
        /// Length of the segment in sectors.
        len: u64,
        /// Number of stripes of the segment.
        stripes: usize,
    },
    /// A multipath is not the only segment.
    #[error("segment {segment}: a multipath is the only segment of its table: put a device on top")]
    NotAlone {
        /// The number of the multipath's segment.
        segment: usize,
    },
    /// A path of a multipath is not a leaf, or does not begin at sector 0.
    #[error("segment {segment}, path {path}: a multipath's path is a leaf from its sector 0 on")]
    MultipathPath {
        /// The number of the segment.
        segment: usize,
        /// The number of the path within the segment.
        path: usize,
    },
}

impl Table {
    /// The segments, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment that contains `sector`.
    pub fn segment_at(&self, sector: u64) -> Option<&Segment> {
        let index = match self.segments.len() {
            0 => return None,
            1 => 0,
            _ => self.segments.partition_point(|s| s.start <= sector).checked_sub(1)?,
        };
        self.segments.get(index).filter(|s| sector - s.start < s.len)
    }

    /// Gives the switch segment at `start` the words of `map`, which another table of the device
    /// has. `false`, and no change, if there is no such segment or if its geometry differs.
    pub fn share_map(&mut self, start: u64, map: &RegionMap) -> bool {
        let segment = self.segments.iter_mut().find(|segment| segment.start == start);
        let Some(Target::Switch { map: own, .. }) = segment.map(|one| &mut one.target) else {
            return false;
        };
        if own.geometry() != map.geometry() {
            return false;
        }
        match RegionMap::new(*map.geometry(), map.storage().share()) {
            Ok(shared) => *own = shared,
            Err(_) => return false,
        }
        true
    }

    /// The maps of the switch segments, each with the first sector of its segment.
    pub fn maps(&self) -> impl Iterator<Item = (u64, &RegionMap)> {
        self.segments.iter().filter_map(|segment| match &segment.target {
            Target::Switch { map, .. } => Some((segment.start, map)),
            _ => None,
        })
    }

    /// The priority groups and paths of a multipath table; `None` for other tables.
    pub fn multipath(&self) -> Option<(&PathGroups, &[To])> {
        match &self.segments.first()?.target {
            Target::Multipath { groups, paths } => Some((groups, paths)),
            _ => None,
        }
    }

    /// The leaf of a path; `None` if the path leads to a device.
    pub fn leaf_of(&self, to: To) -> Option<&Arc<Leaf>> {
        match to.below {
            Below::Leaf(leaf) => self.leaves.get(leaf as usize),
            Below::Device(_) => None,
        }
    }

    /// The name of the leaf or device of a path, by its number over all segments.
    pub(crate) fn path_name(&self, path: u32) -> Arc<str> {
        let paths = self.segments.iter().flat_map(|segment| segment.target.paths());
        match paths.copied().nth(path as usize).map(|to| to.below) {
            Some(Below::Leaf(leaf)) => {
                self.leaves.get(leaf as usize).map(|leaf| leaf.name().into())
            }
            Some(Below::Device(id)) => {
                self.devices().find(|device| device.id() == id).map(|device| device.name().into())
            }
            None => None,
        }
        .unwrap_or_default()
    }

    /// Length of the table in sectors.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no segments.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// All leaves that the table uses itself, without those of devices below.
    pub fn leaves(&self) -> &[Arc<Leaf>] {
        &self.leaves
    }

    /// The devices directly below.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.devices.iter().map(OpenDevice::device)
    }

    /// Whether requests with data in pages ([`crate::sys::pages`]) are faster with the leaves
    /// below: all take pages, and at least one is under direct I/O. (A copy between the page cache
    /// and pages is not faster than a copy through memory.)
    pub fn gains_by_pages(&self) -> bool {
        let (mut all, mut any) = (true, false);
        self.each_leaf(&mut |leaf| {
            all &= leaf.engine().takes_pages();
            any |= leaf.engine().gains_by_pages();
        });
        all && any
    }

    /// Switches the leaves below, at any depth, to direct I/O, unless a user has chosen another
    /// mode or the leaf does not allow it ([`crate::engine::mode`]).
    pub fn prefer_direct(&self) {
        self.each_leaf(&mut |leaf| {
            if let Err(why) = leaf.prefer_direct() {
                tracing::info!(leaf = leaf.name(), %why, "stays in the page cache below a disk");
            }
        });
    }

    /// The names of the leaves below, at any depth, that keep written data in the page cache.
    pub fn cached_leaves(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.each_leaf(&mut |leaf| {
            if leaf.engine().is_cached() && !names.iter().any(|name| name == leaf.name()) {
                names.push(leaf.name().to_owned());
            }
        });
        names
    }

    fn each_leaf(&self, visit: &mut dyn FnMut(&Leaf)) {
        self.leaves.iter().for_each(|leaf| visit(leaf));
        for below in self.devices().filter_map(|device| device.live()) {
            below.each_leaf(visit);
        }
    }

    /// Whether a leaf below can discard, or a target without leaves, for which a discard does
    /// nothing.
    pub fn can_discard(&self) -> bool {
        let is_simple = |of: &Segment| matches!(of.target, Target::Error | Target::Zero);
        let mut can = self.segments().iter().any(is_simple);
        self.each_leaf(&mut |leaf| can |= leaf.can_discard());
        can
    }

    /// Whether the table refuses writes.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The largest logical block size below, in bytes.
    pub fn logical_block(&self) -> u32 {
        self.logical_block
    }

    /// The largest physical block size below, in bytes.
    pub fn physical_block(&self) -> u32 {
        self.physical_block
    }

    /// Whether a medium below rotates.
    pub fn rotational(&self) -> bool {
        self.rotational
    }

    /// Number of paths of all segments.
    pub fn path_count(&self) -> u32 {
        self.path_count
    }

    /// The leaves, each with the first path that leads to it.
    pub(crate) fn leaves_with_paths(&self) -> impl Iterator<Item = (&Arc<Leaf>, u32)> {
        self.leaves.iter().zip(self.leaf_paths.iter().copied())
    }

    /// The ids of the devices below, each with the first path that leads to it.
    pub(crate) fn devices_with_paths(&self) -> impl Iterator<Item = (u32, u32)> {
        self.devices.iter().map(|d| d.device().id()).zip(self.device_paths.iter().copied())
    }

    /// Prepares the table for these queues. `Err` with the name of a leaf or device below that
    /// belongs to other queues. Such a leaf has no account of writes for these queues, and the
    /// number of such a device would mean another device here.
    pub(crate) fn serve(&mut self, queues: Queues) -> Result<(), String> {
        if let Some(leaf) = self.leaves.iter().find(|leaf| leaf.queues() != queues) {
            return Err(leaf.name().to_owned());
        }
        if let Some(device) = self.devices().find(|device| device.queues() != queues) {
            return Err(device.name());
        }
        self.counters = Counters::boxed(queues.count() * self.path_count as usize);
        Ok(())
    }

    /// As a device's load prepares it, for pipelines that a test drives.
    #[cfg(feature = "internals")]
    #[doc(hidden)]
    pub fn served_by(mut self, queues: Queues) -> Result<Table, String> {
        self.serve(queues).map(|()| self)
    }

    /// The counters that `queue` keeps for a path.
    pub(crate) fn counters(&self, queue: usize, path: u32) -> Option<&Counters> {
        self.counters.get(queue * self.path_count as usize + path as usize)
    }

    /// The totals of a path, by its number over all segments, since the table was loaded.
    pub fn path_totals(&self, path: u32) -> Totals {
        let mut totals = Totals::default();
        let per_queue = self.path_count.max(1) as usize;
        self.counters.iter().skip(path as usize).step_by(per_queue).for_each(|c| totals.add(c));
        totals
    }
}

/// Collects the leaves and devices of a table, then its segments.
#[derive(Default)]
pub struct TableBuilder {
    segments: Vec<Segment>,
    leaves: Vec<Arc<Leaf>>,
    devices: Vec<OpenDevice>,
    read_only: bool,
    least_block: u32,
}

impl TableBuilder {
    /// Begins an empty table.
    pub fn new(read_only: bool) -> TableBuilder {
        TableBuilder { read_only, ..TableBuilder::default() }
    }

    /// Announces logical blocks of at least this many bytes, for a table that stands in for
    /// another.
    pub fn least_block(mut self, bytes: u32) -> TableBuilder {
        self.least_block = bytes;
        self
    }

    /// Adds a leaf. Adding a leaf again returns the same value.
    pub fn leaf(&mut self, leaf: Arc<Leaf>) -> Below {
        let known = self.leaves.iter().position(|l| Arc::ptr_eq(l, &leaf));
        let index = known.unwrap_or_else(|| {
            self.leaves.push(leaf);
            self.leaves.len() - 1
        });
        Below::Leaf(index as u32)
    }

    /// Adds a device below. It counts as open until the table is dropped. `None` if it is being
    /// removed.
    pub fn device(&mut self, device: &Arc<Device>) -> Option<Below> {
        if !self.devices.iter().any(|d| Arc::ptr_eq(d.device(), device)) {
            self.devices.push(OpenDevice::new(device)?);
        }
        Some(Below::Device(device.id()))
    }

    /// The properties of a destination: those of a leaf, or of a device's live table.
    pub fn properties(&self, below: Below) -> Option<Properties> {
        match below {
            Below::Leaf(leaf) => {
                self.leaves.get(leaf as usize).map(|leaf| leaf.properties().clone())
            }
            Below::Device(id) => {
                self.devices.iter().find(|d| d.device().id() == id).map(|d| d.device().properties())
            }
        }
    }

    /// Appends a segment of `len` sectors. The names of its paths are those of their leaves.
    pub fn push(&mut self, len: u64, target: Target) {
        let name = |to: &To| match to.below {
            Below::Leaf(leaf) => self.leaves.get(leaf as usize).map_or("", |leaf| leaf.name()),
            Below::Device(_) => "",
        };
        let words = target.paths().iter().map(|to| name(to).into()).collect();
        self.push_named(len, target, words);
    }

    /// As [`TableBuilder::push`], with the words of a table line for the paths
    /// ([`Segment::words`]).
    pub fn push_named(&mut self, len: u64, target: Target, words: Box<[Box<str>]>) {
        let (start, first_path) = self.segments.last().map_or((0, 0), |last| {
            let paths = last.target.paths().len() as u32;
            // `build()` refuses lengths that are too large.
            (last.start.saturating_add(last.len), last.first_path.saturating_add(paths))
        });
        self.segments.push(Segment { start, len, target, first_path, words });
    }

    /// Builds the table, if every request to it can be routed: the segments fit a device, and the
    /// destinations of their paths exist, are large enough, and have suitable blocks.
    ///
    /// # Errors
    /// The first error, in the order of the segments.
    pub fn build(self) -> Result<Table, TableError> {
        let mut layout = Layout::new();
        for (nr, segment) in self.segments.iter().enumerate() {
            let extent = |error| TableError::Extent { segment: nr, error };
            Layout::extent(segment.start, segment.len).map_err(extent)?;
            layout.append(segment.start, segment.len).map_err(extent)?;
            self.check_target(nr, segment)?;
        }
        layout.finish().map_err(|error| TableError::Extent { segment: 0, error })?;
        for (nr, segment) in self.segments.iter().enumerate() {
            self.check_paths(nr, segment)?;
        }
        Ok(self.build_checked())
    }

    /// Checks a segment without its destinations.
    fn check_target(&self, segment: usize, of: &Segment) -> Result<(), TableError> {
        let (has, len) = (of.target.paths().len(), of.len);
        let count = |needs| match has {
            _ if has == needs => Ok(()),
            _ => Err(TableError::PathCount { segment, has, needs }),
        };
        match &of.target {
            Target::Switch { map, .. } => {
                let geometry = map.geometry();
                if geometry.len_sectors() != len {
                    let map = geometry.len_sectors();
                    return Err(TableError::MapLength { segment, map, len });
                }
                count(geometry.num_paths() as usize)
            }
            Target::Striped { chunk, .. } => {
                let chunk = *chunk;
                let row = chunk.checked_mul(has as u64).filter(|row| *row > 0);
                if row.is_none_or(|row| !len.is_multiple_of(row)) {
                    return Err(TableError::Chunk { segment, chunk, len, stripes: has });
                }
                Ok(())
            }
            Target::Multipath { groups, paths } => {
                if self.segments.len() > 1 {
                    return Err(TableError::NotAlone { segment });
                }
                let is_bad = |to: &To| !matches!(to.below, Below::Leaf(_)) || to.offset > 0;
                if let Some(path) = paths.iter().position(is_bad) {
                    return Err(TableError::MultipathPath { segment, path });
                }
                count(groups.paths().len())
            }
            Target::Linear(_) | Target::Error | Target::Zero => Ok(()),
        }
    }

    /// Checks that the destinations of a segment suit it.
    fn check_paths(&self, segment: usize, of: &Segment) -> Result<(), TableError> {
        let paths = of.target.paths();
        let len = match of.target {
            Target::Striped { .. } => of.len / paths.len().max(1) as u64,
            _ => of.len,
        };
        for (path, &To { below, offset }) in paths.iter().enumerate() {
            let unknown = TableError::Unknown { segment, path, below };
            let properties = self.properties(below).ok_or(unknown)?;
            let block = properties.logical_block;
            let area = check_area(offset, len, properties.sectors, block);
            let checked = area.and_then(|()| match &of.target {
                Target::Switch { map, .. } => {
                    let geometry = map.geometry();
                    check_region_size(geometry.region_size(), geometry.nr_regions(), block)
                }
                _ => Ok(()),
            });
            checked.map_err(|error| TableError::Path { segment, path, below, error })?;
        }
        Ok(())
    }

    /// Builds the table without checks. For the simulation, whose tables also become invalid when a
    /// device below gets a shorter table.
    #[cfg(any(test, feature = "internals"))]
    #[doc(hidden)]
    pub fn build_unchecked(self) -> Table {
        self.build_checked()
    }

    fn build_checked(self) -> Table {
        let properties: Vec<Properties> = self
            .segments
            .iter()
            .flat_map(|s| s.target.paths())
            .filter_map(|to| self.properties(to.below))
            .collect();
        let path_count: u32 = self.segments.iter().map(|s| s.target.paths().len() as u32).sum();
        let mut leaf_paths = vec![0; self.leaves.len()];
        let mut device_paths = vec![0; self.devices.len()];
        let paths = self.segments.iter().flat_map(|s| s.target.paths()).map(|to| to.below);
        // In reverse, so that the first path to a destination is written last.
        for (path, below) in paths.enumerate().collect::<Vec<_>>().into_iter().rev() {
            let slot = match below {
                Below::Leaf(leaf) => leaf_paths.get_mut(leaf as usize),
                Below::Device(id) => {
                    let index = self.devices.iter().position(|d| d.device().id() == id);
                    index.and_then(|index| device_paths.get_mut(index))
                }
            };
            if let Some(slot) = slot {
                *slot = path as u32;
            }
        }
        let largest = |blocks: &mut dyn Iterator<Item = u32>| {
            blocks.max().unwrap_or(512).max(self.least_block)
        };
        Table {
            leaf_paths: leaf_paths.into(),
            device_paths: device_paths.into(),
            logical_block: largest(&mut properties.iter().map(|l| l.logical_block)),
            physical_block: largest(&mut properties.iter().map(|l| l.physical_block)),
            rotational: properties.iter().any(|l| l.rotational),
            read_only: self.read_only,
            len: self.segments.last().map_or(0, |s| s.start + s.len),
            segments: self.segments.into(),
            leaves: self.leaves.into(),
            devices: self.devices.into(),
            path_count,
            counters: Box::default(),
        }
    }
}

/// Storage for a map, zeroed without touching it, so that a device of a billion regions appears at
/// once. `None` if there is not enough address space.
pub fn region_storage(geometry: &Geometry) -> Option<Slots> {
    Slots::in_memory(geometry.nr_slots())
}

/// A live table, and the leaves that earlier tables left behind with unflushed writes.
pub struct Live {
    /// The table that requests are routed by.
    pub table: Arc<Table>,
    /// Leaves of earlier tables that a flush must still reach.
    pub departed: Box<[Arc<Leaf>]>,
}
