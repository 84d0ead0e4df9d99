//! `version`: of this program, and of the daemon that stands where dmsetup has the driver.

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

/// The switches that its help shows.
pub(super) const SHOWN: &[&str] = &[];

/// What `--json` prints.
#[derive(Serialize)]
struct Both {
    client: &'static str,
    daemon: Daemon,
}

impl Version {
    /// Runs the verb.
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let client = env!("CARGO_PKG_VERSION");
        if !self.options.json {
            // dmsetup, too, tells its own version before it asks the driver for its.
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
