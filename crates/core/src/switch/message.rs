//! Messages: `set_region_mappings` and its arguments, which are applied one after the other.
//!
//! A [`Message`] is the state of one message: the index of the last region. Its arguments come as
//! words that are split already ([`Message::apply_word`]), or as text, whole or in chunks
//! ([`Message::apply_text`]). So a message of any length takes bounded memory. The `check_`
//! functions find the same errors without writing. Errors depend on the message and the geometry
//! alone, never on the map's contents. So a message that was checked whole is then applied without
//! an error.
//!
//! Contract: a [`Message`] belongs to one map. Arguments before a bad one stay applied, and an
//! error ends the message. Only the holder of the map's [`MapWriter`] applies messages. No
//! allocation, no panic, any bytes.

use core::fmt;

use super::super::args::Word;
use super::super::error::Errno;
use super::geometry::Geometry;
use super::hex;
use super::regions::{Map, MapWriter, Storage};
use super::text;

/// The kernel's answer to a first word that the target does not know.
pub const UNRECOGNISED_MESSAGE: &str = "Unrecognised message received.";

/// The device-mapper core's answer to a message without words.
pub const EMPTY_MESSAGE: &str = "Empty message received.";
/// The device-mapper core's answer to a message for a sector outside of all targets.
pub const SECTOR_OUTSIDE_DEVICE: &str = "Target message sector outside device.";

/// Longest word of a message text in bytes, backslashes included. The kernel has no such limit. It
/// is needed here because a chunk must hold a whole word; a number of more than sixteen digits says
/// nothing that a shorter one does not.
pub const MAX_WORD_LEN: usize = 4096;

/// Regions that are changed or compared between two calls of a caller's `go_on`. This takes a
/// millisecond at most, and the cost of the calls is negligible.
pub(super) const TURN_REGIONS: u64 = 1 << 20;

/// The request that the first word of a message makes. (A new one must be a decision of every
/// caller, so this is exhaustive.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Change the map. The arguments are for a [`Message`].
    SetRegionMappings,
    /// Read the map back. The kernel's own target does not have this message.
    GetRegionMappings,
}

/// The command of a message's first word, in upper or lower case. To `None`, the caller answers
/// with [`UNRECOGNISED_MESSAGE`].
#[must_use]
pub fn command(word: &[u8]) -> Option<Command> {
    if is_word(word, b"set_region_mappings") {
        Some(Command::SetRegionMappings)
    } else if is_word(word, b"get_region_mappings") {
        Some(Command::GetRegionMappings)
    } else {
        None
    }
}

fn is_word(word: &[u8], lower: &[u8]) -> bool {
    word.len() == lower.len() && word.iter().zip(lower).all(|(a, b)| a.to_ascii_lowercase() == *b)
}

/// The reason why an argument was refused, with the numbers that the kernel prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageErrorKind {
    /// The argument has none of the three forms.
    Argument,
    /// The cycle of `R` begins before region 0, or is 0.
    CycleLength {
        /// The cycle length minus one; 2^64 - 1 for a length of 0.
        last: u64,
        /// The message's index. The cycle may have up to index + 1 regions.
        index: u64,
    },
    /// `R` writes past the last region.
    RepeatRange {
        /// The message's index.
        index: u64,
        /// Number of regions to copy to.
        count: u64,
        /// Number of regions of the map.
        regions: u64,
    },
    /// There is no such region.
    Region {
        /// The region asked for.
        region: u64,
        /// Number of regions of the map.
        regions: u64,
    },
    /// There is no such path.
    Path {
        /// The path asked for.
        path: u64,
        /// Number of paths of the map.
        paths: u32,
    },
}

/// A refused argument of a message: the reason and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageError {
    /// The reason.
    pub kind: MessageErrorKind,
    /// Position of the argument in the message, counted from 1. The command does not count.
    pub position: u64,
}

