//! `info`: shows the state of devices, each as a block or as a row.

use clap::Args;

use super::context::Context;
use super::devices::Devices;
use super::failure::Failure;
use super::format;
use super::format::report::Style;
use super::options::Options;

/// Show the state of devices
#[derive(Debug, Args)]
pub(super) struct Info {
    /// The devices; all when none is named
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &[
    "columns",
    "fields",
    "sort",
    "noheadings",
    "separator",
    "nameprefixes",
    "unquoted",
    "inactive",
    "uuid",
    "major",
    "minor",
];

impl Info {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let options = &self.options;
        let devices = Devices::fetch(&self.devices, options, "info", context).await?;
        if devices.printed(options, context)? {
            return Ok(());
        }
        if options.columns {
            let chosen: Vec<_> = devices.iter().collect();
            let report = format::report::report(&chosen, &devices.all, &style(options));
            return context.print(&report.map_err(Failure::Message)?);
        }
        for device in devices.iter() {
            context.print(&format::info::block(device, options.inactive))?;
        }
        Ok(())
    }
}

/// The style of `info -c`. `--noheadings` without a separator means colons, as in dmsetup.
fn style(options: &Options) -> Style {
    Style {
        columns: options.fields.clone(),
        sort: options.sort.clone(),
        headings: !options.noheadings && !options.nameprefixes,
        separator: options.separator.clone().or_else(|| options.noheadings.then(|| ":".to_owned())),
        prefixes: options.nameprefixes,
        quotes: !options.unquoted,
    }
}
