//! Figures and how they are taken and printed; maps and random numbers for the benchmarks.

use std::sync::atomic::AtomicU64;
use std::time::Instant;

use blkswitch_core::switch::{Geometry, Map};
use serde_json::json;

/// A map over memory that is zero and not touched yet.
pub(crate) type LazyMap = Map<Box<[AtomicU64]>>;

/// One measured number.
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit }
    }
}

pub(crate) fn print(figures: &[Figure], as_json: bool) {
    if as_json {
        let list: Vec<_> = figures
            .iter()
            .map(|figure| json!({"name": figure.name, "value": figure.value, "unit": figure.unit}))
            .collect();
        println!("{:#}", json!(list));
        return;
    }
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
    for Figure { name, value, unit } in figures {
        println!("{name:width$}  {value:>12.3} {unit}");
    }
}

/// How often each thing is done, and which of the times counts.
#[derive(Clone, Copy)]
pub(crate) struct Rounds {
    pub(crate) count: usize,
    pub(crate) best: bool,
}

impl Rounds {
    /// Seconds of a call of `work`, each on what `prepare` made; a first call is not counted.
    pub(crate) fn seconds<T>(self, mut prepare: impl FnMut() -> T, mut work: impl FnMut(&T)) -> f64 {
        let mut seconds: Vec<f64> = (0..=self.count)
            .map(|_| {
                let input = prepare();
                let start = Instant::now();
                work(&input);
                start.elapsed().as_secs_f64()
            })
            .skip(1)
            .collect();
        seconds.sort_unstable_by(f64::total_cmp);
        let counts = if self.best { 0 } else { seconds.len() / 2 };
        seconds.get(counts).copied().unwrap_or(f64::NAN)
    }
}

/// A map of `regions` regions of one size, round robin.
pub(crate) fn lazy_map(regions: u64, num_paths: u32, region_size: u32) -> anyhow::Result<LazyMap> {
    let geometry = Geometry::new(regions * u64::from(region_size), num_paths, region_size)?;
    let storage = bytemuck::zeroed_slice_box(geometry.nr_slots());
    Map::new(geometry, storage).map_err(|_| anyhow::anyhow!("the storage is too short"))
}

/// A small generator of random numbers (splitmix64): the same ones in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}
