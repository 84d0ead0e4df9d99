//! A table as the pipeline runs it: segments, what they send requests to, and the leaves all of
//! them use.
//!
//! Contract: a [`Table`] is built and checked by control ([`TableBuilder::build`], the one way to
//! make one), and then never changed, but for the region slots of its switch maps (atomics, written
//! under the device's message lock). Building opens nothing; dropping the last reference closes the
//! leaves and releases the devices below.
//!
//! All places and lengths are in sectors of 512 bytes, unless a name says bytes.

use std::sync::Arc;

use blkswitch_core::error::Error;
use blkswitch_core::multipath::{Group, Multipath, Path};
use blkswitch_core::switch::geometry::Geometry;
use blkswitch_core::switch::regions::Map;
use blkswitch_core::table::{Layout, check_area, check_region_size};

use crate::device::{Device, OpenDevice};
use crate::engine::Limits;
use crate::leaf::Leaf;
use crate::queues::Queues;
use crate::stats::{Counters, Totals};
use crate::sys::slots::Slots;

/// How many devices may stand on one another. Bounds the work per request and the size of a part.
pub const MAX_DEPTH: usize = 8;

/// The packed map of a switch segment in this process.
pub type RegionMap = Map<Slots>;

/// The priority groups of a multipath device in this process.
pub type PathGroups = Multipath<Box<[Group]>, Box<[Path]>>;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// A leaf, by its index in the table.
    Leaf(u32),
    /// Another device, by its id.
    Device(u32),
}

/// A path: what it leads to and the sector there that corresponds to the segment's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct To {
    /// What it leads to.
    pub below: Below,
    /// Offset there, in sectors.
    pub offset: u64,
}

/// What a segment does with its requests. (A byte of its own: as [`crate::request::Op`].)
#[repr(u8)]
pub enum Target {
    /// Each region to the path its map names.
    Switch {
        /// The map.
        map: RegionMap,
        /// The paths, in the order of the table line.
        paths: Box<[To]>,
    },
    /// All to one place.
    Linear(To),
    /// Chunks in turn.
    Striped {
        /// Sectors per chunk.
        chunk: u64,
        /// The stripes in order.
        stripes: Box<[To]>,
    },
    /// All to one of several paths to one volume. The only segment of its table; its paths are
    /// leaves, each from its first sector.
    Multipath {
        /// Which of them, and what their answers mean.
        groups: PathGroups,
        /// The paths, in the order of the table line.
        paths: Box<[To]>,
    },
    /// Every request fails.
    Error,
    /// Reads give zeroes, writes vanish.
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

    /// The places it sends to, in the order of the table line.
    pub fn paths(&self) -> &[To] {
        match self {
            Target::Switch { paths, .. } | Target::Multipath { paths, .. } => paths,
            Target::Linear(to) => std::slice::from_ref(to),
            Target::Striped { stripes, .. } => stripes,
            Target::Error | Target::Zero => &[],
        }
    }
}

/// A contiguous piece of a device.
pub struct Segment {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub len: u64,
    /// What it does.
    pub target: Target,
    /// The number of its first path among all paths of the table; set by the builder.
    pub first_path: u32,
    /// The words that its paths were named by, in their order; empty for a device below, which may
    /// be renamed. One leaf may have several names, and another medium may have one of them later.
    pub words: Box<[Box<str>]>,
}

/// See the module's text.
pub struct Table {
    segments: Box<[Segment]>,
    /// Sectors of all of them.
    len: u64,
    leaves: Box<[Arc<Leaf>]>,
    devices: Box<[OpenDevice]>,
    read_only: bool,
    logical_block: u32,
    physical_block: u32,
    rotational: bool,
    path_count: u32,
    /// The first path that leads to each leaf, and to each device: where a flush of it is counted.
    leaf_paths: Box<[u32]>,
    device_paths: Box<[u32]>,
    /// Per queue, then per path; none before it is known who serves the table.
    counters: Box<[Counters]>,
}

