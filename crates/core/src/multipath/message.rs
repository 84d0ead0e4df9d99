//! Messages: `fail_path`, `reinstate_path`, `switch_group`, `disable_group`, `enable_group`,
//! `queue_if_no_path` and `fail_if_no_path`.
//!
//! [`MultipathCommand::parse`] reads a message, and [`Multipath::apply`] applies it. In between,
//! the caller looks up the device that a message about a path names, because only the caller knows
//! which paths lead over it.
//!
//! Contract: the caller holds the message lock, so messages are applied one at a time. Requests
//! keep running meanwhile.

use core::fmt;

use super::super::args::{Printable, parse_u32};
use super::super::error::Errno;
use super::Multipath;
use super::event::Event;
use super::group::Group;
use super::path::Path;

/// A message to a multipath target, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultipathCommand<'a> {
    /// Fail every path over this device.
    FailPath {
        /// The device's name or number.
        device: &'a [u8],
    },
    /// Reinstate every path over this device.
    ReinstatePath {
        /// The device's name or number.
        device: &'a [u8],
    },
    /// Enable all groups and use this one next.
    SwitchGroup {
        /// The group's number, as in the message.
        group: &'a [u8],
    },
    /// Skip this group while another one has a path that is up.
    DisableGroup {
        /// The group's number, as in the message.
        group: &'a [u8],
    },
    /// Use this group like the others again.
    EnableGroup {
        /// The group's number, as in the message.
        group: &'a [u8],
    },
    /// Hold requests while no path is up.
    QueueIfNoPath,
    /// Fail requests while no path is up.
    FailIfNoPath,
}

impl<'a> MultipathCommand<'a> {
    /// Reads the words of a message. For a suspended device, the caller answers
    /// [`MessageError::Suspended`] instead.
    ///
    /// # Errors
    /// [`MessageError::Arguments`], [`MessageError::Unrecognised`], and the errors about groups for
    /// a group that is not a number.
    ///
    /// ```
    /// use blkswitch_core::multipath::MultipathCommand;
    /// let command = MultipathCommand::parse(&[b"Fail_Path", b"8:0"]);
    /// assert_eq!(command, Ok(MultipathCommand::FailPath { device: b"8:0" }));
    /// let error = MultipathCommand::parse(&[b"fail_path"]).unwrap_err();
    /// let text = "Invalid multipath message arguments. Expected 2 arguments, got 1.";
    /// assert_eq!(error.of_word(b"fail_path").to_string(), text);
    /// ```
    pub fn parse(words: &[&'a [u8]]) -> Result<Self, MessageError> {
        match *words {
            [word] if word.eq_ignore_ascii_case(b"queue_if_no_path") => Ok(Self::QueueIfNoPath),
            [word] if word.eq_ignore_ascii_case(b"fail_if_no_path") => Ok(Self::FailIfNoPath),
            [word, argument] => Self::with_argument(word, argument),
            _ => Err(MessageError::Arguments { found: words.len() }),
        }
    }

    fn with_argument(word: &[u8], argument: &'a [u8]) -> Result<Self, MessageError> {
        let is = |command: &str| word.eq_ignore_ascii_case(command.as_bytes());
        if is("disable_group") {
            Ok(Self::DisableGroup { group: argument })
        } else if is("enable_group") {
            Ok(Self::EnableGroup { group: argument })
        } else if is("switch_group") {
            Ok(Self::SwitchGroup { group: argument })
        } else if is("reinstate_path") {
            Ok(Self::ReinstatePath { device: argument })
        } else if is("fail_path") {
            Ok(Self::FailPath { device: argument })
        } else {
            Err(MessageError::Unrecognised)
        }
    }

    /// The device that the caller must look up; `None` if the message is not about a path.
    #[must_use]
    pub const fn device(&self) -> Option<&'a [u8]> {
        match self {
            Self::FailPath { device } | Self::ReinstatePath { device } => Some(device),
            _ => None,
        }
    }
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageError {
    /// The device is suspended and takes no message.
    Suspended,
    /// The number of words fits no message: they have one word or two.
    Arguments {
        /// Number of words in the message.
        found: usize,
    },
    /// The first word is not a message.
    Unrecognised,
    /// The device of a path could not be looked up.
    Device {
        /// The errno that the look-up gave.
        errno: Errno,
    },
    /// No path leads over this device.
    NoSuchPath,
    /// `switch_group` with a group that does not exist.
    SwitchGroup {
        /// Number of groups of the device.
        groups: u32,
    },
    /// `disable_group` or `enable_group` with a group that does not exist.
    BypassGroup {
        /// Number of groups of the device.
        groups: u32,
    },
}

impl MessageError {
    /// The errno for the sender.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Suspended => Errno::Ebusy,
            Self::Device { errno } => *errno,
            _ => Errno::Einval,
        }
    }

    /// Adds the wrong word ([`MessageError::word`]). `Display` of the result is the kernel's text,
    /// which is empty if the kernel logs nothing.
    #[must_use]
    pub const fn of_word<'a>(&'a self, word: &'a [u8]) -> OfWord<'a> {
        OfWord { error: self, word }
    }

    /// One sentence that quotes the word and says what is allowed.
    #[must_use]
    pub const fn explain<'a>(&'a self, word: &'a [u8]) -> ExplainMessage<'a> {
        ExplainMessage { error: self, word }
    }

    /// The wrong word of the message; empty if the message has no words.
    #[must_use]
    pub fn word<'a>(&self, words: &[&'a [u8]]) -> &'a [u8] {
        let at = match self {
            Self::Suspended | Self::Arguments { .. } | Self::Unrecognised => 0,
            Self::Device { .. }
            | Self::NoSuchPath
            | Self::SwitchGroup { .. }
            | Self::BypassGroup { .. } => 1,
        };
        words.get(at).copied().unwrap_or(&[])
    }
}

