//! The control side of a device: its names, its live and inactive table, its gate and its message
//! lock.
//!
//! Contract: any thread may call any method, which may block (a suspend waits for requests in
//! flight). Queues know a device by its id and hold their own copy of the live table. Control
//! changes it with orders to all queues, and swaps tables only while every queue has the gate
//! closed and nothing in flight. So no request sees two tables, and a request takes no lock and no
//! atomic operation to find the table.
//!
//! Locks, in order: `control` (one suspend, resume or swap at a time), `message` (one message at a
//! time), `state` (short, never held during a wait).

pub mod drain;
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

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use blkswitch_core::switch::MapWriter;

use crate::device::event::DeviceEvent;
use crate::device::table::{Live, MAX_DEPTH, PathGroups, RegionMap, Segment, Table, Target};
use crate::engine::Properties;
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

/// Most devices. An id stands for the minor number, which has 20 bits in the kernel.
pub const MAX_DEVICES: usize = 1 << 20;

/// Why an operation on a device failed. The texts are those of the kernel's log where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The device does not exist.
    #[error("Device {0} not found")]
    NotFound(String),
    /// Another device has the name, uuid or number.
    #[error("'{0}' is the name, uuid or number of another device")]
    Exists(String),
    /// The number is not below [`MAX_DEVICES`].
    #[error("the number {0} is too large: it must be below {max}", max = MAX_DEVICES)]
    Number(u32),
    /// All device numbers are in use.
    #[error("there are {max} devices: no more is possible", max = MAX_DEVICES)]
    TooMany,
    /// The device is open, so it cannot be removed.
    #[error("device '{name}' is in use: open count {opens} (connections and devices on top of it)")]
    Busy {
        /// The name of the device.
        name: String,
        /// Number of connections and devices that have it open.
        opens: u32,
    },
    /// The device has no live table.
    #[error("The device has no table.")]
    NoTable,
    /// The sector is beyond the end of the device.
    #[error("Target message sector outside device.")]
    SectorOutside,
    /// The target at the sector takes no messages.
    #[error("Target type does not support messages")]
    NoMessages,
    /// A suspended device cannot be resumed, because it has no table.
    #[error("device '{0}' is suspended and has no table to resume with: load one first")]
    NothingToResume(String),
    /// The device has a uuid, which can be set only once.
    #[error("device '{0}' has a uuid already; a uuid can be set only once")]
    UuidSet(String),
    /// The table would put the device below itself.
    #[error("device '{0}' would stand on itself")]
    Loop(String),
    /// The devices below the table are nested too deeply.
    #[error("devices stand on one another more than {MAX_DEPTH} deep")]
    TooDeep,
    /// A leaf of the table, or a device below it, belongs to another pool or driver.
    #[error(
        "'{0}' belongs to another pool or driver: open a leaf with LeafOptions::new(pool.queues()) of \
         the pool that the device is of, and stack only devices of one pool"
    )]
    OtherQueues(String),
    /// The caller has given up the wait, or the device was resumed meanwhile.
    #[error("the wait for requests in flight on '{0}' was given up: the device runs on as before")]
    GivenUp(String),
    /// The time to wait for requests that the old map had routed is over.
    #[error(
        "requests that the old map of '{0}' had routed are still under way; the map is changed, and \
         the device runs on"
    )]
    NotDrained(String),
    /// A forced swap failed, because leaves do not give requests back.
    #[error("requests of '{0}' are with leaves that do not answer: the device runs on as before")]
    InFlight(String),
    /// The preparation of a swap has failed ([`Device::resume_prepared`]).
    #[error("the swap of '{0}' was not prepared: the device runs on as before")]
    Unprepared(String),
    /// The pool is stopping, or a queue has failed.
    #[error("the pool is stopping, or one of its queues has failed")]
    Stopping,
}

impl DeviceError {
    /// The errno that the kernel's device mapper would return.
    pub fn errno(&self) -> i32 {
        match self {
            DeviceError::NotFound(_) => libc::ENXIO,
            DeviceError::Exists(_) | DeviceError::Busy { .. } => libc::EBUSY,
            DeviceError::GivenUp(_) => libc::EINTR,
            DeviceError::NotDrained(_) => libc::ETIMEDOUT,
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
            | DeviceError::Unprepared(_)
            | DeviceError::TooDeep => libc::EINVAL,
        }
    }
}

/// Held while a table is checked for loops. Two checks at once could each find none although their
/// tables form one together.
static LOADING: Mutex<()> = Mutex::new(());

