//! The difference between a device's map and another map.
//!
//! Contract: nothing is changed. The other map is that of another device, which is read where it
//! is, or a copy of the device's own map to which a message was applied. If a map changes
//! meanwhile, the difference shows each region at some moment.

use blkswitch_core::map::diff::{Changes, Diff};
use blkswitch_io::Device;
use blkswitch_io::slots::Slots;
use blkswitch_io::table::RegionMap;

use crate::daemon::devices::plan::copy_of;
use crate::daemon::devices::switch::Switch;
use crate::daemon::failure::Failure;
use crate::daemon::tables::targets::{Text, apply_to};
use crate::protocol::{Errno, MapChange};

/// Regions that are compared at a time: some milliseconds of work.
const STEP_REGIONS: u64 = 1 << 22;

/// Two maps with the same regions.
pub(crate) struct Difference {
    before: Switch,
    after: After,
}

enum After {
    Device(Switch),
    Message(RegionMap),
}

impl Difference {
    /// Compares the maps of two devices.
    pub(crate) fn of_devices(before: Switch, after: Switch) -> Result<Difference, Failure> {
        let difference = Difference { before, after: After::Device(after) };
        difference.diff().map(|_| ())?;
        Ok(difference)
    }

    /// Compares the map of a device with the map that a message would make of it.
    pub(crate) fn of_message(
        device: &Device,
        switch: Switch,
        message: Text<'_>,
    ) -> Result<Difference, Failure> {
        let copy = {
            // Without a messenger, nobody changes this map any more.
            let _messenger = device.messenger(switch.start);
            copy_of(switch.map()?)?
        };
        apply_to(&copy, message)?;
        Ok(Difference { before: switch, after: After::Message(copy) })
    }

    /// The core's comparison.
    pub(crate) fn diff(&self) -> Result<Diff<'_, Slots, Slots>, Failure> {
        let after = match &self.after {
            After::Device(switch) => switch.map()?,
            After::Message(map) => map,
        };
        Diff::new(self.before.map()?, after)
            .map_err(|error| Failure::new(Errno::Einval, error.to_string()))
    }

    /// The numbers of paths of both maps.
    pub(crate) fn paths(&self) -> Result<[u32; 2], Failure> {
        let after = match &self.after {
            After::Device(switch) => switch.map()?,
            After::Message(map) => map,
        };
        Ok([self.before.map()?, after].map(|map| map.geometry().num_paths()))
    }
}

/// The changes of a [`Difference`], found step by step.
#[derive(Default)]
pub(crate) struct Walk {
    next: u64,
    /// The last change that was found; the next step may continue it.
    joined: Option<MapChange>,
}

impl Walk {
    /// Passes changes to `each`, until it returns `false`, or until a few million regions are
    /// compared. Returns `false` when all changes were passed.
    pub(crate) fn step(
        &mut self,
        diff: &Diff<'_, Slots, Slots>,
        mut each: impl FnMut(MapChange) -> bool,
    ) -> bool {
        let regions = diff.geometry().nr_regions();
        let end = self.next.saturating_add(STEP_REGIONS).min(regions);
        let changes: Changes<'_, _, _> = diff.changes(self.next, end);
        for change in changes {
            let change = MapChange {
                start: change.first,
                count: change.count,
                from: change.from,
                to: change.to,
            };
            self.next = change.start + change.count;
            let passed = match &mut self.joined {
                Some(joined) if continues(joined, &change) => {
                    joined.count += change.count;
                    None
                }
                joined => joined.replace(change),
            };
            if passed.is_some_and(|change| !each(change)) {
                return true;
            }
        }
        self.next = end;
        if end < regions {
            return true;
        }
        self.joined.take().into_iter().for_each(|change| {
            each(change);
        });
        false
    }
}

fn continues(joined: &MapChange, change: &MapChange) -> bool {
    joined.start + joined.count == change.start
        && (joined.from, joined.to) == (change.from, change.to)
}
