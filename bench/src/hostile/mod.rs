//! `hostile`: measures how long a well-behaved client waits for a read while others attack the
//! daemon.
//!
//! The daemon has one queue, so that all clients share it. The attackers are a process of their own
//! with a low priority: they stand for clients on other machines, which take none of this machine's
//! processor time. Beside the client, a thread that only sleeps is measured. Its pauses are the
//! part of every figure that the machine causes, whatever the daemon does.

mod attack;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blkswitch::nbd_client::NbdClient;
use clap::Args;
use serde_json::json;

pub(crate) use self::attack::Clients;
use self::attack::{Attack, MIB};
use crate::nbd::{Scratch, build};
use crate::report::{About, Figure, Keep, Random};

/// Bytes of each read of the client.
const READ: usize = 4096;
/// How long the thread that measures the machine sleeps at a time.
const NAP: Duration = Duration::from_millis(1);
/// Time for an attack to begin before the measurement.
const AHEAD: Duration = Duration::from_millis(500);
/// The time after which the client gives up.
const PATIENCE: Duration = Duration::from_secs(300);
/// Each piece of this transfer is one sector.
const PIECES_BYTES: usize = 32 << 20;

/// The options.
#[derive(Args)]
pub(crate) struct HostileOptions {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Hostile clients beside the well-behaved one, a measurement for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100])]
    clients: Vec<usize>,
    /// Only attacks with this in their name
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    keep: Keep,
}

impl HostileOptions {
    /// The shortest run, which checks that everything works.
    pub(crate) fn smoke() -> Self {
        let keep = Keep { save: false };
        HostileOptions { seconds: 0.3, clients: vec![2], only: Some("TRIM".into()), keep }
    }
}

/// Quantiles of times, in milliseconds.
struct Times {
    p50: f64,
    p99: f64,
    longest: f64,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Result<Times> {
        ensure!(!times.is_empty(), "nothing was measured");
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
        Ok(Times { p50: at(0.5), p99: at(0.99), longest: at(1.0) })
    }
}

/// The figures of one attack and one number of attackers.
struct Row {
    attack: &'static str,
    clients: usize,
    reads: Times,
    pauses: Times,
}

pub(crate) fn run_all(options: &HostileOptions) -> Result<Vec<Figure>> {
    let blkswitch = build()?;
    let wanted = |attack: &&Attack| {
        options.only.as_ref().is_none_or(|part| attack.name().contains(part.as_str()))
    };
    let mut rows = vec![measure(&blkswitch, None, options.seconds)?];
    for attack in Attack::ALL.iter().filter(wanted) {
        for &clients in &options.clients {
            let row = measure(&blkswitch, Some((*attack, clients)), options.seconds)?;
            eprintln!("{}", line(&row));
            rows.push(row);
        }
    }
    let pieces = pieces(&blkswitch)?;
    if options.keep.save {
        keep(options, &rows, &pieces)?;
    }
    let mut figures = Vec::new();
    for row in &rows {
        let what = format!("{} x{}", row.attack, row.clients);
        for (name, value) in [
            ("read p50", row.reads.p50),
            ("read p99", row.reads.p99),
            ("longest read", row.reads.longest),
            ("pause p99", row.pauses.p99),
            ("longest pause", row.pauses.longest),
        ] {
            figures.push(Figure::new(format!("{what}: {name}"), value, "ms"));
        }
    }
    figures.extend(pieces);
    Ok(figures)
}

/// Measures a client beside an attack, on a daemon of its own.
fn measure(blkswitch: &Path, attack: Option<(Attack, usize)>, seconds: f64) -> Result<Row> {
    let daemon = Daemon::start(blkswitch)?;
    let mut client = daemon.client("disk")?;
    client.set_patience(PATIENCE)?;
    let attackers = match attack {
        Some((attack, clients)) => Some(Attackers::start(attack, clients, &daemon.nbd())?),
        None => None,
    };
    std::thread::sleep(AHEAD);
    let over = AtomicBool::new(false);
    let (reads, pauses) = std::thread::scope(|scope| {
        let pauses = scope.spawn(|| pauses(&over));
        let reads = reads(&mut client, seconds);
        over.store(true, Ordering::Relaxed);
        (reads, pauses.join())
    });
    drop(attackers);
    let pauses = pauses.map_err(|_| anyhow::anyhow!("the thread that sleeps has panicked"))?;
    let (name, clients) = attack.map_or(("no attack", 0), |(attack, n)| (attack.name(), n));
    let reads = Times::of(reads.with_context(|| name.to_owned())?)?;
    Ok(Row { attack: name, clients, reads, pauses: Times::of(pauses)? })
}