struct DeviceState {
    name: String,
    uuid: String,
    live: Option<Arc<Live>>,
    inactive: Option<Arc<Table>>,
    /// A table that is about to replace a stand-in as the live one.
    coming: Option<Arc<Table>>,
    suspended: bool,
    deferred_remove: bool,
    removed: bool,
    event_nr: u32,
}

/// A device, on the control side.
pub struct Device {
    id: u32,
    host: Arc<Host>,
    control: Mutex<()>,
    /// The suspend that waits for requests in flight.
    suspending: Mutex<Option<Interrupt>>,
    message: Mutex<()>,
    state: Mutex<DeviceState>,
    event: Condvar,
    opens: AtomicU32,
    /// Changed under `message` only, or before the device has a table with a switch.
    generation: AtomicU64,
    /// Number of times that another priority group of a multipath took over.
    group_switches: AtomicU64,
    /// Counters of the whole device, one for each queue.
    counters: Arc<[Counters]>,
}

/// The state that `info` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The name as libdm stores it, with escapes.
    pub name: String,
    /// The uuid; empty if there is none.
    pub uuid: String,
    /// The device's id, which stands for the minor number.
    pub id: u32,
    /// Whether the device is suspended, so that requests wait.
    pub suspended: bool,
    /// Whether the live table refuses writes.
    pub read_only: bool,
    /// Whether there is a live table.
    pub live: bool,
    /// Whether there is an inactive table.
    pub inactive: bool,
    /// Number of connections and devices that have it open.
    pub opens: u32,
    /// The event number, which `wait` compares.
    pub event_nr: u32,
    /// Number of segments of the live table.
    pub targets: u32,
    /// Whether the device is removed at its last close.
    pub deferred_remove: bool,
    /// The number of [`Device::generation`].
    pub generation: u64,
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
            state: Mutex::new(DeviceState {
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
            generation: AtomicU64::new(0),
            group_switches: AtomicU64::new(0),
            counters: Counters::boxed(queues).into(),
        }
    }

    /// The queues that serve the device.
    pub fn queues(&self) -> Queues {
        self.host.queues()
    }

    /// The number by which queues know the device. It is reused after removal.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The device's current name.
    pub fn name(&self) -> String {
        lock(&self.state).name.clone()
    }

    /// The state that `info` shows.
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
            generation: self.generation(),
        }
    }

    /// The live table; `None` before the first resume.
    pub fn live(&self) -> Option<Arc<Table>> {
        lock(&self.state).live.as_ref().map(|live| live.table.clone())
    }

    /// The live table, with the leaves that earlier tables left behind.
    pub fn running(&self) -> Option<Arc<Live>> {
        lock(&self.state).live.clone()
    }

    /// The inactive table; `None` if none is loaded.
    pub fn inactive(&self) -> Option<Arc<Table>> {
        lock(&self.state).inactive.clone()
    }

    /// The properties of the device for a table above it: its length and block sizes.
    pub fn properties(&self) -> Properties {
        let live = self.live();
        let mut properties = Properties::memory(live.as_ref().map_or(0, |t| t.len() * 512));
        if let Some(table) = live {
            properties.logical_block = table.logical_block();
            properties.physical_block = table.physical_block();
            properties.read_only = table.read_only();
            properties.rotational = table.rotational();
        }
        properties
    }

    /// Loads a table into the inactive slot, and replaces an earlier one. `Err` if the device would
    /// be below itself, if the devices are nested too deeply, or if the table has leaves of another
    /// pool.
    pub fn load(&self, mut table: Table) -> Result<(), DeviceError> {
        let loading = lock(&LOADING);
        // Check this first, because a device of another pool may have the number of a device here.
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

    /// `Err` if this device is below `table`, or if `table` has more than `levels` levels.
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

    /// The live and inactive table, and a table that is about to become live.
    fn tables(&self) -> impl Iterator<Item = Arc<Table>> + use<> {
        let state = lock(&self.state);
        let live = state.live.as_ref().map(|live| live.table.clone());
        [live, state.inactive.clone(), state.coming.clone()].into_iter().flatten()
    }

    /// Drops the inactive table, if there is one.
    pub fn clear(&self) {
        let old = lock(&self.state).inactive.take();
        give_up_tables(None, old);
    }

    /// Swaps the inactive table in, if there is one, and opens the gate. For a swap, an open gate
    /// is closed as by [`Device::suspend_noflush`], because the new table may have a path for
    /// requests that find none.
    pub fn resume(&self) -> Result<(), DeviceError> {
        self.resume_unless(false, &Interrupt::default())
    }

    /// As [`Device::resume`], but `interrupt` can end the wait. With `force`, a swap fails requests
    /// that wait for a path or at a gate below, and waits for leaves only for a limited time. A
    /// suspend that waits ends first.
    pub fn resume_unless(&self, force: bool, interrupt: &Interrupt) -> Result<(), DeviceError> {
        self.resume_prepared(force, interrupt, |_| Ok(()))
    }

    /// As [`Device::resume_unless`]. For a swap, it calls `prepare` with the new table before the
    /// gate closes: requests go on, and messages wait until the swap is over. If `prepare` fails,
    /// nothing happens.
    pub fn resume_prepared(
        &self,
        force: bool,
        interrupt: &Interrupt,
        prepare: impl FnOnce(&Arc<Table>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.end_suspend();
        let _control = lock(&self.control);
        let (suspended, live, inactive) = {
            let state = lock(&self.state);
            (state.suspended, state.live.clone(), state.inactive.clone())
        };
        match (inactive, live) {
            (Some(table), old) => {
                // Wait until a message in progress is finished on the table it began with. A client
                // sends its words, so it may take long; the gate stays open until then.
                let _message = lock(&self.message);
                prepare(&table)?;
                self.close_gate(Reason::Swap { force }, interrupt)?;
                if moves_regions(old.as_deref(), &table) {
                    self.raise_generation();
                }
                let live =
                    Arc::new(Live { departed: leaving::departed(old.as_deref(), &table), table });
                drop(old);
                self.open_gate(Some(live.clone()))?;
                let mut state = lock(&self.state);
                // Leave a table that was loaded meanwhile for the next resume.
                let taken = state.inactive.take_if(|inactive| Arc::ptr_eq(inactive, &live.table));
                let old = state.live.replace(live);
                drop(state);
                drop(taken);
                give_up_tables(old, None);
                self.host.tell(self, DeviceEvent::Resumed { swapped: true });
                Ok(())
            }
            (None, Some(live)) if suspended => {
                self.open_gate(Some(live))?;
                self.host.tell(self, DeviceEvent::Resumed { swapped: false });
                Ok(())
            }
            (None, None) if suspended => Err(DeviceError::NothingToResume(self.name())),
            (None, _) => Ok(()),
        }
    }

    /// Begins a message to the switch or multipath segment at `sector`. Blocks while another
    /// message to the device is in progress.
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

    /// The generation of the device's region maps: a number for all its switch segments. It rises
    /// before a message or a swap of the table changes where regions go ([`Messenger::writer`],
    /// [`Device::resume`]). So two equal numbers mean equal maps, if no message is under way.
    pub fn generation(&self) -> u64 {
        // Pairs with the fence of `raise_generation`: who has seen a store of a message sees the
        // number of this message, too.
        fence(Ordering::Acquire);
        self.generation.load(Ordering::Relaxed)
    }

    /// The generation, if no message is under way. If [`Device::generation`] returns it again
    /// later, the maps did not change in between.
    pub fn generation_at_rest(&self) -> Option<u64> {
        let _message = match self.message.try_lock() {
            Ok(lock) => lock,
            Err(TryLockError::Poisoned(lock)) => lock.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(self.generation())
    }

    /// The generation that a swap to the inactive table leads to.
    pub fn generation_after_swap(&self) -> u64 {
        let state = lock(&self.state);
        let moves =
            state.inactive.as_ref().is_some_and(|t| moves_regions(state.live.as_deref(), t));
        self.generation() + u64::from(moves)
    }

    /// Sets the generation of a device that an earlier process has had, if that is higher.
    pub fn restore_generation(&self, generation: u64) {
        self.generation.fetch_max(generation, Ordering::Relaxed);
    }

    /// The caller holds the message lock.
    fn raise_generation(&self) -> u64 {
        let raised = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        fence(Ordering::Release);
        raised
    }

    /// Counters of the whole device since it was created.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.counters.iter().for_each(|counters| totals.add(counters));
        totals
    }

    pub(crate) fn counters(&self) -> Arc<[Counters]> {
        self.counters.clone()
    }

    /// Raises the event number and wakes all waiters.
    pub fn raise_event(&self) {
        let mut state = lock(&self.state);
        state.event_nr = state.event_nr.wrapping_add(1);
        drop(state);
        self.event.notify_all();
    }

    /// Waits until the event number differs from `event_nr`, or the device is removed. Returns the
    /// number; `None` after `at_most`.
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

    /// Removes a uuid that was just set.
    pub fn forget_uuid(&self) {
        lock(&self.state).uuid.clear();
    }

    /// Sets whether the device is removed at its last close.
    pub fn set_deferred_remove(&self, deferred: bool) {
        lock(&self.state).deferred_remove = deferred;
    }

    /// Counts a user. `false` if the device is being removed.
    pub(crate) fn open(&self) -> bool {
        let state = lock(&self.state);
        if !state.removed {
            self.opens.fetch_add(1, Ordering::AcqRel);
        }
        !state.removed
    }

    /// Uncounts a user. Returns whether it was the last and the device must be removed now.
    pub(crate) fn close(&self) -> bool {
        let state = lock(&self.state);
        self.opens.fetch_sub(1, Ordering::AcqRel) == 1 && state.deferred_remove && !state.removed
    }

    /// Marks the device as removed, so that it cannot be opened any more. `Err` if it is open or
    /// removed.
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

    /// Undoes [`Device::retire`], so that the device can be opened again.
    pub(crate) fn take_back(&self) {
        lock(&self.state).removed = false;
    }

    /// Ends a retired device: the queues forget it, and its leaves are flushed and closed.
    pub(crate) fn dismantle(&self) {
        let _control = lock(&self.control);
        let latch = Latch::new(self.host.len());
        self.host.send_all(|_| Order::Remove { device: self.id, ack: latch.ack() });
        // The queues of a stopping pool do not answer, so an error does not matter.
        let _ = latch.wait();
        self.flush_all(&mut |_| {});
        let mut state = lock(&self.state);
        let (live, inactive) = (state.live.take(), state.inactive.take());
        drop(state);
        give_up_tables(live, inactive);
        self.event.notify_all();
    }
}

/// Whether a swap may change where regions go. A device without a table has no regions yet. Maps
/// with the same words are the same map: who shares them sees to it that the paths are the same.
fn moves_regions(old: Option<&Live>, new: &Table) -> bool {
    let Some(old) = old else { return false };
    let (mut before, mut after) = (old.table.maps(), new.maps());
    loop {
        match (before.next(), after.next()) {
            (None, None) => return false,
            (Some((start, map)), Some((same, kept)))
                if start == same && map.storage().is_shared_with(kept.storage()) => {}
            _ => return true,
        }
    }
}

/// Drops tables that a device no longer has. Waits a moment until their leaves are closed.
fn give_up_tables(live: Option<Arc<Live>>, inactive: Option<Arc<Table>>) {
    let of_live = live.iter().flat_map(|live| live.table.leaves().iter().chain(&live.departed));
    let of_inactive = inactive.iter().flat_map(|table| table.leaves());
    let leaves: Vec<_> = of_live.chain(of_inactive).cloned().collect();
    closer::give_up((live, inactive), leaves);
}

/// One message to one segment. Holds the device's message lock.
pub struct Messenger<'a> {
    _lock: MutexGuard<'a, ()>,
    device: &'a Device,
    table: Arc<Table>,
    start: u64,
}

