//! Who uses a device: NBD clients, virtual machines, and this machine, for which it is a disk.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A connection that has a device open over NBD.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Client {
    /// The connection's number; no other connection to this daemon ever has it.
    pub number: u64,
    /// Who it is, as the kernel says: an address and port, or `pid N uid N` over a unix socket.
    pub peer: String,
    /// When it connected, in seconds since 1970.
    pub since: u64,
    /// Requests that have come and are not answered yet.
    pub in_flight: u64,
}

/// Query of `DELETE /v1/devices/{name}/clients`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DisconnectQuery {
    /// The client: its number, its peer, or the address of its host; absent: all clients.
    #[serde(default)]
    pub client: Option<String>,
}

/// Reply of `DELETE /v1/devices/{name}/clients`: the connections that were ended, and are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disconnected {
    /// As they were before.
    pub disconnected: Vec<Client>,
}

/// A device as a disk of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// The block device: `/dev/ublkb0`.
    pub node: String,
    /// The name that stays the same: `/dev/blkswitch/NAME`.
    pub link: String,
    /// Hardware queues.
    pub queues: u16,
    /// Requests per hardware queue.
    pub depth: u16,
    /// Data is not copied on its way to leaves that can do without (Linux 6.16).
    #[serde(default)]
    pub zero_copy: bool,
    /// Its size in sectors of 512 bytes, which it keeps whatever table is loaded.
    #[serde(default)]
    pub sectors: u64,
    /// Its logical block size in bytes, which it keeps as well.
    #[serde(default)]
    pub logical_block: u32,
    /// What may hold it up when the machine's memory is short, each a phrase.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub risks: Vec<String>,
}

/// Body of `PUT /v1/devices/{name}/ublk`: how a device becomes a disk of this machine, by the
/// kernel's ublk driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachUblk {
    /// Hardware queues, 1 to 4096; absent: as many as the daemon has queues. The kernel makes no
    /// more than it has processors.
    #[schema(minimum = 1, maximum = 4096)]
    #[serde(default)]
    pub queues: Option<u16>,
    /// Requests per hardware queue, 1 to 4096; absent: 128.
    #[schema(minimum = 1, maximum = 4096)]
    #[serde(default)]
    pub depth: Option<u16>,
    /// Zero copy if the kernel can, or none; absent: if all leaves can do without copies and one
    /// goes past the page cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_copy: Option<bool>,
}

/// Query of `DELETE /v1/devices/{name}/ublk` and `DELETE /v1/devices/{name}/vhost-user`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DetachQuery {
    /// Also while the disk is in use: its users get errors from now on, and what the kernel has not
    /// written is lost.
    #[serde(default)]
    pub force: bool,
}

/// The socket of a device for vhost-user front ends, for which it is a disk of a virtual machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VhostUser {
    /// The path of the socket.
    pub socket: String,
    /// Most virtqueues that a front end may use.
    pub queues: u16,
    /// Whether a front end is connected.
    pub connected: bool,
}

/// Body of `PUT /v1/devices/{name}/vhost-user`: how a device is offered to vhost-user front ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachVhostUser {
    /// Most virtqueues that a front end may use, 1 to 256; absent: 64.
    #[schema(minimum = 1, maximum = 256)]
    #[serde(default)]
    pub queues: Option<u16>,
}
