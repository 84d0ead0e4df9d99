//! Differences of region maps, and plans that move regions.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Query of `GET /v1/devices/{name}/map/diff`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DiffQuery {
    /// As in [`MapQuery`](super::MapQuery).
    #[param(maximum = 18446744073709551615u64)]
    pub sector: Option<u64>,
    /// The device with the other map.
    pub with: String,
    /// A sector of the other device's segment; absent: its only switch segment.
    #[param(maximum = 18446744073709551615u64)]
    pub with_sector: Option<u64>,
    /// How the difference is written.
    #[serde(default)]
    pub form: DiffForm,
}

/// Query of `POST /v1/devices/{name}/map/diff`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DiffTextQuery {
    /// As in [`MapQuery`](super::MapQuery).
    #[param(maximum = 18446744073709551615u64)]
    pub sector: Option<u64>,
    /// How the difference is written.
    #[serde(default)]
    pub form: DiffForm,
}

/// How a difference is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiffForm {
    /// A [`MapDiff`].
    #[default]
    Changes,
    /// NDJSON: a line for each [`MapChange`].
    Lines,
    /// A `set_region_mappings` message that turns the first map into the second.
    Message,
}

/// The difference of two maps with the same regions. The daemon streams it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapDiff {
    /// Regions of each map.
    pub regions: u64,
    /// Sectors per region.
    pub region_size: u32,
    /// Paths of the first and of the second map.
    pub paths: [u32; 2],
    /// The regions that differ, in ascending order.
    pub changes: Vec<MapChange>,
}

/// Neighbouring regions that are on one path in the first map, and on another in the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapChange {
    /// First region.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// Their path in the first map.
    pub from: u32,
    /// Their path in the second map.
    pub to: u32,
}

/// Query of `POST /v1/devices/{name}/map/plan`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PlanQuery {
    /// As in [`MapQuery`](super::MapQuery).
    #[param(maximum = 18446744073709551615u64)]
    pub sector: Option<u64>,
    /// How the plan is written.
    #[serde(default)]
    pub form: PlanForm,
}

/// How a plan is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlanForm {
    /// A [`MapPlan`].
    #[default]
    Plan,
    /// NDJSON: a line with the [`MapPlan`], its message empty; then a line, as a JSON string, for
    /// each line of the message.
    Lines,
    /// Only the message, as `text/plain`.
    Message,
}

/// Body of `POST /v1/devices/{name}/map/plan`: which regions are to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum PlanMap {
    /// All regions of a path.
    Evacuate(Evacuate),
    /// As few as give every path its share.
    Balance(Balance),
    /// Those that make longer runs; the shares stay.
    Compact(CompactRuns),
}

/// Moves all regions of a path to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Evacuate {
    /// The path that its regions leave.
    pub path: u32,
    /// The paths that get them; empty: all others.
    #[serde(default)]
    pub onto: Vec<u32>,
    /// Count the regions of each path, also in a map of more than 2^25 regions. Without the count,
    /// each of the other paths gets the same number of regions.
    #[serde(default)]
    pub count: bool,
}

/// Moves as few regions as give every path its share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// The weight of each path; empty: all the same.
    #[serde(default)]
    pub weights: Vec<u32>,
    /// What is shared.
    #[serde(default)]
    pub by: BalanceBy,
}

/// What a [`Balance`] shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BalanceBy {
    /// The number of regions.
    #[default]
    Regions,
}

/// Moves regions so that neighbours are on one path. Each path keeps its number of regions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompactRuns {
    /// Most regions that may move; absent: all.
    #[serde(default)]
    pub max_moves: Option<u64>,
}

/// A plan. It changes nothing: its message does, when it is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapPlan {
    /// Regions that move.
    pub regions: u64,
    /// Bytes that move with them.
    pub bytes: u64,
    /// Ranges of neighbouring regions that move together.
    pub moves: u64,
    /// The device's generation that the plan is for; absent if a message was under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Runs of the map before and after, of a plan for longer runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<[u64; 2]>,
    /// The paths, in order. The daemon leaves out what it has not counted.
    pub shares: Vec<PathShare>,
    /// The `set_region_mappings` message that carries the plan out.
    pub message: String,
}

/// What a plan gives a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PathShare {
    /// The path.
    pub path: u32,
    /// Its address, as the table has it.
    pub address: String,
    /// Its regions before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// Its regions after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Regions that it gets.
    pub gets: u64,
    /// Regions that it gives.
    pub gives: u64,
}
