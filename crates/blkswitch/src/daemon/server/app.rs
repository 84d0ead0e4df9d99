//! The state that every handler of the control server gets.
//!
//! Contract: cheap to clone; any thread.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::daemon::devices::Devices;
use crate::daemon::server::monitor::Monitor;

/// Most polls for events at a time. Each occupies a waiting thread. This is half of Tokio's thread
/// limit, so other requests always find one.
pub const EVENT_POLLS_MAX: usize = 256;

/// Most tables under construction at a time. Each occupies a thread, and if a file system or a
/// server does not answer, it may do so forever. Together with the polls this leaves threads for
/// all other requests.
pub const OPENS_MAX: usize = 128;

/// Most plans that are made at a time. Each occupies a thread, and memory for copies of a map.
pub const PLANS_MAX: usize = 4;

/// The state that every handler gets.
#[derive(Clone)]
pub struct App {
    /// The devices of the daemon.
    pub devices: Arc<Devices>,
    /// NBD URIs of the listening sockets.
    pub nbd: Arc<[String]>,
    /// Becomes `true` when the daemon is to stop; handlers that wait then give up.
    pub stopping: watch::Receiver<bool>,
    /// The source of events.
    pub monitor: Monitor,
    /// One permit for each poll for events.
    pub event_polls: Arc<Semaphore>,
    /// One permit for each table under construction.
    pub opens: Arc<Semaphore>,
    /// One permit for each plan that is being made.
    pub plans: Arc<Semaphore>,
}

impl App {
    /// Creates the state of the server.
    pub fn new(
        devices: Arc<Devices>,
        nbd: Vec<String>,
        monitor: Monitor,
        stopping: watch::Receiver<bool>,
    ) -> App {
        let event_polls = Arc::new(Semaphore::new(EVENT_POLLS_MAX));
        let opens = Arc::new(Semaphore::new(OPENS_MAX));
        let plans = Arc::new(Semaphore::new(PLANS_MAX));
        App { devices, nbd: nbd.into(), stopping, monitor, event_polls, opens, plans }
    }
}
