//! The NBD engine: a leaf that is an export of an NBD server, on this machine or another.
//!
//! ```text
//! open    session/socket.rs -> handshake.rs -> Offer    control thread, blocking, with a deadline
//! I/O     session/reconnecting.rs -> protocol.rs -> session/conn.rs   a queue's thread and ring
//!         wire.rs: requests to bytes, bytes to replies       pure
//! lost    session/reconnector.rs: another connection      own thread, while one is missing
//! control control.rs: probe, flush                      control thread, blocking, with a deadline
//! holes   status.rs: allocation                         helper thread, blocking, with a deadline
//! ```
//!
//! If a server offers `CAN_MULTI_CONN`, each queue has its own connections: a flush on one covers
//! all, so an operation may take any of them. A server that does not offer it, or does not accept
//! enough connections, gets one connection for all queues (relay.rs).
//!
//! Contract: as [`crate::engine::Engine`]. `docs/leaves.md` tells users what to expect of errors,
//! lost connections and flushes. TLS is not supported.

pub mod address;
mod control;
mod handshake;
mod protocol;
mod relay;
mod status;
pub mod wire;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use address::NbdAddress;

use super::session::reconnecting::{self, Reconnecting, no_doubt};
use super::session::reconnector::Reconnector;
use super::session::sessions::Session;
use super::{LeafIo, LeafOp, Properties, Submitted};
use crate::engine::error::LeafError;
use crate::engine::io::answered;
use crate::engine::options::LeafOptions;
use crate::engine::session::turn::Turn;
use crate::sys::lock::lock;
use crate::wire::nbd::transmission_flag as flag;
use control::{Control, dial_session, dial_session_again};
use handshake::Offer;
use protocol::{Connection, NbdProtocol};
use relay::Relay;
use status::Status;

type Shared = reconnecting::Shared<NbdProtocol>;

/// Time limit of a further connection while the leaf is opened, in addition to [`FURTHER_FACTOR`]
/// times the time of the first. A server that limits the number of connections lets further ones
/// wait, and need not be waited for as long as a slow one.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(3);
/// The multiple of the first connection's time in [`FURTHER_TIMEOUT`].
const FURTHER_FACTOR: u32 = 3;

/// A leaf on an NBD server.
pub struct NbdEngine {
    shared: Arc<Shared>,
    read_only: bool,
    route: Route,
}

/// The way to the server.
enum Route {
    /// Each queue has its own connections.
    Own(Box<Own>),
    /// All queues share one connection.
    Relay(Arc<Relay>),
}

struct Own {
    per_queue: usize,
    /// The connection for allocation queries, used by the leaf's helper thread.
    status: Mutex<Status>,
    /// The next connection to use, for each queue.
    turns: Box<[NextConnection]>,
    control: Mutex<Control>,
}

/// Belongs to one queue, so it has a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct NextConnection(AtomicUsize);

impl NbdEngine {
    /// Connects for the queues of `options`. Errors quote the address.
    pub(crate) fn open(
        address: &NbdAddress,
        options: &LeafOptions,
    ) -> Result<(NbdEngine, Properties), LeafError> {
        let system =
            |source| LeafError::System { what: "reach", name: address.to_string(), source };
        Self::connect(address, options).map_err(system)
    }

