//! Finds the switch segment of a device that a request refers to.
//!
//! Contract: a [`Switch`] keeps its table, even if the device is loaded again or removed meanwhile.
//! Any thread may use it.

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
    /// Finds the switch segment at `sector`; without a sector, the device must have exactly one.
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

    /// Two paths of the switch that certainly lead to different storage.
    pub(crate) fn different_paths(&self) -> Option<(usize, usize)> {
        let (segment, _) = self.segment()?;
        volumes::different(&self.table, segment.target.paths())
    }

    /// The map of the segment. It cannot be missing, because `of` checked the segment and tables do
    /// not change.
    pub(crate) fn map(&self) -> Result<&RegionMap, Failure> {
        let gone = || Failure::new(Errno::Eio, "the segment has no map");
        self.segment().map(|(_, map)| map).ok_or_else(gone)
    }
}

/// The error for segments without a region map; `what` begins the sentence.
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
