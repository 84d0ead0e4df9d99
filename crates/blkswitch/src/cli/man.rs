//! `man`: writes a manual page for the program and one per verb, made from the definition of the
//! command line.

use std::path::PathBuf;

use clap::Args;

use super::command;
use super::failure::Failure;

/// Write the manual pages to a folder
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The folder; made if it is missing
    folder: PathBuf,
}

impl Man {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let couldnt = |error| {
            Failure::Message(format!("Cannot write to '{}': {error}.", self.folder.display()))
        };
        std::fs::create_dir_all(&self.folder).map_err(couldnt)?;
        clap_mangen::generate_to(command::command(), &self.folder).map_err(couldnt)
    }
}
