//! The two table slots of a device and its gate: load, clear, suspend, resume, wipe.

use axum::extract::State;
use axum::http::StatusCode;

use crate::daemon::failure::Failure;
use crate::daemon::reply::{Json, Name, NoBody, Refused, blocking, refuse};
use crate::daemon::server::App;
use crate::protocol::{ErrorBody, LoadTable, Suspend, route};

/// Load the inactive slot, in place of what was there.
#[utoipa::path(
    put,
    path = route::TABLE,
    params(("name" = String, Path, description = "The device")),
    request_body = LoadTable,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub async fn load(
    State(app): State<App>,
    Name(name): Name,
    Json(load): Json<LoadTable>,
) -> Result<StatusCode, Refused> {
    on_device(app, name, "reload", move |app, device| app.devices.load(device, &load)).await
}

/// Drop the inactive table.
#[utoipa::path(
    delete,
    path = route::TABLE,
    params(("name" = String, Path, description = "The device")),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub async fn clear(
    State(app): State<App>,
    Name(name): Name,
    _: NoBody,
) -> Result<StatusCode, Refused> {
    on_device(app, name, "clear", |app, device| {
        app.devices.clear(device);
        Ok(())
    })
    .await
}

/// Close the gate and wait for the requests in flight.
#[utoipa::path(
    post,
    path = route::SUSPEND,
    params(("name" = String, Path, description = "The device")),
    request_body = Suspend,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub async fn suspend(
    State(app): State<App>,
    Name(name): Name,
    Json(how): Json<Suspend>,
) -> Result<StatusCode, Refused> {
    tracing::debug!(?how, "suspend");
    on_device(app, name, "suspend", move |app, device| app.devices.suspend(device, how.noflush))
        .await
}

/// Swap in the inactive table, if there is one, and open the gate.
#[utoipa::path(
    post,
    path = route::RESUME,
    params(("name" = String, Path, description = "The device")),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub async fn resume(
    State(app): State<App>,
    Name(name): Name,
    _: NoBody,
) -> Result<StatusCode, Refused> {
    on_device(app, name, "resume", |app, device| app.devices.resume(device)).await
}

/// Swap in an `error` table of the same length.
#[utoipa::path(
    post,
    path = route::WIPE,
    params(("name" = String, Path, description = "The device")),
    request_body = Suspend,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub async fn wipe(
    State(app): State<App>,
    Name(name): Name,
    Json(how): Json<Suspend>,
) -> Result<StatusCode, Refused> {
    tracing::debug!(?how, "wipe");
    on_device(app, name, "reload", |app, device| app.devices.wipe(device)).await
}

/// Does something to a device where blocking is allowed, and logs it.
async fn on_device(
    app: App,
    name: String,
    ioctl: &'static str,
    work: impl FnOnce(&App, &std::sync::Arc<blkswitch_io::Device>) -> Result<(), Failure>
    + Send
    + 'static,
) -> Result<StatusCode, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse(ioctl, None))?;
        work(&app, &device).map_err(refuse(ioctl, Some(device.id())))?;
        tracing::info!(device = %name, "{ioctl}");
        Ok(StatusCode::NO_CONTENT)
    })
    .await?
}
