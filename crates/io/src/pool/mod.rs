//! The pool: queue threads, the devices they serve, and the mailboxes by which control reaches
//! them.
//!
//! Contract: a pool is made once per process (or test) and stopped once. Its methods may be called
//! from any thread but a queue's, and may block until the queues have answered.

mod failing;
mod stopping;

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkswitch_core::multipath::Event;

pub use crate::device::MAX_DEVICES;
use crate::device::event::{Observer, What};
use crate::device::failing::{Failure, Telling};
use crate::device::{Device, DeviceError};
use crate::export::Listener;
use crate::export::nbd::admission::Admission;
use crate::export::nbd::clients::Client;
use crate::export::nbd::{Directory, ExportInfo, names};
use crate::export::ublk::{self, UblkError};
use crate::queue::{Command, Queue};
use crate::queues::Queues;
pub use crate::sys::latch::{Ack, Gone, Latch, Waited};
use crate::sys::lock::lock;
use crate::sys::memory::{DEFAULT_BYTES, Memory};
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

/// Commands to one queue, and the descriptor that wakes it.
pub struct Mailbox {
    commands: Mutex<Option<VecDeque<Command>>>,
    wake: OwnedFd,
}

impl Mailbox {
    fn new() -> io::Result<Mailbox> {
        // SAFETY: eventfd makes a descriptor that nobody else owns.
        let wake = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Mailbox { commands: Mutex::new(Some(VecDeque::new())), wake })
    }

    /// The descriptor that becomes readable (8 bytes) when there are commands.
    pub fn wake_fd(&self) -> i32 {
        self.wake.as_raw_fd()
    }

    /// Sends a command. To a queue that is gone it is dropped, and with it its acknowledgement.
    pub fn send(&self, command: Command) {
        match lock(&self.commands).as_mut() {
            Some(commands) => commands.push_back(command),
            None => return,
        }
        self.wake();
    }

    /// Has the queue take a turn.
    fn wake(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes of a live integer to our own descriptor. It cannot fail but by
        // overflow, when the queue is awake anyway.
        unsafe { libc::write(self.wake.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Takes what was sent.
    pub fn take(&self) -> VecDeque<Command> {
        lock(&self.commands).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Nothing more is taken: what is there and what comes is dropped.
    pub fn close(&self) {
        let commands = lock(&self.commands).take();
        drop(commands);
    }
}

/// The mailboxes of all queues.
pub struct Mailboxes {
    boxes: Vec<Mailbox>,
    queues: Queues,
    reaper: mpsc::Sender<Reap>,
    watcher: mpsc::Sender<Watch>,
    observer: OnceLock<Observer>,
}

enum Reap {
    Device(Arc<Device>),
    Stop,
}

/// What a queue has found out: the device's id, and what.
enum Watch {
    Event(u32, Event),
    Failure(Arc<Failure>),
    Stop,
}

impl Mailboxes {
    /// The queues that serve the devices; also where nobody reads mail ([`Registry::detached`]).
    pub fn queues(&self) -> Queues {
        self.queues
    }

    /// How many queues there are.
    pub fn len(&self) -> usize {
        self.boxes.len()
    }

    /// Whether there are no queues.
    pub fn is_empty(&self) -> bool {
        self.boxes.is_empty()
    }

    /// One queue's mailbox.
    pub fn get(&self, queue: usize) -> Option<&Mailbox> {
        self.boxes.get(queue)
    }

    /// Sends a command to every queue.
    pub fn send_all(&self, mut command: impl FnMut(usize) -> Command) {
        self.boxes.iter().enumerate().for_each(|(queue, mailbox)| mailbox.send(command(queue)));
    }

    /// A queue has changed something on a multipath device: the watcher will tell. Without waiting.
    pub(crate) fn report(&self, device: u32, event: Event) {
        let _ = self.watcher.send(Watch::Event(device, event));
    }

    /// A path has failed requests: the watcher will tell. Without waiting.
    pub(crate) fn report_failure(&self, failure: Arc<Failure>) {
        let _ = self.watcher.send(Watch::Failure(failure));
    }

    /// Tells who watches.
    pub(crate) fn tell(&self, device: &Device, what: What) {
        if let Some(observer) = self.observer.get() {
            observer(device, what);
        }
    }

    /// Has a device removed whose last user is gone; from any thread, without waiting.
    pub(crate) fn deferred_removal(&self, device: &Arc<Device>) {
        let _ = self.reaper.send(Reap::Device(device.clone()));
    }
}

/// The devices by name: what control and the handshake of an export look at, never a request.
pub struct Registry {
    devices: RwLock<Vec<Arc<Device>>>,
    mailboxes: Arc<Mailboxes>,
    memory: Arc<Memory>,
    admission: Arc<Admission>,
    instance: u64,
}

impl Registry {
    /// A registry without queues: its devices know everything but requests. For whoever runs
    /// pipelines himself, as the simulation does.
    #[cfg(feature = "internals")]
    #[doc(hidden)]
    pub fn detached(queues: Queues) -> Registry {
        let mailboxes = Arc::new(Mailboxes {
            boxes: Vec::new(),
            queues,
            reaper: mpsc::channel().0,
            watcher: mpsc::channel().0,
            observer: OnceLock::new(),
        });
        Registry::new(mailboxes, DEFAULT_BYTES)
    }

    fn new(mailboxes: Arc<Mailboxes>, memory_bytes: usize) -> Registry {
        let memory = Arc::new(Memory::new(memory_bytes));
        let admission = Admission::new(&memory);
        // Random keys of the system: no other pool has the number, by chance.
        let instance = RandomState::new().build_hasher().finish();
        Registry { devices: RwLock::default(), mailboxes, memory, admission, instance }
    }

    /// The budget for clients' data.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// How many clients are let in.
    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// Sends a command to one queue.
    pub(crate) fn send(&self, queue: usize, command: Command) {
        if let Some(mailbox) = self.mailboxes.get(queue) {
            mailbox.send(command);
        }
    }

    /// Sends a command to every queue.
    pub(crate) fn send_all(&self, command: impl FnMut(usize) -> Command) {
        self.mailboxes.send_all(command);
    }

    /// Has every queue take a turn.
    pub(crate) fn wake_queues(&self) {
        self.mailboxes.boxes.iter().for_each(Mailbox::wake);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Device>>> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Arc<Device>>> {
        self.devices.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queues that serve its devices: what their leaves are opened for.
    pub fn queues(&self) -> Queues {
        self.mailboxes.queues()
    }

    /// All devices, oldest first.
    pub fn list(&self) -> Vec<Arc<Device>> {
        self.read().clone()
    }

    /// The device of this name.
    pub fn find(&self, name: &str) -> Option<Arc<Device>> {
        self.read().iter().find(|d| d.name() == name).cloned()
    }

    /// The device with this id.
    pub fn by_id(&self, id: u32) -> Option<Arc<Device>> {
        self.read().iter().find(|d| d.id() == id).cloned()
    }

    /// Makes a device without a table, with the lowest free id or the one that is asked for.
    pub fn create(
        &self,
        name: &str,
        uuid: &str,
        id: Option<u32>,
    ) -> Result<Arc<Device>, DeviceError> {
        let mut devices = self.write();
        for device in devices.iter() {
            let info = device.info();
            if names::is_same(&info.name, name) {
                return Err(DeviceError::Exists(name.to_string()));
            }
            if !uuid.is_empty() && info.uuid == uuid {
                return Err(DeviceError::Exists(uuid.to_string()));
            }
        }
        let is_free = |id: &u32| devices.iter().all(|d| d.id() != *id);
        let id = match id {
            Some(id) if id as usize >= MAX_DEVICES => return Err(DeviceError::Number(id)),
            Some(id) => Some(id)
                .filter(is_free)
                .ok_or_else(|| DeviceError::Exists(format!("number {id}")))?,
            None => (0..MAX_DEVICES as u32).find(is_free).ok_or(DeviceError::TooMany)?,
        };
        let device = Arc::new(Device::new(id, name, uuid, self.mailboxes.clone()));
        let latch = Latch::new(self.mailboxes.len());
        // Sent before anybody can find the device, so that it is the first that a queue hears of
        // it; awaited without the lock, which a queue may want for a handshake before it reads its
        // mail.
        self.mailboxes.send_all(|_| Command::Install {
            device: id,
            counters: device.counters(),
            ack: latch.ack(),
        });
        devices.push(device.clone());
        drop(devices);
        latch.wait().map_err(|Gone| DeviceError::Stopping)?;
        self.mailboxes.tell(&device, What::Created);
        Ok(device)
    }

    /// Gives a device another name.
    pub fn rename(&self, device: &Device, name: &str) -> Result<(), DeviceError> {
        let devices = self.write();
        if devices.iter().any(|d| names::is_same(&d.name(), name)) {
            return Err(DeviceError::Exists(name.to_string()));
        }
        let from = device.name();
        device.set_name(name);
        drop(devices);
        self.mailboxes.tell(device, What::Renamed { from });
        Ok(())
    }

    /// Gives a device its uuid.
    pub fn set_uuid(&self, device: &Device, uuid: &str) -> Result<(), DeviceError> {
        let devices = self.write();
        if devices.iter().any(|d| d.info().uuid == uuid) {
            return Err(DeviceError::Exists(uuid.to_string()));
        }
        device.set_uuid(uuid)
    }

    /// Removes a device that nobody has open.
    pub fn remove(&self, device: &Arc<Device>) -> Result<(), DeviceError> {
        self.remove_if(device, || true)
    }

    /// The same, if `agrees` says so when nobody can open the device any more. Otherwise it stays,
    /// and that is no error.
    pub fn remove_if(
        &self,
        device: &Arc<Device>,
        agrees: impl FnOnce() -> bool,
    ) -> Result<(), DeviceError> {
        device.retire()?;
        if !agrees() {
            device.take_back();
            return Ok(());
        }
        device.dismantle();
        // Only now may the name and the id be used again.
        self.write().retain(|d| !Arc::ptr_eq(d, device));
        self.mailboxes.tell(device, What::Removed);
        Ok(())
    }

    /// The pool is stopped: nothing is served any more, and leaves that nobody else has are closed.
    fn forget_devices(&self) {
        let devices = std::mem::take(&mut *self.write());
        drop(devices);
    }

    fn export(device: &Device) -> Option<ExportInfo> {
        let info = device.info();
        let table = device.live()?;
        let targets: Vec<&str> = table.segments().iter().map(|s| s.target.name()).collect();
        Some(ExportInfo {
            id: info.id,
            description: format!("{} device of {} sectors", targets.join("+"), table.len()),
            name: names::export_name(&info.name).into_owned(),
            size_bytes: table.len() * 512,
            read_only: info.read_only,
            rotational: table.rotational(),
            min_block: table.logical_block(),
            preferred_block: table.logical_block().max(4096),
            can_discard: table.can_discard(),
            can_zero: true,
            can_fast_zero: true,
            can_cache: true,
            // Writes are counted per leaf, whatever the connection: a flush on one covers all.
            can_multi_conn: true,
        })
    }
}

impl Directory for Registry {
    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        for device in self.read().iter() {
            if let Some(info) = Self::export(device) {
                each(&info.name, &info.description);
            }
        }
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        let devices = self.read();
        let device = match (name, devices.as_slice()) {
            ("", [only]) => only,
            _ => devices.iter().find(|device| names::is_called(&device.name(), name))?,
        };
        Self::export(device)
    }

    fn instance(&self) -> u64 {
        self.instance
    }
}

/// See the module's text.
pub struct Pool {
    registry: Arc<Registry>,
    mailboxes: Arc<Mailboxes>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    reaper: mpsc::Sender<Reap>,
    failed: Arc<AtomicBool>,
    ublk: ublk::Exports,
}

impl Pool {
    /// Starts the queue threads. Errors: the kernel refuses a ring or a thread.
    pub fn start(options: PoolOptions) -> io::Result<Pool> {
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let (reaper, reap) = mpsc::channel();
        let (watcher, watch) = mpsc::channel();
        let boxes = (0..queues).map(|_| Mailbox::new()).collect::<io::Result<_>>()?;
        let mailboxes = Arc::new(Mailboxes {
            boxes,
            queues: Queues::of_new_owner(queues),
            reaper: reaper.clone(),
            watcher,
            observer: OnceLock::new(),
        });
        let registry = Arc::new(Registry::new(mailboxes.clone(), options.memory_bytes));
        let failed = Arc::new(AtomicBool::new(false));
        let pool = Pool {
            registry: registry.clone(),
            mailboxes,
            threads: Mutex::default(),
            reaper,
            failed,
            ublk: ublk::Exports::default(),
        };
        for number in 0..queues {
            if let Err(error) = pool.start_queue(number) {
                // Nobody reads their mail: whoever asks them (the stop of those that run) is told
                // so.
                pool.mailboxes.boxes.iter().skip(number).for_each(Mailbox::close);
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
        let (mailboxes, registry) = (self.mailboxes.clone(), self.registry.clone());
        let (started, starts) = mpsc::channel();
        let failed = self.failed.clone();
        let thread = std::thread::Builder::new().name(format!("queue-{number}")).spawn(move || {
            // The ring is made on its thread: only that one may use it.
            let queue = Queue::new(number, mailboxes, registry);
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
        &self.registry
    }

    /// Has everything that happens told to `observer`. `false` if somebody else watches already.
    pub fn observe(&self, observer: Observer) -> bool {
        self.mailboxes.observer.set(observer).is_ok()
    }

    /// Its queues: what its leaves are opened for.
    pub fn queues(&self) -> Queues {
        self.mailboxes.queues()
    }

    /// Serves NBD on a listening socket. Connections are dealt to the queues in turn.
    pub fn listen(&self, listener: Listener) -> Result<(), DeviceError> {
        let latch = Latch::new(1);
        if let Some(mailbox) = self.mailboxes.get(0) {
            mailbox.send(Command::Listen { listener, ack: latch.ack() });
        }
        latch.wait().map_err(|Gone| DeviceError::Stopping)
    }

    /// The connections that have a device open over NBD. A queue that does not answer soon is left
    /// out.
    pub fn clients(&self) -> Vec<Client> {
        let (found, latch) = (Arc::new(Mutex::default()), Latch::new(self.mailboxes.len()));
        self.mailboxes.send_all(|_| Command::Clients { found: found.clone(), ack: latch.ack() });
        latch.wait_at_most(CLIENTS_TIME);
        let mut found = std::mem::take(&mut *lock(&found));
        found.sort_by_key(|client: &Client| client.number);
        found
    }

    /// Ends connections, by their numbers. They are gone when what they have under way on leaves
    /// has ended.
    pub fn disconnect(&self, numbers: &[u64]) {
        let (numbers, latch) = (Arc::<[u64]>::from(numbers), Latch::new(self.mailboxes.len()));
        self.mailboxes
            .send_all(|_| Command::Disconnect { numbers: numbers.clone(), ack: latch.ack() });
        latch.wait_at_most(CLIENTS_TIME);
    }

    /// Makes a disk of this machine of a device; it counts as open while it is one.
    pub fn attach_ublk(
        &self,
        device: &Arc<Device>,
        options: &ublk::Options,
    ) -> Result<ublk::Node, UblkError> {
        self.ublk.attach(device, options, &self.mailboxes)
    }

    /// The device is no disk any more. Refused while the disk is in use, unless by force: then
    /// whoever uses it gets errors from now on, and what the kernel has not written yet is lost.
    pub fn detach_ublk(&self, device: &Device, force: bool) -> Result<(), UblkError> {
        self.ublk.detach(device, force, &self.mailboxes)
    }

    /// The disk that a device is.
    pub fn ublk_node(&self, device: &Device) -> Option<ublk::Node> {
        self.ublk.node(device)
    }

    /// Who uses the disk that a device is, in words for people; nothing if nobody does, or it is
    /// none. May block.
    pub fn ublk_user(&self, device: &Device) -> Option<String> {
        self.ublk.user(device)
    }

    /// Puts a device behind a disk that a dead server has left ([`ublk::found`]): its requests
    /// go on.
    pub fn recover_ublk(&self, device: &Arc<Device>, id: u32) -> Result<ublk::Node, UblkError> {
        self.ublk.recover(device, id, &self.mailboxes)
    }

    /// Whether a queue, or another of the pool's threads, has failed: nothing that it had is
    /// answered any more. What control asks of a failed queue is answered with
    /// [`DeviceError::Stopping`].
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