/// Why a table cannot be built. Segments and paths are counted from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// A segment's place, or all of them together: none, no sectors, or too many.
    #[error("segment {segment}: {}", .error.explain(None))]
    Extent {
        /// The segment; 0 if there is none.
        segment: usize,
        /// What is wrong with it.
        error: Error,
    },
    /// What a path leads to is too small for the segment, or its blocks do not fit.
    #[error("segment {segment}, path {path}: {}", .error.explain(None))]
    Path {
        /// The segment.
        segment: usize,
        /// The path within the segment.
        path: usize,
        /// What it leads to.
        below: Below,
        /// What is wrong with it.
        error: Error,
    },
    /// A path leads to a leaf or device that was not added to the builder.
    #[error(
        "segment {segment}, path {path}: {below:?} is not in this table: add it with \
         TableBuilder::leaf or TableBuilder::device"
    )]
    Unknown {
        /// The segment.
        segment: usize,
        /// The path within the segment.
        path: usize,
        /// What it leads to.
        below: Below,
    },
    /// A map or a multipath is made for another number of paths than the segment has.
    #[error("segment {segment}: there are {has} paths, and {needs} are needed")]
    PathCount {
        /// The segment.
        segment: usize,
        /// Paths of the segment.
        has: usize,
        /// Paths of its map or its groups.
        needs: usize,
    },
    /// A map is made for a target of another length.
    #[error("segment {segment}: its map is for {map} sectors, and its length is {len} sectors")]
    MapLength {
        /// The segment.
        segment: usize,
        /// Sectors of the map's geometry.
        map: u64,
        /// Sectors of the segment.
        len: u64,
    },
    /// Chunks of stripes that do not fill the segment.
    #[error(
        "segment {segment}: a chunk of {chunk} sectors must be at least 1, and {len} sectors a \
         multiple of the chunk times the {stripes} stripes"
    )]
    Chunk {
        /// The segment.
        segment: usize,
        /// Sectors in a chunk.
        chunk: u64,
        /// Sectors of the segment.
        len: u64,
        /// Stripes.
        stripes: usize,
    },
    /// A multipath beside other segments.
    #[error("segment {segment}: a multipath is the only segment of its table: put a device on top")]
    NotAlone {
        /// The multipath's segment.
        segment: usize,
    },
    /// A path of a multipath that is no leaf, or does not begin with the leaf.
    #[error("segment {segment}, path {path}: a multipath's path is a leaf from its sector 0 on")]
    MultipathPath {
        /// The segment.
        segment: usize,
        /// The path within the segment.
        path: usize,
    },
}

impl Table {
    /// Segments in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment that holds `sector`.
    pub fn segment_at(&self, sector: u64) -> Option<&Segment> {
        let index = match self.segments.len() {
            0 => return None,
            1 => 0,
            _ => self.segments.partition_point(|s| s.start <= sector).checked_sub(1)?,
        };
        self.segments.get(index).filter(|s| sector - s.start < s.len)
    }

    /// The groups and paths of a multipath device.
    pub fn multipath(&self) -> Option<(&PathGroups, &[To])> {
        match &self.segments.first()?.target {
            Target::Multipath { groups, paths } => Some((groups, paths)),
            _ => None,
        }
    }

    /// The leaf of a path.
    pub fn leaf_of(&self, to: To) -> Option<&Arc<Leaf>> {
        match to.below {
            Below::Leaf(leaf) => self.leaves.get(leaf as usize),
            Below::Device(_) => None,
        }
    }

    /// The name of a path, counted over all segments: that of its leaf or device.
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

    /// Length in sectors.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no segments.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// All leaves that it uses itself (not those of devices below).
    pub fn leaves(&self) -> &[Arc<Leaf>] {
        &self.leaves
    }

