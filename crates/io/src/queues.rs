//! The queues that a leaf is opened for: those of one pool, or the one of a driver.
//!
//! A leaf keeps an account of unflushed writes, and engines keep descriptors and connections, one
//! for each queue, which only that queue may touch. A leaf with fewer would lose what the others
//! wrote; one that two pools share would have two writers in one account. Neither can be noticed
//! when it happens: a FLUSH would just be answered too early.
//!
//! Contract: only a pool or a driver makes a [`Queues`], for its own number of queues. A leaf or
//! table is compared with the [`Queues`] of the pool or driver before it sees the first request.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

/// The queues of one pool, or the one queue of a driver. Two are equal if they are of the same pool
/// or driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    count: NonZeroUsize,
    /// Of which pool or driver.
    owner: u64,
}

impl Queues {
    /// The queues of a new owner: `count` of them, at least 1.
    pub(crate) fn of_new_owner(count: usize) -> Queues {
        static OWNERS: AtomicU64 = AtomicU64::new(0);
        let count = NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        Queues { count, owner: OWNERS.fetch_add(1, Ordering::Relaxed) }
    }

    /// The queues of pipelines that a test drives itself.
    #[cfg(feature = "internals")]
    #[doc(hidden)]
    pub fn of_pipelines(count: usize) -> Queues {
        Queues::of_new_owner(count)
    }

    /// How many there are, at least 1.
    pub fn count(self) -> usize {
        self.count.get()
    }
}
