//! The atomics of this target: `core`'s, or loom's in tests that try all orders of accesses.
//!
//! Contract: only re-exports.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
