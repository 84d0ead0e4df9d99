//! `multipath`: what choosing among paths costs, what a path over NBD carries, and how soon another
//! one is taken.
//!
//! Three parts. Choosing: our own code alone, as in `pipeline`,
//! and its share of what a daemon takes for a read. Carrying: fio on nbdkit, straight and through
//! leaves of ours, in alternating rounds; its answers take [`DELAY_MS`], as on a network, because
//! on a machine of few cores a server without delay measures how processor time is shared. Failing
//! over: a server that is killed, and one that stops answering, while a client reads.

mod carry;
mod choose;
mod fail_over;
mod leaf;
pub(crate) mod servers;

use anyhow::Result;
use clap::Args;

use crate::report::{Figure, Rounds};

/// What an answer takes besides its way, in milliseconds.
const DELAY_MS: u32 = 1;
/// Threads of a server that is not the limit at the depth of the load.
const WIDE: u32 = 64;
/// Threads of a server that is: with the delay, some 4,000 answers a second at most.
const NARROW: u32 = 4;

/// What may be chosen.
#[derive(Args)]
pub(crate) struct MultipathOptions {
    /// Seconds of each run of fio
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Leave out what takes long: a silent server with the default time limit of half a minute
    #[arg(long)]
    short: bool,
}

impl MultipathOptions {
    /// As short as a run can be: does everything work?
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
