//! Errors of tables and constructors: what was wrong, the kernel's words for it, its errno, and a
//! longer sentence.
//!
//! Contract: errors are small and `Copy`; they keep numbers and the position of a word, never text,
//! so the caller that still has the words formats them. [`Error`]'s `Display` is the kernel's text
//! to the letter (texts that name a device need [`Error::of_device`]); [`Error::explain`] says what
//! would have been allowed. Messages have their own error, [`super::switch::MessageError`].

use core::fmt;

use super::args::Printable;
use super::switch::{MAX_PATHS, MAX_REGION_SIZE};
use super::units::MAX_DEVICE_SECTORS;

macro_rules! errnos {
    ($($variant:ident = $number:literal, $name:literal, $text:literal;)*) => {
        /// The error numbers a table, a message or a device look-up can end with (Linux numbering).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Errno {
            $(#[doc = $text] $variant = $number,)*
        }

        impl Errno {
            /// The positive number, 22 for EINVAL.
            #[must_use]
            pub const fn number(self) -> i32 {
                self as i32
            }

            /// The symbol, `EINVAL`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What `strerror` says, `Invalid argument`.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The errno with this positive number, if it is one of ours.
            #[must_use]
            pub const fn from_number(number: i32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

errnos! {
    Eperm = 1, "EPERM", "Operation not permitted";
    Enoent = 2, "ENOENT", "No such file or directory";
    Eio = 5, "EIO", "Input/output error";
    Enxio = 6, "ENXIO", "No such device or address";
    Enomem = 12, "ENOMEM", "Cannot allocate memory";
    Eacces = 13, "EACCES", "Permission denied";
    Enotblk = 15, "ENOTBLK", "Block device required";
    Ebusy = 16, "EBUSY", "Device or resource busy";
    Eexist = 17, "EEXIST", "File exists";
    Enodev = 19, "ENODEV", "No such device";
    Einval = 22, "EINVAL", "Invalid argument";
    Erofs = 30, "EROFS", "Read-only file system";
    Enametoolong = 36, "ENAMETOOLONG", "File name too long";
    Eloop = 40, "ELOOP", "Too many levels of symbolic links";
    Eoverflow = 75, "EOVERFLOW", "Value too large for defined data type";
    Eopnotsupp = 95, "EOPNOTSUPP", "Operation not supported";
    Etimedout = 110, "ETIMEDOUT", "Connection timed out";
}

impl fmt::Display for Errno {
    /// `-EINVAL`, as the kernel log prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-{}", self.name())
    }
}

/// Why a table or a target was refused. `at` is the position of the offending word among the
/// target's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A table without any target.
    NoTargets,
    /// A target of no sectors.
    ZeroLength,
    /// A target that ends past [`MAX_DEVICE_SECTORS`].
    TooLarge {
        /// First sector of the target.
        start: u64,
        /// Its length in sectors.
        len: u64,
    },
    /// No such target type. Only the caller knows which there are.
    UnknownType,
    /// A target that does not start where the one before ended.
    Gap {
        /// Where it starts.
        start: u64,
        /// Where it should start.
        expected: u64,
    },
    /// `<num_paths>` is missing or not in 1..=[`MAX_PATHS`].
    NumPaths {
        /// Position of the word.
        at: usize,
    },
    /// `<region_size>` is missing or not in 1..=[`MAX_REGION_SIZE`].
    RegionSize {
        /// Position of the word.
        at: usize,
    },
    /// `<num_optional_args>` is missing or not 0.
    OptionalArgs {
        /// Position of the word.
        at: usize,
    },
    /// The words that are left are not a device and an offset for each path.
    PathArguments {
        /// Words needed: two for each path.
        expected: u64,
        /// Words there are.
        found: usize,
    },
    /// No memory for the target itself.
    ContextMemory,
    /// The caller could not open a path's device.
    DeviceLookup {
        /// Number of the path.
        path: u32,
        /// What opening it gave.
        errno: Errno,
    },
    /// A path's offset is not an unsigned 64-bit decimal.
    Offset {
        /// Number of the path.
        path: u32,
        /// Position of the word.
        at: usize,
    },
    /// The region table would not fit the address space.
    RegionTableTooLarge {
        /// Regions the target would have.
        regions: u64,
    },
    /// No memory for the region table.
    RegionTableMemory {
        /// Regions the target would have.
        regions: u64,
    },
    /// A path's device ends before the target does.
    DeviceTooSmall {
        /// First sector on the device.
        start: u64,
        /// Sectors needed from there.
        len: u64,
        /// Sectors the device has.
        dev_size: u64,
    },
    /// A path's offset is not a multiple of its device's logical block size.
    StartUnaligned {
        /// First sector on the device.
        start: u64,
        /// Logical block size in bytes.
        block_size: u32,
    },
    /// The target's length is not a multiple of a path's logical block size.
    LenUnaligned {
        /// Length in sectors.
        len: u64,
        /// Logical block size in bytes.
        block_size: u32,
    },
    /// Regions would cut a path's logical blocks. Ours: the kernel loads such a table and then
    /// fails I/O in part.
    RegionUnaligned {
        /// Region size in sectors.
        region_size: u32,
        /// Logical block size in bytes.
        block_size: u32,
    },
}

impl Error {
    /// The errno a caller gets, the same as from the kernel.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::ContextMemory | Self::RegionTableMemory { .. } => Errno::Enomem,
            Self::DeviceLookup { errno, .. } => *errno,
            _ => Errno::Einval,
        }
    }

    /// The kernel's text with the device's name put where the kernel puts it.
    #[must_use]
    pub const fn of_device<'a>(&'a self, name: &'a str) -> OfDevice<'a> {
        OfDevice { error: self, name }
    }

    /// One sentence that quotes the bad word (`None`: it is missing) and says what is allowed.
    #[must_use]
    pub const fn explain<'a>(&'a self, word: Option<&'a [u8]>) -> Explain<'a> {
        Explain { error: self, word }
    }

    /// Position of the word this error is about, among the words of the target.
    #[must_use]
    pub const fn word_position(&self) -> Option<usize> {
        match self {
            Self::NumPaths { at }
            | Self::RegionSize { at }
            | Self::OptionalArgs { at }
            | Self::Offset { at, .. } => Some(*at),
            // Three words stand before the first path, two belong to each.
            Self::DeviceLookup { path, .. } => {
                Some((*path as usize).saturating_mul(2).saturating_add(3))
            }
            _ => None,
        }
    }
}

