//! `create`: measures a map of a billion regions and 16 paths: the time until it can be used, and
//! its memory. Then it measures a device with such a map in a daemon.
//!
//! With a ublk driver, a daemon keeps its maps in files, so that disks survive it. Then each map
//! has its full size from the start.

use std::fs::File;
use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::multipath::servers::Server;
use crate::nbd::Scratch;
use crate::report::{Figure, Rounds, lazy_map};

const REGIONS: u64 = 1_000_000_000;
const PATHS: u32 = 16;
const REGION_SIZE: u32 = 128;

pub(crate) fn run(rounds: Rounds) -> anyhow::Result<Vec<Figure>> {
    let before = resident_kib("self")?;
    // Hides from the compiler that this memory is never used; otherwise it would not be allocated.
    let map = black_box(lazy_map(REGIONS, PATHS, REGION_SIZE)?);
    black_box(map.route(REGIONS / 2));
    let after = resident_kib("self")?;
    drop(map);
    let seconds = rounds.seconds(
        || (),
        |()| {
            let map = black_box(
                lazy_map(REGIONS, PATHS, REGION_SIZE).expect("a map of a billion regions"),
            );
            black_box(map.route(REGIONS / 2));
        },
    );
    let mut figures = vec![
        Figure::new("create and drop, 1000 M regions, 16 paths", seconds * 1e3, "ms"),
        Figure::new("resident memory for it", after.saturating_sub(before) as f64, "KiB"),
    ];
    in_a_daemon(&mut figures)?;
    Ok(figures)
}

fn in_a_daemon(figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let blkswitch = crate::nbd::build()?;
    let folder = Scratch::new()?;
    let daemon = Server::daemon(&folder.0, "daemon", &blkswitch)?;
    // A sparse file as long as the device, in tmpfs, so that no other file system adds cost.
    let path = folder.0.join("path");
    let create = |name: &str, regions: u64| {
        let sectors = regions * u64::from(REGION_SIZE);
        let paths = format!(" {} 0", path.display()).repeat(PATHS as usize);
        let table = format!("0 {sectors} switch {PATHS} {REGION_SIZE} 0{paths}");
        ensure!(daemon.command(&["create", name, "--table", &table])?, "cannot create {name}");
        Ok(())
    };
    File::create(&path)?.set_len(REGIONS * u64::from(REGION_SIZE) * 512)?;
    // The extra memory of a first device does not belong to the map.
    create("small", 1000)?;
    let process = daemon.server.id().to_string();
    let (before, start) = (resident_kib(&process)?, Instant::now());
    create("large", REGIONS)?;
    let (spent, after) = (start.elapsed(), resident_kib(&process)?);
    figures.push(Figure::new(
        "such a device in a daemon, by command line",
        spent.as_secs_f64() * 1e3,
        "ms",
    ));
    figures.push(Figure::new(
        "resident memory of the daemon for it",
        after.saturating_sub(before) as f64,
        "KiB",
    ));
    figures.push(Figure::new("resident memory of the daemon", after as f64, "KiB"));
    Ok(())
}

/// Resident memory of a process.
fn resident_kib(process: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .with_context(|| format!("no VmRSS in {path}"))?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS is not a number of kB")
}
