//! The words of the region table: the machine's atomics, or, where all orders of their use are
//! tried, loom's.
//!
//! Contract: nothing but this name.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::AtomicU64;
#[cfg(loom)]
pub(super) use loom::sync::atomic::AtomicU64;
