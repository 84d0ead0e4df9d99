//! blkswitch: daemon and command line in one binary.

fn main() {}
