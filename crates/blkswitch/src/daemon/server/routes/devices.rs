//! Devices: list, describe, create, rename, remove.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::daemon::server::app::App;
use crate::daemon::server::reply::{
    self, Name, NoBody, QueryParams, Refused, blocking, interruptible, opening, refuse,
};
use crate::protocol::{
    CreateDevice, Device, DeviceList, RemoveAll, RemoveQuery, Removed, Rename, route,
};

/// All devices, sorted by name.
#[utoipa::path(get, path = route::DEVICES, responses((status = 200, body = DeviceList), Refused))]
pub async fn list(State(app): State<App>) -> Result<Json<DeviceList>, Refused> {
    let devices = blocking(move || app.devices.describe_all()).await?;
    Ok(Json(DeviceList { devices }))
}

/// One device.
#[utoipa::path(
    get,
    path = route::DEVICE,
    params(("name" = String, Path, description = "The device")),
    responses((status = 200, body = Device), Refused)
)]
pub async fn show(State(app): State<App>, Name(name): Name) -> Result<Json<Device>, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("info", None))?;
        Ok(Json(app.devices.describe_with_clients(&device)))
    })
    .await?
}

/// Create, load and resume in one.
#[utoipa::path(
    post,
    path = route::DEVICES,
    request_body = CreateDevice,
    responses((status = 201, body = Device), Refused)
)]
pub async fn create(
    State(app): State<App>,
    reply::Json(request): reply::Json<CreateDevice>,
) -> Result<(StatusCode, Json<Device>), Refused> {
    let places = app.opens.clone();
    let device = opening(&places, move || app.devices.create(request)).await??;
    tracing::info!(device = %device.name, number = device.minor, "created");
    Ok((StatusCode::CREATED, Json(device)))
}

/// A new name, or a uuid where there was none.
#[utoipa::path(
    post,
    path = route::RENAME,
    params(("name" = String, Path, description = "The device")),
    request_body = Rename,
    responses((status = 204), Refused)
)]
pub async fn rename(
    State(app): State<App>,
    Name(name): Name,
    reply::Json(request): reply::Json<Rename>,
) -> Result<StatusCode, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("rename", None))?;
        app.devices.rename(&device, &request).map_err(refuse("rename", Some(device.id())))?;
        tracing::info!(device = %name, ?request, "renamed");
        Ok(StatusCode::NO_CONTENT)
    })
    .await?
}

/// Remove a device that nobody has open.
#[utoipa::path(
    delete,
    path = route::DEVICE,
    params(("name" = String, Path, description = "The device"), RemoveQuery),
    responses((status = 204), Refused)
)]
pub async fn remove(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(how): QueryParams<RemoveQuery>,
    _: NoBody,
) -> Result<StatusCode, Refused> {
    interruptible(move |interrupt| {
        let device = app.devices.find(&name).map_err(refuse("remove", None))?;
        app.devices.remove(&device, how, interrupt).map_err(refuse("remove", Some(device.id())))?;
        tracing::info!(device = %name, force = how.force, deferred = how.deferred, "removed");
        Ok(StatusCode::NO_CONTENT)
    })
    .await?
}

/// Remove every device that nobody has open.
#[utoipa::path(
    post,
    path = route::REMOVE_ALL,
    request_body = Option<RemoveAll>,
    responses((status = 200, body = Removed), Refused)
)]
pub async fn remove_all(
    State(app): State<App>,
    reply::Json(how): reply::Json<RemoveAll>,
) -> Result<Json<Removed>, Refused> {
    let removed = interruptible(move |interrupt| app.devices.remove_all(how, interrupt)).await?;
    tracing::info!(removed = ?removed.removed, busy = ?removed.busy, "removed all");
    Ok(Json(removed))
}
