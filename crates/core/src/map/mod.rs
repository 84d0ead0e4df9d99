//! The life of a map outside of messages: its difference from another map, its way into a new
//! table, plans that move regions, and the maps that arrays report.
//!
//! | module | does |
//! |---|---|
//! | [`diff`] | compares two maps, as runs of regions or as a message that turns one into the other |
//! | [`keep`] | carries a map over to a table with other paths, and finds regions of paths that are gone |
//! | [`search`] | finds the regions of a path, and counts the regions of each path |
//! | [`plan`] | plans moves of regions: off a path, to given shares, to longer runs |
//! | [`referrals`] | decodes the region map that a SCSI array reports |
//! | [`alua`] | decodes the states and ports of an array's target port groups |
//!
//! Contract: decisions only. No I/O, no clock, no allocation, no panic for any input; the caller
//! lends arrays where a decision needs one per path. A caller that needs a map of one moment holds
//! the message lock. Everything is deterministic: the same input gives the same plan.
//!
//! The kernel module is built without this room.

pub mod alua;
pub mod diff;
pub mod keep;
pub mod plan;
pub mod referrals;
mod scsi;
pub mod search;
