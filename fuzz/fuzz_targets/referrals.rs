//! Parses hostile answers of an array about referrals and target port groups. Any bytes give an
//! error, or segments that follow each other without a gap. Each page gets further, and a map takes
//! any segment.
//!
//! The first bytes choose the unit and its pattern; the rest is cut into pages by a length byte
//! each.

#![no_main]

use std::sync::atomic::AtomicU64;

use blkswitch_core::map::alua::{Port, PortGroups};
use blkswitch_core::map::referrals::{
    Boundaries, Pattern, Placement, Progress, Reader, has_referrals,
};
use blkswitch_core::switch::{Geometry, Map};
use libfuzzer_sys::fuzz_target;

/// Groups above this number have no path.
const PATHS: u32 = 5;

fuzz_target!(|input: (u16, [u8; 16], u8, &[u8])| {
    let (blocks, page, shape, mut rest) = input;
    let blocks = u64::from(blocks) + 1;
    let _ = has_referrals(rest);
    if let Ok(groups) = PortGroups::parse(rest) {
        for group in groups.iter() {
            assert!(group.ports().count() > 0);
            assert_eq!(groups.get(group.group).map(|same| same.state), Some(group.state));
        }
    }
    let _ = Port::parse(rest);

    let pattern = Pattern::parse(&page).unwrap_or(Pattern::List);
    let mut reader = Reader::new(blocks, pattern);
    let region_size = 1 << (shape % 8);
    let geometry = Geometry::new(blocks, PATHS, region_size).expect("a small map");
    let storage: Vec<AtomicU64> = (0..geometry.nr_slots()).map(|_| AtomicU64::new(0)).collect();
    let map = Map::new(geometry, storage).expect("as many slots as asked for");
    let mut writer = map.writer().expect("nobody else writes");
    let placement = Placement::new(map.geometry(), &reader, 512);
    let mut boundaries = Boundaries::new();
    let mut next = 0;
    while let Some((&len, after)) = rest.split_first() {
        let (page, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        let command = reader.command(4096);
        assert_eq!(command[2..10], u64::to_be_bytes(next));
        let before = next;
        let progress = reader.page(page, |segment| {
            assert_eq!(segment.first, next);
            assert!(segment.last >= segment.first && segment.last < blocks);
            assert!(segment.groups().count() > 0);
            next = segment.last + 1;
            boundaries.add(segment.first);
            let path =
                segment.best_path(|group| Some(u32::from(group)).filter(|path| *path < PATHS));
            if let (Ok(placement), Some(path)) = (&placement, path) {
                let placed = placement.place(&segment, path, &mut writer);
                // A region size that divides all boundaries so far places every segment.
                let divides = segment.first % u64::from(region_size) == 0
                    && (next % u64::from(region_size) == 0 || next == blocks);
                assert_eq!(placed.is_ok(), divides, "{placed:?}");
            }
        });
        match progress {
            Ok(Progress::Complete) | Err(_) => break,
            Ok(_) => assert!(next > before, "a page that gets no further is refused"),
        }
    }
    drop(writer);
    assert!(map.is_valid());
});