impl core::error::Error for MessageError {}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.of_word(b"").fmt(f)
    }
}

/// A [`MessageError`] and its word. `Display` is the kernel's text.
#[derive(Clone, Copy, Debug)]
pub struct OfWord<'a> {
    error: &'a MessageError,
    word: &'a [u8],
}

impl fmt::Display for OfWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Printable(self.word);
        match *self.error {
            MessageError::Suspended | MessageError::NoSuchPath => Ok(()),
            MessageError::Arguments { found } => {
                write!(f, "Invalid multipath message arguments. Expected 2 arguments, got {found}.")
            }
            MessageError::Unrecognised => {
                write!(f, "Unrecognised multipath message received: {word}")
            }
            MessageError::Device { .. } => write!(f, "message: error getting device {word}"),
            MessageError::SwitchGroup { .. } => {
                f.write_str("invalid PG number supplied to switch_pg_num")
            }
            MessageError::BypassGroup { .. } => {
                f.write_str("invalid PG number supplied to bypass_pg")
            }
        }
    }
}

/// A [`MessageError`] as one sentence for people.
#[derive(Clone, Copy, Debug)]
pub struct ExplainMessage<'a> {
    error: &'a MessageError,
    word: &'a [u8],
}

impl fmt::Display for ExplainMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Printable(self.word);
        match *self.error {
            MessageError::Suspended => {
                write!(f, "'{word}': the device is suspended and takes messages again after resume")
            }
            MessageError::Arguments { found } => write!(
                f,
                "'{word}': a message is queue_if_no_path or fail_if_no_path alone, or one of \
                 fail_path, reinstate_path, switch_group, disable_group and enable_group with one \
                 argument; words found: {found}"
            ),
            MessageError::Unrecognised => write!(
                f,
                "'{word}' is no message with one argument: these are fail_path, reinstate_path, \
                 switch_group, disable_group and enable_group"
            ),
            MessageError::Device { errno } => {
                write!(f, "the device '{word}' cannot be looked up: {}", errno.description())
            }
            MessageError::NoSuchPath => write!(f, "no path leads over the device '{word}'"),
            MessageError::SwitchGroup { groups } | MessageError::BypassGroup { groups } => {
                write!(f, "the priority group '{word}' must be a decimal number from 1 to {groups}")
            }
        }
    }
}

impl<G: AsRef<[Group]>, P: AsRef<[Path]>> Multipath<G, P> {
    /// Applies a message. For messages about paths, `is_meant` says whether the path with this
    /// number leads over the message's device. It is not called for other messages.
    ///
    /// # Errors
    /// [`MessageError::NoSuchPath`], and the errors about groups for a group that does not exist.
    /// The multipath has not changed then.
    pub fn apply(
        &self,
        command: &MultipathCommand<'_>,
        mut is_meant: impl FnMut(u32) -> bool,
        on: &mut impl FnMut(Event),
    ) -> Result<(), MessageError> {
        match *command {
            MultipathCommand::QueueIfNoPath => self.set_queueing(true, on),
            MultipathCommand::FailIfNoPath => self.set_queueing(false, on),
            MultipathCommand::SwitchGroup { group } => {
                let groups = self.num_groups();
                let group = self.group_number(group).ok_or(MessageError::SwitchGroup { groups })?;
                self.switch_group(group, on);
            }
            MultipathCommand::DisableGroup { group } => self.bypass_group(group, true, on)?,
            MultipathCommand::EnableGroup { group } => self.bypass_group(group, false, on)?,
            MultipathCommand::FailPath { .. } => {
                self.each_path(&mut is_meant, |path| self.fail_path(path, on))?
            }
            MultipathCommand::ReinstatePath { .. } => {
                self.each_path(&mut is_meant, |path| self.reinstate_path(path, on))?;
            }
        }
        Ok(())
    }

    fn each_path(
        &self,
        is_meant: &mut impl FnMut(u32) -> bool,
        mut act: impl FnMut(u32) -> bool,
    ) -> Result<(), MessageError> {
        let mut found = false;
        for path in 0..self.num_paths() {
            if is_meant(path) {
                found = true;
                act(path);
            }
        }
        if found { Ok(()) } else { Err(MessageError::NoSuchPath) }
    }

    fn bypass_group(
        &self,
        word: &[u8],
        bypassed: bool,
        on: &mut impl FnMut(Event),
    ) -> Result<(), MessageError> {
        let groups = self.num_groups();
        let group = self.group_number(word).ok_or(MessageError::BypassGroup { groups })?;
        self.set_bypassed(group, bypassed, on);
        Ok(())
    }

    /// A group's number, counted from 1. A number beyond 32 bits is refused, as in the constructor;
    /// the kernel keeps its low 32 bits.
    fn group_number(&self, word: &[u8]) -> Option<u32> {
        parse_u32(word).filter(|number| (1..=self.num_groups()).contains(number))
    }
}
