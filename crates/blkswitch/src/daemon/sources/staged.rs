//! A map that no device uses: what a source has told is put there first, and compared with the map
//! in use.

use blkswitch_core::switch::{Geometry, Map};
use blkswitch_io::slots::Slots;
use blkswitch_io::table::region_storage;

/// A map that no device uses.
pub(crate) type StagedMap = Map<Slots>;

/// A map of this shape in which every region is round robin; `None` if there is no memory for it.
pub(crate) fn staged(geometry: &Geometry) -> Option<StagedMap> {
    Map::new(*geometry, region_storage(geometry)?).ok()
}
