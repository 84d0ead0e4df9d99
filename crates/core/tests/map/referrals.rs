//! Tests of the parser for an array's referrals: correct answers and hostile ones.

use std::collections::BTreeMap;

use blkswitch_core::map::alua::{
    AccessState, AluaError, Port, PortGroups, report_target_port_groups,
};
use blkswitch_core::map::referrals::{
    Boundaries, Notice, Pattern, Placement, Progress, Reader, ReferralsError, has_referrals,
};
use blkswitch_core::switch::{Geometry, Map};
use proptest::prelude::*;

use crate::{map_of, paths_of};

type Group = (u8, u16);

/// Encodes the descriptor of a segment.
pub(crate) fn segment(first: u64, last: u64, groups: &[Group]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, groups.len() as u8];
    bytes.extend(first.to_be_bytes());
    bytes.extend(last.to_be_bytes());
    for (state, group) in groups {
        bytes.extend([*state, 0]);
        bytes.extend(group.to_be_bytes());
    }
    bytes
}

/// Encodes an answer with these descriptors.
pub(crate) fn answer(segments: &[Vec<u8>]) -> Vec<u8> {
    let bytes = segments.concat();
    let mut answer = vec![0, 0];
    answer.extend((bytes.len() as u16).to_be_bytes());
    answer.extend(bytes);
    answer
}

/// First block, last block and first group of each segment.
type Segments = Vec<(u64, u64, u16)>;

/// Calls `command` for each command of the reader until the list is complete.
pub(crate) fn read(
    mut reader: Reader,
    mut send: impl FnMut([u8; 16]) -> Vec<u8>,
) -> Result<(Segments, usize), ReferralsError> {
    let (mut segments, mut pages) = (Vec::new(), 0);
    loop {
        let page = send(reader.command(4096));
        pages += 1;
        let progress = reader.page(&page, |segment| {
            let group = segment.groups().next().unwrap().group;
            segments.push((segment.first, segment.last, group));
        })?;
        if progress == Progress::Complete {
            return Ok((segments, pages));
        }
    }
}

/// A unit that answers REPORT REFERRALS as SBC says: it lists segments from the requested block on
/// and cuts the list at the allocation length, which may be inside a descriptor.
fn unit(segments: &[(u64, u64, u16)]) -> impl FnMut([u8; 16]) -> Vec<u8> {
    let segments = segments.to_vec();
    move |command| {
        assert_eq!(command[..2], [0x9e, 0x13]);
        let block = u64::from_be_bytes(command[2..10].try_into().unwrap());
        let allocation = u32::from_be_bytes(command[10..14].try_into().unwrap());
        let mut page = vec![0; 4];
        let mut len = 0u64;
        for &(first, last, group) in segments.iter().filter(|(_, last, _)| *last >= block) {
            let bytes = segment(first, last, &[(0, group)]);
            len += bytes.len() as u64;
            page.extend(bytes);
        }
        page[2..4].copy_from_slice(&(len.min(0xffff) as u16).to_be_bytes());
        page.truncate(allocation as usize);
        page
    }
}

#[test]
fn a_list_comes_in_pages() {
    let segments: Segments = (0..1000).map(|nr| (nr * 10, nr * 10 + 9, (nr % 3) as u16)).collect();
    let (found, pages) = read(Reader::new(10_000, Pattern::List), unit(&segments)).unwrap();
    assert_eq!(found, segments);
    // A header has 4 bytes, a segment 24.
    assert_eq!(pages, 1000usize.div_ceil(4092 / 24));
}

/// Some units ignore the block and always send the list from its beginning.
#[test]
fn a_unit_that_always_sends_the_whole_list_ends() {
    let segments: Vec<Vec<u8>> = (0..100).map(|nr| segment(nr, nr, &[(0, 1)])).collect();
    let whole = answer(&segments);
    let (found, pages) = read(Reader::new(100, Pattern::List), |_| whole.clone()).unwrap();
    assert_eq!((found.len(), pages), (100, 1));
    // If the list is longer than one answer, reading it would never end, so it is refused.
    let refused = read(Reader::new(101, Pattern::List), |_| whole.clone());
    assert_eq!(refused, Err(ReferralsError::NoProgress { block: 100 }));
}

