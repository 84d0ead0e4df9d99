//! Exports: the ways in which a device is offered. Each has a folder; common parts are here.
//!
//! An export chooses the tokens of its requests. The top bits of a token say which export made it,
//! so a queue finds the export of an answer without a table. NBD's tokens leave the three top bits
//! clear, clients of this process set the second, and vhost-user sets the third.

pub mod client;
pub mod nbd;
pub mod ublk;
pub mod vhost_user;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

pub use crate::request::{UBLK_TOKEN, VHOST_USER_TOKEN};

/// A listening socket for NBD clients.
pub struct Listener {
    /// The socket, which is bound and listens.
    pub socket: OwnedFd,
    /// The name of the socket in the log.
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
