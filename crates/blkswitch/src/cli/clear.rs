//! `clear`: drops the inactive table.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::route;

/// Drop the inactive table
#[derive(Debug, Args)]
pub(super) struct Clear {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["uuid", "major", "minor"];

impl Clear {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        for selector in Selector::list(&self.devices, &self.options)? {
            context.command(Method::DELETE, route::TABLE, &selector, "clear", &()).await?;
            context.show_if_verbose(&selector, &self.options).await?;
        }
        Ok(())
    }
}
