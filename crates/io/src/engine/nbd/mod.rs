//! The NBD engine: a leaf that is an export of an NBD server, on this machine or another.
//!
//! ```text
//! open    engine/session/socket.rs -> handshake.rs -> Offer            control thread, blocking, with a deadline
//! I/O     engine/session/carrier.rs -> link.rs -> engine/session/conn.rs  a queue's thread and ring
//!         wire.rs: requests to bytes, bytes to replies   pure
//! lost    engine/session/connector.rs: another connection        a thread of its own, while one is missing
//! control control.rs: probe, flush                       control thread, blocking, with a deadline
//! holes   status.rs: what is allocated                  helper thread of the leaf, blocking, with a deadline
//! ```
//!
//! A server that says `CAN_MULTI_CONN` is reached by connections of each queue's own; then a flush
//! on one covers all, and which of them an operation takes does not matter. Any other server, or
//! one that does not accept so many, is reached by one connection for all queues (relay.rs).
//!
//! Contract: as [`crate::engine::Engine`]. What is promised about errors, lost connections and
//! flushes is told to users in `docs/leaves.md`. TLS is not spoken.

pub mod address;
mod control;
mod handshake;
mod link;
mod relay;
mod status;
pub mod wire;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use address::NbdAddress;

use super::session::carrier::{self, Carrier, no_doubt};
use super::session::connector::Connector;
use super::session::links::Link;
use super::{LeafIo, LeafOp, Limits, Submitted};
use crate::engine::error::LeafError;
use crate::engine::io::answered;
use crate::engine::options::LeafOptions;
use crate::engine::session::turn::Turn;
use crate::sys::lock::lock;
use crate::wire::nbd::transmission_flag as flag;
use control::{Control, dial_for_berth, dial_for_berth_again};
use handshake::Offer;
use link::{Connection, NbdLink};
use relay::Relay;
use status::Status;

type Shared = carrier::Shared<NbdLink>;

/// How long a further connection may take when the leaf is opened, beside what the server is known to
/// take: a server that limits their number lets those above it wait, and is not to be waited for as
/// long as one that is slow.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(3);
/// How many times as long as the first connection.
const FURTHER_FACTOR: u32 = 3;

/// See the module's text.
pub struct NbdEngine {
    shared: Arc<Shared>,
    read_only: bool,
    route: Route,
}

/// How the server is reached.
enum Route {
    /// Each queue by connections of its own.
    Own(Box<Own>),
    /// All by one.
    Relay(Arc<Relay>),
}

struct Own {
    per_queue: usize,
    /// For the leaf's helper thread.
    status: Mutex<Status>,
    /// Whose turn it is, of a queue's connections.
    turns: Box<[NextConnection]>,
    control: Mutex<Control>,
}

/// A queue's own, on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct NextConnection(AtomicUsize);

impl NbdEngine {
    /// Connects, for so many queues. Errors quote the address.
    pub(crate) fn open(
        address: &NbdAddress,
        options: &LeafOptions,
    ) -> Result<(NbdEngine, Limits), LeafError> {
        let system =
            |source| LeafError::System { what: "reach", name: address.to_string(), source };
        Self::connect(address, options).map_err(system)
    }

