//! The sizes of a switch target, the packing of its entries, and division by constants.
//!
//! All of it is fixed when a table is loaded.
//!
//! Contract: plain numbers, `Copy`; no function panics for any argument. A device has less than
//! 2^54 sectors ([`MAX_DEVICE_SECTORS`] is 2^54 - 1). For a larger sector number, a function
//! returns a meaningless value that is within the documented range.

use core::num::NonZeroU64;

use super::super::error::Error;
use super::super::table::MAX_DEVICE_SECTORS;

/// Most paths of a target. The kernel keeps them in one allocation of at most 4 MiB, 16 bytes each.
pub const MAX_PATHS: u32 = 262_141;
/// Most sectors in a region: the largest number of 32 bits.
pub const MAX_REGION_SIZE: u32 = u32::MAX;

/// Bits of a sector or region number, those of [`MAX_DEVICE_SECTORS`].
const NUMBER_BITS: u32 = u64::BITS - MAX_DEVICE_SECTORS.leading_zeros();
/// Shift that moves a number to the top of a word.
const TO_TOP: u32 = u64::BITS - NUMBER_BITS;
/// log2 of the number of bits in a slot.
const SLOT_BITS_LOG2: u32 = u64::BITS.trailing_zeros();

/// Divides numbers below 2^54 by a constant: one multiplication, of which it keeps the high half,
/// and one shift.
///
/// The result is exact. Let d be the divisor, L the smallest with 2^L >= d, and m = ceil(2^(54+L) /
/// d). Then
/// m d = 2^(54+L) + e with 0 <= e < d <= 2^L. For n < 2^54 write n = q d + r with r < d:
///
/// ```text
/// n m / 2^(54+L) = n (2^(54+L) + e) / (d 2^(54+L)) = q + r/d + (n / 2^54) (e / 2^L) / d
/// ```
///
/// The last term is at least 0 and below 1/d, as n < 2^54 and e < 2^L; r/d is at most (d-1)/d. So
/// the sum lies in [q, q + 1) and its floor is q. n is first moved up by 10 bits, so the quotient
/// is the high half of (n 2^10) m shifted down by L alone: floor(floor(x / 2^64) / 2^L) = floor(x /
/// 2^(64+L)). m fits 64 bits: as 2^(L-1) is below d, m is at most 2^55 (for L = 0, d = 1, it is
/// 2^54).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quotient {
    multiplier: u64,
    shift: u32,
}

impl Quotient {
    fn new(divisor: u32) -> Option<Self> {
        let divisor = NonZeroU64::new(u64::from(divisor))?;
        let shift = u64::BITS.wrapping_sub(divisor.get().wrapping_sub(1).leading_zeros());
        // 2^(54 + shift) / divisor in two steps, as a 128-bit division would be a library call. The
        // remainder is below 2^32 and so is 2^shift at most 2^32: moved up by `shift` it fits.
        let one = 1u64 << NUMBER_BITS;
        let (high, remainder) = (one / divisor, (one % divisor).wrapping_shl(shift));
        let low = remainder.wrapping_add(divisor.get().wrapping_sub(1)) / divisor;
        Some(Self { multiplier: high.wrapping_shl(shift).wrapping_add(low), shift })
    }

    #[inline]
    const fn of(self, number: u64) -> u64 {
        let product = (number << TO_TOP) as u128 * self.multiplier as u128;
        ((product >> u64::BITS) as u64).wrapping_shr(self.shift)
    }
}

/// Computes remainders by a constant with two multiplications.
///
/// The result is exact for numbers n with n d <= 2^64. Let m = ceil(2^64 / d), so that m d = 2^64 +
/// e with 0 <= e < d, and let n = q d + r with r < d. Modulo 2^64, m n = m d q + m r is f = e q + m
/// r, and
///
/// ```text
/// f d = e q d + (2^64 + e) r = 2^64 r + e n
/// ```
///
/// with e n < 2^64 (as e < d), so f d < 2^64 (r + 1) <= 2^64 d: f itself is below 2^64, nothing of
/// it was lost, and the high half of f d is r. For d = 1, m is 2^64, which is stored as 0; the
/// remainder is then 0, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remainder {
    multiplier: u64,
    divisor: u32,
}

impl Remainder {
    fn new(divisor: u32) -> Option<Self> {
        // ceil(2^64 / d) is floor((2^64 - 1) / d) + 1 for every d.
        let multiplier = (u64::MAX / NonZeroU64::new(u64::from(divisor))?).wrapping_add(1);
        Some(Self { multiplier, divisor })
    }

