//! Units: sectors, region numbers and path numbers, so that they are not mixed up at public
//! boundaries.
//!
//! Contract: plain numbers with a name; nothing is checked here. Inside the functions that run once
//! per request or per message argument plain `u64` and `u32` are used, under names that carry the
//! unit.

use core::fmt;

/// Bytes in a sector: the unit of every size and offset in a table line, whatever the disks' own
/// blocks are.
pub const SECTOR_SIZE: u64 = 512;
/// `1 << SECTOR_SHIFT == SECTOR_SIZE`.
pub const SECTOR_SHIFT: u32 = 9;
/// The longest device, in sectors: its length in bytes still fits a signed 64-bit file offset.
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
    /// A place or a length in units of [`SECTOR_SIZE`] bytes.
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
    /// The same in bytes; `None` where that does not fit 64 bits.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        self.0.checked_mul(SECTOR_SIZE)
    }
}
