//! The words of the table line after `multipath`:
//!
//! ```text
//! <#features> [features...] <#handler words> [handler...] <#groups> <first group>
//!    { <selector> <#selector words> [...] <#paths> <#words per path> { <device> [...] }... }...
//! ```
//!
//! The kernel opens the device of a path, then checks the path's other words, then goes on to the
//! next path. Errors must come in the same order. So [`Params::next_item`] returns groups and paths
//! one by one, and [`PathArg::path`] checks a path after the caller has opened [`PathArg::device`].
//!
//! Contract: no allocation, no panic. The caller has split the words, for example with
//! [`super::super::args::split_in_place`].

use super::super::args::parse_u32;
use super::super::error::Errno;
use super::error::{ParamsError, ParamsErrorKind};
use super::group::Group;
use super::path::Path;
use super::selector::{Selector, SelectorError};

/// Largest number of feature words. This limit and the following are the kernel's.
pub const MAX_FEATURE_WORDS: u32 = 8;
/// Largest number of handler words.
pub const MAX_HANDLER_WORDS: u32 = 1024;
/// Largest number of priority groups.
pub const MAX_GROUPS: u32 = 1024;
/// Largest number of paths in a group.
pub const MAX_PATHS_PER_GROUP: u32 = 1024;
/// Largest number of words of a selector, and of a path after its device.
pub const MAX_SELECTOR_WORDS: u32 = 1024;
/// Largest value of `pg_init_retries`.
pub const MAX_PG_INIT_RETRIES: u32 = 50;
/// Largest value of `pg_init_delay_msecs`.
pub const MAX_PG_INIT_DELAY_MSECS: u32 = 60_000;

/// How the kernel would take requests. In blkswitch it only changes the text of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueMode {
    /// `rq`, `mq` or no word.
    #[default]
    Request,
    /// `bio`: the handler's words are skipped.
    Bio,
}

/// The kernel's hardware handlers. In blkswitch each transport prepares its own paths, so a handler
/// is only a word of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Asymmetric logical unit access.
    Alua,
    /// EMC CLARiiON arrays, `emc`.
    Emc,
    /// HP/Compaq MSA arrays, `hp_sw`.
    HpSw,
    /// Arrays of LSI/Engenio, `rdac`.
    Rdac,
}

impl Handler {
    const fn parse(word: &[u8]) -> Option<Self> {
        match word {
            b"alua" => Some(Self::Alua),
            b"emc" => Some(Self::Emc),
            b"hp_sw" => Some(Self::HpSw),
            b"rdac" => Some(Self::Rdac),
            _ => None,
        }
    }

    /// The word for it in a table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alua => "alua",
            Self::Emc => "emc",
            Self::HpSw => "hp_sw",
            Self::Rdac => "rdac",
        }
    }
}

/// The words of the line before its groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Hold requests while no path is up. Messages change it later, see
    /// [`super::Multipath::queues_if_no_path`].
    pub queue_if_no_path: bool,
    /// Keep the handler that a disk has already. This is only a word of the table.
    pub retain_attached_hw_handler: bool,
    /// How often the kernel would initialise a group again; 0 if the line does not say. This is
    /// only a word of the table.
    pub pg_init_retries: u32,
    /// The pause between two such attempts in ms. This is only a word of the table.
    pub pg_init_delay_msecs: Option<u32>,
    /// The queue mode. This is only a word of the table.
    pub queue_mode: QueueMode,
    /// The hardware handler. This is only a word of the table.
    pub handler: Option<Handler>,
}

/// An item of the line, from [`Params::next_item`].
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// A group begins; its paths follow.
    Group(GroupArg),
    /// A path of the last group.
    Path(PathArg<'a>),
}

/// The words at the head of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupArg {
    selector: Selector,
    first_path: u32,
    num_paths: u32,
}

impl GroupArg {
    /// Makes the group, for [`super::Multipath::new`].
    #[must_use]
    pub fn group(&self) -> Group {
        Group::new(self.selector, self.first_path, self.num_paths)
    }

