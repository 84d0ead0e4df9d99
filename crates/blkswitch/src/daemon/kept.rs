//! Devices that the next daemon goes on with, whatever becomes of this one (`serve --state`), and
//! the swaps and suspends after which it must find something else.
//!
//! The description for the next daemon ([`super::state`]) is written before a change of a device's
//! table takes effect and after any other change is made. A daemon that is killed in between leaves
//! a description that fits what the device's users have been told.
//!
//! Contract: as [`super::devices`].

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use anyhow::Context;
use blkswitch_io::table::RegionMap;
use blkswitch_io::{Device, Table, Target};

use super::describe;
use super::devices::Devices;
use super::disks::link;
use super::failure::Failure;
use super::state::{SavedDevice, State};
use crate::protocol::Errno;

impl Devices {
    /// Closes the gate and waits for the requests in flight; `noflush` holds those that find no
    /// path meanwhile.
    pub fn suspend(&self, device: &Arc<Device>, noflush: bool) -> Result<(), Failure> {
        if noflush {
            device.suspend_noflush()?;
        } else {
            device.suspend()?;
        }
        self.standing.set_suspended(device, true);
        self.save()
    }

    /// Swaps in the inactive table, if there is one, and opens the gate.
    pub fn resume(&self, device: &Arc<Device>) -> Result<(), Failure> {
        let first = device.live().is_none();
        self.go_live(device)?;
        self.warn_if_lost(device);
        match self.default_disk {
            Some(how) if first && device.live().is_some() => self.attach(device, how).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The same, and no more. The next daemon is told of the new table before it answers anything:
    /// if this one is killed in between, that is as if it had been killed a moment after the swap,
    /// which nobody has been told of yet.
    pub(super) fn go_live(&self, device: &Arc<Device>) -> Result<(), Failure> {
        let swaps = device.inactive().is_some();
        if swaps {
            self.swapping().insert(device.id());
        }
        let told = if swaps { self.save() } else { Ok(()) };
        let resumed = told.and_then(|()| Ok(device.resume()?));
        if resumed.is_ok() {
            self.standing.set_suspended(device, false);
        }
        if swaps {
            self.swapping().remove(&device.id());
        }
        if swaps && resumed.is_ok() {
            self.table_went_live(device);
        }
        let saved = self.save();
        resumed.and(saved)
    }

    fn swapping(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.swapping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says so where devices are kept, and this one cannot be.
    pub(super) fn warn_if_lost(&self, device: &Device) {
        if self.folder.keeps_all() && !device.live().is_some_and(|table| survives(&table)) {
            tracing::warn!(device = %device.name(),
                "is not kept: a leaf of it is in the daemon's memory, or it has no table");
        }
    }

    /// Describes what is kept for the next daemon.
    pub(super) fn save(&self) -> Result<(), Failure> {
        let _one = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let swapping = self.swapping().clone();
        self.folder.save(self.described(&swapping)).map_err(|error| {
            let errno = Errno::from_number(error.raw_os_error().unwrap_or(Errno::Eio.number()));
            let path = self.folder.path().display();
            Failure::new(
                errno,
                format!("cannot save in '{path}' what the next daemon needs: {error}"),
            )
        })
    }

    /// What is kept of all devices, what is below first.
    pub(super) fn described(&self, swapping: &HashSet<u32>) -> Vec<SavedDevice> {
        let mut saved = Vec::new();
        for device in self.list() {
            let mut stack = Vec::new();
            // One that goes with its last user goes with the daemon.
            let is_kept = self.folder.keeps_all() && !device.info().deferred_remove;
            // One that would not survive is not promised to.
            if (is_kept || self.pool().ublk_node(&device).is_some())
                && self.describe_stack(&device, swapping, &mut stack)
            {
                saved.extend(stack);
            }
        }
        let mut known = HashSet::new();
        saved.retain(|device| known.insert(device.minor));
        saved
    }

    /// After a change that no disk has noticed: saves, where every device is kept, and removes maps
    /// that nobody has.
    pub(super) fn save_kept(&self) -> Result<(), Failure> {
        if self.folder.keeps_all() {
            return self.save();
        }
        self.folder.sweep();
        Ok(())
    }

    /// A device and what it stands on, what is below first; those in `swapping` are about to run
    /// their inactive tables. False if something of it is in memory.
    fn describe_stack(
        &self,
        device: &Arc<Device>,
        swapping: &HashSet<u32>,
        out: &mut Vec<SavedDevice>,
    ) -> bool {
        let swaps = swapping.contains(&device.id());
        if let Some(saved) = self.standing.saved(device).filter(|_| !swaps) {
            self.describe_away_stack(device, saved, swapping, out);
            return true;
        }
        let table = if swaps { device.inactive().or_else(|| device.live()) } else { device.live() };
        let Some(table) = table else { return false };
        if !survives_alone(&table)
            || !table.devices().all(|below| self.describe_stack(below, swapping, out))
        {
            return false;
        }
        let info = device.info();
        out.push(SavedDevice {
            name: info.name,
            uuid: info.uuid,
            minor: info.id,
            read_only: table.read_only(),
            // A swap closes the gate for a moment of its own; what the user did before that counts.
            suspended: info.suspended && !swaps,
            cache: self.cache_of(device),
            table: describe::text(&table),
            maps: maps(&table).filter_map(|path| path?.file_name().map(PathBuf::from)).collect(),
            disk: self.pool().ublk_node(device).map(|node| node.id),
            block: table.logical_block(),
        });
        true
    }

    /// The same of a device whose table is away.
    fn describe_away_stack(
        &self,
        device: &Device,
        saved: SavedDevice,
        swapping: &HashSet<u32>,
        out: &mut Vec<SavedDevice>,
    ) {
        let at = out.len();
        let below = self.named_in(&saved.table);
        let disk = self.pool().ublk_node(device).map(|node| node.id);
        out.push(SavedDevice { disk: disk.or(saved.disk), ..saved });
        for below in below {
            // A description that was edited may have tables in a circle.
            if out.iter().all(|other| other.minor != below.id()) {
                self.describe_stack(&below, swapping, out);
            }
        }
        out[at..].rotate_left(1);
    }

    /// Makes the devices that were saved, whatever of them is away ([`super::standing`]), and takes
    /// over the disks that `is_left` names.
    pub(super) fn restore_all(
        self: &Arc<Self>,
        state: &State,
        is_left: impl Fn(Option<u32>) -> bool,
    ) -> anyhow::Result<()> {
        self.recovering.store(true, Ordering::Release);
        for saved in &state.devices {
            let made = self.stand_in(saved, is_left(saved.disk));
            made.with_context(|| format!("cannot make device '{}' again", saved.name))?;
        }
        self.revive_all();
        self.recovering.store(false, Ordering::Release);
        for saved in &state.devices {
            let device = self.pool().registry().by_id(saved.minor);
            let (Some(device), Some(id)) = (device, saved.disk.filter(|id| is_left(Some(*id))))
            else {
                continue;
            };
            let node = self.pool().recover_ublk(&device, id).with_context(|| {
                format!(
                    "cannot go on with the disk of device '{}'; serve --abandon-disks lets its \
                     requests fail",
                    saved.name
                )
            })?;
            link(&saved.name, &node);
            self.disk_appeared(&device);
        }
        Ok(())
    }

    /// Whether the devices of the last daemon are being made again: nothing is saved meanwhile.
    pub(super) fn recovering(&self) -> bool {
        self.recovering.load(Ordering::Acquire)
    }

    /// Forces what a message has changed to the medium, where devices are kept.
    pub fn sync_map(&self, map: &RegionMap) -> Result<(), Failure> {
        self.folder.sync_map(map.storage()).map_err(|error| {
            let reason = format!(
                "the message was applied, but the map cannot be forced to its medium: {error}"
            );
            Failure::new(Errno::Eio, reason)
        })
    }
}

/// Whether another process can go on with a table and all below it.
pub(super) fn survives(table: &Table) -> bool {
    survives_alone(table)
        && table.devices().all(|device| device.live().is_some_and(|below| survives(&below)))
}

fn survives_alone(table: &Table) -> bool {
    // Other leaves are in memory; null has nothing to lose.
    const OUTLIVE: [&str; 4] = ["/", "iscsi:", "nbd", "null:"];
    let outlives = |name: &str| OUTLIVE.iter().any(|begin| name.starts_with(begin));
    let leaves = table.leaves().iter().all(|leaf| outlives(leaf.name()));
    leaves && maps(table).all(|file| file.is_some())
}

/// The files of a table's maps, segment by segment.
fn maps(table: &Table) -> impl Iterator<Item = Option<&Path>> {
    table.segments().iter().filter_map(|segment| match &segment.target {
        Target::Switch { map, .. } => Some(map.storage().file()),
        Target::Linear(_)
        | Target::Striped { .. }
        | Target::Multipath { .. }
        | Target::Error
        | Target::Zero => None,
    })
}
