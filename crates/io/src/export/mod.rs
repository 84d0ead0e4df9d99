//! Exports: how a device is offered. A folder each; what they share is here.
//!
//! An export makes requests with tokens of its own. The top bit of a token says which export made
//! it, so that a queue carries an answer there without a table: NBD's tokens leave it clear.

pub mod nbd;
pub mod ublk;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use crate::request::Token;

/// The mark of a token that the ublk export made.
pub const UBLK_TOKEN: Token = 1 << 63;

/// Who made a request: the connection or hardware queue, as far as its token tells.
pub(crate) fn owner_of(token: Token) -> u64 {
    // The tag of a request of a hardware queue has 16 bits, the number of one of a connection 32.
    let shift = if token & UBLK_TOKEN == 0 { 32 } else { 16 };
    token >> shift << shift
}

/// A listening socket.
pub struct Listener {
    /// The socket.
    pub socket: OwnedFd,
    /// What to call it in the log.
    pub name: String,
}

impl From<UnixListener> for Listener {
    fn from(socket: UnixListener) -> Listener {
        let name =
            socket.local_addr().ok().and_then(|a| a.as_pathname().map(|p| p.display().to_string()));
        Listener { name: name.unwrap_or_else(|| "unix".into()), socket: socket.into() }
    }
}

impl From<std::net::TcpListener> for Listener {
    fn from(socket: std::net::TcpListener) -> Listener {
        let name = socket.local_addr().map_or("tcp".into(), |a| a.to_string());
        Listener { name, socket: socket.into() }
    }
}
