//! The control server: its routes and its state.
//!
//! Handlers live in [`routes`], a file per group. Each reads its request with the extractors of
//! [`reply`], does its work on a thread that may block, and answers a type of [`crate::protocol`].
//!
//! Contract: one runtime thread drives all connections; nothing on it blocks. Every connection
//! belongs to the daemon's own user (the socket is mode 0600).

pub mod accept;
pub mod document;
pub mod metrics;
pub mod monitor;
pub mod reply;
pub mod routes;
pub mod troubles;

use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post, put};
use tokio::sync::{Semaphore, watch};

use crate::daemon::devices::Devices;
use crate::daemon::server::monitor::Monitor;
use crate::daemon::server::reply::{no_such_method, no_such_route};
use crate::daemon::server::routes::{
    clients, devices, disks, events, map, message, meta, state, stats, tables,
};
use crate::protocol::route;

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

/// All routes of the protocol.
pub fn router(app: App) -> Router {
    Router::new()
        .route(route::VERSION, get(meta::version))
        .route(route::TARGETS, get(meta::targets))
        .route(route::OPENAPI, get(meta::openapi))
        .route(route::METRICS, get(stats::metrics))
        .route(route::DEVICES, get(devices::list).post(devices::create))
        .route(route::DEVICE, get(devices::show).delete(devices::remove))
        .route(route::REMOVE_ALL, post(devices::remove_all))
        .route(route::RENAME, post(devices::rename))
        .route(route::TABLE, put(tables::load).delete(tables::clear))
        .route(route::SUSPEND, post(tables::suspend))
        .route(route::RESUME, post(tables::resume))
        .route(route::WIPE, post(tables::wipe))
        .route(route::UBLK, put(disks::attach).delete(disks::detach))
        .route(route::CLIENTS, delete(clients::disconnect))
        .route(route::MESSAGE, post(message::message))
        .route(route::EVENTS, get(events::events))
        .route(route::MONITOR, get(routes::monitor::monitor))
        .route(route::MAP, get(map::runs))
        .route(route::MAP_PICTURE, get(map::picture))
        .route(route::MAP_MESSAGE, get(map::export))
        .route(route::STATS, get(stats::stats))
        .route(route::STATE, get(state::list))
        .route(route::STATE_DEVICE, delete(state::forget))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .with_state(app)
}
