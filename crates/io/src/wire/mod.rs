//! Numbers of protocols, shared by the server's and the client's side.

pub mod nbd;
pub mod replaces;
pub(crate) mod vhost_user;
