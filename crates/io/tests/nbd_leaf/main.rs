//! The NBD leaf against servers good and bad: our own in this process, and one that does what a
//! script says.

#[path = "../support/mod.rs"]
mod support;

mod data;
mod driver;
mod faults;
mod promises;
mod server;
