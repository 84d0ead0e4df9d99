//! Page-aligned buffers of a queue, in size classes, reused without the allocator.
//!
//! Contract: one queue owns a [`Buffers`]. A [`Buffer`] is returned with [`Buffers::put`], and
//! never dropped elsewhere while its request runs. Buffers up to [`KEEP_MAX`] are kept for reuse,
//! up to [`KEEP_BYTES`] per class, and are unmapped when they were not used for a while
//! ([`Buffers::trim`]). Larger ones are unmapped at once, so a burst of 32 MiB requests leaves
//! nothing behind. All are mapped rather than allocated, because the allocator would keep them.
//! Mapped bytes are charged to the pool's [`Memory`].

use std::ptr::NonNull;
use std::sync::Arc;

use crate::sys::memory::{Charge, DEFAULT_BYTES, Memory, SMALL_SHARE, Short};

/// Alignment of every buffer in bytes: enough for O_DIRECT on any device.
pub const ALIGN: usize = 4096;
/// Smallest class in bytes.
const SMALLEST: usize = 4096;
/// Largest buffer in bytes that is kept for reuse.
pub(crate) const KEEP_MAX: usize = 1 << 20;
/// Most bytes that are kept idle per class: a few times the need of a deep queue of requests of
/// that size.
const KEEP_BYTES: usize = 8 << 20;
/// Most bytes that are kept idle per class after a while without use, on a queue with clients.
const KEEP_UNUSED_BYTES: usize = 1 << 20;
/// Divisor of the budget: all queues together keep at most this part of it idle.
const KEEP_SHARE: usize = 4;
/// Classes 4 KiB, 8 KiB, ... KEEP_MAX.
const CLASSES: usize = (KEEP_MAX / SMALLEST).trailing_zeros() as usize + 1;
/// Bytes of a mapping for small buffers. Buffers of less than a quarter of it are cut from one
/// mapping, because one mapping for each would reach the system's limit of mappings.
const BLOCK: usize = 256 << 10;

/// Mapped memory: one buffer, or as many small ones as fit.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// The budget to which it is charged, and the charge.
    charged: Option<(Arc<Memory>, Charge)>,
}

// SAFETY: a Mapping is the only owner of its memory, and only unmaps it.
unsafe impl Send for Mapping {}
// SAFETY: as above. A shared reference gives no access.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` zeroes that are charged already. They take no memory until they are used.
    fn new(len: usize, charged: Option<(Arc<Memory>, Charge)>) -> Result<Mapping, Short> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh private anonymous mapping touches no memory of this process.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        let start = if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) };
        match start {
            Some(start) => Ok(Mapping { start, len, charged }),
            None => {
                charged.inspect(|(memory, charge)| memory.give(*charge));
                Err(Short::Refused)
            }
        }
    }

    /// Enlarges the mapping, which may move it. `more` is the charge of the added bytes.
    fn grow(&mut self, len: usize, more: Charge) -> Result<(), Short> {
        // SAFETY: `&mut self` is the only reference to the mapping, and nothing uses its old
        // address any more.
        let start = unsafe {
            libc::mremap(self.start.as_ptr().cast(), self.len, len, libc::MREMAP_MAYMOVE)
        };
        let start = if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) };
        self.start = start.ok_or(Short::Refused)?;
        self.len = len;
        if let Some((_, charge)) = &mut self.charged {
            *charge = charge.and(more);
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this address and length; no buffer refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        if let Some((memory, charge)) = &self.charged {
            memory.give(*charge);
        }
    }
}

/// Aligned memory. Its content is what the last user left, so every user must fill what it passes
/// on.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    size: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: a Buffer is the only owner of its part of the mapping.
unsafe impl Send for Buffer {}

impl Buffer {
    /// A buffer without a budget, of at least `bytes` zeroes.
    pub fn alone(bytes: usize) -> Result<Buffer, Short> {
        let mapping = Mapping::new(bytes.max(1).next_multiple_of(ALIGN), None)?;
        Ok(Buffer::whole(mapping))
    }

    fn whole(mapping: Mapping) -> Buffer {
        Buffer { start: mapping.start, size: mapping.len, mapping: Arc::new(mapping) }
    }

    /// The address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Size of the buffer in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The bytes for reading. Do not call it while a request runs on them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer owns `size` initialised bytes, and &self keeps them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }

