//! The common state of a pool's devices: their queues, the observer, and the thread that removes
//! devices after their last close.

use std::sync::{Arc, OnceLock, mpsc};

use super::Device;
use super::drain::Changed;
use super::event::{DeviceEvent, Observer};
use super::table::Live;
use crate::queues::Queues;
use crate::stats::Counters;
use crate::sys::latch::Ack;
use crate::sys::mailbox::Post;

/// An order of a device's control side to the pipeline of each queue. `device` is the device's id,
/// and the queue acknowledges the order at once, unless its field says otherwise.
pub(crate) enum Order {
    /// The device was created.
    Install {
        device: u32,
        /// The counters of the device, one for each queue.
        counters: Arc<[Counters]>,
        ack: Ack,
    },
    /// The device was removed, and has no users.
    Remove {
        /// The id of the device.
        device: u32,
        /// Acknowledged when the queue has forgotten it.
        ack: Ack,
    },
    /// Close the gate: let no new request in.
    Close {
        device: u32,
        /// Queue pieces that find no path of a multipath device.
        noflush: bool,
        /// Acknowledged when no request is in flight.
        ack: Ack,
    },
    /// Let queued pieces of a multipath device ask for a path again.
    Release {
        /// The id of the device.
        device: u32,
    },
    /// Fail pieces of the device's requests that wait for a path, or at a gate below.
    FailHeld {
        /// The id of the device.
        device: u32,
    },
    /// Open the gate: let requests in.
    Open {
        device: u32,
        /// The live table from now on; `None` if the device has none.
        live: Option<Arc<Live>>,
        ack: Ack,
    },
    /// Tell when nothing is under way that was routed before a message changed the map.
    Drain {
        device: u32,
        /// The drain, for [`Order::EndDrain`].
        number: u64,
        changed: Arc<Changed>,
        /// Acknowledged when no such request is under way.
        ack: Ack,
    },
    /// Forget a drain: nobody waits any more.
    EndDrain {
        /// The number of the drain.
        number: u64,
    },
    /// Use another live table from now on. The gate is closed and stays closed.
    Exchange {
        device: u32,
        /// The live table from now on.
        live: Arc<Live>,
        ack: Ack,
    },
}

/// A message to the thread that removes devices.
pub(crate) enum Reap {
    /// Remove this device, because its last user has gone.
    Device(Arc<Device>),
    /// End, because the pool stops.
    Stop,
}

/// The common state of a pool's devices.
pub(crate) struct Host {
    queues: Queues,
    /// `None` if no queue reads orders ([`super::Registry::detached`]).
    post: Option<Arc<dyn Post<Order>>>,
    reaper: mpsc::Sender<Reap>,
    observer: OnceLock<Observer>,
}

impl Host {
    /// For devices that these queues serve.
    pub(crate) fn new(
        queues: Queues,
        post: Option<Arc<dyn Post<Order>>>,
        reaper: mpsc::Sender<Reap>,
    ) -> Host {
        Host { queues, post, reaper, observer: OnceLock::new() }
    }

    /// The queues that serve the devices, also if none reads orders.
    pub(crate) fn queues(&self) -> Queues {
        self.queues
    }

    /// Number of queues that acknowledge an order.
    pub(crate) fn len(&self) -> usize {
        self.post.as_ref().map_or(0, |post| post.queues())
    }

    /// Sends an order to every queue.
    pub(crate) fn send_all(&self, order: impl FnMut(usize) -> Order) {
        if let Some(post) = &self.post {
            post.send_all(order);
        }
    }

    /// Sets the observer. `false` if there is one already.
    pub(crate) fn observe(&self, observer: Observer) -> bool {
        self.observer.set(observer).is_ok()
    }

    /// Reports an event to the observer.
    pub(crate) fn tell(&self, device: &Device, event: DeviceEvent) {
        if let Some(observer) = self.observer.get() {
            observer(device, event);
        }
    }

    /// Lets the reaper thread remove a device after its last close. Never blocks.
    pub(crate) fn deferred_removal(&self, device: &Arc<Device>) {
        let _ = self.reaper.send(Reap::Device(device.clone()));
    }
}