impl MessageError {
    /// The errno for the sender of the message.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::Einval
    }

    /// Adds the argument's text. `Display` of the result is exactly the kernel's text.
    #[must_use]
    pub const fn of_argument<'a>(&'a self, argument: Word<'a>) -> OfArgument<'a> {
        OfArgument { error: self, argument: Some(argument) }
    }

    /// One sentence that quotes the argument and says what is allowed.
    #[must_use]
    pub const fn explain<'a>(&'a self, argument: Word<'a>) -> ExplainMessage<'a> {
        ExplainMessage { error: self, argument }
    }
}

impl core::error::Error for MessageError {}

impl fmt::Display for MessageError {
    /// The kernel's text. Where it quotes the argument, this gives the argument's position instead.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        OfArgument { error: self, argument: None }.fmt(f)
    }
}

/// A refused argument of a text: the error of [`Message::apply_text`] and [`Message::check_text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextError {
    /// The byte of the given text at which the argument begins.
    pub at: usize,
    /// The reason, and the position of the argument in the message.
    pub error: MessageError,
}

impl core::error::Error for TextError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl fmt::Display for TextError {
    /// The text of the [`MessageError`]; the place in the text is for programs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// A [`MessageError`] and its argument. `Display` is the kernel's text.
#[derive(Clone, Copy, Debug)]
pub struct OfArgument<'a> {
    error: &'a MessageError,
    argument: Option<Word<'a>>,
}

impl fmt::Display for OfArgument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid set_region_mappings ")?;
        match self.error.kind {
            MessageErrorKind::Argument => match self.argument {
                Some(argument) => write!(f, "argument: '{argument}'"),
                None => write!(f, "argument: number {}", self.error.position),
            },
            MessageErrorKind::CycleLength { last, index } => {
                write!(f, "cycle length: {last} > {index}")
            }
            MessageErrorKind::RepeatRange { index, count, regions } => {
                write!(f, "region number: {index} + {count} >= {regions}")
            }
            MessageErrorKind::Region { region, regions } => {
                write!(f, "region number: {region} >= {regions}")
            }
            MessageErrorKind::Path { path, paths } => write!(f, "device: {path} >= {paths}"),
        }
    }
}

/// A [`MessageError`] as one sentence for people.
#[derive(Clone, Copy, Debug)]
pub struct ExplainMessage<'a> {
    error: &'a MessageError,
    argument: Word<'a>,
}

impl fmt::Display for ExplainMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "argument {} '{}': ", self.error.position, self.argument)?;
        match self.error.kind {
            MessageErrorKind::Argument => f.write_str(
                "an argument must be <region>:<path>, :<path> or R<cycle>,<count>, the numbers in hexadecimal \
                 without a prefix",
            ),
            MessageErrorKind::CycleLength { last, index } => write!(
                f,
                "the cycle length {} must be from 1 to {}, as region {index} is the last one mapped",
                last.wrapping_add(1),
                index.saturating_add(1)
            ),
            MessageErrorKind::RepeatRange { index, count, regions } => write!(
                f,
                "the count {count} must be at most {}, the regions that follow region {index}",
                regions.saturating_sub(index).saturating_sub(1)
            ),
            MessageErrorKind::Region { region, regions } => {
                let last = regions.saturating_sub(1);
                write!(f, "the region {region} (hex {region:x}) must be from 0 to {last} (hex {last:x})")
            }
            MessageErrorKind::Path { path, paths } => {
                let last = paths.saturating_sub(1);
                write!(f, "the path {path} (hex {path:x}) must be from 0 to {last} (hex {last:x})")
            }
        }
    }
}