    /// The bytes for writing. Do not call it while a request runs on them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the buffer owns `size` initialised bytes, and &mut self is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

/// The buffers of one queue.
#[derive(Debug)]
pub struct Buffers {
    idle: [Vec<Buffer>; CLASSES],
    /// Smallest number of idle buffers since the last [`Buffers::trim`].
    unused: [usize; CLASSES],
    keep_bytes: usize,
    memory: Arc<Memory>,
    /// Whether memory was returned to the budget since the last [`Buffers::take_given`].
    has_given: bool,
}

impl Default for Buffers {
    /// Buffers with a budget of their own.
    fn default() -> Self {
        Buffers::new(Arc::new(Memory::new(DEFAULT_BYTES)), 1)
    }
}

impl Buffers {
    /// The buffers of one of `queues` queues that share a budget.
    pub fn new(memory: Arc<Memory>, queues: usize) -> Buffers {
        let share = memory.limit() / KEEP_SHARE / queues.max(1) / CLASSES;
        Buffers {
            idle: Default::default(),
            unused: [0; CLASSES],
            keep_bytes: share.clamp(KEEP_MAX, KEEP_BYTES),
            memory,
            has_given: false,
        }
    }

    /// The budget to which mapped bytes are charged.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// A buffer of at least `bytes` bytes, for a connection that already holds `held` bytes.
    pub fn take(&mut self, bytes: usize, held: usize) -> Result<Buffer, Short> {
        let size = bytes.max(SMALLEST).next_power_of_two();
        let class = Self::class(size);
        if let Some(idle) = self.idle.get_mut(class)
            && let Some(buffer) = idle.pop()
        {
            if let Some(unused) = self.unused.get_mut(class) {
                *unused = (*unused).min(idle.len());
            }
            return Ok(buffer);
        }
        if size > KEEP_MAX {
            return self.map(bytes.next_multiple_of(ALIGN), held).map(Buffer::whole);
        }
        if size >= BLOCK / 4 {
            return self.map(size, held).map(Buffer::whole);
        }
        self.cut(size, class, held)
    }

    /// A newly mapped buffer of `bytes` bytes, which can grow.
    pub fn take_fresh(&mut self, bytes: usize, held: usize) -> Result<Buffer, Short> {
        self.map(bytes.next_multiple_of(ALIGN), held).map(Buffer::whole)
    }

    /// Enlarges a newly mapped buffer, for a connection that holds `held` bytes without the added
    /// ones. The content stays, but the address changes.
    pub fn grow(&mut self, buffer: &mut Buffer, bytes: usize, held: usize) -> Result<(), Short> {
        let len = bytes.next_multiple_of(ALIGN);
        let more = len.saturating_sub(buffer.size);
        let Some(mapping) = Arc::get_mut(&mut buffer.mapping) else { return Err(Short::Refused) };
        let charge = self.charge(more, held)?;
        if let Err(short) = mapping.grow(len, charge) {
            self.memory.give(charge);
            return Err(short);
        }
        (buffer.start, buffer.size) = (mapping.start, mapping.len);
        Ok(())
    }

    /// Takes a buffer back, to keep or to unmap it.
    pub fn put(&mut self, buffer: Buffer) {
        let (size, class) = (buffer.size, Self::class(buffer.size));
        if let Some(idle) = self.idle.get_mut(class)
            && size.is_power_of_two()
            && (idle.len() + 1) * size <= self.keep_bytes
        {
            idle.push(buffer);
        }
        self.has_given = true;
    }

    /// Whether memory was returned to the budget since the last call.
    pub(crate) fn take_given(&mut self) -> bool {
        std::mem::take(&mut self.has_given)
    }

    /// Whether any buffer is kept for reuse.
    pub(crate) fn keeps_any(&self) -> bool {
        self.idle.iter().any(|idle| !idle.is_empty())
    }

    /// Unmaps buffers that were not used since the last call, except a few. With `all`, unmaps all
    /// that are kept.
    pub fn trim(&mut self, all: bool) {
        for (class, (idle, unused)) in self.idle.iter_mut().zip(&mut self.unused).enumerate() {
            let keep = if all { 0 } else { KEEP_UNUSED_BYTES / (SMALLEST << class) };
            let surplus = if all { idle.len() } else { (*unused).min(idle.len()) };
            idle.drain(..surplus.saturating_sub(keep));
            if idle.is_empty() {
                idle.shrink_to_fit();
            }
            *unused = idle.len();
        }
        self.has_given = true;
    }

    /// Charges `bytes` bytes. If the budget does not allow it, unmaps all kept buffers and tries
    /// again.
    fn charge(&mut self, bytes: usize, held: usize) -> Result<Charge, Short> {
        if let Some(charge) = self.memory.charge(held, bytes) {
            return Ok(charge);
        }
        self.trim(true);
        self.memory.charge(held, bytes).ok_or(Short::Spent)
    }

