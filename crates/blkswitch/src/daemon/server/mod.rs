//! The control server and its routes.
//!
//! The handlers are in [`routes`], one file per group. A handler reads its request with the
//! extractors of [`reply`], does its work on a thread that may block, and answers with a type of
//! [`crate::protocol`].
//!
//! Contract: one runtime thread drives all connections; nothing on it blocks. Every connection
//! belongs to the daemon's own user, because the socket has mode 0600.

pub mod accept;
pub mod app;
pub mod document;
pub mod metrics;
pub mod monitor;
pub mod pieces;
pub mod reply;
pub mod routes;
pub mod troubles;

use axum::Router;
use axum::routing::{delete, get, post, put};

use crate::daemon::server::app::App;
use crate::daemon::server::reply::{no_such_method, no_such_route};
use crate::daemon::server::routes::{
    clients, devices, diff, disks, events, map, message, meta, places, plan, state, stats, tables,
};
use crate::protocol::route;

/// Builds the router with all routes of the protocol.
pub fn router(app: App) -> Router {
    Router::new()
        .route(route::VERSION, get(meta::version))
        .route(route::TARGETS, get(meta::targets))
        .route(route::OPENAPI, get(document::openapi))
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
        .route(route::VHOST_USER, put(disks::attach_vhost_user).delete(disks::detach_vhost_user))
        .route(route::CLIENTS, delete(clients::disconnect))
        .route(route::MESSAGE, post(message::message))
        .route(route::EVENTS, get(events::events))
        .route(route::MONITOR, get(routes::monitor::monitor))
        .route(route::MAP, get(map::runs))
        .route(route::MAP_PICTURE, get(map::picture))
        .route(route::MAP_MESSAGE, get(map::export))
        .route(route::MAP_WHERE, post(places::places))
        .route(route::MAP_DIFF, get(diff::devices).post(diff::message))
        .route(route::MAP_PLAN, post(plan::plan))
        .route(route::STATS, get(stats::stats))
        .route(route::STATE, get(state::list))
        .route(route::STATE_DEVICE, delete(state::forget))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .with_state(app)
}
