//! `map set`: puts ranges of regions on paths. All numbers are decimal.
//!
//! Contract: all words are read and checked, also against the device, before anything is sent. So a
//! typing error changes nothing. They are sent as a `set_region_mappings` message, whose numbers
//! are hexadecimal.

use std::fmt::Write as _;
use std::io::{IsTerminal, Read, stdin};

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;

use super::segment_of;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::message::message_path;
use crate::cli::names::Selector;
use crate::cli::options::Options;
use crate::protocol::{MessageReply, RegionMap, device_path, route};

/// Most bytes of standard input. It is the daemon's limit for an atomic message.
const INPUT_MAX_BYTES: u64 = 128 << 20;

/// Put regions on paths, with decimal numbers
///
/// As in `blkswitch map set vol 0-99 2 256 0`: regions 0 to 99 on path 2, and region 256 on path 0.
/// Without ranges they come from standard input, as words or lines; # begins a comment. This moves
/// no data: it changes only where later requests go.
#[derive(Debug, Args)]
#[command(
    override_usage = "blkswitch map set [OPTIONS] <DEVICE> [RANGE PATH]...",
    after_help = "A RANGE is a region or A-B, the last one included. Where ranges overlap, the last \
                  one holds."
)]
pub(super) struct Set {
    /// The device
    device: String,
    /// Regions, as A-B or one alone, and the number of their path
    #[arg(value_names = ["RANGE", "PATH"], num_args = 0..)]
    words: Vec<String>,
    /// All or nothing: change no region when any range or path does not exist
    #[arg(long)]
    atomic: bool,
    /// Change nothing unless the map has this generation (see info); implies --atomic
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
    /// Change the map although a source supplies it (create --map-from)
    #[arg(long)]
    force: bool,
    /// A sector of the segment, if the device has several
    #[arg(long)]
    sector: Option<u64>,
    /// Do not say that the paths lead to different storage
    #[arg(short, long)]
    quiet: bool,
    /// Print what the daemon says, as JSON
    #[arg(long)]
    json: bool,
}

impl Set {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let text = match self.words.as_slice() {
            [] => read_stdin()?,
            [word] if word == "-" => read_stdin()?,
            words => words.join(" "),
        };
        // An error in the words themselves is reported without a daemon.
        message(&text, None)?;
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let sector = segment_of(self.sector, &selector, context).await?;
        let name = context.name_of(&selector, "message").await?;
        let head = format!("{}?sector={sector}&from=0&to=0", device_path(route::MAP, &name));
        let head: RegionMap =
            context.client.get(&head).await.map_err(|error| error.about(selector.subject()))?;
        let message = message(&text, Some((head.regions, head.paths)))?;
        let path = message_path(&name, sector, self.atomic, self.if_generation, self.force);
        let body = Full::new(Bytes::from(message));
        let reply: MessageReply = context
            .client
            .post_text(&path, body, self.quiet)
            .await
            .map_err(|error| error.about(selector.subject()))?;
        if self.json { context.print_json(&reply) } else { Ok(()) }
    }
}

fn read_stdin() -> Result<String, Failure> {
    if stdin().is_terminal() {
        eprintln!("blkswitch: type lines of RANGE PATH, as in 0-99 2, and end them with Ctrl-D");
    }
    let mut text = String::new();
    let read = stdin().lock().take(INPUT_MAX_BYTES + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::Message(format!("Read from stdin aborted: {error}")))?;
    if text.len() as u64 > INPUT_MAX_BYTES {
        return Err(Failure::message(format!(
            "More than {INPUT_MAX_BYTES} bytes of ranges: give them in parts, or as a message \
             (blkswitch message NAME SECTOR set_region_mappings -)."
        )));
    }
    Ok(text)
}

/// Converts ranges and paths to a message. `map` has the numbers of regions and paths; with `None`,
/// only the words themselves are checked.
fn message(text: &str, map: Option<(u64, u32)>) -> Result<String, Failure> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut words = lines.flat_map(str::split_whitespace);
    let mut out = String::from("set_region_mappings");
    while let Some(range) = words.next() {
        let (first, last) = parse_range(range)?;
        let Some(path) = words.next() else {
            return Err(wrong(format!("no path stands behind the range '{range}'")));
        };
        let number = path.parse::<u32>().map_err(|_| {
            wrong(format!("'{path}' is no path: it must be a decimal number, like 2"))
        })?;
        match map {
            Some((regions, _)) if last >= regions => {
                let most = regions.saturating_sub(1);
                return Err(wrong(format!("'{range}': the regions are 0 to {most}")));
            }
            Some((_, paths)) if number >= paths => {
                let most = paths.saturating_sub(1);
                return Err(wrong(format!("'{range} {path}': the paths are 0 to {most}")));
            }
            _ => {}
        }
        let _ = write!(out, " {first:x}:{number:x}");
        if last > first {
            let _ = write!(out, " R1,{:x}", last - first);
        }
    }
    Ok(out)
}

fn parse_range(text: &str) -> Result<(u64, u64), Failure> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(wrong(format!(
            "'{text}' is no range: it must be a region or A-B with A <= B, in decimal, like 0-99"
        ))),
    }
}

fn wrong(why: String) -> Failure {
    Failure::Message(format!("Invalid ranges: nothing was changed.\n  {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_ranges_become_a_hexadecimal_message() {
        for (text, words) in [
            ("", ""),
            ("0-99 2", " 0:2 R1,63"),
            ("256 10", " 100:a"),
            ("7-7 0 0-1 1", " 7:0 0:1 R1,1"),
            ("# all\n0-9 1 # ten\n\n\t16-31   3\n", " 0:1 R1,9 10:3 R1,f"),
        ] {
            assert_eq!(
                message(text, None).unwrap(),
                format!("set_region_mappings{words}"),
                "{text}"
            );
        }
    }

    #[test]
    fn wrong_words_are_quoted() {
        for (text, part) in [
            ("0x10 1", "'0x10' is no range"),
            ("9-3 1", "'9-3' is no range"),
            ("-3 1", "'-3' is no range"),
            ("a 1", "'a' is no range"),
            ("0-9 1 5", "behind the range '5'"),
            ("0-9 :1", "':1' is no path"),
            ("0-9 4294967296", "'4294967296' is no path"),
            ("0-9 1 90-100 1", "'90-100': the regions are 0 to 99"),
            ("0-9 8", "'0-9 8': the paths are 0 to 7"),
        ] {
            let text = message(text, Some((100, 8))).unwrap_err().plain();
            assert!(text.contains(part) && text.contains("nothing was changed"), "{text}");
        }
    }
}
