//! Devices that the next daemon makes again.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Reply of `GET /v1/state`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptList {
    /// The folder in which they are kept.
    pub folder: String,
    /// Whether every device is kept there (`serve --state`), and not only disks.
    pub keeps_all: bool,
    /// What is kept, what is below first.
    pub devices: Vec<KeptDevice>,
}

/// A device that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptDevice {
    /// Its name.
    pub name: String,
    /// Its uuid; empty when it has none.
    pub uuid: String,
    /// Its number.
    pub minor: u32,
    /// The table that it is made of again.
    pub table: String,
    /// Why that table cannot be served yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<String>,
}
