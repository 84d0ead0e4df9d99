//! Saves devices for the next daemon, however this one ends (`serve --state`), and makes the swaps
//! and suspends that change what the next daemon must find.
//!
//! The description ([`crate::daemon::state`]) is written before a change of a device's table takes
//! effect, and after any other change. If the daemon is killed in between, the description still
//! agrees with everything that users have been told.
//!
//! Contract: as [`super`].

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use anyhow::Context;
use blkswitch_io::device::Interrupt;
use blkswitch_io::slots::Slots;
use blkswitch_io::table::RegionMap;
use blkswitch_io::{Device, DeviceError, Table};

use crate::daemon::devices::Devices;
use crate::daemon::devices::disks::link;
use crate::daemon::failure::Failure;
use crate::daemon::state::{Description, Owner, SavedDevice};
use crate::daemon::tables::describe;

/// A change that is about to happen to a device and is described already. A daemon that is killed
/// before the change counts as one that was killed just after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// The inactive table goes live.
    Swap,
    /// The gate opens; the table stays.
    Open,
    /// The gate closes; the table stays.
    Close,
    /// The device is removed.
    Remove,
}

impl Devices {
    /// Closes the gate and waits for the requests in flight. With `noflush`, requests that find no
    /// path meanwhile are held.
    pub fn suspend(
        &self,
        device: &Arc<Device>,
        noflush: bool,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        self.with_intent(device, Intent::Close, || {
            device.suspend_unless(noflush, interrupt)?;
            self.standing.set_suspended(device, true);
            Ok(())
        })
    }

