//! The control protocol: what daemon and client say to each other.
//!
//! HTTP/1.1 with JSON bodies over a unix socket; everything lives under `/v1`. The types here are
//! the only definition of it: the daemon serves them, the client reads them, and the OpenAPI
//! document is generated from them.
//!
//! | method and route | body -> reply | the verb it serves |
//! |---|---|---|
//! | `GET /v1/version` | -> [`Version`] | `version` |
//! | `GET /v1/targets` | -> [`TargetList`] | `targets` |
//! | `GET /v1/devices` | -> [`DeviceList`], sorted by name | `ls`, `info`, `table`, `status`, `deps` |
//! | `POST /v1/devices` | [`CreateDevice`] -> 201 [`Device`] | `create` |
//! | `GET /v1/devices/{name}` | -> [`Device`] | the same verbs for one device |
//! | `DELETE /v1/devices/{name}?force&deferred` | [`RemoveQuery`] -> 204 | `remove` |
//! | `PUT /v1/devices/{name}/table` | [`LoadTable`] -> 204 | `load`, `reload` |
//! | `DELETE /v1/devices/{name}/table` | -> 204 | `clear` |
//! | `POST /v1/devices/{name}/suspend` | [`Suspend`] -> 204 | `suspend` |
//! | `POST /v1/devices/{name}/resume` | -> 204 | `resume` |
//! | `POST /v1/devices/{name}/rename` | [`Rename`] -> 204 | `rename`, `rename --setuuid` |
//! | `POST /v1/devices/{name}/wipe` | [`Suspend`] -> 204 | `wipe_table` |
//! | `PUT /v1/devices/{name}/ublk` | [`AttachUblk`] -> [`Disk`] | `attach` |
//! | `DELETE /v1/devices/{name}/ublk?force` | [`DetachQuery`] -> 204 | `detach` |
//! | `PUT /v1/devices/{name}/vhost-user` | [`AttachVhostUser`] -> [`VhostUser`] | `attach` |
//! | `DELETE /v1/devices/{name}/vhost-user?force` | [`DetachQuery`] -> 204 | `detach` |
//! | `DELETE /v1/devices/{name}/clients?client` | [`DisconnectQuery`] -> [`Disconnected`] | `disconnect` |
//! | `POST /v1/devices/{name}/message?sector&atomic&if_generation&force` | [`MessageQuery`], words as a stream of `text/plain` -> [`MessageReply`] | `message`, `map import` |
//! | `GET /v1/devices/{name}/events?after` | [`EventsQuery`] -> [`Events`], a long poll | `wait` |
//! | `GET /v1/monitor?devices` | [`MonitorQuery`] -> lines of [`MonitorEvent`], until the daemon stops | `monitor` |
//! | `GET /v1/devices/{name}/map?from&to&sector&form&path` | [`MapQuery`] -> [`RegionMap`] as a stream, or another [`MapForm`] | `map show --json`, `map regions` |
//! | `GET /v1/devices/{name}/map/picture?cells&from&to&sector` | [`PictureQuery`] -> [`MapPicture`] | `map show` |
//! | `GET /v1/devices/{name}/map/message?sector&generation` | [`ExportQuery`] -> `text/plain` as a stream | `map export` |
//! | `POST /v1/devices/{name}/map/where` | [`Where`] -> [`Places`] | `map where` |
//! | `GET /v1/devices/{name}/map/diff?with&sector&with_sector&form` | [`DiffQuery`] -> [`MapDiff`] as a stream, or another [`DiffForm`] | `map diff` |
//! | `POST /v1/devices/{name}/map/diff?sector&form` | [`DiffTextQuery`], a message as a stream of `text/plain` -> the same | `map diff` with a file |
//! | `POST /v1/devices/{name}/map/plan?sector&form` | [`PlanQuery`], [`PlanMap`] -> [`MapPlan`] as a stream, or another [`PlanForm`] | `map plan` |
//! | `GET /v1/devices/{name}/stats` | -> [`DeviceStats`] | `stats` |
//! | `POST /v1/remove_all` | [`RemoveAll`] -> [`Removed`] | `remove_all` |
//! | `GET /v1/openapi.json` | -> the OpenAPI document of this table | |
//! | `GET /metrics` | -> Prometheus text | |
//!
//! Contract: a reply outside 2xx carries an [`ErrorBody`]. Sectors are 512 bytes everywhere. Names
//! travel in their stored form, in which a character outside `0-9A-Za-z#+-.:=@_` is written `\xNN`
//! (the client does that); in a path they are percent-encoded once more. In tables, and wherever a
//! word of one appears, a byte `B` that is not UTF-8 is the character U+10FE00 + `B`
//! ([`crate::raw`]). Unknown fields in a
//! request are refused, unknown fields in a reply are ignored, so an older client understands a
//! newer daemon. Pure data: no I/O, no panics.

