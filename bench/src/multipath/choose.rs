//! Measures choosing a path and judging its answer, in nanoseconds per request: a multipath device
//! against a linear one, and a switch over multipath devices against a switch over leaves.

use anyhow::{Context, Result};
use blkswitch_core::multipath::{Item, Multipath, Params};
use blkswitch_io::pool::Registry;
use blkswitch_io::table::region_storage;
use blkswitch_io::{TableBuilder, Target, To};

use crate::pipeline::{Bench, REGION_SECTORS, SECTORS, TURNS};
use crate::report::{Figure, Rounds};

/// Selectors with the arguments of each path. MASK stands for the mask of a path's CPU.
const SELECTORS: [(&str, &str); 5] = [
    ("round-robin", "1"),
    ("queue-length", "1"),
    ("service-time", "1 1"),
    ("historical-service-time", "1"),
    ("io-affinity", "MASK"),
];
/// Numbers of paths of a device.
const PATHS: [usize; 3] = [1, 2, 8];
/// Paths of the upper tier's switch, and paths below each of them.
const MEMBERS: usize = 3;
const WAYS: usize = 2;

const LINEAR: u32 = 0;

/// `read_ns` is the time of a read over NBD, for comparison.
pub(super) fn run(rounds: Rounds, read_ns: f64) -> Result<Vec<Figure>> {
    let mut bench = Bench::empty();
    bench.device(LINEAR, 1, |paths| Ok(Target::Linear(paths[0])))?;
    let mut names = vec!["linear".to_owned()];
    for (selector, arguments) in SELECTORS {
        for paths in PATHS {
            bench.device(names.len() as u32, paths, |to| multipath(selector, arguments, to))?;
            names.push(format!("{selector}, {paths} paths"));
        }
    }
    let one_tier = names.len() as u32;
    bench.device(one_tier, MEMBERS, switch)?;
    names.push(format!("switch of {MEMBERS}"));
    two_tiers(&mut bench, one_tier + 1)?;
    names.push(format!("switch of {MEMBERS} over multipaths of {WAYS}"));
    let mut lowest = vec![f64::MAX; names.len()];
    for turn in 0..rounds.count * TURNS {
        // Each device is the first one in turn, so that other load on the machine affects all
        // alike.
        for place in 0..names.len() {
            let device = (place + turn) % names.len();
            lowest[device] = lowest[device].min(bench.request_ns(device as u32)?);
        }
    }
    let mut figures = vec![Figure::new("a 4 KiB read over NBD", read_ns, "ns/request")];
    let mut most = 0.0_f64;
    for (device, name) in names.iter().enumerate() {
        figures.push(Figure::new(name, lowest[device], "ns/request"));
        if device > LINEAR as usize && device < one_tier as usize {
            let cost = lowest[device] - lowest[LINEAR as usize];
            figures.push(Figure::new(format!("{name}: choose and judge"), cost, "ns/request"));
            let share = cost / read_ns * 100.0;
            figures.push(Figure::new(format!("{name}: of the read over NBD"), share, "%"));
            most = most.max(share);
        }
    }
    let tier = lowest[one_tier as usize + 1] - lowest[one_tier as usize];
    figures.push(Figure::new("the second tier", tier, "ns/request"));
    figures.push(Figure::new("choose and judge, at most: of the read over NBD", most, "%"));
    Ok(figures)
}

fn multipath(selector: &str, arguments: &str, to: &[To]) -> Result<Target> {
    let count = arguments.split(' ').count();
    let mut text = format!("0 0 1 1 {selector} 0 {} {count}", to.len());
    for path in 0..to.len() {
        // Each path gets one CPU.
        let arguments = arguments.replace("MASK", &format!("{:x}", 1 << path));
        text.push_str(&format!(" path{path} {arguments}"));
    }
    let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
    let mut params = Params::parse(&words)?;
    let (mut groups, mut paths) = (Vec::new(), Vec::new());
    while let Some(item) = params.next_item()? {
        match item {
            Item::Group(group) => groups.push(group.group()),
            Item::Path(path) => paths.push(path.path()?.path),
        }
    }
    let (features, initial) = (*params.features(), params.initial_group());
    let groups = Multipath::new(features, initial, groups.into(), paths.into());
    Ok(Target::Multipath { groups: groups.context("the paths do not fit")?, paths: to.into() })
}

fn switch(to: &[To]) -> Result<Target> {
    let geometry = blkswitch_core::switch::Geometry::new(SECTORS, to.len() as u32, REGION_SECTORS)?;
    let storage = region_storage(&geometry).context("no memory for the map")?;
    let map = blkswitch_core::switch::Map::new(geometry, storage)
        .ok()
        .context("the storage is too short")?;
    Ok(Target::Switch { map, paths: to.into() })
}

/// Makes a switch, device number `first`, over multipath devices with the next numbers.
fn two_tiers(bench: &mut Bench, first: u32) -> Result<()> {
    let registry = Registry::detached(bench.queues);
    // Devices without a control side have the lower numbers.
    let named = |number: u32| registry.create(&format!("device{number}"), "", Some(number));
    let top = named(first)?;
    let mut table = TableBuilder::new(false);
    let mut to = Vec::new();
    for member in 1..=MEMBERS as u32 {
        let device = named(first + member)?;
        bench.device(device.id(), WAYS, |paths| multipath("round-robin", "1", paths))?;
        to.push(To {
            below: table.device(&device).context("a device is being removed")?,
            offset: 0,
        });
    }
    table.push(SECTORS, switch(&to)?);
    bench.install(top.id(), table)
}
