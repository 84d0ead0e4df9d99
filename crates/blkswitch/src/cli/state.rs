//! `state`: shows, checks and forgets the devices that are kept for the next daemon.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::daemon::state::check;
use crate::protocol::{KeptList, device_path, route};

/// The state folder of the packaged service.
const FOLDER: &str = "/var/lib/blkswitch";

/// Show, verify and forget what is kept for the next daemon
#[derive(Debug, Args)]
pub(super) struct State {
    #[command(subcommand)]
    verb: StateVerb,
}

#[derive(Debug, Subcommand)]
enum StateVerb {
    Ls(Ls),
    Forget(Forget),
    Check(Check),
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

/// Verify the folder of serve --state while no daemon runs
///
/// Looks at the description and at every region map, and changes nothing. A line for each file;
/// status 1 if anything is damaged.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The folder
    #[arg(default_value = FOLDER)]
    folder: PathBuf,
}

impl State {
    /// The verb to run without a daemon, if this is one.
    pub(super) fn offline(&self) -> Option<&Check> {
        match &self.verb {
            StateVerb::Check(check) => Some(check),
            StateVerb::Ls(_) | StateVerb::Forget(_) => None,
        }
    }

    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        match self.verb {
            StateVerb::Ls(verb) => verb.run(context).await,
            StateVerb::Forget(verb) => verb.run(context).await,
            StateVerb::Check(verb) => verb.run(std::io::stdout()),
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

impl Check {
    pub(super) fn run(&self, mut out: impl Write) -> Result<(), Failure> {
        let folder = self.folder.display();
        let report = check(&self.folder)
            .map_err(|error| Failure::message(format!("Cannot check '{folder}': {error}.")))?;
        for line in &report.lines {
            writeln!(out, "{line}")?;
        }
        match report.damages {
            0 => Ok(()),
            damages => Err(Failure::message(format!("Damaged in '{folder}': {damages}."))),
        }
    }
}
