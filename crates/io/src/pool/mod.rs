//! The pool: queue threads, the devices they serve, and the mailboxes by which control reaches
//! them.
//!
//! Contract: a pool is made once per process (or test) and stopped once. Its methods may be called
//! from any thread but a queue's, and may block until the queues have answered.

mod failing;
mod stopping;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use crate::device::MAX_DEVICES;
pub use crate::device::Registry;
use crate::device::event::Observer;
use crate::device::failing::Telling;
use crate::device::host::{Host, Reap};
use crate::device::{Device, DeviceError};
use crate::export::client::{self, ClientError, ClientOptions};
use crate::export::nbd::admission::Admission;
use crate::export::nbd::clients::Client;
use crate::export::ublk::{self, UblkError};
use crate::export::vhost_user::{self, VhostUserError};
use crate::export::{Listener, nbd};
use crate::queue::{Queue, QueueOrder, Shared, Watch};
use crate::queues::Queues;
pub use crate::sys::latch::{Ack, Gone, Latch, Waited};
use crate::sys::lock::lock;
use crate::sys::mailbox::{Mailbox, Mailboxes};
use crate::sys::memory::DEFAULT_BYTES;
use failing::{NoteFailure, run_queue};
pub use stopping::STOP_TIME;

/// Queue threads at most: more than the cores of any machine this is for; the bound of per-queue
/// memory.
pub const MAX_QUEUES: usize = 256;

/// A queue that takes longer than this to say who is connected is not waited for.
const CLIENTS_TIME: Duration = Duration::from_secs(2);

/// How a pool is made.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Queue threads.
    pub queues: usize,
    /// Bytes that the data of all clients' requests may take together; at least
    /// [`crate::sys::memory::MIN_BYTES`].
    pub memory_bytes: usize,
}

impl Default for PoolOptions {
    /// One queue per core.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        PoolOptions { queues: cores.min(MAX_QUEUES), memory_bytes: DEFAULT_BYTES }
    }
}

/// See the module's text.
pub struct Pool {
    shared: Shared,
    host: Arc<Host>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    reaper: mpsc::Sender<Reap>,
    failed: Arc<AtomicBool>,
    ublk: ublk::Exports,
    /// Number of clients of this process so far, which decides on the next one's queue.
    served: AtomicUsize,
    vhost_user: vhost_user::Exports,
}

impl Pool {
    /// Starts the queue threads. Errors: the kernel refuses a ring or a thread.
    pub fn start(options: PoolOptions) -> io::Result<Pool> {
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let (reaper, reap) = mpsc::channel();
        let (watcher, watch) = mpsc::channel();
        let mailboxes = Arc::new(Mailboxes::new(queues)?);
        let of = Queues::of_new_owner(queues);
        let host = Arc::new(Host::new(of, Some(mailboxes.clone()), reaper.clone()));
        let registry = Arc::new(Registry::new(host.clone(), options.memory_bytes));
        let admission = Admission::new(registry.memory());
        let shared = Shared { mailboxes, watcher, registry: registry.clone(), admission };
        let failed = Arc::new(AtomicBool::new(false));
        let pool = Pool {
            shared,
            host,
            threads: Mutex::default(),
            reaper,
            failed,
            ublk: ublk::Exports::default(),
            served: AtomicUsize::new(0),
            vhost_user: vhost_user::Exports::default(),
        };
        for number in 0..queues {
            if let Err(error) = pool.start_queue(number) {
                // Nobody reads their mail: whoever asks them (the stop of those that run) is told
                // so.
                pool.shared.mailboxes.iter().skip(number).for_each(Mailbox::close);
                return Err(error);
            }
        }
        let (devices, failed) = (registry.clone(), pool.failed.clone());
        let thread = std::thread::Builder::new().name("watcher".into()).spawn(move || {
            let _panic = NoteFailure { thread: "watcher", failed };
            tell_all(&watch, &devices);
        });
        let thread = thread.map_err(|error| because(&error, "cannot start a thread"))?;
        lock(&pool.threads).push(thread);
        let failed = pool.failed.clone();
        let thread = std::thread::Builder::new().name("reaper".into()).spawn(move || {
            let _panic = NoteFailure { thread: "reaper", failed };
            while let Ok(Reap::Device(device)) = reap.recv() {
                if let Err(error) = registry.remove(&device) {
                    tracing::debug!(%error, "deferred removal");
                }
            }
        });
        let thread = thread.map_err(|error| because(&error, "cannot start a thread"))?;
        lock(&pool.threads).push(thread);
        Ok(pool)
    }

