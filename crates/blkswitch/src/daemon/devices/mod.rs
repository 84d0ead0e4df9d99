//! The operations on devices: create, load, resume, suspend, rename, wipe and remove.
//!
//! Contract: plain functions that may block, because a suspend waits for requests in flight. The
//! server calls them on threads that may block. Nothing here knows HTTP.

pub mod clients;
pub(crate) mod difference;
pub mod disks;
pub(crate) mod following;
mod keep;
mod leftovers;
pub mod message;
pub(crate) mod places;
pub(crate) mod plan;
#[cfg(test)]
mod power;
pub mod save;
mod staged;
pub mod standing;
pub mod switch;
pub mod vhost_user;
pub(crate) mod volumes;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use blkswitch_core::multipath::checker::NoPathRetry;
use blkswitch_io::device::Interrupt;
use blkswitch_io::pool::Registry;
use blkswitch_io::{Device, DeviceError, Pool, Table, TableBuilder, Target};

use crate::config::PathOptions;
use crate::daemon::devices::disks::{link, unlink};
use crate::daemon::devices::following::Followings;
use crate::daemon::devices::keep::Takeovers;
use crate::daemon::devices::save::Intent;
use crate::daemon::devices::staged::Staging;
use crate::daemon::devices::standing::Standing;
use crate::daemon::devices::vhost_user::Sockets;
use crate::daemon::devices::volumes::Noted;
use crate::daemon::failure::{Failure, MAJOR};
use crate::daemon::process::privileges::Privileges;
use crate::daemon::state::Folder;
use crate::daemon::tables::build;
use crate::daemon::tables::builder::{Maps, Site};
use crate::daemon::tables::lines::Lines;
use crate::daemon::tables::lookup::Leaves;
use crate::daemon::tables::missing;
use crate::daemon::tables::opening::{Opening, Openings};
use crate::protocol::{
    self, AttachUblk, CreateDevice, Errno, ErrorBody, LeafCache, LoadTable, NAME_MAX_BYTES,
    RemoveAll, RemoveQuery, Removed, Rename, UUID_MAX_BYTES,
};
use crate::raw;

/// All devices of a daemon, with the queues and files that they need.
pub struct Devices {
    pool: Pool,
    leaves: Leaves,
    /// Tables that are being built.
    pub(crate) openings: Openings,
    /// Devices whose saved tables cannot be built yet.
    pub(crate) standing: Standing,
    /// Set while the devices of the previous daemon are being restored.
    pub(crate) recovering: AtomicBool,
    /// The page cache mode in which each device's leaves were opened last, by device number.
    caches: Mutex<HashMap<u32, LeafCache>>,
    /// The state folder: what the next daemon needs.
    pub(crate) folder: Folder,
    /// Held while the description is written.
    pub(crate) saving: Mutex<()>,
    /// Changes that are about to happen to devices, by device number.
    pub(crate) intents: Mutex<HashMap<u32, Intent>>,
    /// Devices whose users have been warned that a remap shows other data.
    pub(crate) noted: Noted,
    /// Inactive tables that take over a map.
    takeovers: Takeovers,
    /// Long messages that are arriving.
    staging: Staging,
    /// The devices whose map comes from a source.
    pub(crate) followings: Followings,
    /// The privileges that the process has got.
    pub(crate) privileges: Privileges,
    /// The settings of the path checker, if there is one.
    paths: Option<PathOptions>,
    /// How a device is attached as a disk when it first gets a table; `None` if it is not.
    pub(crate) default_disk: Option<AttachUblk>,
    /// The sockets for vhost-user front ends.
    pub(crate) sockets: Sockets,
}

