//! `mknodes` and dmsetup's verbs about udev: accepted without effect, because existing scripts
//! contain them. Nodes of disks exist when a verb returns, and there is no udev to wait for.

use clap::Args;

use super::options::Options;

/// Accepted without effect: nodes exist when a verb returns, and no verb waits for udev
#[derive(Debug, Args)]
pub(super) struct Accepted {
    /// The words that dmsetup takes
    #[arg(value_name = "WORD", num_args = 0..)]
    _words: Vec<String>,
    #[command(flatten)]
    _options: Options,
}
