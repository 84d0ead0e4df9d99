//! `message`: sends words to a target, from the command line or, in any number, from standard
//! input.
//!
//! Contract: the words are sent unchanged, joined by single spaces. Standard input is streamed in
//! pieces, so memory does not grow with it.

use std::io::IsTerminal;

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;

use super::context::Context;
use super::failure::Failure;
use super::names::{Selector, named_by_switch};
use super::options::Options;
use super::upload::{self, Source};
use crate::protocol::{MessageReply, device_path, route};
use crate::raw;

/// Send a message to a target
///
/// A message moves no data: it changes only where later requests go. The device (unless -u or -j -m
/// name it), any sector of the segment whose target is meant, and
/// the words. A last word of - reads further words from standard input, as many as there are, as in
/// `generate-layout | blkswitch message switch 0 set_region_mappings -`.
#[derive(Debug, Args)]
#[command(
    override_usage = "blkswitch message [OPTIONS] <DEVICE> <SECTOR> <WORD>...",
    after_long_help = LANGUAGE
)]
pub(super) struct Message {
    /// The device, a sector of it, and the words
    #[arg(value_names = ["DEVICE", "SECTOR", "WORD"], num_args = 0.., required = true)]
    args: Vec<String>,
    /// All or nothing: change no region when any of the words is refused
    #[arg(long)]
    atomic: bool,
    /// Change nothing unless the map has this generation (see info); implies --atomic
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
    /// Do not say that the paths lead to different storage
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    options: Options,
}

/// The language of messages, for help and manual page (docs/switch.md has all of it).
const LANGUAGE: &str = "\
Messages of a switch:
  set_region_mappings ARGUMENT...
    REGION:PATH   this region goes to this path
    :PATH         the region after the last one goes to this path
    RCYCLE,COUNT  repeat the last CYCLE regions for the next COUNT
  get_region_mappings
    print the map as such a message

All numbers of set_region_mappings are HEXADECIMAL, without 0x: 100:0 is region 256, and R2,10 \
maps 16 further regions. The sector, map show, map set and error texts are decimal. Regions and \
paths count from 0. The last region of an empty message counts as 0, so :2 alone means region 1. \
Arguments before a wrong one stay applied, unless --atomic is given.

Messages of a multipath: fail_path PATH, reinstate_path PATH, disable_group N, enable_group N, \
switch_group N, queue_if_no_path, fail_if_no_path.

Examples:
  blkswitch message vol 0 set_region_mappings 0:0 :1 :2 R3,fd
  blkswitch message vol 0 set_region_mappings 0:2 R1,ff
  blkswitch map set vol 0-255 2

The last two put regions 0 to 255 on path 2.";

pub(super) const SHOWN: &[&str] = &["uuid", "major", "minor", "force"];

/// The word that means standard input.
const STDIN: &str = "-";

impl Message {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let (device, rest) = match self.args.as_slice() {
            [] | [_] => return Err(Failure::WrongNumberOfArguments("message")),
            rest if named_by_switch(&self.options) => (None, rest),
            [device, rest @ ..] => (Some(device.as_str()), rest),
        };
        let selector = Selector::of(device, &self.options)?;
        let (sector, words) = match rest {
            [sector, words @ ..] => (parse_sector(sector)?, words),
            [] => return Err(Failure::WrongNumberOfArguments("message")),
        };
        if words.is_empty() {
            // dmsetup prints this as well, and still asks the kernel, which refuses.
            eprintln!("No message supplied.");
        }
        let reply = self.send(&selector, sector, words, context).await?;
        self.print(&reply, context)
    }

    async fn send(
        &self,
        selector: &Selector,
        sector: u64,
        words: &[String],
        context: &Context,
    ) -> Result<MessageReply, Failure> {
        let name = context.name_of(selector, "message").await?;
        let path = message_path(&name, sector, self.atomic, self.if_generation, self.options.force);
        let (client, quiet) = (&context.client, self.quiet);
        let sent = match words {
            [first @ .., last] if last == STDIN => {
                let stdin = std::io::stdin();
                // A user who types the words needs no progress bar.
                let bar = !stdin.is_terminal();
                let source = Source { reader: stdin, length: upload::length_of_stdin(), bar };
                client.post_text(&path, upload::body(joined(first), source), quiet).await
            }
            _ => client.post_text(&path, Full::new(Bytes::from(joined(words))), quiet).await,
        };
        sent.map_err(|error| error.about(selector.subject()))
    }

    fn print(&self, reply: &MessageReply, context: &mut Context) -> Result<(), Failure> {
        if self.options.json {
            return context.print_json(reply);
        }
        if self.options.verbose > 0 {
            context.print(&format!("{} arguments applied.\n", reply.arguments))?;
        }
        match &reply.text {
            Some(text) => context.print(&format!("{}\n", text.strip_suffix('\n').unwrap_or(text))),
            None => Ok(()),
        }
    }
}

/// The route of a message, with its query.
pub(super) fn message_path(
    name: &str,
    sector: u64,
    atomic: bool,
    if_generation: Option<u64>,
    force: bool,
) -> String {
    let route = device_path(route::MESSAGE, name);
    let only = if_generation.map(|number| format!("&if_generation={number}")).unwrap_or_default();
    let force = if force { "&force=true" } else { "" };
    format!("{route}?sector={sector}&atomic={atomic}{force}{only}")
}

/// Joins the words with spaces. Their bytes need not be UTF-8.
fn joined(words: &[String]) -> Vec<u8> {
    raw::decode(&words.join(" ")).into_owned()
}

/// Parses a decimal number like `strtoull`.
fn parse_sector(word: &str) -> Result<u64, Failure> {
    word.trim_start().parse().map_err(|_| {
        Failure::Message(format!(
            "Invalid sector.\n  '{word}': the word behind the device is any sector of the segment \
             that is meant, in decimal; 0 if there is one segment"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_are_decimal() {
        assert_eq!(parse_sector("2047").unwrap(), 2047);
        assert_eq!(parse_sector(" +7").unwrap(), 7);
        for word in ["x", "", "0x10", "-1", "18446744073709551616", "1 "] {
            let text = parse_sector(word).unwrap_err().plain();
            assert!(text.starts_with(&format!("Invalid sector.\n  '{word}': ")), "{text}");
            assert!(text.ends_with("\nCommand failed.\n"), "{text}");
        }
    }
}
