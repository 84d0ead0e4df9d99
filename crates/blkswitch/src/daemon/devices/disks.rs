//! Disks: attaches and detaches devices as ublk disks, and takes over disks from a daemon that was
//! killed.
//!
//! Contract: as [`super`]. A disk cannot be taken over if a leaf or a map of its stack is in the
//! daemon's memory; `attach` warns about it.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use blkswitch_io::export::ublk::{Node, Options, UblkError};
use blkswitch_io::{Address, Device, Table};

use crate::daemon::devices::Devices;
use crate::daemon::devices::leftovers;
use crate::daemon::devices::save::survives;
use crate::daemon::failure::Failure;
use crate::daemon::process::mounts;
use crate::daemon::process::privileges::UBLK_CONTROL;
use crate::daemon::tables::describe;
use crate::daemon::tables::lines::Lines;
use crate::daemon::tables::lookup::{Found, find};
use crate::protocol::{self, AttachUblk, Disk, Errno};
use crate::raw;

/// Folder of the links that give each disk the name of its device.
const LINKS: &str = "/dev/blkswitch";

impl From<UblkError> for Failure {
    fn from(error: UblkError) -> Failure {
        Failure::new(Errno::from_number(error.errno()), error.to_string())
    }
}

impl Devices {
    /// Describes a device for the protocol.
    pub fn describe(&self, device: &Device) -> protocol::Device {
        let disk = self.pool().ublk_node(device).map(|node| self.disk(device, node));
        let waits = self.openings.waits_for(device.id());
        let vhost_user = self.vhost_user(device);
        let map_source = self.followings.of(device).map(|following| following.describe());
        let described = describe::device(device);
        let mut described = protocol::Device { disk, vhost_user, waits, map_source, ..described };
        self.describe_away(device, &mut described);
        described
    }

    /// Attaches `device` as a ublk disk.
    pub fn attach(&self, device: &Arc<Device>, how: AttachUblk) -> Result<Disk, Failure> {
        if let Some(table) = device.live().filter(|_| Path::new(UBLK_CONTROL).exists()) {
            table.prefer_direct();
        }
        let node = self.pool().attach_ublk(
            device,
            &Options { queues: how.queues, depth: how.depth, zero_copy: how.zero_copy },
        )?;
        if let Err(failure) = self.save() {
            // Without a saved description no later daemon could take the disk over, so the attach
            // fails now.
            self.pool().detach_ublk(device, true)?;
            return Err(failure);
        }
        let survives = device.live().is_some_and(|table| survives(&table));
        if !survives {
            tracing::warn!(device = %device.name(), node = %node.path(),
                "a leaf or a region map of this disk is in the daemon's memory: it cannot be taken over");
        }
        link(&device.name(), &node);
        self.disk_appeared(device);
        Ok(self.disk(device, node))
    }

    /// Warns about what may hold up a new disk, and checks whether it was mounted already.
    pub(crate) fn disk_appeared(&self, device: &Device) {
        let risks = self.risks(device);
        if !risks.is_empty() {
            tracing::warn!(device = %device.name(),
                "when the machine's memory is short, this disk may stand still: {}",
                risks.join("; "));
        }
        if self.privileges.has_own_mounts {
            mounts::detach_own(&self.disk_names().collect());
        }
    }

    /// Reasons why the disk may be held up when memory is short; each entry is a phrase.
    fn risks(&self, device: &Device) -> Vec<String> {
        let cached = device.live().map(|table| table.cached_leaves()).unwrap_or_default();
        let cached = cached.into_iter().map(|name| format!("'{name}' goes through the page cache"));
        self.privileges.lacks().iter().cloned().chain(cached).collect()
    }

