//! `wait`: waits for an event of a device.

use clap::Args;

use super::context::Context;
use super::failure::Failure;
use super::names::{Selector, named_by_switch};
use super::options::Options;
use crate::protocol::{Events, device_path, route};

/// Wait until the event number of a device differs from the one given
#[derive(Debug, Args)]
#[command(override_usage = "blkswitch wait [OPTIONS] <DEVICE> [EVENT_NR]")]
pub(super) struct Wait {
    /// The device (unless -u or -j -m name it) and an event number [default: 0]
    #[arg(value_names = ["DEVICE", "EVENT_NR"], num_args = 0..=2)]
    args: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["noflush", "uuid", "major", "minor"];

impl Wait {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let (device, rest) = match (named_by_switch(&self.options), self.args.as_slice()) {
            (true, rest) => (None, rest),
            (false, []) => (None, [].as_slice()),
            (false, [device, rest @ ..]) => (Some(device.as_str()), rest),
        };
        let selector = Selector::of(device, &self.options)?;
        let after = event_number(rest.last().map(String::as_str))?;
        let name = context.name_of(&selector, "waitevent").await?;
        let path = format!("{}?after={after}", device_path(route::EVENTS, &name));
        loop {
            let events = context.client.get(&path).await;
            let events: Events = events.map_err(|error| error.about(selector.subject()))?;
            if events.changed {
                return self.report(&selector, events, context).await;
            }
        }
    }

    async fn report(
        &self,
        selector: &Selector,
        events: Events,
        context: &mut Context,
    ) -> Result<(), Failure> {
        if self.options.json {
            return context.print_json(&events);
        }
        context.show_if_verbose(selector, &self.options).await
    }
}

/// Parses an event number. dmsetup accepts any word, but a typing error would make this verb wait
/// forever.
fn event_number(word: Option<&str>) -> Result<u32, Failure> {
    let Some(word) = word else { return Ok(0) };
    let complaint = || {
        Failure::Message(format!(
            "The event number '{word}' is not a number from 0 to {}.",
            u32::MAX
        ))
    };
    word.trim().parse().map_err(|_| complaint())
}