mod errno;
mod kept;
mod maps;
mod messages;
mod object;
mod places;
mod plans;
mod users;

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::Type;
use utoipa::openapi::{Object, ObjectBuilder};
use utoipa::{IntoParams, ToSchema};

pub use self::errno::Errno;
pub use self::kept::{KeptDevice, KeptList};
pub use self::maps::{
    Cell, CompactMap, ExportQuery, GENERATION_COMMENT, MapForm, MapHead, MapPicture, MapQuery,
    MapSource, PictureQuery, RegionMap, Run,
};
pub use self::messages::{MessageQuery, MessageReply};
pub use self::object::{object, optional_object};
pub use self::places::{Place, Places, Tier, Unit, WHERE_NUMBERS_MAX, Where};
pub use self::plans::{
    Balance, BalanceBy, CompactRuns, DiffForm, DiffQuery, DiffTextQuery, Evacuate, MapChange,
    MapDiff, MapPlan, PathShare, PlanForm, PlanMap, PlanQuery,
};
pub use self::users::{
    AttachUblk, AttachVhostUser, Client, DetachQuery, DisconnectQuery, Disconnected, Disk,
    VhostUser,
};

/// Longest device name in bytes: what the kernel's 128-byte field holds with its closing zero.
pub const NAME_MAX_BYTES: usize = 127;
/// Longest uuid in bytes: what the kernel's 129-byte field holds with its closing zero.
pub const UUID_MAX_BYTES: usize = 128;
/// Longest table text of one load in bytes: a switch of the largest path count (262141) with long
/// paths fits.
pub const TABLE_MAX_BYTES: usize = 64 << 20;
/// Most cells of a [`MapPicture`]: more than a large terminal has, few enough for one reply.
pub const PICTURE_CELLS_MAX: usize = 65_536;
/// The daemon answers an `events` poll after this long even if nothing happened, and the client
/// asks again: a connection that says nothing for longer is hard to tell from a dead one.
pub const EVENTS_POLL_SECONDS: u64 = 30;
/// Header of a good answer: a sentence that its reader should know.
pub const NOTE_HEADER: &str = "blkswitch-note";

/// The routes, as axum writes them (`{name}` is a parameter); [`device_path`] fills them in.
pub mod route {
    /// `GET`: versions of daemon and protocol.
    pub const VERSION: &str = "/v1/version";
    /// `GET`: the target types a table line may name.
    pub const TARGETS: &str = "/v1/targets";
    /// `GET` lists, `POST` creates.
    pub const DEVICES: &str = "/v1/devices";
    /// `GET` describes, `DELETE` removes.
    pub const DEVICE: &str = "/v1/devices/{name}";
    /// `PUT` loads the inactive slot, `DELETE` clears it.
    pub const TABLE: &str = "/v1/devices/{name}/table";
    /// `POST`: close the gate and wait for I/O in flight.
    pub const SUSPEND: &str = "/v1/devices/{name}/suspend";
    /// `POST`: swap in the inactive table if there is one, and open the gate.
    pub const RESUME: &str = "/v1/devices/{name}/resume";
    /// `POST`: a new name, or a uuid where there was none.
    pub const RENAME: &str = "/v1/devices/{name}/rename";
    /// `POST`: swap in an `error` table of the same length.
    pub const WIPE: &str = "/v1/devices/{name}/wipe";
    /// `PUT` makes a disk of a device, `DELETE` ends that.
    pub const UBLK: &str = "/v1/devices/{name}/ublk";
    /// `PUT` offers a device to vhost-user front ends, `DELETE` ends that.
    pub const VHOST_USER: &str = "/v1/devices/{name}/vhost-user";
    /// `DELETE`: end connections of NBD clients.
    pub const CLIENTS: &str = "/v1/devices/{name}/clients";
    /// `POST`: the words of a message, streamed.
    pub const MESSAGE: &str = "/v1/devices/{name}/message";
    /// `GET`: long poll until the event number differs.
    pub const EVENTS: &str = "/v1/devices/{name}/events";
    /// `GET`: the region map as runs, streamed.
    pub const MAP: &str = "/v1/devices/{name}/map";
    /// `GET`: the region map condensed to so many cells.
    pub const MAP_PICTURE: &str = "/v1/devices/{name}/map/picture";
    /// `GET`: the region map as a message that makes it again, streamed.
    pub const MAP_MESSAGE: &str = "/v1/devices/{name}/map/message";
    /// `POST`: where sectors lie.
    pub const MAP_WHERE: &str = "/v1/devices/{name}/map/where";
    /// `GET`: the difference from another device's map, `POST`: from the map that a message makes.
    pub const MAP_DIFF: &str = "/v1/devices/{name}/map/diff";
    /// `POST`: a plan that moves regions.
    pub const MAP_PLAN: &str = "/v1/devices/{name}/map/plan";
    /// `GET`: counters and latencies.
    pub const STATS: &str = "/v1/devices/{name}/stats";
    /// What is kept for the next daemon.
    pub const STATE: &str = "/v1/state";
    /// One device of that.
    pub const STATE_DEVICE: &str = "/v1/state/{name}";
    /// `GET`: what happens, streamed.
    pub const MONITOR: &str = "/v1/monitor";
    /// `POST`: remove every device.
    pub const REMOVE_ALL: &str = "/v1/remove_all";
    /// `GET`: the OpenAPI document.
    pub const OPENAPI: &str = "/v1/openapi.json";
    /// `GET`: Prometheus text format.
    pub const METRICS: &str = "/metrics";
}

