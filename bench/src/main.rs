//! Benchmarks: `cargo run --release -p blkswitch-bench -- message` and its siblings, a file each.
//!
//! Every figure is the median of several rounds. With `--best` it is the best one, which on a busy
//! machine says more about the program than about the other load. `--json` prints figures for
//! programs, and `--save` keeps them with date and machine.

mod beside_c;
mod create;
mod hostile;
mod lookup;
mod map;
mod message;
mod multipath;
mod nbd;
mod pipeline;
mod report;
mod ublk;

use clap::{Parser, Subcommand};

/// Measures blkswitch.
#[derive(Parser)]
struct Cli {
    /// Print figures as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Rounds per figure.
    #[arg(long, global = true, default_value_t = 9)]
    rounds: usize,
    /// Take the best round instead of the median.
    #[arg(long, global = true)]
    best: bool,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Apply messages of a million entries.
    Message(report::Keep),
    /// Route random sectors.
    Lookup(report::Keep),
    /// Measure messages and look-ups beside a plain target in C.
    BesideC(report::Keep),
    /// Compare, plan and decode whole maps.
    Map(report::Keep),
    /// Make a map of a billion regions.
    Create(report::Keep),
    /// Send requests through the pipeline to leaves that do nothing.
    Pipeline,
    /// Compare NBD servers.
    Nbd(nbd::NbdOptions),
    /// Choose among paths, carry requests over NBD leaves, fail over.
    Multipath(multipath::MultipathOptions),
    /// Read a ublk disk on this kernel, which must have the driver.
    Ublk(ublk::UblkOptions),
    /// Measure a client beside hostile ones.
    Hostile(hostile::HostileOptions),
    #[command(hide = true)]
    HostileClients(hostile::Clients),
    /// Run every benchmark once, shortly, to check that it works.
    Smoke,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let rounds = report::Rounds { count: cli.rounds, best: cli.best };
    let kept = match &cli.bench {
        Bench::Message(keep) => keep.save.then_some(("message", "Messages of a million entries")),
        Bench::Lookup(keep) => keep.save.then_some(("lookup", "Routes of random sectors")),
        Bench::Map(keep) => keep.save.then_some(("map", "Decisions about whole maps")),
        Bench::Create(keep) => keep.save.then_some(("create", "A map of a billion regions")),
        // These benchmarks write their own pages.
        Bench::BesideC(_) | Bench::Nbd(_) => None,
        Bench::Hostile(_) | Bench::HostileClients(_) => None,
        Bench::Pipeline | Bench::Multipath(_) | Bench::Ublk(_) | Bench::Smoke => None,
    };
    let figures = match cli.bench {
        Bench::Message(_) => message::run(rounds)?,
        Bench::Lookup(_) => lookup::run(rounds)?,
        Bench::BesideC(keep) => {
            let rows = beside_c::run(rounds)?;
            if keep.save {
                report::keep_beside_c(rounds, &rows)?;
            }
            beside_c::figures(&rows)
        }
        Bench::Create(_) => create::run(rounds)?,
        Bench::Map(_) => map::run(rounds)?,
        Bench::Pipeline => pipeline::run(rounds)?,
        Bench::Nbd(options) => nbd::run_all(cli.rounds, &options)?,
        Bench::Multipath(options) => multipath::run_all(rounds, &options)?,
        Bench::Ublk(options) => ublk::run_all(rounds, &options)?,
        Bench::Hostile(options) => hostile::run_all(&options)?,
        Bench::HostileClients(clients) => return clients.run(),
        Bench::Smoke => smoke()?,
    };
    report::print(&figures, cli.json);
    match kept {
        Some((name, title)) => report::keep(name, title, rounds, &figures),
        None => Ok(()),
    }
}

/// Runs one round of every benchmark for this kernel, in well under a minute.
fn smoke() -> anyhow::Result<Vec<report::Figure>> {
    let once = report::Rounds { count: 1, best: false };
    let mut figures = message::run(once)?;
    figures.extend(lookup::run(once)?);
    if beside_c::IS_BUILT {
        figures.extend(beside_c::figures(&beside_c::run(once)?));
    }
    figures.extend(create::run(once)?);
    figures.extend(map::run(once)?);
    figures.extend(pipeline::run(once)?);
    figures.extend(nbd::run_all(1, &nbd::NbdOptions::smoke())?);
    figures.extend(multipath::run_all(once, &multipath::MultipathOptions::smoke())?);
    figures.extend(hostile::run_all(&hostile::HostileOptions::smoke())?);
    Ok(figures)
}
