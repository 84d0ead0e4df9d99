//! The iSCSI leaf against a target in this process (`own.rs`), which lies, hangs up and sends
//! events when told to. The tests need nothing else.

#[path = "../support/mod.rs"]
mod support;

mod doubt;
mod events;
mod hostile;
mod own;
mod promises;
mod queries;

/// The error that blkswitch's own NBD export returns for a leaf that is out of reach.
const ESHUTDOWN: u32 = 108;
const MIB: usize = 1 << 20;
