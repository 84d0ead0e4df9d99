//! The iSCSI engine: a leaf that is a logical unit of an iSCSI target, through libiscsi.
//!
//! ```text
//! open    session.rs: login (CHAP, redirections), questions   control thread, blocking, with a deadline
//! I/O     engine/carrier.rs -> link.rs -> libiscsi              a queue's thread and ring
//!         scsi.rs: commands to bytes, sense to outcomes         pure
//! lost    engine/connector.rs: another session, from the portal on
//! control its own session: probe, flush                         control thread, blocking, with a deadline
//! ```
//!
//! Each queue has a session of its own: a context of libiscsi is one thread's at a time. The cache
//! is the logical unit's, so a flush by any session covers all.
//!
//! Only with the feature `iscsi` is there more than [`address`] and [`scsi`]: the rest needs
//! libiscsi.
//!
//! Contract: as [`crate::engine::Engine`]. What is promised to users is in `docs/leaves.md`.

pub mod address;
#[cfg(feature = "iscsi")]
mod engine;
#[cfg(feature = "iscsi")]
mod ffi;
#[cfg(feature = "iscsi")]
mod link;
pub mod scsi;
#[cfg(feature = "iscsi")]
mod session;

pub use address::IscsiAddress;
#[cfg(feature = "iscsi")]
pub use engine::IscsiEngine;