/// The request path of `route` (one of [`route`]'s constants with `{name}`) for the device `name`,
/// percent-encoded.
pub fn device_path(route: &str, name: &str) -> String {
    route.replace("{name}", &percent_encode(name))
}

/// Encodes everything but RFC 3986's unreserved characters, byte by byte.
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What the daemon is and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Version of the daemon, `major.minor.patch`.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// NBD URIs of the listening sockets, without an export name:
    /// `nbd+unix:///?socket=/run/blkswitch/nbd.sock`.
    pub nbd: Vec<String>,
}

/// Reply of `GET /v1/targets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetList {
    /// One entry per type a table line may name.
    pub targets: Vec<TargetVersion>,
}

/// A target type and the version of the kernel's target whose behaviour it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Target)]
pub struct TargetVersion {
    /// The word in the table line.
    pub name: String,
    /// major, minor, patch.
    pub version: [u32; 3],
}

/// Reply of `GET /v1/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceList {
    /// All devices, sorted by name (byte order).
    pub devices: Vec<Device>,
}

/// A device with all that `info`, `ls`, `table`, `status` and `deps` print.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// Name, in the stored form (see the module's contract).
    pub name: String,
    /// Uuid; empty when it has none.
    pub uuid: String,
    /// Stands where dmsetup prints the major number. The daemon gives all its devices one number
    /// that no Linux driver owns: 0, "unnamed".
    pub major: u32,
    /// The device's own number: the lowest that was free when it was created, or the one `create`
    /// asked for.
    pub minor: u32,
    /// Whether the gate is closed: new requests wait for the resume.
    pub suspended: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the device goes away with its last user.
    pub deferred_remove: bool,
    /// NBD connections that have the device open, plus devices whose live or inactive table names
    /// it, plus the disk that it is, plus its socket for vhost-user front ends.
    pub open_count: u32,
    /// Raised by target events and renames, as in the kernel.
    pub event_nr: u32,
    /// The generation of the device's region maps: one number for all its switch segments. It rises
    /// before a message, or a swap of the table, changes where regions go; a message that fails may
    /// have raised it, too. 0: nothing has changed since the device got its first table.
    #[serde(default)]
    pub generation: u64,
    /// The table that routes I/O.
    pub live: Option<LoadedTable>,
    /// The table that the next resume makes live.
    pub inactive: Option<LoadedTable>,
    /// The disk of this machine that the device is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// The socket for vhost-user front ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<VhostUser>,
    /// Who has it open over NBD, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<Client>,
    /// What it waits for, if its table is under construction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Why the table that is kept of it cannot be served yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<String>,
    /// Paths that could be written when the table was loaded, and can only be read since the daemon
    /// was started again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_only_paths: Vec<String>,
    /// Paths of the live table that cannot be reached, written or used, that flap, or whose server
    /// may have carried out a write late.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubled_paths: Vec<TroubledPath>,
    /// The source of the map; `None` if only messages change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_source: Option<MapSource>,
}

