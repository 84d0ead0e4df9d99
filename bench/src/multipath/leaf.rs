//! An NBD leaf as the only client of a server, for comparison with fio's own connection.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use blkswitch_io::driver::{Ask, Driver};
use blkswitch_io::{AlignedBytes, Leaf, LeafOptions, TableBuilder, Target, To};

use super::servers::BYTES;
use crate::report::Random;

const BLOCK: usize = 4096;
const DEPTH: usize = 32;

/// Random reads of 4 KiB per second from the server of `address`, 32 at a time.
pub(super) fn per_second(address: &str, seconds: f64) -> Result<f64> {
    let mut driver = Driver::new()?;
    let options = LeafOptions { read_only: true, ..LeafOptions::new(driver.queues()) };
    let mut table = TableBuilder::new(true);
    let below = table.leaf(Leaf::open(&address.parse()?, &options)?);
    table.push(BYTES / 512, Target::Linear(To { below, offset: 0 }));
    let device = driver.add(table.build()?)?;

    let mut free: Vec<AlignedBytes> =
        (0..DEPTH).map(|_| AlignedBytes::zeroed(BLOCK)).collect::<std::io::Result<_>>()?;
    let (mut random, mut answers, mut under_way) = (Random(1), Vec::new(), 0);
    let (start, mut answered) = (Instant::now(), 0_u64);
    let time = Duration::from_secs_f64(seconds);
    while start.elapsed() < time {
        for data in free.drain(..) {
            let offset = random.below(BYTES / BLOCK as u64) * BLOCK as u64;
            driver.start(device, Ask::read(offset, data, 0));
            under_way += 1;
        }
        driver.wait(&mut answers, None)?;
        for answer in answers.drain(..) {
            answer.result.context("a read failed")?;
            answered += 1;
            under_way -= 1;
            free.push(answer.data);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    // Finish the reads, so that the server is idle for the next measurement.
    while under_way > 0 {
        driver.wait(&mut answers, None)?;
        under_way -= answers.drain(..).len();
    }
    Ok(answered as f64 / seconds)
}