/// The state of one `set_region_mappings` message: the index of the last region that it mapped, and
/// the number of its arguments so far.
///
/// ```
/// # use core::sync::atomic::AtomicU64;
/// # use blkswitch_core::switch::{Geometry, Map, Message};
/// # let geometry = Geometry::new(2048, 3, 128)?;
/// # let map = Map::new(geometry, vec![AtomicU64::new(0)]).unwrap();
/// let mut writer = map.writer().expect("nobody else changes the map");
/// // A chunk may end within a word: its beginning is passed again with the next chunk.
/// let mut message = Message::new();
/// assert_eq!(message.apply_text(&mut writer, b"0:2 R1,", false), Ok(4));
/// assert_eq!(message.apply_text(&mut writer, b"R1,f", true), Ok(4));
/// assert_eq!(map.runs(0, 16).count(), 1);
///
/// // The arguments before the bad one stay applied.
/// let refused = Message::new().apply_text(&mut writer, b"5:1 99:0 6:1", true).unwrap_err();
/// assert_eq!((refused.at, refused.error.position, map.path(5)), (4, 2, Some(1)));
/// assert_eq!(refused.to_string(), "invalid set_region_mappings region number: 153 >= 16");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    index: u64,
    words: u64,
}

impl Message {
    /// A message before its first argument. Its index is 0, so a first `:<path>` maps region 1.
    #[must_use]
    pub const fn new() -> Self {
        Self { index: 0, words: 0 }
    }

    /// The region that was mapped last.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// Number of arguments so far, a refused one included.
    #[must_use]
    pub const fn arguments(&self) -> u64 {
        self.words
    }

    /// Applies one argument that is split already; a backslash in it is an ordinary byte.
    ///
    /// # Errors
    /// The reason why the argument was refused. It changed nothing, and the message is over.
    #[inline]
    pub fn apply_word<S: Storage>(
        &mut self,
        map: &mut MapWriter<'_, S>,
        word: &[u8],
    ) -> Result<(), MessageError> {
        self.word(&**map, word)
    }

    /// As [`Message::apply_word`], but changes no map.
    ///
    /// # Errors
    /// The error that [`Message::apply_word`] would return.
    pub fn check_word(&mut self, geometry: &Geometry, word: &[u8]) -> Result<(), MessageError> {
        self.word(geometry, word)
    }

    /// Applies the arguments in a chunk of a message's text; `last` says that no chunk follows. It
    /// takes only whole words, and returns the number of bytes that it has taken. The caller puts
    /// the rest, at most [`MAX_WORD_LEN`] bytes, before the next chunk.
    ///
    /// # Errors
    /// The first refused argument. The arguments before it stay applied, and the message is over.
    pub fn apply_text<S: Storage>(
        &mut self,
        map: &mut MapWriter<'_, S>,
        text: &[u8],
        last: bool,
    ) -> Result<usize, TextError> {
        text::run(self, &**map, text, last)
    }

    /// As [`Message::apply_text`], but changes no map. If a whole message passes, applying it
    /// cannot fail; so it can be applied as a whole or not at all.
    ///
    /// # Errors
    /// The error that [`Message::apply_text`] would return.
    pub fn check_text(
        &mut self,
        geometry: &Geometry,
        text: &[u8],
        last: bool,
    ) -> Result<usize, TextError> {
        text::run(self, geometry, text, last)
    }

    /// Applies arguments from text that the kernel has split in place: `text` begins with the byte
    /// before an argument, and a NUL ends each argument, the last one at the end. It stops without
    /// an error at the first argument of another form (more than one separator, the rest of a
    /// removed backslash, bad syntax). That is the argument after [`Message::arguments`]; the
    /// caller passes it to [`Message::apply_word`].
    ///
    /// # Errors
    /// The first refused argument. The arguments before it stay applied, and the message is over.
    pub fn apply_split<S: Storage>(
        &mut self,
        map: &mut MapWriter<'_, S>,
        text: &[u8],
    ) -> Result<(), MessageError> {
        text::run_split(self, &**map, text)
    }

    /// As [`Message::apply_split`], but changes no map.
    ///
    /// # Errors
    /// The error that [`Message::apply_split`] would return.
    pub fn check_split(&mut self, geometry: &Geometry, text: &[u8]) -> Result<(), MessageError> {
        text::run_split(self, geometry, text)
    }