    fn map(&mut self, len: usize, held: usize) -> Result<Mapping, Short> {
        let charge = self.charge(len, held)?;
        Mapping::new(len, Some((self.memory.clone(), charge)))
    }

    /// Maps a block and cuts it into buffers. Returns one and keeps the others.
    fn cut(&mut self, size: usize, class: usize, held: usize) -> Result<Buffer, Short> {
        // The connection gets one of the buffers, so only that one counts as its own.
        let held = if held + size > SMALL_SHARE { held } else { 0 };
        let mapping = Arc::new(self.map(BLOCK, held)?);
        let piece = |at: usize| {
            // SAFETY: `at + size` is at most BLOCK, the mapping's length.
            let start = unsafe { mapping.start.add(at) };
            Buffer { start, size, mapping: mapping.clone() }
        };
        if let Some(idle) = self.idle.get_mut(class) {
            idle.extend((1..BLOCK / size).map(|n| piece(n * size)));
        }
        Ok(piece(0))
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
            let buffer = buffers.take(bytes, 0).unwrap();
            assert!(buffer.size() >= bytes, "{bytes}");
            assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
            let address = buffer.as_ptr();
            buffers.put(buffer);
            if bytes <= KEEP_MAX {
                let again = buffers.take(bytes, 0).unwrap();
                assert_eq!(again.as_ptr(), address, "{bytes} is recycled");
                buffers.put(again);
            }
        }
        buffers.trim(true);
        assert_eq!(buffers.memory().used(), 0, "everything went back");
    }

    #[test]
    fn buffers_that_are_cut_from_one_block_do_not_overlap() {
        let mut buffers = Buffers::default();
        let mut taken: Vec<Buffer> = (0..200).map(|_| buffers.take(8192, 0).unwrap()).collect();
        for (n, buffer) in taken.iter_mut().enumerate() {
            buffer.bytes_mut().fill(n as u8);
        }
        for (n, buffer) in taken.iter().enumerate() {
            assert!(buffer.bytes().iter().all(|byte| *byte == n as u8));
        }
        assert_eq!(buffers.memory().used(), (200 * 8192usize).next_multiple_of(BLOCK));
        taken.into_iter().for_each(|buffer| buffers.put(buffer));
        buffers.trim(true);
        assert_eq!(buffers.memory().used(), 0);
    }

    #[test]
    fn what_is_not_used_for_a_while_goes_back() {
        let mut buffers = Buffers::default();
        let burst: Vec<Buffer> = (0..2048).map(|_| buffers.take(4096, 0).unwrap()).collect();
        burst.into_iter().for_each(|buffer| buffers.put(buffer));
        assert!(buffers.memory().used() >= 8 << 20);
        for _ in 0..2 {
            let one = buffers.take(4096, 0).unwrap();
            buffers.put(one);
            buffers.trim(false);
        }
        assert!(buffers.memory().used() <= 3 << 20, "{}", buffers.memory().used());
        assert!(buffers.keeps_any(), "a queue with clients keeps a little");
    }

    #[test]
    fn a_spent_budget_is_told_from_a_system_that_refuses() {
        let mut buffers = Buffers::new(Arc::new(Memory::new(0)), 1);
        let first = buffers.take(32 << 20, 0).unwrap();
        let _second = buffers.take(32 << 20, 0).unwrap();
        assert_eq!(buffers.take(32 << 20, 0).unwrap_err(), Short::Spent);
        let _small = buffers.take(4096, 0).unwrap();
        buffers.put(first);
        assert!(buffers.take_given());
        let _third = buffers.take(32 << 20, 0).unwrap();
        assert_eq!(Mapping::new(1 << 60, None).unwrap_err(), Short::Refused);
    }

    #[test]
    fn a_fresh_buffer_grows_and_keeps_its_content() {
        let mut buffers = Buffers::default();
        let mut buffer = buffers.take_fresh(128 << 10, 0).unwrap();
        buffer.bytes_mut().fill(7);
        buffers.grow(&mut buffer, 32 << 20, 128 << 10).unwrap();
        assert_eq!((buffer.size(), buffers.memory().used()), (32 << 20, 32 << 20));
        assert!(buffer.bytes()[..128 << 10].iter().all(|byte| *byte == 7));
        assert_eq!(buffer.bytes()[128 << 10], 0);
        drop(buffer);
        assert_eq!(buffers.memory().used(), 0);
    }
}
