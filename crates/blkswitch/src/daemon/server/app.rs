//! What every handler of the control server is given.
//!
//! Contract: cheap to clone; any thread.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::daemon::devices::Devices;
use crate::daemon::server::monitor::Monitor;

/// Polls for events at a time: each holds a thread that waits. Half of the threads that tokio
/// starts at most, so that other requests always find one.
pub const EVENT_POLLS_MAX: usize = 256;

/// Tables under construction at a time: each holds a thread, and one that waits for a file system
/// or a server may hold it for ever. With the polls, threads are left for all other requests.
pub const OPENS_MAX: usize = 128;

/// What every handler is given.
#[derive(Clone)]
pub struct App {
    /// The devices.
    pub devices: Arc<Devices>,
    /// NBD URIs of the listening sockets.
    pub nbd: Arc<[String]>,
    /// True once the daemon is to stop: whoever waits for something else gives up.
    pub stopping: watch::Receiver<bool>,
    /// What happens.
    pub monitor: Monitor,
    /// A place for each poll for events.
    pub event_polls: Arc<Semaphore>,
    /// A place for each table under construction.
    pub opens: Arc<Semaphore>,
}

impl App {
    /// The server's state.
    pub fn new(
        devices: Arc<Devices>,
        nbd: Vec<String>,
        monitor: Monitor,
        stopping: watch::Receiver<bool>,
    ) -> App {
        let event_polls = Arc::new(Semaphore::new(EVENT_POLLS_MAX));
        let opens = Arc::new(Semaphore::new(OPENS_MAX));
        App { devices, nbd: nbd.into(), stopping, monitor, event_polls, opens }
    }
}
