//! The loads, and the client that most of them use: fio with its nbd engine, one connection, one
//! job.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::lean::Lean;
use super::server::Server;

/// The client of a load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Fio,
    /// [`Lean`], which is so fast that the servers are the bottleneck.
    Lean,
}

/// One kind of load.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(super) name: &'static str,
    rw: &'static str,
    block_kib: u32,
    pub(super) depth: u32,
    client: Client,
}

impl Load {
    const fn new(name: &'static str, rw: &'static str, block_kib: u32, depth: u32) -> Self {
        Load { name, rw, block_kib, depth, client: Client::Fio }
    }

    const fn lean(name: &'static str, rw: &'static str) -> Self {
        Load { client: Client::Lean, ..Load::new(name, rw, 4, 32) }
    }

    pub(super) fn is_write(&self) -> bool {
        self.rw.ends_with("write")
    }

    pub(super) fn block_bytes(&self) -> usize {
        (self.block_kib as usize) << 10
    }

    pub(super) const ALL: [Load; 8] = [
        Load::new("4 KiB random read, depth 1", "randread", 4, 1),
        Load::new("4 KiB random write, depth 1", "randwrite", 4, 1),
        Load::new("4 KiB random read, depth 32", "randread", 4, 32),
        Load::new("4 KiB random write, depth 32", "randwrite", 4, 32),
        Load::lean("4 KiB random read, depth 32, a client that batches", "randread"),
        Load::lean("4 KiB random write, depth 32, a client that batches", "randwrite"),
        Load::new("128 KiB sequential read, depth 8", "read", 128, 8),
        Load::new("128 KiB sequential write, depth 8", "write", 128, 8),
    ];
    /// The load for the cost of the switch layer.
    pub(crate) const LAYER: Load =
        Load::lean("4 KiB random read, depth 32, a client that batches", "randread");
    /// The load for paths of a multipath.
    pub(crate) const PATHS: Load = Load::new("4 KiB random read, depth 32", "randread", 4, 32);

    fn words(&self) -> Vec<String> {
        [
            format!("--rw={}", self.rw),
            format!("--bs={}k", self.block_kib),
            format!("--iodepth={}", self.depth),
        ]
        .into()
    }
}

/// The figures of one run.
#[derive(Clone, Copy, Default)]
pub(super) struct Run {
    pub(super) per_second: f64,
    pub(super) bytes_per_second: f64,
    /// Median latency by fio's clock, from submission to completion, in microseconds.
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// The server's processor time per request, in microseconds.
    pub(super) server_cpu_us: f64,
    /// The client's processor time per request, in microseconds.
    pub(super) client_cpu_us: f64,
}

/// Runs `load` for `seconds` on one of the server's devices.
pub(super) fn run(server: &Server, device: &str, load: &Load, seconds: f64) -> Result<Run> {
    let read_cpu = if server.kind.is_peer() { Server::cpu_ns } else { Server::threads_cpu_ns };
    let before = read_cpu(server)?;
    let (requests, run) = match load.client {
        Client::Fio => fio_run(&server.uri(device), load, seconds)?,
        Client::Lean => {
            let mut client = Lean::connect(server.socket(), device, load)?;
            client.run(Duration::from_secs_f64(seconds))?
        }
    };
    let cpu_ns = read_cpu(server)? - before;
    ensure!(requests > 0.0, "{}: no request was answered", server.kind.name());
    Ok(Run { server_cpu_us: cpu_ns as f64 / 1e3 / requests, ..run })
}

/// Runs fio. Returns the number of answered requests and its figures.
fn fio_run(uri: &str, load: &Load, seconds: f64) -> Result<(f64, Run)> {
    let json = fio(uri, load, seconds)?;
    let job = &json["jobs"][0];
    ensure!(job["error"] == 0, "fio on {uri}: error {}", job["error"]);
    let side = if load.is_write() { &job["write"] } else { &job["read"] };
    let number = |value: &Value| value.as_f64().context("fio's JSON has not the expected form");
    let requests = number(&side["total_ios"])?;
    let client_cpu = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0;
    let run = Run {
        per_second: number(&side["iops"])?,
        bytes_per_second: number(&side["bw_bytes"])?,
        p50_us: number(&side["clat_ns"]["percentile"]["50.000000"])? / 1e3,
        p99_us: number(&side["clat_ns"]["percentile"]["99.000000"])? / 1e3,
        client_cpu_us: client_cpu * number(&job["job_runtime"])? * 1e3 / requests,
        server_cpu_us: 0.0,
    };
    Ok((requests, run))
}

/// Requests per second at a URI.
pub(crate) fn per_second(uri: &str, load: &Load, seconds: f64) -> Result<f64> {
    let json = fio(uri, load, seconds)?;
    let side = if load.is_write() { "write" } else { "read" };
    json["jobs"][0][side]["iops"].as_f64().context("fio's JSON has not the expected form")
}

fn fio(uri: &str, load: &Load, seconds: f64) -> Result<Value> {
    // Every run has other random offsets, but every series has the same ones.
    static SEED: AtomicU32 = AtomicU32::new(1);
    let seed = SEED.fetch_add(1, Ordering::Relaxed);
    let output = Command::new("fio")
        .args(["--name=load", "--ioengine=nbd", "--time_based", "--norandommap", "--randrepeat=0"])
        .args(["--output-format=json", &format!("--randseed={seed}")])
        .arg(format!("--runtime={}ms", (seconds * 1e3) as u64))
        .arg(format!("--uri={uri}"))
        .args(load.words())
        .output()
        .context("cannot run fio (Debian package fio)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The engine first prints a greeting to standard output.
    let json = text.find('{').map(|start| &text[start..]).unwrap_or_default();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && !json.is_empty(), "fio on {uri}: {text}{errors}");
    serde_json::from_str(json).context("fio's JSON")
}

/// The version that fio prints.
pub(super) fn version() -> Result<String> {
    let output =
        Command::new("fio").arg("--version").output().context("fio (Debian package fio)")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
