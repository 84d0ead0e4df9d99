//! Units: types for sectors, region numbers and path numbers, so that public functions do not mix
//! them up.
//!
//! Contract: plain numbers with a name, without checks. Functions that run for each request or
//! message argument use plain `u64` and `u32`, under names that end in the unit.

use core::fmt;

/// Bytes of a sector, the unit of every size and offset in a table line. It does not depend on the
/// blocks of the disks.
pub const SECTOR_SIZE: u64 = 512;
/// `1 << SECTOR_SHIFT == SECTOR_SIZE`.
pub const SECTOR_SHIFT: u32 = 9;
/// The longest device in sectors: its length in bytes fits a signed 64-bit file offset.
pub const MAX_DEVICE_SECTORS: u64 = i64::MAX as u64 >> SECTOR_SHIFT;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl From<$inner> for $name {
            fn from(number: $inner) -> Self {
                Self(number)
            }
        }

        impl From<$name> for $inner {
            fn from(unit: $name) -> Self {
                unit.0
            }
        }
    };
}

unit! {
    /// A position or a length in units of [`SECTOR_SIZE`] bytes.
    Sector(u64)
}
unit! {
    /// The number of a region, counted from the start of its segment.
    RegionNr(u64)
}
unit! {
    /// The number of a path, counted from 0 in the order of the table line.
    PathNr(u32)
}

impl Sector {
    /// The number of bytes; `None` if it does not fit 64 bits.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        self.0.checked_mul(SECTOR_SIZE)
    }
}
