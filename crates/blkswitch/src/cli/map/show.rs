//! `map show`: draws the map as a picture that fits the terminal, or prints all of it as JSON.

use clap::Args;

use super::draw::{Look, draw};
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::names::Selector;
use crate::cli::options::Options;
use crate::cli::terminal;
use crate::protocol::{MapPicture, device_path, route};

/// Draw the region map of a device
///
/// A block stands for one region, or for several neighbouring ones, in the colour of the path of
/// most of them.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The device
    device: String,
    /// Only these regions, the last one included
    #[arg(long, value_name = "A-B", value_parser = parse_range)]
    range: Option<(u64, u64)>,
    /// Print {"regions", "paths", "region_size", "runs": [{"start", "count", "path"}, ...]}
    #[arg(long)]
    json: bool,
    /// With --json: "from" and "to", and runs as [count, path], each from where the one before ends
    #[arg(long, requires = "json")]
    compact: bool,
    /// Print NDJSON: a line with what the map is of, then a line for each run
    #[arg(long, conflicts_with_all = ["json", "compact"])]
    ndjson: bool,
    /// A sector of the segment, if the device has several
    #[arg(long)]
    sector: Option<u64>,
}

impl Show {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let name = context.name_of(&selector, "message").await?;
        if self.json || self.ndjson {
            let path = device_path(route::MAP, &name) + &self.query(None);
            context.print_download(&path, selector.subject()).await?;
            return if self.ndjson { Ok(()) } else { context.print("\n") };
        }
        let look = Look::new(terminal::size(), terminal::colours());
        let path = device_path(route::MAP_PICTURE, &name) + &self.query(Some(look.cells()));
        let picture: MapPicture =
            context.client.get(&path).await.map_err(|error| error.about(selector.subject()))?;
        context.print(&draw(&name, &picture, &look))
    }

    fn query(&self, cells: Option<usize>) -> String {
        let range = self.range;
        let parts = [
            cells.map(|cells| format!("cells={cells}")),
            range.map(|(from, _)| format!("from={from}")),
            range.map(|(_, to)| format!("to={to}")),
            self.sector.map(|sector| format!("sector={sector}")),
            self.compact.then(|| "form=compact".to_owned()),
            self.ndjson.then(|| "form=lines".to_owned()),
        ];
        let query: Vec<_> = parts.into_iter().flatten().collect();
        if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) }
    }
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let range =
        text.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match range {
        Some((from, to)) if from <= to => Ok((from, to)),
        _ => Err(format!("'{text}' is not a range of regions A-B with A <= B, like 0-99")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_two_ends_in_order() {
        assert_eq!(parse_range("0-99"), Ok((0, 99)));
        assert_eq!(parse_range("7-7"), Ok((7, 7)));
        for text in ["9-3", "9", "-3", "3-", "a-b", "1-2-3"] {
            assert!(parse_range(text).unwrap_err().contains(text));
        }
    }
}
