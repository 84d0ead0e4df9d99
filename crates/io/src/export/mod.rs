//! How a device is offered to its users: one folder per protocol.

pub mod nbd;