    fn connect(address: &NbdAddress, options: &LeafOptions) -> io::Result<(NbdEngine, Properties)> {
        let start = Instant::now();
        let leaf = draw_name();
        let (first, offer) = dial_session(address, &leaf, 0, start + address.patience.timeout)?;
        let took = start.elapsed();
        let properties = properties(&offer, options.read_only);
        if properties.sectors == 0 {
            let reason = format!("the export has {} bytes: less than a block", offer.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let queues = options.queues.count();
        let (mut connections, mut own) = (vec![first], None);
        if offer.has(flag::CAN_MULTI_CONN) {
            let count = queues * address.connections;
            own = further((address, &leaf), &offer, took, count, &mut connections);
        }
        let slots = if own.is_some() { connections.len() } else { 1 };
        connections.truncate(slots);
        let again = (address.clone(), offer.clone());
        let dial = Box::new(move |number| {
            let (address, offer) = &again;
            let deadline = Instant::now() + address.patience.timeout;
            dial_session_again(address, &leaf, number, offer, deadline)
        });
        let shared = Arc::new(Shared {
            reconnector: Reconnector::new(address.to_string(), slots, connections, dial)?,
            facts: offer,
            patience: address.patience,
            doubted: AtomicU64::new(0),
            in_doubt: no_doubt(slots),
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
        let read_only = properties.read_only;
        Ok((NbdEngine { shared, read_only, route }, properties))
    }

    /// # Safety
    /// As [`super::Engine::submit`].
    pub(super) unsafe fn submit(&self, io: &LeafIo, turn: &mut Turn) -> Submitted {
        let (needs, lacks) = match io.op {
            LeafOp::Read | LeafOp::Write => (0, 0),
            // Without SEND_FLUSH, the server has no cache that could be flushed.
            LeafOp::Flush => (flag::SEND_FLUSH, 0),
            LeafOp::Discard => (flag::SEND_TRIM, -libc::EOPNOTSUPP),
            // A server that does not offer fast zeroing might write zeroes.
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
        let mut number = io.queue * per_queue;
        if *per_queue > 1
            && let Some(NextConnection(last)) = turns.get(io.queue)
        {
            let next = (last.load(Ordering::Relaxed) + 1) % per_queue;
            last.store(next, Ordering::Relaxed);
            number += next;
        }
        let make = || Box::new(Reconnecting::new(self.shared.clone(), number)) as Box<dyn Session>;
        match self.shared.reconnector.slot(number) {
            Some(slot) => slot.submit(io, turn, make),
            None => Submitted::Done(-i64::from(libc::ENOTCONN)),
        }
    }

    /// Makes all completed writes durable. Blocks at most for the time limit of an answer.
    pub(super) fn flush_blocking(&self) -> io::Result<()> {
        if !self.has_cache() {
            return Ok(());
        }
        let deadline = Instant::now() + self.shared.patience.timeout;
        match &self.route {
            Route::Own(own) => lock(&own.control).flush(deadline),
            // The relay needs a moment longer, to report that the server was silent for the time
            // limit.
            Route::Relay(relay) => relay.call(LeafOp::Flush, 0, deadline + FURTHER_TIMEOUT),
        }
    }

    /// Checks that the server answers a read and that every queue is connected. Blocks.
    pub(super) fn probe(&self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let block = self.shared.facts.min_block.max(512) as usize;
        match &self.route {
            Route::Own(own) => {
                lock(&own.control).probe(&mut vec![0; block], deadline)?;
                self.shared.reconnector.wait_connected(deadline)
            }
            Route::Relay(relay) => {
                self.shared.reconnector.wait_connected(deadline)?;
                answered(relay.call(LeafOp::Read, block, deadline))
            }
        }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.reconnector.trouble()
    }

    pub(super) fn doubted_writes(&self) -> u64 {
        self.shared.doubted.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// As [`super::Engine::can_be_written`]. Uses a new connection, because a server says this
    /// while it connects. Always true for a server that allows only one connection.
    pub(super) fn can_be_written(&self, timeout: Duration) -> io::Result<bool> {
        let Route::Own(own) = &self.route else { return Ok(true) };
        lock(&own.control).is_writable(Instant::now() + timeout)
    }

    pub(super) fn is_reachable(&self) -> bool {
        !self.shared.reconnector.is_cut_off()
    }

    /// `Some(0)` for a server with a single connection, which leaves none for allocation queries.
    pub(super) fn known_allocation(&self) -> Option<u32> {
        match self.route {
            Route::Own(_) => None,
            Route::Relay(_) => Some(0),
        }
    }

    pub(super) fn allocation(&self, offset: u64, len: u64) -> (u64, u32) {
        let Route::Own(own) = &self.route else { return (len, 0) };
        let mut status = lock(&own.status);
        status.ask(offset, len).unwrap_or((len, 0))
    }

    /// The identity of the volume. Paths with different identities lead to different volumes. Equal
    /// identities prove nothing, because NBD has no identity of a volume.
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
        self.shared.reconnector.close();
        if let Route::Relay(relay) = &self.route {
            relay.close();
        }
    }
}

/// Makes further connections until there are `count`, and one for control. `None` if the server
/// does not accept so many.
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
            let (number, deadline) = (connections.len(), Instant::now() + timeout);
            connections.push(dial_session_again(address, leaf, number, offer, deadline)?);
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

/// Draws a random name for a leaf. It is unique in practice, and another client cannot guess it.
fn draw_name() -> String {
    let draw = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", draw(), draw())
}

fn properties(offer: &Offer, read_only: bool) -> Properties {
    let logical_block = offer.min_block.max(512);
    Properties {
        logical_block,
        physical_block: offer.preferred_block.max(logical_block).next_power_of_two().min(64 << 10),
        read_only: read_only || offer.has(flag::READ_ONLY),
        rotational: offer.has(flag::ROTATIONAL),
        ..Properties::memory(offer.size / u64::from(logical_block) * u64::from(logical_block))
    }
}