impl core::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.of_device("device").fmt(f)
    }
}

/// An [`Error`] about the device of this name. `Display` is the kernel's text.
#[derive(Clone, Copy, Debug)]
pub struct OfDevice<'a> {
    error: &'a Error,
    name: &'a str,
}

impl fmt::Display for OfDevice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match *self.error {
            Error::NoTargets => f.write_str("no targets specified"),
            Error::ZeroLength => f.write_str("zero-length target"),
            Error::TooLarge { .. } => f.write_str("too large device"),
            Error::UnknownType => f.write_str("unknown target type"),
            Error::Gap { .. } => f.write_str("Gap in table"),
            Error::NumPaths { .. } => f.write_str("Invalid number of paths"),
            Error::RegionSize { .. } => f.write_str("Invalid region size"),
            Error::OptionalArgs { .. } => f.write_str("Invalid number of optional args"),
            Error::PathArguments { .. } => f.write_str("Incorrect number of path arguments"),
            Error::ContextMemory => f.write_str("Cannot allocate redirection context"),
            Error::DeviceLookup { .. } => f.write_str("Device lookup failed"),
            Error::Offset { .. } => f.write_str("Invalid device starting offset"),
            Error::RegionTableTooLarge { .. } => f.write_str("Region table too large"),
            Error::RegionTableMemory { .. } => f.write_str("Cannot allocate region table"),
            Error::DeviceTooSmall { start, len, dev_size } => {
                write!(
                    f,
                    "{name} too small for target: start={start}, len={len}, dev_size={dev_size}"
                )
            }
            Error::StartUnaligned { start, block_size } => {
                write!(
                    f,
                    "start={start} not aligned to h/w logical block size {block_size} of {name}"
                )
            }
            Error::LenUnaligned { len, block_size } => {
                write!(f, "len={len} not aligned to h/w logical block size {block_size} of {name}")
            }
            Error::RegionUnaligned { region_size, block_size } => {
                write!(
                    f,
                    "region size={region_size} not aligned to h/w logical block size {block_size} of {name}"
                )
            }
        }
    }
}

