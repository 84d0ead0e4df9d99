//! `stats`: shows counters and latencies of devices and of their paths.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use super::terminal;
use crate::protocol::{DeviceStats, Errno, IoStats, Latency, PathStats, device_path, route};

/// Show reads, writes, errors and latencies of devices and of their paths
///
/// All devices when none is named. A table where the terminal is wide enough for it, else a
/// paragraph for each device and path; without a terminal, COLUMNS says how wide.
#[derive(Debug, Args)]
pub(super) struct Stats {
    /// The devices; all when none is named
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["uuid", "major", "minor"];

/// Headings of the table, in the order of the cells of a [`row`].
const HEADINGS: [&str; 12] = [
    "",
    "reads",
    "read bytes",
    "writes",
    "written",
    "flushes",
    "discards",
    "ignored",
    "zeroes",
    "errors",
    "read p50/p99/max",
    "write p50/p99/max",
];
/// The column for parts of discards that did nothing. It is shown only if there are any.
const IGNORED: usize = 7;
/// Indentation of the numbers in a paragraph.
const INDENT: usize = 4;

/// The JSON output for several devices.
#[derive(Debug, Serialize)]
struct StatsList<'a> {
    devices: &'a [DeviceStats],
}

impl Stats {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let named = match self.devices.as_slice() {
            [] => Selector::optional(None, &self.options)?.into_iter().collect(),
            names => Selector::list(names, &self.options)?,
        };
        let mut devices = Vec::new();
        for selector in &named {
            let name = context.name_of(selector, "message").await?;
            devices.push(fetch(context, &name, selector).await?);
        }
        if named.is_empty() {
            for device in context.devices().await? {
                let name = device.name;
                match fetch(context, &name, &Selector::Name(name.clone())).await {
                    // The device was removed meanwhile.
                    Err(failure) if failure.errno() == Some(Errno::Enxio) => {}
                    stats => devices.push(stats?),
                }
            }
        }
        self.print(devices, !named.is_empty(), context)
    }

    fn print(
        &self,
        devices: Vec<DeviceStats>,
        are_named: bool,
        context: &mut Context,
    ) -> Result<(), Failure> {
        match devices.as_slice() {
            [one] if self.options.json && are_named => context.print_json(one),
            devices if self.options.json => context.print_json(&StatsList { devices }),
            [] => context.print("No devices found\n"),
            devices => {
                let width = terminal::width().unwrap_or(usize::MAX);
                let tables: Vec<String> = devices.iter().map(|stats| table(stats, width)).collect();
                context.print(&tables.join("\n"))
            }
        }
    }
}

async fn fetch(context: &Context, name: &str, selector: &Selector) -> Result<DeviceStats, Failure> {
    let stats = context.client.get(&device_path(route::STATS, name)).await;
    stats.map_err(|error| error.about(selector.subject()))
}

