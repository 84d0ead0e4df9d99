//! blkswitch-io: moves the bytes.

pub mod export;
