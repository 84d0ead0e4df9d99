//! The control side of a device: its names, its live and inactive table, its gate and its message
//! lock.
//!
//! Contract: every method may be called from any thread and may block (a suspend waits for requests
//! in flight). Queues know a device by its id and hold their own copy of what is live; control
//! changes it by messages to all queues, and a swap happens only while every queue has the gate
//! closed and nothing in flight. So no request ever sees two tables, and the way of a request takes
//! no lock and no atomic operation for it.
//!
//! Locks, in order: `control` (one suspend, resume or swap at a time), `message` (one message at a
//! time), `state` (short, never held while waiting).

pub mod event;
pub(crate) mod failing;
mod gate;
pub(crate) mod host;
pub(crate) mod leaving;
pub mod multipath;
pub mod names;
mod paths;
pub(crate) mod registry;
mod replace;
pub mod table;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blkswitch_core::switch::MapWriter;

use crate::device::event::What;
use crate::device::table::{Live, MAX_DEPTH, PathGroups, RegionMap, Segment, Table, Target};
use crate::engine::Limits;
use crate::leaf::closer;
use crate::queues::Queues;
use crate::stats::{Counters, Totals};
use crate::sys::latch::Latch;
use crate::sys::lock::lock;
use crate::sys::slots::Slots;

pub use gate::Interrupt;
use gate::Reason;
use host::{Host, Order};
pub use registry::Registry;

/// Devices at most: an id stands for the minor number, which has 20 bits in the kernel.
pub const MAX_DEVICES: usize = 1 << 20;

/// Why control of a device failed. The texts of the kernel's log where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such device.
    #[error("Device {0} not found")]
    NotFound(String),
    /// The name, uuid or number is taken.
    #[error("'{0}' is the name, uuid or number of another device")]
    Exists(String),
    /// No number of a device.
    #[error("the number {0} is too large: it must be below {max}", max = MAX_DEVICES)]
    Number(u32),
    /// All numbers are taken.
    #[error("there are {max} devices: no more is possible", max = MAX_DEVICES)]
    TooMany,
    /// In use.
    #[error("device '{name}' is in use: open count {opens} (connections and devices on top of it)")]
    Busy {
        /// Its name.
        name: String,
        /// Open count.
        opens: u32,
    },
    /// Nothing live.
    #[error("The device has no table.")]
    NoTable,
    /// Beyond the device.
    #[error("Target message sector outside device.")]
    SectorOutside,
    /// The segment there takes no messages.
    #[error("Target type does not support messages")]
    NoMessages,
    /// Resume of a suspended device that has no table at all.
    #[error("device '{0}' is suspended and has no table to resume with: load one first")]
    NothingToResume(String),
    /// A uuid can be set once.
    #[error("device '{0}' has a uuid already; a uuid can be set only once")]
    UuidSet(String),
    /// A device may not stand on itself.
    #[error("device '{0}' would stand on itself")]
    Loop(String),
    /// Too many devices on one another.
    #[error("devices stand on one another more than {MAX_DEPTH} deep")]
    TooDeep,
    /// A leaf of the table, or a device below it, is of another pool or driver.
    #[error(
        "'{0}' belongs to another pool or driver: open a leaf with LeafOptions::new(pool.queues()) of \
         the pool that the device is of, and stack only devices of one pool"
    )]
    OtherQueues(String),
    /// Whoever waited has given up, or the device was resumed meanwhile.
    #[error("the wait for requests in flight on '{0}' was given up: the device runs on as before")]
    GivenUp(String),
    /// By force, too, leaves must give back what they have.
    #[error("requests of '{0}' are with leaves that do not answer: the device runs on as before")]
    InFlight(String),
    /// The pool is going down.
    #[error("the pool is stopping, or one of its queues has failed")]
    Stopping,
}

impl DeviceError {
    /// The errno a caller of the kernel would see.
    pub fn errno(&self) -> i32 {
        match self {
            DeviceError::NotFound(_) => libc::ENXIO,
            DeviceError::Exists(_) | DeviceError::Busy { .. } => libc::EBUSY,
            DeviceError::GivenUp(_) => libc::EINTR,
            DeviceError::InFlight(_) => libc::EBUSY,
            DeviceError::Stopping => libc::ESHUTDOWN,
            DeviceError::TooMany => libc::ENOSPC,
            DeviceError::Number(_)
            | DeviceError::NoTable
            | DeviceError::SectorOutside
            | DeviceError::NoMessages
            | DeviceError::NothingToResume(_)
            | DeviceError::UuidSet(_)
            | DeviceError::Loop(_)
            | DeviceError::OtherQueues(_)
            | DeviceError::TooDeep => libc::EINVAL,
        }
    }
}