/// Sends random reads, one at a time. Returns the time of each.
fn reads(client: &mut NbdClient, seconds: f64) -> Result<Vec<Duration>> {
    let (mut random, blocks) = (Random(1), client.size() / READ as u64);
    let (mut times, end) = (Vec::new(), Instant::now() + Duration::from_secs_f64(seconds));
    while Instant::now() < end {
        let began = Instant::now();
        client.read(random.below(blocks) * READ as u64, READ)?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Measures how much longer than asked a thread sleeps.
fn pauses(over: &AtomicBool) -> Vec<Duration> {
    let mut times = Vec::new();
    while !over.load(Ordering::Relaxed) || times.is_empty() {
        let began = Instant::now();
        std::thread::sleep(NAP);
        times.push(began.elapsed().saturating_sub(NAP));
    }
    times
}

/// A write and a read of 32 MiB in 65,536 pieces.
fn pieces(blkswitch: &Path) -> Result<Vec<Figure>> {
    let daemon = Daemon::start(blkswitch)?;
    let mut client = daemon.client("fine")?;
    client.set_patience(PATIENCE)?;
    let data = vec![7; PIECES_BYTES];
    let mut figures = Vec::new();
    for round in 0..2 {
        let began = Instant::now();
        client.write(0, &data, false)?;
        let written = began.elapsed();
        let began = Instant::now();
        ensure!(client.read(0, PIECES_BYTES)? == data, "other data was read");
        let read = began.elapsed();
        // The first round allocates the files' pages.
        if round == 1 {
            for (name, took) in [("write", written), ("read", read)] {
                let name = format!("{name} of 32 MiB over regions of one sector");
                figures.push(Figure::new(name, took.as_secs_f64() * 1e3, "ms"));
            }
        }
    }
    Ok(figures)
}

fn line(row: &Row) -> String {
    let Row { attack, clients, reads, pauses } = row;
    format!(
        "| {attack} | {clients} | {:.2} | {:.2} | {:.1} | {:.2} | {:.1} |",
        reads.p50, reads.p99, reads.longest, pauses.p99, pauses.longest
    )
}

fn keep(options: &HostileOptions, rows: &[Row], pieces: &[Figure]) -> Result<()> {
    let clients: Vec<String> = options.clients.iter().map(usize::to_string).collect();
    let words =
        format!("hostile --seconds {} --clients {} --save", options.seconds, clients.join(","));
    let about = About::new(&words, Vec::new())?;
    let text = "A client reads 4 KiB at random places of files in memory, one read at a time, while \
                others attack the daemon, which has one queue. Times in milliseconds. A pause is what \
                a thread that sleeps for 1 ms sleeps longer: that much is the machine's.";
    let mut table = String::from(
        "\n| attack | hostile clients | read p50 | read p99 | longest read | pause p99 | longest \
         pause |\n|---|---:|---:|---:|---:|---:|---:|\n",
    );
    rows.iter().for_each(|row| table.push_str(&(line(row) + "\n")));
    table.push('\n');
    for attack in Attack::ALL {
        table.push_str(&format!("* {}: {}\n", attack.name(), attack.what()));
    }
    table.push('\n');
    pieces.iter().for_each(|figure| table.push_str(&format!("* {figure}\n")));
    let results: Vec<_> = rows
        .iter()
        .map(|row| {
            let Row { attack, clients, reads, pauses } = row;
            json!({
                "attack": attack, "clients": clients,
                "read_p50_ms": reads.p50, "read_p99_ms": reads.p99, "read_longest_ms": reads.longest,
                "pause_p99_ms": pauses.p99, "pause_longest_ms": pauses.longest,
            })
        })
        .collect();
    let title = ("A client beside hostile ones", text);
    about.keep("hostile", json!({"results": results}), title, &table)
}

/// A daemon with the devices that attacks need, over files in memory.
struct Daemon {
    child: Child,
    folder: Scratch,
}

impl Daemon {
    fn start(blkswitch: &Path) -> Result<Daemon> {
        let folder = Scratch::new()?;
        let at = |name: &str| folder.0.join(name).display().to_string();
        for name in ["a", "b", "c", "f1", "f2", "f3"] {
            std::fs::File::create(at(name))?.set_len(1 << 30)?;
        }
        attack::sparse_file(Path::new(&at("sparse")))?;
        let mut child = Command::new(blkswitch)
            .args(["serve", "--queues", "1", "--log-level", "error", "--socket", &at("control")])
            .args(["--nbd", &format!("unix:{}", at("nbd"))])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the daemon")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?);
        let daemon = Daemon { child, folder };
        let mut said = String::new();
        while !said.contains("ready: nbd") {
            ensure!(lines.read_line(&mut said)? > 0, "the daemon ended: {said}");
        }
        let sectors = (1u64 << 30) / 512;
        let path = |name: &str| daemon.folder.0.join(name).display().to_string();
        let three = |region: u32, [a, b, c]: [&str; 3]| {
            let paths = [a, b, c].map(|name| format!("{} 0", path(name))).join(" ");
            format!("0 {sectors} switch 3 {region} 0 {paths}")
        };
        for (name, table) in [
            ("disk", three(128, ["a", "b", "c"])),
            ("fine", three(1, ["f1", "f2", "f3"])),
            ("sparse", format!("0 {sectors} linear {} 0", path("sparse"))),
            ("memory", format!("0 {} linear mem:4G 0", 4 * sectors)),
        ] {
            let made = Command::new(blkswitch)
                .arg("--socket")
                .arg(path("control"))
                .args(["create", name, "--table", &table])
                .output()?;
            ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        Ok(daemon)
    }

    fn nbd(&self) -> PathBuf {
        self.folder.0.join("nbd")
    }

    fn client(&self, device: &str) -> Result<NbdClient> {
        NbdClient::unix(&self.nbd(), device).with_context(|| device.to_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // All of its data is in memory and not needed any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of the attackers.
struct Attackers(Child);

impl Attackers {
    fn start(attack: Attack, clients: usize, nbd: &Path) -> Result<Attackers> {
        let mut child = Command::new("nice")
            .args(["-n", "15"])
            .arg(std::env::current_exe()?)
            .args(["hostile-clients", attack.name(), &clients.to_string()])
            .arg(nbd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the attackers")?;
        // The process writes a byte when all of its clients are connected.
        let mut ready = [0];
        let said = child.stdout.take().context("no output")?.read_exact(&mut ready);
        let attackers = Attackers(child);
        said.context("the attackers ended")?;
        Ok(attackers)
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const _: () = assert!(PIECES_BYTES as u64 == 32 * MIB);
