//! `pipeline`: measures the time that the pipeline's own code takes for a request, and the share of
//! the switch layer.
//!
//! One pipeline runs without I/O: requests of one sector at random offsets go in, 32 at a time, to
//! leaves that do nothing, and the answers come out. A linear target and a switch of three paths
//! take turns, so that other load on the machine affects both. With I/O and a client, their
//! difference would be too small to see.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use blkswitch_core::switch::{Geometry, Map};
use blkswitch_io::engine::Turn;
use blkswitch_io::pipeline::Pipeline;
use blkswitch_io::request::{Op, Request, Span};
use blkswitch_io::stats::Counters;
use blkswitch_io::table::{Live, region_storage};
use blkswitch_io::{Leaf, LeafOptions, Queues, TableBuilder, Target, To};

use crate::report::{Figure, Random, Rounds};

/// A million regions of 64 KiB, whose table fits a core's own cache.
const REGIONS: u64 = 1 << 20;
pub(crate) const REGION_SECTORS: u32 = 128;
pub(crate) const SECTORS: u64 = REGIONS * REGION_SECTORS as u64;
const BATCH: u64 = 32;
/// Batches in one measurement, which takes a few milliseconds.
const BATCHES: u64 = 2000;
/// Measurements of a round, each of both devices. The lowest one counts, because disturbances only
/// add time.
pub(crate) const TURNS: usize = 20;

/// The numbers of the devices.
const LINEAR: u32 = 0;
const SWITCH: u32 = 1;

pub(crate) fn run(rounds: Rounds) -> Result<Vec<Figure>> {
    let mut bench = Bench::new()?;
    let (mut linear, mut switch) = (f64::MAX, f64::MAX);
    for turn in 0..rounds.count * TURNS {
        let order = if turn % 2 == 0 { [LINEAR, SWITCH] } else { [SWITCH, LINEAR] };
        for device in order {
            let ns = bench.request_ns(device)?;
            let lowest = if device == LINEAR { &mut linear } else { &mut switch };
            *lowest = lowest.min(ns);
        }
    }
    Ok(vec![
        Figure::new("linear", linear, "ns/request"),
        Figure::new("switch of three paths", switch, "ns/request"),
        Figure::new("switch layer", switch - linear, "ns/request"),
    ])
}

pub(crate) struct Bench {
    pub(crate) queues: Queues,
    pipeline: Pipeline,
    ring: Turn,
    random: Random,
    data: Vec<u8>,
}

impl Bench {
    /// Makes a benchmark without devices.
    pub(crate) fn empty() -> Bench {
        Bench {
            queues: Queues::of_pipelines(1),
            pipeline: Pipeline::new(0),
            ring: Turn::simulated(),
            random: Random(1),
            data: vec![0; 512 * BATCH as usize],
        }
    }

    fn new() -> Result<Bench> {
        let mut bench = Bench::empty();
        bench.device(LINEAR, 1, |paths| Ok(Target::Linear(paths[0])))?;
        bench.device(SWITCH, 3, |paths| {
            let geometry = Geometry::new(SECTORS, 3, REGION_SECTORS)?;
            let storage = region_storage(&geometry).context("no memory for the map")?;
            let map = Map::new(geometry, storage).ok().context("the storage is too short")?;
            Ok(Target::Switch { map, paths: paths.into() })
        })?;
        Ok(bench)
    }

    /// Makes a live device over `paths` leaves.
    pub(crate) fn device(
        &mut self,
        number: u32,
        paths: usize,
        target: impl FnOnce(&[To]) -> Result<Target>,
    ) -> Result<()> {
        let options = LeafOptions::new(self.queues);
        let mut table = TableBuilder::new(false);
        let mut to = Vec::new();
        for _ in 0..paths {
            let leaf = Leaf::open(&format!("null:{}", SECTORS * 512).parse()?, &options)?;
            to.push(To { below: table.leaf(leaf), offset: 0 });
        }
        table.push(SECTORS, target(&to)?);
        self.install(number, table)
    }

    /// Makes a table live on a device.
    pub(crate) fn install(&mut self, number: u32, table: TableBuilder) -> Result<()> {
        // Unchecked, because devices below have no control side here that knows their lengths.
        let table = table.build_unchecked().served_by(self.queues).map_err(anyhow::Error::msg)?;
        let live = Live { table: Arc::new(table), departed: Box::default() };
        self.pipeline.install(number, Counters::boxed(8).into());
        self.pipeline.open(number, Some(Arc::new(live)), &mut self.ring);
        Ok(())
    }

    /// The mean time of many requests in nanoseconds.
    pub(crate) fn request_ns(&mut self, device: u32) -> Result<f64> {
        let mut done = Vec::new();
        let (mut answers, mut failed) = (0, 0);
        let start = Instant::now();
        for _ in 0..BATCHES {
            for token in 0..BATCH {
                let data = Span(self.data.as_mut_ptr().wrapping_add(512 * token as usize));
                let offset = self.random.below(SECTORS) * 512;
                let request = Request {
                    op: Op::Read,
                    fua: false,
                    offset,
                    len: 512,
                    data,
                    pages: None,
                    token,
                };
                if let Some(errno) = self.pipeline.start(device, &request, &mut self.ring) {
                    answers += 1;
                    failed += usize::from(errno != 0);
                }
            }
            self.pipeline.take_done(&mut done);
            answers += done.len() as u64;
            failed += done.drain(..).filter(|done| done.errno != 0).count();
        }
        let ns = start.elapsed().as_nanos() as f64;
        ensure!(
            answers == BATCHES * BATCH && failed == 0,
            "{answers} answers, {failed} of them failed"
        );
        Ok(ns / answers as f64)
    }
}
