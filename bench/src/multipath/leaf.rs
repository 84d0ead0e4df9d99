//! A leaf of ours as the client of a server, nothing in front of it: what fio's own connection is compared with.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blkswitch_io::request::{Op, Request, Span};
use blkswitch_io::stats::Counters;
use blkswitch_io::table::Live;
use blkswitch_io::{Driver, Leaf, LeafOptions, TableBuilder, Target, To};

use super::servers::BYTES;
use crate::report::Random;

const DEVICE: u32 = 0;
const BLOCK: usize = 4096;
const DEPTH: usize = 32;

/// Random reads of 4 KiB from the server of `address`, 32 at a time: how many in a second.
pub(super) fn per_second(address: &str, seconds: f64) -> Result<f64> {
    let options = LeafOptions { direct: None, read_only: true, queues: 1, make_bytes: None };
    let mut table = TableBuilder::new(true);
    let below = table.leaf(Leaf::open(&address.parse()?, &options)?);
    table.push(BYTES / 512, Target::Linear(To { below, offset: 0 }));
    let live = Live { table: table.build(1).into(), departed: Box::default() };
    let mut driver = Driver::new(0)?;
    driver.pipeline.install(DEVICE, Counters::boxed(8).into());
    driver.pipeline.open(DEVICE, Some(live.into()), &mut driver.ring);

    let mut data = vec![0; BLOCK * DEPTH];
    let (mut random, mut free, mut done) = (Random(1), (0..DEPTH).collect::<Vec<_>>(), Vec::new());
    let (start, mut answered) = (Instant::now(), 0_u64);
    let time = Duration::from_secs_f64(seconds);
    let mut seconds = f64::NAN;
    // What is under way at the end is waited for: its answers come into `data`.
    loop {
        if start.elapsed() < time {
            for slot in free.drain(..) {
                let data = Span(data.as_mut_ptr().wrapping_add(BLOCK * slot));
                let offset = random.below(BYTES / BLOCK as u64) * BLOCK as u64;
                let (op, len, token) = (Op::Read, BLOCK as u64, slot as u64);
                let request = Request { op, fua: false, offset, len, data, pages: None, token };
                ensure!(driver.start(DEVICE, &request).is_none(), "a server that answers before it is asked");
            }
        } else if seconds.is_nan() {
            seconds = start.elapsed().as_secs_f64();
        }
        if free.len() == DEPTH {
            return Ok(answered as f64 / seconds);
        }
        driver.wait(&mut done)?;
        for done in done.drain(..) {
            ensure!(done.errno == 0, "a read failed with errno {}", done.errno);
            answered += u64::from(seconds.is_nan());
            free.push(usize::try_from(done.token).context("a token that nobody gave")?);
        }
    }
}
