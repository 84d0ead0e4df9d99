//! Time limits, wide enough for a slow machine and an unoptimised build. `bench map` measures.

use std::time::{Duration, Instant};

use blkswitch_core::map::plan::{Share, balance, balance_heat, compact, count, evacuate};

use crate::map_of;

/// Plans for a million regions end in seconds even on a slow machine, so they are not quadratic.
#[test]
fn plans_for_a_million_regions_end_soon() {
    let paths: Vec<u32> = (0..1_000_000u64)
        .map(|region| (region.wrapping_mul(0x9e37_79b9) >> 20) as u32 % 4096)
        .collect();
    let map = map_of(&paths, 4096, 1);
    let mut shares = vec![Share::default(); 4096];
    let weights: Vec<u32> = (0..4096).map(|path| u32::from(path % 64 == 0)).collect();
    let sink = |_| Ok::<(), ()>(());
    let start = Instant::now();
    balance(&map, &weights, &mut shares, sink).unwrap();
    balance_heat(&map, &weights, |region| (region % 1000) as u32, &mut shares, sink).unwrap();
    count(&map, &mut shares);
    evacuate(&map, 7, &[], &mut shares, sink).unwrap();
    compact(&map, u64::MAX, &mut shares, sink).unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}
