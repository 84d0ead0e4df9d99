//! Disks of this machine and of virtual machines: attaches and detaches devices.

use axum::extract::State;
use axum::http::StatusCode;

use crate::daemon::server::app::App;
use crate::daemon::server::reply::{self, Name, NoBody, QueryParams, Refused, blocking, refuse};
use crate::protocol::{AttachUblk, AttachVhostUser, DetachQuery, Disk, VhostUser, route};

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

/// Offer a device to vhost-user front ends.
#[utoipa::path(
    put,
    path = route::VHOST_USER,
    params(("name" = String, Path, description = "The device")),
    request_body = Option<AttachVhostUser>,
    responses((status = 200, body = VhostUser), Refused)
)]
pub async fn attach_vhost_user(
    State(app): State<App>,
    Name(name): Name,
    reply::Json(how): reply::Json<AttachVhostUser>,
) -> Result<axum::Json<VhostUser>, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("attach", None))?;
        let attached = app.devices.attach_vhost_user(&device, how);
        Ok(axum::Json(attached.map_err(refuse("attach", Some(device.id())))?))
    })
    .await?
}

/// The device is offered to vhost-user front ends no more.
#[utoipa::path(
    delete,
    path = route::VHOST_USER,
    params(("name" = String, Path, description = "The device"), DetachQuery),
    responses((status = 204), Refused)
)]
pub async fn detach_vhost_user(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(how): QueryParams<DetachQuery>,
    _: NoBody,
) -> Result<StatusCode, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("detach", None))?;
        let detached = app.devices.detach_vhost_user(&device, how.force);
        detached.map_err(refuse("detach", Some(device.id())))?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await?
}
