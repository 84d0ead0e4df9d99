//! Page-aligned buffers of a queue, in size classes, recycled without touching the allocator.
//!
//! Contract: one queue owns a [`Buffers`]; a [`Buffer`] is given back with [`Buffers::put`] and
//! never dropped elsewhere while its request runs. Buffers up to [`KEEP_MAX`] are kept for reuse up
//! to [`KEEP_BYTES`] per class, and go back to the operating system when they have not been used
//! for a while ([`Buffers::trim`]); larger ones go back at once, so a burst of 32 MiB requests
//! leaves nothing behind. All are mapped, not allocated: the allocator would keep them. What is
//! mapped is charged to the pool's [`Memory`].

use std::ptr::NonNull;
use std::sync::Arc;

use crate::sys::memory::{Charge, DEFAULT_BYTES, Memory, SMALL_SHARE, Short};

/// Alignment of every buffer: enough for O_DIRECT on any device.
pub const ALIGN: usize = 4096;
/// Smallest class in bytes.
const SMALLEST: usize = 4096;
/// Largest buffer that is kept for reuse.
pub(crate) const KEEP_MAX: usize = 1 << 20;
/// Bytes kept idle per class: the depth at which clients of that size run, times a few.
const KEEP_BYTES: usize = 8 << 20;
/// Bytes kept idle per class when they have not been used for a while, and the queue has clients.
const KEEP_UNUSED_BYTES: usize = 1 << 20;
/// Part of the budget that all queues together may keep idle.
const KEEP_SHARE: usize = 4;
/// Classes 4 KiB, 8 KiB, ... KEEP_MAX.
const CLASSES: usize = (KEEP_MAX / SMALLEST).trailing_zeros() as usize + 1;
/// Buffers of less than a quarter of this are mapped together, this many bytes at once: a mapping
/// of its own for each would reach the system's bound on mappings.
const BLOCK: usize = 256 << 10;

/// Memory from the system: one buffer, or as many small ones as fit.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// What it is charged to, and how.
    charged: Option<(Arc<Memory>, Charge)>,
}

// SAFETY: a Mapping is the only owner of its memory, and only gives it back.
unsafe impl Send for Mapping {}
// SAFETY: as above: there is nothing to be done through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of zeroes that are charged already. They cost nothing until they are used.
    fn new(len: usize, charged: Option<(Arc<Memory>, Charge)>) -> Result<Mapping, Short> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh private anonymous mapping touches no memory of ours.
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

    /// Makes it longer; it may move. The further bytes are charged already, as `more`.
    fn grow(&mut self, len: usize, more: Charge) -> Result<(), Short> {
        // SAFETY: the mapping is ours alone (&mut), and nobody uses its old address any more.
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

/// A piece of aligned memory. Its content is whatever the last user left: every user fills what it
/// shows.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    size: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: a Buffer is the only owner of its part of the mapping.
unsafe impl Send for Buffer {}

impl Buffer {
    /// A buffer outside of every budget, of at least `bytes` bytes of zeroes.
    pub fn alone(bytes: usize) -> Result<Buffer, Short> {
        let mapping = Mapping::new(bytes.max(1).next_multiple_of(ALIGN), None)?;
        Ok(Buffer::whole(mapping))
    }

    fn whole(mapping: Mapping) -> Buffer {
        Buffer { start: mapping.start, size: mapping.len, mapping: Arc::new(mapping) }
    }

    /// First byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes it holds.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The bytes, for reading. Only while no request runs on them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: we own `size` initialised bytes; &self keeps them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }

    /// The bytes, for writing. Only while no request runs on them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: we own `size` initialised bytes; &mut self is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

/// The buffers of one queue.
#[derive(Debug)]
pub struct Buffers {
    idle: [Vec<Buffer>; CLASSES],
    /// Fewest that were idle since the last [`Buffers::trim`].
    unused: [usize; CLASSES],
    keep_bytes: usize,
    memory: Arc<Memory>,
    /// Something was given back to the budget.
    has_given: bool,
}

impl Default for Buffers {
    /// With a budget of their own.
    fn default() -> Self {
        Buffers::new(Arc::new(Memory::new(DEFAULT_BYTES)), 1)
    }
}

impl Buffers {
    /// Those of one of `queues` queues with one budget.
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

    /// The budget.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// A buffer of at least `bytes` bytes for a connection that holds `held` bytes already.
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

    /// A buffer of `bytes` bytes, not one that was kept: it can grow.
    pub fn take_fresh(&mut self, bytes: usize, held: usize) -> Result<Buffer, Short> {
        self.map(bytes.next_multiple_of(ALIGN), held).map(Buffer::whole)
    }

    /// Makes a buffer that was taken fresh longer, for a connection that holds `held` bytes without
    /// the further ones. What is in it stays; its address changes.
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

    /// Gives a buffer back.
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

    /// Whether something was given back since this was last asked.
    pub(crate) fn take_given(&mut self) -> bool {
        std::mem::take(&mut self.has_given)
    }

    /// Whether anything is kept for reuse.
    pub(crate) fn keeps_any(&self) -> bool {
        self.idle.iter().any(|idle| !idle.is_empty())
    }

    /// Gives back what was not used since the last call, but for a little; with `all`, everything
    /// that is kept.
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

    /// Charges so many bytes; gives up first what is kept if it must be.
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

    /// Maps a block and cuts it into buffers; one is returned, the others are kept.
    fn cut(&mut self, size: usize, class: usize, held: usize) -> Result<Buffer, Short> {
        // The connection gets only one of the buffers, so that only that one counts as its own.
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
