//! `map where`: tells where sectors, bytes or regions of a device lie.
//!
//! Contract: standard input is read in pieces of at most [`PIECE_BYTES`], and each is answered
//! before the next is read. So a trace of any length takes bounded memory, and a program that
//! writes slowly gets its answers at once.

use std::fmt::Write as _;
use std::io::{IsTerminal, Read, stdin};

use clap::Args;
use hyper::Method;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::names::Selector;
use crate::cli::options::Options;
use crate::cli::terminal;
use crate::protocol::{
    Place, Places, Tier, Unit, WHERE_NUMBERS_MAX, Where as Ask, device_path, route,
};

/// Most bytes of standard input that are read at a time. Each number takes at least two.
const PIECE_BYTES: usize = 2 * WHERE_NUMBERS_MAX;
/// Columns by which the tiers below are indented, if a line is too long for the terminal.
const INDENT: &str = "    ";

/// Show where sectors of a device lie
///
/// A line for each number: the region, the path, the devices on the way, and the leaf at the end
/// with the address there. Of a multipath it is the first path that is up of the group in use. Any
/// device will do; regions need a switch. Without numbers they come from standard input: decimal
/// sectors, one a line; empty lines and lines that begin with # are ignored.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// The device
    device: String,
    /// Sectors of the device; - for standard input
    #[arg(long, value_name = "N", value_parser = parse_number)]
    sector: Vec<Number>,
    /// Bytes of the device; - for standard input
    #[arg(long, value_name = "N", value_parser = parse_number)]
    byte: Vec<Number>,
    /// Regions; - for standard input
    #[arg(long, value_name = "N", value_parser = parse_number)]
    region: Vec<Number>,
    /// For regions: a sector of the segment, if the device has several
    #[arg(long, value_name = "SECTOR")]
    segment: Option<u64>,
    /// Print {"places": [{"number", "sector", "region", "path", "leaf", "leaf_sector", ...}, ...]}
    #[arg(long)]
    json: bool,
    /// Print NDJSON: a line for each place
    #[arg(long, conflicts_with = "json")]
    ndjson: bool,
}

/// A number of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Is(u64),
    Stdin,
}

fn parse_number(text: &str) -> Result<Number, String> {
    match text.parse() {
        _ if text == "-" => Ok(Number::Stdin),
        Ok(number) => Ok(Number::Is(number)),
        Err(_) => {
            Err(format!("'{text}' must be a decimal number, like 4096, or - for standard input"))
        }
    }
}

impl Where {
    pub(super) async fn run(mut self, context: &mut Context) -> Result<(), Failure> {
        if self.sector.is_empty() && self.byte.is_empty() && self.region.is_empty() {
            self.sector.push(Number::Stdin);
        }
        let all =
            [(Unit::Sector, &self.sector), (Unit::Byte, &self.byte), (Unit::Region, &self.region)];
        let inputs = all.iter().flat_map(|(_, numbers)| numbers.iter());
        if inputs.filter(|number| **number == Number::Stdin).count() > 1 {
            return Err(Failure::message(
                "Standard input has been named twice: it can be read once, with one of --sector -, \
                 --byte - and --region -.",
            ));
        }
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let name = context.name_of(&selector, "status").await?;
        let mut asking = Asking {
            path: device_path(route::MAP_WHERE, &name),
            selector: &selector,
            segment: self.segment,
            look: Look { json: self.json, ndjson: self.ndjson, columns: terminal::width() },
            printed: false,
        };
        if self.json {
            context.print("{\"places\": [")?;
        }
        for (unit, numbers) in all {
            for part in numbers.chunk_by(|a, b| (*a == Number::Stdin) == (*b == Number::Stdin)) {
                let known = part.iter().filter_map(|number| match number {
                    Number::Is(number) => Some(*number),
                    Number::Stdin => None,
                });
                let known: Vec<u64> = known.collect();
                if known.is_empty() {
                    asking.stdin(unit, context).await?;
                } else {
                    asking.ask(unit, known, context).await?;
                }
            }
        }
        if self.json { context.print("\n]}\n") } else { Ok(()) }
    }
}