    /// Refuses a table with a leaf that is a file or disk on one of this daemon's own disks. A
    /// write to that leaf may have to write back pages of the same file, which wait for that write:
    /// a deadlock.
    pub(crate) fn refuse_own_disks(&self, lines: &Lines<'_>) -> Result<(), Failure> {
        let own: HashSet<String> = self.disk_names().collect();
        if own.is_empty() {
            return Ok(());
        }
        for line in lines.iter() {
            for word in &line.words {
                let Ok(Found::Leaf(Address::Path(path))) = find(word, self.pool().registry())
                else {
                    continue;
                };
                if path.is_absolute() && mounts::is_below(&path, &own) {
                    let reason = format!(
                        "'{}' is on a disk that this daemon serves: its requests would wait for \
                         one another",
                        raw::encode_os(path.as_os_str())
                    );
                    return Err(Failure::new(Errno::Eloop, reason));
                }
            }
        }
        Ok(())
    }

    /// Names of the ublk disks as in `/sys/block`.
    pub(crate) fn disk_names(&self) -> impl Iterator<Item = String> {
        let nodes = self.list().into_iter().filter_map(|device| self.pool().ublk_node(&device));
        nodes.filter_map(|node| Some(node.path().strip_prefix("/dev/")?.to_owned()))
    }

    /// Called after a table went live. Opens leaves below disks past the page cache where that
    /// helps, and warns if a disk keeps a size other than the table's.
    pub(crate) fn table_went_live(&self, device: &Device) {
        if let Some(note) = self.size_note(device, device.live()) {
            tracing::warn!(device = %device.name(), "{note}");
        }
        self.pool().tell_vhost_user(device);
        // Files below other disks are not touched: one that hangs would hold up every resume.
        for disk in self.list() {
            if let Some(table) = disk.live()
                && self.pool().ublk_node(&disk).is_some()
                && stands_on(&disk, device)
            {
                table.prefer_direct();
            }
        }
    }

    /// Detaches the disk of a device; with `force` also while somebody uses it.
    pub fn detach(&self, device: &Arc<Device>, force: bool) -> Result<(), Failure> {
        self.pool().detach_ublk(device, force)?;
        unlink(&device.name());
        self.save().map_err(Failure::but_done)
    }

    /// Restores the devices that are kept, with their tables and maps, and takes over the disks
    /// that an earlier daemon has left. With `abandon`, it removes the disks that no process serves
    /// instead, and their requests fail.
    pub fn recover(self: &Arc<Self>, abandon: bool) -> anyhow::Result<()> {
        let keeps_all = self.folder.keeps_all();
        let found = leftovers::found(&self.folder, abandon)?;
        if found.is_empty() && !keeps_all {
            // The folder may be foreign, or its description damaged. Neither matters here: there
            // are no disks, so nothing in it is needed.
            if let Err(error) = self.folder.save(Vec::new()) {
                tracing::warn!(folder = %self.folder.path().display(), %error,
                    "cannot forget disks that are gone");
            }
            self.folder.sweep_strangers();
            return Ok(());
        }
        let state = self.folder.load().with_context(|| {
            format!("cannot read the state of the devices in '{}'", self.folder.path().display())
        })?;
        let left = leftovers::of_devices(&found, &state.devices)?;
        let is_left = |disk: Option<u32>| disk.is_some_and(|id| left.contains(&id));
        if keeps_all || !left.is_empty() {
            self.restore_all(&state, is_left)?;
        }
        if let Err(failure) = self.save() {
            // The existing description still describes the devices.
            tracing::warn!(reason = %failure.reason, "the description stays as it was");
        }
        self.list().iter().for_each(|device| self.attach_if_default(device));
        Ok(())
    }

    /// Attaches a kept device that is not a disk, if `default_disk` says that all devices are.
    pub(crate) fn attach_if_default(&self, device: &Arc<Device>) {
        let could_be = device.live().is_some()
            && !device.info().suspended
            && self.standing.reason(device).is_none()
            && self.pool().ublk_node(device).is_none();
        let how = self.default_disk.filter(|_| could_be && self.folder.keeps_all());
        if let Some(Err(failure)) = how.map(|how| self.attach(device, how)) {
            tracing::warn!(device = %device.name(), reason = %failure.reason, "is no disk");
        }
    }

