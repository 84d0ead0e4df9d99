//! `map export`: writes the map as a message that makes this map on any device of the same
//! geometry.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::sector_query;
use crate::cli::client::ClientError;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::names::Selector;
use crate::cli::options::Options;
use crate::protocol::{device_path, route};

/// Print the region map as a message that makes the same map anywhere
///
/// One set_region_mappings message that names every region, with R where patterns repeat, in lines
/// of at most 100 bytes; map import, message -, and the kernel's own switch target read it.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// The device
    device: String,
    /// Write to this file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A sector of the segment, if the device has several
    #[arg(long)]
    sector: Option<u64>,
    /// Print {"message"}
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

/// The output with `--json`.
#[derive(Debug, Serialize)]
struct MapMessage {
    message: String,
}

impl Export {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let name = context.name_of(&selector, "message").await?;
        let path = device_path(route::MAP_MESSAGE, &name) + &sector_query(self.sector);
        let Some(file) = self.output else {
            if self.json {
                let mut text = Vec::new();
                let copied = context.client.download(&path, |data| text.write_all(data)).await;
                copied.map_err(|error| error.about(selector.subject()))?;
                let message = String::from_utf8_lossy(&text).trim_end().replace('\n', " ");
                return context.print_json(&MapMessage { message });
            }
            return context.print_download(&path, selector.subject()).await;
        };
        let couldnt =
            |error| Failure::Message(format!("Cannot write '{}': {error}.", file.display()));
        let mut out = BufWriter::new(File::create(&file).map_err(couldnt)?);
        let copied = context.client.download(&path, |data| out.write_all(data)).await;
        copied.map_err(|error| match error {
            ClientError::Io(error) => couldnt(error),
            error => error.about(selector.subject()),
        })?;
        out.flush().map_err(couldnt)
    }
}
