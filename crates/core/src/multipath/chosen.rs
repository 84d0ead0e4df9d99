//! The group in use: three numbers in one word, so that all queues see them change together.
//!
//! Contract: lock-free; numbers count from 1, 0 is none.

use super::sync::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// Bits of a group's number: more than [`super::params::MAX_GROUPS`] needs.
const NUMBER_BITS: u32 = u16::BITS;

/// The numbers of three groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    /// The group that requests use.
    pub(super) current: u16,
    /// The group that a message or the table has named, until a request uses it.
    pub(super) next: u16,
    /// The group that requests used last, also while there is no current one.
    pub(super) last: u16,
}

impl Chosen {
    /// The current group, or 0 if it is about to change.
    #[inline]
    pub(super) const fn settled(self) -> u16 {
        if self.next == 0 { self.current } else { 0 }
    }

    /// The numbers after a change to `group` (0: none).
    pub(super) const fn moved_to(self, group: u16) -> Self {
        Self { current: group, next: 0, last: if group == 0 { self.last } else { group } }
    }

    const fn pack(self) -> u64 {
        self.current as u64
            | (self.next as u64) << NUMBER_BITS
            | (self.last as u64) << (NUMBER_BITS + NUMBER_BITS)
    }

    const fn unpack(word: u64) -> Self {
        Self {
            current: word as u16,
            next: (word >> NUMBER_BITS) as u16,
            last: (word >> (NUMBER_BITS + NUMBER_BITS)) as u16,
        }
    }
}

/// A [`Chosen`] in an atomic word.
#[derive(Debug)]
pub(super) struct ChosenGroup(AtomicU64);

impl ChosenGroup {
    pub(super) fn new(chosen: Chosen) -> Self {
        Self(AtomicU64::new(chosen.pack()))
    }

    #[inline]
    pub(super) fn load(&self) -> Chosen {
        Chosen::unpack(self.0.load(Relaxed))
    }

    pub(super) fn load_ordered(&self) -> Chosen {
        Chosen::unpack(self.0.load(SeqCst))
    }

    /// Replaces `before` by `after`. Returns `false` if another thread has changed the word.
    pub(super) fn replace(&self, before: Chosen, after: Chosen) -> bool {
        self.0.compare_exchange(before.pack(), after.pack(), SeqCst, SeqCst).is_ok()
    }

    pub(super) fn update(&self, change: impl Fn(Chosen) -> Chosen) {
        // `fetch_update` fails only if the closure returns `None`, and this one never does.
        let _ =
            self.0.fetch_update(SeqCst, SeqCst, |word| Some(change(Chosen::unpack(word)).pack()));
    }
}