    fn start_queue(&self, number: usize) -> io::Result<()> {
        let shared = self.shared.clone();
        let (started, starts) = mpsc::channel();
        let failed = self.failed.clone();
        let thread = std::thread::Builder::new().name(format!("queue-{number}")).spawn(move || {
            // The ring is made on its thread: only that one may use it.
            let queue = Queue::new(number, shared);
            let _ = started.send(queue.as_ref().map(|_| ()).map_err(|error| {
                let why = match error.kind() {
                    io::ErrorKind::OutOfMemory => "the user's limit of locked memory, ulimit -l?",
                    _ => "is io_uring allowed here?",
                };
                because(error, &format!("cannot make an io_uring ring ({why})"))
            }));
            if let Ok(queue) = queue {
                run_queue(queue, number, &failed);
            }
        });
        let thread = thread.map_err(|error| because(&error, "cannot start a queue's thread"))?;
        lock(&self.threads).push(thread);
        starts.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// The devices.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.shared.registry
    }

    /// Has everything that happens told to `observer`. `false` if somebody else watches already.
    pub fn observe(&self, observer: Observer) -> bool {
        self.host.observe(observer)
    }

    /// Its queues: what its leaves are opened for.
    pub fn queues(&self) -> Queues {
        self.host.queues()
    }

    /// Serves NBD on a listening socket. Connections are dealt to the queues in turn.
    pub fn listen(&self, listener: Listener) -> Result<(), DeviceError> {
        let latch = Latch::new(1);
        if let Some(mailbox) = self.shared.mailboxes.get(0) {
            mailbox.send(QueueOrder::Listen { listener, ack: latch.ack() });
        }
        latch.wait().map_err(|Gone| DeviceError::Stopping)
    }

    /// Opens a device for a thread of this program, which then starts requests and takes answers
    /// without a socket.
    ///
    /// # Errors
    /// The device is being removed, or is of another pool; there is no such queue; the number of
    /// requests in flight is out of range; there is no descriptor left; or the pool stops.
    pub fn client(
        &self,
        device: &Arc<Device>,
        options: ClientOptions,
    ) -> Result<client::Client, ClientError> {
        let queues = self.shared.mailboxes.len();
        let queue = match options.queue {
            Some(queue) if queue >= queues => return Err(ClientError::NoQueue { queue, queues }),
            Some(queue) => queue,
            None => self.served.fetch_add(1, Ordering::Relaxed) % queues,
        };
        // A number is a device of one pool only.
        let is_own =
            self.registry().by_id(device.id()).is_some_and(|own| Arc::ptr_eq(&own, device));
        if !is_own {
            return Err(DeviceError::NotFound(device.name()).into());
        }
        let (client, seat) = client::pair(device, options.in_flight, queue)?;
        let latch = Latch::new(1);
        if let Some(mailbox) = self.shared.mailboxes.get(queue) {
            mailbox.send(client::server::Order::Serve { seat, ack: latch.ack() }.into());
        }
        latch.wait().map_err(|Gone| DeviceError::Stopping)?;
        Ok(client)
    }

    /// The connections that have a device open over NBD. A queue that does not answer soon is left
    /// out.
    pub fn clients(&self) -> Vec<Client> {
        let (found, latch) = (Arc::new(Mutex::default()), Latch::new(self.shared.mailboxes.len()));
        self.shared
            .mailboxes
            .send_all(|_| nbd::Order::Clients { found: found.clone(), ack: latch.ack() }.into());
        latch.wait_at_most(CLIENTS_TIME);
        let mut found = std::mem::take(&mut *lock(&found));
        found.sort_by_key(|client: &Client| client.number);
        found
    }