    /// As [`Message::apply_split`], in turns: it calls `go_on` between two turns of a long repeat.
    /// If that returns `false`, it leaves out the rest of the repeat, and the message is over. What
    /// was applied stays.
    ///
    /// # Errors
    /// As [`Message::apply_split`].
    pub fn apply_split_in_turns<S: Storage>(
        &mut self,
        map: &mut MapWriter<'_, S>,
        text: &[u8],
        go_on: &impl Fn() -> bool,
    ) -> Result<(), MessageError> {
        text::run_split(self, &InTurns { map: &**map, go_on }, text)
    }

    /// As [`Message::apply_word`], in turns; see [`Message::apply_split_in_turns`].
    ///
    /// # Errors
    /// As [`Message::apply_word`].
    pub fn apply_word_in_turns<S: Storage>(
        &mut self,
        map: &mut MapWriter<'_, S>,
        word: &[u8],
        go_on: &impl Fn() -> bool,
    ) -> Result<(), MessageError> {
        self.word(&InTurns { map: &**map, go_on }, word)
    }

    #[inline]
    pub(super) fn word<T: EditSink>(&mut self, table: &T, word: &[u8]) -> Result<(), MessageError> {
        match Argument::parse(word) {
            Some((argument, [])) => self.execute(table, argument),
            _ => Err(self.refuse_word()),
        }
    }

    /// Counts an argument and refuses it because of its form.
    #[cold]
    pub(super) fn refuse_word(&mut self) -> MessageError {
        self.words = self.words.wrapping_add(1);
        MessageError { kind: MessageErrorKind::Argument, position: self.words }
    }

    /// Counts an argument, checks its numbers and applies it.
    #[inline(always)]
    pub(super) fn execute<T: EditSink>(
        &mut self,
        table: &T,
        argument: Argument,
    ) -> Result<(), MessageError> {
        self.words = self.words.wrapping_add(1);
        match argument {
            Argument::Map { region, path } => self.map(table, region, path),
            Argument::MapNext { path } => self.map(table, self.index.wrapping_add(1), path),
            Argument::Repeat { cycle, count } => self.repeat(table, cycle, count),
        }
        .map_err(|kind| MessageError { kind, position: self.words })
    }

    #[inline]
    fn map<T: EditSink>(
        &mut self,
        table: &T,
        region: u64,
        path: u64,
    ) -> Result<(), MessageErrorKind> {
        let (regions, paths) = (table.geometry().nr_regions(), table.geometry().num_paths());
        if region >= regions {
            return Err(MessageErrorKind::Region { region, regions });
        }
        if path >= u64::from(paths) {
            return Err(MessageErrorKind::Path { path, paths });
        }
        table.map(region, path as u32);
        self.index = region;
        Ok(())
    }

    #[inline(never)]
    fn repeat<T: EditSink>(
        &mut self,
        table: &T,
        cycle: u64,
        count: u64,
    ) -> Result<(), MessageErrorKind> {
        let (index, regions) = (self.index, table.geometry().nr_regions());
        let last = cycle.wrapping_sub(1);
        if last > index {
            return Err(MessageErrorKind::CycleLength { last, index });
        }
        match index.checked_add(count) {
            Some(end) if end < regions => {
                table.repeat(index, cycle, count);
                self.index = end;
                Ok(())
            }
            _ => Err(MessageErrorKind::RepeatRange { index, count, regions }),
        }
    }

    /// Counts `count` arguments that a fast reader has applied, the last of them to region `index`.
    #[inline]
    pub(super) const fn mapped(&mut self, index: u64, count: u64) {
        self.index = index;
        self.words = self.words.wrapping_add(count);
    }

    /// Counts `count` arguments `:<path>` that a fast reader has applied.
    #[inline]
    pub(super) const fn advance(&mut self, count: u64) {
        self.index = self.index.wrapping_add(count);
        self.words = self.words.wrapping_add(count);
    }
}

