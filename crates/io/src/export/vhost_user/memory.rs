//! The guest's memory: regions that a front end shares, and the ways to an address in them.
//!
//! Contract: an address is checked against one region, whose mapping lives as long as the
//! [`Memory`]. The content may change at any time ([`crate::sys::guarded`]).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::message::RegionAt;
use crate::sys::guarded::Guarded;

/// A region that is mapped.
struct Region {
    at: RegionAt,
    mapping: Guarded,
}

/// The regions of a guest, which do not overlap.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    /// Sorted by their addresses in the guest.
    regions: Vec<Arc<Region>>,
}

impl Memory {
    /// This memory with one more region.
    ///
    /// # Errors
    /// The region overlaps another, its end is not a number, or it cannot be mapped.
    pub(super) fn with(&self, at: RegionAt, file: &OwnedFd) -> io::Result<Memory> {
        let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        if at.guest.checked_add(at.len).is_none() || at.user.checked_add(at.len).is_none() {
            return Err(refused("the region has no end"));
        }
        let overlaps = |one: u64, other: u64, len: u64| one < other + len && other < one + at.len;
        let taken = self.regions.iter().any(|other| {
            overlaps(at.guest, other.at.guest, other.at.len)
                || overlaps(at.user, other.at.user, other.at.len)
        });
        if taken {
            return Err(refused("the region overlaps another"));
        }
        let mapping = Guarded::map(file.as_fd(), at.offset, at.len)?;
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region { at, mapping }));
        regions.sort_by_key(|region| region.at.guest);
        Ok(Memory { regions })
    }

    /// This memory without the region of these addresses. `None` if there is no such region.
    pub(super) fn without(&self, at: RegionAt) -> Option<Memory> {
        let is_it = |region: &Arc<Region>| {
            (region.at.guest, region.at.len, region.at.user) == (at.guest, at.len, at.user)
        };
        let place = self.regions.iter().position(is_it)?;
        let mut regions = self.regions.clone();
        regions.remove(place);
        Some(Memory { regions })
    }

    /// Number of regions.
    pub(super) fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether a region has lost its pages.
    pub(super) fn is_broken(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_broken())
    }

    /// The memory at an address of the guest, and how many of `len` bytes follow there in one
    /// piece, at least one. `None` if no region has the address.
    #[inline]
    pub(super) fn at_guest(&self, guest: u64, len: u64) -> Option<(NonNull<u8>, u64)> {
        self.regions.iter().find_map(|region| {
            let offset = guest.wrapping_sub(region.at.guest);
            if offset >= region.at.len || len == 0 {
                return None;
            }
            // SAFETY: `offset` is less than the length of the mapping.
            let at = unsafe { region.mapping.start().add(offset as usize) };
            Some((at, len.min(region.at.len - offset)))
        })
    }

    /// The memory of `len` bytes at an address of the front end, aligned to `align` bytes. `None`
    /// if no region has all of it.
    pub(super) fn at_user(&self, user: u64, len: u64, align: usize) -> Option<NonNull<u8>> {
        self.regions.iter().find_map(|region| {
            let offset = user.wrapping_sub(region.at.user);
            if offset >= region.at.len || len > region.at.len - offset {
                return None;
            }
            // SAFETY: `offset` is less than the length of the mapping.
            let at = unsafe { region.mapping.start().add(offset as usize) };
            at.addr().get().is_multiple_of(align).then_some(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guest: u64, len: u64, user: u64, offset: u64) -> RegionAt {
        RegionAt { guest, len, user, offset }
    }

    #[test]
    fn addresses_are_found_in_the_region_that_has_them() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 10).unwrap();
        let file = OwnedFd::from(file);
        let memory = Memory::default().with(region(0x8000, 8192, 0x10000, 8192), &file).unwrap();
        let memory = memory.with(region(0, 8192, 0x20000, 0), &file).unwrap();
        let (at, len) = memory.at_guest(0x8000 + 8000, 512).unwrap();
        assert_eq!((Some(at), len), (memory.at_user(0x10000 + 8000, 192, 8), 192));
        assert!(memory.at_user(0x10000 + 8000, 193, 8).is_none(), "beyond the region");
        assert!(memory.at_user(0x10000 + 1, 1, 2).is_none(), "not aligned");
        assert!(memory.at_user(u64::MAX, 8, 1).is_none());
        for guest in [8192, 0x7fff, 0x8000 + 8192, u64::MAX] {
            assert!(memory.at_guest(guest, 1).is_none(), "{guest:#x}");
        }
        for bad in [
            region(4096, 8192, 0x40000, 0),
            region(0x4000, 8192, 0x11000, 0),
            region(u64::MAX, 2, 0x40000, 0),
            region(0x4000, 8192, 0x40000, 9000),
        ] {
            assert!(memory.with(bad, &file).is_err(), "{bad:?}");
        }
        assert_eq!(memory.without(region(0, 8192, 0x20000, 0)).unwrap().len(), 1);
        assert!(memory.without(region(0, 4096, 0x20000, 0)).is_none());
    }
}
