//! `cargo xtask bench-kernel`: compares the kernel's own switch target and the module by guest
//! instructions.
//!
//! Emulated time does not show speed. But with QEMU's instruction-counting clock, a nanosecond of
//! the guest is one instruction, and runs differ by a few instructions only. `kmod/tests/bench.py`
//! measures and prints Markdown.

use super::apt::run;
use super::kmod;
use super::vm::Vm;
use anyhow::{Result, bail};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: cargo xtask bench-kernel [--kernel 6.12|6.1]

Prints the figures as Markdown, with the machine and the date: > bench/results/kernel-6.12.md
Exits with 1 if a read takes more instructions than with the kernel's own target.";

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let kernel = match words[..] {
        [] => "6.12".parse()?,
        ["--kernel", kernel] => kernel.parse()?,
        _ => bail!("unknown arguments {words:?}\n\n{USAGE}"),
    };
    let module = kmod::build(kernel)?;
    let script = kmod::source_folder().join("kmod/tests/bench.py");
    let qemu = run(Command::new("qemu-system-x86_64").arg("--version"))?;
    let rustc = run(Command::new("rustc").arg("--version"))?;
    let date = run(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
    println!("# Instructions in the kernel: dm-switch and blkswitch\n");
    println!("{}, {}, {}.", date.trim(), qemu.lines().next().unwrap_or_default(), rustc.trim());
    println!(
        "Emulated Nehalem, one processor, a clock that counts instructions. Made by `cargo xtask \
         bench-kernel`.\n"
    );
    let command = ["/usr/bin/python3", &script.to_string_lossy(), &module.to_string_lossy()]
        .map(str::to_owned);
    let vm = Vm { kernel, icount: true, ..Vm::default() };
    vm.run(&command).map(ExitCode::from)
}
