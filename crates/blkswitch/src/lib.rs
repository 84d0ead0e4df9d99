//! blkswitch: the daemon and the command line that drives it.
//!
//! [`daemon`] owns the devices and answers on a unix socket; [`protocol`] is what daemon and client say to each
//! other; [`demo`] shows the whole in one command. The binary is this library and a `main` of a few lines.

pub mod daemon;
pub mod demo;
pub mod nbd_client;
mod picture;
pub mod protocol;
