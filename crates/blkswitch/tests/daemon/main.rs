//! Tests of the daemon: the program as a user runs it, driven through its sockets and its command
//! line. The tests with third-party programs and other kernels are the scripts in `tests/system`.
//!
//! They are one test program, so that they share one build of the fixture. They need only the Rust
//! toolchain: backing devices are files in a temporary folder. Every test has a daemon of its own.

mod control;
mod demo;
mod errors;
mod events;
mod fixture;
mod generation;
mod golden;
mod golden_io;
mod golden_multipath;
mod golden_tables;
mod golden_tools;
mod held;
mod http;
mod keep;
mod lifecycle;
mod multipath;
mod names;
mod nbd_clients;
mod plans;
mod remap;
mod sources;
mod state;
mod state_damage;
mod survival;
mod vhost_user;
mod waiting;
