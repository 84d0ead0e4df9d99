//! A split virtqueue in shared memory: the table of descriptors, the available and the used ring.
//!
//! Contract: nothing that the front end writes is believed. Each value is read once, and checked
//! before it is used. A chain is bounded ([`MAX_DESCRIPTORS`]), so a loop ends. One thread uses a
//! [`Rings`]; the memory behind it lives as long as that.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU16, fence};

use super::memory::Memory;
use super::message::RingAt;
use super::{MAX_DESCRIPTORS, config};
use crate::wire::vhost_user::{NO_INTERRUPT, descriptor, feature};

/// A descriptor, as the driver writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Descriptor {
    at: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const DESCRIPTOR_LEN: u64 = size_of::<Descriptor>() as u64;

/// A piece of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where it is mapped.
    pub(super) at: NonNull<u8>,
    /// Its address in the guest.
    pub(super) guest: u64,
    /// Its length in bytes.
    pub(super) len: u64,
}

// SAFETY: an address in shared memory, which any thread may use.
unsafe impl Send for Segment {}

/// A chain of descriptors: what the device reads, and then what it writes. Neighbours that are one
/// piece of memory are one segment.
#[derive(Debug, Default)]
pub(super) struct Chain {
    segments: Vec<Segment>,
    /// Number of segments that the device reads.
    readable: usize,
}

impl Chain {
    /// A chain with room for every chain that is allowed.
    pub(super) fn with_room() -> Chain {
        Chain { segments: Vec::with_capacity(2 * MAX_DESCRIPTORS), readable: 0 }
    }

    pub(super) fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    pub(super) fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Copies the first bytes that the device reads, and takes them away. False if there are fewer.
    #[inline]
    pub(super) fn take_first(&mut self, bytes: &mut [u8]) -> bool {
        let has_all = read_segments(self.readable(), bytes) == bytes.len();
        let mut left = bytes.len() as u64;
        let mut gone = 0;
        for segment in self.segments.get_mut(..self.readable).unwrap_or_default() {
            let taken = left.min(segment.len);
            // SAFETY: at most one past the end of the segment.
            segment.at = unsafe { segment.at.add(taken as usize) };
            (segment.guest, segment.len) = (segment.guest + taken, segment.len - taken);
            left -= taken;
            gone += usize::from(segment.len == 0);
            if left == 0 {
                break;
            }
        }
        self.segments.drain(..gone);
        self.readable -= gone;
        has_all
    }

    /// Takes away the last byte that the device writes. `None` if there is none.
    #[inline]
    pub(super) fn take_last(&mut self) -> Option<Segment> {
        if self.segments.len() == self.readable {
            return None;
        }
        let last = self.segments.last_mut()?;
        last.len -= 1;
        // SAFETY: the segment's last byte.
        let at = unsafe { last.at.add(last.len as usize) };
        let byte = Segment { at, guest: last.guest + last.len, len: 1 };
        if last.len == 0 {
            self.segments.pop();
        }
        Some(byte)
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.readable = 0;
    }

    fn add(&mut self, memory: &Memory, of: &Descriptor) -> Result<(), Broken> {
        let is_writable = of.flags & descriptor::WRITE != 0;
        if !is_writable && self.readable < self.segments.len() {
            return Err(Broken("a descriptor to read follows one to write"));
        }
        let (mut guest, mut left) = (of.at, u64::from(of.len));
        while left > 0 {
            let found = memory.at_guest(guest, left);
            let (at, len) = found.ok_or(Broken("an address is in no region of memory"))?;
            let joins = self.segments.len() > self.readable || !is_writable;
            match self.segments.last_mut().filter(|_| joins) {
                // The log of written pages wants one piece of the guest's addresses, too.
                Some(last)
                    if last.at.addr().get() + last.len as usize == at.addr().get()
                        && last.guest + last.len == guest =>
                {
                    last.len += len;
                }
                _ => self.segments.push(Segment { at, guest, len }),
            }
            if !is_writable {
                self.readable = self.segments.len();
            }
            guest = guest.wrapping_add(len);
            left -= len;
        }
        Ok(())
    }
}

