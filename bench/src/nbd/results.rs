//! The measurements as medians and ratios, for the terminal and for kept files.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Value, json};

use super::client::{self, Load, Run};
use super::server::{DEVICE_BYTES, Kind};
use crate::report::{About, Figure};

/// All runs of one load against one server.
pub(super) struct Cell {
    pub(super) load: Load,
    pub(super) kind: Kind,
    pub(super) runs: Vec<Run>,
}

/// The cost of the switch layer.
pub(super) struct Layer {
    /// Server time per request of the switch divided by that of the bare file, for each pair of
    /// runs.
    pub(super) cpu_ratios: Vec<f64>,
}

/// All measurements of a series.
pub(super) struct Results {
    pub(super) cells: Vec<Cell>,
    pub(super) layer: Layer,
    pub(super) rounds: usize,
    pub(super) seconds: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        (values[middle - 1] + values[middle]) / 2.0
    } else {
        values[middle]
    }
}

impl Cell {
    fn median(&self, value: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(value).collect())
    }

    fn json(&self) -> Value {
        let all = |value: fn(&Run) -> f64| json!(self.runs.iter().map(value).collect::<Vec<_>>());
        json!({
            "load": self.load.name,
            "server": self.kind.name(),
            "requests_per_second": self.median(|run| run.per_second),
            "bytes_per_second": self.median(|run| run.bytes_per_second),
            "p50_us": self.median(|run| run.p50_us),
            "p99_us": self.median(|run| run.p99_us),
            "server_cpu_us_per_request": self.median(|run| run.server_cpu_us),
            "client_cpu_us_per_request": self.median(|run| run.client_cpu_us),
            "rounds": {
                "requests_per_second": all(|run| run.per_second),
                "p99_us": all(|run| run.p99_us),
                "server_cpu_us_per_request": all(|run| run.server_cpu_us),
            },
        })
    }
}

impl Layer {
    /// The quartiles, in percent above 1.
    fn quartiles(&self) -> [f64; 3] {
        let mut sorted = self.cpu_ratios.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| (sorted[(sorted.len() - 1) * quarter / 4] - 1.0) * 100.0)
    }
}

impl Results {
    /// The figures for the terminal.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for cell in &self.cells {
            let name = |what: &str| format!("{}, {}: {what}", cell.load.name, cell.kind.name());
            figures.push(Figure::new(name("requests"), cell.median(|run| run.per_second), "/s"));
            figures.push(Figure::new(name("p99"), cell.median(|run| run.p99_us), "us"));
            figures.push(Figure::new(
                name("server"),
                cell.median(|run| run.server_cpu_us),
                "us/request",
            ));
        }
        for load in &Load::ALL {
            for (kind, ratios) in self.ratios(load) {
                for (what, ratio) in ratios {
                    let name = format!("{}, {} / best peer: {what}", load.name, kind.name());
                    figures.push(Figure::new(name, ratio, "x"));
                }
            }
        }
        let [low, middle, high] = self.layer.quartiles();
        figures.push(Figure::new("switch layer, server time: lower quartile", low, "%"));
        figures.push(Figure::new("switch layer, server time: median", middle, "%"));
        figures.push(Figure::new("switch layer, server time: upper quartile", high, "%"));
        figures
    }

    fn of(&self, load: &Load) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(move |cell| cell.load.name == load.name)
    }

    /// Ratios of blkswitch to the best peer in each figure: more requests, lower p99, less server
    /// time.
    fn ratios(&self, load: &Load) -> Vec<(Kind, [(&'static str, f64); 3])> {
        let best = |value: fn(&Run) -> f64, higher: bool| {
            let values =
                self.of(load).filter(|cell| cell.kind.is_peer()).map(|cell| cell.median(value));
            if higher { values.fold(f64::MIN, f64::max) } else { values.fold(f64::MAX, f64::min) }
        };
        let peers = (
            best(|run| run.per_second, true),
            best(|run| run.p99_us, false),
            best(|run| run.server_cpu_us, false),
        );
        let ours = self.of(load).filter(|cell| !cell.kind.is_peer());
        ours.map(|cell| {
            let ratios = [
                ("requests", cell.median(|run| run.per_second) / peers.0),
                ("p99", cell.median(|run| run.p99_us) / peers.1),
                ("server", cell.median(|run| run.server_cpu_us) / peers.2),
            ];
            (cell.kind, ratios)
        })
        .collect()
    }

    /// Writes `bench/results/DATE-nbd.json` and `.md`.
    pub(super) fn save(&self) -> Result<()> {
        let mut versions = vec![client::version()?];
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_peer() || *kind == Kind::Switch) {
            versions.push(kind.version()?);
        }
        let words = format!("nbd --rounds {} --seconds {} --save", self.rounds, self.seconds);
        let results = json!({
            "results": self.cells.iter().map(Cell::json).collect::<Vec<_>>(),
            "switch_layer_server_time_percent":
                {"quartiles": self.layer.quartiles(), "ratios": self.layer.cpu_ratios},
        });
        let text = format!(
            "fio's nbd engine, or for \"a client that batches\" one that sends and receives in as \
             large pieces as there are (bench/src/nbd/lean.rs);\none connection, {} MiB in memory \
             (tmpfs); medians of {} rounds of {} s in which the servers take turns.\nServer and \
             client time are processor time per request. The blkswitch device is a switch of \
             three paths and regions of 64 KiB;\nall three are one image as the others serve it, \
             or, where it says so, a file each.",
            DEVICE_BYTES >> 20,
            self.rounds,
            self.seconds
        );
        let title = "NBD servers over a unix socket";
        About::new(&words, versions)?.keep("nbd", results, (title, &text), &self.tables()?)
    }

    fn tables(&self) -> Result<String> {
        let mut text = String::new();
        for load in &Load::ALL {
            writeln!(text, "\n## {}\n", load.name)?;
            writeln!(
                text,
                "| server | requests/s | MiB/s | p50 us | p99 us | server us | client us |"
            )?;
            writeln!(text, "|---|---:|---:|---:|---:|---:|---:|")?;
            for cell in self.of(load) {
                writeln!(
                    text,
                    "| {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} |",
                    cell.kind.name(),
                    cell.median(|run| run.per_second),
                    cell.median(|run| run.bytes_per_second) / f64::from(1 << 20),
                    cell.median(|run| run.p50_us),
                    cell.median(|run| run.p99_us),
                    cell.median(|run| run.server_cpu_us),
                    cell.median(|run| run.client_cpu_us),
                )?;
            }
            writeln!(text, "\nAgainst the best of the others in each figure:\n")?;
            for (kind, [(_, requests), (_, p99), (_, server)]) in self.ratios(load) {
                let name = kind.name();
                writeln!(
                    text,
                    "* {name}: {requests:.2} x the requests, {p99:.2} x the p99, {server:.2} x \
                     the server time"
                )?;
            }
        }
        let [low, middle, high] = self.layer.quartiles();
        writeln!(
            text,
            "\n## The switch layer\n\nServer time per request ({}), a switch of three paths \
             against the bare file that they all are, one queue, {} pairs of runs:\n{middle:+.1} \
             % (half of the pairs between {low:+.1} and {high:+.1} %).",
            Load::LAYER.name,
            self.layer.cpu_ratios.len(),
        )?;
        Ok(text)
    }
}
