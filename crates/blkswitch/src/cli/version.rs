//! `version`: shows the versions of this program and of the daemon, which dmsetup calls the driver.

use clap::Args;
use serde::Serialize;

use super::context::Context;
use super::failure::Failure;
use super::options::Options;
use crate::protocol::{Version as Daemon, route};

/// Show the versions of client and daemon
#[derive(Debug, Args)]
pub(super) struct Version {
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &[];

/// The output with `--json`.
#[derive(Serialize)]
struct Both {
    client: &'static str,
    daemon: Daemon,
}

impl Version {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let client = env!("CARGO_PKG_VERSION");
        if !self.options.json {
            // Like dmsetup, print the own version before asking the driver.
            context.print(&format!("Library version:   {client}\n"))?;
        }
        let daemon: Daemon = context.get(route::VERSION).await?;
        if self.options.json {
            return context.print_json(&Both { client, daemon });
        }
        context.print(&format!("Driver version:    {}\n", daemon.version))?;
        if self.options.verbose > 0 {
            let listening: String =
                daemon.nbd.iter().map(|uri| format!("NBD:               {uri}\n")).collect();
            context.print(&format!("Process:           {}\n{listening}", daemon.pid))?;
        }
        Ok(())
    }
}