impl Messenger<'_> {
    /// The segment to which the message goes.
    pub fn segment(&self) -> &Segment {
        match self.table.segment_at(self.start) {
            Some(segment) => segment,
            None => unreachable!("the table does not change"),
        }
    }

    /// The region map; `None` if the segment is not a switch.
    pub fn map(&self) -> Option<&RegionMap> {
        match &self.segment().target {
            Target::Switch { map, .. } => Some(map),
            _ => None,
        }
    }

    /// The right to change the map; `None` if the segment is not a switch. There is one messenger
    /// at a time, so a switch returns `None` only while other code holds a writer from the map
    /// itself. Each writer raises [`Device::generation`] before its first store.
    pub fn writer(&self) -> Option<MapWriter<'_, Slots>> {
        let writer = self.map()?.writer()?;
        self.device.raise_generation();
        Some(writer)
    }

    /// The generation that the next call of [`Messenger::writer`] leads to. While the messenger
    /// lives, nobody else changes the generation.
    pub fn next_generation(&self) -> u64 {
        self.device.generation() + 1
    }

    /// The priority groups; `None` if the segment is not a multipath.
    pub fn groups(&self) -> Option<&PathGroups> {
        self.table.multipath().map(|(groups, _)| groups)
    }

    /// The table of the segment.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }
}

/// A user of a device. The device counts as open until this is dropped.
pub struct OpenDevice(Arc<Device>);

impl OpenDevice {
    /// Opens the device; `None` if it is being removed.
    pub fn new(device: &Arc<Device>) -> Option<OpenDevice> {
        device.open().then(|| OpenDevice(device.clone()))
    }

    /// The device that is open.
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
