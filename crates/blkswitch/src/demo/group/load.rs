//! The load: clients of the host's device that write, read and verify without a pause.
//!
//! Every client owns blocks of its own, so that it knows what each must hold: the last content that was answered. A
//! write that fails would leave its block in doubt, so an error ends its client, and the demonstration with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::layout::Random;
use crate::nbd_client::NbdClient;

/// Bytes of a request.
const BLOCK: usize = 4096;
/// Requests at a time: as many clients, one request each.
const CLIENTS: usize = 8;
/// How long a request may be held back before the demonstration gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module's text.
pub(super) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<anyhow::Result<()>>>,
}

struct Shared {
    stop: AtomicBool,
    started: Instant,
    /// Requests answered.
    done: AtomicU64,
    /// The longest that was answered since somebody looked, in ns.
    longest_ns: AtomicU64,
    /// When each client's request was sent, in ns since the start; 0: none is under way.
    under_way: [AtomicU64; CLIENTS],
}

impl Load {
    /// Starts on the export `name` behind a socket.
    pub(super) fn start(socket: &Path, name: &'static str, seed: u64) -> Load {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            started: Instant::now(),
            done: AtomicU64::new(0),
            longest_ns: AtomicU64::new(0),
            under_way: [const { AtomicU64::new(0) }; CLIENTS],
        });
        let client = |number| {
            let (shared, socket) = (shared.clone(), socket.to_owned());
            thread::spawn(move || run(&shared, socket, name, number, seed))
        };
        Load { clients: (0..CLIENTS).map(client).collect(), shared }
    }

    /// Requests answered so far.
    pub(super) fn done(&self) -> u64 {
        self.shared.done.load(Relaxed)
    }

    /// The longest wait for an answer since the last look, those that still wait included.
    pub(super) fn take_longest(&self) -> Duration {
        let now = self.shared.now_ns();
        let waits = self.shared.under_way.iter().map(|since| match since.load(Relaxed) {
            0 => 0,
            since => now.saturating_sub(since),
        });
        let waiting = waits.max().unwrap_or(0);
        Duration::from_nanos(waiting.max(self.shared.longest_ns.swap(0, Relaxed)))
    }

    /// Whether a client has ended, which it should not.
    pub(super) fn has_failed(&self) -> bool {
        self.clients.iter().any(JoinHandle::is_finished)
    }

    /// Ends the load: every client reads back all it has written.
    pub(super) fn verify(self) -> anyhow::Result<()> {
        self.shared.stop.store(true, Relaxed);
        for client in self.clients {
            client.join().unwrap_or_else(|_| bail!("a client of the load panicked"))?;
        }
        Ok(())
    }
}

impl Shared {
    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

fn run(shared: &Shared, socket: PathBuf, name: &str, number: usize, seed: u64) -> anyhow::Result<()> {
    let mut client = NbdClient::unix(&socket, name).context("the load cannot connect")?;
    client.set_patience(PATIENCE)?;
    let blocks = client.size() as usize / BLOCK / CLIENTS;
    // How often each of its blocks was written.
    let mut versions = vec![0u64; blocks];
    let mut random = Random(seed + number as u64);
    while !shared.stop.load(Relaxed) {
        let own = random.below(blocks as u32) as usize;
        let block = own * CLIENTS + number;
        let began = shared.now_ns();
        shared.under_way[number].store(began, Relaxed);
        if random.below(2) == 0 {
            let version = versions[own] + 1;
            let written = client.write((block * BLOCK) as u64, &content(block, version), false);
            written.with_context(|| format!("a write to block {block} failed"))?;
            versions[own] = version;
        } else {
            check(&mut client, block, versions[own])?;
        }
        shared.under_way[number].store(0, Relaxed);
        shared.longest_ns.fetch_max(shared.now_ns() - began, Relaxed);
        shared.done.fetch_add(1, Relaxed);
    }
    for (own, version) in versions.iter().enumerate() {
        check(&mut client, own * CLIENTS + number, *version)?;
    }
    client.flush().context("the last flush failed")
}

fn check(client: &mut NbdClient, block: usize, version: u64) -> anyhow::Result<()> {
    let read = client.read((block * BLOCK) as u64, BLOCK);
    let read = read.with_context(|| format!("a read of block {block} failed"))?;
    ensure!(read == content(block, version), "block {block} does not hold what was written last");
    Ok(())
}

/// What a block holds after so many writes.
fn content(block: usize, version: u64) -> Vec<u8> {
    let stamp = if version == 0 { [0; 16] } else { stamp(block, version) };
    stamp.into_iter().cycle().take(BLOCK).collect()
}

fn stamp(block: usize, version: u64) -> [u8; 16] {
    let mut stamp = [0; 16];
    stamp[..8].copy_from_slice(&(block as u64).to_le_bytes());
    stamp[8..].copy_from_slice(&version.to_le_bytes());
    stamp
}