/// An argument, by its form. Its numbers are not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// `<region>:<path>`
    Map { region: u64, path: u64 },
    /// `:<path>`
    MapNext { path: u64 },
    /// `R<cycle>,<count>`
    Repeat { cycle: u64, count: u64 },
}

impl Argument {
    /// The argument at the start of a text, and the text after it. This function and its callers
    /// are always inlined: to pass an argument through memory would cost more than to read it.
    #[inline(always)]
    pub(super) fn parse(text: &[u8]) -> Option<(Self, &[u8])> {
        match text.split_first()? {
            (b':', rest) => {
                let (path, rest) = hex::short_number(rest)?;
                Some((Self::MapNext { path }, rest))
            }
            (b'R' | b'r', rest) => {
                let (cycle, rest) = hex::number(rest)?;
                let (count, rest) = hex::number(rest.strip_prefix(b",")?)?;
                Some((Self::Repeat { cycle, count }, rest))
            }
            _ => {
                let (region, rest) = hex::number(text)?;
                let (path, rest) = hex::short_number(rest.strip_prefix(b":")?)?;
                Some((Self::Map { region, path }, rest))
            }
        }
    }
}

/// The object that arguments act on: a map, or only its geometry for a check.
pub(super) trait EditSink {
    fn geometry(&self) -> &Geometry;
    /// Sends a region to a path; the caller has checked both. `false` if the storage is too short
    /// for the region.
    fn map(&self, region: u64, path: u32) -> bool;
    /// Repeats the `cycle` regions that end with `index` over the `count` regions after it. The
    /// caller has checked all of them.
    fn repeat(&self, index: u64, cycle: u64, count: u64);
    /// The word of a slot, for code that changes whole words.
    fn slot(&self, slot: u64) -> u64;
    /// Replaces the word of a slot.
    fn store_slot(&self, slot: u64, word: u64);
}

impl<S: Storage> EditSink for Map<S> {
    #[inline]
    fn geometry(&self) -> &Geometry {
        self.geometry()
    }

    #[inline]
    fn map(&self, region: u64, path: u32) -> bool {
        self.store_path(region, path)
    }

    fn repeat(&self, index: u64, cycle: u64, count: u64) {
        self.repeat(index, cycle, count);
    }

    #[inline]
    fn slot(&self, slot: u64) -> u64 {
        self.slot(slot)
    }

    #[inline]
    fn store_slot(&self, slot: u64, word: u64) {
        self.store_slot(slot, word);
    }
}

/// A map that does long repeats in turns. A repeat copies from the regions just before it. So a
/// second repeat with the same cycle continues where the first has ended.
struct InTurns<'a, S, G> {
    map: &'a Map<S>,
    go_on: &'a G,
}

impl<S: Storage, G: Fn() -> bool> EditSink for InTurns<'_, S, G> {
    #[inline]
    fn geometry(&self) -> &Geometry {
        self.map.geometry()
    }

    #[inline]
    fn map(&self, region: u64, path: u32) -> bool {
        self.map.store_path(region, path)
    }

    fn repeat(&self, mut index: u64, cycle: u64, count: u64) {
        let end = index.wrapping_add(count);
        loop {
            let turn = end.wrapping_sub(index).min(TURN_REGIONS);
            self.map.repeat(index, cycle, turn);
            index = index.wrapping_add(turn);
            if index == end || !(self.go_on)() {
                return;
            }
        }
    }

    #[inline]
    fn slot(&self, slot: u64) -> u64 {
        self.map.slot(slot)
    }

    #[inline]
    fn store_slot(&self, slot: u64, word: u64) {
        self.map.store_slot(slot, word);
    }
}

impl EditSink for Geometry {
    fn geometry(&self) -> &Geometry {
        self
    }

    fn map(&self, _region: u64, _path: u32) -> bool {
        true
    }

    fn repeat(&self, _index: u64, _cycle: u64, _count: u64) {}

    fn slot(&self, _slot: u64) -> u64 {
        0
    }

    fn store_slot(&self, _slot: u64, _word: u64) {}
}
