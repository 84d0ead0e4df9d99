//! Exports: how a device is offered. A folder each; what they share is here.
//!
//! An export makes requests with tokens of its own. The top bit of a token says which export made
//! it, so that a queue carries an answer there without a table: NBD's tokens leave it clear.

pub mod nbd;
pub mod ublk;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

pub use crate::request::UBLK_TOKEN;

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
