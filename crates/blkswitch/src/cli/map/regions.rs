//! `map regions`: lists the regions of a path, as ranges.

use clap::Args;

use super::range_text;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::names::Selector;
use crate::cli::options::Options;
use crate::protocol::{Run, device_path, route};

/// List the regions of a path
///
/// A line for each range of neighbouring regions, as A-B or one number, which map set takes.
#[derive(Debug, Args)]
pub(super) struct Regions {
    /// The device
    device: String,
    /// The number of the path
    #[arg(long, value_name = "P")]
    path: u32,
    /// Print {"regions", "paths", "region_size", "runs": [{"start", "count", "path"}, ...]}
    #[arg(long)]
    json: bool,
    /// A sector of the segment, if the device has several
    #[arg(long)]
    sector: Option<u64>,
}

impl Regions {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let name = context.name_of(&selector, "status").await?;
        let form = if self.json { "runs" } else { "lines" };
        let sector = self.sector.map(|sector| format!("&sector={sector}")).unwrap_or_default();
        let path = device_path(route::MAP, &name);
        let path = format!("{path}?form={form}&path={}{sector}", self.path);
        if self.json {
            context.print_download(&path, selector.subject()).await?;
            return context.print("\n");
        }
        // The first line is the head and does not parse as a run.
        let range = |line: &str| {
            let run: Run = serde_json::from_str(line).ok()?;
            Some(range_text(run.start, run.count).into_bytes())
        };
        context.print_lines(&path, selector.subject(), range).await
    }
}
