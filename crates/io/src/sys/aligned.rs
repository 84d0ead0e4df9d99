//! Aligned memory for direct I/O. Block devices, and files under direct I/O, require that the
//! memory of a request is aligned to their blocks. A `Vec<u8>` is not.

use std::alloc::{self, Layout};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of [`AlignedBytes`] in bytes: a multiple of every logical block size in use.
pub const ALIGNMENT: usize = 4096;

/// A fixed number of bytes, aligned to [`ALIGNMENT`].
///
/// ```
/// use blkswitch_io::AlignedBytes;
///
/// let mut data = AlignedBytes::zeroed(8192)?;
/// data[..5].copy_from_slice(b"hello");
/// assert_eq!((data.len(), data.as_ptr().addr() % 4096), (8192, 0));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct AlignedBytes {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is the only owner of its memory.
unsafe impl Send for AlignedBytes {}
// SAFETY: through a shared reference its memory is only read.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// Allocates `len` zeroes.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] if there is not enough memory.
    pub fn zeroed(len: usize) -> io::Result<AlignedBytes> {
        if len == 0 {
            return Ok(AlignedBytes::default());
        }
        let out_of_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
        let layout = Layout::from_size_align(len, ALIGNMENT).map_err(|_| out_of_memory())?;
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        Ok(AlignedBytes { start: NonNull::new(start).ok_or_else(out_of_memory)?, len })
    }

    /// Allocates a copy of `bytes`.
    ///
    /// # Errors
    /// As [`AlignedBytes::zeroed`].
    pub fn copy_of(bytes: &[u8]) -> io::Result<AlignedBytes> {
        let mut copy = AlignedBytes::zeroed(bytes.len())?;
        copy.copy_from_slice(bytes);
        Ok(copy)
    }
}

impl Default for AlignedBytes {
    /// No bytes, without an allocation.
    fn default() -> Self {
        AlignedBytes { start: NonNull::dangling(), len: 0 }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: it was allocated with this layout, which zeroed() found valid.
            unsafe {
                let layout = Layout::from_size_align_unchecked(self.len, ALIGNMENT);
                alloc::dealloc(self.start.as_ptr(), layout);
            }
        }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: zeroed() has allocated and initialised `len` bytes; &self keeps them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as deref(); &mut self is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for AlignedBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for AlignedBytes {}

impl fmt::Debug for AlignedBytes {
    /// Writes only the length, because the content may be long or secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBytes({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_aligned_zeroed_and_given_back() {
        for len in [0, 1, 511, 512, 4096, 4097, 1 << 20] {
            let mut bytes = AlignedBytes::zeroed(len).unwrap();
            assert!(bytes.len() == len && bytes.iter().all(|byte| *byte == 0), "{len}");
            assert!(len == 0 || bytes.as_ptr().addr().is_multiple_of(ALIGNMENT), "{len}");
            bytes.fill(7);
            assert_eq!(AlignedBytes::copy_of(&bytes).unwrap(), bytes);
        }
        let error = AlignedBytes::zeroed(usize::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(format!("{:?}", AlignedBytes::zeroed(512).unwrap()), "AlignedBytes(512)");
    }
}
