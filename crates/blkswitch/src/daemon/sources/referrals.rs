//! The map that a SCSI array reports: REPORT REFERRALS (SBC-4), asked over the leaves of a switch's
//! paths.
//!
//! 1. Each path tells the target port group of its port (VPD page 83h).
//! 2. The first path that answers tells whether the unit has referrals (page 86h), how its segments
//!    are described (page B3h), and the groups with their states.
//! 3. It then tells the segments, page by page. Each goes to the path of the best group that serves
//!    it.
//!
//! The core decodes the answers and checks them ([`blkswitch_core::map`]). The segments are placed
//! on a map of their own. Only a complete and valid answer is compared with the map in use, so an
//! answer that makes no sense changes nothing.
//!
//! Contract: may block for [`READ_TIME`]. The memory is that of one map; the number of pages is
//! bounded, because every segment covers at least one region.

use std::fmt;
use std::io;
use std::time::Duration;

use blkswitch_core::map::alua::{self, AccessState, AluaError, Port, PortGroups};
use blkswitch_core::map::referrals::{
    Boundaries, Pattern, Placement, Progress, Reader, ReferralsError, Segment, has_referrals,
};
use blkswitch_core::switch::Geometry;
use blkswitch_core::table::SECTOR_SIZE;

use super::staged::{StagedMap, staged};

/// Longest wait for the answer to one query.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Bytes of an answer with pages of vital product data.
const PAGE_BYTES: u16 = 1024;
/// Bytes of a page of REPORT REFERRALS: the length of its descriptors has 16 bits.
const REFERRALS_BYTES: u32 = (1 << 16) + 3;
/// Bytes of the first and of the longest answer about port groups. A group has 8 bytes, a port 4.
const GROUPS_BYTES: [u32; 2] = [4096, 1 << 20];

/// Sends a query to the unit over one path: gets the command and room for the answer, and returns
/// the number of bytes that came.
pub(crate) type Ask<'a> = dyn Fn(&[u8], &mut [u8]) -> io::Result<usize> + 'a;

/// A path of the switch, as the array sees it.
pub(crate) struct AskedPath<'a> {
    /// Asks over each leaf of the path. The first that answers counts.
    pub(crate) leaves: Vec<Box<Ask<'a>>>,
    /// The target port group that the path had when it answered last.
    pub(crate) group: Option<u16>,
}

/// The unit's size, the same over every path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    pub(crate) blocks: u64,
    pub(crate) block_bytes: u32,
}

/// The array's answer.
#[derive(Debug)]
pub(crate) struct Told {
    /// The regions' paths.
    pub(crate) map: StagedMap,
    /// The target port group of each path; `None` for a path that has never answered.
    pub(crate) groups: Vec<Option<u16>>,
    /// The groups that no path leads to, with their states. Other groups serve their regions.
    pub(crate) without_path: Vec<(u16, AccessState)>,
}

/// Why the array's map cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// A query failed.
    #[error("{what} failed: {error}")]
    Query {
        /// The query.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// No leaf of any path answered.
    #[error("no path answers: {0}")]
    Unreachable(io::Error),
    /// The answer about port groups makes no sense.
    #[error("{what}: {error}")]
    Groups {
        /// The query.
        what: &'static str,
        /// The first thing that is wrong.
        error: AluaError,
    },
    /// The answer about referrals makes no sense, or does not fit the table.
    #[error("REPORT REFERRALS: {0}")]
    Referrals(ReferralsError),
    /// The unit has no referrals.
    #[error("the unit reports no referrals (VPD page 86h, bit R_SUP)")]
    NoReferrals,
    /// A path does not tell its group.
    #[error("path {0} does not tell the target port group of its port (VPD page 83h)")]
    NoGroup(usize),
    /// Two paths lead to one group.
    #[error(
        "paths {first} and {second} both lead to target port group {group}: each path of the switch \
         needs a group of its own; put the ports of one group into one multipath"
    )]
    SameGroup {
        /// The lower path.
        first: usize,
        /// The other path.
        second: usize,
        /// Their group.
        group: u16,
    },
    /// The regions do not divide the segments.
    #[error(
        "the array's segments do not begin at regions of {} sectors: {}", .size, fits(*.greatest)
    )]
    RegionSize {
        /// The region size of the table in sectors.
        size: u64,
        /// The greatest size that would do in sectors.
        greatest: u64,
    },
    /// There is no memory for another map.
    #[error("there is no memory for a second map of {0} regions")]
    Memory(u64),
}

