//! `ublk`: measures a ublk disk on this machine's kernel with reads of 4 KiB, one at a time, with
//! direct I/O.
//!
//! It measures the time of a read and the server's processor time. If the program rublk is given,
//! it does the same with a rublk disk over a file. All disks take turns. It needs root and the ublk
//! driver. On other machines, `cargo xtask bench-ublk` counts instructions in a guest.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blkswitch_io::buffer::Buffer;
use clap::Args;

use crate::multipath::servers::{BYTES, Daemon, Server};
use crate::nbd::{Scratch, process_cpu_ns};
use crate::report::{Figure, Random, Rounds};

const BLOCK: u64 = 4096;
/// Reads of one measurement.
const READS: u32 = 2000;
/// The number of rublk's disk.
const THEIR_NUMBER: &str = "60";
/// Longest time until a disk appears.
const COME: Duration = Duration::from_secs(20);

/// The options.
#[derive(Args)]
pub(crate) struct UblkOptions {
    /// The program rublk, for comparison (cargo install rublk)
    #[arg(long)]
    rublk: Option<PathBuf>,
    /// The program blkswitch; it is built if this is missing
    #[arg(long)]
    blkswitch: Option<PathBuf>,
}

/// A disk, its server, and the measurements: nanoseconds of a read, and of the server's processor
/// time.
struct Disk {
    name: String,
    node: File,
    server: u32,
    runs: Vec<(f64, f64)>,
}

/// A server of rublk; dropping it removes its disk.
struct Rublk(Child, PathBuf);

impl Drop for Rublk {
    fn drop(&mut self) {
        let _ = Command::new(&self.1).args(["del", "-n", THEIR_NUMBER]).status();
        let _ = self.0.wait();
    }
}

/// A blkswitch daemon; dropping it removes its disks.
struct Ours(Daemon);

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.0.command(&["remove_all", "--force"]);
    }
}

pub(crate) fn run_all(rounds: Rounds, options: &UblkOptions) -> Result<Vec<Figure>> {
    if !Path::new("/dev/ublk-control").exists() {
        bail!(
            "there is no /dev/ublk-control: this kernel has no ublk driver, or it is not loaded \
             (modprobe ublk_drv); 'cargo xtask bench-ublk' boots one that has it"
        );
    }
    let blkswitch = options.blkswitch.clone().map_or_else(crate::nbd::build, Ok)?;
    let folder = Scratch::new()?;
    let files: Vec<PathBuf> = (0..3).map(|number| folder.0.join(format!("leaf{number}"))).collect();
    for file in &files {
        std::fs::write(file, vec![1; BYTES as usize])?;
    }
    let ours = Ours(Server::daemon(&folder.0, "ours", &blkswitch)?);
    let three = |leaf: &dyn Fn(usize) -> String| {
        let paths: String = (0..3).map(|number| format!(" {} 0", leaf(number))).collect();
        format!("switch 3 128 0{paths}")
    };
    let targets = [
        ("linear, nothing below", format!("linear null:{BYTES} 0")),
        ("switch, nothing below", three(&|_| format!("null:{BYTES}"))),
        ("switch, memory", three(&|number| format!("mem:{BYTES}:{number}"))),
        ("switch, files", three(&|number| files[number].display().to_string())),
    ];
    // Declared before `disks`, because locals are dropped in reverse order and the disks must be
    // closed before their server ends.
    let mut rublk = None;
    let mut disks = Vec::new();
    for (number, (name, target)) in targets.iter().enumerate() {
        let device = format!("bench{number}");
        ours.0.create(&device, target)?;
        ensure!(
            ours.0.command(&["attach", &device, "--ublk"])?,
            "blkswitch attach {device} --ublk has failed"
        );
        let node = open(&format!("/dev/blkswitch/{device}"))?;
        disks.push(Disk {
            name: (*name).into(),
            node,
            server: ours.0.server.id(),
            runs: Vec::new(),
        });
    }
    if let Some(program) = &options.rublk {
        let file = folder.0.join("theirs");
        std::fs::write(&file, vec![1; BYTES as usize])?;
        let mut add = Command::new(program);
        add.args(["add", "loop", "-n", THEIR_NUMBER, "-q", "1", "--quiet", "--foreground", "-f"])
            .arg(&file);
        let child = add.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        let server = rublk.insert(Rublk(child, program.clone())).0.id();
        let node = open(&format!("/dev/ublkb{THEIR_NUMBER}"))?;
        disks.push(Disk { name: "rublk, loop".into(), node, server, runs: Vec::new() });
    }
    for round in 0..=rounds.count {
        for turn in 0..disks.len() {
            let at = (round + turn) % disks.len();
            let run = measure(&disks[at])?;
            // The first round warms up.
            if round > 0 {
                disks[at].runs.push(run);
            }
        }
    }
    let mut figures = Vec::new();
    for disk in &disks {
        let of = |part: fn(&(f64, f64)) -> f64| {
            let mut runs: Vec<f64> = disk.runs.iter().map(part).collect();
            runs.sort_unstable_by(f64::total_cmp);
            runs[if rounds.best { 0 } else { runs.len() / 2 }]
        };
        figures.push(Figure::new(format!("{}: a read", disk.name), of(|run| run.0), "ns"));
        figures.push(Figure::new(
            format!("{}: the server's processor", disk.name),
            of(|run| run.1),
            "ns",
        ));
    }
    Ok(figures)
}

/// Waits for a disk's node and opens it for direct I/O.
fn open(node: &str) -> Result<File> {
    /// The value on every architecture with ublk in Debian.
    const O_DIRECT: i32 = 0o40000;
    let end = Instant::now() + COME;
    loop {
        match OpenOptions::new().read(true).custom_flags(O_DIRECT).open(node) {
            Ok(file) => return Ok(file),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("cannot open {node}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn measure(disk: &Disk) -> Result<(f64, f64)> {
    let mut buffer = Buffer::alone(BLOCK as usize).map_err(std::io::Error::from)?;
    let mut random = Random(5);
    let (before, start) = (process_cpu_ns(disk.server)?, Instant::now());
    for _ in 0..READS {
        disk.node.read_exact_at(buffer.bytes_mut(), random.below(BYTES / BLOCK) * BLOCK)?;
    }
    let spent = start.elapsed();
    // The processor time of a sleeping server is exact.
    std::thread::sleep(Duration::from_millis(2));
    let own = process_cpu_ns(disk.server)? - before;
    Ok((spent.as_nanos() as f64 / f64::from(READS), own as f64 / f64::from(READS)))
}
