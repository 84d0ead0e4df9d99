//! A builder for multipath targets, as an alternative to the words of a table line.

use blkswitch_core::multipath::params::MAX_PATHS_PER_GROUP;
use blkswitch_core::multipath::selector::PathArgs;
use blkswitch_core::multipath::{Features, Group, Multipath, Path, Selector};

use crate::device::table::{Below, Target, To};

/// Highest relative throughput of a path.
const MAX_THROUGHPUT: u32 = 100;

/// Why a multipath cannot be built. Groups and paths are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MultipathError {
    /// A path came before the first group.
    #[error("path {path} comes before the first group: call MultipathBuilder::group first")]
    NoGroup {
        /// The number of the path.
        path: usize,
    },
    /// A group without paths.
    #[error("group {group} has no paths")]
    Empty {
        /// The number of the group.
        group: usize,
    },
    /// A throughput out of range.
    #[error("path {path}: a throughput of {throughput} is not in 0..=100")]
    Throughput {
        /// The number of the path.
        path: usize,
        /// The throughput that was given.
        throughput: u32,
    },
    /// More groups or paths than a multipath may have.
    #[error("there are {groups} groups and {paths} paths: at most 1024 groups of 1024 paths each")]
    TooMany {
        /// Number of groups that were added.
        groups: usize,
        /// Number of paths of all groups.
        paths: usize,
    },
}

/// Builds the target of a multipath device. Groups are added in the order of preference, each with
/// its paths. All paths lead to one volume.
///
/// ```
/// use blkswitch_io::core::multipath::Selector;
/// use blkswitch_io::multipath::MultipathBuilder;
/// use blkswitch_io::{Leaf, LeafOptions, Pool, PoolOptions, TableBuilder};
///
/// let pool = Pool::start(PoolOptions { queues: 1, ..PoolOptions::default() })?;
/// let options = LeafOptions::new(pool.queues());
/// let mut table = TableBuilder::new(false);
/// let mut paths = MultipathBuilder::new().queue_if_no_path(true);
/// // Two paths that share the load, and one for when both are down.
/// for (selector, numbers) in [(Selector::QueueLength, 0..2), (Selector::RoundRobin, 2..3)] {
///     paths = paths.group(selector);
///     for number in numbers {
///         let address = format!("sim:1M,name=volume,path={number}").parse()?;
///         paths = paths.path(table.leaf(Leaf::open(&address, &options)?));
///     }
/// }
/// table.push(2048, paths.build()?);
/// let device = pool.registry().create("volume", "", None)?;
/// device.load(table.build()?)?;
/// device.resume()?;
/// let table = device.live().ok_or("the table is live")?;
/// let (groups, _) = table.multipath().ok_or("it is a multipath")?;
/// assert_eq!((groups.num_groups(), groups.live_paths()), (2, 3));
/// # pool.stop();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct MultipathBuilder {
    features: Features,
    initial_group: u32,
    /// The groups, each with its number of paths.
    groups: Vec<(Selector, u32)>,
    paths: Vec<Path>,
    to: Vec<To>,
    /// The first error; `build` returns it.
    error: Option<MultipathError>,
}

impl MultipathBuilder {
    /// A multipath without groups. Requests fail while no path is up.
    pub fn new() -> MultipathBuilder {
        MultipathBuilder::default()
    }

    /// Sets whether requests are queued while no path is up.
    pub fn queue_if_no_path(mut self, queues: bool) -> MultipathBuilder {
        self.features.queue_if_no_path = queues;
        self
    }

    /// Sets the group to begin with, counted from 0. The default is the first.
    pub fn initial_group(mut self, group: u32) -> MultipathBuilder {
        self.initial_group = group.saturating_add(1);
        self
    }

    /// Adds a group after the others, which are preferred to it. `selector` spreads requests over
    /// its paths.
    pub fn group(mut self, selector: Selector) -> MultipathBuilder {
        self.groups.push((selector, 0));
        self
    }

