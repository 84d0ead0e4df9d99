//! Path selectors spread requests over the paths of a group that are up.
//!
//! Each selector has a file: its arguments, its arguments per path, its order of paths, and its
//! counters. All but `io-affinity` only say which of two paths is better; [`turn`] chooses among
//! equal ones.
//!
//! | selector | prefers | with several queues |
//! |---|---|---|
//! | `round-robin` | the path whose turn it is | a path is at most one turn per queue ahead of another |
//! | `queue-length` | fewest requests in flight | a choice may miss simultaneous ones |
//! | `service-time` | least (bytes in flight + the request's) / throughput | a choice may miss simultaneous ones |
//! | `historical-service-time` | least average service time x (requests in flight + 1) | a choice may miss simultaneous ones |
//! | `io-affinity` | the path of the request's CPU | exact |
//! | [`CustomSelector`] | what the program that uses this crate decides | as it decides |
//!
//! Contract: choosing allocates nothing, takes no lock, and is bounded in time: it scans the
//! group's paths at most [`turn::MAX_SCANS`] times.

mod custom;
pub mod historical;
pub mod io_affinity;
mod queue_length;
mod round_robin;
mod service_time;
pub mod turn;

use core::fmt;

use super::super::args::parse_u32;
use super::group::Group;
use super::path::Path;
pub use custom::{Custom, CustomSelector};
use historical::Weights;
use io_affinity::CpuMask;

/// The facts about a request on which selectors base their choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Its length in bytes.
    pub bytes: u64,
    /// The time in ns, of a monotonic clock.
    pub now_ns: u64,
    /// The CPU or queue that it came from, for `io-affinity`.
    pub cpu: u16,
}

/// A selector with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selector {
    /// Each path in turn.
    RoundRobin,
    /// Fewest requests in flight.
    QueueLength,
    /// Fewest bytes in flight for its throughput.
    ServiceTime,
    /// Shortest expected service time, from measurements.
    HistoricalServiceTime(Weights),
    /// The path that lists the request's CPU.
    IoAffinity,
    /// A selector of the program that uses this crate; from [`Selector::custom`].
    Custom(Custom),
}

/// A path's arguments. Those that its selector does not use have their defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathArgs {
    /// 0 or 1. The kernel no longer sends several requests in a row down a path.
    pub repeat_count: u32,
    /// Throughput relative to the other paths, 0..=100. 0 means: use it only if no other path is up
    /// (`service-time`).
    pub relative_throughput: u32,
    /// The CPUs that use this path (`io-affinity`).
    pub cpus: CpuMask,
}

impl Default for PathArgs {
    fn default() -> Self {
        Self { repeat_count: 1, relative_throughput: 1, cpus: CpuMask::NONE }
    }
}

/// Why a path's arguments were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathArgsError {
    /// There are too many words, or too few.
    Count,
    /// The repeat count is not a number.
    RepeatCount,
    /// The throughput is not in 0..=100.
    Throughput,
    /// The word is not a mask of CPUs.
    CpuMask,
}

impl core::error::Error for PathArgsError {}

impl fmt::Display for PathArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Count => "incorrect number of arguments",
            Self::RepeatCount => "invalid repeat count",
            Self::Throughput => "invalid relative_throughput value",
            Self::CpuMask => "invalid cpumask",
        })
    }
}

impl PathArgsError {
    /// Position of the wrong word, counted from the path's device.
    pub(super) const fn word(self) -> usize {
        match self {
            Self::Count => 0,
            Self::RepeatCount | Self::CpuMask => 1,
            Self::Throughput => 2,
        }
    }
}

impl Selector {
    /// A selector of one's own. The words of a table cannot name it.
    #[must_use]
    pub const fn custom(selector: &'static dyn CustomSelector) -> Self {
        Self::Custom(Custom::new(selector))
    }

    /// Parses a selector's name and its arguments.
    ///
    /// # Errors
    /// [`SelectorError::Name`] for an unknown name, [`SelectorError::Arguments`] for arguments that
    /// the selector does not take.
    pub fn parse(name: &[u8], args: &[&[u8]]) -> Result<Self, SelectorError> {
        // Like the kernel's, selectors without arguments ignore extra words.
        match name {
            b"round-robin" => Ok(Self::RoundRobin),
            b"queue-length" => Ok(Self::QueueLength),
            b"service-time" => Ok(Self::ServiceTime),
            b"historical-service-time" => Weights::parse(args)
                .map(Self::HistoricalServiceTime)
                .ok_or(SelectorError::Arguments),
            b"io-affinity" => Ok(Self::IoAffinity),
            _ => Err(SelectorError::Name),
        }
    }

