//! `completions`: prints a shell's completion script, made from the definition of the command line.

use std::io::Write;

use clap::Args;
use clap_complete::Shell;

use super::failure::Failure;

/// Print the completion script of a shell
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, mut out: impl Write) -> Result<(), Failure> {
        // clap_complete panics if it cannot write, so it writes to memory first.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), super::PROGRAM, &mut script);
        Ok(out.write_all(&script)?)
    }
}