/// An [`Error`] as one sentence for people: the bad word and what would have been allowed.
#[derive(Clone, Copy, Debug)]
pub struct Explain<'a> {
    error: &'a Error,
    word: Option<&'a [u8]>,
}

impl Explain<'_> {
    /// "`what` 'word' must be ...", or "`what` is missing: it must be ...".
    fn word_must_be(
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

    fn constructor(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.error {
            Error::NumPaths { .. } => self.word_must_be(
                f,
                "the number of paths",
                format_args!("a decimal number from 1 to {MAX_PATHS}, digits only"),
            ),
            Error::RegionSize { .. } => self.word_must_be(
                f,
                "the region size",
                format_args!(
                    "a decimal number of 512-byte sectors from 1 to {MAX_REGION_SIZE}, digits only"
                ),
            ),
            Error::OptionalArgs { .. } => self.word_must_be(
                f,
                "the number of optional arguments",
                format_args!("0: the switch target has none"),
            ),
            Error::PathArguments { expected, found } => write!(
                f,
                "{expected} words must follow the optional arguments, a device and an offset for each path, \
                 but there are {found}"
            ),
            Error::DeviceLookup { path, errno } => match self.word {
                Some(word) => {
                    write!(
                        f,
                        "path {path} '{}' cannot be opened: {}",
                        Printable(word),
                        errno.description()
                    )
                }
                None => write!(f, "path {path} cannot be opened: {}", errno.description()),
            },
            Error::Offset { path, .. } => self.word_must_be(
                f,
                "the offset",
                format_args!("a decimal number of 512-byte sectors below 2^64 (path {path})"),
            ),
            ref error => fmt::Display::fmt(error, f),
        }
    }

    fn area(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.error {
            Error::DeviceTooSmall { start, len, dev_size } => write!(
                f,
                "the target needs {len} sectors from sector {start} on, but the device has only {dev_size} sectors"
            ),
            Error::StartUnaligned { start, block_size } => write!(
                f,
                "the offset of {start} sectors must be a multiple of {} sectors, the device's {block_size}-byte block",
                block_size / 512
            ),
            Error::LenUnaligned { len, block_size } => write!(
                f,
                "the length of {len} sectors must be a multiple of {} sectors, the device's {block_size}-byte block",
                block_size / 512
            ),
            Error::RegionUnaligned { region_size, block_size } => write!(
                f,
                "the region size of {region_size} sectors must be a multiple of {} sectors, or regions would cut \
                 the device's {block_size}-byte blocks",
                block_size / 512
            ),
            ref error => fmt::Display::fmt(error, f),
        }
    }
}

impl fmt::Display for Explain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.error {
            Error::NoTargets => f.write_str("the table is empty: it needs at least one target"),
            Error::ZeroLength => {
                f.write_str("the target's length is 0: it must have at least one sector")
            }
            Error::TooLarge { start, len } => write!(
                f,
                "the target of {len} sectors from sector {start} on ends past the longest device there can be, \
                 {MAX_DEVICE_SECTORS} sectors"
            ),
            Error::UnknownType => match self.word {
                Some(word) => write!(f, "there is no target type '{}'", Printable(word)),
                None => f.write_str("there is no such target type"),
            },
            Error::Gap { start, expected } => write!(
                f,
                "the target starts at sector {start}, but it must start at sector {expected}, \
                 where the one before it ends"
            ),
            Error::ContextMemory => f.write_str("there is no memory for the target"),
            Error::RegionTableTooLarge { regions } => write!(
                f,
                "the table of {regions} regions would not fit the address space: make the regions larger"
            ),
            Error::RegionTableMemory { regions } => {
                write!(
                    f,
                    "there is no memory for a table of {regions} regions: make the regions larger"
                )
            }
            Error::DeviceTooSmall { .. }
            | Error::StartUnaligned { .. }
            | Error::LenUnaligned { .. }
            | Error::RegionUnaligned { .. } => self.area(f),
            _ => self.constructor(f),
        }
    }
}
