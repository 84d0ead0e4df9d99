//! Page-aligned buffers of a queue, in size classes, recycled without touching the allocator.
//!
//! Contract: one queue owns a [`Buffers`]; a [`Buffer`] is given back with [`Buffers::put`] and
//! never dropped elsewhere while its request runs. Buffers up to [`KEEP_MAX`] are kept for reuse up
//! to [`KEEP_BYTES`] per class; larger ones go back to the operating system at once, so a burst of
//! 32 MiB requests leaves nothing behind.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment of every buffer: enough for O_DIRECT on any device.
pub const ALIGN: usize = 4096;
/// Smallest class in bytes.
const SMALLEST: usize = 4096;
/// Largest buffer that is kept for reuse.
const KEEP_MAX: usize = 1 << 20;
/// Bytes kept idle per class: the depth at which clients of that size run, times a few.
const KEEP_BYTES: usize = 8 << 20;
/// Classes 4 KiB, 8 KiB, ... KEEP_MAX.
const CLASSES: usize = (KEEP_MAX / SMALLEST).trailing_zeros() as usize + 1;

/// A piece of aligned memory. Its content is whatever the last user left: every user fills what it
/// shows.
#[derive(Debug)]
pub struct Buffer {
    memory: NonNull<u8>,
    size: usize,
}

// SAFETY: a Buffer is the only owner of its memory.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(size: usize) -> Buffer {
        let layout = Self::layout(size);
        // Zeroed: fresh memory from the allocator may hold what another connection left.
        // SAFETY: the layout has a size of at least SMALLEST.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { std::alloc::handle_alloc_error(layout) };
        Buffer { memory, size }
    }

    fn layout(size: usize) -> Layout {
        // Both are powers of two or multiples of ALIGN below isize::MAX; the fallback cannot be
        // reached.
        Layout::from_size_align(size, ALIGN).unwrap_or(Layout::new::<[u8; SMALLEST]>())
    }

    /// First byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Bytes it holds.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The bytes, for reading. Only while no request runs on them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: we own `size` initialised bytes; &self keeps them.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.size) }
    }

    /// The bytes, for writing. Only while no request runs on them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: we own `size` initialised bytes; &mut self is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.size) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in new() with the same layout.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout(self.size)) }
    }
}

/// The buffers of one queue.
#[derive(Debug, Default)]
pub struct Buffers {
    idle: [Vec<Buffer>; CLASSES],
}

impl Buffers {
    /// A buffer of at least `bytes` bytes.
    pub fn take(&mut self, bytes: usize) -> Buffer {
        let size = bytes.max(SMALLEST).next_power_of_two();
        match self.idle.get_mut(Self::class(size)).and_then(Vec::pop) {
            Some(buffer) => buffer,
            None if size > KEEP_MAX => Buffer::new(bytes.next_multiple_of(ALIGN)),
            None => Buffer::new(size),
        }
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buffer: Buffer) {
        let size = buffer.size;
        if let Some(idle) = self.idle.get_mut(Self::class(size))
            && size.is_power_of_two()
            && (idle.len() + 1) * size <= KEEP_BYTES
        {
            idle.push(buffer);
        }
    }

    fn class(size: usize) -> usize {
        (size / SMALLEST).trailing_zeros() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_large_enough_and_recycled() {
        let mut buffers = Buffers::default();
        for bytes in [1, 512, 4096, 4097, 65536, KEEP_MAX, KEEP_MAX + 1, 32 << 20] {
            let buffer = buffers.take(bytes);
            assert!(buffer.size() >= bytes, "{bytes}");
            assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
            let address = buffer.as_ptr();
            buffers.put(buffer);
            if bytes <= KEEP_MAX {
                assert_eq!(buffers.take(bytes).as_ptr(), address, "{bytes} is recycled");
            }
        }
        assert_eq!(
            buffers.idle.iter().map(Vec::len).sum::<usize>(),
            0,
            "nothing above KEEP_MAX is kept"
        );
    }
}