    fn connect(address: &NbdAddress, options: &LeafOptions) -> io::Result<(NbdEngine, Limits)> {
        let start = Instant::now();
        let leaf = draw_name();
        let (first, offer) = dial_for_berth(address, &leaf, 0, start + address.patience.timeout)?;
        let took = start.elapsed();
        let limits = limits(&offer, options.read_only);
        if limits.sectors == 0 {
            let reason = format!("the export has {} bytes: less than a block", offer.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let queues = options.queues.count();
        let (mut connections, mut own) = (vec![first], None);
        if offer.has(flag::CAN_MULTI_CONN) {
            let count = queues * address.connections;
            own = further((address, &leaf), &offer, took, count, &mut connections);
        }
        let berths = if own.is_some() { connections.len() } else { 1 };
        connections.truncate(berths);
        let again = (address.clone(), offer.clone());
        let dial = Box::new(move |berth| {
            let (address, offer) = &again;
            let deadline = Instant::now() + address.patience.timeout;
            dial_for_berth_again(address, &leaf, berth, offer, deadline)
        });
        let shared = Arc::new(Shared {
            connector: Connector::new(address.to_string(), berths, connections, dial)?,
            facts: offer,
            patience: address.patience,
            doubted: AtomicU64::new(0),
            in_doubt: no_doubt(berths),
        });
        let route = match own {
            Some(control) => Route::Own(Box::new(Own {
                per_queue: address.connections,
                status: Mutex::new(Status::new(address.clone(), shared.facts.clone())),
                turns: (0..queues).map(|_| NextConnection::default()).collect(),
                control: Mutex::new(control),
            })),
            None => Route::Relay(Relay::start(shared.clone(), queues)?),
        };
        let read_only = limits.read_only;
        Ok((NbdEngine { shared, read_only, route }, limits))
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    pub(super) unsafe fn submit(&self, io: &LeafIo, turn: &mut Turn) -> Submitted {
        let (needs, lacks) = match io.op {
            LeafOp::Read | LeafOp::Write => (0, 0),
            // Nothing to be made stable, as far as anybody can say.
            LeafOp::Flush => (flag::SEND_FLUSH, 0),
            LeafOp::Discard => (flag::SEND_TRIM, -libc::EOPNOTSUPP),
            // A server that does not tell might write zeroes out.
            LeafOp::Zero { .. } if io.fast => {
                (flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO, -libc::EOPNOTSUPP)
            }
            LeafOp::Zero { .. } => (flag::SEND_WRITE_ZEROES, -libc::EOPNOTSUPP),
        };
        if self.read_only && matches!(io.op, LeafOp::Write | LeafOp::Discard | LeafOp::Zero { .. })
        {
            return Submitted::Done(-i64::from(libc::EPERM));
        }
        if !self.shared.facts.has(needs) {
            return Submitted::Done(i64::from(lacks));
        }
        let Own { per_queue, turns, .. } = match &self.route {
            Route::Own(own) => &**own,
            Route::Relay(relay) => return relay.submit(io, turn),
        };
        let mut berth = io.queue * per_queue;
        if *per_queue > 1
            && let Some(NextConnection(last)) = turns.get(io.queue)
        {
            let next = (last.load(Ordering::Relaxed) + 1) % per_queue;
            last.store(next, Ordering::Relaxed);
            berth += next;
        }
        let make = || Box::new(Carrier::new(self.shared.clone(), berth)) as Box<dyn Link>;
        match self.shared.connector.seat(berth) {
            Some(seat) => seat.submit(io, turn, make),
            None => Submitted::Done(-i64::from(libc::ENOTCONN)),
        }
    }

    /// Makes all completed writes stable. Blocks, at most as long as an answer may take.
    pub(super) fn flush_blocking(&self) -> io::Result<()> {
        if !self.has_cache() {
            return Ok(());
        }
        let deadline = Instant::now() + self.shared.patience.timeout;
        match &self.route {
            Route::Own(own) => lock(&own.control).flush(deadline),
            // The relay needs a moment more to say that the server was silent for so long.
            Route::Relay(relay) => relay.call(LeafOp::Flush, 0, deadline + FURTHER_TIMEOUT),
        }
    }

    /// Whether the server is there and answers a read, and every queue is connected to it again.
    /// Blocks.
    pub(super) fn probe(&self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let block = self.shared.facts.min_block.max(512) as usize;
        match &self.route {
            Route::Own(own) => {
                lock(&own.control).probe(&mut vec![0; block], deadline)?;
                self.shared.connector.wait_connected(deadline)
            }
            Route::Relay(relay) => {
                self.shared.connector.wait_connected(deadline)?;
                answered(relay.call(LeafOp::Read, block, deadline))
            }
        }
    }

    /// As [`super::Engine::trouble`].
    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.connector.trouble()
    }

    /// As [`super::Engine::doubted_writes`].
    pub(super) fn doubted_writes(&self) -> u64 {
        self.shared.doubted.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// As [`super::Engine::can_be_written`], on a connection of its own: the server says it when it
    /// is connected to. One that serves a single connection has none for it.
    pub(super) fn can_be_written(&self, timeout: Duration) -> io::Result<bool> {
        let Route::Own(own) = &self.route else { return Ok(true) };
        lock(&own.control).is_writable(Instant::now() + timeout)
    }

    /// As [`super::Engine::is_reachable`].
    pub(super) fn is_reachable(&self) -> bool {
        !self.shared.connector.is_cut_off()
    }

    /// A server that serves one connection only is not asked: there is none for it.
    pub(super) fn known_allocation(&self) -> Option<u32> {
        match self.route {
            Route::Own(_) => None,
            Route::Relay(_) => Some(0),
        }
    }

    /// As [`super::Engine::allocation`].
    pub(super) fn allocation(&self, offset: u64, len: u64) -> (u64, u32) {
        let Route::Own(own) = &self.route else { return (len, 0) };
        let mut status = lock(&own.status);
        status.ask(offset, len).unwrap_or((len, 0))
    }

    /// What the volume is known by: paths that differ in it do not lead to one volume. The other
    /// way round it is no proof: the protocol has no identity of a volume.
    pub(super) fn identity(&self) -> String {
        let Offer { size, name, description, .. } = &self.shared.facts;
        format!("nbd export '{name}' of {size} bytes ('{description}')")
    }

    pub(super) fn has_fua(&self) -> bool {
        self.shared.facts.has(flag::SEND_FUA)
    }

    pub(super) fn can_discard(&self) -> bool {
        self.shared.facts.has(flag::SEND_TRIM)
    }

    pub(super) fn has_cache(&self) -> bool {
        self.shared.facts.has(flag::SEND_FLUSH)
    }
}

impl Drop for NbdEngine {
    fn drop(&mut self) {
        self.shared.connector.close();
        if let Route::Relay(relay) = &self.route {
            relay.close();
        }
    }
}

/// Makes further connections until there are `count`, and one for control. Nothing if there cannot
/// be so many.
fn further(
    (address, leaf): (&NbdAddress, &str),
    offer: &Offer,
    first_took: Duration,
    count: usize,
    connections: &mut Vec<Connection>,
) -> Option<Control> {
    let timeout = address.patience.timeout.min(FURTHER_TIMEOUT + first_took * FURTHER_FACTOR);
    let mut all = || {
        while connections.len() < count {
            let (berth, deadline) = (connections.len(), Instant::now() + timeout);
            connections.push(dial_for_berth_again(address, leaf, berth, offer, deadline)?);
        }
        let socket = control::dial_again(address, offer, Instant::now() + timeout)?;
        Ok::<_, io::Error>(Control::new(address.clone(), offer.clone(), socket))
    };
    all()
        .inspect_err(|error| {
            let leaf = address.to_string();
            tracing::warn!(leaf, %error, wanted = count + 1, "not so many connections; one for all queues is used");
        })
        .ok()
}

/// A name for a leaf that no other one has, by chance, and that nobody else can guess.
fn draw_name() -> String {
    let draw = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", draw(), draw())
}

fn limits(offer: &Offer, read_only: bool) -> Limits {
    let logical_block = offer.min_block.max(512);
    Limits {
        logical_block,
        physical_block: offer.preferred_block.max(logical_block).next_power_of_two().min(64 << 10),
        read_only: read_only || offer.has(flag::READ_ONLY),
        rotational: offer.has(flag::ROTATIONAL),
        ..Limits::memory(offer.size / u64::from(logical_block) * u64::from(logical_block))
    }
}
