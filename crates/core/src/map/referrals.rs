//! Decodes the map that a SCSI unit reports: which target port group serves which blocks.
//!
//! An array with referrals says so in VPD page 86h ([`has_referrals`]). Its VPD page B3h has the
//! [`Pattern`]: with a multiplier, the segments repeat over the whole unit, and the answer
//! describes one period; without one, the answer lists every segment. REPORT REFERRALS has a length
//! of 16 bits, so a long list comes in pages. A [`Reader`] makes the commands and checks the
//! answers: segments must begin where the one before has ended, and each page must get further. So
//! an answer that overlaps, leaves a gap or never ends is refused, and bytes that came before do
//! not matter.
//!
//! ```
//! use blkswitch_core::map::alua::AccessState;
//! use blkswitch_core::map::referrals::{Pattern, Progress, Reader};
//!
//! // A unit of 300 blocks; groups 1 and 2 serve it.
//! let mut reader = Reader::new(300, Pattern::List);
//! assert_eq!(reader.command(1024)[..2], [0x9e, 0x13]);
//! let mut answer = vec![0, 0, 0, 48];
//! for (first, last, group) in [(0u64, 99u64, 1u8), (100, 299, 2)] {
//!     answer.extend([0, 0, 0, 1]);
//!     answer.extend(first.to_be_bytes());
//!     answer.extend(last.to_be_bytes());
//!     answer.extend([0, 0, 0, group]);
//! }
//! let mut segments = Vec::new();
//! let progress = reader.page(&answer, |segment| {
//!     let group = segment.groups().next().expect("a segment has a group");
//!     assert_eq!(group.state, AccessState::Optimized);
//!     segments.push((segment.first, segment.last, group.group));
//! })?;
//! assert_eq!(progress, Progress::Complete);
//! assert_eq!(segments, [(0, 99, 1), (100, 299, 2)]);
//! # Ok::<(), blkswitch_core::map::referrals::ReferralsError>(())
//! ```
//!
//! Facts are from SBC-4 and SBC-5. All places of segments are in logical blocks of the unit.
//!
//! Contract: any bytes; no allocation, no panic. The number of pages is bounded, because each must
//! get further.

use core::fmt;

use super::super::switch::regions::Storage;
use super::super::switch::{Geometry, MapWriter};
use super::alua::AccessState;
use super::scsi::{u8_at, u16_at, u32_at, u64_at};

/// Length of the header of an answer.
const HEADER_LEN: usize = 4;
/// Length of a segment's descriptor without its groups.
const SEGMENT_LEN: usize = 20;
/// Length of a group's descriptor.
const GROUP_LEN: usize = 4;

/// Whether a VPD page 86h says that the unit has referrals (bit R_SUP).
#[must_use]
pub fn has_referrals(page: &[u8]) -> bool {
    u8_at(page, 1) == Some(0x86) && u8_at(page, 8).is_some_and(|byte| byte & 0x10 != 0)
}

/// How the segments of a unit are described, from its VPD page B3h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pattern {
    /// The answer lists every segment.
    List,
    /// The answer describes `count` segments of `size` blocks. They repeat to the end of the unit.
    Repeated {
        /// Blocks of a segment, at least 1.
        size: u32,
        /// Number of segments in a period, at least 1.
        count: u32,
    },
}

impl Pattern {
    /// The pattern of a VPD page B3h.
    ///
    /// # Errors
    /// [`ReferralsError::Page`] for another page, [`ReferralsError::Short`] for a cut page, and
    /// [`ReferralsError::SegmentSize`] for a multiplier with segments of no blocks.
    pub fn parse(page: &[u8]) -> Result<Self, ReferralsError> {
        const LEN: usize = 16;
        let short = ReferralsError::Short { needed: LEN, found: page.len() };
        let code = u8_at(page, 1).ok_or(short)?;
        if code != 0xb3 {
            return Err(ReferralsError::Page { found: code });
        }
        let (size, count) = (u32_at(page, 8).ok_or(short)?, u32_at(page, 12).ok_or(short)?);
        // The page's own length must cover both numbers.
        if u16_at(page, 2).is_none_or(|len| usize::from(len).saturating_add(HEADER_LEN) < LEN) {
            return Err(short);
        }
        match (size, count) {
            (_, 0) => Ok(Self::List),
            (0, _) => Err(ReferralsError::SegmentSize),
            (size, count) => Ok(Self::Repeated { size, count }),
        }
    }
}