    /// Swaps in the inactive table, if there is one, and opens the gate. A device that gets its
    /// first table is attached as a disk if `default_disk` says so.
    pub fn resume(&self, device: &Arc<Device>, interrupt: &Interrupt) -> Result<(), Failure> {
        let first = device.live().is_none();
        self.go_live(device, false, interrupt)?;
        self.warn_if_lost(device);
        match self.default_disk {
            Some(how) if first && device.live().is_some() => self.attach(device, how).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Swaps in the inactive table, if there is one, and opens the gate. The new table is saved for
    /// the next daemon before the gate opens. If this daemon is killed in between, that looks like
    /// a kill just after the swap. This is correct, because no user has had an answer yet.
    pub(crate) fn go_live(
        &self,
        device: &Arc<Device>,
        force: bool,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        if device.inactive().is_none() {
            return self.with_intent(device, Intent::Open, || {
                device.resume_unless(force, interrupt)?;
                self.standing.set_suspended(device, false);
                Ok(())
            });
        }
        self.intents().insert(device.id(), Intent::Swap);
        let mut refused = None;
        // Under the message lock: a message after this goes to the new table, so neither a map that
        // is kept nor the generation in the description can be too old.
        let resumed = device.resume_prepared(force, interrupt, |table| {
            let prepared = self.keep_again(device, table).and_then(|()| self.save());
            prepared.map_err(|failure| {
                refused = Some(failure);
                DeviceError::Unprepared(device.name())
            })
        });
        let changed = match refused {
            Some(failure) => Err(failure),
            None => resumed.map_err(Failure::from),
        };
        if changed.is_ok() {
            self.takeovers.forget(device);
            self.standing.set_suspended(device, false);
            self.table_went_live(device);
        }
        self.end_intent(device, changed)
    }

    /// Saves the state that `change` leads to, then makes the change.
    ///
    /// Errors: the state cannot be saved, and nothing has happened; or the change has failed, and
    /// the description is as before.
    pub(crate) fn with_intent(
        &self,
        device: &Device,
        intent: Intent,
        change: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.intents().insert(device.id(), intent);
        let changed = self.save().and_then(|()| change());
        self.end_intent(device, changed)
    }

    /// Saves the state after a change that was described before, or was not made.
    fn end_intent(&self, device: &Device, changed: Result<(), Failure>) -> Result<(), Failure> {
        self.intents().remove(&device.id());
        // If the change succeeded, the description is unchanged, and saving it again writes
        // nothing.
        let saved = self.save();
        match (changed, saved) {
            (Ok(()), Err(failure)) => Err(failure.but_done()),
            (changed, _) => changed,
        }
    }

    /// Saves a description without `device`, which is about to be removed.
    pub(crate) fn save_without(&self, device: &Device) -> Result<(), Failure> {
        if !self.folder.keeps_all() {
            return Ok(());
        }
        self.intents().insert(device.id(), Intent::Remove);
        let saved = self.save();
        self.intents().remove(&device.id());
        saved
    }

    fn intents(&self) -> MutexGuard<'_, HashMap<u32, Intent>> {
        self.intents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Warns if devices are kept but this one cannot be.
    pub(crate) fn warn_if_lost(&self, device: &Device) {
        if self.folder.keeps_all() && !device.live().is_some_and(|table| survives(&table)) {
            tracing::warn!(device = %device.name(),
                "is not kept: a leaf of it is in the daemon's memory, or it has no table");
        }
    }

    /// Writes the description for the next daemon.
    pub(crate) fn save(&self) -> Result<(), Failure> {
        let _one = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let intents = self.intents().clone();
        self.folder.save(self.described(&intents)).map_err(|error| {
            let path = self.folder.path().display();
            Failure::io(&error, format!("cannot save in '{path}' what the next daemon needs"))
        })
    }

    /// Describes all devices that are kept. A device below another comes first.
    pub(crate) fn described(&self, intents: &HashMap<u32, Intent>) -> Vec<SavedDevice> {
        let mut saved = Vec::new();
        for device in self.list() {
            let mut stack = Vec::new();
            // A device with a deferred removal ends with the daemon.
            let goes =
                device.info().deferred_remove || intents.get(&device.id()) == Some(&Intent::Remove);
            let is_kept = self.folder.keeps_all() && !goes;
            // A stack that is partly in the daemon's memory would not survive, so it is not
            // described.
            if (is_kept || self.pool().ublk_node(&device).is_some())
                && self.describe_stack(&device, intents, &mut stack)
            {
                saved.extend(stack);
            }
        }
        let mut known = HashSet::new();
        saved.retain(|device| known.insert(device.minor));
        saved
    }

    /// Called after a change that does not affect disks. Saves the devices if all are kept, and
    /// removes map files without an owner.
    pub(crate) fn save_kept(&self) -> Result<(), Failure> {
        if self.folder.keeps_all() {
            return self.save();
        }
        self.folder.sweep();
        Ok(())
    }

    /// Appends a device and its stack to `out`, lower devices first, in the state after the intents
    /// have been carried out. Returns `false` if part of the stack is in the daemon's memory.
    fn describe_stack(
        &self,
        device: &Arc<Device>,
        intents: &HashMap<u32, Intent>,
        out: &mut Vec<SavedDevice>,
    ) -> bool {
        let intent = intents.get(&device.id()).copied();
        let swaps = intent == Some(Intent::Swap);
        let is_suspended = |now| match intent {
            // A swap closes the gate itself, for a moment.
            Some(Intent::Swap | Intent::Open) => false,
            Some(Intent::Close) => true,
            Some(Intent::Remove) | None => now,
        };
        if let Some(saved) = self.standing.saved(device).filter(|_| !swaps) {
            let saved = SavedDevice { suspended: is_suspended(saved.suspended), ..saved };
            self.describe_away_stack(device, saved, intents, out);
            return true;
        }
        let table = if swaps { device.inactive().or_else(|| device.live()) } else { device.live() };
        let Some(table) = table else { return false };
        if !survives_alone(&table)
            || !table.devices().all(|below| self.describe_stack(below, intents, out))
        {
            return false;
        }
        let info = device.info();
        out.push(SavedDevice {
            name: info.name,
            uuid: info.uuid,
            minor: info.id,
            read_only: table.read_only(),
            suspended: is_suspended(info.suspended),
            cache: self.cache_of(device),
            table: describe::text(&table),
            maps: maps(&table).filter_map(|map| self.folder.saved_as(map)).collect(),
            disk: self.pool().ublk_node(device).map(|node| node.id),
            vhost_user: self.saved_vhost_user(device),
            block: table.logical_block(),
            map_from: self.followings.of(device).map(|following| following.source().to_string()),
            generation: if swaps { device.generation_after_swap() } else { device.generation() },
        });
        true
    }

    /// Does the work of `describe_stack` for a device whose table is away.
    fn describe_away_stack(
        &self,
        device: &Device,
        saved: SavedDevice,
        intents: &HashMap<u32, Intent>,
        out: &mut Vec<SavedDevice>,
    ) {
        let at = out.len();
        let below = self.named_in(&saved.table);
        let disk = self.pool().ublk_node(device).map(|node| node.id);
        let vhost_user = self.saved_vhost_user(device);
        out.push(SavedDevice { disk: disk.or(saved.disk), vhost_user, ..saved });
        for below in below {
            // In an edited description, tables may refer to one another in a circle.
            if out.iter().all(|other| other.minor != below.id()) {
                self.describe_stack(&below, intents, out);
            }
        }
        out[at..].rotate_left(1);
    }

    /// Creates the devices that were saved, even if their leaves are away
    /// ([`crate::daemon::devices::standing`]), and takes over the disks that `is_left` names.
    pub(crate) fn restore_all(
        self: &Arc<Self>,
        state: &Description,
        is_left: impl Fn(Option<u32>) -> bool,
    ) -> anyhow::Result<()> {
        self.recovering.store(true, Ordering::Release);
        for saved in &state.devices {
            // The guests of front ends wait as the users of a disk do.
            let made = self.stand_in(saved, is_left(saved.disk) || saved.vhost_user.is_some());
            made.with_context(|| format!("cannot make device '{}' again", saved.name))?;
        }
        self.revive_all();
        for saved in &state.devices {
            let device = self.pool().registry().by_id(saved.minor);
            if let (Some(device), Some(vhost_user)) = (device, &saved.vhost_user) {
                self.restore_vhost_user(&device, vhost_user);
            }
        }
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

    /// Returns whether the devices of the previous daemon are still being restored. Nothing is
    /// saved meanwhile.
    pub(crate) fn recovering(&self) -> bool {
        self.recovering.load(Ordering::Acquire)
    }

    /// Called before a message makes its first change to a map, which leads to `generation`.
    ///
    /// Errors: the change could not be announced in the map's file; the message must store nothing.
    pub fn begin_change(
        &self,
        device: &Device,
        map: &RegionMap,
        generation: u64,
    ) -> Result<(), Failure> {
        let info = device.info();
        let owner = Owner { name: info.name, uuid: info.uuid };
        self.folder.begin_change(map.storage(), &owner, generation).map_err(|error| {
            let what = format!("the map cannot be saved in '{}'", self.folder.path().display());
            let mut failure = Failure::io(&error, what);
            failure.reason.push_str(". Nothing was changed");
            failure
        })
    }

    /// Saves the changes that a message has made to a map.
    pub fn end_change(&self, map: &RegionMap) -> Result<(), Failure> {
        self.folder.end_change(map.storage()).map_err(|error| {
            let what = format!("the map cannot be saved in '{}'", self.folder.path().display());
            let mut failure = Failure::io(&error, what).but_done();
            failure.reason.push_str(". The next message that can be saved saves this one, too");
            failure
        })
    }
}

/// Returns whether another process can go on with a table and everything below it.
pub(crate) fn survives(table: &Table) -> bool {
    survives_alone(table)
        && table.devices().all(|device| device.live().is_some_and(|below| survives(&below)))
}

fn survives_alone(table: &Table) -> bool {
    // Leaves with other names are in memory. A null leaf has nothing to lose.
    const OUTLIVE: [&str; 4] = ["/", "iscsi:", "nbd", "null:"];
    let outlives = |name: &str| OUTLIVE.iter().any(|begin| name.starts_with(begin));
    let leaves = table.leaves().iter().all(|leaf| outlives(leaf.name()));
    leaves && maps(table).all(|map| map.file().is_some())
}

/// The slots of a table's maps, in the order of its segments.
pub(crate) fn maps(table: &Table) -> impl Iterator<Item = &Slots> {
    table.maps().map(|(_, map)| map.storage())
}
