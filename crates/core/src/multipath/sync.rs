//! The atomics of this target: the machine's, or, where all orders of their use are tried, loom's.
//!
//! Contract: nothing but these names.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
