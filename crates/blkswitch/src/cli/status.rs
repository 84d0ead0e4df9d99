//! `status`: what each segment's target says of its state.

use clap::Args;

use super::context::Context;
use super::devices::{Devices, exec};
use super::failure::Failure;
use super::format::lines::{What, segments};
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

/// The switches that its help shows.
pub(super) const SHOWN: &[&str] =
    &["inactive", "target", "noflush", "exec", "uuid", "major", "minor"];

impl Status {
    /// Runs the verb.
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let mut devices = Devices::fetch(&self.devices, &self.options, "status", context).await?;
        devices.retain_target(&self.options);
        if devices.printed(&self.options, context)? {
            return Ok(());
        }
        print_segments(&devices, What::Status, &self.options, context)
    }
}

/// A line per segment, for `status` and `table`: behind the device's name when there may be
/// several, below its `info` block with `-v`, and not at all when `--exec` runs a command instead.
pub(super) fn print_segments(
    devices: &Devices,
    what: What,
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
            context.print(&segments(table, what, target, &prefix))?;
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