#[test]
fn an_answer_that_makes_no_sense_is_refused() {
    let refused = |blocks, pattern, segments: &[Vec<u8>]| {
        read(Reader::new(blocks, pattern), |_| answer(segments)).unwrap_err()
    };
    let list = |segments: &[Vec<u8>]| refused(100, Pattern::List, segments);
    let one = [(0, 1)];
    assert_eq!(
        list(&[segment(0, 9, &one), segment(5, 99, &one)]),
        ReferralsError::NotAdjacent { first: 5, expected: 10 }
    );
    let gap = list(&[segment(0, 9, &one), segment(11, 99, &one)]);
    assert_eq!(gap, ReferralsError::NotAdjacent { first: 11, expected: 10 });
    assert_eq!(
        gap.to_string(),
        "a segment begins at block 11, but it must begin at block 10, where the one before it ends"
    );
    assert_eq!(
        list(&[segment(0, 100, &one)]),
        ReferralsError::Range { first: 0, last: 100, blocks: 100 }
    );
    assert_eq!(
        list(&[segment(9, 3, &one)]),
        ReferralsError::Range { first: 9, last: 3, blocks: 100 }
    );
    assert_eq!(
        list(&[segment(0, u64::MAX, &one)]),
        ReferralsError::Range { first: 0, last: u64::MAX, blocks: 100 }
    );
    assert_eq!(list(&[segment(0, 99, &[])]), ReferralsError::NoGroups { first: 0 });
    assert_eq!(list(&[]), ReferralsError::NoProgress { block: 0 });
    assert_eq!(
        read(Reader::new(9, Pattern::List), |_| vec![0, 0, 9]).unwrap_err(),
        ReferralsError::Short { needed: 4, found: 3 }
    );
    let pattern = Pattern::Repeated { size: 10, count: 2 };
    assert_eq!(
        refused(100, pattern, &[segment(0, 8, &one)]),
        ReferralsError::Length { first: 0, found: 9, expected: 10 }
    );
}

#[test]
fn pages_of_vital_product_data() {
    let mut page = vec![0; 64];
    page[1] = 0x86;
    assert!(!has_referrals(&page));
    page[8] = 0x10;
    assert!(has_referrals(&page));
    assert!(!has_referrals(&page[..8]));
    let page = |size: u32, count: u32| {
        let mut page = vec![0, 0xb3, 0, 12, 0, 0, 0, 0];
        page.extend(size.to_be_bytes());
        page.extend(count.to_be_bytes());
        page
    };
    assert_eq!(Pattern::parse(&page(64, 0)), Ok(Pattern::List));
    assert_eq!(Pattern::parse(&page(64, 3)), Ok(Pattern::Repeated { size: 64, count: 3 }));
    assert_eq!(Pattern::parse(&page(0, 3)), Err(ReferralsError::SegmentSize));
    assert_eq!(
        Pattern::parse(&page(64, 3)[..15]),
        Err(ReferralsError::Short { needed: 16, found: 15 })
    );
    assert_eq!(Pattern::parse(&[0; 16]), Err(ReferralsError::Page { found: 0 }));
}

/// With a multiplier, one period describes the whole unit.
#[test]
fn a_pattern_repeats_to_the_end_of_the_unit() {
    // Blocks of 4 KiB: a region of 16 sectors has 2 blocks, a segment of 4 blocks has two regions.
    let map = map_of(&[0; 15], 3, 16);
    let mut reader = Reader::new(30, Pattern::Repeated { size: 4, count: 3 });
    let page =
        answer(&[segment(0, 3, &[(0, 10)]), segment(4, 7, &[(0, 20)]), segment(8, 11, &[(0, 30)])]);
    let geometry = *map.geometry();
    let placement = Placement::new(&geometry, &reader, 4096).unwrap();
    let mut writer = map.writer().unwrap();
    let progress = reader.page(&page, |segment| {
        let path = segment.best_path(|group| Some(u32::from(group) / 10 - 1)).unwrap();
        placement.place(&segment, path, &mut writer).unwrap();
    });
    assert_eq!(progress, Ok(Progress::Complete));
    drop(writer);
    assert_eq!(paths_of(&map), [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 0, 0, 1]);
}

