//! Tests of the decisions about whole maps, each against a slow model.

mod diff;
mod keep;
mod plan;
mod referrals;
mod speed;

use core::sync::atomic::AtomicU64;

use blkswitch_core::switch::{Geometry, Map, Message};
use proptest::prelude::*;

pub(crate) type BoxedMap = Map<Box<[AtomicU64]>>;

/// Makes a map of these paths. Each region has `region_size` sectors.
pub(crate) fn map_of(paths: &[u32], num_paths: u32, region_size: u32) -> BoxedMap {
    let len = paths.len() as u64 * u64::from(region_size);
    let geometry = Geometry::new(len, num_paths, region_size).unwrap();
    let map = Map::new(geometry, bytemuck::zeroed_slice_box(geometry.nr_slots())).unwrap();
    let mut writer = map.writer().unwrap();
    for (region, &path) in (0..).zip(paths) {
        assert!(writer.set(region, path));
    }
    drop(writer);
    map
}

pub(crate) fn paths_of<S: AsRef<[AtomicU64]>>(map: &Map<S>) -> Vec<u32> {
    (0..map.geometry().nr_regions()).map(|region| map.path(region).unwrap()).collect()
}

pub(crate) fn apply(map: &BoxedMap, text: &str) {
    Message::new().apply_text(&mut map.writer().unwrap(), text.as_bytes(), true).unwrap();
}

/// Numbers of paths at the limits of every width of an entry.
pub(crate) fn num_paths() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => 1u32..20,
        1 => prop::sample::select(vec![31, 32, 255, 256, 257, 4096, 65_537])
    ]
}

/// Paths of a map: runs of one path, of round robin, and of random paths.
pub(crate) fn paths(num_paths: u32) -> impl Strategy<Value = Vec<u32>> {
    let stretch = (0u32..3, any::<u64>(), 1usize..60);
    prop::collection::vec(stretch, 1..8).prop_map(move |stretches| {
        let mut paths: Vec<u32> = Vec::new();
        for (kind, seed, count) in stretches {
            for _ in 0..count {
                let region = paths.len() as u64;
                let number = match kind {
                    0 => seed,
                    1 => region,
                    _ => (seed ^ region).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7,
                };
                paths.push((number % u64::from(num_paths)) as u32);
            }
        }
        paths
    })
}

/// Two maps of the same regions, the second with a few changes.
pub(crate) fn two(num_paths: u32) -> impl Strategy<Value = (Vec<u32>, Vec<u32>)> {
    let changes = prop::collection::vec((any::<u64>(), 1usize..9, any::<u32>()), 0..12);
    (paths(num_paths), changes).prop_map(move |(before, changes)| {
        let mut after = before.clone();
        for (at, count, path) in changes {
            let at = (at % after.len() as u64) as usize;
            after.iter_mut().skip(at).take(count).for_each(|place| *place = path % num_paths);
        }
        (before, after)
    })
}
