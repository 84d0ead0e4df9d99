//! blkswitch takes orders: daemon and command line of switch devices in user space.
//!
//! [`protocol`] is the protocol between the two, [`cli`] the command line, [`daemon`] the devices
//! and the server, [`demo`] both in one process. The program is `main.rs`, one call of
//! [`cli::run`]. The rest is a library, so that tests can start a daemon inside themselves.

pub mod cli;
pub mod compact;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod nbd_client;
pub mod nearest;
pub mod picture;
pub mod printable;
pub mod protocol;
pub mod raw;
pub mod workload;
