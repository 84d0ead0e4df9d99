//! Failing over: measures the longest read when the server of its path is killed or stops
//! answering.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use blkswitch::nbd_client::NbdClient;

use super::WIDE;
use super::servers::Server;
use crate::nbd::Scratch;
use crate::report::Figure;

/// Time of reading before the fault, and after a read has succeeded again.
const QUIET: Duration = Duration::from_millis(300);
/// Longest wait, above the default time limit of a leaf.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(blkswitch: &Path, short: bool) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, options, signal) in [
        ("killed, default time limit", "", "KILL"),
        ("silent, time limit 1 s", "&timeout=1", "STOP"),
        ("silent, default time limit", "", "STOP"),
    ] {
        if short && signal == "STOP" && options.is_empty() {
            continue;
        }
        let waited = fail_over(blkswitch, options, signal).with_context(|| name.to_owned())?;
        let name = format!("server {name}: longest read");
        figures.push(Figure::new(name, waited.as_secs_f64() * 1e3, "ms"));
    }
    Ok(figures)
}

fn fail_over(blkswitch: &Path, options: &str, signal: &str) -> Result<Duration> {
    let folder = Scratch::new()?;
    let first = Server::nbdkit(&folder.0, "a", 0, WIDE)?;
    let second = Server::nbdkit(&folder.0, "b", 0, WIDE)?;
    let ours = Server::daemon(&folder.0, "ours", blkswitch)?;
    let [a, b] = [&first, &second].map(|server| server.leaf(options));
    ours.create(
        "disk",
        &format!(
            "multipath 1 queue_if_no_path 0 2 1 round-robin 0 1 1 {a} 1 round-robin 0 1 1 {b} 1"
        ),
    )?;
    let mut client = NbdClient::unix(&ours.server.socket, "disk")?;
    client.set_patience(PATIENCE)?;
    let mut longest = Duration::ZERO;
    let mut signalled = false;
    let mut end = Instant::now() + QUIET;
    loop {
        let began = Instant::now();
        client.read(0, 4096).context("a read failed although a path was left")?;
        let took = began.elapsed();
        longest = longest.max(took);
        if began > end {
            if signalled {
                break;
            }
            first.signal(signal)?;
            signalled = true;
            end = Instant::now() + QUIET;
        }
    }
    // The server is killed when it is dropped, even while it is stopped.
    Ok(longest)
}
