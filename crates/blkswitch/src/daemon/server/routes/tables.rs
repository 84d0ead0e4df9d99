//! The two table slots of a device and its gate: load, clear, suspend, resume, wipe.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use blkswitch_io::Device;

use crate::daemon::failure::Failure;
use crate::daemon::server::app::App;
use crate::daemon::server::reply::{
    Json, Name, NoBody, Refused, blocking, interruptible, note_header, opening, refuse,
};
use crate::protocol::{LoadTable, Suspend, route};

/// Load the inactive slot, in place of what was there.
#[utoipa::path(
    put,
    path = route::TABLE,
    params(("name" = String, Path, description = "The device")),
    request_body = LoadTable,
    responses((status = 204), Refused)
)]
pub async fn load(
    State(app): State<App>,
    Name(name): Name,
    Json(load): Json<LoadTable>,
) -> Result<(StatusCode, HeaderMap), Refused> {
    let places = app.opens.clone();
    let work = on_device(app, name, "reload", move |app, device| {
        app.devices.load(device, &load)?;
        Ok(app.devices.size_note(device, device.inactive()))
    });
    opening(&places, work).await?.map(noted)
}

/// Drop the inactive table.
#[utoipa::path(
    delete,
    path = route::TABLE,
    params(("name" = String, Path, description = "The device")),
    responses((status = 204), Refused)
)]
pub async fn clear(
    State(app): State<App>,
    Name(name): Name,
    _: NoBody,
) -> Result<StatusCode, Refused> {
    let work = on_device(app, name, "clear", |app, device| {
        app.devices.clear(device);
        Ok(())
    });
    blocking(work).await?.map(done)
}

/// Close the gate and wait for the requests in flight.
#[utoipa::path(
    post,
    path = route::SUSPEND,
    params(("name" = String, Path, description = "The device")),
    request_body = Option<Suspend>,
    responses((status = 204), Refused)
)]
pub async fn suspend(
    State(app): State<App>,
    Name(name): Name,
    Json(how): Json<Suspend>,
) -> Result<StatusCode, Refused> {
    tracing::debug!(?how, "suspend");
    interruptible(move |interrupt| {
        let suspend = |app: &App, device: &_| app.devices.suspend(device, how.noflush, interrupt);
        on_device(app, name, "suspend", suspend)()
    })
    .await?
    .map(done)
}

/// Swap in the inactive table, if there is one, and open the gate.
#[utoipa::path(
    post,
    path = route::RESUME,
    params(("name" = String, Path, description = "The device")),
    responses((status = 204), Refused)
)]
pub async fn resume(
    State(app): State<App>,
    Name(name): Name,
    _: NoBody,
) -> Result<(StatusCode, HeaderMap), Refused> {
    interruptible(move |interrupt| {
        let resume = |app: &App, device: &_| {
            app.devices.resume(device, interrupt)?;
            Ok(app.devices.size_note(device, device.live()))
        };
        on_device(app, name, "resume", resume)()
    })
    .await?
    .map(noted)
}

/// Swap in an `error` table of the same length.
#[utoipa::path(
    post,
    path = route::WIPE,
    params(("name" = String, Path, description = "The device")),
    request_body = Option<Suspend>,
    responses((status = 204), Refused)
)]
pub async fn wipe(
    State(app): State<App>,
    Name(name): Name,
    Json(how): Json<Suspend>,
) -> Result<StatusCode, Refused> {
    tracing::debug!(?how, "wipe");
    interruptible(move |interrupt| {
        let wipe = |app: &App, device: &_| app.devices.wipe(device, false, interrupt);
        on_device(app, name, "reload", wipe)()
    })
    .await?
    .map(done)
}

/// A successful answer, with a note if there is one.
fn noted(note: Option<String>) -> (StatusCode, HeaderMap) {
    (StatusCode::NO_CONTENT, note_header(note))
}

/// A successful answer without a note.
fn done((): ()) -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Applies an operation to a device, and logs it. May block.
fn on_device<T>(
    app: App,
    name: String,
    ioctl: &'static str,
    work: impl FnOnce(&App, &Arc<Device>) -> Result<T, Failure>,
) -> impl FnOnce() -> Result<T, Refused> {
    move || {
        let device = app.devices.find(&name).map_err(refuse(ioctl, None))?;
        let done = work(&app, &device).map_err(refuse(ioctl, Some(device.id())))?;
        tracing::info!(device = %name, "{ioctl}");
        Ok(done)
    }
}
