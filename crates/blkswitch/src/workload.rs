//! A verifying load for the demonstration and the tests: clients that write, read, flush and check
//! without a pause.
//!
//! Each client owns its blocks, so it knows the content of each: the last write. After a failed
//! write, a block may hold its old or its new content until a later write succeeds. Any other
//! content, older ones included, fails the verification whenever it is read.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::nbd_client::NbdClient;

/// Bytes of a block, the unit of all requests.
const BLOCK: usize = 4096;
/// One request of this number is a flush.
const FLUSHES: u32 = 64;

/// The requests that may fail. Any other failure ends its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errors {
    /// No request may fail.
    No,
    /// Reads and writes of these blocks of 4 KiB.
    At(Range<usize>),
    /// Every request may fail.
    Anywhere,
}

impl Errors {
    /// Returns whether a request to a block, or a flush, may fail.
    fn may_be(&self, block: Option<usize>) -> bool {
        match self {
            Errors::No => false,
            Errors::At(blocks) => block.is_some_and(|block| blocks.contains(&block)),
            Errors::Anywhere => true,
        }
    }
}

/// The settings of a load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Clients, each with one request at a time.
    pub clients: usize,
    /// Seed of all random numbers.
    pub seed: u64,
    /// The requests that may fail.
    pub errors: Errors,
    /// Longest time of a request before its client gives up.
    pub patience: Duration,
}

/// The results of a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests answered, failed ones included.
    pub done: u64,
    /// Number of requests that failed.
    pub failed: u64,
    /// The longest time of a request.
    pub longest: Duration,
}

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    options: LoadOptions,
    socket: PathBuf,
    export: String,
    stop: AtomicBool,
    started: Instant,
    done: AtomicU64,
    failed: AtomicU64,
    longest_ns: AtomicU64,
    /// The longest time since the last [`Load::take_longest`].
    recent_ns: AtomicU64,
    /// The time at which each client's request was sent, in ns since the start; 0 if none is under
    /// way.
    under_way: Box<[AtomicU64]>,
}

impl Load {
    /// Starts a load on an export behind a socket. Its blocks must be zero.
    pub fn start(socket: &Path, export: &str, options: LoadOptions) -> Load {
        let number = options.clients;
        let shared = Arc::new(Shared {
            options,
            socket: socket.to_owned(),
            export: export.to_owned(),
            stop: AtomicBool::new(false),
            started: Instant::now(),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            longest_ns: AtomicU64::new(0),
            recent_ns: AtomicU64::new(0),
            under_way: (0..number).map(|_| AtomicU64::new(0)).collect(),
        });
        let client = |number| {
            let shared = shared.clone();
            thread::spawn(move || Client::connect(&shared, number)?.run())
        };
        Load { clients: (0..number).map(client).collect(), shared }
    }

    /// Requests answered so far.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Relaxed)
    }

    /// The longest time of a request since the last call, with the requests under way.
    pub fn take_longest(&self) -> Duration {
        let now = self.shared.now_ns();
        let waits = self.shared.under_way.iter().map(|since| match since.load(Relaxed) {
            0 => 0,
            since => now.saturating_sub(since),
        });
        let waiting = waits.max().unwrap_or(0);
        Duration::from_nanos(waiting.max(self.shared.recent_ns.swap(0, Relaxed)))
    }

    /// The requests under way, for a watcher on another thread.
    pub fn under_way(&self) -> UnderWay {
        UnderWay(self.shared.clone())
    }

    /// Returns whether a client has ended early.
    pub fn has_failed(&self) -> bool {
        self.clients.iter().any(JoinHandle::is_finished)
    }

    /// Ends the load: every client reads all its blocks back. `Err` if a request failed that must
    /// not, or a block has a wrong content.
    pub fn verify(self) -> anyhow::Result<Report> {
        self.shared.stop.store(true, Relaxed);
        for client in self.clients {
            client.join().unwrap_or_else(|_| bail!("a client of the load panicked"))?;
        }
        let shared = &self.shared;
        Ok(Report {
            done: shared.done.load(Relaxed),
            failed: shared.failed.load(Relaxed),
            longest: Duration::from_nanos(shared.longest_ns.load(Relaxed)),
        })
    }
}

/// The requests of a load that are under way.
#[derive(Debug, Clone)]
pub struct UnderWay(Arc<Shared>);

