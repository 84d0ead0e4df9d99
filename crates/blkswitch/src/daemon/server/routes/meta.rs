//! Describes the daemon itself: `version`, `targets`.

use axum::Json;
use axum::extract::State;

use crate::daemon::server::app::App;
use crate::daemon::tables::targets::{TYPES, TargetType};
use crate::protocol::{TargetList, TargetVersion, Version, route};

/// Versions of daemon and protocol, and where NBD clients connect.
#[utoipa::path(get, path = route::VERSION, responses((status = 200, body = Version)))]
pub async fn version(State(app): State<App>) -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        nbd: app.nbd.to_vec(),
    })
}

/// The target types a table line may name.
#[utoipa::path(get, path = route::TARGETS, responses((status = 200, body = TargetList)))]
pub async fn targets() -> Json<TargetList> {
    let target =
        |one: &&TargetType| TargetVersion { name: one.name.to_owned(), version: one.version };
    Json(TargetList { targets: TYPES.iter().map(target).collect() })
}