/// Asks the daemon, and prints what it answers.
struct Asking<'a> {
    path: String,
    selector: &'a Selector,
    segment: Option<u64>,
    look: Look,
    /// Whether a place was printed.
    printed: bool,
}

impl Asking<'_> {
    async fn ask(
        &mut self,
        unit: Unit,
        numbers: Vec<u64>,
        context: &mut Context,
    ) -> Result<(), Failure> {
        for part in numbers.chunks(WHERE_NUMBERS_MAX) {
            let segment = self.segment.filter(|_| unit == Unit::Region);
            let ask = Ask { unit, numbers: part.to_vec(), segment };
            let answer = context.client.exchange(Method::POST, &self.path, &ask).await;
            let answer: Places = answer.map_err(|error| error.about(self.selector.subject()))?;
            for place in &answer.places {
                let text = self.look.text(place, unit, self.printed);
                self.printed = true;
                context.print(&text)?;
            }
        }
        Ok(())
    }

    /// Looks up the numbers of standard input, piece by piece.
    async fn stdin(&mut self, unit: Unit, context: &mut Context) -> Result<(), Failure> {
        if stdin().is_terminal() {
            eprintln!(
                "blkswitch: type {}s, one a line, and end them with Ctrl-D (--sector N takes one \
                 from the command line)",
                unit.name()
            );
        }
        let mut input = stdin().lock();
        let (mut text, mut lines) = (Vec::new(), 0u64);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = match input.read(&mut piece) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Failure::message(format!("Read from stdin aborted: {error}.")));
                }
            };
            text.extend_from_slice(piece.get(..read).unwrap_or_default());
            let is_end = read == 0;
            let whole = match text.iter().rposition(|byte| *byte == b'\n') {
                _ if is_end => text.len(),
                Some(end) => end + 1,
                None if text.len() < PIECE_BYTES => 0,
                None => {
                    return Err(Failure::message(format!(
                        "Standard input, line {}: a line of more than {PIECE_BYTES} bytes is no \
                         number.",
                        lines + 1
                    )));
                }
            };
            let first = lines + 1;
            let numbers = numbers(text.get(..whole).unwrap_or_default(), unit, &mut lines)?;
            text.drain(..whole);
            if !numbers.is_empty() {
                let asked = self.ask(unit, numbers, context).await;
                asked.map_err(|failure| in_lines(failure, first, lines))?;
                context.flush()?;
            }
            if is_end {
                return Ok(());
            }
        }
    }
}

/// Says which lines of standard input the daemon has refused.
fn in_lines(mut failure: Failure, first: u64, last: u64) -> Failure {
    if let Failure::Refused(refusal) = &mut failure {
        let reason = &mut refusal.body.reason;
        *reason = match last - first {
            0 => format!("standard input, line {first}: {reason}"),
            _ => format!("standard input, lines {first} to {last}: {reason}"),
        };
    }
    failure
}

/// Reads one number a line. `lines` counts the lines.
fn numbers(text: &[u8], unit: Unit, lines: &mut u64) -> Result<Vec<u64>, Failure> {
    let mut numbers = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        *lines += 1;
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let number = std::str::from_utf8(line).ok().and_then(|word| word.parse().ok());
        let Some(number) = number else {
            let word: String = String::from_utf8_lossy(line).chars().take(64).collect();
            return Err(Failure::message(format!(
                "Standard input, line {lines}: '{word}' is no {}: a line must have one decimal \
                 number, like 4096.",
                unit.name()
            )));
        };
        numbers.push(number);
    }
    Ok(numbers)
}

/// How places are printed.
struct Look {
    json: bool,
    ndjson: bool,
    columns: Option<usize>,
}

impl Look {
    /// A place with its line break; `follows` says that another one was printed before.
    fn text(&self, place: &Place, unit: Unit, follows: bool) -> String {
        if self.json || self.ndjson {
            let json = serde_json::to_string(place).unwrap_or_default();
            return match (self.json, follows) {
                (true, true) => format!(",\n  {json}"),
                (true, false) => format!("\n  {json}"),
                _ => json + "\n",
            };
        }
        let parts = parts(place, unit);
        let line = parts.join(" -> ");
        match self.columns {
            Some(columns) if line.chars().count() > columns => {
                parts.join(&format!("\n{INDENT}-> ")) + "\n"
            }
            _ => line + "\n",
        }
    }
}