impl UnderWay {
    /// The time at which the oldest one was sent; `None` if there is none.
    pub fn oldest(&self) -> Option<Instant> {
        let sent = self.0.under_way.iter().map(|sent| sent.load(Relaxed)).filter(|sent| *sent != 0);
        sent.min().map(|sent| self.0.started + Duration::from_nanos(sent))
    }
}

impl Shared {
    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

/// The possible versions of a block, counted in writes: from the last write that succeeded to the
/// last that was tried.
#[derive(Debug, Clone, Copy, Default)]
struct Versions {
    sure: u64,
    tried: u64,
}

struct Client<'a> {
    shared: &'a Shared,
    number: usize,
    connection: NbdClient,
    versions: Vec<Versions>,
    random: Random,
}

impl Client<'_> {
    fn connect(shared: &Shared, number: usize) -> anyhow::Result<Client<'_>> {
        let connection =
            NbdClient::unix(&shared.socket, &shared.export).context("the load cannot connect")?;
        connection.set_patience(shared.options.patience)?;
        let blocks = connection.size() as usize / BLOCK / shared.options.clients;
        let versions = vec![Versions::default(); blocks];
        let random = Random(shared.options.seed.wrapping_add(number as u64));
        Ok(Client { shared, number, connection, versions, random })
    }

    fn run(mut self) -> anyhow::Result<()> {
        while !self.shared.stop.load(Relaxed) {
            let own = self.random.below(self.versions.len() as u32) as usize;
            let began = self.shared.now_ns();
            self.shared.under_way[self.number].store(began, Relaxed);
            match self.random.below(FLUSHES) {
                0 => {
                    let flushed = self.connection.flush();
                    self.judge(None, flushed)?;
                }
                kind if kind % 2 == 0 => self.write(own)?,
                _ => self.check(own)?,
            }
            let (shared, took) = (self.shared, self.shared.now_ns() - began);
            shared.under_way[self.number].store(0, Relaxed);
            shared.longest_ns.fetch_max(took, Relaxed);
            shared.recent_ns.fetch_max(took, Relaxed);
            shared.done.fetch_add(1, Relaxed);
        }
        for own in 0..self.versions.len() {
            let failed = self.shared.failed.load(Relaxed);
            self.check(own)?;
            ensure!(
                self.shared.failed.load(Relaxed) == failed,
                "a block cannot be read back at the end"
            );
        }
        self.connection.flush().context("the last flush failed")
    }

    /// Counts an error of the server if it is allowed. Other errors end the client.
    fn judge<T>(&self, block: Option<usize>, answer: io::Result<T>) -> anyhow::Result<Option<T>> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error)
                if self.shared.options.errors.may_be(block) && error.raw_os_error().is_some() =>
            {
                self.shared.failed.fetch_add(1, Relaxed);
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| match block {
                Some(block) => format!("a request of block {block} failed"),
                None => "a flush failed".to_owned(),
            }),
        }
    }

    fn block(&self, own: usize) -> usize {
        own * self.shared.options.clients + self.number
    }

    fn write(&mut self, own: usize) -> anyhow::Result<()> {
        let block = self.block(own);
        let version = self.versions[own].tried + 1;
        self.versions[own].tried = version;
        let fua = self.random.below(16) == 0;
        let written = self.connection.write((block * BLOCK) as u64, &content(block, version), fua);
        if self.judge(Some(block), written)?.is_some() {
            self.versions[own].sure = version;
        }
        Ok(())
    }

    fn check(&mut self, own: usize) -> anyhow::Result<()> {
        let (block, Versions { sure, tried }) = (self.block(own), self.versions[own]);
        let read = self.connection.read((block * BLOCK) as u64, BLOCK);
        let Some(read) = self.judge(Some(block), read)? else { return Ok(()) };
        let holds = (sure..=tried).any(|version| read == content(block, version));
        ensure!(
            holds,
            "block {block} holds none of its contents {sure} to {tried}: {:x?}",
            &read[..16]
        );
        Ok(())
    }
}

/// The content of a block after `version` writes.
fn content(block: usize, version: u64) -> Vec<u8> {
    let mut stamp = [0; 16];
    if version != 0 {
        stamp[..8].copy_from_slice(&(block as u64).to_le_bytes());
        stamp[8..].copy_from_slice(&version.to_le_bytes());
    }
    stamp.into_iter().cycle().take(BLOCK).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// A number below `end`. `end` must not be 0.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * u128::from(end)) >> 64) as u32
    }
}
