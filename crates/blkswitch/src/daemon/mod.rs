//! x
use crate::cli::ServeOptions;
/// x
pub fn serve(options: ServeOptions) -> anyhow::Result<()> {
    anyhow::bail!("this build has no daemon that could listen on {}", options.socket.display())
}
