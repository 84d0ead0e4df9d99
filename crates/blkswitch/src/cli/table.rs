//! `table`: the lines that a device was loaded with.

use clap::Args;

use super::context::Context;
use super::devices::Devices;
use super::failure::Failure;
use super::format::lines::{What, concise, matching};
use super::format::slot;
use super::options::Options;
use super::status::print_segments;

/// Show the tables of devices
#[derive(Debug, Args)]
pub(super) struct Table {
    /// The devices; all when none is named
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

/// The switches that its help shows.
pub(super) const SHOWN: &[&str] = &["inactive", "target", "concise", "exec", "uuid", "major", "minor"];

impl Table {
    /// Runs the verb.
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let options = &self.options;
        let devices = Devices::fetch(&self.devices, options, "table", context).await?;
        if devices.printed(options, context)? {
            return Ok(());
        }
        if options.concise {
            return context.print(&concise_line(&devices, options));
        }
        print_segments(&devices, What::Table, options, context)
    }
}

/// All devices on one line; nothing when none has a segment of the type.
fn concise_line(devices: &Devices, options: &Options) -> String {
    let target = options.target.as_deref();
    let has_segment = |device: &&crate::protocol::Device| {
        let segments =
            slot(device, options.inactive).map(|table| table.segments.as_slice()).unwrap_or_default();
        target.is_none() || matching(segments, target).next().is_some()
    };
    let parts = devices
        .iter()
        .filter(has_segment)
        .map(|device| concise(device, slot(device, options.inactive), target));
    let line = parts.collect::<Vec<_>>().join(";");
    if line.is_empty() { line } else { line + "\n" }
}