    /// The word for it in a table.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::QueueLength => "queue-length",
            Self::ServiceTime => "service-time",
            Self::HistoricalServiceTime(_) => "historical-service-time",
            Self::IoAffinity => "io-affinity",
            Self::Custom(custom) => custom.name(),
        }
    }

    /// Reads a path's arguments. Also returns `true` if the repeat count was above 1 and is now 1;
    /// the caller then logs the warning [`RepeatCountDeprecated`].
    ///
    /// # Errors
    /// The first wrong word.
    pub fn path_args(&self, words: &[&[u8]]) -> Result<(PathArgs, bool), PathArgsError> {
        let mut args = PathArgs::default();
        let repeat_word = match (self, words) {
            (Self::IoAffinity, [mask]) => {
                args.cpus = CpuMask::parse(mask).ok_or(PathArgsError::CpuMask)?;
                None
            }
            (Self::ServiceTime, [repeat, _]) => Some(repeat),
            (Self::IoAffinity, _) | (_, [_, _, ..]) => return Err(PathArgsError::Count),
            (_, words) => words.first(),
        };
        let mut deprecated = false;
        if let Some(word) = repeat_word {
            let count = parse_u32(word).ok_or(PathArgsError::RepeatCount)?;
            deprecated = count > 1;
            args.repeat_count = count.min(1);
        }
        if let (Self::ServiceTime, [_, word]) = (self, words) {
            args.relative_throughput =
                service_time::throughput(word).ok_or(PathArgsError::Throughput)?;
        }
        Ok((args, deprecated))
    }

    /// Picks the path for a request: its index in `paths`, which are all paths of `group`.
    #[inline]
    pub(super) fn pick(&self, group: &Group, paths: &[Path], ask: &Ask) -> Option<u32> {
        match self {
            Self::RoundRobin => turn::pick(paths, round_robin::better),
            Self::QueueLength => turn::pick(paths, queue_length::better),
            Self::ServiceTime => turn::pick(paths, |a, b| service_time::better(a, b, ask.bytes)),
            Self::HistoricalServiceTime(weights) => weights.pick(paths, ask.now_ns),
            Self::IoAffinity => io_affinity::pick(group, paths, ask.cpu),
            Self::Custom(custom) => custom.pick(paths, ask),
        }
    }

    /// Counts a request that goes down the path.
    #[inline]
    pub(super) fn started(&self, path: &Path, bytes: u64) {
        match self {
            Self::RoundRobin | Self::IoAffinity => {}
            Self::QueueLength | Self::HistoricalServiceTime(_) => path.count_request(),
            Self::ServiceTime => path.count_bytes(bytes),
            Self::Custom(_) => {
                path.count_request();
                path.count_bytes(bytes);
            }
        }
    }

    /// Counts a request that was answered or given up.
    #[inline]
    pub(super) fn ended(&self, path: &Path, bytes: u64) {
        match self {
            Self::RoundRobin | Self::IoAffinity => {}
            Self::QueueLength | Self::HistoricalServiceTime(_) => path.uncount_request(),
            Self::ServiceTime => path.uncount_bytes(bytes),
            Self::Custom(_) => {
                path.uncount_request();
                path.uncount_bytes(bytes);
            }
        }
    }

    /// Measures an answer of the path.
    #[inline]
    pub(super) fn answered(&self, path: &Path, started_ns: u64, now_ns: u64) {
        match self {
            Self::HistoricalServiceTime(weights) => weights.measured(path, started_ns, now_ns),
            Self::Custom(custom) => custom.answered(path, started_ns, now_ns),
            _ => {}
        }
    }

    /// Gives a path that comes back a turn among the others.
    pub(super) fn line_up(&self, path: &Path, paths: &[Path]) {
        match self {
            Self::RoundRobin => turn::put_first(path, paths),
            _ => turn::put_last(path, paths),
        }
    }

    /// Number of words of [`Selector::write_path_status`].
    #[must_use]
    pub const fn info_args(&self) -> u32 {
        match self {
            Self::RoundRobin | Self::Custom(_) => 0,
            Self::QueueLength | Self::IoAffinity => 1,
            Self::ServiceTime => 2,
            Self::HistoricalServiceTime(_) => 3,
        }
    }

    /// Number of words of [`Selector::write_path_table`].
    #[must_use]
    pub const fn table_args(&self) -> u32 {
        match self {
            Self::ServiceTime => 2,
            _ => 1,
        }
    }

    /// Writes the selector's own arguments with their count, for table and status.
    pub(super) fn write_args(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HistoricalServiceTime(weights) => {
                write!(f, "2 {} {} ", weights.base_weight, weights.threshold_multiplier)
            }
            _ => f.write_str("0 "),
        }
    }

    pub(super) fn write_path_table(&self, f: &mut fmt::Formatter<'_>, path: &Path) -> fmt::Result {
        let args = path.args();
        match self {
            Self::IoAffinity => write!(f, "{} ", args.cpus),
            Self::ServiceTime => write!(f, "{} {} ", args.repeat_count, args.relative_throughput),
            _ => write!(f, "{} ", args.repeat_count),
        }
    }

    pub(super) fn write_path_status(
        &self,
        f: &mut fmt::Formatter<'_>,
        group: &Group,
        path: &Path,
    ) -> fmt::Result {
        match self {
            Self::RoundRobin | Self::Custom(_) => Ok(()),
            Self::QueueLength => write!(f, "{} ", path.in_flight()),
            Self::ServiceTime => {
                write!(f, "{} {} ", path.bytes_in_flight(), path.args().relative_throughput)
            }
            Self::HistoricalServiceTime(_) => {
                write!(f, "{} {} {} ", path.average_ns(), path.in_flight(), path.stale_after_ns())
            }
            Self::IoAffinity => write!(f, "{} ", group.misses()),
        }
    }
}

/// Why [`Selector::parse`] refused a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SelectorError {
    /// No selector has this name.
    Name,
    /// Its arguments are wrong.
    Arguments,
}

impl core::error::Error for SelectorError {}

impl fmt::Display for SelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "unknown path selector type",
            Self::Arguments => "path selector constructor failed",
        })
    }
}

/// The kernel's warning about a repeat count above 1. `Display` is its line without the prefix
/// `device-mapper: `.
#[derive(Clone, Copy, Debug)]
pub struct RepeatCountDeprecated<'a>(pub &'a Selector);

impl fmt::Display for RepeatCountDeprecated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "multipath {}: repeat_count > 1 is deprecated, using 1 instead", self.0.name())
    }
}