/// Held while a table is checked for loops: two at once could each find none and make one
/// together.
static LOADING: Mutex<()> = Mutex::new(());

struct State {
    name: String,
    uuid: String,
    live: Option<Arc<Live>>,
    inactive: Option<Arc<Table>>,
    /// What is about to become live in place of a table that stands in for it.
    coming: Option<Arc<Table>>,
    suspended: bool,
    deferred_remove: bool,
    removed: bool,
    event_nr: u32,
}

/// See the module's text.
pub struct Device {
    id: u32,
    host: Arc<Host>,
    control: Mutex<()>,
    /// The suspend that waits for requests in flight.
    suspending: Mutex<Option<Interrupt>>,
    message: Mutex<()>,
    state: Mutex<State>,
    event: Condvar,
    opens: AtomicU32,
    /// How often another priority group of a multipath took over.
    group_switches: AtomicU64,
    /// Per queue, for the device as a whole.
    counters: Arc<[Counters]>,
}

/// What `info` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Name.
    pub name: String,
    /// Uuid, or empty.
    pub uuid: String,
    /// Its id, which stands for the minor number.
    pub id: u32,
    /// Requests wait.
    pub suspended: bool,
    /// The live table refuses writes.
    pub read_only: bool,
    /// There is a live table.
    pub live: bool,
    /// There is an inactive table.
    pub inactive: bool,
    /// Connections and devices on top.
    pub opens: u32,
    /// Event number.
    pub event_nr: u32,
    /// Segments of the live table.
    pub targets: u32,
    /// It goes when it is closed for the last time.
    pub deferred_remove: bool,
}

impl Device {
    pub(crate) fn new(id: u32, name: &str, uuid: &str, host: Arc<Host>) -> Device {
        let queues = host.queues().count();
        Device {
            id,
            host,
            control: Mutex::new(()),
            suspending: Mutex::default(),
            message: Mutex::new(()),
            state: Mutex::new(State {
                name: name.to_string(),
                uuid: uuid.to_string(),
                live: None,
                inactive: None,
                coming: None,
                suspended: false,
                deferred_remove: false,
                removed: false,
                event_nr: 0,
            }),
            event: Condvar::new(),
            opens: AtomicU32::new(0),
            group_switches: AtomicU64::new(0),
            counters: Counters::boxed(queues).into(),
        }
    }

    /// The queues that serve it.
    pub fn queues(&self) -> Queues {
        self.host.queues()
    }

