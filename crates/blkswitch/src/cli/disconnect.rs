//! `disconnect`: ends connections of NBD clients to a device.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::format;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{Disconnected, device_path, percent_encode, route};

/// End connections of NBD clients to a device
///
/// Their connections end at once; requests that wait (at a suspended device, or for a path) are
/// given up, and those under way on leaves end first, for at most 10 seconds. A client may connect
/// again. info shows who has a device open.
#[derive(Debug, Args)]
#[command(override_usage = "blkswitch disconnect [OPTIONS] <DEVICE> [CLIENT]")]
pub(super) struct Disconnect {
    /// The device (unless -u or -j -m name it), and one client: its number, its address or its
    /// process as info shows them, or the address of its host; all clients when none is named
    #[arg(value_names = ["DEVICE", "CLIENT"], num_args = 0..=2)]
    args: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["uuid", "major", "minor"];

impl Disconnect {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let by_switch = super::names::named_by_switch(&self.options);
        let (device, client) = match self.args.as_slice() {
            [] if by_switch => (None, None),
            [client] if by_switch => (None, Some(client)),
            [device] => (Some(device.as_str()), None),
            [device, client] if !by_switch => (Some(device.as_str()), Some(client)),
            _ => return Err(Failure::WrongNumberOfArguments("disconnect")),
        };
        let selector = Selector::of(device, &self.options)?;
        let name = context.name_of(&selector, "disconnect").await?;
        let mut path = device_path(route::CLIENTS, &name);
        if let Some(client) = client {
            path = format!("{path}?client={}", percent_encode(client));
        }
        let sent = context.client.exchange(Method::DELETE, &path, &()).await;
        let done: Disconnected = sent.map_err(|error| error.about(selector.subject()))?;
        if self.options.json {
            return context.print_json(&done);
        }
        for client in &done.disconnected {
            context.print(&format!("{}\n", format::info::client(client)))?;
        }
        Ok(())
    }
}
