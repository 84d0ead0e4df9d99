//! The iSCSI engine: a leaf that is a logical unit of an iSCSI target.
//!
//! ```text
//! open    session.rs: login (CHAP, redirections), questions   control thread, blocking, with a deadline
//! I/O     engine/session/carrier.rs -> link.rs, send.rs                a queue's thread and ring
//!         pdu.rs: headers to bytes, bytes to headers            pure
//!         login.rs: what is agreed, CHAP                        pure
//!         scsi.rs: commands to bytes, sense to outcomes         pure
//! lost    engine/session/connector.rs: another session, from the portal on
//! control its own session: probe, flush                         control thread, blocking, with a deadline
//! ```
//!
//! Each queue has a session of its own. The cache is the logical unit's, so a flush by any session
//! covers all.
//!
//! The protocol is spoken here and not by libiscsi, which it was at first: that believes a target
//! that answers a read with less data than was asked for, and loops for ever when one asks for data
//! of a read. It also allocates for every command.
//!
//! Contract: as [`crate::engine::Engine`]. What is promised to users is in `docs/leaves.md`.

pub mod address;
mod engine;
mod link;
mod login;
pub mod pdu;
pub mod scsi;
mod send;
mod session;

pub use address::IscsiAddress;
pub use engine::IscsiEngine;