    /// A note for the user if a table has another size than the disk of its device; `None`
    /// otherwise.
    pub fn size_note(&self, device: &Device, table: Option<Arc<Table>>) -> Option<String> {
        size_note(&self.pool().ublk_node(device)?, table?.len())
    }

    /// Describes a disk for the protocol.
    fn disk(&self, device: &Device, node: Node) -> Disk {
        Disk {
            node: node.path(),
            link: Path::new(LINKS).join(device.name()).display().to_string(),
            queues: node.queues,
            depth: node.depth,
            zero_copy: node.zero_copy,
            sectors: node.sectors,
            logical_block: node.logical_block,
            risks: self.risks(device),
        }
    }

    /// The disks in use; each entry is a phrase that names the user. May block.
    pub fn disks_in_use(&self) -> Vec<String> {
        let used = |device: Arc<Device>| {
            let (node, user) = (self.pool().ublk_node(&device)?, self.pool().ublk_user(&device)?);
            Some(format!("'{}' ({}: {user})", device.name(), node.path()))
        };
        self.list().into_iter().filter_map(used).collect()
    }

    /// Called before the daemon ends. Kept devices and disks are left to the next daemon; the
    /// disks' requests wait for it.
    pub fn leave_disks(&self) {
        let disks =
            self.list().into_iter().filter_map(|device| self.pool().ublk_node(&device)).count();
        if disks > 0 {
            tracing::warn!(disks, "disks stay, and wait for the next serve; remove_all ends them");
        }
        self.folder.end();
    }
}

/// Returns whether `device` is `below` or has it in its stack.
fn stands_on(device: &Device, below: &Device) -> bool {
    let through = |table: Arc<Table>| table.devices().any(|device| stands_on(device, below));
    device.id() == below.id() || device.live().is_some_and(through)
}

/// A sentence about a disk whose table has another size.
fn size_note(node: &Node, sectors: u64) -> Option<String> {
    // A disk consists of whole blocks, so the rest of a table that fills no block never belongs to
    // it.
    let block = u64::from(node.logical_block / 512).max(1);
    let ending = match (sectors / block * block).cmp(&node.sectors) {
        Ordering::Equal => return None,
        Ordering::Greater => "what is beyond it is not used",
        Ordering::Less => "requests beyond the table's end fail",
    };
    Some(format!(
        "{} keeps its size of {} sectors, and the table has {sectors}: {ending}. A disk that is \
         detached and attached again has the table's size",
        node.path(),
        node.sectors
    ))
}

/// Links a disk under the name of its device. A failure is only logged: the disk works without it.
pub(crate) fn link(name: &str, node: &Node) {
    let path = Path::new(LINKS).join(name);
    unlink(name);
    let made = std::fs::create_dir_all(LINKS)
        .and_then(|()| std::os::unix::fs::symlink(node.path(), &path));
    if let Err(error) = made {
        tracing::warn!(path = %path.display(), %error, "a disk has no name");
    }
}

pub(crate) fn unlink(name: &str) {
    let path = Path::new(LINKS).join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "the name of a disk stays behind");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_another_size_than_the_disk_is_said() {
        let node = |sectors, logical_block| Node {
            id: 0,
            queues: 1,
            depth: 1,
            zero_copy: false,
            sectors,
            logical_block,
        };
        let disk = node(100, 512);
        assert_eq!(size_note(&disk, 100), None);
        let grown = size_note(&disk, 101).unwrap();
        assert!(grown.contains("/dev/ublkb0 keeps its size of 100 sectors"), "{grown}");
        assert!(grown.contains("the table has 101: what is beyond it is not used"), "{grown}");
        let shrunk = size_note(&disk, 61).unwrap();
        assert!(shrunk.contains("requests beyond the table's end fail"), "{shrunk}");
        assert_eq!(size_note(&node(96, 4096), 100), None, "12 blocks and a half");
    }
}
