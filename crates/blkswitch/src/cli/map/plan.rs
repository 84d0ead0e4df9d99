//! `map plan`: plans that move regions. A plan changes nothing; its message does.

use std::io::{IsTerminal, Write, stdout};

use clap::{Args, ValueEnum};

use super::draw::bytes;
use crate::cli::context::{Context, Lines};
use crate::cli::failure::Failure;
use crate::cli::names::Selector;
use crate::cli::options::Options;
use crate::cli::terminal;
use crate::protocol::{
    Balance, BalanceBy, CompactRuns, Evacuate, MapPlan, PathShare, PlanMap, device_path, route,
};
use crate::raw;

/// Lines of the message that are printed to a terminal.
const MESSAGE_LINES_MAX: usize = 10;
/// Paths that are printed; `--json` has all.
const SHARES_MAX: usize = 32;
/// Columns of a line of a path, without its address.
const SHARE_COLUMNS: usize = 36;
/// Fewest columns of an address, and columns without a terminal.
const ADDRESS_COLUMNS: [usize; 2] = [12, 80];

/// Plan moves of regions: off a path, to equal shares, or to longer runs
///
/// Prints how many regions and bytes would move, the regions of each path before and after, and the
/// message that moves them. It changes nothing.
#[derive(Debug, Args)]
#[command(
    override_usage = "blkswitch map plan [OPTIONS] <DEVICE> <evacuate|balance|compact>",
    after_help = "On one volume a message moves no data. Where paths lead to different storage, copy \
                  the regions first: the plan says which."
)]
pub(super) struct Plan {
    /// The device
    device: String,
    /// What the plan is for
    #[arg(value_enum, value_name = "PLAN", hide_possible_values = false)]
    what: What,
    /// evacuate: the path that its regions leave
    #[arg(long, value_name = "P")]
    path: Option<u32>,
    /// evacuate: the paths that get them; without it all others
    #[arg(long, value_name = "P,P,...", value_delimiter = ',')]
    onto: Vec<u32>,
    /// evacuate: count the regions of each path, however many there are
    #[arg(long)]
    count: bool,
    /// balance: a weight for each path; without it all the same
    #[arg(long, value_name = "W,W,...", value_delimiter = ',')]
    weights: Vec<u32>,
    /// balance: what is shared
    #[arg(long, value_enum)]
    by: Option<By>,
    /// compact: move at most this many regions
    #[arg(long, value_name = "N")]
    max_moves: Option<u64>,
    /// A sector of the segment, if the device has several
    #[arg(long)]
    sector: Option<u64>,
    /// Print {"regions", "bytes", "moves", "shares": [{"path", "before", "after", ...}], "message"}
    #[arg(long)]
    json: bool,
    /// Print only the message
    #[arg(long, conflicts_with = "json")]
    message: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Move all regions of a path to others
    Evacuate,
    /// Move as few regions as give every path its share
    Balance,
    /// Put the regions of each path together; the shares stay
    Compact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// Number of regions
    Regions,
}

impl Plan {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let wish = self.wish()?;
        let selector = Selector::of(Some(&self.device), &Options::default())?;
        let name = context.name_of(&selector, "status").await?;
        let form = match (self.json, self.message) {
            (true, _) => "plan",
            (_, true) => "message",
            _ => "lines",
        };
        let sector = self.sector.map(|sector| format!("&sector={sector}")).unwrap_or_default();
        let path = format!("{}?form={form}{sector}", device_path(route::MAP_PLAN, &name));
        let client = context.client.clone();
        let sent = if form == "lines" {
            let most = if stdout().is_terminal() { MESSAGE_LINES_MAX } else { usize::MAX };
            let mut print = Print { out: context.out(), what: self.what, most, lines: None };
            let (mut lines, head) = (Lines::default(), head(&self, &name));
            let sink = |data: &[u8]| lines.each(data, |line| print.line(&head, line));
            let sent = client.download_of(&path, &wish, sink).await;
            if sent.is_ok() {
                print.end()?;
            }
            sent
        } else {
            let out = context.out();
            client.download_of(&path, &wish, |data| out.write_all(data)).await
        };
        sent.map_err(|error| error.about(selector.subject()))?;
        if self.json { context.print("\n") } else { Ok(()) }
    }

    /// The plan that the options ask for. An option of another plan is a mistake.
    fn wish(&self) -> Result<PlanMap, Failure> {
        let given = [
            ("--path", self.path.is_some(), What::Evacuate),
            ("--onto", !self.onto.is_empty(), What::Evacuate),
            ("--count", self.count, What::Evacuate),
            ("--weights", !self.weights.is_empty(), What::Balance),
            ("--by", self.by.is_some(), What::Balance),
            ("--max-moves", self.max_moves.is_some(), What::Compact),
        ];
        let wrong = given.into_iter().find(|(_, given, of)| *given && *of != self.what);
        if let Some((option, _, of)) = wrong {
            return Err(Failure::message(format!(
                "{option} belongs to map plan NAME {}, not to {}.",
                of.name(),
                self.what.name()
            )));
        }
        Ok(match self.what {
            What::Evacuate => {
                let path = self.path.ok_or_else(|| {
                    Failure::message(
                        "map plan NAME evacuate needs --path P, the path that its regions leave.",
                    )
                })?;
                PlanMap::Evacuate(Evacuate { path, onto: self.onto.clone(), count: self.count })
            }
            What::Balance => {
                let by = self.by.map_or(BalanceBy::Regions, |By::Regions| BalanceBy::Regions);
                PlanMap::Balance(Balance { weights: self.weights.clone(), by })
            }
            What::Compact => PlanMap::Compact(CompactRuns { max_moves: self.max_moves }),
        })
    }
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Evacuate => "evacuate",
            What::Balance => "balance",
            What::Compact => "compact",
        }
    }
}

