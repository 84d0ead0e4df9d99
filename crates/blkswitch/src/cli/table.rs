//! `table`: shows the table lines of devices.

use clap::Args;

use super::context::Context;
use super::devices::Devices;
use super::failure::Failure;
use super::format::lines::{Column, concise};
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

pub(super) const SHOWN: &[&str] =
    &["inactive", "target", "concise", "exec", "uuid", "major", "minor"];

impl Table {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let options = &self.options;
        let mut devices = Devices::fetch(&self.devices, options, "table", context).await?;
        devices.retain_target(options);
        if devices.printed(options, context)? {
            return Ok(());
        }
        if options.concise {
            return context.print(&concise_line(&devices, options));
        }
        print_segments(&devices, Column::Table, options, context)
    }
}

/// All devices on one line, as `--concise` prints them; empty if there are none.
fn concise_line(devices: &Devices, options: &Options) -> String {
    let target = options.target.as_deref();
    let parts =
        devices.iter().map(|device| concise(device, slot(device, options.inactive), target));
    let line = parts.collect::<Vec<_>>().join(";");
    if line.is_empty() { line } else { line + "\n" }
}
