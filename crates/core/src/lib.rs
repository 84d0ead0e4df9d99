//! blkswitch-core: decides which path every sector of a switch device takes.
#![no_std]
#![forbid(unsafe_code)]
