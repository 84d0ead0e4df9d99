//! Where a piece came from: from its place on a leaf or device, back up the way it took.
//!
//! Pure: reads the live tables. They are those that routed the piece, because a table is only
//! replaced while nothing that came through it is under way.

use std::ops::Range;

use super::devices::Devices;
use super::state::{Hops, Part};
use super::{Table, Target};
use crate::device::drain::Changed;

/// The sectors of a part on its leaf; none for a flush.
pub(super) fn of_part(part: &Part) -> Range<u64> {
    sectors(part.io.offset - part.whole.done, part.whole.len)
}

/// A range of bytes as sectors.
pub(super) fn sectors(offset: u64, len: u64) -> Range<u64> {
    offset / 512..(offset + len) / 512
}

/// Whether what came down this way to these sectors came through a changed range of the device.
pub(super) fn is_changed(
    devices: &Devices,
    hops: &Hops,
    at: Range<u64>,
    (device, changed): (u32, &Changed),
) -> bool {
    if at.is_empty() || !hops.all().iter().any(|hop| hop.device == device) {
        return false;
    }
    // A way back that is not found would be a fault of this module. Waiting for too much is safe.
    origin(devices, hops, at, device).is_none_or(|range| changed.touches(range))
}

/// The sectors of the device that were routed to `at`, the end of the way `hops`. With stripes
/// below the device, the smallest range that contains them.
fn origin(devices: &Devices, hops: &Hops, mut at: Range<u64>, device: u32) -> Option<Range<u64>> {
    for hop in hops.all().iter().rev() {
        let local = devices.get(hop.device as usize)?.as_ref()?;
        at = above(&local.live.as_ref()?.table, hop.path, at)?;
        if hop.device == device {
            return Some(at);
        }
    }
    None
}

/// The sectors of a table that it sends to `at` by a path, which is numbered over all segments.
fn above(table: &Table, path: u32, at: Range<u64>) -> Option<Range<u64>> {
    // A segment without paths has the number of the next one's first path, so it comes before it.
    let nr = table.segments().partition_point(|s| s.first_path <= path).checked_sub(1)?;
    let segment = table.segments().get(nr)?;
    let nth = path - segment.first_path;
    let offset = segment.target.paths().get(nth as usize)?.offset;
    let (first, last) = (at.start.checked_sub(offset)?, at.end.checked_sub(offset + 1)?);
    let back = |sector: u64| match &segment.target {
        Target::Striped { chunk, stripes } => {
            (sector / chunk * stripes.len() as u64 + u64::from(nth)) * chunk + sector % chunk
        }
        _ => sector,
    };
    Some(segment.start + back(first)..segment.start + back(last) + 1)
}
