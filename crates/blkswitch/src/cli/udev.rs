//! `mknodes` and dmsetup's verbs about udev: accepted, as a runbook may contain them, and without
//! effect. Nodes of disks are there when a verb returns, and there is no udev to wait for.

use clap::Args;

use super::options::Options;

/// Accepted without effect: nodes are there when a verb returns, and no udev is waited for
#[derive(Debug, Args)]
pub(super) struct Accepted {
    /// Whatever dmsetup takes
    #[arg(value_name = "WORD", num_args = 0..)]
    _words: Vec<String>,
    #[command(flatten)]
    _options: Options,
}