    /// Number of paths that the line gives the group.
    #[must_use]
    pub const fn num_paths(&self) -> u32 {
        self.num_paths
    }
}

/// The words of one path, with its device.
#[derive(Clone, Copy, Debug)]
pub struct PathArg<'a> {
    /// The word that names its device. Open the device before anything else.
    pub device: &'a [u8],
    /// Its number on the device, counted from 0 over all groups: its index in the paths of
    /// [`super::Multipath::new`].
    pub number: u32,
    words: &'a [&'a [u8]],
    at: usize,
    group: u32,
    place: u32,
    selector: Selector,
    bad_handler_at: Option<usize>,
}

/// A path, and whether its repeat count was above 1 ([`super::selector::RepeatCountDeprecated`]).
#[derive(Debug)]
pub struct NewPath {
    /// The path, for [`super::Multipath::new`].
    pub path: Path,
    /// The selector that must warn about the repeat count, if any.
    pub repeat_count_deprecated: Option<Selector>,
}

impl PathArg<'_> {
    /// Checks the path's words. Call this after opening its device.
    ///
    /// # Errors
    /// The first wrong word of the path. An unknown hardware handler is also reported here, because
    /// the kernel notices it only with the first path.
    pub fn path(&self) -> Result<NewPath, ParamsError> {
        if let Some(at) = self.bad_handler_at {
            return Err(ParamsError { kind: ParamsErrorKind::Handler, at });
        }
        match self.selector.path_args(self.words) {
            Ok((args, deprecated)) => Ok(NewPath {
                path: Path::new(self.group, self.place, args),
                repeat_count_deprecated: deprecated.then_some(self.selector),
            }),
            Err(error) => Err(ParamsError {
                kind: ParamsErrorKind::PathArgs { selector: self.selector, error },
                at: self.at.wrapping_add(error.word()),
            }),
        }
    }

    /// The error for a device that could not be opened.
    #[must_use]
    pub const fn lookup_failed(&self, errno: Errno) -> ParamsError {
        ParamsError { kind: ParamsErrorKind::Device { errno }, at: self.at }
    }
}

/// The words of a line, checked up to the first group. Returns groups and paths one by one.
#[derive(Clone, Debug)]
pub struct Params<'a> {
    words: Words<'a>,
    features: Features,
    bad_handler_at: Option<usize>,
    num_groups: u32,
    initial_group: u32,
    groups: u32,
    paths: u32,
    group: Option<Open>,
}

/// The group whose paths are being read.
#[derive(Clone, Copy, Debug)]
struct Open {
    selector: Selector,
    words_per_path: usize,
    place: u32,
    num_paths: u32,
}

