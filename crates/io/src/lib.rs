//! blkswitch-io: moves the bytes.