#[test]
fn regions_must_divide_the_segments() {
    let map = map_of(&[0; 10], 2, 8);
    let geometry = *map.geometry();
    let reader = Reader::new(80, Pattern::List);
    let placement = Placement::new(&geometry, &reader, 512).unwrap();
    let page = answer(&[segment(0, 11, &[(0, 1)]), segment(12, 79, &[(0, 2)])]);
    let (mut results, mut boundaries) = (Vec::new(), Boundaries::new());
    let mut reader = reader;
    reader
        .page(&page, |segment| {
            boundaries.add(segment.first);
            results.push(placement.place(&segment, 1, &mut map.writer().unwrap()));
        })
        .unwrap();
    assert_eq!(results[0], Err(ReferralsError::Boundary { block: 12, region_blocks: 8 }));
    assert_eq!(boundaries.region_blocks(), Some(12));
    boundaries.add(40);
    assert_eq!(boundaries.region_blocks(), Some(4));
    assert_eq!(Boundaries::new().region_blocks(), None);

    let list = Reader::new(80, Pattern::List);
    for block_size in [0, 100, 513, 768, 8192] {
        let refused = Placement::new(&geometry, &list, block_size).unwrap_err();
        assert_eq!(refused, ReferralsError::Blocks { block_size });
    }
    let pattern = Reader::new(80, Pattern::Repeated { size: 12, count: 2 });
    assert_eq!(
        Placement::new(&geometry, &pattern, 512).unwrap_err(),
        ReferralsError::Boundary { block: 12, region_blocks: 8 }
    );
}

#[test]
fn the_best_group_with_a_path_gets_the_segment() {
    let groups = [(0x3, 1), (0x1, 2), (0x0, 3), (0x1, 4)];
    let page = answer(&[segment(0, 9, &groups)]);
    Reader::new(10, Pattern::List)
        .page(&page, |segment| {
            let best = |known: &[u16]| {
                segment.best_path(|group| known.contains(&group).then_some(u32::from(group)))
            };
            assert_eq!(best(&[1, 2, 3, 4]), Some(3));
            assert_eq!(best(&[1, 2, 4]), Some(2));
            assert_eq!(best(&[1]), Some(1));
            assert_eq!(best(&[9]), None);
        })
        .unwrap();
}