    /// The number by which queues know it; reused after removal.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> String {
        lock(&self.state).name.clone()
    }

    /// What `info` shows.
    pub fn info(&self) -> Info {
        let state = lock(&self.state);
        let live = state.live.as_ref().map(|live| &live.table);
        Info {
            name: state.name.clone(),
            uuid: state.uuid.clone(),
            id: self.id,
            suspended: state.suspended,
            read_only: live.is_some_and(|t| t.read_only()),
            live: live.is_some(),
            inactive: state.inactive.is_some(),
            opens: self.opens.load(Ordering::Acquire),
            event_nr: state.event_nr,
            targets: live.map_or(0, |t| t.segments().len() as u32),
            deferred_remove: state.deferred_remove,
        }
    }

    /// The live table.
    pub fn live(&self) -> Option<Arc<Table>> {
        lock(&self.state).live.as_ref().map(|live| live.table.clone())
    }

    /// What the queues run: the live table and the leaves that earlier tables left behind.
    pub fn running(&self) -> Option<Arc<Live>> {
        lock(&self.state).live.clone()
    }

    /// The inactive table.
    pub fn inactive(&self) -> Option<Arc<Table>> {
        lock(&self.state).inactive.clone()
    }

    /// Limits of the device as something below another: its length and block size.
    pub fn limits(&self) -> Limits {
        let live = self.live();
        let mut limits = Limits::memory(live.as_ref().map_or(0, |t| t.len() * 512));
        if let Some(table) = live {
            limits.logical_block = table.logical_block();
            limits.physical_block = table.physical_block();
            limits.read_only = table.read_only();
            limits.rotational = table.rotational();
        }
        limits
    }

    /// Puts a table into the inactive slot, in place of an earlier one. Refuses one that would make
    /// the device stand on itself or the stack too deep, and one with leaves of another pool.
    pub fn load(&self, mut table: Table) -> Result<(), DeviceError> {
        let loading = lock(&LOADING);
        // First this: a device of another pool may have the number of one here.
        table.serve(self.host.queues()).map_err(DeviceError::OtherQueues)?;
        self.check_below(&table, MAX_DEPTH)?;
        let mut state = lock(&self.state);
        if state.removed {
            return Err(DeviceError::NotFound(state.name.clone()));
        }
        let old = state.inactive.replace(Arc::new(table));
        drop((state, loading));
        give_up_tables(None, old);
        Ok(())
    }

    /// Refuses a table under which this device stands, or more than `levels` levels of tables.
    fn check_below(&self, table: &Table, levels: usize) -> Result<(), DeviceError> {
        let Some(left) = levels.checked_sub(1) else { return Err(DeviceError::TooDeep) };
        for below in table.devices() {
            if below.id == self.id {
                return Err(DeviceError::Loop(self.name()));
            }
            for table in below.tables() {
                self.check_below(&table, left)?;
            }
        }
        Ok(())
    }

    /// All tables that it has or is about to have.
    fn tables(&self) -> impl Iterator<Item = Arc<Table>> + use<> {
        let state = lock(&self.state);
        let live = state.live.as_ref().map(|live| live.table.clone());
        [live, state.inactive.clone(), state.coming.clone()].into_iter().flatten()
    }

    /// Drops the inactive table.
    pub fn clear(&self) {
        let old = lock(&self.state).inactive.take();
        give_up_tables(None, old);
    }

    /// Swaps the inactive table in, if there is one, and opens the gate. For a swap a gate that is
    /// open is closed as by
    /// [`Device::suspend_noflush`]: the new table may have the path that a request finds no more.
    pub fn resume(&self) -> Result<(), DeviceError> {
        self.resume_unless(false, &Interrupt::default())
    }

    /// As [`Device::resume`], but `interrupt` can end the wait. With `force`, a swap fails requests
    /// that wait for a path or at a gate below, and waits for leaves for a bounded time only. A
    /// suspend under way ends first.
    pub fn resume_unless(&self, force: bool, interrupt: &Interrupt) -> Result<(), DeviceError> {
        self.end_suspend();
        let _control = lock(&self.control);
        let (suspended, live, inactive) = {
            let state = lock(&self.state);
            (state.suspended, state.live.clone(), state.inactive.clone())
        };
        match (inactive, live) {
            (Some(table), old) => {
                // A message that is being handled finishes on the table it began with. It may take
                // its time (its words come from a client), so the gate is open until then.
                let _message = lock(&self.message);
                self.close_gate(Reason::Swap { force }, interrupt)?;
                let live =
                    Arc::new(Live { departed: leaving::departed(old.as_deref(), &table), table });
                drop(old);
                self.open_gate(Some(live.clone()))?;
                let mut state = lock(&self.state);
                // Not one that was loaded meanwhile: that is for the next resume.
                let taken = state.inactive.take_if(|inactive| Arc::ptr_eq(inactive, &live.table));
                let old = state.live.replace(live);
                drop(state);
                drop(taken);
                give_up_tables(old, None);
                self.host.tell(self, What::Resumed { swapped: true });
                Ok(())
            }
            (None, Some(live)) if suspended => {
                self.open_gate(Some(live))?;
                self.host.tell(self, What::Resumed { swapped: false });
                Ok(())
            }
            (None, None) if suspended => Err(DeviceError::NothingToResume(self.name())),
            (None, _) => Ok(()),
        }
    }

    /// Begins a message to the segment that holds `sector`, a switch or multipath; one at a time
    /// per device.
    pub fn messenger(&self, sector: u64) -> Result<Messenger<'_>, DeviceError> {
        let lock = lock(&self.message);
        let table = self.live().ok_or(DeviceError::NoTable)?;
        let segment = table.segment_at(sector).ok_or(DeviceError::SectorOutside)?;
        let (Target::Switch { .. } | Target::Multipath { .. }) = segment.target else {
            return Err(DeviceError::NoMessages);
        };
        let start = segment.start;
        Ok(Messenger { _lock: lock, device: self, table, start })
    }

    /// Counts of the device as a whole since it was made.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.counters.iter().for_each(|counters| totals.add(counters));
        totals
    }

    pub(crate) fn counters(&self) -> Arc<[Counters]> {
        self.counters.clone()
    }

    /// Raises an event: waiters wake.
    pub fn raise_event(&self) {
        let mut state = lock(&self.state);
        state.event_nr = state.event_nr.wrapping_add(1);
        drop(state);
        self.event.notify_all();
    }

    /// Waits until the event number differs from `event_nr` or the device is removed; returns the
    /// number, or nothing when time ran out.
    pub fn wait_event(&self, event_nr: u32, at_most: Duration) -> Option<u32> {
        let until = Instant::now() + at_most;
        let mut state = lock(&self.state);
        while state.event_nr == event_nr && !state.removed {
            let left = until.checked_duration_since(Instant::now())?;
            state = self.event.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(state.event_nr)
    }

    pub(crate) fn set_name(&self, name: &str) {
        lock(&self.state).name = name.to_string();
        if self.live().is_some() {
            self.raise_event();
        }
    }

    pub(crate) fn set_uuid(&self, uuid: &str) -> Result<(), DeviceError> {
        let mut state = lock(&self.state);
        if !state.uuid.is_empty() {
            return Err(DeviceError::UuidSet(state.name.clone()));
        }
        state.uuid = uuid.to_string();
        Ok(())
    }

    /// Takes back a uuid that was given a moment ago.
    pub fn forget_uuid(&self) {
        lock(&self.state).uuid.clear();
    }

    /// Sets whether the device goes with its last close.
    pub fn set_deferred_remove(&self, deferred: bool) {
        lock(&self.state).deferred_remove = deferred;
    }

    /// Counts a user. Fails on a removed device.
    pub(crate) fn open(&self) -> bool {
        let state = lock(&self.state);
        if !state.removed {
            self.opens.fetch_add(1, Ordering::AcqRel);
        }
        !state.removed
    }

    /// Takes a user away. True if it was the last and the device is to go with it.
    pub(crate) fn close(&self) -> bool {
        let state = lock(&self.state);
        self.opens.fetch_sub(1, Ordering::AcqRel) == 1 && state.deferred_remove && !state.removed
    }

    /// Takes the device out of use: nobody has it open, and nobody can open it any more.
    pub(crate) fn retire(&self) -> Result<(), DeviceError> {
        let mut state = lock(&self.state);
        let opens = self.opens.load(Ordering::Acquire);
        if opens > 0 {
            return Err(DeviceError::Busy { name: state.name.clone(), opens });
        }
        if state.removed {
            return Err(DeviceError::NotFound(state.name.clone()));
        }
        state.removed = true;
        Ok(())
    }

    /// Takes a retired device into use again.
    pub(crate) fn take_back(&self) {
        lock(&self.state).removed = false;
    }

    /// Ends a retired device: the queues forget it, its leaves are flushed and closed.
    pub(crate) fn dismantle(&self) {
        let _control = lock(&self.control);
        let latch = Latch::new(self.host.len());
        self.host.send_all(|_| Order::Remove { device: self.id, ack: latch.ack() });
        // A pool that is stopping has no queues left that could answer; there is nothing more to
        // wait for.
        let _ = latch.wait();
        self.flush_all(&mut |_| {});
        let mut state = lock(&self.state);
        let (live, inactive) = (state.live.take(), state.inactive.take());
        drop(state);
        give_up_tables(live, inactive);
        self.event.notify_all();
    }
}