/// The first thing that is wrong with the referrals of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReferralsError {
    /// The answer is shorter than its header or page needs.
    Short {
        /// Number of bytes that are needed.
        needed: usize,
        /// Number of bytes that came.
        found: usize,
    },
    /// The page is not VPD page B3h.
    Page {
        /// The page's code.
        found: u8,
    },
    /// The page has a multiplier, but its segments have no blocks.
    SegmentSize,
    /// The answer does not get further: it has no whole segment from this block on.
    NoProgress {
        /// The block that was asked for.
        block: u64,
    },
    /// A segment ends before it begins, or past the end of the unit.
    Range {
        /// Its first block.
        first: u64,
        /// Its last block.
        last: u64,
        /// Number of blocks of the unit.
        blocks: u64,
    },
    /// A segment does not begin where the one before has ended: they overlap, or leave a gap.
    NotAdjacent {
        /// The first block of the segment.
        first: u64,
        /// The first block that it should have.
        expected: u64,
    },
    /// A segment has no group that could serve it.
    NoGroups {
        /// Its first block.
        first: u64,
    },
    /// A segment of a repeated pattern has another length.
    Length {
        /// The first block of the segment.
        first: u64,
        /// Its number of blocks.
        found: u64,
        /// The number of blocks from VPD page B3h.
        expected: u32,
    },
    /// A segment begins or ends inside a region.
    Boundary {
        /// The block at which it begins or ends.
        block: u64,
        /// Region size in blocks.
        region_blocks: u64,
    },
    /// No group of a segment has a path.
    NoPath {
        /// The first block of the segment.
        first: u64,
        /// The first of its groups.
        group: u16,
    },
    /// The unit's blocks and the map's sectors do not fit together.
    Blocks {
        /// Bytes of a block.
        block_size: u32,
    },
}

impl core::error::Error for ReferralsError {}

impl fmt::Display for ReferralsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { needed, found } => {
                write!(f, "the answer has {found} bytes, but {needed} are needed")
            }
            Self::Page { found } => {
                write!(f, "the answer is VPD page {found:02x}h, but page B3h was asked for")
            }
            Self::SegmentSize => {
                f.write_str("VPD page B3h has a segment multiplier, but a segment size of 0")
            }
            Self::NoProgress { block } => {
                write!(f, "the answer has no segment from block {block} on")
            }
            Self::Range { first, last, blocks } => write!(
                f,
                "a segment has the blocks {first} to {last}, which are not blocks of a unit of \
                 {blocks} blocks"
            ),
            Self::NotAdjacent { first, expected } => write!(
                f,
                "a segment begins at block {first}, but it must begin at block {expected}, where \
                 the one before it ends"
            ),
            Self::NoGroups { first } => {
                write!(f, "the segment at block {first} has no target port group")
            }
            Self::Length { first, found, expected } => write!(
                f,
                "the segment at block {first} has {found} blocks, but VPD page B3h says {expected}"
            ),
            Self::Boundary { block, region_blocks } => write!(
                f,
                "a segment ends at block {block}, which is inside a region of {region_blocks} blocks"
            ),
            Self::NoPath { first, group } => write!(
                f,
                "no path leads to a group of the segment at block {first} (its first group is \
                 {group:#06x})"
            ),
            Self::Blocks { block_size } => write!(
                f,
                "blocks of {block_size} bytes do not divide the regions, which are whole sectors of \
                 512 bytes"
            ),
        }
    }
}

/// The state of one group for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// The number of the target port group.
    pub group: u16,
    /// Its access state for the segment.
    pub state: AccessState,
}

/// A segment: neighbouring blocks that the same groups serve in the same states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The first block. In a repeated pattern this is the place in the first period.
    pub first: u64,
    /// The last block.
    pub last: u64,
    groups: &'a [u8],
}

impl<'a> Segment<'a> {
    /// The groups and their states; at least one.
    pub fn groups(&self) -> impl Iterator<Item = GroupState> + use<'a> {
        self.groups.chunks_exact(GROUP_LEN).filter_map(|bytes| {
            let state = AccessState::from_code(u8_at(bytes, 0)?);
            Some(GroupState { group: u16_at(bytes, 2)?, state })
        })
    }

    /// The path to the group that serves the segment best: of the groups with a path, the first in
    /// the best state. `path_of` gives the path of a group. Groups that serve no I/O come last,
    /// because their state may change before the first request.
    pub fn best_path(&self, path_of: impl Fn(u16) -> Option<u32>) -> Option<u32> {
        let with_path =
            self.groups().filter_map(|group| Some((group.state, path_of(group.group)?)));
        with_path.min_by_key(|(state, _)| *state).map(|(_, path)| path)
    }
}

