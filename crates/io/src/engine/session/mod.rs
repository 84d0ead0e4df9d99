//! Common code of the engines that reach their leaf over a socket: links on a queue's ring,
//! reconnecting connections, and the addresses of servers.

pub(crate) mod carrier;
pub(crate) mod conn;
pub(crate) mod connector;
pub mod links;
pub(crate) mod socket;
pub(crate) mod turn;
pub mod uri;
