//! `lookup`: measures the look-up of random sectors, by size of the map, number of paths and region
//! size.
//!
//! Each figure is the time of one [`Map::route`](blkswitch_core::switch::Map::route) among many
//! independent ones, as for the requests of a batch. "In a chain", each sector depends on the route
//! before it, so the figure is the latency of one look-up.

use std::hint::black_box;

use crate::report::{Figure, LazyMap, Random, Rounds, lazy_map, writer};

const LOOKUPS: usize = 1_000_000;

pub(crate) fn run(rounds: Rounds) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for regions in [1_000_000, 100_000_000] {
        for num_paths in [2, 3, 5, 16] {
            for region_size in [128, 30_720, 100] {
                let map = filled(regions, num_paths, region_size)?;
                let name = format!(
                    "{} M regions, {num_paths} paths, size {region_size}",
                    regions / 1_000_000
                );
                let (batch, chain) = measure(rounds, &map);
                figures.push(Figure::new(&name, batch, "ns"));
                figures.push(Figure::new(format!("{name}, in a chain"), chain, "ns"));
            }
        }
    }
    Ok(figures)
}

/// A map without any round-robin region, so all of it is in memory.
fn filled(regions: u64, num_paths: u32, region_size: u32) -> anyhow::Result<LazyMap> {
    let map = lazy_map(regions, num_paths, region_size)?;
    let mut writer = writer(&map);
    let mut random = Random(regions);
    for region in 0..regions.min(4096) {
        writer.set(region, random.below(num_paths.into()) as u32);
    }
    let text = format!("{:x}:0 R1000,{:x}", regions.min(4096) - 1, regions - regions.min(4096));
    let applied =
        blkswitch_core::switch::Message::new().apply_text(&mut writer, text.as_bytes(), true);
    applied?;
    drop(writer);
    Ok(map)
}

/// Nanoseconds of a look-up: among many at once, and in a chain.
fn measure(rounds: Rounds, map: &LazyMap) -> (f64, f64) {
    let sectors = map.geometry().len_sectors();
    let mut random = Random(7);
    let places: Vec<u64> = (0..LOOKUPS).map(|_| random.below(sectors)).collect();
    let batch = rounds.seconds(
        || (),
        |()| {
            let mut sum = 0;
            for &sector in black_box(&places) {
                let route = map.route(sector);
                sum += u64::from(route.path) + route.left;
            }
            black_box(sum);
        },
    );
    let chain = rounds.seconds(
        || (),
        |()| {
            let mut before = 0;
            for &sector in black_box(&places) {
                // This is never above 1, but the compiler does not know that.
                before = u64::from(map.route(sector ^ before).path >> 31);
            }
            black_box(before);
        },
    );
    (batch * 1e9 / LOOKUPS as f64, chain * 1e9 / LOOKUPS as f64)
}
