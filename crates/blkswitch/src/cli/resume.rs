//! `resume`: makes the inactive table live, if there is one, and lets I/O flow.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::route;

/// Make the inactive table live and let I/O flow
#[derive(Debug, Args)]
pub(super) struct Resume {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["uuid", "major", "minor"];

impl Resume {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        for selector in Selector::list(&self.devices, &self.options)? {
            context.command(Method::POST, route::RESUME, &selector, "resume", &()).await?;
            context.show_if_verbose(&selector, &self.options).await?;
        }
        Ok(())
    }
}