impl<'a> Params<'a> {
    /// Checks everything before the first group.
    ///
    /// # Errors
    /// The first wrong word, in the kernel's order.
    ///
    /// ```
    /// use blkswitch_core::multipath::{Item, Params};
    /// let line = "0 0 1 1 queue-length 0 2 1 /dev/sda 1 /dev/sdb 1";
    /// let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    /// let mut params = Params::parse(&words)?;
    /// let mut devices = Vec::new();
    /// while let Some(item) = params.next_item()? {
    ///     if let Item::Path(path) = item {
    ///         devices.push(path.device);
    ///         path.path()?;
    ///     }
    /// }
    /// assert_eq!(devices, [b"/dev/sda", b"/dev/sdb"]);
    /// # Ok::<(), blkswitch_core::multipath::ParamsError>(())
    /// ```
    pub fn parse(words: &'a [&'a [u8]]) -> Result<Self, ParamsError> {
        let mut words = Words { all: words, at: 0 };
        let mut features = parse_features(&mut words)?;
        let bad_handler_at = parse_handler(&mut words, &mut features)?;
        let num_groups = words.number(0, MAX_GROUPS, ParamsErrorKind::GroupCount)?;
        let initial_group = words.number(0, MAX_GROUPS, ParamsErrorKind::InitialGroupNumber)?;
        if (num_groups == 0) != (initial_group == 0) {
            return Err(words.last_is(ParamsErrorKind::InitialGroup));
        }
        Ok(Self {
            words,
            features,
            bad_handler_at,
            num_groups,
            initial_group,
            groups: 0,
            paths: 0,
            group: None,
        })
    }

    /// The words of the line before its groups.
    #[must_use]
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// The group to use first, counted from 1; 0 if there is no group. A number past the last group
    /// means the first.
    #[must_use]
    pub const fn initial_group(&self) -> u32 {
        self.initial_group
    }

    /// The next group or path; `None` at the end of a correct line.
    ///
    /// # Errors
    /// The first wrong word of the next group or path. After an error, call it no more.
    pub fn next_item(&mut self) -> Result<Option<Item<'a>>, ParamsError> {
        match self.group {
            Some(group) => self.next_path(group).map(|path| Some(Item::Path(path))),
            None if self.words.left() > 0 => {
                self.next_group().map(|group| Some(Item::Group(group)))
            }
            None => self.finish(),
        }
    }

    fn next_group(&mut self) -> Result<GroupArg, ParamsError> {
        let words = &mut self.words;
        if words.left() < 2 {
            return Err(ParamsError {
                kind: ParamsErrorKind::GroupWords,
                at: words.at.wrapping_add(1),
            });
        }
        let name_at = words.at;
        let name = words.take(1).first().copied().unwrap_or(&[]);
        if Selector::parse(name, &[]) == Err(SelectorError::Name) {
            return Err(ParamsError { kind: ParamsErrorKind::SelectorName, at: name_at });
        }
        let args = words.counted(MAX_SELECTOR_WORDS, ParamsErrorKind::SelectorCount)?;
        let args_at = words.at.wrapping_sub(args.len());
        let selector = Selector::parse(name, args)
            .map_err(|_| ParamsError { kind: ParamsErrorKind::SelectorArgs, at: args_at })?;
        let num_paths = words.number(1, MAX_PATHS_PER_GROUP, ParamsErrorKind::PathCount)?;
        let args_per_path = words.number(0, MAX_SELECTOR_WORDS, ParamsErrorKind::PathArgCount)?;
        let words_per_path = (args_per_path as usize).wrapping_add(1);
        self.group = Some(Open { selector, words_per_path, place: 0, num_paths });
        Ok(GroupArg { selector, first_path: self.paths, num_paths })
    }

    fn next_path(&mut self, mut group: Open) -> Result<PathArg<'a>, ParamsError> {
        if self.words.left() < group.words_per_path {
            return Err(ParamsError { kind: ParamsErrorKind::PathWords, at: self.words.all.len() });
        }
        let at = self.words.at;
        let (device, words) = match self.words.take(group.words_per_path).split_first() {
            Some((device, words)) => (*device, words),
            None => (&[][..], &[][..]),
        };
        let path = PathArg {
            device,
            number: self.paths,
            words,
            at,
            group: self.groups,
            place: group.place,
            selector: group.selector,
            bad_handler_at: self.bad_handler_at,
        };
        self.paths = self.paths.wrapping_add(1);
        group.place = group.place.wrapping_add(1);
        if group.place == group.num_paths {
            self.group = None;
            self.groups = self.groups.wrapping_add(1);
        } else {
            self.group = Some(group);
        }
        Ok(path)
    }

    /// Checks the end of the line.
    fn finish(&self) -> Result<Option<Item<'a>>, ParamsError> {
        let (found, expected) = (self.groups, self.num_groups);
        if found != expected {
            let kind = ParamsErrorKind::GroupMismatch { found, expected };
            return Err(ParamsError { kind, at: self.words.all.len() });
        }
        // The kernel checks the handler with the first path, and never in a line without paths. The
        // core refuses an unknown handler there, too.
        match self.bad_handler_at {
            Some(at) => Err(ParamsError { kind: ParamsErrorKind::Handler, at }),
            None => Ok(None),
        }
    }
}

