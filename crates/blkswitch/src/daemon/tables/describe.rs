//! Describes devices and tables for the control protocol.
//!
//! All of it is read from the running table; there is no copy of its text. So a parameter text
//! cannot disagree with what the pipeline does, and a device below appears under its current name.
//! A path appears as the word that it was loaded by, although its leaf may have other names. So a
//! printed table can be loaded again.
//!
//! Contract: reads only; takes the short locks of [`Device`]. Any thread.

use std::sync::Arc;

use blkswitch_io::stats::{Histogram, Totals};
use blkswitch_io::{Below, Device, Leaf, Segment, Table};

use crate::daemon::failure::MAJOR;
use crate::daemon::tables::targets;
use crate::daemon::tables::words::{address, short_name};
use crate::protocol::{self, Dependency, DeviceStats, IoStats, Latency, PathStats, TroubledPath};

/// Everything that `info`, `ls`, `table`, `status` and `deps` print about a device, except its
/// disk and its socket for front ends.
pub fn device(device: &Device) -> protocol::Device {
    let info = device.info();
    protocol::Device {
        name: info.name,
        uuid: info.uuid,
        major: MAJOR,
        minor: info.id,
        suspended: info.suspended,
        read_only: info.read_only,
        deferred_remove: info.deferred_remove,
        open_count: info.opens,
        event_nr: info.event_nr,
        map_source: None,
        generation: info.generation,
        live: device.live().as_deref().map(table),
        inactive: device.inactive().as_deref().map(table),
        disk: None,
        vhost_user: None,
        clients: Vec::new(),
        waits: None,
        away: None,
        read_only_paths: device.live().as_deref().map(read_only_paths).unwrap_or_default(),
        troubled_paths: device.live().as_deref().map(troubled_paths).unwrap_or_default(),
    }
}

/// The leaves that need attention, each once, under the first word that names it.
fn troubled_paths(table: &Table) -> Vec<TroubledPath> {
    let troubled = table.leaves().iter().zip(0u32..).filter_map(|(leaf, index)| {
        let (reason, doubted_writes) = (leaf.trouble(), leaf.engine().doubted_writes());
        let marginal = is_marginal(table, index);
        let is_troubled = reason.is_some() || doubted_writes > 0 || marginal;
        let path = || path_word(table, index).unwrap_or_else(|| leaf.name().to_owned());
        is_troubled.then(|| TroubledPath { path: path(), reason, doubted_writes, marginal })
    });
    troubled.collect()
}

/// Returns whether a leaf is a path of a multipath that flaps.
fn is_marginal(table: &Table, leaf: u32) -> bool {
    table.multipath().is_some_and(|(groups, to)| {
        let mut paths = groups.paths().iter().zip(to);
        paths.any(|(path, to)| to.below == Below::Leaf(leaf) && path.is_marginal())
    })
}

/// The first word by which a table names a leaf.
pub fn path_word(table: &Table, leaf: u32) -> Option<String> {
    table.segments().iter().find_map(|segment| {
        let mut paths = segment.target.paths().iter();
        let path = paths.position(|to| to.below == Below::Leaf(leaf))?;
        Some(address(table, segment, path))
    })
}

/// The leaves of a writable table that are read-only.
fn read_only_paths(table: &Table) -> Vec<String> {
    let leaves = table.leaves().iter().zip(0u32..).filter(|(leaf, _)| leaf.properties().read_only);
    let word = |(leaf, index): (&Arc<Leaf>, u32)| {
        path_word(table, index).unwrap_or_else(|| leaf.name().to_owned())
    };
    leaves.filter(|_| !table.read_only()).map(word).collect()
}

/// The text that makes this table when it is loaded.
pub fn text(table: &Table) -> String {
    let line = |one: &Segment| {
        let protocol::Segment { start, length, target, params, .. } = segment(table, one);
        format!("{start} {length} {target} {params}\n")
    };
    table.segments().iter().map(line).collect()
}

fn table(table: &Table) -> protocol::LoadedTable {
    protocol::LoadedTable {
        segments: table.segments().iter().map(|one| segment(table, one)).collect(),
        deps: dependencies(table),
    }
}

fn segment(table: &Table, segment: &Segment) -> protocol::Segment {
    let known = targets::by_name(segment.target.name().as_bytes());
    protocol::Segment {
        start: segment.start,
        length: segment.len,
        target: segment.target.name().to_owned(),
        params: known.map(|one| (one.params)(table, segment)).unwrap_or_default(),
        status: known.map(|one| (one.status)(table, segment)).unwrap_or_default(),
    }
}

/// The leaves and devices of a table, each once, in reverse order of their addition.
fn dependencies(table: &Table) -> Vec<Dependency> {
    let mut seen = Vec::<(Below, String)>::new();
    for segment in table.segments() {
        for (path, to) in segment.target.paths().iter().enumerate() {
            if seen.iter().all(|(below, _)| *below != to.below) {
                seen.push((to.below, address(table, segment, path)));
            }
        }
    }
    seen.into_iter().rev().map(|(below, address)| dependency(table, below, address)).collect()
}

fn dependency(table: &Table, below: Below, address: String) -> Dependency {
    let name = short_name(&address).to_owned();
    let (major, minor, is_device) = match below {
        Below::Device(id) => (MAJOR, id, true),
        Below::Leaf(leaf) => {
            let numbers =
                table.leaves().get(leaf as usize).and_then(|leaf| leaf.properties().device_numbers);
            let (major, minor) = numbers.unwrap_or_default();
            (major, minor, false)
        }
    };
    Dependency { major, minor, name, address, is_device }
}

/// Counters and latencies of a device and its paths.
pub fn stats(device: &Device) -> DeviceStats {
    let live = device.live();
    DeviceStats {
        name: device.name(),
        total: io_stats(&device.totals()),
        paths: live.as_deref().map(path_stats).unwrap_or_default(),
    }
}

fn path_stats(table: &Table) -> Vec<PathStats> {
    let paths = table.segments().iter().flat_map(|segment| {
        let paths = 0..segment.target.paths().len() as u32;
        paths.map(move |path| PathStats {
            segment: segment.start,
            path,
            address: address(table, segment, path as usize),
            io: io_stats(&table.path_totals(segment.first_path + path)),
        })
    });
    paths.collect()
}

fn io_stats(totals: &Totals) -> IoStats {
    IoStats {
        reads: totals.reads,
        read_bytes: totals.read_bytes,
        writes: totals.writes,
        written_bytes: totals.write_bytes,
        flushes: totals.flushes,
        discards: totals.discards,
        ignored_discards: totals.ignored_discards,
        write_zeroes: totals.zeroes,
        errors: totals.errors,
        read_latency: latency(&totals.read_latency),
        write_latency: latency(&totals.write_latency),
    }
}

fn latency(histogram: &Histogram) -> Latency {
    let quantile = |fraction| histogram.quantile_ns(fraction).unwrap_or(0);
    Latency {
        p50_ns: quantile(0.5),
        p90_ns: quantile(0.9),
        p99_ns: quantile(0.99),
        p999_ns: quantile(0.999),
        max_ns: quantile(1.0),
    }
}
