//! Carrying: random reads of 4 KiB, 32 at a time, from nbdkit itself and through leaves of ours that lead to it.

use std::path::Path;

use anyhow::Result;

use super::DELAY_MS;
use super::servers::Server;
use crate::nbd::Scratch;
use crate::nbd::client::{Load, per_second};
use crate::report::Figure;

pub(super) fn run(rounds: usize, seconds: f64, blkswitch: &Path) -> Result<Vec<Figure>> {
    let folder = Scratch::new()?;
    let servers = [Server::nbdkit(&folder.0, "a", DELAY_MS)?, Server::nbdkit(&folder.0, "b", DELAY_MS)?];
    let ours = Server::daemon(&folder.0, "ours", blkswitch)?;
    let [a, b] = [&servers[0], &servers[1]].map(|server| server.leaf(""));
    ours.create("one", &format!("linear {a} 0"))?;
    ours.create("two", &format!("multipath 0 0 1 1 service-time 0 2 2 {a} 1 1 {b} 1 1"))?;
    ours.create("member", &format!("multipath 0 0 1 1 round-robin 0 1 1 {a} 1"))?;
    ours.create("tiers", "switch 1 128 0 /dev/blkswitch/member 0")?;
    let devices = [
        ("nbdkit, straight", servers[0].uri("")),
        ("an NBD leaf", ours.server.uri("one")),
        ("a multipath of two servers", ours.server.uri("two")),
        ("two tiers over one server", ours.server.uri("tiers")),
    ];
    let mut runs: [Vec<f64>; 4] = Default::default();
    for round in 0..rounds {
        for place in 0..devices.len() {
            let device = (place + round) % devices.len();
            runs[device].push(per_second(&devices[device].1, &Load::PATHS, seconds)?);
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
    for ((name, _), median) in devices.iter().zip(medians).skip(1) {
        figures.push(Figure::new(format!("{name} / straight"), median / medians[0], "x"));
    }
    Ok(figures)
}