impl Devices {
    /// Creates an empty set of devices on the queues of `pool`. State for the next daemon goes to
    /// `folder`. Devices become disks by themselves if `default_disk` says how.
    pub fn new(pool: Pool, folder: Folder, default_disk: Option<AttachUblk>) -> Devices {
        Devices {
            pool,
            leaves: Leaves::default(),
            openings: Openings::default(),
            standing: Standing::default(),
            recovering: AtomicBool::new(false),
            caches: Mutex::default(),
            folder,
            saving: Mutex::default(),
            intents: Mutex::default(),
            noted: Noted::default(),
            takeovers: Takeovers::default(),
            staging: Staging::default(),
            followings: Followings::default(),
            privileges: Privileges::default(),
            paths: None,
            default_disk,
            sockets: Sockets::default(),
        }
    }

    /// Sets the privileges that the process has got.
    pub fn with_privileges(self, privileges: Privileges) -> Devices {
        Devices { privileges, ..self }
    }

    /// Sets where the sockets for vhost-user front ends are made.
    pub fn with_sockets(self, sockets: Sockets) -> Devices {
        Devices { sockets, ..self }
    }

    /// Sets what the path checker does.
    pub fn with_paths(self, paths: PathOptions) -> Devices {
        Devices { paths: Some(paths), ..self }
    }

    /// The policy for requests of a device that has no path; `None` means as its table says.
    pub(crate) fn no_path_retry_of(&self, name: &str) -> Option<NoPathRetry> {
        self.paths.as_ref()?.no_path_retry_of(name)
    }

    /// Applies the option about devices without a path to a new table. The path checker does so,
    /// too, but only after the table has gone live: until then, requests would fail.
    pub(crate) fn apply_no_path_retry(&self, name: &str, table: &Table) {
        if let (Some((groups, _)), Some(retry)) = (table.multipath(), self.no_path_retry_of(name)) {
            groups.set_queueing(retry.queues_first(), &mut |_| {});
        }
    }

    /// The page cache mode in which the leaves of a device were opened last.
    pub(crate) fn cache_of(&self, device: &Device) -> LeafCache {
        let caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.get(&device.id()).copied().unwrap_or_default()
    }