/// What stands between the arrows of a line.
fn parts(place: &Place, unit: Unit) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for (at, tier) in place.tiers.iter().enumerate() {
        let head = match at {
            0 => format!("{} {}", unit.name(), place.number),
            _ => tier.device.clone(),
        };
        parts.push(format!("{head}: {}", tier_text(tier, at == 0 && unit == Unit::Region)));
    }
    if let (Some(leaf), Some(sector), Some(byte)) =
        (&place.leaf, place.leaf_sector, place.leaf_byte)
    {
        parts.push(match unit {
            Unit::Sector => format!("{leaf} sector {sector}"),
            Unit::Byte => format!("{leaf} byte {byte}"),
            Unit::Region => format!("{leaf} sector {sector}, {} sectors", place.sectors),
        });
    }
    parts
}

/// What a device does with a sector.
fn tier_text(tier: &Tier, is_region: bool) -> String {
    let mut text = match (tier.target.as_str(), tier.region) {
        ("", _) => "no table".to_owned(),
        (_, Some(_)) if is_region => String::new(),
        (_, Some(region)) => format!("region {region}, "),
        ("linear", _) => return "linear".to_owned(),
        ("multipath", _) if tier.path.is_none() => "multipath, no path is up".to_owned(),
        (target, None) if tier.path.is_none() => target.to_owned(),
        (target, None) => format!("{target}, "),
    };
    if let Some(path) = tier.path {
        let _ = write!(text, "path {path}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        let tier = |device: &str, target: &str, region, path| Tier {
            device: device.into(),
            target: target.into(),
            sector: 5,
            region,
            path,
        };
        Place {
            number: 2565,
            sector: 5,
            region: Some(0),
            path: Some(2),
            leaf: Some("/data/vol".into()),
            leaf_sector: Some(105),
            leaf_byte: Some(53_765),
            sectors: 3,
            tiers: vec![
                tier("top", "switch", Some(0), Some(2)),
                tier("low", "multipath", None, Some(1)),
            ],
        }
    }

    #[test]
    fn a_line_says_how_a_sector_gets_to_its_leaf() {
        let look = |columns| Look { json: false, ndjson: false, columns };
        for (unit, line) in [
            (
                Unit::Sector,
                "sector 2565: region 0, path 2 -> low: multipath, path 1 -> /data/vol sector 105\n",
            ),
            (
                Unit::Byte,
                "byte 2565: region 0, path 2 -> low: multipath, path 1 -> /data/vol byte 53765\n",
            ),
            (
                Unit::Region,
                "region 2565: path 2 -> low: multipath, path 1 -> /data/vol sector 105, 3 sectors\n",
            ),
        ] {
            assert_eq!(look(None).text(&place(), unit, false), line);
        }
        let narrow = look(Some(60)).text(&place(), Unit::Byte, false);
        let lines: Vec<&str> = narrow.lines().collect();
        assert_eq!(
            lines,
            [
                "byte 2565: region 0, path 2",
                "    -> low: multipath, path 1",
                "    -> /data/vol byte 53765"
            ]
        );
        let nowhere = Place { leaf: None, ..place() };
        let text = look(None).text(&nowhere, Unit::Sector, false);
        assert_eq!(text, "sector 2565: region 0, path 2 -> low: multipath, path 1\n");
    }

    #[test]
    fn a_line_of_the_input_has_one_number() {
        let mut lines = 0;
        let read = numbers(b"7\n\n# eight\n  9 \r\n10", Unit::Sector, &mut lines);
        assert_eq!((read.unwrap(), lines), (vec![7, 9, 10], 5));
        for (text, part) in [
            (b"1\n2 3\n".as_slice(), "line 2: '2 3' is no byte"),
            (b"0x10", "line 1: '0x10' is no byte"),
            (b"-1", "line 1: '-1' is no byte"),
            (b"\xff\n", "line 1: '\u{fffd}' is no byte"),
        ] {
            let refused = numbers(text, Unit::Byte, &mut 0).unwrap_err().plain();
            assert!(refused.contains(part), "{refused}");
        }
    }
}
