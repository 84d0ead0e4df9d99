//! The words of the region table and the mark of its writer: the machine's atomics, or, where all
//! orders of their use are tried, loom's.
//!
//! Contract: nothing but these names.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64};