#[test]
fn target_port_groups() {
    assert_eq!(report_target_port_groups(0x1234)[..2], [0xa3, 0x0a]);
    let group = |state: u8, group: u16, ports: &[u16]| {
        let mut bytes = vec![state, 0x1f];
        bytes.extend(group.to_be_bytes());
        bytes.extend([0, 0, 0, ports.len() as u8]);
        ports.iter().for_each(|port| bytes.extend([[0, 0], port.to_be_bytes()].concat()));
        bytes
    };
    let all = |groups: &[Vec<u8>]| {
        let bytes = groups.concat();
        [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
    };
    let answer = all(&[group(0x84, 7, &[1, 2]), group(0x02, 8, &[3])]);
    let groups = PortGroups::parse(&answer).unwrap();
    let found: Vec<_> = groups
        .iter()
        .map(|group| (group.group, group.state, group.is_preferred, group.ports().collect()))
        .collect::<Vec<(u16, AccessState, bool, Vec<u16>)>>();
    assert_eq!(
        found,
        [
            (7, AccessState::LbaDependent, true, vec![1, 2]),
            (8, AccessState::Standby, false, vec![3])
        ]
    );
    assert!(groups.get(7).unwrap().can_be_lba_dependent && groups.get(9).is_none());
    let refused = |bytes: &[u8]| PortGroups::parse(bytes).unwrap_err();
    assert_eq!(refused(&answer[..20]), AluaError::More { needed: 32 });
    assert_eq!(refused(&[0, 0]), AluaError::Short { needed: 4, found: 2 });
    assert_eq!(
        refused(&all(&[group(0, 7, &[1]), group(0, 7, &[2])])),
        AluaError::Duplicate { group: 7 }
    );
    assert_eq!(refused(&all(&[group(0, 7, &[])])), AluaError::NoPorts { group: 7 });
    let mut cut = all(&[group(0, 7, &[1, 2])]);
    cut[11] = 3;
    assert_eq!(refused(&cut), AluaError::Short { needed: 24, found: 20 });
}

#[test]
fn the_port_of_a_path() {
    let designator =
        |kind: u8, value: &[u8]| [&[0x61, kind, 0, value.len() as u8][..], value].concat();
    let page = |designators: &[Vec<u8>]| {
        let bytes = designators.concat();
        [&[0, 0x83][..], &(bytes.len() as u16).to_be_bytes(), &bytes].concat()
    };
    let name = designator(0x03, &[0x60; 16]);
    let right =
        page(&[name.clone(), designator(0x94, &[0, 0, 0, 5]), designator(0x95, &[0, 0, 1, 2])]);
    assert_eq!(Port::parse(&right), Ok(Port { port: Some(5), group: Some(0x102) }));
    assert_eq!(Port::parse(&page(&[name])), Ok(Port::default()));
    assert_eq!(Port::parse(&[0, 0x80, 0, 0]), Err(AluaError::Page { found: 0x80 }));
    let len = right.len();
    assert_eq!(
        Port::parse(&right[..len - 1]),
        Err(AluaError::Short { needed: len, found: len - 1 })
    );
}

#[test]
fn sense_data() {
    assert_eq!(Notice::of(0x3f, 0x15), Some(Notice::Changed));
    assert_eq!(Notice::of(0x2a, 0x06), Some(Notice::Changed));
    assert_eq!(Notice::of(0x04, 0x0b), Some(Notice::Refused));
    assert_eq!((Notice::of(0x04, 0x09), Notice::of(0x2a, 0x01)), (None, None));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Segments of any lengths make the same map as the slow model.
    #[test]
    fn maps_are_the_model_s(
        lengths in prop::collection::vec((1u64..6, 0u16..4), 1..60),
        region_blocks in prop::sample::select(vec![1u64, 2, 8]), shift in 0u32..4,
        allocation in 24usize..400,
    ) {
        let block_size = 512u32 << shift;
        let mut model = Vec::new();
        let mut segments = Vec::new();
        let mut block = 0;
        for &(regions, group) in &lengths {
            let end = block + regions * region_blocks;
            segments.push((block, end - 1, group));
            model.extend((0..regions).map(|_| u32::from(group)));
            block = end;
        }
        let map = map_of(&vec![0; model.len()], 4, (region_blocks as u32) << shift);
        let geometry = *map.geometry();
        let mut reader = Reader::new(block, Pattern::List);
        let placement = Placement::new(&geometry, &reader, block_size).unwrap();
        let mut writer = map.writer().unwrap();
        let mut send = unit(&segments);
        loop {
            let page = send(reader.command(28 + allocation as u32));
            let progress = reader.page(&page, |segment| {
                let path = segment.best_path(|group| Some(group.into())).unwrap();
                placement.place(&segment, path, &mut writer).unwrap();
            }).unwrap();
            if progress == Progress::Complete {
                break;
            }
        }
        drop(writer);
        prop_assert_eq!(paths_of(&map), model);
    }

    /// Any bytes give an error or segments without gaps, in at most as many pages as there are
    /// blocks.
    #[test]
    fn any_bytes_end(
        pages in prop::collection::vec(prop::collection::vec(prop_oneof![
            4 => Just(0u8), 1 => 0u8..4, 1 => any::<u8>()], 0..120), 1..6),
        blocks in 1u64..40, size in 0u32..6, count in 0u32..4,
    ) {
        let pattern =
            if size > 0 && count > 0 { Pattern::Repeated { size, count } } else { Pattern::List };
        let mut reader = Reader::new(blocks, pattern);
        let mut next = 0;
        for page in &pages {
            let before = next;
            let progress = reader.page(page, |segment| {
                assert_eq!(segment.first, next);
                assert!(segment.groups().count() > 0);
                next = segment.last + 1;
            });
            match progress {
                Ok(Progress::Complete) | Err(_) => break,
                Ok(_) => prop_assert!(next > before),
            }
        }
        let _ = (PortGroups::parse(&pages[0]), Port::parse(&pages[0]), Pattern::parse(&pages[0]));
    }
}

/// Adjacent segments of one group become one run of the map.
#[test]
fn a_million_segments_make_a_map() {
    let geometry = Geometry::new(4_000_000, 4, 4).unwrap();
    let map = Map::new(geometry, bytemuck::zeroed_slice_box(geometry.nr_slots())).unwrap();
    let mut reader = Reader::new(4_000_000, Pattern::List);
    let placement = Placement::new(&geometry, &reader, 512).unwrap();
    let mut writer = map.writer().unwrap();
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    let mut first = 0u64;
    while first < 4_000_000 {
        let page: Vec<Vec<u8>> = (0..2730u64)
            .map(|nr| first + nr * 4)
            .take_while(|first| *first < 4_000_000)
            .map(|first| segment(first, first + 3, &[(0, (first / 4 % 7 % 4) as u16)]))
            .collect();
        first += 4 * page.len() as u64;
        reader
            .page(&answer(&page), |segment| {
                let path = segment.best_path(|group| Some(group.into())).unwrap();
                *counts.entry(path).or_default() += 1;
                placement.place(&segment, path, &mut writer).unwrap();
            })
            .unwrap();
    }
    assert_eq!(counts.values().sum::<u64>(), 1_000_000);
    // 999,998 is 6 modulo 7, and 6 is 2 modulo 4.
    assert_eq!(map.path(999_998), Some(2));
}
