//! What the devices of a pool share: the queues that serve them, who is told of what happens, and
//! who removes a device whose last user has gone.

use std::sync::{Arc, OnceLock, mpsc};

use super::Device;
use super::event::{Observer, What};
use super::table::Live;
use crate::queues::Queues;
use crate::stats::Counters;
use crate::sys::latch::Ack;
use crate::sys::mailbox::Post;

/// What the control side of a device asks of the pipeline of each queue.
pub(crate) enum Order {
    /// The device exists.
    Install {
        /// Its id.
        device: u32,
        /// Where to count, a line per queue.
        counters: Arc<[Counters]>,
        /// Answered at once.
        ack: Ack,
    },
    /// The device is gone; nobody uses it.
    Remove {
        /// Its id.
        device: u32,
        /// Answered at once.
        ack: Ack,
    },
    /// Let no request in.
    Close {
        /// Its id.
        device: u32,
        /// Hold what finds no path of a multipath device.
        noflush: bool,
        /// Answered when none is in flight.
        ack: Ack,
    },
    /// Let what waits for a path of a multipath device ask again.
    Release {
        /// Its id.
        device: u32,
    },
    /// Fail what the requests of the device have waiting for a path or at a gate below.
    FailHeld {
        /// Its id.
        device: u32,
    },
    /// Let requests in.
    Open {
        /// Its id.
        device: u32,
        /// What they meet.
        live: Option<Arc<Live>>,
        /// Answered at once.
        ack: Ack,
    },
    /// Meet this once the gate opens: it is closed.
    Exchange {
        /// Its id.
        device: u32,
        /// What requests will meet.
        live: Arc<Live>,
        /// Answered at once.
        ack: Ack,
    },
}

/// What the thread that removes devices is sent.
pub(crate) enum Reap {
    /// The last user of this device has gone.
    Device(Arc<Device>),
    /// The pool stops.
    Stop,
}

/// See the module's text.
pub(crate) struct Host {
    queues: Queues,
    /// Nothing where nobody reads mail ([`super::Registry::detached`]).
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

    /// The queues that serve the devices; also where nobody reads mail.
    pub(crate) fn queues(&self) -> Queues {
        self.queues
    }

    /// How many queues answer an order.
    pub(crate) fn len(&self) -> usize {
        self.post.as_ref().map_or(0, |post| post.queues())
    }

    /// Sends an order to every queue.
    pub(crate) fn send_all(&self, order: impl FnMut(usize) -> Order) {
        if let Some(post) = &self.post {
            post.send_all(order);
        }
    }

    /// Has everything that happens told to `observer`. `false` if somebody else watches already.
    pub(crate) fn observe(&self, observer: Observer) -> bool {
        self.observer.set(observer).is_ok()
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
