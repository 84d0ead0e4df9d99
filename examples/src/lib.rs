//! What others build on blkswitch-io, as a package of its own: without unsafe code, and with nothing
//! but what everybody can use.

#![forbid(unsafe_code)]

pub mod archive;
pub mod service;
