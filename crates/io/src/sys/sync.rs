//! The atomics of lock-free code. With `cfg(loom)` they are loom's, which tries every interleaving
//! of a test (`RUSTFLAGS="--cfg loom" cargo test -p blkswitch-io --release --test loom_dirty`).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

/// The memory that lock-free code hands from one thread to another. loom's finds two threads that
/// use it at once.
#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell;

/// As loom's: the memory is used only within a call.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// Calls `use_it` with the address of the value. The caller keeps the rules of its use.
    pub(crate) fn with_mut<R>(&self, use_it: impl FnOnce(*mut T) -> R) -> R {
        use_it(self.0.get())
    }
}

/// The types of the connector. Its loom test replaces this whole module
/// (`tests/loom_reconnector.rs`), because loom has no clock and no waits with a time limit.
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool},
    thread,
    time::Instant,
};
