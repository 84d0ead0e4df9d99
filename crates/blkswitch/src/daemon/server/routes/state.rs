//! The devices that are kept for the next daemon: list, forget.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::daemon::server::app::App;
use crate::daemon::server::reply::{Name, NoBody, Refused, blocking, refuse};
use crate::protocol::{KeptList, route};

/// What is kept.
#[utoipa::path(get, path = route::STATE, responses((status = 200, body = KeptList), Refused))]
pub async fn list(State(app): State<App>) -> Result<Json<KeptList>, Refused> {
    blocking(move || Json(app.devices.kept())).await
}

/// Forget a device whose table is away, with its map.
#[utoipa::path(
    delete,
    path = route::STATE_DEVICE,
    params(("name" = String, Path, description = "The device")),
    responses((status = 204), Refused)
)]
pub async fn forget(
    State(app): State<App>,
    Name(name): Name,
    _: NoBody,
) -> Result<StatusCode, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("remove", None))?;
        app.devices.forget(&device).map_err(refuse("remove", Some(device.id())))?;
        tracing::info!(device = %name, "forgotten");
        Ok(StatusCode::NO_CONTENT)
    })
    .await?
}