    #[inline]
    const fn of(self, number: u64) -> u32 {
        let fraction = self.multiplier.wrapping_mul(number);
        ((fraction as u128 * self.divisor as u128) >> u64::BITS) as u32
    }
}

/// Marks a size that is not a power of two. No size has these values. They take one comparison; an
/// `Option` would take two words and more code.
const NO_SHIFT: u32 = u32::MAX;
const NO_MASK: u32 = u32::MAX;

/// The fixed sizes of a switch target: length, region size, number of paths, and what follows from
/// them.
///
/// It is `Copy` and knows nothing about the paths that regions have; [`super::Map`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    region: Quotient,
    round_robin: Remainder,
    /// log2 of the region size if that is a power of two, else [`NO_SHIFT`].
    region_shift: u32,
    /// The number of paths less one if it is a power of two, else [`NO_MASK`].
    path_mask: u32,
    entry_mask: u64,
    entry_bits_log2: u32,
    region_size: u32,
    nr_regions: u64,
    len_sectors: u64,
}

impl Geometry {
    /// The geometry of a target of `len_sectors` sectors with `num_paths` paths and regions of
    /// `region_size` sectors. The last region may be shorter.
    ///
    /// # Errors
    /// [`Error::NumPaths`] if `num_paths` is not in 1..=[`MAX_PATHS`], [`Error::RegionSize`] if
    /// `region_size` is 0, [`Error::ZeroLength`] and [`Error::TooLarge`] for a length that no
    /// device has, and [`Error::RegionTableTooLarge`] if the region table would not fit the address
    /// space.
    ///
    /// ```
    /// use blkswitch_core::switch::Geometry;
    /// let geometry = Geometry::new(41_963_520, 2, 30_720)?;
    /// assert_eq!(geometry.nr_regions(), 1366);
    /// # Ok::<(), blkswitch_core::error::Error>(())
    /// ```
    pub fn new(len_sectors: u64, num_paths: u32, region_size: u32) -> Result<Self, Error> {
        if num_paths > MAX_PATHS {
            return Err(Error::NumPaths { at: 0 });
        }
        let round_robin = Remainder::new(num_paths).ok_or(Error::NumPaths { at: 0 })?;
        let region = Quotient::new(region_size).ok_or(Error::RegionSize { at: 1 })?;
        if len_sectors == 0 {
            return Err(Error::ZeroLength);
        }
        if len_sectors > MAX_DEVICE_SECTORS {
            return Err(Error::TooLarge { start: 0, len: len_sectors });
        }
        let nr_regions = region.of(len_sectors.wrapping_sub(1)).wrapping_add(1);
        // An entry has a power of two of bits (1, 2, 4, 8, 16, 32), not the exact width. So shifts
        // give the slot and the position in it, without another division, and code can work on all
        // entries of a slot at once. This takes less than twice the memory of the exact width (5
        // paths: 4 bits instead of 3).
        let path_bits = u32::BITS.wrapping_sub(num_paths.wrapping_sub(1).leading_zeros());
        let entry_bits_log2 = u32::BITS.wrapping_sub(path_bits.saturating_sub(1).leading_zeros());
        let entry_mask = 1u64.wrapping_shl(1u32.wrapping_shl(entry_bits_log2)).wrapping_sub(1);
        let geometry = Self {
            region,
            round_robin,
            region_shift: if region_size.is_power_of_two() {
                region_size.trailing_zeros()
            } else {
                NO_SHIFT
            },
            path_mask: if num_paths.is_power_of_two() {
                num_paths.wrapping_sub(1)
            } else {
                NO_MASK
            },
            entry_mask,
            entry_bits_log2,
            region_size,
            nr_regions,
            len_sectors,
        };
        let too_large = Error::RegionTableTooLarge { regions: nr_regions };
        // Beyond this product, remainders are not exact. No memory holds a table of that size.
        nr_regions.checked_mul(u64::from(num_paths)).ok_or(too_large)?;
        match usize::try_from(geometry.slots()) {
            Ok(slots) if slots <= isize::MAX as usize / size_of::<u64>() => Ok(geometry),
            _ => Err(too_large),
        }
    }

    /// Length of the target in sectors.
    #[must_use]
    pub const fn len_sectors(&self) -> u64 {
        self.len_sectors
    }

    /// Size of a region in sectors; the last region of a target may be shorter.
    #[must_use]
    pub const fn region_size(&self) -> u32 {
        self.region_size
    }

