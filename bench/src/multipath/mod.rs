//! `multipath`: measures the cost of choosing a path, the rate of a path over NBD, and the time of
//! a failover.
//!
//! It has three parts. Choosing: the pipeline's own code, as in `pipeline`, and its share of a
//! daemon's time for a read. Carrying: fio on nbdkit, directly and through NBD leaves, in
//! alternating rounds. nbdkit's answers take [`DELAY_MS`], as on a network, because without a delay
//! a machine of few cores measures how processor time is shared. Failing over: a server that is
//! killed, and one that stops answering, while a client reads.

mod carry;
mod choose;
mod fail_over;
mod leaf;
pub(crate) mod servers;

use anyhow::Result;
use clap::Args;

use crate::report::{Figure, Rounds};

/// Delay of an answer in milliseconds.
const DELAY_MS: u32 = 1;
/// Threads of a server that is not the bottleneck at the depth of the load.
const WIDE: u32 = 64;
/// Threads of a server that is the bottleneck: with the delay, at most some 4,000 answers a second.
const NARROW: u32 = 4;

/// The options.
#[derive(Args)]
pub(crate) struct MultipathOptions {
    /// Seconds of each run of fio
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Leave out long measurements: a silent server with the default time limit of half a minute
    #[arg(long)]
    short: bool,
}

impl MultipathOptions {
    /// The shortest run, which checks that everything works.
    pub(crate) fn smoke() -> Self {
        MultipathOptions { seconds: 0.2, short: true }
    }
}

pub(crate) fn run_all(rounds: Rounds, options: &MultipathOptions) -> Result<Vec<Figure>> {
    let blkswitch = crate::nbd::build()?;
    let mut figures = choose::run(rounds, carry::read_ns(rounds.count, &blkswitch)?)?;
    figures.extend(carry::run(rounds.count, options.seconds, &blkswitch)?);
    figures.extend(fail_over::run(&blkswitch, options.short)?);
    Ok(figures)
}
