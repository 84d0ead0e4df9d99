//! The switch segment of a device that a request is about.
//!
//! Contract: it keeps its table, also if the device is loaded anew or removed meanwhile. Any thread.

use std::sync::Arc;

use blkswitch_io::table::RegionMap;
use blkswitch_io::{Device, DeviceError, Segment, Table, Target};

use crate::daemon::devices::volumes;
use crate::daemon::failure::Failure;
use crate::protocol::Errno;

/// A switch segment of a live table.
#[derive(Clone)]
pub(crate) struct Switch {
    pub(crate) table: Arc<Table>,
    pub(crate) start: u64,
}

impl Switch {
    /// The one at a sector, or the only one.
    pub(crate) fn of(device: &Device, sector: Option<u64>) -> Result<Switch, Failure> {
        let table = device.live().ok_or(DeviceError::NoTable)?;
        let is_switch = |segment: &&Segment| matches!(segment.target, Target::Switch { .. });
        let start = match sector {
            Some(sector) => {
                let segment = table.segment_at(sector).ok_or(DeviceError::SectorOutside)?;
                let found = Some(segment).filter(is_switch);
                found
                    .ok_or_else(|| {
                        no_map(&format!("the segment at sector {sector} is"), &[segment])
                    })?
                    .start
            }
            None => {
                let starts: Vec<u64> =
                    table.segments().iter().filter(is_switch).map(|s| s.start).collect();
                let [start] = starts.as_slice() else {
                    if starts.is_empty() {
                        let all: Vec<&Segment> = table.segments().iter().collect();
                        return Err(no_map("the device is", &all));
                    }
                    let reason = format!(
                        "the device has {} switch segments, at sectors {starts:?}: say which by a sector",
                        starts.len()
                    );
                    return Err(Failure::new(Errno::Einval, reason));
                };
                *start
            }
        };
        Ok(Switch { table, start })
    }

    pub(crate) fn segment(&self) -> Option<(&Segment, &RegionMap)> {
        let segment = self.table.segment_at(self.start)?;
        match &segment.target {
            Target::Switch { map, .. } => Some((segment, map)),
            _ => None,
        }
    }

    /// Two of its paths that visibly lead to different storage.
    pub(crate) fn different_paths(&self) -> Option<(usize, usize)> {
        let (segment, _) = self.segment()?;
        volumes::different(&self.table, segment.target.paths())
    }

    /// Its map. Whoever made the `Switch` has seen it; the table does not change.
    pub(crate) fn map(&self) -> Result<&RegionMap, Failure> {
        let gone = || Failure::new(Errno::Eio, "the segment has no map");
        self.segment().map(|(_, map)| map).ok_or_else(gone)
    }
}

/// Segments without a region map; `what` begins the sentence.
fn no_map(what: &str, segments: &[&Segment]) -> Failure {
    let mut kinds: Vec<&str> = segments.iter().map(|one| one.target.name()).collect();
    kinds.dedup();
    kinds.truncate(4);
    let instead = match kinds.as_slice() {
        ["multipath"] => ": blkswitch status shows the paths of a multipath",
        _ => "",
    };
    let reason =
        format!("{what} {}, and only switch has a region map{instead}", kinds.join(" and "));
    Failure::new(Errno::Einval, reason)
}