    /// Adds a path to the last group: a leaf that was added to the table.
    pub fn path(self, leaf: Below) -> MultipathBuilder {
        self.path_with(leaf, PathArgs::default())
    }

    /// As [`MultipathBuilder::path`], with the arguments of the path for its selector.
    pub fn path_with(mut self, leaf: Below, args: PathArgs) -> MultipathBuilder {
        let (path, group) = (self.paths.len(), self.groups.len());
        let throughput = args.relative_throughput;
        let mut wrong = (throughput > MAX_THROUGHPUT)
            .then_some(MultipathError::Throughput { path, throughput });
        match self.groups.last_mut() {
            Some((_, place)) => {
                self.paths.push(Path::new(group as u32 - 1, *place, args));
                self.to.push(To { below: leaf, offset: 0 });
                *place += 1;
            }
            None => wrong = Some(MultipathError::NoGroup { path }),
        }
        self.error = self.error.or(wrong);
        self
    }

    /// Builds the target. It must be the only segment of its table.
    ///
    /// # Errors
    /// A path came before the first group, a group has no path, a path's throughput is above 100,
    /// or there are too many groups or paths.
    pub fn build(self) -> Result<Target, MultipathError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if let Some(group) = self.groups.iter().position(|(_, paths)| *paths == 0) {
            return Err(MultipathError::Empty { group });
        }
        let too_many =
            MultipathError::TooMany { groups: self.groups.len(), paths: self.paths.len() };
        if self.groups.iter().any(|(_, paths)| *paths > MAX_PATHS_PER_GROUP) {
            return Err(too_many);
        }
        let mut first = 0;
        let groups = self.groups.iter().map(|(selector, paths)| {
            first += paths;
            Group::new(*selector, first - paths, *paths)
        });
        let (groups, paths) = (groups.collect(), self.paths.into());
        let groups = Multipath::new(self.features, self.initial_group, groups, paths);
        Ok(Target::Multipath { groups: groups.ok_or(too_many)?, paths: self.to.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: Below = Below::Leaf(0);

    #[test]
    fn what_is_wrong_is_said() {
        let builder = MultipathBuilder::new;
        let group = || builder().group(Selector::RoundRobin);
        let fast = PathArgs { relative_throughput: 101, ..PathArgs::default() };
        let mut large = group();
        for _ in 0..=MAX_PATHS_PER_GROUP {
            large = large.path(LEAF);
        }
        for (builder, error) in [
            (builder().path(LEAF).group(Selector::RoundRobin), MultipathError::NoGroup { path: 0 }),
            (group().path(LEAF).group(Selector::QueueLength), MultipathError::Empty { group: 1 }),
            (
                group().path(LEAF).path_with(LEAF, fast),
                MultipathError::Throughput { path: 1, throughput: 101 },
            ),
            (large, MultipathError::TooMany { groups: 1, paths: 1025 }),
        ] {
            assert_eq!(builder.build().err(), Some(error));
        }
    }

    /// The kernel has other words for these, but the result must be the same.
    #[test]
    fn it_is_what_the_words_of_a_line_are() {
        let target = MultipathBuilder::new()
            .queue_if_no_path(true)
            .initial_group(1)
            .group(Selector::QueueLength)
            .path(LEAF)
            .path(Below::Leaf(1))
            .group(Selector::ServiceTime)
            .path_with(Below::Leaf(2), PathArgs { relative_throughput: 9, ..PathArgs::default() })
            .build()
            .unwrap();
        let Target::Multipath { groups, paths } = target else { panic!("not a multipath") };
        let line = groups.table(|path, f| write!(f, "p{path}")).to_string();
        assert_eq!(
            line.trim_end(),
            "1 queue_if_no_path 0 2 2 queue-length 0 2 1 p0 1 p1 1 service-time 0 1 2 p2 1 9"
        );
        assert_eq!(paths[2], To { below: Below::Leaf(2), offset: 0 });
    }
}
