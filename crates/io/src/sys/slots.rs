//! The words of a region map, in memory of this process. If they are also kept in a file, changes
//! are noted.
//!
//! The owner of a device may keep its map in a file, and writes the changes of each message there
//! before it answers the message. The words are not a mapping of that file. So if another process
//! shortens the file, a system call fails, and there is no SIGBUS. And the file never has half a
//! message that its checksums do not cover.
//!
//! Contract: the words are zero at first and do not move. The map's one writer notes changes. They
//! are read and cleared under the same lock.

use std::io;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use blkswitch_core::switch::Storage;

/// Words of a block, which is written to a file as a unit. With a checksum it is a sector of 512
/// bytes, which no medium writes in part.
pub const BLOCK_WORDS: usize = 63;
/// Most bytes of maps that are locked in memory, if memory is locked ([`crate::sys::process`]). A
/// look-up below a disk must not wait for a page. Further maps are not locked.
const LOCKED_MAX: usize = 256 << 20;
/// Bytes of the maps that count as locked.
static LOCKED: AtomicUsize = AtomicUsize::new(0);

/// Counts a new map as locked, if the limit allows it.
fn count_locked(bytes: usize) -> bool {
    let room = |locked: usize| locked.checked_add(bytes).filter(|locked| *locked <= LOCKED_MAX);
    LOCKED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
}

/// The changed blocks, with a bit for each.
#[derive(Debug)]
pub struct Changes(Box<[AtomicU64]>);

impl Changes {
    fn new(len: usize) -> Option<Changes> {
        let blocks = len.div_ceil(BLOCK_WORDS);
        let bits = bytemuck::allocation::try_zeroed_slice_box(blocks.div_ceil(64)).ok()?;
        Some(Changes(bits))
    }

    /// Notes the block of a word. There is only one writer, so a load and a store suffice.
    #[inline]
    fn note(&self, word: usize) {
        self.note_block(word / BLOCK_WORDS);
    }

    /// Notes a block as changed.
    #[inline]
    pub fn note_block(&self, block: usize) {
        if let Some(bits) = self.0.get(block / 64) {
            let now = bits.load(Ordering::Relaxed);
            let with = now | 1 << (block % 64);
            if with != now {
                bits.store(with, Ordering::Relaxed);
            }
        }
    }

    /// The first changed block from `block` on; `None` if there is none.
    pub fn next(&self, block: usize) -> Option<usize> {
        let rest = self.0.get(block / 64)?.load(Ordering::Relaxed) >> (block % 64);
        if rest != 0 {
            return Some(block + rest.trailing_zeros() as usize);
        }
        let next = block / 64 + 1;
        let found =
            self.0.get(next..)?.iter().position(|bits| bits.load(Ordering::Relaxed) != 0)?;
        let bits = self.0.get(next + found)?.load(Ordering::Relaxed);
        Some((next + found) * 64 + bits.trailing_zeros() as usize)
    }

    /// Clears the notes of all blocks.
    pub fn clear(&self) {
        for bits in self.0.iter().filter(|bits| bits.load(Ordering::Relaxed) != 0) {
            bits.store(0, Ordering::Relaxed);
        }
    }
}

/// The words of one region map.
#[derive(Debug)]
pub struct Slots {
    /// The words of `owner`, so that a look-up needs no second access.
    memory: NonNull<AtomicU64>,
    len: usize,
    owner: Arc<Owner>,
    kept: Option<Arc<(Arc<Path>, Changes)>>,
}

/// The memory of words.
#[derive(Debug)]
struct Owner {
    memory: NonNull<AtomicU64>,
    len: usize,
    /// Whether it counts as locked.
    is_locked: bool,
}

// SAFETY: the words are atomics at a fixed address, and only this value owns them.
unsafe impl Send for Owner {}
// SAFETY: as above. Shared access is only by atomic operations.
unsafe impl Sync for Owner {}
// SAFETY: the words live as long as `owner`, and are accessed only by atomic operations.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// Words in memory, zeroed without touching them, so that a device of a billion regions appears
    /// at once. `None` if there is not enough address space.
    pub fn in_memory(len: usize) -> Option<Slots> {
        let words: Box<[AtomicU64]> = bytemuck::allocation::try_zeroed_slice_box(len).ok()?;
        let memory: NonNull<AtomicU64> = NonNull::from(Box::leak(words)).cast();
        // The allocation has checked that the length does not overflow.
        let bytes = len * size_of::<u64>();
        let is_locked = count_locked(bytes);
        if !is_locked {
            // SAFETY: this memory was allocated above.
            unsafe { crate::sys::process::unlock(memory.as_ptr().cast(), bytes) };
        }
        Some(Slots { memory, len, owner: Arc::new(Owner { memory, len, is_locked }), kept: None })
    }

    /// Keeps the words in a file, so that changes are noted. Holds a reference to `file` as long as
    /// the words exist, so that other owners can see that it is in use. `Err` if there is no memory
    /// for the notes.
    pub fn kept_in(mut self, file: Arc<Path>) -> io::Result<Slots> {
        let changes = Changes::new(self.len).ok_or(io::ErrorKind::OutOfMemory)?;
        self.kept = Some(Arc::new((file, changes)));
        Ok(self)
    }

    /// The same words, with the same notes of changes, for another map. A store through one is seen
    /// through the other, so the owner of both maps lets one writer at a time in.
    pub fn share(&self) -> Slots {
        let (owner, kept) = (self.owner.clone(), self.kept.clone());
        Slots { memory: self.memory, len: self.len, owner, kept }
    }

    /// Whether two values have the same words.
    pub fn is_shared_with(&self, other: &Slots) -> bool {
        Arc::ptr_eq(&self.owner, &other.owner)
    }

    /// The file that keeps the words; `None` if there is none.
    pub fn file(&self) -> Option<&Arc<Path>> {
        self.kept.as_ref().map(|kept| &kept.0)
    }

    /// The changes since they were last cleared; `None` for words that are not kept in a file.
    pub fn changes(&self) -> Option<&Changes> {
        self.kept.as_ref().map(|kept| &kept.1)
    }
}

