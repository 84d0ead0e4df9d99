//! Counters and latencies: `stats` as JSON, `metrics` as Prometheus text.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;

use crate::daemon::failure::Failure;
use crate::daemon::server::App;
use crate::daemon::server::metrics;
use crate::daemon::server::reply::{self, Name, Refused, blocking, refuse};
use crate::daemon::tables::describe;
use crate::protocol::{DeviceStats, Errno, ErrorBody, route};

/// Counters and latencies of a device and its paths.
#[utoipa::path(
    get,
    path = route::STATS,
    params(("name" = String, Path, description = "The device")),
    responses((status = 200, body = DeviceStats), (status = "default", body = ErrorBody))
)]
pub async fn stats(State(app): State<App>, Name(name): Name) -> Result<Json<DeviceStats>, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("status", None))?;
        Ok(Json(describe::stats(&device)))
    })
    .await?
}

/// Counters and latencies of all devices in the OpenMetrics text format.
#[utoipa::path(
    get,
    path = route::METRICS,
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = metrics::CONTENT_TYPE))
)]
pub async fn metrics(State(app): State<App>) -> Result<Response, Refused> {
    let text = blocking(move || metrics::text(app.devices)).await?;
    let failed = |_| Failure::new(Errno::Eio, "the metrics could not be written");
    let text = text.map_err(failed).map_err(refuse("status", None))?;
    Ok(reply::text(metrics::CONTENT_TYPE, Body::from(text)))
}
