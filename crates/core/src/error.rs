//! Errors of tables and constructors: the fault, the kernel's text and errno for it, and a longer
//! sentence.
//!
//! Contract: errors are small and `Copy`. They hold numbers and the position of a word, never text,
//! so the caller, which still has the words, formats them. `Display` of [`Error`] is the kernel's
//! exact text (texts with a device name need [`Error::of_device`]). [`Error::explain`] says what is
//! allowed. Messages have an error of their own, [`super::switch::MessageError`].

use core::fmt;

use super::args::Printable;
use super::switch::{MAX_PATHS, MAX_REGION_SIZE};
use super::table::{MAX_DEVICE_SECTORS, SECTOR_SHIFT};

macro_rules! errnos {
    ($($variant:ident = $number:literal, $name:literal, $text:literal;)*) => {
        /// The error numbers that a table, a message or a device look-up can end with, as Linux
        /// numbers them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
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

            /// The text of `strerror`, `Invalid argument`.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The errno with this positive number; `None` if this enum does not have it.
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

/// The reason why a table or a target was refused. `at` is the position of the wrong word among the
/// target's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// An unknown target type. Only the caller knows the types.
    UnknownType,
    /// A target that does not start at the end of the one before.
    Gap {
        /// Its first sector.
        start: u64,
        /// The first sector it should have.
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
    /// The remaining words are not a device and an offset for each path.
    PathArguments {
        /// Number of words needed: two for each path.
        expected: u64,
        /// Number of words found.
        found: usize,
    },
    /// No memory for the target itself.
    ContextMemory,
    /// The caller could not open a path's device.
    DeviceLookup {
        /// Number of the path.
        path: u32,
        /// The errno of the attempt to open it.
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
        /// Sectors needed from that sector on.
        len: u64,
        /// Size of the device in sectors.
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
    /// Region boundaries would lie inside a path's logical blocks. The kernel has no such check: it
    /// loads the table and later fails part of the I/O.
    RegionUnaligned {
        /// Region size in sectors.
        region_size: u32,
        /// Logical block size in bytes.
        block_size: u32,
    },
}

impl Error {
    /// The errno for the caller, the same as the kernel's.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::ContextMemory | Self::RegionTableMemory { .. } => Errno::Enomem,
            Self::DeviceLookup { errno, .. } => *errno,
            _ => Errno::Einval,
        }
    }

    /// The kernel's text with the device's name in its place.
    #[must_use]
    pub const fn of_device<'a>(&'a self, name: &'a str) -> OfDevice<'a> {
        OfDevice { error: self, name }
    }

    /// One sentence that quotes the wrong word (`None`: it is missing) and says what is allowed.
    #[must_use]
    pub const fn explain<'a>(&'a self, word: Option<&'a [u8]>) -> Explain<'a> {
        Explain { error: self, word }
    }

    /// Position of the wrong word among the words of the target.
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
                    "region size={region_size} not aligned to h/w logical block size {block_size} \
                     of {name}"
                )
            }
        }
    }
}

/// An [`Error`] as one sentence for people: the wrong word and what is allowed.
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
                "{expected} words must follow the optional arguments, a device and an offset for \
                 each path, but there are {found}"
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
                "the target needs {len} sectors from sector {start} on, but the device has only \
                 {dev_size} sectors"
            ),
            Error::StartUnaligned { start, block_size } => write!(
                f,
                "the offset of {start} sectors must be a multiple of {} sectors, the device's \
                 {block_size}-byte block",
                block_size >> SECTOR_SHIFT
            ),
            Error::LenUnaligned { len, block_size } => write!(
                f,
                "the length of {len} sectors must be a multiple of {} sectors, the device's \
                 {block_size}-byte block",
                block_size >> SECTOR_SHIFT
            ),
            Error::RegionUnaligned { region_size, block_size } => write!(
                f,
                "the region size of {region_size} sectors must be a multiple of {} sectors, or \
                 regions would cut the device's {block_size}-byte blocks",
                block_size >> SECTOR_SHIFT
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
                "the target of {len} sectors from sector {start} on ends past the longest device \
                 there can be, {MAX_DEVICE_SECTORS} sectors"
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
                "the table of {regions} regions would not fit the address space: make the regions \
                 larger"
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