    /// Devices directly below.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.devices.iter().map(OpenDevice::device)
    }

    /// Whether requests whose data is in pages ([`crate::sys::pages`]) cost less with the leaves below:
    /// all take it so, and one goes past the page cache. (To copy between the page cache and pages
    /// costs no less than to copy through memory.)
    pub fn gains_by_pages(&self) -> bool {
        let (mut all, mut any) = (true, false);
        self.each_leaf(&mut |leaf| {
            all &= leaf.engine().takes_pages();
            any |= leaf.engine().gains_by_pages();
        });
        all && any
    }

    /// The leaves below, at any depth, go past the page cache where nobody has asked for another
    /// mode and it serves ([`crate::engine::mode`]).
    pub fn prefer_direct(&self) {
        self.each_leaf(&mut |leaf| {
            if let Err(why) = leaf.prefer_direct() {
                tracing::info!(leaf = leaf.name(), %why, "stays in the page cache below a disk");
            }
        });
    }

    /// The names of the leaves below, at any depth, that keep what is written in the page cache.
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

    /// Whether something below can discard; what has no leaf discards by doing nothing.
    pub fn can_discard(&self) -> bool {
        let is_simple = |of: &Segment| matches!(of.target, Target::Error | Target::Zero);
        let mut can = self.segments().iter().any(is_simple);
        self.each_leaf(&mut |leaf| can |= leaf.can_discard());
        can
    }

    /// Writes are refused.
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

    /// Something below is rotational.
    pub fn rotational(&self) -> bool {
        self.rotational
    }

    /// Paths of all segments together.
    pub fn path_count(&self) -> u32 {
        self.path_count
    }

    /// Leaves with the first path that leads to each.
    pub(crate) fn leaves_with_paths(&self) -> impl Iterator<Item = (&Arc<Leaf>, u32)> {
        self.leaves.iter().zip(self.leaf_paths.iter().copied())
    }

    /// Ids of the devices below with the first path that leads to each.
    pub(crate) fn devices_with_paths(&self) -> impl Iterator<Item = (u32, u32)> {
        self.devices.iter().map(|d| d.device().id()).zip(self.device_paths.iter().copied())
    }

    /// Makes the table ready to be served by these queues. The name of what is of others is given
    /// back: a leaf, whose account of writes these queues have no part in, or a device below, whose
    /// number would be that of another device here.
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

    /// As a device's load does it, for pipelines that a test drives itself.
    #[cfg(feature = "internals")]
    #[doc(hidden)]
    pub fn served_by(mut self, queues: Queues) -> Result<Table, String> {
        self.serve(queues).map(|()| self)
    }

    /// The counters of a path as `queue` keeps them.
    pub(crate) fn counters(&self, queue: usize, path: u32) -> Option<&Counters> {
        self.counters.get(queue * self.path_count as usize + path as usize)
    }

    /// What was counted for a path (numbered over all segments) since the table was loaded.
    pub fn path_totals(&self, path: u32) -> Totals {
        let mut totals = Totals::default();
        let per_queue = self.path_count.max(1) as usize;
        self.counters.iter().skip(path as usize).step_by(per_queue).for_each(|c| totals.add(c));
        totals
    }

    /// Limits of what a path leads to: a leaf's own, or those of the device's live table.
    pub fn limits_below(&self, below: Below) -> Option<Limits> {
        match below {
            Below::Leaf(leaf) => self.leaves.get(leaf as usize).map(|leaf| leaf.limits().clone()),
            Below::Device(id) => self.devices().find(|d| d.id() == id).map(|d| d.limits()),
        }
    }
}

/// Collects what a table uses, then its segments.
#[derive(Default)]
pub struct TableBuilder {
    segments: Vec<Segment>,
    leaves: Vec<Arc<Leaf>>,
    devices: Vec<OpenDevice>,
    read_only: bool,
    least_block: u32,
}

impl TableBuilder {
    /// An empty table.
    pub fn new(read_only: bool) -> TableBuilder {
        TableBuilder { read_only, ..TableBuilder::default() }
    }

    /// Announces logical blocks of at least this many bytes: the table stands in for another.
    pub fn least_block(mut self, bytes: u32) -> TableBuilder {
        self.least_block = bytes;
        self
    }

    /// Uses a leaf; the same leaf twice is one.
    pub fn leaf(&mut self, leaf: Arc<Leaf>) -> Below {
        let known = self.leaves.iter().position(|l| Arc::ptr_eq(l, &leaf));
        let index = known.unwrap_or_else(|| {
            self.leaves.push(leaf);
            self.leaves.len() - 1
        });
        Below::Leaf(index as u32)
    }

    /// The leaf with this key, if the table uses it already.
    pub fn leaf_by_key(&self, key: &str) -> Option<Below> {
        self.leaves.iter().position(|l| l.key() == key).map(|index| Below::Leaf(index as u32))
    }

