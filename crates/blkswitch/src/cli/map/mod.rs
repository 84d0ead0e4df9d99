//! `map`: reads the region map, which the kernel's target does not allow: as a picture, as runs, or
//! as a message. It also sets the map, tells where sectors lie, compares maps, and plans moves.

mod diff;
mod draw;
mod export;
mod import;
mod places;
mod plan;
mod regions;
mod set;
mod show;

use clap::{Args, Subcommand};

use super::context::{Context, find};
use super::failure::Failure;
use super::names::Selector;
use crate::protocol::{Device, Errno};

/// Show, set, save, restore, compare and plan region maps
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
    Set(set::Set),
    Where(places::Where),
    Regions(regions::Regions),
    Diff(diff::Diff),
    Plan(plan::Plan),
}

impl Map {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        match self.verb {
            MapVerb::Show(verb) => verb.run(context).await,
            MapVerb::Export(verb) => verb.run(context).await,
            MapVerb::Import(verb) => verb.run(context).await,
            MapVerb::Set(verb) => verb.run(context).await,
            MapVerb::Where(verb) => verb.run(context).await,
            MapVerb::Regions(verb) => verb.run(context).await,
            MapVerb::Diff(verb) => verb.run(context).await,
            MapVerb::Plan(verb) => verb.run(context).await,
        }
    }
}

/// The query `?sector=N`; empty without a sector.
fn sector_query(sector: Option<u64>) -> String {
    sector.map(|sector| format!("?sector={sector}")).unwrap_or_default()
}

/// Regions in the form that `map set` takes: `7`, or `0-99` with the last one included.
fn range_text(start: u64, count: u64) -> String {
    if count == 1 { start.to_string() } else { format!("{start}-{}", start + count - 1) }
}

/// A sector of the segment to use: the given one, or the start of the only switch segment.
async fn segment_of(
    sector: Option<u64>,
    selector: &Selector,
    context: &Context,
) -> Result<u64, Failure> {
    match sector {
        Some(sector) => Ok(sector),
        None => only_switch(find(&context.devices().await?, selector, "message")?, selector),
    }
}

/// First sector of the only switch segment.
fn only_switch(device: &Device, selector: &Selector) -> Result<u64, Failure> {
    let segments = device.live.as_ref().map(|table| table.segments.as_slice()).unwrap_or_default();
    let starts: Vec<_> = segments
        .iter()
        .filter(|segment| segment.target == "switch")
        .map(|segment| segment.start)
        .collect();
    match starts.as_slice() {
        [start] => Ok(*start),
        [] => Err(refused(
            selector,
            format!("{} has no switch segment in its live table.", device.name),
        )),
        _ => {
            let reason = format!(
                "{} has switch segments at sectors {starts:?}: say which with --sector.",
                device.name
            );
            Err(refused(selector, reason))
        }
    }
}

fn refused(selector: &Selector, reason: String) -> Failure {
    Failure::refused("message", Errno::Einval, reason, selector.subject())
}
