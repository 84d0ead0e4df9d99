//! `deps`: shows the dependencies of devices.

use clap::Args;

use super::context::Context;
use super::devices::Devices;
use super::failure::Failure;
use super::format::lines::{DeviceName, deps};
use super::format::{info, slot};
use super::options::Options;

/// Show the dependencies of devices
#[derive(Debug, Args)]
pub(super) struct Deps {
    /// The devices; all when none is named
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["fields", "inactive", "uuid", "major", "minor"];

impl Deps {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let options = &self.options;
        let by = DeviceName::parse(options.fields.as_deref()).map_err(Failure::CommandLine)?;
        let devices = Devices::fetch(&self.devices, options, "deps", context).await?;
        if devices.printed(options, context)? {
            return Ok(());
        }
        let verbose = options.verbose > 0;
        for device in devices.iter() {
            if verbose {
                context.print(&info::block(device, options.inactive))?;
            }
            let prefix = if devices.prefixed && !verbose {
                format!("{}: ", device.name)
            } else {
                String::new()
            };
            context.print(&deps(slot(device, options.inactive), by, &prefix))?;
            if verbose && devices.prefixed {
                context.print("\n")?;
            }
        }
        Ok(())
    }
}
