//! Counters and latencies: `stats` as JSON, `metrics` for Prometheus.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use axum::response::Response;

use crate::daemon::failure::Failure;
use crate::daemon::server::app::App;
use crate::daemon::server::metrics::{self, Form};
use crate::daemon::server::reply::{self, Name, Refused, blocking, refuse};
use crate::daemon::tables::describe;
use crate::protocol::{DeviceStats, Errno, route};

/// Counters and latencies of a device and its paths.
#[utoipa::path(
    get,
    path = route::STATS,
    params(("name" = String, Path, description = "The device")),
    responses((status = 200, body = DeviceStats), Refused)
)]
pub async fn stats(State(app): State<App>, Name(name): Name) -> Result<Json<DeviceStats>, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("status", None))?;
        Ok(Json(describe::stats(&device)))
    })
    .await?
}

/// Counters and latencies of all devices, in Prometheus' text format or as OpenMetrics.
#[utoipa::path(
    get,
    path = route::METRICS,
    responses(
        (status = 200, description = "The metrics", content(
            (String = metrics::PLAIN),
            (String = metrics::OPEN_METRICS)
        )),
        Refused
    )
)]
pub async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response, Refused> {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let form = Form::accepted(accepted);
    let text = blocking(move || metrics::text(app.devices, form)).await?;
    let failed = |_| Failure::new(Errno::Eio, "the metrics could not be written");
    let text = text.map_err(failed).map_err(refuse("status", None))?;
    Ok(reply::text(form.content_type(), Body::from(text)))
}
