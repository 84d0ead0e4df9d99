//! Benchmarks: `cargo run --release -p blkswitch-bench -- message` and its siblings, a file each.
//!
//! Every figure is the median of several rounds; `--json` prints them for machines. Timings on a shared machine are
//! worth what the machine is worth: compare figures of one run, not of two.

mod create;
mod lookup;
mod message;
mod report;

use clap::{Parser, Subcommand};

/// Measures blkswitch.
#[derive(Parser)]
struct Cli {
    /// Print figures as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Rounds per figure; the median counts.
    #[arg(long, global = true, default_value_t = 9)]
    rounds: usize,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Apply messages of a million entries.
    Message,
    /// Route random sectors.
    Lookup,
    /// Make a map of a billion regions.
    Create,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let figures = match cli.bench {
        Bench::Message => message::run(cli.rounds)?,
        Bench::Lookup => lookup::run(cli.rounds)?,
        Bench::Create => create::run(cli.rounds)?,
    };
    report::print(&figures, cli.json);
    Ok(())
}
