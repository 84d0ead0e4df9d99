//! `create`: a map of a billion regions and 16 paths: time until it can be used, and memory it takes.

use std::hint::black_box;

use anyhow::Context;

use crate::report::{Figure, Rounds, lazy_map};

const REGIONS: u64 = 1_000_000_000;
const PATHS: u32 = 16;
const REGION_SIZE: u32 = 128;

pub(crate) fn run(rounds: Rounds) -> anyhow::Result<Vec<Figure>> {
    let before = resident_kib()?;
    // The compiler must not see that this memory is never used: it would leave it out.
    let map = black_box(lazy_map(REGIONS, PATHS, REGION_SIZE)?);
    black_box(map.route(REGIONS / 2));
    let after = resident_kib()?;
    drop(map);
    let seconds = rounds.seconds(
        || (),
        |()| {
            let map = black_box(lazy_map(REGIONS, PATHS, REGION_SIZE).expect("a map of a billion regions"));
            black_box(map.route(REGIONS / 2));
        },
    );
    Ok(vec![
        Figure::new("create and drop, 1000 M regions, 16 paths", seconds * 1e3, "ms"),
        Figure::new("resident memory for it", after.saturating_sub(before) as f64, "KiB"),
    ])
}

/// Resident memory of this process.
fn resident_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS in /proc/self/status")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS is not a number of kB")
}
