//! Messages to the targets of a device.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Query of `POST /v1/devices/{name}/message`. The body is the message, words separated by white
/// space with the kernel's backslash rule, read as it arrives: it may be of any length. A word that
/// begins with `#` begins a comment, to the end of the line. When a word is refused the daemon
/// still reads the rest and drops it before it answers, so that the client always gets the reason
/// instead of a broken pipe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct MessageQuery {
    /// An absolute sector of the device; its segment gets the message.
    #[param(maximum = 18446744073709551615u64)]
    #[serde(default)]
    pub sector: u64,
    /// All or nothing, instead of the kernel's "applied as far as it was understood".
    #[serde(default)]
    pub atomic: bool,
    /// Refuse the message with ESTALE, and change nothing, unless the map has this generation. It
    /// implies `atomic`. Such a message may have any length: a long one is applied to a copy of the
    /// map first, and others are not held up while it arrives.
    #[param(maximum = 18446744073709551615u64)]
    pub if_generation: Option<u64>,
    /// Change the map although a source supplies it; the source's next reading may undo that.
    #[serde(default)]
    pub force: bool,
}

/// Reply of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageReply {
    /// Text for the caller, for the few messages that answer (`@stats_create`).
    pub text: Option<String>,
    /// How many arguments were applied (`R2,10` is one).
    pub arguments: u64,
    /// The generation of the device's maps after the message.
    #[serde(default)]
    pub generation: u64,
}
