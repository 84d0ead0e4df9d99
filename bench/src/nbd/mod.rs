//! `nbd`: compares blkswitch and other NBD servers under the same load from the same client.
//!
//! Each server is a process of its own over its own files in memory, all with the same content. In
//! each round, every load runs once on every server, in another order each time. So other load on
//! the machine, and the state that the server before leaves behind, affect all alike. If the client
//! is the bottleneck, the server's processor time per request is the honest figure.

pub(crate) mod client;
pub(crate) mod lean;
mod results;
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::client::{Load, run};
use self::lean::Lean;
use self::results::{Cell, Layer, Results};
pub(crate) use self::server::process_cpu_ns;
use self::server::{Kind, Server};
use crate::report::{Figure, Keep, Random};

/// Requests of a run for the cost of the switch layer: some 50 ms.
const LAYER_REQUESTS: u64 = 20_000;
/// Pause after each run. The processor time of a sleeping server is exact.
const LAYER_PAUSE: Duration = Duration::from_millis(2);

/// The options.
#[derive(Args)]
pub(crate) struct NbdOptions {
    /// Seconds of each run
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    #[command(flatten)]
    keep: Keep,
    /// Pairs of runs per round for the cost of the switch layer, which is smaller than one run's
    /// noise
    #[arg(long, default_value_t = 50)]
    pairs: usize,
}

impl NbdOptions {
    /// The shortest run, which checks that everything works.
    pub(crate) fn smoke() -> Self {
        NbdOptions { seconds: 0.1, keep: Keep { save: false }, pairs: 1 }
    }
}

pub(crate) fn run_all(rounds: usize, options: &NbdOptions) -> Result<Vec<Figure>> {
    let blkswitch = build()?;
    let folder = Scratch::new()?;
    let servers: Vec<Server> = Kind::ALL
        .iter()
        .map(|kind| Server::start(*kind, &folder.0, &blkswitch))
        .collect::<Result<_>>()?;
    let mut cells: Vec<Cell> = Load::ALL
        .iter()
        .flat_map(|load| Kind::ALL.map(|kind| Cell { load: *load, kind, runs: Vec::new() }))
        .collect();
    let mut order: Vec<usize> = (0..servers.len()).collect();
    let mut random = Random(1);
    for round in 0..rounds {
        for (nr, load) in Load::ALL.iter().enumerate() {
            order.sort_by_cached_key(|_| random.next());
            for &at in &order {
                cells[nr * servers.len() + at].runs.push(run(
                    &servers[at],
                    Kind::ALL[at].device(),
                    load,
                    options.seconds,
                )?);
            }
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    let layer = layer(&servers, rounds * options.pairs.max(1))?;
    let results = Results { cells, layer, rounds, seconds: options.seconds };
    if options.keep.save {
        results.save()?;
    }
    Ok(results.figures())
}

/// Compares a switch with a bare file in pairs of short runs over two lasting connections. Each is
/// the first one in every other pair.
fn layer(servers: &[Server], pairs: usize) -> Result<Layer> {
    let server = servers
        .iter()
        .find(|server| server.kind == Kind::OneQueue)
        .context("a server is missing")?;
    let connect = |device| Lean::connect(server.socket(), device, &Load::LAYER);
    let (mut switch, mut linear) = (connect("switch")?, connect("linear")?);
    let cost = |client: &mut Lean| {
        let before = server.threads_cpu_ns()?;
        client.carry(LAYER_REQUESTS)?;
        std::thread::sleep(LAYER_PAUSE);
        Ok::<_, anyhow::Error>((server.threads_cpu_ns()? - before) as f64)
    };
    let mut cpu_ratios = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        let (with, without) = if pair % 2 == 0 {
            let with = cost(&mut switch)?;
            (with, cost(&mut linear)?)
        } else {
            let without = cost(&mut linear)?;
            (cost(&mut switch)?, without)
        };
        cpu_ratios.push(with / without);
    }
    Ok(Layer { cpu_ratios })
}

/// Builds the daemon in this program's folder.
pub(crate) fn build() -> Result<PathBuf> {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "blkswitch"])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "blkswitch does not build");
    let own = std::env::current_exe()?;
    let target =
        own.parent().and_then(Path::parent).context("this program is not in a target folder")?;
    Ok(target.join("release/blkswitch"))
}

/// A folder in memory that is removed when this is dropped.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        let folder = Path::new("/dev/shm").join(format!("blkswitch-bench-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A failure leaves a folder with a recognisable name.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
