//! Attaches and detaches devices: a socket for each, and a thread that waits there for front ends.
//!
//! Contract: the methods block. Any thread except a queue's may call them. A device has at most one
//! socket, and counts as open while it has one.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::front_end::{Ended, FrontEnd};
use super::server::Order;
use super::trouble::Trouble;
use super::{DEFAULT_RINGS, MAX_RINGS, Options, Socket, VhostUserError};
use crate::device::{Device, OpenDevice};
use crate::sys::fds::wait_readable;
use crate::sys::lock::lock;
use crate::sys::log_limit::LogLimit;
use crate::sys::mailbox::Post;

/// A device's socket, and the thread that serves it.
struct Attached {
    path: String,
    rings: u16,
    is_connected: Arc<AtomicBool>,
    trouble: Arc<Trouble>,
    thread: JoinHandle<()>,
    open: OpenDevice,
}

impl Attached {
    fn socket(&self) -> Socket {
        let connected = self.is_connected.load(Acquire);
        Socket { path: self.path.clone(), queues: self.rings, connected }
    }

    fn end(self) {
        self.trouble.stop();
        // It does not panic; if it did, it has ended.
        let _ = self.thread.join();
    }
}

/// The sockets of a pool.
#[derive(Default)]
pub(crate) struct Exports {
    attached: Mutex<Vec<Attached>>,
}

impl Exports {
    /// The socket of a device; `None` if it has none.
    pub(crate) fn socket(&self, device: &Device) -> Option<Socket> {
        let attached = lock(&self.attached);
        let found = attached.iter().find(|one| one.open.device().id() == device.id());
        found.map(Attached::socket)
    }

    /// Serves front ends of a device at a socket that listens. The device counts as open until it
    /// is detached.
    pub(crate) fn attach(
        &self,
        device: &Arc<Device>,
        listener: UnixListener,
        options: &Options,
        post: Arc<dyn Post<Order>>,
    ) -> Result<Socket, VhostUserError> {
        let rings = options.queues.unwrap_or(DEFAULT_RINGS);
        if !(1..=MAX_RINGS).contains(&rings) {
            return Err(VhostUserError::Range { given: rings });
        }
        let mut all = lock(&self.attached);
        if all.iter().any(|one| one.open.device().id() == device.id()) {
            return Err(VhostUserError::Attached(device.name()));
        }
        if device.live().is_none() {
            return Err(VhostUserError::Table(device.name()));
        }
        let stopping = || VhostUserError::Stopping(device.name());
        let open = OpenDevice::new(device).ok_or_else(stopping)?;
        let system = |what| move |source| VhostUserError::System { what, source };
        listener.set_nonblocking(true).map_err(system("set up a socket"))?;
        let address = listener.local_addr().map_err(system("name a socket"))?;
        let path = address.as_pathname().map_or("unix".into(), |path| path.display().to_string());
        let trouble = Arc::new(Trouble::new().map_err(system("make an eventfd"))?);
        let is_connected = Arc::new(AtomicBool::new(false));
        let serving = Serving {
            listener,
            device: device.clone(),
            rings,
            post,
            trouble: trouble.clone(),
            is_connected: is_connected.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("vhost-{}", device.id()));
        let thread = thread.spawn(move || serving.run()).map_err(system("start a thread"))?;
        let attached = Attached { path, rings, is_connected, trouble, thread, open };
        let socket = attached.socket();
        all.push(attached);
        tracing::info!(device = %device.name(), socket = %socket.path, queues = rings,
            "attached to vhost-user");
        Ok(socket)
    }

    /// Ends the socket of a device. `Err` if a front end is connected, unless `force` is set: its
    /// guest gets no more answers.
    pub(crate) fn detach(&self, device: &Device, force: bool) -> Result<(), VhostUserError> {
        let attached = {
            let mut all = lock(&self.attached);
            let place = all.iter().position(|one| one.open.device().id() == device.id());
            let place = place.ok_or_else(|| VhostUserError::NotAttached(device.name()))?;
            if !force && all.get(place).is_some_and(|one| one.is_connected.load(Acquire)) {
                return Err(VhostUserError::InUse(device.name()));
            }
            all.swap_remove(place)
        };
        // Without the lock: the thread waits for what its front end has under way.
        attached.end();
        tracing::info!(device = %device.name(), "detached from vhost-user");
        Ok(())
    }

    /// Tells a device's front end of another size.
    pub(crate) fn changed(&self, device: &Device) {
        let attached = lock(&self.attached);
        let found = attached.iter().find(|one| one.open.device().id() == device.id());
        if let Some(found) = found {
            found.trouble.changed();
        }
    }

    /// Ends all sockets, after the queues have ended.
    pub(crate) fn stop(&self) {
        let all = std::mem::take(&mut *lock(&self.attached));
        all.iter().for_each(|one| one.trouble.stop());
        all.into_iter().for_each(Attached::end);
    }
}

/// The state of a socket's thread.
struct Serving {
    listener: UnixListener,
    device: Arc<Device>,
    rings: u16,
    post: Arc<dyn Post<Order>>,
    trouble: Arc<Trouble>,
    is_connected: Arc<AtomicBool>,
}

impl Serving {
    /// The life of the thread: serves one front end after the other.
    fn run(self) {
        static LIMIT: LogLimit = LogLimit::new();
        let device = self.device.name();
        while let Ok([is_ready, _]) = wait_readable([self.listener.as_fd(), self.trouble.fd()]) {
            if self.trouble.is_stopping() {
                return;
            }
            self.trouble.reset();
            let Some(Ok((socket, _))) = is_ready.then(|| self.listener.accept()) else { continue };
            // Of a front end that has gone.
            let _ = self.trouble.take_broken();
            self.is_connected.store(true, Release);
            tracing::info!(%device, "a vhost-user front end has connected");
            let front_end = FrontEnd::new(
                socket,
                &self.device,
                self.rings,
                self.post.clone(),
                self.trouble.clone(),
            );
            match front_end.serve() {
                Ended::Closed => tracing::info!(%device, "the vhost-user front end has gone"),
                Ended::Stopping => return,
                Ended::Refused(why) => {
                    if let Some(suppressed) = LIMIT.pass() {
                        tracing::warn!(%device, why, suppressed, "a vhost-user front end is refused");
                    }
                }
            }
            self.is_connected.store(false, Release);
        }
    }
}
