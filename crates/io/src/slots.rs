//! The words of a region map: in memory of this process, or in a file that outlives it.
//!
//! A map in a file is what a disk needs whose server may be killed ([`crate::export::ublk`]): a
//! change is a store to memory that is the file's, so it is there for the next server as soon as it
//! is made, at no cost. It outlives the machine once it was forced to the medium ([`Slots::sync`]).
//!
//! Contract: the words are zero at first and stay where they are. A file stays when its [`Slots`]
//! go: who knows whether somebody will come for it removes it, by [`InUse::remove_unused`].

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of maps that may be locked in memory, where memory is locked ([`crate::process`]): a look-up
/// below a disk must not wait for a page. Maps beyond that stay as the kernel likes it.
const LOCKED_MAX: usize = 256 << 20;
/// Bytes of the maps that count as locked.
static LOCKED: AtomicUsize = AtomicUsize::new(0);

/// Counts a new map as locked, if there is room for it.
fn count_locked(bytes: usize) -> bool {
    let room = |locked: usize| locked.checked_add(bytes).filter(|locked| *locked <= LOCKED_MAX);
    LOCKED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
}

/// The files that maps are in now; shared by whoever removes files and all the maps.
#[derive(Clone, Debug, Default)]
pub struct InUse(Arc<Mutex<HashSet<PathBuf>>>);

impl InUse {
    /// Removes a file, unless a map is in it. A file too many does no harm, so one that cannot be
    /// removed is only logged.
    pub fn remove_unused(&self, path: &Path) {
        // Held, so that no map is made in it meanwhile.
        let in_use = self.lock();
        if !in_use.contains(path)
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "the file of a region map stays behind");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Slots {
    memory: NonNull<AtomicU64>,
    len: usize,
    file: Option<(PathBuf, InUse)>,
    /// It counts as locked.
    is_locked: bool,
}

// SAFETY: the words are atomics at a fixed address, owned by this alone.
unsafe impl Send for Slots {}
// SAFETY: as above; shared access is by their atomic operations only.
unsafe impl Sync for Slots {}

impl Slots {
    /// Words in memory, zeroed without being touched: a device of a billion regions appears at
    /// once. Nothing when the machine has not that much address space.
    pub fn in_memory(len: usize) -> Option<Slots> {
        let words: Box<[AtomicU64]> = bytemuck::allocation::try_zeroed_slice_box(len).ok()?;
        let memory = NonNull::from(Box::leak(words)).cast();
        Some(Slots::new(memory, len, None))
    }

