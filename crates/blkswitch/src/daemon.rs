//! The daemon.

use crate::cli::ServeOptions;

/// Serves devices until a signal ends it.
pub fn serve(options: ServeOptions) -> anyhow::Result<()> {
    anyhow::bail!("this build has no daemon that could listen on {}", options.socket.display())
}