/// Drops tables that a device has no more, and waits a moment for the closing of their leaves.
fn give_up_tables(live: Option<Arc<Live>>, inactive: Option<Arc<Table>>) {
    let of_live = live.iter().flat_map(|live| live.table.leaves().iter().chain(&live.departed));
    let of_inactive = inactive.iter().flat_map(|table| table.leaves());
    let leaves: Vec<_> = of_live.chain(of_inactive).cloned().collect();
    closer::give_up((live, inactive), leaves);
}

/// One message to one segment; the device's message lock is held while it lives.
pub struct Messenger<'a> {
    _lock: MutexGuard<'a, ()>,
    device: &'a Device,
    table: Arc<Table>,
    start: u64,
}

impl Messenger<'_> {
    /// The segment.
    pub fn segment(&self) -> &Segment {
        match self.table.segment_at(self.start) {
            Some(segment) => segment,
            None => unreachable!("the table does not change"),
        }
    }

    /// The map, if the segment is a switch.
    pub fn map(&self) -> Option<&RegionMap> {
        match &self.segment().target {
            Target::Switch { map, .. } => Some(map),
            _ => None,
        }
    }

    /// The right to change the map, if the segment is a switch. Messengers come one at a time, so
    /// this is `None` for a switch only while somebody holds a writer that they have from the map
    /// itself.
    pub fn writer(&self) -> Option<MapWriter<'_, Slots>> {
        self.map()?.writer()
    }

    /// The groups, if the segment is a multipath.
    pub fn groups(&self) -> Option<&PathGroups> {
        self.table.multipath().map(|(groups, _)| groups)
    }

    /// The table that the segment is of.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }
}

/// A device that somebody uses: it counts as open until this is dropped.
pub struct OpenDevice(Arc<Device>);

impl OpenDevice {
    /// Opens it; nothing if it is being removed.
    pub fn new(device: &Arc<Device>) -> Option<OpenDevice> {
        device.open().then(|| OpenDevice(device.clone()))
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.0
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        if self.0.close() {
            self.0.host.deferred_removal(&self.0);
        }
    }
}
