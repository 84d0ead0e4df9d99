//! Tests of the pipeline through its public interface, on simulated rings in one thread: splitting
//! against the model, results that are no full success, flushes in the hard cases, and multipath
//! devices.

mod bench;
mod drain;
mod flush;
mod judge;
mod multipath;
mod split;
#[path = "../sim/stack.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the simulation")]
mod stack;
mod turns;