/// Why a ring cannot be served any more: its front end is out of order, or hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) &'static str);

/// See the module's text.
pub(super) struct Rings {
    memory: Arc<Memory>,
    descriptors: NonNull<Descriptor>,
    available: NonNull<AtomicU16>,
    used: NonNull<AtomicU16>,
    size: u16,
    has_event_idx: bool,
    has_indirect: bool,
    /// The used ring's guest address for the log of written pages.
    pub(super) log: Option<u64>,
}

// SAFETY: the pointers go into `memory`, which any thread may use.
unsafe impl Send for Rings {}

impl Rings {
    /// The rings at these addresses. `None` if they are not wholly in the memory, or not aligned.
    pub(super) fn new(memory: Arc<Memory>, at: &RingAt, size: u16, features: u64) -> Option<Rings> {
        if !config::is_ring_size(size.into()) {
            return None;
        }
        let entries = u64::from(size);
        // Each ring has a last word for EVENT_IDX, which is there in any case.
        let descriptors = memory.at_user(at.descriptors, entries * DESCRIPTOR_LEN, 16)?.cast();
        let available = memory.at_user(at.available, 6 + 2 * entries, 2)?.cast();
        let used = memory.at_user(at.used, 6 + 8 * entries, 4)?.cast();
        Some(Rings {
            descriptors,
            available,
            used,
            memory,
            size,
            has_event_idx: features & feature::EVENT_IDX != 0,
            has_indirect: features & feature::INDIRECT_DESC != 0,
            log: at.log,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Whether the memory has lost its pages.
    pub(super) fn is_broken(&self) -> bool {
        self.memory.is_broken()
    }

    /// A word of the available ring: flags, index, entries, used event.
    #[inline]
    fn available(&self, word: usize) -> &AtomicU16 {
        debug_assert!(word < usize::from(self.size) + 3, "within the ring");
        // SAFETY: callers pass a word of the ring, which new() has found in the memory, aligned.
        // Another process may write there, as other threads do to an atomic.
        unsafe { self.available.add(word).as_ref() }
    }

    /// A word of the used ring: flags, index, entries of four words, available event.
    #[inline]
    fn used(&self, word: usize) -> &AtomicU16 {
        debug_assert!(word < 4 * usize::from(self.size) + 3, "within the ring");
        // SAFETY: as for available().
        unsafe { self.used.add(word).as_ref() }
    }

    /// How far the driver has made requests available.
    #[inline]
    pub(super) fn available_index(&self) -> u16 {
        u16::from_le(self.available(1).load(Acquire))
    }

    /// The head of the chain that is at `index` in the available ring.
    #[inline]
    pub(super) fn head(&self, index: u16) -> u16 {
        u16::from_le(self.available(2 + usize::from(index % self.size)).load(Relaxed))
    }

    /// Asks the driver to notify of what it makes available from `next` on. Returns whether there
    /// is something already.
    #[inline]
    pub(super) fn wants_kick(&self, next: u16) -> bool {
        if self.has_event_idx {
            self.used(2 + 4 * usize::from(self.size)).store(next.to_le(), Relaxed);
        }
        // The driver writes its index and then reads the event, and we the other way round.
        fence(SeqCst);
        self.available_index() != next
    }

    /// Whether the driver wants to be notified of the answers from `old` to `new`.
    #[inline]
    pub(super) fn wants_call(&self, old: Option<u16>, new: u16) -> bool {
        fence(SeqCst);
        if self.has_event_idx {
            let event = u16::from_le(self.available(2 + usize::from(self.size)).load(Relaxed));
            let is_passed =
                |old: u16| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
            return old.is_none_or(is_passed);
        }
        u16::from_le(self.available(0).load(Relaxed)) & NO_INTERRUPT == 0
    }

    /// How far the driver sees answers.
    pub(super) fn used_index(&self) -> u16 {
        u16::from_le(self.used(1).load(Acquire))
    }

    /// Puts an answer at `index` into the used ring, and shows it to the driver. `before` runs
    /// between the two.
    #[inline]
    pub(super) fn answer(&self, index: u16, head: u16, written: u32, before: impl FnOnce()) {
        let at = 2 + 4 * usize::from(index % self.size);
        let words = [head, 0, written as u16, (written >> 16) as u16];
        for (n, word) in words.into_iter().enumerate() {
            self.used(at + n).store(word.to_le(), Relaxed);
        }
        before();
        self.used(1).store(index.wrapping_add(1).to_le(), Release);
    }

    /// The offset in the used ring of the entry at `index`, in bytes.
    pub(super) fn used_offset(&self, index: u16) -> u64 {
        4 + 8 * u64::from(index % self.size)
    }

    /// Reads the chain that begins with the descriptor `head`.
    #[inline]
    pub(super) fn chain(&self, head: u16, chain: &mut Chain) -> Result<(), Broken> {
        chain.clear();
        let mut next = head;
        for _ in 0..MAX_DESCRIPTORS.min(self.size.into()) {
            if next >= self.size {
                return Err(Broken("a descriptor's number is beyond the table"));
            }
            // SAFETY: `next` is within the table. Any bytes are a valid descriptor, and it is read
            // once.
            let one = unsafe { self.descriptors.add(next.into()).read_volatile() };
            if one.flags & descriptor::INDIRECT != 0 {
                // A table ends its chain.
                return self.table(&one, chain);
            }
            chain.add(&self.memory, &one)?;
            if one.flags & descriptor::NEXT == 0 {
                return Ok(());
            }
            next = one.next;
        }
        Err(Broken("a chain of descriptors is longer than is allowed"))
    }

    /// Reads the rest of a chain from a table of its own.
    fn table(&self, of: &Descriptor, chain: &mut Chain) -> Result<(), Broken> {
        let entries = u64::from(of.len) / DESCRIPTOR_LEN;
        if !self.has_indirect || of.flags & descriptor::NEXT != 0 {
            return Err(Broken("a table of descriptors is where none is allowed"));
        }
        if entries == 0 || entries * DESCRIPTOR_LEN != u64::from(of.len) {
            return Err(Broken("a table of descriptors has no length that is allowed"));
        }
        let mut next = 0;
        for _ in 0..(MAX_DESCRIPTORS as u64).min(entries) {
            if next >= entries {
                return Err(Broken("a descriptor's number is beyond its table"));
            }
            let at = of.at.wrapping_add(next * DESCRIPTOR_LEN);
            let one = self.read(at)?;
            if one.flags & descriptor::INDIRECT != 0 {
                return Err(Broken("a table of descriptors is in another"));
            }
            chain.add(&self.memory, &one)?;
            if one.flags & descriptor::NEXT == 0 {
                return Ok(());
            }
            next = u64::from(one.next);
        }
        Err(Broken("a chain of descriptors is longer than is allowed"))
    }

    /// Reads a descriptor of a table in the guest's memory.
    fn read(&self, guest: u64) -> Result<Descriptor, Broken> {
        match self.memory.at_guest(guest, DESCRIPTOR_LEN) {
            // SAFETY: so many bytes are mapped there, and any are a valid descriptor.
            Some((at, DESCRIPTOR_LEN)) => Ok(unsafe { at.cast::<Descriptor>().read_unaligned() }),
            _ => Err(Broken("a table of descriptors is in no region of memory")),
        }
    }
}

/// Copies the first bytes of segments. Returns how many there were.
pub(super) fn read_segments(segments: &[Segment], bytes: &mut [u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
        let len = rest.len().min(segment.len as usize);
        // SAFETY: a segment is mapped for all of its length, and `rest` is our own memory.
        unsafe { segment.at.as_ptr().copy_to_nonoverlapping(rest.as_mut_ptr(), len) };
        done += len;
    }
    done
}

/// Copies bytes to the beginning of segments. Returns how many found room.
pub(super) fn write_segments(segments: &[Segment], bytes: &[u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) else { break };
        let len = rest.len().min(segment.len as usize);
        // SAFETY: as for read_segments().
        unsafe { segment.at.as_ptr().copy_from_nonoverlapping(rest.as_ptr(), len) };
        done += len;
    }
    done
}
