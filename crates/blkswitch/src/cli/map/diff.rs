//! `map diff`: compares the map of a device with that of another device, or with a file of
//! `map export`.

use std::fs::File;
use std::io::{IsTerminal, Read, Write, stdin};

use clap::Args;

use super::{range_text, sector_query};
use crate::cli::context::{Context, Lines};
use crate::cli::failure::Failure;
use crate::cli::names::Selector;
use crate::cli::options::Options;
use crate::cli::upload::{self, Source};
use crate::protocol::{MapChange, device_path, percent_encode, route};
use crate::raw;

/// Compare two region maps
///
/// A line for each range of regions that differ: the range, their path in the first map, and that
/// in the second. Both maps must have the same regions. A file is a message, as map export writes
/// it; regions that it does not name count as equal.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The device with the first map
    device: String,
    /// The device with the second map, or a file; - for standard input
    #[arg(value_name = "DEVICE|FILE")]
    other: String,
    /// Print {"regions", "region_size", "paths", "changes": [{"start", "count", "from", "to"},
    /// ...]}
    #[arg(long)]
    json: bool,
    /// Print the message that turns the first map into the second
    #[arg(long, conflicts_with = "json")]
    message: bool,
    /// A sector of the first device's segment, if it has several
    #[arg(long)]
    sector: Option<u64>,
    /// A sector of the second device's segment, if it has several
    #[arg(long, value_name = "SECTOR")]
    with_sector: Option<u64>,
}

/// The second map.
enum Other {
    Device(String),
    File(Box<dyn Read + Send>, Option<u64>),
}

impl Diff {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let name = context.name_of(&selector, "status").await?;
        let form = match (self.json, self.message) {
            (true, _) => "changes",
            (_, true) => "message",
            _ => "lines",
        };
        let sector = sector_query(self.sector).replace('?', "&");
        let path = format!("{}?form={form}{sector}", device_path(route::MAP_DIFF, &name));
        let other = self.other(context).await?;
        let client = context.client.clone();
        let sink = changes(context.out(), form != "lines");
        let sent = match other {
            Other::Device(with) => {
                let with_sector = sector_query(self.with_sector).replace("?", "&with_");
                let path = format!("{path}&with={}{with_sector}", percent_encode(&with));
                client.download(&path, sink).await
            }
            Other::File(reader, length) => {
                let bar = length.is_some();
                let body = upload::body(Vec::new(), Source { reader, length, bar });
                client.download_of_text(&path, body, sink).await
            }
        };
        sent.map_err(|error| error.about(selector.subject()))?;
        if self.json { context.print("\n") } else { Ok(()) }
    }
}

impl Diff {
    /// The second map: a device if there is one of that name, else a file.
    async fn other(&self, context: &Context) -> Result<Other, Failure> {
        if self.other == "-" {
            if stdin().is_terminal() {
                eprintln!(
                    "blkswitch: type a message, as map export writes it, and end it with Ctrl-D"
                );
            }
            return Ok(Other::File(Box::new(stdin()), None));
        }
        let selector = Selector::of(Some(&self.other), &Options::default());
        if let Ok(Selector::Name(name)) = &selector
            && context.devices().await?.iter().any(|device| device.name == *name)
        {
            return Ok(Other::Device(name.clone()));
        }
        if self.with_sector.is_some() {
            let other = &self.other;
            return Err(Failure::message(format!(
                "There is no device '{other}', and --with-sector goes with a device only."
            )));
        }
        match File::open(raw::path(&self.other)) {
            Ok(file) => {
                let length = file.metadata().ok().map(|file| file.len());
                Ok(Other::File(Box::new(file), length))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failure::message(
                format!("There is neither a device nor a file '{}' to compare with.", self.other),
            )),
            Err(error) => Err(Failure::message(format!(
                "Couldn't open '{}' for reading: {error}.",
                self.other
            ))),
        }
    }
}

/// Prints the changes: as they come, or each line of JSON as a range and its paths.
fn changes(out: &mut impl Write, as_they_come: bool) -> impl FnMut(&[u8]) -> std::io::Result<()> {
    let mut lines = Lines::default();
    move |data| {
        if as_they_come {
            return out.write_all(data);
        }
        lines.each(data, |line| match serde_json::from_slice(line) {
            Ok(MapChange { start, count, from, to }) => {
                writeln!(out, "{}: path {from} -> {to}", range_text(start, count))
            }
            Err(_) => Ok(()),
        })?;
        out.flush()
    }
}
