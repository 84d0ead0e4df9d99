//! Programs that others may build on blkswitch-io. The package has no unsafe code and uses only the
//! public interface.

#![forbid(unsafe_code)]

pub mod archive;
pub mod disk;
pub mod latency;
pub mod service;
