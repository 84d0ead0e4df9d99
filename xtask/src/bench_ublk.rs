//! `cargo xtask bench-ublk`: compares a read of a ublk disk with those of other servers and of the
//! C target, by guest instructions.
//!
//! The clock counts instructions, as in [`super::bench_kernel`]. `bench/guest/ublk.py` measures.

use super::apt::run;
use super::kmod;
use super::vm::{Kernel, Vm};
use anyhow::{Context, Result, bail, ensure};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Time limit of the guest, long enough for a busy machine.
const TIMEOUT_SECONDS: u64 = 3600;

const USAGE: &str = "\
Usage: cargo xtask bench-ublk [--kernel 6.12|newest] [RUBLK [UBLKSRV]]

Prints the figures as Markdown, with the machine and the date: > bench/results/ublk.md
RUBLK is the program of the crate of that name, to be compared with (cargo install rublk --root FOLDER), UBLKSRV the
program ublk of that project, installed somewhere (it needs a newer liburing than Debian 12's).";

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let (mut kernel, mut words) = (Kernel::default(), words);
    if let [option, value, rest @ ..] = words
        && option == "--kernel"
    {
        (kernel, words) = (value.parse()?, rest);
    }
    if words.len() > 2 || words.iter().any(|word| word.starts_with('-')) {
        bail!("unknown arguments {words:?}\n\n{USAGE}");
    }
    let peers =
        words.iter().map(|path| Ok(std::path::absolute(path)?.to_string_lossy().into_owned()));
    let peers: Vec<String> = peers.collect::<Result<_>>()?;
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "blkswitch"])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "blkswitch does not build");
    // This program is in <target>/<profile>/.
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("this program is not in a target folder")?;
    let program = target.join("release/blkswitch").to_string_lossy().into_owned();
    let script = kmod::source_folder().join("bench/guest/ublk.py").to_string_lossy().into_owned();
    println!("# Instructions of a read of a ublk disk\n");
    let qemu = run(Command::new("qemu-system-x86_64").arg("--version"))?;
    let date = run(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
    let peer = peers.first().map(|path| run(Command::new(path).arg("--version"))).transpose()?;
    let peer = peer.map(|version| format!(", {}", version.trim())).unwrap_or_default();
    println!("{}, {}{peer}.", date.trim(), qemu.lines().next().unwrap_or_default());
    println!(
        "Emulated Nehalem, one processor, a clock that counts instructions. Made by `cargo xtask \
         bench-ublk`.\n"
    );
    let command: Vec<String> =
        ["/usr/bin/python3".to_owned(), script, program].into_iter().chain(peers).collect();
    let vm =
        Vm { kernel, icount: true, timeout: Duration::from_secs(TIMEOUT_SECONDS), ..Vm::default() };
    vm.run(&command).map(ExitCode::from)
}
