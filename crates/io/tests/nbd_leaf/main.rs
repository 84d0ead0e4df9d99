//! The NBD leaf against good and bad servers: blkswitch's own in this process, and one that follows
//! a script.

#[path = "../support/mod.rs"]
mod support;

mod data;
mod driver;
mod faults;
mod promises;
mod server;
