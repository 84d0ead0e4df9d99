//! `wipe_table`: an `error` table of the same length takes the place of the live one.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{Suspend, route};

/// Replace the table with one that fails all I/O
#[derive(Debug, Args)]
pub(super) struct WipeTable {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

/// The switches that its help shows.
pub(super) const SHOWN: &[&str] = &["force", "noflush", "nolockfs", "uuid", "major", "minor"];

impl WipeTable {
    /// Runs the verb.
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        // With --force nobody waits for I/O that may never finish, as dmsetup has it.
        let force = self.options.force;
        let request = Suspend {
            noflush: self.options.noflush || force,
            nolockfs: self.options.nolockfs || force,
        };
        for selector in Selector::list(&self.devices, &self.options)? {
            context.command(Method::POST, route::WIPE, &selector, "reload", &request).await?;
        }
        Ok(())
    }
}