    /// Uses a device below; it counts as open until the table is dropped. Nothing if it is being
    /// removed.
    pub fn device(&mut self, device: &Arc<Device>) -> Option<Below> {
        if !self.devices.iter().any(|d| Arc::ptr_eq(d.device(), device)) {
            self.devices.push(OpenDevice::new(device)?);
        }
        Some(Below::Device(device.id()))
    }

    /// The leaf or the device (by its live table) that a path leads to.
    pub fn limits(&self, below: Below) -> Option<Limits> {
        match below {
            Below::Leaf(leaf) => self.leaves.get(leaf as usize).map(|leaf| leaf.limits().clone()),
            Below::Device(id) => {
                self.devices.iter().find(|d| d.device().id() == id).map(|d| d.device().limits())
            }
        }
    }

    /// Adds a segment of `len` sectors behind the last. Its paths are named as their leaves are.
    pub fn push(&mut self, len: u64, target: Target) {
        let name = |to: &To| match to.below {
            Below::Leaf(leaf) => self.leaves.get(leaf as usize).map_or("", |leaf| leaf.name()),
            Below::Device(_) => "",
        };
        let words = target.paths().iter().map(|to| name(to).into()).collect();
        self.push_named(len, target, words);
    }

    /// The same, with the words that its paths were named by ([`Segment::words`]).
    pub fn push_named(&mut self, len: u64, target: Target, words: Box<[Box<str>]>) {
        let (start, first_path) = self.segments.last().map_or((0, 0), |last| {
            let paths = last.target.paths().len() as u32;
            // Lengths that are too large are refused by build().
            (last.start.saturating_add(last.len), last.first_path.saturating_add(paths))
        });
        self.segments.push(Segment { start, len, target, first_path, words });
    }

    /// The table, if every request to it can be routed: the segments fit a device, and all that
    /// their paths lead to is there, large enough, and of suitable blocks.
    ///
    /// # Errors
    /// The first of the segments' faults, in their order.
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

    /// What a segment says by itself.
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

    /// Whether what a segment's paths lead to suits it.
    fn check_paths(&self, segment: usize, of: &Segment) -> Result<(), TableError> {
        let paths = of.target.paths();
        let len = match of.target {
            Target::Striped { .. } => of.len / paths.len().max(1) as u64,
            _ => of.len,
        };
        for (path, &To { below, offset }) in paths.iter().enumerate() {
            let unknown = TableError::Unknown { segment, path, below };
            let limits = self.limits(below).ok_or(unknown)?;
            let block = limits.logical_block;
            let area = check_area(offset, len, limits.sectors, block);
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

    /// The table, whatever it is: for the simulation, whose tables are also what a table becomes
    /// when a device below it is given a shorter one.
    #[cfg(any(test, feature = "internals"))]
    #[doc(hidden)]
    pub fn build_unchecked(self) -> Table {
        self.build_checked()
    }

    fn build_checked(self) -> Table {
        let limits: Vec<Limits> = self
            .segments
            .iter()
            .flat_map(|s| s.target.paths())
            .filter_map(|to| self.limits(to.below))
            .collect();
        let path_count: u32 = self.segments.iter().map(|s| s.target.paths().len() as u32).sum();
        let mut leaf_paths = vec![0; self.leaves.len()];
        let mut device_paths = vec![0; self.devices.len()];
        let paths = self.segments.iter().flat_map(|s| s.target.paths()).map(|to| to.below);
        // The last one written is the first path.
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
            logical_block: largest(&mut limits.iter().map(|l| l.logical_block)),
            physical_block: largest(&mut limits.iter().map(|l| l.physical_block)),
            rotational: limits.iter().any(|l| l.rotational),
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

/// Storage for a map, zeroed without being touched: a device of a billion regions appears at once.
/// Nothing when the machine has not that much address space.
pub fn region_storage(geometry: &Geometry) -> Option<Slots> {
    Slots::in_memory(geometry.nr_slots())
}

/// A live table and the leaves that earlier tables left behind with writes no flush has covered.
pub struct Live {
    /// The table.
    pub table: Arc<Table>,
    /// Leaves no longer in the table that a flush must still reach.
    pub departed: Box<[Arc<Leaf>]>,
}
