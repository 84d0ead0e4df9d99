//! Benchmarks: `cargo run --release -p blkswitch-bench -- message` and its siblings, a file each.
//!
//! Every figure is the median of several rounds; `--json` prints them for machines. Timings on a shared machine are
//! worth what the machine is worth: compare figures of one run, not of two.

mod create;
mod lookup;
mod message;
mod nbd;
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
    /// Serve NBD beside other servers.
    Nbd(nbd::NbdOptions),
    /// Run every benchmark once, short: do they work?
    Smoke,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let figures = match cli.bench {
        Bench::Message => message::run(cli.rounds)?,
        Bench::Lookup => lookup::run(cli.rounds)?,
        Bench::Create => create::run(cli.rounds)?,
        Bench::Nbd(options) => nbd::run_all(cli.rounds, &options)?,
        Bench::Smoke => smoke()?,
    };
    report::print(&figures, cli.json);
    Ok(())
}

/// A round of everything, in well under a minute.
fn smoke() -> anyhow::Result<Vec<report::Figure>> {
    let mut figures = message::run(1)?;
    figures.extend(lookup::run(1)?);
    figures.extend(create::run(1)?);
    figures.extend(nbd::run_all(1, &nbd::NbdOptions::smoke())?);
    Ok(figures)
}