fn parse_features(words: &mut Words<'_>) -> Result<Features, ParamsError> {
    let mut features = Features::default();
    let count = words.counted(MAX_FEATURE_WORDS, ParamsErrorKind::FeatureCount)?.len();
    let end = words.at;
    words.at = end.wrapping_sub(count);
    while words.at < end {
        let name = words.take(1).first().copied().unwrap_or(&[]);
        let has_value = words.at < end;
        let is = |feature: &str| name.eq_ignore_ascii_case(feature.as_bytes());
        if is("queue_if_no_path") {
            features.queue_if_no_path = true;
        } else if is("retain_attached_hw_handler") {
            features.retain_attached_hw_handler = true;
        } else if is("pg_init_retries") && has_value {
            features.pg_init_retries =
                words.number(1, MAX_PG_INIT_RETRIES, ParamsErrorKind::PgInitRetries)?;
        } else if is("pg_init_delay_msecs") && has_value {
            let delay = words.number(0, MAX_PG_INIT_DELAY_MSECS, ParamsErrorKind::PgInitDelay)?;
            features.pg_init_delay_msecs = Some(delay);
        } else if is("queue_mode") && has_value {
            features.queue_mode = match words.take(1).first() {
                Some(mode) if mode.eq_ignore_ascii_case(b"bio") => QueueMode::Bio,
                Some(mode)
                    if mode.eq_ignore_ascii_case(b"rq") || mode.eq_ignore_ascii_case(b"mq") =>
                {
                    QueueMode::Request
                }
                _ => return Err(words.last_is(ParamsErrorKind::QueueMode)),
            };
        } else {
            return Err(words.last_is(ParamsErrorKind::Feature));
        }
    }
    Ok(features)
}

/// Reads the handler's words. Returns the position of an unknown handler, which the kernel refuses
/// only when a path gets it.
fn parse_handler(
    words: &mut Words<'_>,
    features: &mut Features,
) -> Result<Option<usize>, ParamsError> {
    let handler = words.counted(MAX_HANDLER_WORDS, ParamsErrorKind::HandlerCount)?;
    let at = words.at.wrapping_sub(handler.len());
    if features.queue_mode == QueueMode::Bio {
        // In bio mode the kernel skips the handler's words and keeps the handler that a disk has.
        features.retain_attached_hw_handler = true;
        return Ok(None);
    }
    let Some(name) = handler.first() else { return Ok(None) };
    features.handler = Handler::parse(name);
    Ok(if features.handler.is_none() { Some(at) } else { None })
}

/// A cursor over the words.
#[derive(Clone, Copy, Debug)]
struct Words<'a> {
    all: &'a [&'a [u8]],
    at: usize,
}

impl<'a> Words<'a> {
    fn left(&self) -> usize {
        self.all.len().saturating_sub(self.at)
    }

    /// The next `count` words, or no words if there are fewer.
    fn take(&mut self, count: usize) -> &'a [&'a [u8]] {
        let end = self.at.saturating_add(count);
        let words = self.all.get(self.at..end).unwrap_or(&[]);
        self.at = end;
        words
    }

    /// An error about the word that was read last.
    fn last_is(&self, kind: ParamsErrorKind) -> ParamsError {
        ParamsError { kind, at: self.at.wrapping_sub(1) }
    }

    fn number(&mut self, min: u32, max: u32, kind: ParamsErrorKind) -> Result<u32, ParamsError> {
        match self.take(1).first().and_then(|word| parse_u32(word)) {
            Some(number) if number >= min && number <= max => Ok(number),
            _ => Err(self.last_is(kind)),
        }
    }

    /// Reads a count and then that number of words.
    fn counted(&mut self, max: u32, kind: ParamsErrorKind) -> Result<&'a [&'a [u8]], ParamsError> {
        let count = self.number(0, max, kind)? as usize;
        if count > self.left() {
            return Err(self.last_is(kind));
        }
        Ok(self.take(count))
    }
}
