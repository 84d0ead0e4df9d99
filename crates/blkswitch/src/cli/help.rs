//! `help`: shows help for the program, a verb, or the columns of `info -c`.

use std::io::Write;

use clap::{Args, Command};

use super::command;
use super::failure::Failure;
use super::options::Options;
use crate::nearest::did_you_mean;

/// Print help for the program or a verb
#[derive(Debug, Args)]
pub(super) struct Help {
    /// The verb, and a verb of it
    #[arg(value_name = "VERB")]
    verbs: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["columns"];

impl Help {
    pub(super) fn run(&self, mut out: impl Write) -> Result<(), Failure> {
        let mut command = command::command();
        command.build();
        for verb in &self.verbs {
            let Some(found) = command.find_subcommand(verb) else {
                let near = did_you_mean(verb, command.get_subcommands().map(Command::get_name));
                return Err(Failure::Message(format!(
                    "There is no verb '{verb}': {near}blkswitch help lists them."
                )));
            };
            command = found.clone();
        }
        write!(out, "{}", command.render_long_help())?;
        if self.options.columns {
            write!(out, "\n{}", super::format::report::help())?;
        }
        Ok(())
    }
}