impl Storage for Slots {
    #[inline]
    fn before_store(&self, slot: usize) {
        if let Some(kept) = &self.kept {
            kept.1.note(slot);
        }
    }
}

impl AsRef<[AtomicU64]> for Slots {
    #[inline]
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: `len` words are allocated there while `owner` lives, and any bits are a valid
        // AtomicU64.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

/// Under loom, the words of a map are loom's, which cannot be at an address of this process. The
/// slice is empty, so that no map can be made of these.
#[cfg(loom)]
impl AsRef<[loom::sync::atomic::AtomicU64]> for Slots {
    fn as_ref(&self) -> &[loom::sync::atomic::AtomicU64] {
        &[]
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.is_locked {
            LOCKED.fetch_sub(self.len * size_of::<u64>(), Ordering::Relaxed);
        }
        let words = NonNull::slice_from_raw_parts(self.memory, self.len);
        // SAFETY: in_memory() leaked a box of this length.
        drop(unsafe { Box::from_raw(words.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_zero_and_keep_what_is_stored() {
        let slots = Slots::in_memory(1000).unwrap();
        assert_eq!(slots.as_ref().len(), 1000);
        assert!(slots.as_ref().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        slots.as_ref()[999].store(u64::MAX, Ordering::Relaxed);
        assert_eq!(slots.as_ref()[999].load(Ordering::Relaxed), u64::MAX);
        assert!(Slots::in_memory(0).unwrap().as_ref().is_empty());
        assert!(Slots::in_memory(usize::MAX / 8).is_none());
    }

    #[test]
    fn maps_count_as_locked_up_to_a_limit() {
        // The words are not touched. Other tests have small maps at the same time.
        let half = LOCKED_MAX / 2 / size_of::<u64>();
        let (one, two) = (Slots::in_memory(half).unwrap(), Slots::in_memory(half + 1).unwrap());
        assert!(one.owner.is_locked && !two.owner.is_locked);
        drop(one);
        assert!(Slots::in_memory(half).unwrap().owner.is_locked);
    }

    #[test]
    fn shared_words_live_as_long_as_their_last_user() {
        let file: Arc<Path> = Path::new("/a/map").into();
        let one = Slots::in_memory(100).unwrap().kept_in(file.clone()).unwrap();
        let other = one.share();
        one.before_store(70);
        one.as_ref()[70].store(9, Ordering::Relaxed);
        assert!(one.is_shared_with(&other));
        assert!(!one.is_shared_with(&Slots::in_memory(100).unwrap()));
        drop(one);
        assert_eq!(other.as_ref()[70].load(Ordering::Relaxed), 9);
        assert_eq!(other.changes().unwrap().next(0), Some(1));
        assert_eq!((other.file(), Arc::strong_count(&file)), (Some(&file), 2));
        drop(other);
        assert_eq!(Arc::strong_count(&file), 1);
    }

    #[test]
    fn blocks_that_are_stored_to_are_noted_where_words_are_kept() {
        let slots = Slots::in_memory(BLOCK_WORDS * 200).unwrap();
        slots.before_store(5);
        assert!(slots.changes().is_none());
        let file: Arc<Path> = Path::new("/a/map").into();
        let slots = slots.kept_in(file.clone()).unwrap();
        assert_eq!((slots.file(), Arc::strong_count(&file)), (Some(&file), 2));
        for word in [0, 62, 63, BLOCK_WORDS * 64, BLOCK_WORDS * 200 - 1] {
            slots.before_store(word);
        }
        let changes = slots.changes().unwrap();
        let all = |from| {
            let next = |block: &usize| changes.next(block + 1);
            std::iter::successors(changes.next(from), next).collect::<Vec<_>>()
        };
        assert_eq!((all(0), all(2)), (vec![0, 1, 64, 199], vec![64, 199]));
        changes.clear();
        assert_eq!(changes.next(0), None);
    }
}