    /// Words in a new file, which has room for all of them from the start: a store to a file that
    /// cannot grow would end the process. Errors: there is such a file already, or no room.
    pub fn in_new_file(path: &Path, len: usize, in_use: &InUse) -> io::Result<Slots> {
        let mut files = in_use.lock();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let made = bytes(len).and_then(|bytes| {
            // SAFETY: a system call with integers, on our own descriptor.
            match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) } {
                0 => Self::map(&file, path, len, in_use),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        });
        if made.is_ok() {
            files.insert(path.to_owned());
        } else {
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// The words that another process has left in a file. Errors: it has not room for so many.
    pub fn in_file(path: &Path, len: usize, in_use: &InUse) -> io::Result<Slots> {
        let mut files = in_use.lock();
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < bytes(len)? as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file is too short for the map",
            ));
        }
        let made = Self::map(&file, path, len, in_use)?;
        files.insert(path.to_owned());
        Ok(made)
    }

    fn map(file: &File, path: &Path, len: usize, in_use: &InUse) -> io::Result<Slots> {
        let (none, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel finds room: it touches nothing of ours.
        let memory = unsafe { libc::mmap(none, bytes(len)?, protection, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(memory.cast::<AtomicU64>()) {
            Some(at) if memory != libc::MAP_FAILED => {
                Ok(Slots::new(at, len, Some((path.to_owned(), in_use.clone()))))
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn new(memory: NonNull<AtomicU64>, len: usize, file: Option<(PathBuf, InUse)>) -> Slots {
        // The length was good when the memory was made.
        let bytes = len * size_of::<u64>();
        let is_locked = count_locked(bytes);
        if !is_locked {
            // SAFETY: our own memory.
            unsafe { crate::process::unlock(memory.as_ptr().cast(), bytes) };
        }
        Slots { memory, len, file, is_locked }
    }

    /// Forces what was stored so far to the medium of the file, if the words are in one.
    pub fn sync(&self) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        // The length was good when it was mapped.
        let bytes = self.len.max(1) * size_of::<u64>();
        // SAFETY: mapped in map() with this length, for as long as we live.
        match unsafe { libc::msync(self.memory.as_ptr().cast(), bytes, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The file that the words are in.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }
}

/// Bytes of so many words, at least one: there is no empty mapping.
fn bytes(len: usize) -> io::Result<usize> {
    len.max(1).checked_mul(size_of::<u64>()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

impl AsRef<[AtomicU64]> for Slots {
    #[inline]
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: `len` words are allocated or mapped there as long as we live; any bits are an
        // AtomicU64.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

/// Where loom tries orders, a map's words are loom's, and those have no place in memory that is
/// ours: there are none, so that no map can be made of these.
#[cfg(loom)]
impl AsRef<[loom::sync::atomic::AtomicU64]> for Slots {
    fn as_ref(&self) -> &[loom::sync::atomic::AtomicU64] {
        &[]
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if self.is_locked {
            LOCKED.fetch_sub(self.len * size_of::<u64>(), Ordering::Relaxed);
        }
        let Some((path, in_use)) = &self.file else {
            let words = NonNull::slice_from_raw_parts(self.memory, self.len);
            // SAFETY: leaked from a box of this length by in_memory().
            drop(unsafe { Box::from_raw(words.as_ptr()) });
            return;
        };
        // The length was good when it was mapped.
        let bytes = self.len.max(1) * size_of::<u64>();
        // SAFETY: mapped in map() with this length; nobody uses it after its owner.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), bytes) };
        in_use.lock().remove(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(slots: &Slots, at: usize, value: u64) {
        slots.as_ref()[at].store(value, Ordering::Relaxed);
    }

    fn get(slots: &Slots, at: usize) -> u64 {
        slots.as_ref()[at].load(Ordering::Relaxed)
    }

    #[test]
    fn words_are_zero_and_keep_what_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        let in_use = InUse::default();
        for slots in
            [Slots::in_memory(1000).unwrap(), Slots::in_new_file(&path, 1000, &in_use).unwrap()]
        {
            assert_eq!(slots.as_ref().len(), 1000);
            assert!((0..1000).all(|at| get(&slots, at) == 0));
            set(&slots, 999, u64::MAX);
            assert_eq!((get(&slots, 998), get(&slots, 999)), (0, u64::MAX));
        }
        in_use.remove_unused(&path);
        assert!(!path.exists(), "the words are gone, and so is the file");
        assert!(Slots::in_memory(0).unwrap().as_ref().is_empty());
        assert!(Slots::in_memory(usize::MAX / 8).is_none());
        assert!(Slots::in_new_file(&path, usize::MAX, &in_use).is_err());
        assert!(!path.exists(), "and when it could not be made");
    }

    #[test]
    fn maps_count_as_locked_up_to_a_limit() {
        // Nothing of it is touched. Other tests have small maps at the same time.
        let half = LOCKED_MAX / 2 / size_of::<u64>();
        let (one, two) = (Slots::in_memory(half).unwrap(), Slots::in_memory(half + 1).unwrap());
        assert!(one.is_locked && !two.is_locked);
        drop(one);
        assert!(Slots::in_memory(half).unwrap().is_locked);
    }

    #[test]
    fn a_file_has_the_words_for_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        let in_use = InUse::default();
        let slots = Slots::in_new_file(&path, 600, &in_use).unwrap();
        set(&slots, 599, 7);
        slots.sync().unwrap();
        in_use.remove_unused(&path);
        assert!(
            Slots::in_new_file(&path, 600, &in_use).is_err(),
            "a file is one map's, and stays while it is"
        );
        // What another process sees that maps it while the first one still runs, or was killed.
        let other = std::fs::read(&path).unwrap();
        assert_eq!(other[599 * 8..], 7u64.to_ne_bytes());
        drop(slots);
        assert!(Slots::in_file(&path, 601, &in_use).is_err(), "too short");
        let slots = Slots::in_file(&path, 600, &in_use).unwrap();
        assert_eq!(get(&slots, 599), 7);
        assert_eq!(slots.file(), Some(path.as_path()));
        in_use.remove_unused(&path);
        assert!(path.exists());
        drop(slots);
        in_use.remove_unused(&path);
        assert!(!path.exists());
    }
}