    pub(crate) fn remember_cache(&self, device: &Device, cache: LeafCache) {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).insert(device.id(), cache);
    }

    /// Everything but the text that a table of `device` is built from.
    pub(crate) fn site<'a>(&'a self, device: &'a Arc<Device>, opening: &'a Opening) -> Site<'a> {
        let (registry, queues, leaves) = (self.registry(), self.pool.queues(), &self.leaves);
        let maps = Maps::new(&self.folder);
        Site { registry, leaves, device, queues, maps, opening, restores: false }
    }

    /// The pool of queues that serves the devices.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn registry(&self) -> &Registry {
        self.pool.registry()
    }

    /// All devices, sorted by name.
    pub fn list(&self) -> Vec<Arc<Device>> {
        let mut devices = self.registry().list();
        devices.sort_by_cached_key(|device| device.name());
        devices
    }

    /// Finds a device by name.
    pub fn find(&self, name: &str) -> Result<Arc<Device>, Failure> {
        let missing = || Failure::new(Errno::Enxio, missing::device(name, self.registry()));
        self.registry().find(name).ok_or_else(missing)
    }

    /// Creates a device, loads its table and resumes it. If a step fails, no device is left.
    pub fn create(&self, request: CreateDevice) -> Result<protocol::Device, ErrorBody> {
        let uuid = request.uuid.clone().unwrap_or_default();
        let checked = check_name(&request.name).and_then(|()| check_uuid(&uuid)).and_then(|()| {
            if request.table.is_none() && request.map.is_some() {
                let reason = format!("'{}' has no table that a map could be of", request.name);
                return Err(Failure::new(Errno::Einval, reason));
            }
            let is_disk = request.ublk.is_some() || request.vhost_user.is_some();
            if request.table.is_some() || !is_disk {
                return Ok(());
            }
            let reason = format!(
                "'{}' cannot be a disk without a table: create it with one, or attach it later",
                request.name
            );
            Err(Failure::new(Errno::Einval, reason))
        });
        let source = checked.and_then(|()| following::source_of(&request));
        let made = source.and_then(|source| {
            let made = self.registry().create(&request.name, &uuid, request.minor);
            let device = made.map_err(|error| self.taken(error, &request.name))?;
            if let Some(source) = source {
                self.followings.set(&device, source);
            }
            Ok(device)
        });
        let device = made.map_err(|failure| failure.of("create", None))?;
        let Some(table) = request.table else { return Ok(self.describe(&device)) };
        let load = LoadTable {
            table,
            read_only: request.read_only,
            leaves: request.leaves,
            map: request.map,
            ..LoadTable::default()
        };
        let step = |ioctl: &'static str| move |failure: Failure| (ioctl, failure);
        let loaded = self.load(&device, &load).map_err(step("reload"));
        let done = loaded.and_then(|()| {
            self.go_live(&device, false, &Interrupt::default()).map_err(step("resume"))
        });
        match done {
            Ok(()) => {
                self.warn_if_lost(&device);
                let how = request.ublk.or(self.default_disk);
                let disk = how.map_or(Ok(()), |how| self.attach(&device, how).map(|_| ()));
                let attached = disk.and_then(|()| match request.vhost_user {
                    Some(how) => self.attach_vhost_user(&device, how).map(|_| ()),
                    None => Ok(()),
                });
                if let Err(mut failure) = attached {
                    // The device is useful without being a disk, so it stays.
                    failure.reason = format!(
                        "device '{}' is made and served over NBD, but is no disk: {}",
                        request.name, failure.reason
                    );
                    return Err(failure.of("attach", Some(device.id())));
                }
                Ok(self.describe(&device))
            }
            Err((ioctl, failure)) => {
                let number = device.id();
                if let Err(error) = self.registry().remove(&device) {
                    tracing::warn!(device = %request.name, %error, "a device that could not be made stays behind");
                }
                if let Err(failure) = self.save_kept() {
                    tracing::warn!(device = %request.name, reason = %failure.reason, "may come back");
                }
                let mut body = failure.of(ioctl, Some(number));
                body.device = Some([MAJOR, number]);
                Err(body)
            }
        }
    }

    /// Explains why a device cannot be created. If the name belongs to a device that is being
    /// created, it says what that one waits for.
    fn taken(&self, error: DeviceError, name: &str) -> Failure {
        let mut failure = Failure::from(error);
        let other = self.registry().find(name);
        if let Some(waits) = other.and_then(|other| self.openings.waits_for(other.id())) {
            failure.reason = format!("{}, which {waits}", failure.reason);
        }
        failure
    }

    /// Builds a table and puts it into the inactive slot. Each device loads one table at a time: a
    /// second load is refused, because the first may wait forever.
    pub fn load(&self, device: &Arc<Device>, load: &LoadTable) -> Result<(), Failure> {
        let begun = self.openings.begin(device.id(), &device.name())?;
        let text = raw::decode(&load.table);
        let lines = Lines::parse(&text);
        self.refuse_own_disks(&lines)?;
        let mut table = build(&self.site(device, &begun.opening), load, &lines)?;
        let kept = self.keep(device, &mut table, load);
        let kept = match kept.and_then(|kept| self.supply(device, &table, load).map(|()| kept)) {
            Ok(kept) => kept,
            Err(failure) => {
                // The file of its map goes with it.
                drop(table);
                self.folder.sweep();
                return Err(failure);
            }
        };
        self.apply_no_path_retry(&device.name(), &table);
        device.load(table)?;
        self.takeovers.note(device, kept);
        self.remember_cache(device, load.leaves.cache);
        self.folder.sweep();
        Ok(())
    }

    /// Drops the inactive table.
    pub fn clear(&self, device: &Device) {
        device.clear();
        self.folder.sweep();
    }

    /// Changes the name of a device, or sets its UUID. A change that cannot be saved is undone.
    pub fn rename(&self, device: &Device, rename: &Rename) -> Result<(), Failure> {
        match rename {
            Rename::Name(new) => {
                check_name(new)?;
                let old = device.name();
                let renamed = self.registry().rename(device, new);
                renamed.map_err(|error| {
                    let line = format!(
                        "Unable to change name on mapped device {old} to one that already exists: {new}"
                    );
                    logged_if_taken(error, line)
                })?;
                self.standing.renamed(&old, new);
                if let Err(failure) = self.save() {
                    self.registry().rename(device, &old)?;
                    self.standing.renamed(new, &old);
                    return Err(failure);
                }
                if let Some(node) = self.pool.ublk_node(device) {
                    unlink(&old);
                    link(new, &node);
                }
                Ok(())
            }
            Rename::Uuid(new) => {
                check_uuid(new)?;
                if new.is_empty() {
                    return Err(Failure::new(Errno::Einval, "the new uuid is empty"));
                }
                let name = device.name();
                self.registry().set_uuid(device, new).map_err(|error| {
                    let line = format!(
                        "Unable to change uuid on mapped device {name} to one that already exists: {new}"
                    );
                    logged_if_taken(error, line)
                })?;
                self.save().inspect_err(|_| device.forget_uuid())
            }
        }
    }

    /// Replaces the live table by one of the same length in which every request fails.
    pub fn wipe(
        &self,
        device: &Arc<Device>,
        force: bool,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        let live = device.live().ok_or(DeviceError::NoTable)?;
        let mut table = TableBuilder::new(live.read_only());
        table.push(live.len(), Target::Error);
        let table = table.build();
        device.load(table.map_err(|error| Failure::new(Errno::Einval, error.to_string()))?)?;
        // A refused `error` table must not go live at the next resume.
        self.go_live(device, force, interrupt).inspect_err(|_| self.clear(device))
    }

    /// Removes a device that nobody has open. [`RemoveQuery`] says what happens to one that is
    /// open.
    pub fn remove(
        &self,
        device: &Arc<Device>,
        how: RemoveQuery,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        self.prepare_removal(device, how, interrupt)?;
        if how.force && !how.deferred {
            return self.remove_from_clients(device);
        }
        self.remove_prepared(device, how)
    }

    /// Makes a device fail its requests, marks it, and detaches its disk, as `how` says.
    fn prepare_removal(
        &self,
        device: &Arc<Device>,
        how: RemoveQuery,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        if how.force && device.live().is_some() {
            self.wipe(device, true, interrupt)?;
        }
        // The mark comes before the attempt, so a last close in between sees it and removes the
        // device. The mark is saved before anything goes.
        if how.deferred && !device.info().deferred_remove {
            device.set_deferred_remove(true);
            self.save_kept().inspect_err(|_| device.set_deferred_remove(false))?;
        }
        // An unused disk is detached and does not stop the removal; with `force`, neither does one
        // in use.
        if self.pool.ublk_node(device).is_some() {
            match self.detach(device, how.force) {
                Err(failure) if failure.errno == Errno::Ebusy && how.deferred => {}
                detached => detached?,
            }
        }
        if self.pool.vhost_user_socket(device).is_some() {
            match self.detach_vhost_user(device, how.force) {
                Err(failure) if failure.errno == Errno::Ebusy && how.deferred => {}
                detached => detached?,
            }
        }
        Ok(())
    }

    /// Removes a device, unless it is open.
    fn remove_prepared(&self, device: &Arc<Device>, how: RemoveQuery) -> Result<(), Failure> {
        match self.remove_saved(device) {
            Err(failure)
                if how.deferred && [Errno::Ebusy, Errno::Enxio].contains(&failure.errno) =>
            {
                Ok(())
            }
            removed => removed,
        }
    }

    /// Removes a device after a description without it is saved. Nobody can open the device
    /// meanwhile, so the description never lacks a device in use.
    pub(crate) fn remove_saved(&self, device: &Arc<Device>) -> Result<(), Failure> {
        let mut failure = None;
        let removed = self.registry().remove_if(device, || {
            let saved = self.save_without(device);
            saved.map_err(|error| failure = Some(error)).is_ok()
        });
        match failure {
            Some(failure) => Err(failure),
            None => {
                removed?;
                self.folder.sweep();
                Ok(())
            }
        }
    }

    /// Removes every device that nobody has open, with `force` also. Devices on top of others must
    /// go first, so it repeats until a round removes none.
    pub fn remove_all(&self, how: RemoveAll, interrupt: &Interrupt) -> Removed {
        let how = RemoveQuery { force: how.force, deferred: how.deferred };
        let mut removed = Vec::new();
        loop {
            let before = removed.len();
            for device in self.list() {
                let name = device.name();
                let prepared = self.prepare_removal(&device, how, interrupt);
                match prepared.and_then(|()| self.remove_prepared(&device, how)) {
                    Ok(()) if self.registry().by_id(device.id()).is_none() => removed.push(name),
                    Ok(()) => {}
                    Err(failure) => {
                        tracing::debug!(device = %name, reason = %failure.reason, "stays")
                    }
                }
            }
            if removed.len() == before {
                let busy = self.list().iter().map(|device| device.name()).collect();
                return Removed { removed, busy };
            }
        }
    }
}

