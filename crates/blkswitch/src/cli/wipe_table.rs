//! `wipe_table`: replaces the live table by an `error` table of the same length.

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

pub(super) const SHOWN: &[&str] = &["force", "noflush", "nolockfs", "uuid", "major", "minor"];

impl WipeTable {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        // Like dmsetup, --force does not wait for I/O, which may never finish.
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
