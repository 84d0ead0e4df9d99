//! Chains of descriptors out of any bytes, for fuzzers and tests.
//!
//! Contract: what a queue does with a ring, up to the request; only for this workspace.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::asked::{What, ask};
use super::memory::Memory;
use super::message::{RegionAt, RingAt};
use super::rings::{Chain, Rings, Segment};
use super::{MAX_DESCRIPTORS, MAX_IO_BYTES, MAX_SEGMENTS};
use crate::wire::vhost_user::feature;

/// Bytes of the guest's memory.
const MEMORY: usize = 64 << 10;
/// Entries of the ring: descriptors from the first byte on, then the two rings.
const SIZE: u16 = 64;
const AVAILABLE: u64 = 1024;
const USED: u64 = 2048;

/// Puts `bytes` into memory that a front end could share, and reads the chain of every descriptor
/// there. Returns how many were requests.
///
/// # Panics
/// A request breaks a limit, or has memory that the front end has not shared.
pub fn read_chains(bytes: &[u8]) -> usize {
    // SAFETY: a system call with a literal; the kernel makes the descriptor for us.
    let file =
        unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC)) };
    let bytes = bytes.get(..bytes.len().min(MEMORY)).unwrap_or_default();
    // SAFETY: system calls on an own descriptor, with live bytes.
    unsafe {
        libc::ftruncate(file.as_raw_fd(), MEMORY as i64);
        libc::pwrite(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0);
    }
    // Two regions that are neighbours in the guest, and not in the file.
    let half = MEMORY as u64 / 2;
    let region = |guest, offset| RegionAt { guest, len: half, user: guest, offset };
    let memory = Memory::default().with(region(0, 0), &file).expect("a region");
    let memory = Arc::new(memory.with(region(half + 4096, half), &file).expect("a region"));
    let at = RingAt { descriptors: 0, available: AVAILABLE, used: USED, log: None };
    let features = feature::INDIRECT_DESC | feature::EVENT_IDX;
    let rings = Rings::new(memory.clone(), &at, SIZE, features).expect("a ring");
    let mut chain = Chain::with_room();
    (0..u16::MAX).step_by(997).chain(0..SIZE).fold(0, |found, head| {
        if rings.chain(head, &mut chain).is_err() {
            return found;
        }
        let Ok(asked) = ask(&mut chain, 4096) else { return found };
        for segment in chain.readable().iter().chain(chain.writable()).chain([&asked.status]) {
            check(&memory, segment);
        }
        assert!(chain.readable().len() + chain.writable().len() <= 2 * MAX_DESCRIPTORS);
        if let Ok(What::Data { bytes, .. }) = asked.what {
            let segments = chain.readable().len().max(chain.writable().len());
            assert!(bytes <= MAX_IO_BYTES && segments <= MAX_SEGMENTS);
        }
        found + 1
    })
}

/// Whether a segment is memory that is shared: its first and last byte are where the guest has
/// them.
fn check(memory: &Memory, segment: &Segment) {
    let last = segment.len - 1;
    for (at, guest) in [(0, segment.guest), (last, segment.guest + last)] {
        let (found, _) = memory.at_guest(guest, 1).expect("shared memory");
        assert_eq!(found.addr().get(), segment.at.addr().get() + at as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sim::Random;

    #[test]
    fn any_bytes_are_chains_within_the_limits_or_none() {
        let mut random = Random::new(11);
        let mut found = 0;
        for _ in 0..300 {
            let mut bytes = Vec::new();
            for _ in 0..2048 {
                let place = random.below(MEMORY as u64 + 8192);
                let most = 1 << random.below(14);
                bytes.extend(place.to_le_bytes());
                bytes.extend((random.below(most) as u32).to_le_bytes());
                bytes.extend((random.below(8) as u16).to_le_bytes());
                bytes.extend((random.below(66) as u16).to_le_bytes());
            }
            found += read_chains(&bytes);
        }
        assert!(found > 100, "{found} requests");
    }
}
