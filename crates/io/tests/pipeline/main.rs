//! The pipeline through its public interface, on simulated rings, in one thread: splitting against
//! the model, what becomes of results that are no plain success, flushes in the hard cases,
//! multipath devices.

mod bench;
mod flush;
mod judge;
mod multipath;
mod split;
#[path = "../sim/stack.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the simulation")]
mod stack;
mod turns;
