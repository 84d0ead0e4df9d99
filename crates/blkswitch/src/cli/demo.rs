//! `demo`: the command line of the demonstration.

use clap::Args;

/// Show all of it in one go: a switch device over three files, remapped and proved
///
/// Needs neither root nor arguments and leaves nothing behind.
#[derive(Debug, Clone, Args)]
pub struct DemoOptions {
    /// Keep serving until Ctrl-C, and print commands to try
    #[arg(long)]
    pub keep: bool,
}
