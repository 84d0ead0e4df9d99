//! `suspend`: closes the gate for new I/O and waits until I/O under way is finished.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{Suspend as Request, route};

/// Hold new I/O and wait for I/O under way
#[derive(Debug, Args)]
pub(super) struct Suspend {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["noflush", "nolockfs", "uuid", "major", "minor"];

impl Suspend {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let request = Request { noflush: self.options.noflush, nolockfs: self.options.nolockfs };
        for selector in Selector::list(&self.devices, &self.options)? {
            context.command(Method::POST, route::SUSPEND, &selector, "suspend", &request).await?;
            context.show_if_verbose(&selector, &self.options).await?;
        }
        Ok(())
    }
}
