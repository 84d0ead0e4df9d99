//! `map import`: sends an exported map, or any message, from a file.

use std::fs::File;
use std::io::{IsTerminal, stdin};

use clap::Args;

use super::segment_of;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::message::message_path;
use crate::cli::names::Selector;
use crate::cli::options::Options;
use crate::cli::upload::{self, Source};
use crate::protocol::MessageReply;
use crate::raw;

/// Send an exported region map to a device
#[derive(Debug, Args)]
pub(super) struct Import {
    /// The device
    device: String,
    /// The file; - for standard input
    file: String,
    /// All or nothing: change no region when any of the words is refused
    #[arg(long)]
    atomic: bool,
    /// Change nothing unless the map has this generation (see info); implies --atomic
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
    /// Change the map although a source supplies it (create --map-from)
    #[arg(long)]
    force: bool,
    /// Do not say that the paths lead to different storage
    #[arg(short, long)]
    quiet: bool,
    /// A sector of the segment, if the device has several
    #[arg(long)]
    sector: Option<u64>,
    /// Print what the daemon says, as JSON
    #[arg(long)]
    json: bool,
}

impl Import {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let sector = segment_of(self.sector, &selector, context).await?;
        let name = context.name_of(&selector, "message").await?;
        let path = message_path(&name, sector, self.atomic, self.if_generation, self.force);
        let sent = if self.file == "-" {
            let source = Source {
                reader: stdin(),
                length: upload::length_of_stdin(),
                bar: !stdin().is_terminal(),
            };
            context.client.post_text(&path, upload::body(Vec::new(), source), self.quiet).await
        } else {
            let couldnt = |error| {
                Failure::Message(format!("Couldn't open '{}' for reading: {error}.", self.file))
            };
            let file = File::open(raw::path(&self.file)).map_err(couldnt)?;
            let length = file.metadata().ok().map(|file| file.len());
            context
                .client
                .post_text(
                    &path,
                    upload::body(Vec::new(), Source { reader: file, length, bar: true }),
                    self.quiet,
                )
                .await
        };
        let reply: MessageReply = sent.map_err(|error| error.about(selector.subject()))?;
        if self.json { context.print_json(&reply) } else { Ok(()) }
    }
}
