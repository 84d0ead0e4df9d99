//! The numbers of protocols that the server's side and the client's side share.

pub mod nbd;
pub mod replaces;
