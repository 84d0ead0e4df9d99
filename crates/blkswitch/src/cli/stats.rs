//! `stats`: shows counters and latencies of a device and of its paths.

use std::fmt::Write as _;

use clap::Args;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{DeviceStats, IoStats, Latency, device_path, route};

/// Show reads, writes, errors and latencies of a device and of its paths
#[derive(Debug, Args)]
pub(super) struct Stats {
    /// The device (unless -u or -j -m name it)
    device: Option<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["uuid", "major", "minor"];

impl Stats {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let selector = Selector::of(self.device.as_deref(), &self.options)?;
        let name = context.name_of(&selector, "message").await?;
        let stats = context.client.get(&device_path(route::STATS, &name)).await;
        let stats: DeviceStats = stats.map_err(|error| error.about(selector.subject()))?;
        if self.options.json { context.print_json(&stats) } else { context.print(&table(&stats)) }
    }
}

/// Headings, a row for the device, and a row per path.
fn table(stats: &DeviceStats) -> String {
    let headings = [
        "",
        "reads",
        "read bytes",
        "writes",
        "written",
        "flushes",
        "discards",
        "zeroes",
        "errors",
        "read p50/p99/max",
        "write p50/p99/max",
    ];
    let several = stats.paths.iter().any(|path| path.segment != stats.paths[0].segment);
    let mut rows = vec![headings.map(str::to_owned), row(stats.name.clone(), &stats.total)];
    for path in &stats.paths {
        let segment = if several { format!("{}: ", path.segment) } else { String::new() };
        rows.push(row(format!("  {segment}{} {}", path.path, path.address), &path.io));
    }
    let widths: Vec<usize> = (0..headings.len())
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let [name, numbers @ ..] = row;
        let _ = write!(out, "{name:<0$}", widths[0]);
        for (number, width) in numbers.iter().zip(&widths[1..]) {
            let _ = write!(out, "  {number:>width$}");
        }
        out.push('\n');
    }
    out
}

fn row(name: String, io: &IoStats) -> [String; 11] {
    [
        name,
        io.reads.to_string(),
        io.read_bytes.to_string(),
        io.writes.to_string(),
        io.written_bytes.to_string(),
        io.flushes.to_string(),
        io.discards.to_string(),
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
    use crate::protocol::PathStats;

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
        let text = table(&DeviceStats { name: "switch".into(), total: io, paths: vec![path] });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        assert!(lines[1].starts_with("switch         12       49152"), "{text}");
        assert!(lines[2].starts_with("  0 /tmp/a"), "{text}");
        assert!(lines[2].contains("900ns/25.3us/3ms"), "{text}");
    }

    #[test]
    fn durations_keep_three_digits() {
        let texts = [0, 999, 1_000, 25_340, 250_400, 3_000_000, 1_500_000_000].map(duration);
        assert_eq!(texts, ["0ns", "999ns", "1us", "25.3us", "250us", "3ms", "1.5s"]);
    }
}