    /// Ends connections, by their numbers. They are gone when what they have under way on leaves
    /// has ended.
    pub fn disconnect(&self, numbers: &[u64]) {
        let (numbers, latch) =
            (Arc::<[u64]>::from(numbers), Latch::new(self.shared.mailboxes.len()));
        self.shared.mailboxes.send_all(|_| {
            nbd::Order::Disconnect { numbers: numbers.clone(), ack: latch.ack() }.into()
        });
        latch.wait_at_most(CLIENTS_TIME);
    }

    /// Makes a disk of this machine of a device; it counts as open while it is one.
    pub fn attach_ublk(
        &self,
        device: &Arc<Device>,
        options: &ublk::Options,
    ) -> Result<ublk::Node, UblkError> {
        self.ublk.attach(device, options, &*self.shared.mailboxes)
    }

    /// The device is no disk any more. Refused while the disk is in use, unless by force: then
    /// whoever uses it gets errors from now on, and what the kernel has not written yet is lost.
    pub fn detach_ublk(&self, device: &Device, force: bool) -> Result<(), UblkError> {
        self.ublk.detach(device, force, &*self.shared.mailboxes)
    }

    /// The disk that a device is.
    pub fn ublk_node(&self, device: &Device) -> Option<ublk::Node> {
        self.ublk.node(device)
    }

    /// Describes the user of a device's disk in words for people. `None` if the device is not a
    /// disk, or nobody uses it. May block.
    pub fn ublk_user(&self, device: &Device) -> Option<String> {
        self.ublk.user(device)
    }

    /// Puts a device behind a disk that a dead server has left ([`ublk::found`]): its requests
    /// go on.
    pub fn recover_ublk(&self, device: &Arc<Device>, id: u32) -> Result<ublk::Node, UblkError> {
        self.ublk.recover(device, id, &*self.shared.mailboxes)
    }

    /// Offers a device to vhost-user front ends at a socket that listens. The device counts as open
    /// until it is detached.
    pub fn attach_vhost_user(
        &self,
        device: &Arc<Device>,
        listener: UnixListener,
        options: &vhost_user::Options,
    ) -> Result<vhost_user::Socket, VhostUserError> {
        self.vhost_user.attach(device, listener, options, self.shared.mailboxes.clone())
    }

    /// Offers the device to front ends no more. Refused while one is connected, unless by force:
    /// then its guest gets no more answers.
    pub fn detach_vhost_user(&self, device: &Device, force: bool) -> Result<(), VhostUserError> {
        self.vhost_user.detach(device, force)
    }

    /// The socket of a device for vhost-user front ends.
    pub fn vhost_user_socket(&self, device: &Device) -> Option<vhost_user::Socket> {
        self.vhost_user.socket(device)
    }

    /// Tells the vhost-user front end of a device if its size or limits have changed. Call it after
    /// another table went live.
    pub fn tell_vhost_user(&self, device: &Device) {
        self.vhost_user.changed(device);
    }

    /// Whether a queue, or another of the pool's threads, has failed. Its requests get no answer
    /// any more. Calls that need a failed queue fail with [`DeviceError::Stopping`].
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !lock(&self.threads).is_empty() {
            self.stop();
        }
    }
}

/// An error that says what failed, too: a ring and a thread are refused with the same errors.
fn because(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The watcher's life: tells what queues have found out, until the pool stops.
fn tell_all(watch: &mpsc::Receiver<Watch>, devices: &Registry) {
    let mut telling = Telling::default();
    loop {
        let now = Instant::now();
        let next = match telling.wait(now) {
            Some(wait) => watch.recv_timeout(wait),
            None => watch.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(Watch::Event(device, event)) => {
                if let Some(device) = devices.by_id(device) {
                    device.happened(event);
                }
            }
            Ok(Watch::Failure(failure)) => telling.add(failure, now),
            Ok(Watch::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        for (key, count) in telling.due(Instant::now()) {
            if let Some(device) = devices.by_id(key.device) {
                device.path_failed(key, count);
            }
        }
    }
}
