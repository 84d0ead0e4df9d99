//! The demonstration.

use crate::cli::DemoOptions;

/// Shows a switch device at work.
pub fn run(options: DemoOptions) -> anyhow::Result<()> {
    anyhow::bail!("this build has no daemon to show (keep: {})", options.keep)
}
