//! The project's tasks: `cargo xtask <task> [arguments]`.
//!
//! This file only dispatches. Each task has a file, parses its own arguments and prints its own
//! usage.

mod apt;
mod bench_kernel;
mod bench_ublk;
mod clients;
mod kmod;
mod package;
mod system;
mod tidy;
mod vm;
mod vm_test;

use std::process::ExitCode;

/// A task: its name, one line of help and the function that takes the words after the name.
type Task = (&'static str, &'static str, fn(&[String]) -> anyhow::Result<ExitCode>);

const TASKS: &[Task] = &[
    ("tidy", "check the rules of the house that no compiler checks", tidy::main),
    ("vm", "boot a stock Debian kernel in QEMU and run a script in it", vm::main),
    ("system-test", "run stock programs against the daemon", system::main),
    ("vm-test", "run the kernel module's tests in a guest", vm_test::main),
    (
        "bench-kernel",
        "count the kernel module's instructions beside dm-switch's",
        bench_kernel::main,
    ),
    (
        "bench-ublk",
        "count the instructions of reads of ublk disks, ours and others'",
        bench_ublk::main,
    ),
    ("package", "make a Debian package of the daemon", package::main),
    ("kmod", "build the kernel module against the headers of a Debian kernel", kmod::main),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let task = words.first().and_then(|name| TASKS.iter().find(|task| task.0 == name));
    let Some((_, _, run)) = task else {
        eprintln!("Usage: cargo xtask TASK [ARGUMENT]...\n\nTasks (each with --help):");
        TASKS.iter().for_each(|(name, help, _)| eprintln!("  {name:<14}{help}"));
        return ExitCode::from(2);
    };
    run(&words[1..]).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