fn fits(greatest: u64) -> impl fmt::Display {
    format!("regions of {greatest} sectors, or of a divisor of that, would fit")
}

/// Asks the array for its map.
///
/// # Errors
/// The first thing that is wrong; nothing has changed.
pub(crate) fn read(
    geometry: &Geometry,
    unit: Unit,
    paths: &[AskedPath<'_>],
) -> Result<Told, Fault> {
    let groups = groups_of(paths)?;
    let ask = first_that_answers(paths)?;
    let page = |page| inquiry(ask, page);
    if !has_referrals(&page(0x86)?) {
        return Err(Fault::NoReferrals);
    }
    let pattern = Pattern::parse(&page(0xb3)?).map_err(Fault::Referrals)?;
    let states = states(ask)?;
    let path_of = |group: u16| groups.iter().position(|known| *known == Some(group));
    let map = segments(geometry, unit, pattern, ask, |group| {
        path_of(group).and_then(|path| u32::try_from(path).ok())
    })?;
    let without_path = states.into_iter().filter(|(group, _)| path_of(*group).is_none()).collect();
    Ok(Told { map, groups, without_path })
}

/// The group of each path.
fn groups_of(paths: &[AskedPath<'_>]) -> Result<Vec<Option<u16>>, Fault> {
    let mut groups: Vec<Option<u16>> = Vec::with_capacity(paths.len());
    for (number, path) in paths.iter().enumerate() {
        let page = path.leaves.iter().find_map(|ask| inquiry(ask, 0x83).ok());
        let group = match page {
            // The ports of a path that is away stay in their group.
            None => path.group,
            Some(page) => {
                let what = "VPD page 83h";
                let port = Port::parse(&page).map_err(|error| Fault::Groups { what, error })?;
                Some(port.group.ok_or(Fault::NoGroup(number))?)
            }
        };
        let same = group.and_then(|group| groups.iter().position(|known| *known == Some(group)));
        if let (Some(first), Some(group)) = (same, group) {
            return Err(Fault::SameGroup { first, second: number, group });
        }
        groups.push(group);
    }
    Ok(groups)
}

/// The first leaf that answers a query.
fn first_that_answers<'a>(paths: &'a [AskedPath<'_>]) -> Result<&'a Ask<'a>, Fault> {
    let mut last = io::Error::from(io::ErrorKind::NotConnected);
    for ask in paths.iter().flat_map(|path| &path.leaves) {
        match inquiry(ask, 0x86) {
            Ok(_) => return Ok(ask),
            Err(Fault::Query { error, .. }) => last = error,
            Err(_) => {}
        }
    }
    // A unit that answers other pages has no page 86h.
    match paths.iter().flat_map(|path| &path.leaves).any(|ask| inquiry(ask, 0x83).is_ok()) {
        true => Err(Fault::NoReferrals),
        false => Err(Fault::Unreachable(last)),
    }
}

/// A page of vital product data.
fn inquiry(ask: &Ask<'_>, page: u8) -> Result<Vec<u8>, Fault> {
    let what = match page {
        0x83 => "INQUIRY of VPD page 83h",
        0x86 => "INQUIRY of VPD page 86h",
        _ => "INQUIRY of VPD page B3h",
    };
    let [high, low] = PAGE_BYTES.to_be_bytes();
    query(ask, &[0x12, 1, page, high, low, 0], u32::from(PAGE_BYTES), what)
}

fn query(ask: &Ask<'_>, cdb: &[u8], room: u32, what: &'static str) -> Result<Vec<u8>, Fault> {
    let mut answer = vec![0; room as usize];
    let came = ask(cdb, &mut answer).map_err(|error| Fault::Query { what, error })?;
    answer.truncate(came);
    Ok(answer)
}

/// The groups of the unit and their states.
fn states(ask: &Ask<'_>) -> Result<Vec<(u16, AccessState)>, Fault> {
    let what = "REPORT TARGET PORT GROUPS";
    let [first, most] = GROUPS_BYTES;
    let mut room = first;
    loop {
        let answer = query(ask, &alua::report_target_port_groups(room), room, what)?;
        match PortGroups::parse(&answer) {
            Ok(groups) => return Ok(groups.iter().map(|one| (one.group, one.state)).collect()),
            Err(AluaError::More { needed }) if room < most && needed <= u64::from(most) => {
                room = most;
            }
            Err(error) => return Err(Fault::Groups { what, error }),
        }
    }
}

/// Reads all segments and places them on a map.
fn segments(
    geometry: &Geometry,
    unit: Unit,
    pattern: Pattern,
    ask: &Ask<'_>,
    path_of: impl Fn(u16) -> Option<u32>,
) -> Result<StagedMap, Fault> {
    let map = staged(geometry).ok_or(Fault::Memory(geometry.nr_regions()))?;
    let mut writer = map.writer().ok_or(Fault::Memory(geometry.nr_regions()))?;
    let mut reader = Reader::new(unit.blocks, pattern);
    let placed = Placement::new(geometry, &reader, unit.block_bytes);
    let mut placement = match placed {
        Ok(placement) => Some(placement),
        // The message names the greatest size that would do, so all segments are read.
        Err(ReferralsError::Boundary { .. }) => None,
        Err(error) => return Err(Fault::Referrals(error)),
    };
    let (mut boundaries, mut count) = (Boundaries::new(), 0);
    if let Pattern::Repeated { size, .. } = pattern {
        boundaries.add(size.into());
    }
    loop {
        let command = reader.command(REFERRALS_BYTES);
        let answer = query(ask, &command, REFERRALS_BYTES, "REPORT REFERRALS")?;
        let mut fault = None;
        let mut place = |segment: Segment<'_>| {
            count += 1;
            boundaries.add(segment.first);
            if segment.last.saturating_add(1) < unit.blocks {
                boundaries.add(segment.last.saturating_add(1));
            }
            let Some(onto) = placement.as_ref().filter(|_| fault.is_none()) else { return };
            let Some(path) = segment.best_path(&path_of) else {
                let group = segment.groups().next().map_or(0, |group| group.group);
                fault = Some(ReferralsError::NoPath { first: segment.first, group });
                return;
            };
            match onto.place(&segment, path, &mut writer) {
                Ok(()) => {}
                Err(ReferralsError::Boundary { .. }) => placement = None,
                Err(error) => fault = Some(error),
            }
        };
        let progress = reader.page(&answer, &mut place).map_err(Fault::Referrals)?;
        if let Some(error) = fault {
            return Err(Fault::Referrals(error));
        }
        // Every segment of a list that fits covers at least one region.
        if count > geometry.nr_regions() && placement.is_some() {
            return Err(Fault::Referrals(ReferralsError::NoProgress { block: unit.blocks }));
        }
        let is_long = count > SEGMENTS_MAX && placement.is_none();
        if progress == Progress::Complete || is_long {
            break;
        }
    }
    drop(writer);
    if placement.is_none() {
        let block_sectors = u64::from(unit.block_bytes) / SECTOR_SIZE;
        let greatest = boundaries.region_blocks().unwrap_or(1).saturating_mul(block_sectors);
        return Err(Fault::RegionSize { size: geometry.region_size().into(), greatest });
    }
    Ok(map)
}

/// Most segments that are read only to find the greatest region size that would do.
const SEGMENTS_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// First block, last block, groups with their states.
    type Extent<'a> = (u64, u64, &'a [(u8, u16)]);
    /// Changes the answer to a command.
    type Spoil = Box<dyn Fn(&[u8], &mut Vec<u8>)>;

    /// A unit of 512-byte blocks whose answers a test may change.
    struct Array {
        blocks: u64,
        segments: Vec<Extent<'static>>,
        pattern: (u32, u32),
        groups: Vec<u16>,
        /// Most bytes of a page of referrals.
        page: usize,
        has_referrals: bool,
        asked: Cell<u32>,
        spoil: RefCell<Option<Spoil>>,
    }

    impl Array {
        fn new(blocks: u64, segments: &[Extent<'static>]) -> Array {
            Array {
                blocks,
                segments: segments.to_vec(),
                pattern: (0, 0),
                groups: vec![10, 20],
                page: 1 << 16,
                has_referrals: true,
                asked: Cell::new(0),
                spoil: RefCell::new(None),
            }
        }

        fn answer(&self, group: u16, cdb: &[u8], answer: &mut [u8]) -> io::Result<usize> {
            self.asked.set(self.asked.get() + 1);
            let mut data = match (cdb[0], cdb[1], cdb[2]) {
                (0x12, 1, 0x83) => {
                    let [high, low] = group.to_be_bytes();
                    vec![0, 0x83, 0, 8, 0x01, 0x15, 0, 4, 0, 0, high, low]
                }
                (0x12, 1, 0x86) => {
                    let mut page = vec![0; 64];
                    (page[1], page[3]) = (0x86, 60);
                    page[8] = if self.has_referrals { 0x10 } else { 0 };
                    page
                }
                (0x12, 1, 0xb3) => {
                    let mut page = vec![0, 0xb3, 0, 12, 0, 0, 0, 0];
                    page.extend(self.pattern.0.to_be_bytes());
                    page.extend(self.pattern.1.to_be_bytes());
                    page
                }
                (0xa3, 0x0a, _) => {
                    let mut data = (self.groups.len() as u32 * 12).to_be_bytes().to_vec();
                    for group in &self.groups {
                        let [high, low] = group.to_be_bytes();
                        data.extend([0x04, 0x10, high, low, 0, 0, 0, 1, 0, 0, 0, low]);
                    }
                    data
                }
                (0x9e, 0x13, _) => {
                    let from = u64::from_be_bytes(cdb[2..10].try_into().unwrap());
                    let mut data = vec![0; 4];
                    for (first, last, groups) in &self.segments {
                        if *last < from || data.len() + 20 + groups.len() * 4 > self.page {
                            continue;
                        }
                        data.extend([0, 0, 0, groups.len() as u8]);
                        data.extend(first.to_be_bytes());
                        data.extend(last.to_be_bytes());
                        for (state, group) in *groups {
                            let [high, low] = group.to_be_bytes();
                            data.extend([*state, 0, high, low]);
                        }
                    }
                    let len = ((data.len() - 4) as u16).to_be_bytes();
                    data[2..4].copy_from_slice(&len);
                    data
                }
                _ => return Err(io::Error::from_raw_os_error(libc_eopnotsupp())),
            };
            if let Some(spoil) = &*self.spoil.borrow() {
                spoil(cdb, &mut data);
            }
            let came = data.len().min(answer.len());
            answer[..came].copy_from_slice(&data[..came]);
            Ok(came)
        }

        fn paths(&self) -> Vec<AskedPath<'_>> {
            let path = |group: u16| {
                let ask: Box<Ask<'_>> =
                    Box::new(move |cdb, answer| self.answer(group, cdb, answer));
                AskedPath { leaves: vec![ask], group: None }
            };
            vec![path(10), path(20)]
        }

        fn read(&self, region_size: u32) -> Result<Told, Fault> {
            let geometry = Geometry::new(self.blocks, 2, region_size).unwrap();
            let unit = Unit { blocks: self.blocks, block_bytes: 512 };
            read(&geometry, unit, &self.paths())
        }

        fn paths_of(&self, region_size: u32) -> Vec<u32> {
            let told = self.read(region_size).unwrap();
            let regions = told.map.geometry().nr_regions();
            (0..regions).map(|region| told.map.path(region).unwrap()).collect()
        }
    }

    fn libc_eopnotsupp() -> i32 {
        crate::protocol::Errno::Eopnotsupp.number()
    }

    const OPTIMIZED: u8 = 0;
    const STANDBY: u8 = 2;

    fn two() -> Array {
        Array::new(
            64,
            &[
                (0, 31, &[(OPTIMIZED, 10), (STANDBY, 20)]),
                (32, 47, &[(STANDBY, 10), (OPTIMIZED, 20)]),
                (48, 63, &[(OPTIMIZED, 10), (STANDBY, 20)]),
            ],
        )
    }

    #[test]
    fn segments_go_to_the_path_of_the_group_that_serves_them() {
        let array = two();
        assert_eq!(array.paths_of(16), [0, 0, 1, 0]);
        let told = array.read(8).unwrap();
        assert_eq!(told.groups, [Some(10), Some(20)]);
        assert_eq!(told.without_path, []);
    }

    #[test]
    fn a_list_in_pages_and_a_pattern_that_repeats_give_the_same_map() {
        let mut pages = two();
        pages.page = 4 + 28;
        assert_eq!(pages.paths_of(16), [0, 0, 1, 0]);
        let mut pattern = Array::new(64, &[(0, 15, &[(0, 20)]), (16, 31, &[(0, 10)])]);
        pattern.pattern = (16, 2);
        assert_eq!(pattern.paths_of(16), [1, 0, 1, 0]);
        assert_eq!(pattern.paths_of(8), [1, 1, 0, 0, 1, 1, 0, 0]);
    }

    #[test]
    fn a_group_without_a_path_is_reported_and_another_group_serves_its_regions() {
        let mut array = Array::new(32, &[(0, 31, &[(OPTIMIZED, 30), (1, 20)])]);
        array.groups.push(30);
        let told = array.read(16).unwrap();
        assert_eq!(told.without_path, [(30, AccessState::LbaDependent)]);
        assert_eq!(array.paths_of(16), [1, 1]);
        let nobody = Array::new(32, &[(0, 31, &[(OPTIMIZED, 30)])]);
        let text = nobody.read(16).unwrap_err().to_string();
        assert!(text.contains("no path leads to a group"), "{text}");
    }

    #[test]
    fn a_path_that_is_away_keeps_its_group() {
        let array = two();
        let mut paths = array.paths();
        let away = || Box::new(|_: &[u8], _: &mut [u8]| Err(io::ErrorKind::NotConnected.into()));
        paths[1] = AskedPath { leaves: vec![away()], group: Some(20) };
        let geometry = Geometry::new(64, 2, 16).unwrap();
        let unit = Unit { blocks: 64, block_bytes: 512 };
        let told = read(&geometry, unit, &paths).unwrap();
        assert_eq!(told.groups, [Some(10), Some(20)]);
        assert_eq!((0..4).map(|region| told.map.path(region).unwrap()).max(), Some(1));
        paths[0] = AskedPath { leaves: vec![away()], group: None };
        let text = read(&geometry, unit, &paths).unwrap_err().to_string();
        assert!(text.starts_with("no path answers: "), "{text}");
    }

    #[test]
    fn a_region_size_that_does_not_fit_is_refused_with_the_greatest_that_would() {
        let array = Array::new(96, &[(0, 23, &[(0, 10)]), (24, 95, &[(0, 20)])]);
        let text = array.read(16).unwrap_err().to_string();
        let expected = "the array's segments do not begin at regions of 16 sectors: regions of 24 \
                        sectors, or of a divisor of that, would fit";
        assert_eq!(text, expected);
        assert_eq!(array.paths_of(24), [0, 1, 1, 1]);
        let mut pattern = Array::new(96, &[(0, 23, &[(0, 10)]), (24, 47, &[(0, 20)])]);
        pattern.pattern = (24, 2);
        let text = pattern.read(16).unwrap_err().to_string();
        assert!(text.contains("regions of 24 sectors"), "{text}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_first_thing_that_is_wrong() {
        let referrals = |change: fn(&mut Vec<u8>)| -> Spoil {
            Box::new(move |cdb, data| {
                if cdb[..2] == [0x9e, 0x13] {
                    change(data)
                }
            })
        };
        let cases: Vec<(Spoil, &str)> = vec![
            (referrals(|data| data[4 + 11] = 1), "segment begins at block 1"),
            (referrals(|data| data[4 + 28 + 11] = 30), "must begin at block 32"),
            (referrals(|data| data[4 + 28 + 11] = 34), "must begin at block 32"),
            (referrals(|data| data[4 + 3] = 0), "no target port group"),
            (referrals(|data| data[4 + 12] = 9), "are not blocks of a unit of 64 blocks"),
            (referrals(|data| data.truncate(2)), "has 2 bytes"),
            (referrals(|data| data[2..4].fill(0)), "no segment from block 0 on"),
            (
                Box::new(|cdb, data| {
                    if cdb[0] == 0xa3 {
                        data[4 + 7] = 0
                    }
                }),
                "REPORT TARGET PORT GROUPS: ",
            ),
            (
                Box::new(|cdb, data| {
                    if cdb[2] == 0x83 {
                        data[3] = 0
                    }
                }),
                "path 0 does not tell the target port group",
            ),
            (
                Box::new(|cdb, data| {
                    if cdb[2] == 0x83 {
                        data[11] = 10
                    }
                }),
                "paths 0 and 1 both lead to target port group 10",
            ),
            (
                Box::new(|cdb, data| {
                    if cdb[2] == 0xb3 {
                        data[1] = 0xb0
                    }
                }),
                "VPD page b0h",
            ),
        ];
        for (spoil, text) in cases {
            let array = two();
            *array.spoil.borrow_mut() = Some(spoil);
            let fault = array.read(16).unwrap_err().to_string();
            assert!(fault.contains(text), "'{fault}' lacks '{text}'");
            assert!(array.asked.get() < 20, "the number of queries is bounded");
        }
        let mut without = two();
        without.has_referrals = false;
        assert!(matches!(without.read(16), Err(Fault::NoReferrals)));
    }
}
