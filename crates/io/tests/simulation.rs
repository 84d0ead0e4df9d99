//! Runs a few hundred seeds of the simulation of the whole data path (tests/sim/). For more seeds,
//! or one in detail: `cargo run --release -p blkswitch-io --example simulate -- --help`.

#[allow(unreachable_pub, reason = "shared with the example")]
mod sim;

use sim::Summary;

const SEEDS: u64 = 300;
const STEPS: usize = 1500;

#[test]
fn the_data_path_agrees_with_the_model() {
    let mut total = Summary::default();
    for seed in 0..SEEDS {
        total.add(&sim::run(seed, STEPS, false));
    }
    println!("{total:?}");
    let Summary {
        reads, writes, flushes, failed, parked, messages, swaps, power_cuts, stops, ..
    } = total;
    let Summary { path_failures, reinstated, held, .. } = total;
    let paths = [path_failures, reinstated, held];
    for count in [reads, writes, flushes, failed, parked, messages, swaps, power_cuts, stops]
        .into_iter()
        .chain(paths)
    {
        assert!(count >= SEEDS, "something is hardly ever tried: {total:?}");
    }
}
