//! The process of the daemon and its machine: sockets, signals, limits, privileges, mounts.
//!
//! Contract: nothing here knows a device.

pub mod limits;
pub mod listen;
pub(crate) mod mounts;
pub mod privileges;
pub mod runtime;
pub mod sockets;
pub mod stop;
