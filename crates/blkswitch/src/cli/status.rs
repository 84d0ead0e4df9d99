//! `status`: shows the state of each segment's target.

use clap::Args;

use super::context::Context;
use super::devices::{Devices, exec};
use super::failure::Failure;
use super::format::lines::{Column, segments};
use super::format::{info, slot};
use super::options::Options;

/// Show the status of devices' targets
#[derive(Debug, Args)]
pub(super) struct Status {
    /// The devices; all when none is named
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] =
    &["inactive", "target", "noflush", "exec", "uuid", "major", "minor"];

impl Status {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let mut devices = Devices::fetch(&self.devices, &self.options, "status", context).await?;
        devices.retain_target(&self.options);
        if devices.printed(&self.options, context)? {
            return Ok(());
        }
        print_segments(&devices, Column::Status, &self.options, context)
    }
}

/// Prints a line per segment, for `status` and `table`. If there may be several devices, the line
/// begins with the device's name. With `-v`, the `info` block comes first. With `--exec`, a command
/// runs instead.
pub(super) fn print_segments(
    devices: &Devices,
    column: Column,
    options: &Options,
    context: &mut Context,
) -> Result<(), Failure> {
    let verbose = options.verbose > 0;
    let target = options.target.as_deref();
    for device in devices.iter() {
        let table = slot(device, options.inactive);
        if options.exec.is_none() || verbose {
            if verbose {
                context.print(&info::block(device, options.inactive))?;
            }
            let prefix = if devices.prefixed && !verbose {
                format!("{}: ", device.name)
            } else {
                String::new()
            };
            context.print(&segments(table, column, target, &prefix))?;
            if verbose && devices.prefixed {
                context.print("\n")?;
            }
        }
        if let Some(command) = &options.exec {
            context.flush()?;
            exec(command, device)?;
        }
    }
    Ok(())
}
