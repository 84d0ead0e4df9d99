//! The stream of events about devices, `GET /v1/monitor`.
//!
//! Contract: sending an event never blocks, and costs almost nothing while nobody watches. A
//! watcher that reads too slowly misses the oldest events, and is told how many.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use blkswitch_core::multipath::Event;
use blkswitch_io::Device;
use blkswitch_io::event::{DeviceEvent, Observer};
use tokio::sync::{Notify, broadcast};

use crate::protocol::MonitorEvent;

/// Number of events that are kept for a slow watcher.
const KEPT: usize = 1024;
/// Event that tells a watcher that it has missed others.
const LOST: &str = "EVENTS_LOST";
/// Event of a changed region map.
const REMAPPED: &str = "REMAPPED";
/// The last event, when the daemon ends.
const ENDS: &str = "DAEMON_ENDS";

/// The source of events.
#[derive(Clone)]
pub struct Monitor {
    events: broadcast::Sender<MonitorEvent>,
    /// Notified when something happens on a multipath device.
    pub paths_changed: Arc<Notify>,
}

impl Default for Monitor {
    fn default() -> Self {
        Monitor { events: broadcast::channel(KEPT).0, paths_changed: Arc::default() }
    }
}

impl Monitor {
    /// Starts to watch. The receiver gets all events from now on.
    pub fn watch(&self) -> broadcast::Receiver<MonitorEvent> {
        self.events.subscribe()
    }

    /// The callback through which the pool reports events.
    pub fn observer(&self) -> Observer {
        let monitor = self.clone();
        Box::new(move |device, change| {
            if matches!(change, DeviceEvent::Multipath { .. }) {
                monitor.paths_changed.notify_one();
            }
            if monitor.events.receiver_count() > 0 {
                // Sending fails if the last watcher has just left.
                let _ = monitor.events.send(event(device, change));
            }
        })
    }
}

impl Monitor {
    /// Reports that a path of a device cannot be reached or is not used, with the reason; or, with
    /// `None`, that it can be used again.
    pub fn path_trouble(&self, device: &Device, path: String, reason: Option<String>) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let name = if reason.is_some() { "PATH_UNREACHABLE" } else { "PATH_REACHABLE" };
        let told = MonitorEvent { path: Some(path), reason, ..about(device) };
        // Sending fails if the last watcher has just left.
        let _ = self.events.send(named(name, told));
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn about(device: &Device) -> MonitorEvent {
    let info = device.info();
    MonitorEvent {
        time_ms: now_ms(),
        device: info.name,
        minor: info.id,
        event_nr: info.event_nr,
        ..MonitorEvent::default()
    }
}

fn event(device: &Device, change: DeviceEvent) -> MonitorEvent {
    let told = about(device);
    match change {
        DeviceEvent::Remapped { sector, arguments, generation, who } => MonitorEvent {
            event: REMAPPED.to_owned(),
            sector: Some(sector),
            arguments: Some(arguments),
            generation: Some(generation),
            uid: who.uid,
            pid: who.pid,
            source: Some(who.source).filter(|source| !source.is_empty()),
            ..told
        },
        DeviceEvent::Multipath { event, path } => {
            let (group, paths_up) = match event {
                Event::PathFailed { left, .. } | Event::PathReinstated { left, .. } => {
                    (None, Some(left))
                }
                Event::GroupSwitched { group }
                | Event::GroupChosen { group }
                | Event::GroupDisabled { group }
                | Event::GroupEnabled { group } => (Some(group), None),
                Event::QueueingOn | Event::QueueingOff => (None, None),
            };
            MonitorEvent { event: event.name().to_owned(), path, group, paths_up, ..told }
        }
        DeviceEvent::PathErrors { path, errno, count, .. } => MonitorEvent {
            event: "PATH_ERRORS".to_owned(),
            path: Some(path),
            errno: Some(errno),
            count: Some(count),
            ..told
        },
        DeviceEvent::Flapping { path, is_marginal } => {
            let name = if is_marginal { "PATH_MARGINAL" } else { "PATH_QUIET" };
            MonitorEvent { path: Some(path), ..named(name, told) }
        }
        DeviceEvent::Renamed { from } => {
            MonitorEvent { event: "RENAMED".to_owned(), from: Some(from), ..told }
        }
        DeviceEvent::Created => named("CREATED", told),
        DeviceEvent::Removed => named("REMOVED", told),
        DeviceEvent::Suspended => named("SUSPENDED", told),
        DeviceEvent::Resumed { swapped: false } => named("RESUMED", told),
        DeviceEvent::Resumed { swapped: true } => {
            // A device without a switch has no number.
            let generation = Some(device.generation()).filter(|number| *number > 0);
            named("TABLE_SWAPPED", MonitorEvent { generation, ..told })
        }
    }
}

fn named(name: &str, told: MonitorEvent) -> MonitorEvent {
    MonitorEvent { event: name.to_owned(), ..told }
}

/// The last event that every watcher gets when the daemon ends in good order.
pub fn ends() -> MonitorEvent {
    MonitorEvent { time_ms: now_ms(), event: ENDS.to_owned(), ..MonitorEvent::default() }
}

/// The event for a watcher that has missed `count` events.
pub fn lost(count: u64) -> MonitorEvent {
    MonitorEvent {
        time_ms: now_ms(),
        event: LOST.to_owned(),
        lost: Some(count),
        ..MonitorEvent::default()
    }
}