/// One slot: the segments of a loaded table and what they stand on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Table)]
pub struct LoadedTable {
    /// In order of their first sector, without gaps.
    pub segments: Vec<Segment>,
    /// Every leaf or device the segments use, once each, the one added last first (the kernel's
    /// order).
    pub deps: Vec<Dependency>,
}

impl LoadedTable {
    /// Length in sectors: where the last segment ends.
    pub fn sectors(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.start.saturating_add(segment.length))
    }
}

/// One line of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Segment {
    /// First sector.
    pub start: u64,
    /// Length in sectors.
    pub length: u64,
    /// Target type.
    pub target: String,
    /// The target's parameters as `table` prints them. A path stands as the address its leaf was
    /// opened by, or as `/dev/blkswitch/NAME`, so that a printed table can be loaded again. Bytes
    /// that are not UTF-8 stand as in a loaded table.
    pub params: String,
    /// What `status` prints behind the type: empty for `switch`.
    pub status: String,
}

/// Something a table stands on: a leaf or another device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dependency {
    /// A block device's real major number, 0 for a file or a leaf in memory, [`Device::major`] for
    /// our own.
    pub major: u32,
    /// A block device's real minor number, 0 for a file or a leaf in memory, [`Device::minor`] for
    /// our own.
    pub minor: u32,
    /// What stands for the block device's name: the file name of a path (`ram0` of `/dev/ram0`),
    /// the whole address of another leaf (`mem:1M`), the name of one of our devices.
    pub name: String,
    /// The address as the table line has it.
    pub address: String,
    /// Whether `name` is one of our devices.
    pub is_device: bool,
}

/// How a regular file or block device is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LeafCache {
    /// Block devices direct, regular files through the page cache, unless below a disk.
    #[default]
    Auto,
    /// `O_DIRECT` for all.
    Direct,
    /// Through the page cache for all.
    Buffered,
}

/// How the leaves of a table are opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeafOptions {
    /// Make files that are missing, sparse and just large enough.
    #[serde(default)]
    pub make_files: bool,
    /// Around the page cache or through it.
    #[serde(default)]
    pub cache: LeafCache,
}

/// Body of `POST /v1/devices`: create, load and resume in one. When the load or the resume fails
/// the device is removed again, and [`ErrorBody::ioctl`] names the step (`reload`, `resume`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDevice {
    /// Name in the stored form: 1 to [`NAME_MAX_BYTES`] bytes, no `/`.
    #[schema(schema_with = name_schema)]
    pub name: String,
    /// Uuid: at most [`UUID_MAX_BYTES`] bytes, unique; `None` and empty are the same.
    #[schema(max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    #[serde(default)]
    pub uuid: Option<String>,
    /// The number to use; `None`: the lowest free one.
    #[schema(maximum = 1048575)]
    #[serde(default)]
    pub minor: Option<u32>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Table text, a line per segment, in which U+10FE80 to U+10FEFF stand for the bytes 0x80 to
    /// 0xff where these are not UTF-8. `None` makes a device without a table (`--notable`), and
    /// nothing is resumed.
    #[serde(default)]
    pub table: Option<String>,
    /// The map of the only switch segment, as in [`LoadTable`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// How leaves are opened.
    #[serde(default, deserialize_with = "object")]
    pub leaves: LeafOptions,
    /// The source that supplies the map of the device's one switch segment, now and later:
    /// `file:PATH` or `referrals`. `None`: messages change the map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_from: Option<String>,
    /// Make a disk of it too. When that fails the device stays, and the answer is the failure of
    /// `attach`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_object"
    )]
    pub ublk: Option<AttachUblk>,
    /// Offer it to vhost-user front ends too. When that fails the device stays, and the answer is
    /// the failure of `attach`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_object"
    )]
    pub vhost_user: Option<AttachVhostUser>,
}

/// Body of `PUT /v1/devices/{name}/table`. The words of a table are literal: libdm doubles every
/// backslash before the kernel removes one, so here nobody touches them. An empty text is refused
/// with EINVAL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadTable {
    /// Table text, a line per segment, in which U+10FE80 to U+10FEFF stand for the bytes 0x80 to
    /// 0xff where these are not UTF-8.
    pub table: String,
    /// Whether the device refuses writes once this table is live.
    #[serde(default)]
    pub read_only: bool,
    /// How leaves are opened.
    #[serde(default, deserialize_with = "object")]
    pub leaves: LeafOptions,
    /// Keep the maps of the live table: the table goes live with them. Refused if the region size
    /// differs, if a region is gone or would have no path, or if paths have another order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_map: bool,
    /// With `keep_map`: paths may have another order. Regions stay on their paths.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// The map of the only switch segment, as a `set_region_mappings` message (`map export`). A
    /// resume is refused with ESTALE if the map of the device has changed since the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
}

