//! The iSCSI leaf against a target of our own, which lies, hangs up and sends events when it is told
//! to. Needs nothing but this machine.

#[path = "../support/mod.rs"]
mod support;

mod doubt;
mod events;
mod hostile;
mod own;
mod promises;

/// What our own export says of a leaf that is out of reach.
const ESHUTDOWN: u32 = 108;
const MIB: usize = 1 << 20;
