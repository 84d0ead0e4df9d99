//! Errors of a multipath table line: the kernel's text and errno, and a longer sentence.
//!
//! Contract: as in [`super::super::error`], errors are small and `Copy` and hold no text of the
//! line. The caller, which still has the line, formats them.

use core::fmt;

use super::super::args::Printable;
use super::super::error::Errno;
use super::params::{
    MAX_FEATURE_WORDS, MAX_GROUPS, MAX_HANDLER_WORDS, MAX_PATHS_PER_GROUP, MAX_PG_INIT_DELAY_MSECS,
    MAX_PG_INIT_RETRIES, MAX_SELECTOR_WORDS,
};
use super::selector::io_affinity::MAX_CPUS;
use super::selector::{PathArgsError, Selector};

/// The kinds of errors in a multipath table line. Each kind tells which word is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParamsErrorKind {
    /// The count of feature words is not in 0..=[`super::params::MAX_FEATURE_WORDS`], or fewer
    /// words follow.
    FeatureCount,
    /// The value of `pg_init_retries` is not in 1..=[`super::params::MAX_PG_INIT_RETRIES`].
    PgInitRetries,
    /// The value of `pg_init_delay_msecs` is not in 0..=[`super::params::MAX_PG_INIT_DELAY_MSECS`].
    PgInitDelay,
    /// The value of `queue_mode` is none of `bio`, `rq` and `mq`.
    QueueMode,
    /// An unknown feature, or one without its value.
    Feature,
    /// The count of handler words is not in 0..=[`super::params::MAX_HANDLER_WORDS`], or fewer
    /// words follow.
    HandlerCount,
    /// The count of groups is not in 0..=[`super::params::MAX_GROUPS`].
    GroupCount,
    /// The number of the first group is not a number, or is too large.
    InitialGroupNumber,
    /// The first group is 0 although there are groups, or the other way round.
    InitialGroup,
    /// The line has more or fewer groups than it says.
    GroupMismatch {
        /// Number of groups in the line.
        found: u32,
        /// Number of groups that the line announces.
        expected: u32,
    },
    /// The line ends within a group.
    GroupWords,
    /// The name of a selector is unknown.
    SelectorName,
    /// The count of a selector's words.
    SelectorCount,
    /// A selector's own arguments.
    SelectorArgs,
    /// The count of paths of a group.
    PathCount,
    /// The count of words of each path.
    PathArgCount,
    /// The line ends within a path.
    PathWords,
    /// The caller could not open a path's device.
    Device {
        /// The errno that opening the device gave.
        errno: Errno,
    },
    /// An unknown hardware handler.
    Handler,
    /// A selector refused a path's arguments.
    PathArgs {
        /// The selector that refused them.
        selector: Selector,
        /// The reason that the selector gave.
        error: PathArgsError,
    },
}

/// Why a multipath table line was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamsError {
    /// The kind of error.
    pub kind: ParamsErrorKind,
    /// Index of the wrong word among the target's words. A missing word has the index that it would
    /// have.
    pub at: usize,
}

impl ParamsError {
    /// The errno for the caller, the same as the kernel's.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self.kind {
            ParamsErrorKind::Device { errno } => errno,
            _ => Errno::Einval,
        }
    }

    /// One sentence that quotes the wrong word (`None`: it is missing) and says what is allowed.
    #[must_use]
    pub const fn explain<'a>(&'a self, word: Option<&'a [u8]>) -> ExplainParams<'a> {
        ExplainParams { error: self, word }
    }
}

impl core::error::Error for ParamsError {}

impl fmt::Display for ParamsError {
    /// Writes the kernel's text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ParamsErrorKind::FeatureCount => "invalid number of feature args",
            ParamsErrorKind::PgInitRetries => "pg_init_retries must be between 1 and 50",
            ParamsErrorKind::PgInitDelay => "pg_init_delay_msecs must be between 0 and 60000",
            ParamsErrorKind::QueueMode => "Unknown 'queue_mode' requested",
            ParamsErrorKind::Feature => "Unrecognised multipath feature request",
            ParamsErrorKind::HandlerCount => "invalid number of hardware handler args",
            ParamsErrorKind::GroupCount => "invalid number of priority groups",
            ParamsErrorKind::InitialGroupNumber => "invalid initial priority group number",
            ParamsErrorKind::InitialGroup => "invalid initial priority group",
            ParamsErrorKind::GroupMismatch { .. } => "priority group count mismatch",
            ParamsErrorKind::GroupWords => "not enough priority group arguments",
            ParamsErrorKind::SelectorName => "unknown path selector type",
            ParamsErrorKind::SelectorCount => "invalid number of path selector args",
            ParamsErrorKind::SelectorArgs => "path selector constructor failed",
            ParamsErrorKind::PathCount => "invalid number of paths",
            ParamsErrorKind::PathArgCount => "invalid number of selector args",
            ParamsErrorKind::PathWords => "not enough path parameters",
            ParamsErrorKind::Device { .. } => "error getting device",
            ParamsErrorKind::Handler => "error attaching hardware handler",
            ParamsErrorKind::PathArgs { selector, error } => {
                let what = match error {
                    PathArgsError::Count if selector == Selector::IoAffinity => {
                        "invalid number of arguments"
                    }
                    PathArgsError::Count => "incorrect number of arguments",
                    PathArgsError::RepeatCount => "invalid repeat count",
                    PathArgsError::Throughput => "invalid relative_throughput value",
                    PathArgsError::CpuMask => "invalid cpumask",
                };
                return write!(f, "{} ps: {what}", selector.name());
            }
        })
    }
}

