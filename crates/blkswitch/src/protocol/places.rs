//! Where the sectors of a device lie.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most numbers of one [`Where`].
pub const WHERE_NUMBERS_MAX: usize = 65_536;

/// What the numbers of a [`Where`] count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Sectors of the device.
    #[default]
    Sector,
    /// Bytes of the device.
    Byte,
    /// Regions of a switch segment of the device.
    Region,
}

impl Unit {
    /// The unit's name.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Sector => "sector",
            Unit::Byte => "byte",
            Unit::Region => "region",
        }
    }
}

/// Body of `POST /v1/devices/{name}/map/where`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Where {
    /// What the numbers count.
    #[serde(default)]
    pub unit: Unit,
    /// The positions to look up, at most [`WHERE_NUMBERS_MAX`].
    #[schema(max_items = 65536)]
    pub numbers: Vec<u64>,
    /// For regions: a sector of the segment; absent: the device's only switch segment.
    #[serde(default)]
    pub segment: Option<u64>,
}

/// Reply of `POST /v1/devices/{name}/map/where`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Places {
    /// One for each number, in the same order.
    pub places: Vec<Place>,
}

/// Where a sector lies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Place {
    /// The number that was asked about.
    pub number: u64,
    /// The sector of the device; of a region, its first one.
    pub sector: u64,
    /// The region, if a switch of the device itself has the sector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<u64>,
    /// The path of the device itself; absent for `zero` and `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<u32>,
    /// The leaf at the end, as the table names it; absent if the sector leads to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf: Option<String>,
    /// The sector there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf_sector: Option<u64>,
    /// The byte there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf_byte: Option<u64>,
    /// How many sectors lie one after the other there, this one included.
    pub sectors: u64,
    /// The devices on the way, the asked one first.
    pub tiers: Vec<Tier>,
}

/// A device on the way to a leaf.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tier {
    /// Its name.
    pub device: String,
    /// Its target at this sector; empty if it has no table.
    pub target: String,
    /// The sector on this device.
    pub sector: u64,
    /// The region, if the target is a switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<u64>,
    /// The path that it takes; of a multipath, the first one that is up of the group in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<u32>,
}