/// The state of a list after a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The list is not complete. Send the next command.
    More,
    /// The list covers the unit.
    Complete,
}

/// Reads the referrals of one unit, page by page.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Blocks of the unit.
    blocks: u64,
    pattern: Pattern,
    /// The block at which the next segment must begin.
    next: u64,
    /// The block at which the list is complete.
    end: u64,
}

impl Reader {
    /// A reader for a unit of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u64, pattern: Pattern) -> Self {
        let end = match pattern {
            Pattern::List => blocks,
            Pattern::Repeated { size, count } => {
                blocks.min(u64::from(size).saturating_mul(u64::from(count)))
            }
        };
        Self { blocks, pattern, next: 0, end }
    }

    /// The next command REPORT REFERRALS, for an answer of at most `allocation` bytes.
    #[must_use]
    pub const fn command(&self, allocation: u32) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.next.to_be_bytes();
        let [k, l, m, n] = allocation.to_be_bytes();
        [0x9e, 0x13, a, b, c, d, e, f, g, h, k, l, m, n, 0, 0]
    }

    /// Takes an answer. Calls `each` for every new segment, in ascending order without gaps. A
    /// segment that was cut at the end of the answer is left to the next page, and segments of
    /// earlier pages are skipped, because some units always send the list from its beginning.
    ///
    /// # Errors
    /// The first thing that is wrong. The reader is at its end then, and segments that were passed
    /// to `each` must be forgotten.
    pub fn page<'a>(
        &mut self,
        answer: &'a [u8],
        mut each: impl FnMut(Segment<'a>),
    ) -> Result<Progress, ReferralsError> {
        let short = ReferralsError::Short { needed: HEADER_LEN, found: answer.len() };
        let len = usize::from(u16_at(answer, 2).ok_or(short)?);
        let end = len.saturating_add(HEADER_LEN).min(answer.len());
        let mut rest = answer.get(HEADER_LEN..end).ok_or(short)?;
        let begin = self.next;
        while self.next < self.end {
            let Some((segment, after)) = next_segment(rest) else { break };
            rest = after;
            self.check(&segment)?;
            if segment.last < self.next {
                continue;
            }
            if segment.first != self.next {
                let (first, expected) = (segment.first, self.next);
                return Err(ReferralsError::NotAdjacent { first, expected });
            }
            self.next = segment.last.saturating_add(1);
            each(segment);
        }
        if self.next >= self.end {
            Ok(Progress::Complete)
        } else if self.next == begin {
            Err(ReferralsError::NoProgress { block: begin })
        } else {
            Ok(Progress::More)
        }
    }

    /// Checks what a segment says of itself.
    fn check(&self, segment: &Segment<'_>) -> Result<(), ReferralsError> {
        let Segment { first, last, groups } = *segment;
        if first > last || last >= self.blocks {
            return Err(ReferralsError::Range { first, last, blocks: self.blocks });
        }
        if groups.is_empty() {
            return Err(ReferralsError::NoGroups { first });
        }
        if let Pattern::Repeated { size, .. } = self.pattern {
            let found = last.wrapping_sub(first).saturating_add(1);
            // The unit may end inside a segment.
            if found != u64::from(size) && last.saturating_add(1) != self.blocks {
                return Err(ReferralsError::Length { first, found, expected: size });
            }
        }
        Ok(())
    }
}

/// The first segment of the bytes and the bytes after it; `None` if it is not complete.
fn next_segment(bytes: &[u8]) -> Option<(Segment<'_>, &[u8])> {
    let groups = usize::from(u8_at(bytes, 3)?).checked_mul(GROUP_LEN)?;
    let (first, last) = (u64_at(bytes, 4)?, u64_at(bytes, 12)?);
    let (groups, after) = bytes.get(SEGMENT_LEN..)?.split_at_checked(groups)?;
    Some((Segment { first, last, groups }, after))
}

/// The greatest region size that divides all boundaries between segments: for the message that
/// refuses a region size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundaries {
    divisor: u64,
}

