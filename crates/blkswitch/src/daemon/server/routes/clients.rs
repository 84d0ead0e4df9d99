//! Disconnects the NBD clients of a device. The device's description lists them.

use axum::Json;
use axum::extract::State;

use crate::daemon::server::app::App;
use crate::daemon::server::reply::{Name, NoBody, QueryParams, Refused, blocking, refuse};
use crate::protocol::{DisconnectQuery, Disconnected, route};

/// End connections to a device.
#[utoipa::path(
    delete,
    path = route::CLIENTS,
    params(("name" = String, Path, description = "The device"), DisconnectQuery),
    responses((status = 200, body = Disconnected), Refused)
)]
pub async fn disconnect(
    State(app): State<App>,
    Name(name): Name,
    QueryParams(query): QueryParams<DisconnectQuery>,
    _: NoBody,
) -> Result<Json<Disconnected>, Refused> {
    blocking(move || {
        let device = app.devices.find(&name).map_err(refuse("disconnect", None))?;
        let ended = app.devices.disconnect(&device, query.client.as_deref());
        let disconnected = ended.map_err(refuse("disconnect", Some(device.id())))?;
        tracing::info!(device = %name, clients = disconnected.len(), "disconnected");
        Ok(Json(Disconnected { disconnected }))
    })
    .await?
}