/// The first words of the answer.
fn head(plan: &Plan, name: &str) -> String {
    match (plan.what, plan.path) {
        (What::Evacuate, Some(path)) => format!("evacuate path {path} of {name}"),
        (what, _) => format!("{} {name}", what.name()),
    }
}

/// Prints a plan that arrives line by line.
struct Print<'a, W> {
    out: &'a mut W,
    what: What,
    /// Lines of the message to print.
    most: usize,
    /// Lines of the message so far; `None` before the plan itself.
    lines: Option<usize>,
}

impl<W: Write> Print<'_, W> {
    fn line(&mut self, head: &str, line: &[u8]) -> std::io::Result<()> {
        let Some(lines) = &mut self.lines else {
            let plan: MapPlan = serde_json::from_slice(line)?;
            self.lines = Some(0);
            let text = summary(head, self.what, &plan, terminal::width());
            self.out.write_all(&raw::decode(&text))?;
            if plan.regions == 0 {
                self.most = 0;
            } else {
                writeln!(self.out)?;
            }
            return Ok(());
        };
        *lines += 1;
        if *lines <= self.most {
            let text: String = serde_json::from_slice(line)?;
            writeln!(self.out, "{text}")?;
        }
        Ok(())
    }

    fn end(&mut self) -> std::io::Result<()> {
        match self.lines {
            Some(lines) if self.most > 0 && lines > self.most => writeln!(
                self.out,
                "... and {} more lines: --message prints all of it",
                lines - self.most
            ),
            _ => Ok(()),
        }
    }
}

/// The plan without its message.
fn summary(head: &str, what: What, plan: &MapPlan, columns: Option<usize>) -> String {
    let mut text = if plan.regions == 0 {
        format!("{head}: no region needs to move\n")
    } else {
        let s = |count: u64| if count == 1 { "" } else { "s" };
        format!(
            "{head}: {} region{} ({}) in {} range{}\n",
            plan.regions,
            s(plan.regions),
            bytes(plan.bytes),
            plan.moves,
            s(plan.moves)
        )
    };
    if let Some([before, after]) = plan.runs {
        text.push_str(&format!("runs of the map: {before} before, {after} after\n"));
    }
    if what == What::Compact {
        return text;
    }
    let counted = plan.shares.iter().any(|share| share.before.is_some());
    let width = columns.unwrap_or(SHARE_COLUMNS + ADDRESS_COLUMNS[1]).saturating_sub(SHARE_COLUMNS);
    let width = width.max(ADDRESS_COLUMNS[0]);
    let [before, after] = if counted { ["before", "after"] } else { ["gives", "gets"] };
    text.push_str(&format!("\n{:>6} {before:>13} {after:>13}  address\n", "path"));
    for share in plan.shares.iter().take(SHARES_MAX) {
        let PathShare { path, address, gets, gives, .. } = share;
        let [before, after] = [share.before.unwrap_or(*gives), share.after.unwrap_or(*gets)];
        let address = shortened(address, width);
        text.push_str(&format!("{path:>6} {before:>13} {after:>13}  {address}\n"));
    }
    let more = plan.shares.len().saturating_sub(SHARES_MAX);
    if more > 0 {
        text.push_str(&format!("   ... and {more} more paths: --json has all\n"));
    }
    if !counted {
        text.push_str("(--count counts the regions of each path, too)\n");
    }
    text
}

/// The end of an address that is too long, which tells more than its beginning.
fn shortened(address: &str, width: usize) -> String {
    let length = address.chars().count();
    if length <= width {
        return address.to_owned();
    }
    let end: String = address.chars().skip(length + 3 - width).collect();
    format!("...{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> MapPlan {
        let share = |path, address: &str, before, after| PathShare {
            path,
            address: address.into(),
            before: Some(before),
            after: Some(after),
            ..PathShare::default()
        };
        MapPlan {
            regions: 341,
            bytes: 341 << 16,
            moves: 340,
            shares: vec![
                share(0, "/dev/disk/by-id/scsi-36001405a2b3c4d5e6f708192a3b4c5d6", 342, 512),
                share(1, "/data/b", 341, 0),
            ],
            ..MapPlan::default()
        }
    }

    #[test]
    fn a_plan_fits_the_terminal() {
        for columns in [60, 80] {
            let text = summary("evacuate path 1 of vol", What::Evacuate, &plan(), Some(columns));
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
        }
        assert_eq!(
            summary("evacuate path 1 of vol", What::Evacuate, &plan(), Some(60)),
            "evacuate path 1 of vol: 341 regions (21.3 MiB) in 340 ranges\n\n  \
             path        before         after  address\n     \
                0           342           512  ...c4d5e6f708192a3b4c5d6\n     \
                1           341             0  /data/b\n"
        );
    }

    #[test]
    fn what_was_not_counted_is_not_shown() {
        let mut plan = plan();
        for share in &mut plan.shares {
            (share.before, share.after, share.gets, share.gives) = (None, None, 3, 4);
        }
        let text = summary("evacuate path 1 of vol", What::Evacuate, &plan, None);
        assert!(text.contains("gives") && !text.contains("before"), "{text}");
        assert!(text.contains("--count"), "{text}");
    }
}