/// The device and its paths: a table if it fits `width` columns, otherwise paragraphs.
fn table(stats: &DeviceStats, width: usize) -> String {
    let several = stats.paths.iter().any(|path| path.segment != stats.paths[0].segment);
    let mut rows = vec![row(stats.name.clone(), &stats.total)];
    for path in &stats.paths {
        let segment = if several { format!("{}: ", path.segment) } else { String::new() };
        rows.push(row(format!("  {segment}{} {}", path.path, path.address), &path.io));
    }
    let mut headings = HEADINGS.map(str::to_owned).to_vec();
    let ignored = |path: &PathStats| path.io.ignored_discards > 0;
    if stats.total.ignored_discards == 0 && !stats.paths.iter().any(ignored) {
        headings.remove(IGNORED);
        rows.iter_mut().for_each(|row| drop(row.remove(IGNORED)));
    }
    let all = || std::iter::once(&headings).chain(&rows);
    let widths: Vec<usize> = (0..headings.len())
        .map(|at| all().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();
    if widths.iter().sum::<usize>() + 2 * (headings.len() - 1) > width {
        return rows.iter().map(|row| paragraph(row, &headings, width)).collect();
    }
    let mut out = String::new();
    for row in all() {
        let _ = write!(out, "{:<1$}", row[0], widths[0]);
        for (number, width) in row[1..].iter().zip(&widths[1..]) {
            let _ = write!(out, "  {number:>width$}");
        }
        out.push('\n');
    }
    out
}

/// A name, and below it the numbers with their headings, in lines of at most `width` columns.
fn paragraph(row: &[String], headings: &[String], width: usize) -> String {
    let mut out = format!("{}\n", row[0]);
    let mut used = 0;
    for (heading, number) in headings.iter().zip(row).skip(1) {
        let text = format!("{heading} {number}");
        let length = text.chars().count();
        if used > 0 && used + ", ".len() + length <= width {
            let _ = write!(out, ", {text}");
            used += ", ".len() + length;
        } else {
            let line = if used > 0 { "\n" } else { "" };
            let _ = write!(out, "{line}{:INDENT$}{text}", "");
            used = INDENT + length;
        }
    }
    out.push('\n');
    out
}

fn row(name: String, io: &IoStats) -> Vec<String> {
    vec![
        name,
        io.reads.to_string(),
        io.read_bytes.to_string(),
        io.writes.to_string(),
        io.written_bytes.to_string(),
        io.flushes.to_string(),
        io.discards.to_string(),
        io.ignored_discards.to_string(),
        io.write_zeroes.to_string(),
        io.errors.to_string(),
        latency(&io.read_latency),
        latency(&io.write_latency),
    ]
}

fn latency(latency: &Latency) -> String {
    if latency.max_ns == 0 {
        return "-".to_owned();
    }
    [latency.p50_ns, latency.p99_ns, latency.max_ns].map(duration).join("/")
}

/// Formats a time with three digits and a unit.
fn duration(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    let (scaled, unit) = match nanoseconds {
        0..1_000 => (value, "ns"),
        1_000..1_000_000 => (value / 1e3, "us"),
        1_000_000..1_000_000_000 => (value / 1e6, "ms"),
        _ => (value / 1e9, "s"),
    };
    let digits = if scaled.fract() == 0.0 || scaled >= 100.0 { 0 } else { 1 };
    format!("{scaled:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_the_device_and_one_per_path() {
        let io = IoStats {
            reads: 12,
            read_bytes: 49152,
            read_latency: Latency {
                p50_ns: 900,
                p99_ns: 25_300,
                max_ns: 3_000_000,
                ..Latency::default()
            },
            ..IoStats::default()
        };
        let path = PathStats { segment: 0, path: 0, address: "/tmp/a".into(), io: io.clone() };
        let stats = DeviceStats { name: "switch".into(), total: io, paths: vec![path] };
        let text = table(&stats, usize::MAX);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        assert!(lines[1].starts_with("switch         12       49152"), "{text}");
        assert!(lines[2].starts_with("  0 /tmp/a"), "{text}");
        assert!(lines[2].contains("900ns/25.3us/3ms"), "{text}");
        let width = lines[0].len();
        assert_eq!(table(&stats, width), text);
        // Narrow terminals get the same numbers, in lines that fit.
        for width in [width - 1, 80, 60, 40] {
            let narrow = table(&stats, width);
            assert!(narrow.lines().all(|line| line.len() <= width), "{narrow}");
            assert!(narrow.starts_with("switch\n    reads 12, read bytes 49152"), "{narrow}");
            assert!(narrow.contains("\n  0 /tmp/a\n    reads 12, "), "{narrow}");
            assert!(narrow.contains("read p50/p99/max 900ns/25.3us/3ms"), "{narrow}");
        }
    }

    #[test]
    fn ignored_discards_have_a_column_where_there_were_any() {
        let io = |ignored_discards| IoStats { discards: 3, ignored_discards, ..IoStats::default() };
        let path = |number, ignored| PathStats {
            path: number,
            address: "/tmp/a".into(),
            io: io(ignored),
            ..PathStats::default()
        };
        let stats = |ignored| DeviceStats {
            name: "switch".into(),
            total: io(0),
            paths: vec![path(0, 0), path(1, ignored)],
        };
        assert!(!table(&stats(0), usize::MAX).contains("ignored"));
        let text = table(&stats(2), usize::MAX);
        let column = text.find("ignored").unwrap();
        let cells = text.lines().map(|line| line[column..column + "ignored".len()].trim());
        assert_eq!(cells.collect::<Vec<_>>(), ["ignored", "0", "0", "2"], "{text}");
        assert!(table(&stats(2), 60).contains("discards 3, ignored 2"));
    }

    #[test]
    fn durations_keep_three_digits() {
        let texts = [0, 999, 1_000, 25_340, 250_400, 3_000_000, 1_500_000_000].map(duration);
        assert_eq!(texts, ["0ns", "999ns", "1us", "25.3us", "250us", "3ms", "1.5s"]);
    }
}
