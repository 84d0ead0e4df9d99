//! The atomics of lock-free code. With `cfg(loom)` they are loom's, which tries every interleaving
//! of a test (`RUSTFLAGS="--cfg loom" cargo test -p blkswitch-io --release --test loom_dirty`).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

/// The types of the connector. Its loom test replaces this whole module (`tests/loom_reconnector.rs`),
/// because loom has no clock and no waits with a time limit.
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool},
    thread,
    time::Instant,
};
