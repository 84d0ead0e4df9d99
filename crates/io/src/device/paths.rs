//! Multipath devices on the control side: changes by messages and by the checker, and reports of
//! events.
//!
//! Contract: as [`super`]. Changes are made under the message lock, which [`Messenger`] holds.

use std::sync::atomic::Ordering;

use blkswitch_core::multipath::Event;
use blkswitch_core::multipath::message::{MessageError, MultipathCommand as Words};

use super::host::Order;
use super::{Device, Messenger, lock};
use crate::device::event::{DeviceEvent, Who};
use crate::device::failing::Key;
use crate::device::table::PathGroups;

impl Device {
    /// Lets the queues ask for a path again for the pieces that they have queued.
    pub fn release_held(&self) {
        self.host.send_all(|_| Order::Release { device: self.id });
    }

    /// Counts and logs a change on this multipath device, and reports it to the observer.
    pub(crate) fn happened(&self, event: Event) {
        let path = event.path().and_then(|path| {
            let table = self.live()?;
            Some(table.segments().first()?.words.get(path as usize)?.to_string())
        });
        if let Event::GroupSwitched { .. } = event {
            self.group_switches.fetch_add(1, Ordering::Relaxed);
        }
        if event.is_counted() {
            self.raise_event();
        }
        let name = self.name();
        let line = event.log_line(&name, path.as_deref().unwrap_or_default());
        match event {
            Event::PathFailed { .. } | Event::QueueingOff => tracing::warn!("{line}"),
            _ => tracing::info!("{line}"),
        }
        self.host.tell(self, DeviceEvent::Multipath { event, path });
    }

    /// Logs errors of a path since the last report, and reports them to the observer. Only for
    /// devices that are not multipath.
    pub(crate) fn path_failed(&self, key: Key, count: u64) {
        let Key { path: number, errno, address, .. } = key;
        let error = std::io::Error::from_raw_os_error(errno);
        let device = self.name();
        tracing::warn!(device, path = %address, errno, count, "requests to a path failed: {error}");
        let path = address.to_string();
        self.host.tell(self, DeviceEvent::PathErrors { number, path, errno, count });
    }

    /// Logs that a path of this multipath device flaps, or no longer does, and reports it to the
    /// observer.
    pub fn path_flaps(&self, number: u32, is_marginal: bool) {
        let path = self.live().and_then(|table| {
            Some(table.segments().first()?.words.get(number as usize)?.to_string())
        });
        let (device, path) = (self.name(), path.unwrap_or_default());
        if is_marginal {
            tracing::warn!(device, path, "a path flaps: it is used while no other is up");
        } else {
            tracing::info!(device, path, "a path no longer flaps");
        }
        self.host.tell(self, DeviceEvent::Flapping { path, is_marginal });
    }

    /// Number of times that another priority group took over since the device was created.
    pub fn group_switches(&self) -> u64 {
        self.group_switches.load(Ordering::Relaxed)
    }

    /// Reports that a message has changed the map of the switch segment at `sector`, with this
    /// number of arguments. The caller has the [`Messenger`].
    pub fn remapped(&self, sector: u64, arguments: u64, who: Who) {
        let generation = self.generation();
        self.host.tell(self, DeviceEvent::Remapped { sector, arguments, generation, who });
    }
}

impl Messenger<'_> {
    /// Changes the multipath, and reports the events. Releases queued requests if an event allows
    /// it. `None` if the segment is not a multipath.
    pub fn change<R>(
        &self,
        act: impl FnOnce(&PathGroups, &mut dyn FnMut(Event)) -> R,
    ) -> Option<R> {
        let groups = self.groups()?;
        let mut events = Vec::new();
        let result = act(groups, &mut |event| events.push(event));
        if events.iter().any(Event::releases_held) {
            self.device.release_held();
        }
        events.into_iter().for_each(|event| self.device.happened(event));
        Some(result)
    }

    /// Applies a message to the multipath, unless the device is suspended. `None` if the segment is
    /// not a multipath. `is_meant` says for a path's number whether the path leads to the message's
    /// device.
    pub fn apply(
        &self,
        command: &Words<'_>,
        is_meant: impl FnMut(u32) -> bool,
    ) -> Option<Result<(), MessageError>> {
        if self.is_suspended() {
            return Some(Err(MessageError::Suspended));
        }
        self.change(|groups, mut on| groups.apply(command, is_meant, &mut on))
    }

    /// Whether the device of this message is suspended.
    pub fn is_suspended(&self) -> bool {
        lock(&self.device.state).suspended
    }
}
