//! The devices of a driver: their tables, and how one takes the place of another.
//!
//! Contract: as [`super`]. A table is replaced as a pool does it: the gate closes, what is under
//! way ends on the old table, leaves that leave are flushed, and what has come meanwhile meets the
//! new one.

use std::collections::VecDeque;
use std::sync::Arc;

use blkswitch_core::multipath::Event;

use super::{Driver, DriverError};
use crate::device::leaving;
use crate::device::table::{Live, PathGroups, Table};
use crate::stats::{Counters, Totals};
use crate::sys::latch::Latch;

/// Events that are kept for an owner that does not take them: the oldest go first.
const EVENTS: usize = 4096;

/// A device of a driver.
pub(super) struct Local {
    live: Arc<Live>,
    counters: Arc<[Counters]>,
    /// A table that is to take the place of the live one, and what says that nothing is under way.
    next: Option<(Arc<Table>, Arc<Latch>)>,
}

/// A change of a multipath of a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverEvent {
    /// The device.
    pub device: u32,
    /// What.
    pub event: Event,
    /// The address of the path it is about.
    pub path: Option<String>,
}

/// Events that nobody has taken yet.
#[derive(Default)]
pub(super) struct Events(VecDeque<DriverEvent>);

impl Events {
    pub(super) fn drain(&mut self) -> impl Iterator<Item = DriverEvent> + '_ {
        self.0.drain(..)
    }

    fn push(&mut self, event: DriverEvent) {
        if self.0.len() == EVENTS {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }
}

impl Driver {
    /// A device with this table, whose paths are leaves of this driver. Returns its number.
    ///
    /// # Errors
    /// A leaf was opened for the queues of a pool or another driver, or a path leads to a device of
    /// a pool: a driver has one tier, and a flush would not reach what is below another.
    pub fn add(&mut self, mut table: Table) -> Result<u32, DriverError> {
        table.serve(self.queues).map_err(DriverError::OtherQueues)?;
        let free = self.devices.iter().position(Option::is_none);
        let at = free.unwrap_or(self.devices.len());
        let device = u32::try_from(at).map_err(|_| DriverError::TooMany)?;
        let live = Arc::new(Live { table: Arc::new(table), departed: Box::default() });
        let counters: Arc<[Counters]> = Counters::boxed(1).into();
        if free.is_none() {
            self.devices.push(None);
        }
        self.pipeline.install(device, counters.clone());
        self.pipeline.open(device, Some(live.clone()), &mut self.turn);
        self.devices[at] = Some(Local { live, counters, next: None });
        Ok(device)
    }

    /// Has a table take the place of a device's. Requests that are under way end on the old one;
    /// those that come from now on wait for the new one, and so do those that no path takes. It is
    /// live when [`Driver::is_replacing`] says no more, in a later [`Driver::wait`]; leaves that
    /// the new table does not have are flushed there, which may block.
    ///
    /// # Errors
    /// There is no such device, another table is to take its place already, or as [`Driver::add`].
    pub fn replace(&mut self, device: u32, mut table: Table) -> Result<(), DriverError> {
        let queues = self.queues;
        let local = self.local_mut(device)?;
        if local.next.is_some() {
            return Err(DriverError::Replacing(device));
        }
        table.serve(queues).map_err(DriverError::OtherQueues)?;
        let latch = Latch::new(1);
        local.next = Some((Arc::new(table), latch.clone()));
        self.pipeline.close(device, true, latch.ack(), &mut self.turn);
        self.settle_devices();
        Ok(())
    }

    /// Whether a table waits to take the place of the device's.
    pub fn is_replacing(&self, device: u32) -> bool {
        self.local(device).is_some_and(|local| local.next.is_some())
    }

    /// Takes a device away. Its leaves are flushed, which may block.
    ///
    /// # Errors
    /// There is no such device; requests to it are not answered yet; a table is to take the place
    /// of its own; or a leaf cannot be flushed. The device stays.
    pub fn remove(&mut self, device: u32) -> Result<(), DriverError> {
        if self.is_replacing(device) {
            return Err(DriverError::Replacing(device));
        }
        let local = self.local(device).ok_or(DriverError::NoDevice(device))?;
        if !self.pipeline.is_idle(device) {
            return Err(DriverError::Busy(device));
        }
        if let Some((leaf, source)) = leaving::flush_live(&local.live).into_iter().next() {
            return Err(DriverError::Flush { leaf: leaf.name().to_owned(), source });
        }
        self.pipeline.remove(device);
        self.devices[device as usize] = None;
        Ok(())
    }

    /// The table of a device: its maps, and what was counted for its paths.
    pub fn table(&self, device: u32) -> Option<&Arc<Table>> {
        self.local(device).map(|local| &local.live.table)
    }

    /// The counters of a whole device since it was added.
    pub fn totals(&self, device: u32) -> Option<Totals> {
        let mut totals = Totals::default();
        self.local(device)?.counters.iter().for_each(|counters| totals.add(counters));
        Some(totals)
    }

    /// Requests that no path of a multipath takes for now ask for one again.
    pub fn release(&mut self, device: u32) {
        self.pipeline.release(device, &mut self.turn);
    }

    /// Changes a multipath: `act` reinstates a path, fails one, or changes what happens to requests
    /// without a path. [`Driver::events`] reports the changes. Requests that wait for a path ask
    /// again if that may help. `None` if the device is not a multipath.
    pub fn change_paths<R>(
        &mut self,
        device: u32,
        act: impl FnOnce(&PathGroups, &mut dyn FnMut(Event)) -> R,
    ) -> Option<R> {
        let table = self.table(device)?.clone();
        let (groups, _) = table.multipath()?;
        let mut events = Vec::new();
        let result = act(groups, &mut |event| events.push(event));
        if events.iter().any(Event::releases_held) {
            self.release(device);
        }
        events.into_iter().for_each(|event| self.happened(device, event));
        Some(result)
    }

    /// Takes the changes of multipaths since the last call, oldest first: paths that failed in a
    /// [`Driver::wait`], and the changes of [`Driver::change_paths`]. The driver keeps the latest
    /// 4,096 that nobody has taken.
    pub fn events(&mut self) -> impl Iterator<Item = DriverEvent> + '_ {
        self.events.drain()
    }

    pub(super) fn happened(&mut self, device: u32, event: Event) {
        let path = event.path().and_then(|path| {
            let table = self.table(device)?;
            let (_, paths) = table.multipath()?;
            Some(table.leaf_of(*paths.get(path as usize)?)?.name().to_owned())
        });
        self.events.push(DriverEvent { device, event, path });
    }

    /// Tables whose devices have nothing under way any more are replaced.
    pub(super) fn settle_devices(&mut self) {
        for (local, device) in self.devices.iter_mut().zip(0u32..) {
            let Some(local) = local else { continue };
            let Some((table, _)) = local.next.take_if(|(_, latch)| latch.is_done()) else {
                continue;
            };
            let departed = leaving::departed(Some(&local.live), &table);
            local.live = Arc::new(Live { table, departed });
            self.pipeline.open(device, Some(local.live.clone()), &mut self.turn);
        }
    }

    fn local(&self, device: u32) -> Option<&Local> {
        self.devices.get(device as usize)?.as_ref()
    }

    fn local_mut(&mut self, device: u32) -> Result<&mut Local, DriverError> {
        let local = self.devices.get_mut(device as usize).and_then(Option::as_mut);
        local.ok_or(DriverError::NoDevice(device))
    }
}
