//! Common code of the engines that reach their leaf over a socket: sessions on a queue's ring,
//! reconnecting connections, and the addresses of servers.

pub(crate) mod conn;
pub(crate) mod reconnecting;
pub(crate) mod reconnector;
pub mod sessions;
pub(crate) mod socket;
pub(crate) mod turn;
pub mod uri;