fn logged_if_taken(error: DeviceError, line: String) -> Failure {
    match error {
        DeviceError::Exists(_) => Failure::from(error).logged(line),
        other => other.into(),
    }
}

/// Refuses control characters and bytes that are not UTF-8. Control characters would break a line
/// apart or command a terminal: names come over HTTP unchecked, and go to logs, to `ls` and to NBD
/// clients.
fn check_printable(what: &str, text: &str) -> Result<(), Failure> {
    let fault = if text.chars().any(char::is_control) {
        "has a control character in it: write it as \\xNN"
    } else if raw::has_bytes(text) {
        "is not UTF-8: write such a byte as \\xNN"
    } else {
        return Ok(());
    };
    let reason = format!("the {what} '{}' {fault}", text.escape_debug());
    Err(Failure::new(Errno::Einval, reason))
}

/// Checks the kernel's rules for names. Control characters are refused in addition.
fn check_name(name: &str) -> Result<(), Failure> {
    check_printable("name", name)?;
    if name.contains('/') {
        let reason = format!("the name '{name}' must not contain '/'");
        return Err(Failure::new(Errno::Einval, reason).logged("device name cannot contain '/'"));
    }
    if ["control", ".", ".."].contains(&name) {
        let reason = format!("the name '{name}' is not free for a device");
        let line = "device name cannot be \"control\", \".\", or \"..\"";
        return Err(Failure::new(Errno::Einval, reason).logged(line));
    }
    match name.len() {
        0 => Err(Failure::new(Errno::Einval, "the name is empty")),
        1..=NAME_MAX_BYTES => Ok(()),
        long => {
            let reason = format!("the name has {long} bytes: {NAME_MAX_BYTES} is the most");
            Err(Failure::new(Errno::Enametoolong, reason))
        }
    }
}

fn check_uuid(uuid: &str) -> Result<(), Failure> {
    check_printable("uuid", uuid)?;
    if uuid.len() <= UUID_MAX_BYTES {
        return Ok(());
    }
    let reason = format!("the uuid has {} bytes: {UUID_MAX_BYTES} is the most", uuid.len());
    Err(Failure::new(Errno::Enametoolong, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_kernels_rules() {
        for good in ["switch", "a\\x20b", "...", &"n".repeat(127)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["\x1b[2J", "a\nb", "a\0b", "\u{9b}31m"] {
            let reason = check_name(bad).unwrap_err().reason;
            assert!(reason.contains("control character"), "{reason}");
            assert!(!reason.chars().any(char::is_control), "{reason}");
            assert!(check_uuid(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a/b", ".", "..", "control", &"n".repeat(128)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_uuid("").is_ok() && check_uuid(&"u".repeat(129)).is_err());
    }
}