/// Body of `suspend` and `wipe`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Suspend {
    /// I/O that finds no path of a multipath while it is waited for is held until after the resume,
    /// whatever the multipath's policy is. (What is held already stays held in any case.)
    #[serde(default)]
    pub noflush: bool,
    /// Accepted for dmsetup's sake: a suspend freezes no file system, one on the device's disk
    /// (ublk) included. Use fsfreeze before, where it matters.
    #[serde(default)]
    pub nolockfs: bool,
}

/// Body of `rename`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Rename {
    /// The new name, in the stored form.
    Name(String),
    /// The uuid of a device that has none yet.
    Uuid(String),
}

/// Query of `DELETE /v1/devices/{name}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RemoveQuery {
    /// Swap in an `error` table first, so that I/O under way fails instead of holding the device.
    /// Without `deferred`, then disconnect its NBD clients, unless it has other users.
    #[serde(default)]
    pub force: bool,
    /// When it is open, remove it with its last user instead of answering EBUSY.
    #[serde(default)]
    pub deferred: bool,
}

/// Body of `remove_all`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveAll {
    /// Swap in `error` tables first. Clients stay connected, and devices that are open stay.
    #[serde(default)]
    pub force: bool,
    /// As in [`RemoveQuery`].
    #[serde(default)]
    pub deferred: bool,
}

/// Reply of `remove_all`. Devices that are in use stay and are no error, as in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// Names of the devices that are gone.
    pub removed: Vec<String>,
    /// Names of the devices that stay because they are in use.
    pub busy: Vec<String>,
}

/// Query of `GET /v1/devices/{name}/events`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Answer as soon as the event number differs from this, at the latest after
    /// [`EVENTS_POLL_SECONDS`].
    #[param(maximum = 4294967295u64)]
    #[serde(default)]
    pub after: u32,
}

/// Reply of an `events` poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Events {
    /// The number now; equal to `after` when the poll timed out.
    pub event_nr: u32,
    /// Whether the wait is over: the number differs, or the device was removed meanwhile (an event,
    /// as in the kernel).
    pub changed: bool,
}

/// Query of `GET /v1/monitor`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct MonitorQuery {
    /// Names of devices with commas in between; absent or empty: all devices.
    #[serde(default)]
    pub devices: String,
}

/// A path that somebody should look at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TroubledPath {
    /// The path, as the table has it.
    pub path: String,
    /// Why it cannot be reached or is not used: which promise its server breaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Writes in doubt that went on only because their time to settle was over, since the path was
    /// opened.
    #[serde(default)]
    pub doubted_writes: u64,
    /// It flaps (`serve --marginal-path`): it is used while no other path is up.
    #[serde(default)]
    pub marginal: bool,
}

/// Something that happened to a device: a line of `GET /v1/monitor`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MonitorEvent {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// The device; empty for `EVENTS_LOST` and `DAEMON_ENDS`.
    pub device: String,
    /// Its number.
    pub minor: u32,
    /// What: `PATH_FAILED`, `PATH_REINSTATED`, `GROUP_SWITCHED`, `GROUP_CHOSEN`, `GROUP_DISABLED`,
    /// `GROUP_ENABLED`, `QUEUEING_ON`, `QUEUEING_OFF`, `REMAPPED`, `PATH_ERRORS`, `CREATED`,
    /// `REMOVED`, `RENAMED`, `SUSPENDED`, `RESUMED`, `TABLE_SWAPPED` (a resume took the inactive
    /// table), `PATH_UNREACHABLE` (also each time the reason changes), `PATH_REACHABLE`,
    /// `PATH_MARGINAL` (it flaps), `PATH_QUIET` (it no longer does),
    /// `EVENTS_LOST` (the watcher was too slow), or `DAEMON_ENDS`, the last.
    pub event: String,
    /// The device's event number then.
    pub event_nr: u32,
    /// The path that failed, is back, or answered with errors, as the table has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Paths of the device that are up now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths_up: Option<u32>,
    /// The priority group, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// Why the path cannot be reached or is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// First sector of the switch segment that was remapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector: Option<u64>,
    /// Arguments of its message that were applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<u64>,
    /// The generation of the device's maps after a `REMAPPED` or `TABLE_SWAPPED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The user of the process that sent the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The number of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What asked for the remap: `message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The errno of a path's errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// How many errors of this kind there were since the last such event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The name that a renamed device had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// How many events are missing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

