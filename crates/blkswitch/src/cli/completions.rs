//! `completions`: what a shell needs to complete the command line, from the one definition of it.

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
    /// Runs the verb.
    pub(super) fn run(&self, mut out: impl Write) -> Result<(), Failure> {
        // clap_complete panics when it cannot write: a string always can be written.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), super::PROGRAM, &mut script);
        Ok(out.write_all(&script)?)
    }
}
