//! The iSCSI engine: a leaf that is a logical unit of an iSCSI target.
//!
//! ```text
//! open    session.rs: login (CHAP, redirections), inquiry  control thread, with a deadline
//! I/O     session/reconnecting.rs -> protocol.rs, send.rs           a queue's thread and ring
//!         pdu.rs: headers to bytes, bytes to headers       pure
//!         login.rs: negotiation, CHAP                      pure
//!         scsi.rs: commands to bytes, sense to outcomes    pure
//! lost    session/reconnector.rs: another session            from the address's portal on
//! control its own session: probe, flush                    control thread, with a deadline
//! ```
//!
//! Each queue has its own session. The cache belongs to the logical unit, so a flush on any session
//! covers all.
//!
//! The first version used libiscsi. It was replaced, because it accepts an answer to a read with
//! less data than was asked for, loops for ever if a target requests data of a read, and allocates
//! for every command.
//!
//! Contract: as [`crate::engine::Engine`]. `docs/leaves.md` tells users what to expect.

pub mod address;
mod engine;
mod login;
pub mod pdu;
mod protocol;
pub mod scsi;
mod send;
mod session;

pub use address::IscsiAddress;
pub use engine::IscsiEngine;
