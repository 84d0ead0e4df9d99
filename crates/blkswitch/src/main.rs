//! blkswitch: daemon and command line in one binary.

pub mod protocol;

fn main() {}
