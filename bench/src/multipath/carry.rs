//! Carrying: measures random reads of 4 KiB, 32 at a time, from nbdkit directly, through NBD
//! leaves, and with a leaf as the only client. Then measures one and two servers with few threads,
//! which are the bottleneck.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::leaf;
use super::servers::{BYTES, Server};
use super::{DELAY_MS, NARROW, WIDE};
use crate::nbd::client::{Load, per_second};
use crate::nbd::lean::Lean;
use crate::nbd::{Scratch, process_cpu_ns};
use crate::report::Figure;

/// Reads of a run that measures the time of a read: some 50 ms.
const READS: u64 = 20_000;
/// Number of runs in a round.
const RUNS: usize = 20;
/// Pause after each run. The processor time of a sleeping daemon is exact.
const PAUSE: Duration = Duration::from_millis(2);

/// A daemon's processor time for a 4 KiB read over NBD, 32 at a time, from a file in memory: the
/// median in nanoseconds. A path over a network takes more.
pub(super) fn read_ns(rounds: usize, blkswitch: &Path) -> Result<f64> {
    let folder = Scratch::new()?;
    let file = folder.0.join("image");
    std::fs::write(&file, vec![0x5a; BYTES as usize])?;
    let ours = Server::daemon(&folder.0, "ours", blkswitch)?;
    ours.create("file", &format!("linear {} 0", file.display()))?;
    let mut client = Lean::connect(&ours.server.socket, "file", &Load::LAYER)?;
    let mut runs = Vec::with_capacity(rounds * RUNS);
    for _ in 0..rounds * RUNS {
        let before = process_cpu_ns(ours.server.id())?;
        client.carry(READS)?;
        std::thread::sleep(PAUSE);
        runs.push((process_cpu_ns(ours.server.id())? - before) as f64 / READS as f64);
    }
    runs.sort_unstable_by(f64::total_cmp);
    Ok(runs[runs.len() / 2])
}

pub(super) fn run(rounds: usize, seconds: f64, blkswitch: &Path) -> Result<Vec<Figure>> {
    let folder = Scratch::new()?;
    let server = |name, threads| Server::nbdkit(&folder.0, name, DELAY_MS, threads);
    let servers =
        [server("a", WIDE)?, server("b", WIDE)?, server("c", NARROW)?, server("d", NARROW)?];
    let ours = Server::daemon(&folder.0, "ours", blkswitch)?;
    let [a, b, c, d] = servers.each_ref().map(|server| server.leaf(""));
    ours.create("one", &format!("linear {a} 0"))?;
    ours.create("two", &format!("multipath 0 0 1 1 service-time 0 2 2 {a} 1 1 {b} 1 1"))?;
    ours.create("narrow1", &format!("multipath 0 0 1 1 queue-length 0 1 1 {c} 1"))?;
    ours.create("narrow2", &format!("multipath 0 0 1 1 queue-length 0 2 1 {c} 1 {d} 1"))?;
    ours.create("member", &format!("multipath 0 0 1 1 round-robin 0 1 1 {a} 1"))?;
    ours.create("tiers", "switch 1 128 0 /dev/blkswitch/member 0")?;
    let devices = [
        ("nbdkit, straight", servers[0].uri("")),
        ("an NBD leaf, served", ours.server.uri("one")),
        ("a multipath of two servers", ours.server.uri("two")),
        ("two tiers over one server", ours.server.uri("tiers")),
        ("one server of few threads", ours.server.uri("narrow1")),
        ("two servers of few threads", ours.server.uri("narrow2")),
    ];
    let mut runs: [Vec<f64>; 7] = Default::default();
    for round in 0..rounds {
        for place in 0..runs.len() {
            let run = (place + round) % runs.len();
            runs[run].push(match devices.get(run) {
                Some((_, uri)) => per_second(uri, &Load::PATHS, seconds)?,
                None => leaf::per_second(&a, seconds)?,
            });
        }
    }
    let medians = runs.map(|mut runs| {
        runs.sort_unstable_by(f64::total_cmp);
        runs[runs.len() / 2]
    });
    let mut figures = Vec::new();
    for ((name, _), median) in devices.iter().zip(medians) {
        figures.push(Figure::new(*name, median, "/s"));
    }
    figures.push(Figure::new("an NBD leaf alone", medians[6], "/s"));
    figures.push(Figure::new("an NBD leaf alone / straight", medians[6] / medians[0], "x"));
    for ((name, _), median) in devices.iter().zip(medians).skip(1).take(3) {
        figures.push(Figure::new(format!("{name} / straight"), median / medians[0], "x"));
    }
    figures.push(Figure::new("two servers / one of few threads", medians[5] / medians[4], "x"));
    Ok(figures)
}
