//! Benchmarks: `cargo run --release -p blkswitch-bench -- message` and its siblings.
fn main() {}
