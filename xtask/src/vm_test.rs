//! `cargo xtask vm-test`: runs the guest tests of the kernel module (`kmod/tests`).

use super::kmod;
use super::vm::{Kernel, Vm};
use anyhow::{Result, bail};
use std::process::ExitCode;
use std::time::Duration;

/// Time limit of all tests, long enough for a slow and busy machine.
const TIMEOUT_SECONDS: u64 = 1800;

const USAGE: &str = "\
Usage: cargo xtask vm-test [--kernel 6.12|6.1|newest] [TEST]...

Builds the kernel module and runs its tests in a guest with that kernel (6.12); all of them, or those named:
golden, golden-strict, io, io-strict, differential, behaviour, behaviour-strict, tools, hierarchy, stress, loading.";

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let (mut kernel, mut words) = (Kernel::default(), words);
    if let [option, value, rest @ ..] = words
        && option == "--kernel"
    {
        (kernel, words) = (value.parse()?, rest);
    }
    if let Some(option) = words.iter().find(|word| word.starts_with('-')) {
        bail!("unknown option '{option}'\n\n{USAGE}");
    }
    let module = kmod::build(kernel)?;
    let script = kmod::source_folder().join("kmod/tests/suite.py");
    let mut command = ["/usr/bin/python3", &script.to_string_lossy(), &module.to_string_lossy()]
        .map(str::to_owned)
        .to_vec();
    command.extend_from_slice(words);
    let vm = Vm { kernel, timeout: Duration::from_secs(TIMEOUT_SECONDS), ..Vm::default() };
    vm.run(&command).map(ExitCode::from)
}
