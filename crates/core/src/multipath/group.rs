//! A priority group: paths of equal priority, a selector that spreads requests over them, and
//! whether the group is disabled.
//!
//! Contract: as in [`super::path`]. A group knows its paths by their numbers; the caller passes the
//! paths.

use super::sync::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::path::Path;
use super::selector::{Ask, Selector};

/// A priority group: a run of consecutive paths with one selector.
#[derive(Debug)]
pub struct Group {
    selector: Selector,
    first_path: u32,
    num_paths: u32,
    bypassed: AtomicBool,
    misses: AtomicU32,
}

impl Group {
    /// A group of the paths `first_path ..  first_path + num_paths`, for [`super::Multipath::new`].
    #[must_use]
    pub fn new(selector: Selector, first_path: u32, num_paths: u32) -> Self {
        Self {
            selector,
            first_path,
            num_paths,
            bypassed: AtomicBool::new(false),
            misses: AtomicU32::new(0),
        }
    }

    /// The selector, which spreads requests over its paths.
    #[must_use]
    pub const fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The number of its first path.
    #[must_use]
    pub const fn first_path(&self) -> u32 {
        self.first_path
    }

    /// How many paths it has, at least 1.
    #[must_use]
    pub const fn num_paths(&self) -> u32 {
        self.num_paths
    }

    /// Whether the group is skipped while another group has a path that is up (`disable_group`).
    #[must_use]
    pub fn is_bypassed(&self) -> bool {
        self.bypassed.load(Relaxed)
    }

    /// How often the path of a request's CPU was not up (io-affinity only).
    #[must_use]
    pub fn misses(&self) -> u32 {
        self.misses.load(Relaxed)
    }

    pub(super) fn set_bypassed(&self, bypassed: bool) {
        self.bypassed.store(bypassed, Relaxed);
    }

    pub(super) fn count_miss(&self) {
        self.misses.fetch_add(1, Relaxed);
    }

    /// The paths of this group, out of `all` paths of the device.
    #[inline]
    #[must_use]
    pub fn paths<'p>(&self, all: &'p [Path]) -> &'p [Path] {
        let start = self.first_path as usize;
        all.get(start..start.wrapping_add(self.num_paths as usize)).unwrap_or(&[])
    }

    /// Picks a path for a request and returns its number on the device; `None` if no path is up.
    #[inline]
    pub(super) fn pick(&self, all: &[Path], ask: &Ask) -> Option<u32> {
        let place = self.selector.pick(self, self.paths(all), ask)?;
        Some(self.first_path.wrapping_add(place))
    }

    /// Whether one of its paths is up.
    pub(super) fn has_path(&self, all: &[Path]) -> bool {
        self.paths(all).iter().any(Path::is_up_ordered)
    }
}
