//! The metrics of all devices, read when they are asked for.
//!
//! | metric | labels |
//! |---|---|
//! | `blkswitch_requests_total`, `blkswitch_bytes_total` | device, op |
//! | `blkswitch_errors_total`, `blkswitch_ignored_discards_total` | device |
//! | `blkswitch_latency_seconds` (histogram) | device, op |
//! | `blkswitch_path_requests_total`, `blkswitch_path_bytes_total` | device, segment, path, address, op |
//! | `blkswitch_path_errors_total`, `blkswitch_path_ignored_discards_total` | device, segment, path, address |
//! | `blkswitch_path_doubted_writes_total` (of paths that are leaves) | device, segment, path, address |
//! | `blkswitch_path_up` (of paths that are leaves), `blkswitch_path_failures_total` (of multipath devices) | device, segment, path, address |
//! | `blkswitch_group_switches_total`, `blkswitch_held_requests` | device |
//! | `blkswitch_opens`, `blkswitch_suspended`, `blkswitch_size_bytes`, `blkswitch_regions` | device |
//! | `blkswitch_map_generation` | device |
//!
//! Contract: reads relaxed counters and takes the short locks of a device; nothing is kept between
//! two calls.

use std::fmt;
use std::sync::Arc;

use blkswitch_io::stats::{Histogram, Totals, bucket_end_ns};
use blkswitch_io::{Device, Table, Target};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::daemon::devices::Devices;
use crate::daemon::tables::words::address;
use crate::protocol::MapSource;

/// The text format of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The text format that every reader of metrics supports.
    Plain,
    /// The successor of the plain format, for clients that ask for it.
    OpenMetrics,
}

/// [`Form::Plain`] as a media type.
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
/// [`Form::OpenMetrics`] as a media type.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Form {
    /// Chooses the form by the `Accept` headers: OpenMetrics if they name it and prefer nothing
    /// else.
    pub fn accepted<'a>(headers: impl Iterator<Item = &'a str>) -> Form {
        let (mut open, mut plain, mut any) = (0.0f32, None::<f32>, 0.0f32);
        for range in headers.flat_map(|header| header.split(',')) {
            let mut words = range.split(';').map(str::trim);
            let name = words.next().unwrap_or_default().to_ascii_lowercase();
            let quality = words.find_map(|word| word.strip_prefix("q="));
            let quality = quality.map_or(1.0, |q| q.parse().unwrap_or(0.0));
            match name.as_str() {
                "application/openmetrics-text" => open = open.max(quality),
                "text/plain" => plain = Some(plain.unwrap_or(0.0).max(quality)),
                "text/*" | "*/*" => any = any.max(quality),
                _ => {}
            }
        }
        let wanted = open > 0.0 && open >= plain.unwrap_or(any.min(open));
        if wanted { Form::OpenMetrics } else { Form::Plain }
    }

    /// The media type of this form.
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Plain => PLAIN,
            Form::OpenMetrics => OPEN_METRICS,
        }
    }
}

/// The counters have four buckets for each power of two. A scrape gets one.
const BUCKETS_MERGED: usize = 4;
/// Help text for the counters of ignored discards.
const IGNORED_HELP: &str = "Parts of discards that did nothing, because a path cannot discard";
/// Nanoseconds in a second.
const NS: f64 = 1e9;

/// The metrics of all devices, as text.
pub fn text(devices: Arc<Devices>, form: Form) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("blkswitch");
    registry.register_collector(Box::new(Scrape { devices }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(match form {
        Form::Plain => plain(&text),
        Form::OpenMetrics => text,
    })
}

/// Converts OpenMetrics to the older format. The samples are the same. In the older format, the
/// description of a counter has the name of its samples, and there are no units.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let mut words = line.splitn(4, ' ');
        let (Some("#"), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
            if line != "# EOF" {
                out.extend([line, "\n"]);
            }
            continue;
        };
        let rest = words.next().unwrap_or_default();
        let is_counter = match kind {
            "TYPE" => rest == "counter",
            // The line with the type follows.
            "HELP" => lines.peek().is_some_and(|next| next.ends_with(" counter")),
            _ => continue,
        };
        let total = if is_counter { "_total" } else { "" };
        out.extend(["# ", kind, " ", name, total, " ", rest, "\n"]);
    }
    out
}