    /// Number of paths, in 1..=[`MAX_PATHS`].
    #[must_use]
    pub const fn num_paths(&self) -> u32 {
        self.round_robin.divisor
    }

    /// Number of regions, at least 1.
    #[must_use]
    pub const fn nr_regions(&self) -> u64 {
        self.nr_regions
    }

    /// Number of 64-bit words that the storage of a [`super::Map`] needs.
    #[must_use]
    pub const fn nr_slots(&self) -> usize {
        // `new` has checked that the number fits.
        self.slots() as usize
    }

    /// The region of a sector, which counts from the target's start.
    #[inline]
    #[must_use]
    pub const fn region_of(&self, sector: u64) -> u64 {
        self.place_of(sector).0
    }

    /// The region of a sector, and the number of sectors before it in that region. If the region
    /// size is a power of two, a shift takes the place of the multiplication. `new` decides that,
    /// so the branch always goes the same way and costs less than the multiplication.
    #[inline(always)]
    pub(super) const fn place_of(&self, sector: u64) -> (u64, u64) {
        let size = self.region_size as u64;
        if self.region_shift != NO_SHIFT {
            return (sector.wrapping_shr(self.region_shift), sector & size.wrapping_sub(1));
        }
        let sector = Self::valid_sector_bits(sector);
        let region = self.region.of(sector);
        (region, sector.wrapping_sub(region.wrapping_mul(size)))
    }

    /// First sector and length in sectors of a region; `None` past the last region.
    #[must_use]
    pub const fn region_extent(&self, region: u64) -> Option<(u64, u64)> {
        if region >= self.nr_regions {
            return None;
        }
        let start = region.wrapping_mul(self.region_size as u64);
        let left = self.len_sectors.wrapping_sub(start);
        let size = self.region_size as u64;
        Some((start, if left < size { left } else { size }))
    }

    /// The path of a region before any message: round robin. It is below `num_paths` for any
    /// number.
    #[inline]
    #[must_use]
    pub const fn default_path(&self, region: u64) -> u32 {
        if self.path_mask != NO_MASK {
            return region as u32 & self.path_mask;
        }
        self.round_robin.of(region)
    }

    /// The path of a region with this entry; it is below `num_paths` if the entry is valid.
    #[inline(always)]
    pub(super) const fn path_of(&self, region: u64, entry: u64) -> u32 {
        if self.path_mask != NO_MASK {
            return (entry as u32).wrapping_add(region as u32) & self.path_mask;
        }
        let path = entry.wrapping_add(self.round_robin.of(region) as u64);
        let less = path.wrapping_sub(self.round_robin.divisor as u64);
        // If `path` is valid, `less` has wrapped to a number near 2^64. So the smaller one is
        // right.
        if path < less { path as u32 } else { less as u32 }
    }

    /// A sector number without the bits that no sector number has.
    #[inline]
    const fn valid_sector_bits(sector: u64) -> u64 {
        sector & (u64::MAX >> TO_TOP)
    }

    /// log2 of the number of bits of an entry: 0 to 5.
    #[inline]
    pub(super) const fn entry_bits_log2(&self) -> u32 {
        self.entry_bits_log2
    }

    /// Number of bits of an entry: 1, 2, 4, 8, 16 or 32.
    #[inline]
    #[must_use]
    pub const fn entry_bits(&self) -> u32 {
        1u32.wrapping_shl(self.entry_bits_log2)
    }

    /// Mask of the lowest entry in a slot.
    #[inline]
    pub(super) const fn entry_mask(&self) -> u64 {
        self.entry_mask
    }

    /// Number of entries in a slot: 64, 32, 16, 8, 4 or 2.
    #[inline]
    pub(super) const fn slot_entries(&self) -> u64 {
        (u64::BITS as u64).wrapping_shr(self.entry_bits_log2)
    }

    /// Index of the slot with a region's entry.
    #[inline]
    pub(super) const fn slot_of(&self, region: u64) -> u64 {
        region.wrapping_shr(SLOT_BITS_LOG2.wrapping_sub(self.entry_bits_log2))
    }

    /// Position of the lowest bit of a region's entry in its slot.
    #[inline]
    pub(super) const fn bit_of(&self, region: u64) -> u32 {
        region.wrapping_shl(self.entry_bits_log2) as u32 & (u64::BITS - 1)
    }

    const fn slots(&self) -> u64 {
        self.slot_of(self.nr_regions.wrapping_sub(1)).wrapping_add(1)
    }
}
