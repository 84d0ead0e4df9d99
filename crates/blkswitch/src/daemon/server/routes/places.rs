//! `map where`: where sectors of a device lie.

use axum::extract::State;

use crate::daemon::devices::places;
use crate::daemon::server::app::App;
use crate::daemon::server::reply::{Json, Name, Refused, blocking, refuse};
use crate::protocol::{Places, Where, route};

/// The ioctl in refusals, as for maps.
const IOCTL: &str = "status";

/// Where sectors lie: region, path, and the leaf at the end of all tiers.
#[utoipa::path(
    post,
    path = route::MAP_WHERE,
    params(("name" = String, Path, description = "The device")),
    request_body = Where,
    responses((status = 200, body = Places), Refused)
)]
pub async fn places(
    State(app): State<App>,
    Name(name): Name,
    Json(ask): Json<Where>,
) -> Result<axum::Json<Places>, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse(IOCTL, None))?;
        let places = places::places(&device, &ask).map_err(refuse(IOCTL, Some(device.id())))?;
        Ok(axum::Json(Places { places }))
    })
    .await?
}
