//! blkswitch: daemon and command line in one binary.

mod picture;
pub mod protocol;

fn main() {}
