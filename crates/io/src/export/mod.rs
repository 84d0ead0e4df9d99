//! Exports: how a device is offered. NBD here; others beside it.

pub mod nbd;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

/// A listening socket.
pub struct Listener {
    /// The socket.
    pub socket: OwnedFd,
    /// What to call it in the log.
    pub name: String,
}

impl From<UnixListener> for Listener {
    fn from(socket: UnixListener) -> Listener {
        let name = socket.local_addr().ok().and_then(|a| a.as_pathname().map(|p| p.display().to_string()));
        Listener { name: name.unwrap_or_else(|| "unix".into()), socket: socket.into() }
    }
}

impl From<std::net::TcpListener> for Listener {
    fn from(socket: std::net::TcpListener) -> Listener {
        let name = socket.local_addr().map_or("tcp".into(), |a| a.to_string());
        Listener { name, socket: socket.into() }
    }
}
