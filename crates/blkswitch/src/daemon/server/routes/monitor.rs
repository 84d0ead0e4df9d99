//! `monitor`: streams events as they happen, one JSON object per line.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use crate::daemon::server::app::App;
use crate::daemon::server::monitor::{ends, lost};
use crate::daemon::server::reply::{self, QueryParams, Refused, refuse};
use crate::protocol::{MonitorEvent, MonitorQuery, route};

/// Watch what happens to all devices, or to some: a JSON object per line, until the daemon stops.
#[utoipa::path(
    get,
    path = route::MONITOR,
    params(MonitorQuery),
    responses(
        (status = 200, description = "Lines of JSON", body = MonitorEvent, content_type = "application/x-ndjson"),
        Refused
    )
)]
pub async fn monitor(
    State(app): State<App>,
    QueryParams(query): QueryParams<MonitorQuery>,
) -> Result<Response, Refused> {
    let names = query.devices.split(',').filter(|name| !name.is_empty());
    let mut devices = Vec::new();
    for name in names {
        devices.push(app.devices.find(name).map_err(refuse("waitevent", None))?.id());
    }
    let watcher = Some((app.monitor.watch(), app.stopping.clone(), devices));
    let lines = stream::unfold(watcher, |watcher| async {
        let (mut events, mut stopping, devices) = watcher?;
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                _ = stopping.wait_for(|stopping| *stopping) => return Some((line(&ends()), None)),
            };
            let event = match event {
                Ok(event) if devices.is_empty() || devices.contains(&event.minor) => event,
                Ok(_) => continue,
                Err(RecvError::Lagged(count)) => lost(count),
                Err(RecvError::Closed) => return None,
            };
            return Some((line(&event), Some((events, stopping, devices))));
        }
    });
    Ok(reply::text("application/x-ndjson", Body::from_stream(lines)))
}

fn line(event: &MonitorEvent) -> Result<Bytes, Infallible> {
    // Writing it cannot fail, because an event has only text and numbers.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    Ok(Bytes::from(line))
}
