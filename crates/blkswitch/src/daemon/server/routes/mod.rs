//! The handlers of the control protocol, a file per group of routes.

pub mod clients;
pub mod devices;
pub mod diff;
pub mod disks;
pub mod events;
pub mod map;
pub mod message;
pub mod meta;
pub mod monitor;
pub mod places;
pub mod plan;
pub mod state;
pub mod stats;
pub mod tables;
