//! Disks: attaches and detaches devices.

use axum::extract::State;
use axum::http::StatusCode;

use crate::daemon::server::app::App;
use crate::daemon::server::reply::{self, Name, NoBody, QueryParams, Refused, blocking, refuse};
use crate::protocol::{AttachUblk, DetachQuery, Disk, route};

/// Make a disk of a device.
#[utoipa::path(
    put,
    path = route::UBLK,
    params(("name" = String, Path, description = "The device")),
    request_body = Option<AttachUblk>,
    responses((status = 200, body = Disk), Refused)
)]
pub async fn attach(
    State(app): State<App>,
    Name(name): Name,
    reply::Json(how): reply::Json<AttachUblk>,
) -> Result<axum::Json<Disk>, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("attach", None))?;
        let disk = app.devices.attach(&device, how).map_err(refuse("attach", Some(device.id())))?;
        Ok(axum::Json(disk))
    })
    .await?
}

/// The device is no disk any more.
#[utoipa::path(
    delete,
    path = route::UBLK,
    params(("name" = String, Path, description = "The device"), DetachQuery),
    responses((status = 204), Refused)
)]
pub async fn detach(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(how): QueryParams<DetachQuery>,
    _: NoBody,
) -> Result<StatusCode, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("detach", None))?;
        app.devices.detach(&device, how.force).map_err(refuse("detach", Some(device.id())))?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await?
}
