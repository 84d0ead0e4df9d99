//! The atomics of lock-free code: the standard library's, or loom's, which tries every interleaving
//! of a test (`RUSTFLAGS="--cfg loom" cargo test -p blkswitch-io --release --test loom_dirty`).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

/// The connector's, which its loom test replaces together with this whole module
/// (`tests/loom_links.rs`): a clock and waits with an end are not loom's.
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool},
    thread,
    time::Instant,
};
