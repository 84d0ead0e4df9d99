//! `map export`: writes the map as a message that makes this map on any device of the same
//! geometry.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::client::ClientError;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::names::Selector;
use crate::cli::options::Options;
use crate::protocol::{GENERATION_COMMENT, device_path, route};

/// Print the region map as a message that makes the same map anywhere
///
/// One set_region_mappings message that names every region, with R where patterns repeat, in lines
/// of at most 100 bytes, and a comment with the map's generation (without it, the map changed
/// meanwhile). map import and message - read it; the kernel's own switch target reads it with
/// --plain.
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
    /// Only the message, without the comment
    #[arg(long)]
    plain: bool,
    /// Print {"message", "generation"}
    #[arg(long, conflicts_with_all = ["output", "plain"])]
    json: bool,
}

/// The output with `--json`.
#[derive(Debug, Serialize)]
struct MapMessage {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
}

impl Export {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let name = context.name_of(&selector, "message").await?;
        let sector = self.sector.map(|sector| format!("&sector={sector}")).unwrap_or_default();
        let path = device_path(route::MAP_MESSAGE, &name);
        let path = format!("{path}?generation={}{sector}", !self.plain);
        let Some(file) = self.output else {
            if self.json {
                let mut text = Vec::new();
                let copied = context.client.download(&path, |data| text.write_all(data)).await;
                copied.map_err(|error| error.about(selector.subject()))?;
                let text = String::from_utf8_lossy(&text);
                let (text, number) = text.split_once(GENERATION_COMMENT).unwrap_or((&text, ""));
                let message = text.trim_end().replace('\n', " ");
                let generation = number.trim_end().parse().ok();
                return context.print_json(&MapMessage { message, generation });
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
