//! `map`: reads the region map back, which the kernel cannot: as a picture, as runs, or as a
//! message.

mod draw;
mod export;
mod import;
mod show;

use clap::{Args, Subcommand};

use super::context::Context;
use super::failure::Failure;

/// Show, save and restore region maps
#[derive(Debug, Args)]
pub(super) struct Map {
    #[command(subcommand)]
    verb: MapVerb,
}

#[derive(Debug, Subcommand)]
enum MapVerb {
    Show(show::Show),
    Export(export::Export),
    Import(import::Import),
}

impl Map {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        match self.verb {
            MapVerb::Show(verb) => verb.run(context).await,
            MapVerb::Export(verb) => verb.run(context).await,
            MapVerb::Import(verb) => verb.run(context).await,
        }
    }
}

/// `?sector=N`, or an empty string.
fn sector_query(sector: Option<u64>) -> String {
    sector.map(|sector| format!("?sector={sector}")).unwrap_or_default()
}
