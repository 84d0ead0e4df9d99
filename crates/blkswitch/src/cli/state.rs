//! `state`: what is kept for the next daemon.

use clap::{Args, Subcommand};
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{KeptList, device_path, route};

/// Show and forget what is kept for the next daemon
#[derive(Debug, Args)]
pub(super) struct State {
    #[command(subcommand)]
    verb: StateVerb,
}

#[derive(Debug, Subcommand)]
enum StateVerb {
    Ls(Ls),
    Forget(Forget),
}

/// List the devices that the next daemon makes again
///
/// A line each: name, number, and whether its table is served or away, and why.
#[derive(Debug, Args)]
struct Ls {
    /// As JSON, with the tables
    #[arg(long)]
    json: bool,
}

/// Forget a device whose table is away, with its region map
///
/// A device that is served is removed with remove.
#[derive(Debug, Args)]
struct Forget {
    /// The device
    #[arg(value_name = "DEVICE")]
    device: String,
}

impl State {
    /// Runs the verb.
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        match self.verb {
            StateVerb::Ls(verb) => verb.run(context).await,
            StateVerb::Forget(verb) => verb.run(context).await,
        }
    }
}

impl Ls {
    async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let kept: KeptList = context.get(route::STATE).await?;
        if self.json {
            return context.print_json(&kept);
        }
        if kept.devices.is_empty() {
            return context.print("No devices are kept\n");
        }
        for device in &kept.devices {
            let how = device
                .away
                .as_ref()
                .map_or("served".to_owned(), |reason| format!("away: {reason}"));
            context.print(&format!("{}\t(0:{})\t{how}\n", device.name, device.minor))?;
        }
        Ok(())
    }
}

impl Forget {
    async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let name = context.name_of(&selector, "remove").await?;
        let path = device_path(route::STATE_DEVICE, &name);
        let sent = context.client.send(Method::DELETE, &path, &()).await;
        sent.map(drop).map_err(|error| error.about(selector.subject()))
    }
}