/// Counters and latencies of a device since its live table was first resumed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceStats {
    /// The device.
    pub name: String,
    /// Requests as clients sent them.
    pub total: IoStats,
    /// The parts of requests that went to each path, in order of segment and path.
    pub paths: Vec<PathStats>,
}

/// Counters of one path of one segment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PathStats {
    /// First sector of the segment.
    pub segment: u64,
    /// Number of the path in its table line, from 0.
    pub path: u32,
    /// The path as the table has it.
    pub address: String,
    /// Its counters.
    pub io: IoStats,
}

/// Counters: completed operations only; failed ones count as `errors` as well.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IoStats {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Parts of discards that did nothing, because a path cannot discard.
    pub ignored_discards: u64,
    /// Write-zeroes.
    pub write_zeroes: u64,
    /// Operations of any kind that failed.
    pub errors: u64,
    /// How long reads took.
    pub read_latency: Latency,
    /// How long writes took.
    pub write_latency: Latency,
}

/// Quantiles of a latency in nanoseconds; all 0 when nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Latency {
    /// Half were faster.
    pub p50_ns: u64,
    /// Nine of ten were faster.
    pub p90_ns: u64,
    /// 99 % were faster.
    pub p99_ns: u64,
    /// 99.9 % were faster.
    pub p999_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

/// Body of every reply outside 2xx, and of nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What the kernel's ioctl would have returned.
    pub errno: Errno,
    /// The ioctl that failed, by libdm's name: create reload remove remove_all suspend resume info
    /// deps rename version status table waitevent names clear versions message; or, of no ioctl,
    /// attach and detach. A `create` fails as `create`, `reload`, `resume` or `attach`.
    pub ioctl: String,
    /// Lines the kernel would have written to its log, with `$DEV` in them replaced by
    /// `major:minor`.
    pub kernel: Vec<String>,
    /// A sentence for people: quotes the argument and gives the allowed range.
    pub reason: String,
    /// major and minor, where libdm prints them although the caller named none: in the `reload` and
    /// `resume` of a create.
    pub device: Option<[u32; 2]>,
    /// The generation of the device's maps now, if the message has raised it although it failed, or
    /// has expected another one (ESTALE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// What the daemon takes as a name. A schema counts characters and not bytes: names in the stored
/// form have one for each.
fn name_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("Name in the stored form: 1 to 127 bytes, no `/`, not `control`."))
        .min_length(Some(1))
        .max_length(Some(NAME_MAX_BYTES))
        .pattern(Some(r"^(?!(control|\.|\.\.)$)[^/\u0000-\u001f\u007f-\u009f]+$"))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_percent_encoded_in_paths() {
        assert_eq!(device_path(route::MESSAGE, "a\\x20b"), "/v1/devices/a%5Cx20b/message");
        assert_eq!(device_path(route::DEVICE, "vg-lv.0_1~"), "/v1/devices/vg-lv.0_1~");
        assert_eq!(device_path(route::DEVICE, "#+:=@"), "/v1/devices/%23%2B%3A%3D%40");
    }

    #[test]
    fn requests_with_unknown_fields_are_refused() {
        let misspelt = r#"{"name": "x", "tabel": "0 1 error"}"#;
        assert!(serde_json::from_str::<CreateDevice>(misspelt).is_err());
        let minimal: CreateDevice = serde_json::from_str(r#"{"name": "x"}"#).unwrap();
        assert_eq!(minimal, CreateDevice { name: "x".into(), ..CreateDevice::default() });
        let whole = r#"{"name": "x", "leaves": {"make_files": true}, "ublk": {"queues": 2}}"#;
        let whole: CreateDevice = serde_json::from_str(whole).unwrap();
        assert!(whole.leaves.make_files && whole.ublk.unwrap().queues == Some(2));
        let none = r#"{"name": "x", "ublk": null}"#;
        assert_eq!(serde_json::from_str::<CreateDevice>(none).unwrap().ublk, None);
    }

    #[test]
    fn lists_are_no_objects() {
        for list in [
            r#"{"name": "x", "leaves": []}"#,
            r#"{"name": "x", "leaves": null}"#,
            r#"{"name": "x", "ublk": [1, 2]}"#,
        ] {
            let error = serde_json::from_str::<CreateDevice>(list).unwrap_err().to_string();
            assert!(error.contains("expected an object"), "{error}");
        }
    }
}