impl Boundaries {
    /// No boundary yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { divisor: 0 }
    }

    /// Adds the boundary before this block. The beginning of the unit is none.
    pub const fn add(&mut self, block: u64) {
        let (mut a, mut b) = (self.divisor, block);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        self.divisor = a;
    }

    /// The greatest region size in blocks; `None` if there is no boundary, so that any size will
    /// do.
    #[must_use]
    pub const fn region_blocks(&self) -> Option<u64> {
        if self.divisor == 0 { None } else { Some(self.divisor) }
    }
}

/// Puts segments onto a map.
#[derive(Debug)]
pub struct Placement<'a> {
    geometry: &'a Geometry,
    region_blocks: u64,
    period: u64,
    blocks: u64,
}

impl<'a> Placement<'a> {
    /// For the segments of `reader`'s unit, which has blocks of `block_size` bytes, on a map of
    /// this geometry.
    ///
    /// # Errors
    /// [`ReferralsError::Blocks`] if the block size is not a power of two of at least 512 bytes
    /// that divides the region size. [`ReferralsError::Boundary`] if regions do not divide the
    /// segments of a repeated pattern.
    pub fn new(
        geometry: &'a Geometry,
        reader: &Reader,
        block_size: u32,
    ) -> Result<Self, ReferralsError> {
        let block_sectors = u64::from(block_size >> super::super::table::SECTOR_SHIFT);
        let region_size = u64::from(geometry.region_size());
        if block_sectors == 0
            || !block_size.is_power_of_two()
            || region_size & block_sectors.wrapping_sub(1) != 0
        {
            return Err(ReferralsError::Blocks { block_size });
        }
        let region_blocks = region_size.checked_div(block_sectors).unwrap_or(1);
        let period = match reader.pattern {
            Pattern::List => u64::MAX,
            Pattern::Repeated { size, count } => {
                if u64::from(size).checked_rem(region_blocks) != Some(0) {
                    return Err(ReferralsError::Boundary { block: size.into(), region_blocks });
                }
                u64::from(size).saturating_mul(count.into())
            }
        };
        Ok(Self { geometry, region_blocks, period, blocks: reader.blocks })
    }

    /// Sends the regions of a segment to a path, in all periods. Regions past the end of the map
    /// are left out.
    ///
    /// # Errors
    /// [`ReferralsError::Boundary`] if the segment begins or ends inside a region, except at the
    /// end of the unit; and [`ReferralsError::NoPath`] if the map does not have this path.
    pub fn place<S: Storage>(
        &self,
        segment: &Segment<'_>,
        path: u32,
        writer: &mut MapWriter<'_, S>,
    ) -> Result<(), ReferralsError> {
        let region_blocks = self.region_blocks;
        let first = segment.first;
        let end = segment.last.saturating_add(1);
        for block in [first, end] {
            if block.checked_rem(region_blocks) != Some(0) && block < self.blocks {
                return Err(ReferralsError::Boundary { block, region_blocks });
            }
        }
        let group = segment.groups().next().map_or(0, |group| group.group);
        if path >= self.geometry.num_paths() {
            return Err(ReferralsError::NoPath { first, group });
        }
        let regions = self.geometry.nr_regions();
        let mut begin = first;
        loop {
            let last = begin.saturating_add(segment.last.saturating_sub(first));
            let mut region = begin.checked_div(region_blocks).unwrap_or(0);
            let last_region = last.checked_div(region_blocks).unwrap_or(0);
            if region >= regions {
                return Ok(());
            }
            while region <= last_region && writer.set(region, path) {
                region = region.wrapping_add(1);
            }
            match begin.checked_add(self.period) {
                Some(next) if next < self.blocks => begin = next,
                _ => return Ok(()),
            }
        }
    }
}

/// The meaning of sense data for the referrals of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The map has changed: read it again. (3F/15, inspect referrals indications; 2A/06, asymmetric
    /// access state changed.)
    Changed,
    /// The group does not serve these blocks now: read the map again, and send the request where it
    /// says. (04/0A to 04/0C: the group is in transition, in standby, or unavailable.)
    Refused,
}

impl Notice {
    /// The notice of an additional sense code and its qualifier. The codes of [`Notice::Refused`]
    /// are about referrals only if the group's state is [`AccessState::LbaDependent`].
    #[must_use]
    pub const fn of(asc: u8, ascq: u8) -> Option<Self> {
        match (asc, ascq) {
            (0x3f, 0x15) | (0x2a, 0x06) => Some(Self::Changed),
            (0x04, 0x0a..=0x0c) => Some(Self::Refused),
            _ => None,
        }
    }
}