struct Scrape {
    devices: Arc<Devices>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

/// A device during one scrape.
struct Seen {
    name: String,
    device: Arc<Device>,
    totals: Totals,
    live: Option<Arc<Table>>,
    /// The source of the device's map.
    source: Option<MapSource>,
}

/// A path with its labels.
struct SeenPath {
    labels: [(&'static str, String); 4],
    totals: Totals,
    /// Whether a multipath's path is up, and how often it has failed; `None` for other paths.
    health: Option<(bool, u64)>,
    /// Whether the leaf of the path can be reached; `None` for a path to a device.
    is_up: Option<bool>,
    /// Number of writes in doubt; `None` for a path to a device.
    doubted_writes: Option<u64>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let devices = self.devices.list().into_iter();
        let seen: Vec<Seen> = devices.map(|device| see(device, &self.devices)).collect();
        device_counters(&mut encoder, &seen)?;
        device_latencies(&mut encoder, &seen)?;
        device_gauges(&mut encoder, &seen)?;
        let paths: Vec<SeenPath> = seen.iter().flat_map(see_paths).collect();
        path_counters(&mut encoder, &paths)
    }
}

fn see(device: Arc<Device>, devices: &Devices) -> Seen {
    let source = devices.followings.of(&device).map(|following| following.describe());
    Seen { name: device.name(), totals: device.totals(), live: device.live(), source, device }
}

fn see_paths(seen: &Seen) -> Vec<SeenPath> {
    let Some(table) = seen.live.as_deref() else { return Vec::new() };
    let paths = table.segments().iter().flat_map(|segment| {
        segment.target.paths().iter().zip(0u32..).map(move |(to, path)| SeenPath {
            labels: [
                ("device", seen.name.clone()),
                ("segment", segment.start.to_string()),
                ("path", path.to_string()),
                ("address", address(table, segment, path as usize)),
            ],
            totals: table.path_totals(segment.first_path + path),
            health: match &segment.target {
                Target::Multipath { groups, .. } => {
                    groups.paths().get(path as usize).map(|path| path.health())
                }
                _ => None,
            },
            is_up: table.leaf_of(*to).map(|leaf| leaf.engine().is_reachable()),
            doubted_writes: table.leaf_of(*to).map(|leaf| leaf.engine().doubted_writes()),
        })
    });
    paths.collect()
}

/// Number of operations for each value of the label `op`.
fn operations(totals: &Totals) -> [(&'static str, u64); 5] {
    [
        ("read", totals.reads),
        ("write", totals.writes),
        ("flush", totals.flushes),
        ("discard", totals.discards),
        ("write_zeroes", totals.zeroes),
    ]
}

/// Number of bytes for each value of the label `op`.
fn bytes(totals: &Totals) -> [(&'static str, u64); 2] {
    [("read", totals.read_bytes), ("write", totals.write_bytes)]
}

fn counter(metric: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn device_counters(encoder: &mut DescriptorEncoder<'_>, seen: &[Seen]) -> fmt::Result {
    let help = "Requests that were answered";
    let mut metric = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
    for device in seen {
        for (op, value) in operations(&device.totals) {
            counter(
                &mut metric.encode_family(&[("device", device.name.as_str()), ("op", op)])?,
                value,
            )?;
        }
    }
    let mut metric =
        encoder.encode_descriptor("bytes", "Bytes read and written", None, MetricType::Counter)?;
    for device in seen {
        for (op, value) in bytes(&device.totals) {
            counter(
                &mut metric.encode_family(&[("device", device.name.as_str()), ("op", op)])?,
                value,
            )?;
        }
    }
    let help = "How often another priority group of a multipath took over";
    let mut metric =
        encoder.encode_descriptor("group_switches", help, None, MetricType::Counter)?;
    for device in seen {
        counter(
            &mut metric.encode_family(&[("device", device.name.as_str())])?,
            device.device.group_switches(),
        )?;
    }
    let help = "Requests that were answered with an error";
    let mut metric = encoder.encode_descriptor("errors", help, None, MetricType::Counter)?;
    for device in seen {
        counter(
            &mut metric.encode_family(&[("device", device.name.as_str())])?,
            device.totals.errors,
        )?;
    }
    let mut metric =
        encoder.encode_descriptor("ignored_discards", IGNORED_HELP, None, MetricType::Counter)?;
    for device in seen {
        counter(
            &mut metric.encode_family(&[("device", device.name.as_str())])?,
            device.totals.ignored_discards,
        )?;
    }
    Ok(())
}

fn device_latencies(encoder: &mut DescriptorEncoder<'_>, seen: &[Seen]) -> fmt::Result {
    let help = "How long requests took";
    let mut metric =
        encoder.encode_descriptor("latency", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for device in seen {
        let ops = [("read", &device.totals.read_latency), ("write", &device.totals.write_latency)];
        for (op, latency) in ops {
            let labels = [("device", device.name.as_str()), ("op", op)];
            histogram(&mut metric.encode_family(&labels)?, latency)?;
        }
    }
    Ok(())
}

fn histogram(metric: &mut MetricEncoder<'_>, latency: &Histogram) -> fmt::Result {
    let merged = latency.buckets.chunks(BUCKETS_MERGED).enumerate();
    let mut buckets: Vec<(f64, u64)> = merged
        .map(|(index, counts)| {
            let last = index * BUCKETS_MERGED + counts.len() - 1;
            (bucket_end_ns(last) as f64 / NS, counts.iter().sum())
        })
        .collect();
    // The last bucket also contains all longer latencies.
    if let Some(last) = buckets.last_mut() {
        last.0 = f64::INFINITY;
    }
    let count = latency.buckets.iter().sum();
    metric.encode_histogram::<NoLabelSet>(latency.sum_ns as f64 / NS, count, &buckets, None)
}

fn device_gauges(encoder: &mut DescriptorEncoder<'_>, seen: &[Seen]) -> fmt::Result {
    type Read = fn(&Seen) -> u64;
    let gauges: [(&str, &str, Read); 8] = [
        ("opens", "Connections, devices above, and the disk", |seen| {
            seen.device.info().opens.into()
        }),
        ("suspended", "1 while requests wait for a resume", |seen| {
            seen.device.info().suspended.into()
        }),
        ("held_requests", "Parts of requests that wait for a path of a multipath", |seen| {
            seen.totals.held
        }),
        ("size_bytes", "Length of the live table", |seen| {
            seen.live.as_ref().map_or(0, |table| table.len().saturating_mul(512))
        }),
        ("regions", "Regions of the switch segments of the live table", |seen| {
            let segments = seen.live.as_ref().map(|table| table.segments()).unwrap_or_default();
            let regions = segments.iter().map(|segment| match &segment.target {
                Target::Switch { map, .. } => map.geometry().nr_regions(),
                _ => 0,
            });
            regions.sum()
        }),
        ("map_source_read_seconds", "Unix time of the last reading of the map's source", |seen| {
            seen.source.as_ref().and_then(|source| source.read_at).unwrap_or(0)
        }),
        ("map_source_failing", "1 while the map's source cannot be read", |seen| {
            seen.source.as_ref().is_some_and(|source| source.error.is_some()).into()
        }),
        ("map_generation", "Rises before a message or a swap changes where regions go", |seen| {
            seen.device.generation()
        }),
    ];
    for (name, help, read) in gauges {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for device in seen {
            let value = read(device) as f64;
            metric.encode_family(&[("device", device.name.as_str())])?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

fn path_counters(encoder: &mut DescriptorEncoder<'_>, paths: &[SeenPath]) -> fmt::Result {
    let help = "Parts of requests that went to a path";
    let mut metric = encoder.encode_descriptor("path_requests", help, None, MetricType::Counter)?;
    for path in paths {
        for (op, value) in operations(&path.totals) {
            counter(&mut metric.encode_family(&with_op(path, op))?, value)?;
        }
    }
    let help = "Bytes read from and written to a path";
    let mut metric = encoder.encode_descriptor("path_bytes", help, None, MetricType::Counter)?;
    for path in paths {
        for (op, value) in bytes(&path.totals) {
            counter(&mut metric.encode_family(&with_op(path, op))?, value)?;
        }
    }
    let help = "Parts of requests that a path answered with an error";
    let mut metric = encoder.encode_descriptor("path_errors", help, None, MetricType::Counter)?;
    for path in paths {
        let labels = path.labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        counter(&mut metric.encode_family(&labels)?, path.totals.errors)?;
    }
    let name = "path_ignored_discards";
    let mut metric = encoder.encode_descriptor(name, IGNORED_HELP, None, MetricType::Counter)?;
    for path in paths {
        let labels = path.labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        counter(&mut metric.encode_family(&labels)?, path.totals.ignored_discards)?;
    }
    let help = "Writes in doubt that went on only because their time to settle was over";
    let mut metric =
        encoder.encode_descriptor("path_doubted_writes", help, None, MetricType::Counter)?;
    for path in paths {
        let Some(doubted) = path.doubted_writes else { continue };
        let labels = path.labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        counter(&mut metric.encode_family(&labels)?, doubted)?;
    }
    path_health(encoder, paths)
}

/// A path of a multipath is up if the multipath says so; any other path if its leaf can be reached.
fn path_health(encoder: &mut DescriptorEncoder<'_>, paths: &[SeenPath]) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(
        "path_up",
        "1 unless the path has failed or cannot be reached",
        None,
        MetricType::Gauge,
    )?;
    for path in paths {
        let failed = path.health.map(|(is_up, _)| is_up);
        let Some(is_up) = failed.or(path.is_up) else { continue };
        let labels = path.labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        metric.encode_family(&labels)?.encode_gauge(&f64::from(u8::from(is_up)))?;
    }
    let help = "How often the path has failed since the table was loaded";
    let mut metric = encoder.encode_descriptor("path_failures", help, None, MetricType::Counter)?;
    for path in paths {
        let Some((_, failures)) = path.health else { continue };
        let labels = path.labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        counter(&mut metric.encode_family(&labels)?, failures)?;
    }
    Ok(())
}

fn with_op<'a>(path: &'a SeenPath, op: &'a str) -> [(&'static str, &'a str); 5] {
    let [device, segment, number, address] =
        path.labels.each_ref().map(|(name, value)| (*name, value.as_str()));
    [device, segment, number, address, ("op", op)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_get_the_form_that_they_ask_for() {
        for (accept, form) in [
            ("", Form::Plain),
            ("*/*", Form::Plain),
            ("text/plain", Form::Plain),
            ("text/plain;version=0.0.4;q=0.5, */*;q=0.1", Form::Plain),
            ("application/openmetrics-text;q=0.2,text/plain;q=0.3", Form::Plain),
            ("application/openmetrics-text;q=0", Form::Plain),
            ("application/json", Form::Plain),
            ("application/openmetrics-text", Form::OpenMetrics),
            ("application/openmetrics-text;version=1.0.0;q=0.5,*/*", Form::OpenMetrics),
            // The header that Prometheus sends.
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,\
                 application/openmetrics-text;version=0.0.1;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Form::OpenMetrics,
            ),
        ] {
            assert_eq!(Form::accepted([accept].into_iter()), form, "{accept}");
        }
        let apart = ["text/plain; q=0.4", "application/openmetrics-text; q=0.6"];
        assert_eq!(Form::accepted(apart.into_iter()), Form::OpenMetrics);
    }

    #[test]
    fn the_older_format_describes_counters_by_the_name_of_their_samples() {
        let text = "# HELP a_requests Some.\n# TYPE a_requests counter\na_requests_total{x=\"y\"} 1\n\
                    # HELP a_seconds Time.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                    a_seconds_sum 0.5\n# EOF\n";
        let wanted = "# HELP a_requests_total Some.\n# TYPE a_requests_total counter\n\
                      a_requests_total{x=\"y\"} 1\n\
                      # HELP a_seconds Time.\n# TYPE a_seconds histogram\na_seconds_sum 0.5\n";
        assert_eq!(plain(text), wanted);
    }
}