/// A [`ParamsError`] as one sentence for people.
#[derive(Clone, Copy, Debug)]
pub struct ExplainParams<'a> {
    error: &'a ParamsError,
    word: Option<&'a [u8]>,
}

impl ExplainParams<'_> {
    fn must_be(
        &self,
        f: &mut fmt::Formatter<'_>,
        what: &str,
        rule: fmt::Arguments<'_>,
    ) -> fmt::Result {
        match self.word {
            Some(word) => write!(f, "{what} '{}' must be {rule}", Printable(word)),
            None => write!(f, "{what} is missing: it must be {rule}"),
        }
    }

    /// Writes the text about a count of words.
    fn count(&self, f: &mut fmt::Formatter<'_>, what: &str, max: u32) -> fmt::Result {
        self.must_be(
            f,
            what,
            format_args!("a decimal number up to {max}, and as many words must follow it"),
        )
    }

    fn path_args(
        &self,
        f: &mut fmt::Formatter<'_>,
        selector: Selector,
        error: PathArgsError,
    ) -> fmt::Result {
        match error {
            PathArgsError::Count => {
                let allowed = match selector {
                    Selector::ServiceTime => "at most a repeat count and a relative throughput",
                    Selector::IoAffinity => "one mask of CPUs",
                    _ => "at most a repeat count",
                };
                write!(f, "a path of {} takes {allowed}", selector.name())
            }
            PathArgsError::RepeatCount => {
                self.must_be(f, "the repeat count", format_args!("a decimal number"))
            }
            PathArgsError::Throughput => self.must_be(
                f,
                "the relative throughput",
                format_args!("a decimal number from 0 to 100"),
            ),
            PathArgsError::CpuMask => self.must_be(
                f,
                "the mask of CPUs",
                format_args!(
                    "hexadecimal without a prefix, in chunks of at most 8 digits with commas \
                     between them, for CPUs below {MAX_CPUS}"
                ),
            ),
        }
    }

    fn group(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error.kind {
            ParamsErrorKind::GroupWords => f.write_str(
                "the line ends within a group: it begins with a selector and the \
                 count of its words",
            ),
            ParamsErrorKind::SelectorName => self.must_be(
                f,
                "the selector",
                format_args!(
                    "round-robin, queue-length, service-time, historical-service-time or \
                     io-affinity"
                ),
            ),
            ParamsErrorKind::SelectorCount => {
                self.count(f, "the count of the selector's words", MAX_SELECTOR_WORDS)
            }
            ParamsErrorKind::SelectorArgs => f.write_str(
                "historical-service-time takes at most a base weight from 0 to 1023 and a \
                 threshold multiplier",
            ),
            ParamsErrorKind::PathCount => self.must_be(
                f,
                "the number of paths",
                format_args!("a decimal number from 1 to {MAX_PATHS_PER_GROUP}"),
            ),
            ParamsErrorKind::PathArgCount => self.must_be(
                f,
                "the number of words after each device",
                format_args!("a decimal number up to {MAX_SELECTOR_WORDS}"),
            ),
            ParamsErrorKind::PathWords => f.write_str(
                "the line ends within a path: every path of a group has a device and as many \
                 words as the group says",
            ),
            ParamsErrorKind::Device { errno } => match self.word {
                Some(word) => {
                    write!(
                        f,
                        "the path '{}' cannot be opened: {}",
                        Printable(word),
                        errno.description()
                    )
                }
                None => write!(f, "a path cannot be opened: {}", errno.description()),
            },
            ParamsErrorKind::PathArgs { selector, error } => self.path_args(f, selector, error),
            _ => fmt::Display::fmt(self.error, f),
        }
    }
}

impl fmt::Display for ExplainParams<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error.kind {
            ParamsErrorKind::FeatureCount => {
                self.count(f, "the count of feature words", MAX_FEATURE_WORDS)
            }
            ParamsErrorKind::PgInitRetries => self.must_be(
                f,
                "pg_init_retries",
                format_args!("a decimal number from 1 to {MAX_PG_INIT_RETRIES}"),
            ),
            ParamsErrorKind::PgInitDelay => self.must_be(
                f,
                "pg_init_delay_msecs",
                format_args!("a decimal number up to {MAX_PG_INIT_DELAY_MSECS}"),
            ),
            ParamsErrorKind::QueueMode => {
                self.must_be(f, "queue_mode", format_args!("bio, rq or mq"))
            }
            ParamsErrorKind::Feature => self.must_be(
                f,
                "the feature",
                format_args!(
                    "queue_if_no_path, retain_attached_hw_handler, or one of pg_init_retries, \
                     pg_init_delay_msecs and queue_mode with a value"
                ),
            ),
            ParamsErrorKind::HandlerCount => {
                self.count(f, "the count of hardware handler words", MAX_HANDLER_WORDS)
            }
            ParamsErrorKind::Handler => {
                self.must_be(f, "the hardware handler", format_args!("alua, emc, hp_sw or rdac"))
            }
            ParamsErrorKind::GroupCount => self.must_be(
                f,
                "the number of priority groups",
                format_args!("a decimal number up to {MAX_GROUPS}"),
            ),
            ParamsErrorKind::InitialGroupNumber => self.must_be(
                f,
                "the number of the first group to use",
                format_args!("a decimal number up to {MAX_GROUPS}"),
            ),
            ParamsErrorKind::InitialGroup => self.must_be(
                f,
                "the number of the first group to use",
                format_args!("at least 1, as groups count from 1, or 0 if there is no group"),
            ),
            ParamsErrorKind::GroupMismatch { found, expected } => {
                write!(
                    f,
                    "the line says that there are {expected} priority groups, but there are {found}"
                )
            }
            _ => self.group(f),
        }
    }
}
