//! Region maps: as runs, in three forms, and as a picture.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[cfg(doc)]
use super::PICTURE_CELLS_MAX;

/// Query of `GET /v1/devices/{name}/map/message`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    /// A sector of the segment whose map is meant; absent: the device's only switch segment, EINVAL
    /// when there are several or none.
    #[param(maximum = 18446744073709551615u64)]
    pub sector: Option<u64>,
    /// End with a line `# generation N`, if no message changed the map meanwhile.
    #[serde(default)]
    pub generation: bool,
}

/// The comment before the number in the last line of an export.
pub const GENERATION_COMMENT: &str = "# generation ";

/// Query of `GET /v1/devices/{name}/map`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct MapQuery {
    /// First region; absent: 0.
    #[param(maximum = 18446744073709551615u64)]
    pub from: Option<u64>,
    /// Last region, included; absent: the last there is.
    #[param(maximum = 18446744073709551615u64)]
    pub to: Option<u64>,
    /// As in [`ExportQuery`].
    #[param(maximum = 18446744073709551615u64)]
    pub sector: Option<u64>,
    /// How the runs are written.
    #[serde(default)]
    pub form: MapForm,
    /// Only the runs of this path; not with `compact`.
    pub path: Option<u32>,
}

/// How runs are written. Of a map without long runs, `compact` is a small part of `runs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MapForm {
    /// A [`RegionMap`].
    #[default]
    Runs,
    /// A [`CompactMap`].
    Compact,
    /// NDJSON: a line with the [`MapHead`], then a line for each [`Run`].
    Lines,
}

/// A region map without the numbers that follow from those before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompactMap {
    /// What the map is of.
    #[serde(flatten)]
    pub head: MapHead,
    /// For each run how many regions it has, and their path. The first one begins at `from`, each
    /// other where the one before ends.
    pub runs: Vec<[u64; 2]>,
}

/// What a compact map, or one in lines, is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapHead {
    /// Regions of the whole segment.
    pub regions: u64,
    /// Paths of the segment.
    pub paths: u32,
    /// Sectors per region; the last region may be shorter.
    pub region_size: u32,
    /// First region that is listed.
    pub from: u64,
    /// Last region that is listed.
    pub to: u64,
    /// The generation of the map. In lines, as it was before the first of them; absent if a message
    /// was under way. In a [`CompactMap`] as in a [`RegionMap`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Query of `GET /v1/devices/{name}/map/picture`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PictureQuery {
    /// At most so many cells, 1 to [`PICTURE_CELLS_MAX`]. A cell gets 1, 2, 5, 10, 20, 50, ...
    /// regions, as few as will do (`picture::condense` counts them).
    #[param(minimum = 1, maximum = 65536)]
    pub cells: usize,
    /// First region; absent: 0.
    #[param(maximum = 18446744073709551615u64)]
    pub from: Option<u64>,
    /// Last region, included; absent: the last there is.
    #[param(maximum = 18446744073709551615u64)]
    pub to: Option<u64>,
    /// As in [`ExportQuery`].
    #[param(maximum = 18446744073709551615u64)]
    pub sector: Option<u64>,
}

/// The region map of one switch segment. The daemon streams it: a map of alternating paths has as
/// many runs as regions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegionMap {
    /// Regions of the whole segment, also when only a range of them is listed.
    pub regions: u64,
    /// Paths of the segment.
    pub paths: u32,
    /// Sectors per region; the last region may be shorter.
    pub region_size: u32,
    /// Neighbouring regions on one path are one run; runs are in order and without gaps.
    pub runs: Vec<Run>,
    /// The generation of the map; absent if a message or a swap changed it while it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Neighbouring regions on the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// First region.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// Where they go.
    pub path: u32,
}

/// The map condensed to a size that fits a screen, whatever the number of regions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapPicture {
    /// Regions of the whole segment.
    pub regions: u64,
    /// Paths of the segment.
    pub paths: u32,
    /// Sectors per region.
    pub region_size: u32,
    /// First sector of the segment in the device.
    pub start_sector: u64,
    /// First region of the picture.
    pub from: u64,
    /// Last region of the picture, included.
    pub to: u64,
    /// In order, without gaps, and of the same size except for the last, which may be smaller.
    pub cells: Vec<Cell>,
    /// Regions per path in the picture, indexed by path.
    pub totals: Vec<u64>,
    /// Address of each path as the table has it, indexed by path.
    pub addresses: Vec<String>,
}

/// One cell of a picture: some neighbouring regions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cell {
    /// First region.
    pub start: u64,
    /// Regions in the cell, at least 1.
    pub count: u64,
    /// The path most of them are on; the lowest of several.
    pub path: u32,
    /// How many of them are on that path: equal to `count` when the cell is not mixed.
    pub majority: u64,
}

/// The source that supplies a device's map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapSource {
    /// `file:PATH` or `referrals`.
    pub source: String,
    /// Unix time in seconds of the last reading that succeeded; `None` before the first.
    pub read_at: Option<u64>,
    /// The generation of the map after that reading.
    pub generation: Option<u64>,
    /// Number of readings that failed since the daemon started.
    pub failures: u64,
    /// Why the last reading failed; `None` if it succeeded. The map in use goes on.
    pub error: Option<String>,
    /// What people should know about the last map, such as a target port group without a path.
    pub remarks: Vec<String>,
}
