//! The atomics of the region table and of its writer's flag: the machine's, or loom's in tests that
//! try all orders of accesses.
//!
//! Contract: only re-exports.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64};
