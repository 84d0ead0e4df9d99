//! Runs the simulation of the whole data path (tests/sim/), for any number of seeds, or for one
//! seed in detail.
//!
//! `cargo run --release -p blkswitch-io --example simulate -- --seed N [--steps M]` replays one
//! seed and prints what happens. `-- --from N --count C [--steps M]` runs many seeds and fails at
//! the first one where the data path disagrees with the model.

#[allow(unreachable_pub, reason = "shared with the tests")]
#[path = "../tests/sim/mod.rs"]
mod sim;

use std::error::Error;

const USAGE: &str = "simulate --seed N [--steps M] | simulate [--from N] [--count C] [--steps M]";

fn main() -> Result<(), Box<dyn Error>> {
    let (mut seed, mut from, mut count, mut steps) = (None, 0u64, 10_000u64, 1500usize);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value: u64 = match args.next() {
            Some(value) => {
                value.parse().map_err(|_| format!("'{name} {value}': not a number\n{USAGE}"))?
            }
            None => return Err(USAGE.into()),
        };
        match name.as_str() {
            "--seed" => seed = Some(value),
            "--from" => from = value,
            "--count" => count = value,
            "--steps" => steps = value as usize,
            _ => return Err(format!("'{name}': no such option\n{USAGE}").into()),
        }
    }
    if let Some(seed) = seed {
        println!("{:?}", sim::run(seed, steps, true));
        return Ok(());
    }
    let mut total = sim::Summary::default();
    for seed in from..from + count {
        total.add(&sim::run(seed, steps, false));
        if (seed + 1 - from) % 1000 == 0 {
            println!("{} seeds: {total:?}", seed + 1 - from);
        }
    }
    println!("{count} seeds agree with the model: {total:?}");
    Ok(())
}
