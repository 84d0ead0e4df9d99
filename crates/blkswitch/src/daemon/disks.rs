//! Devices as disks of this machine: attached, detached, and taken over from a daemon that was
//! killed.
//!
//! Contract: as [`super::devices`]. A disk in whose stack a leaf or a map is in the daemon's memory
//! cannot be taken over, which is said when it is attached.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use blkswitch_io::Device;
use blkswitch_io::export::ublk::{self, Node, Options, UblkError};

use super::describe;
use super::devices::Devices;
use super::failure::Failure;
use super::kept::survives;
use crate::protocol::{self, AttachUblk, Disk, Errno};

/// Where the disks have the names of their devices.
const LINKS: &str = "/dev/blkswitch";

impl From<UblkError> for Failure {
    fn from(error: UblkError) -> Failure {
        Failure::new(Errno::from_number(error.errno()), error.to_string())
    }
}

impl Devices {
    /// A device as the protocol describes it.
    pub fn describe(&self, device: &Device) -> protocol::Device {
        let disk = self.pool().ublk_node(device).map(|node| disk(device, node));
        protocol::Device { disk, ..describe::device(device) }
    }

    /// Makes a disk of a device.
    pub fn attach(&self, device: &Arc<Device>, how: AttachUblk) -> Result<Disk, Failure> {
        let node = self.pool().attach_ublk(
            device,
            &Options { queues: how.queues, depth: how.depth, zero_copy: how.zero_copy },
        )?;
        if let Err(failure) = self.save() {
            // A disk that cannot be taken over would be a surprise when it matters.
            self.pool().detach_ublk(device, true)?;
            return Err(failure);
        }
        let survives = device.live().is_some_and(|table| survives(&table));
        if !survives {
            tracing::warn!(device = %device.name(), node = %node.path(),
                "a leaf or a region map of this disk is in the daemon's memory: it cannot be taken over");
        }
        link(&device.name(), &node);
        Ok(disk(device, node))
    }

    /// The device is no disk any more; by force also while it is in use.
    pub fn detach(&self, device: &Arc<Device>, force: bool) -> Result<(), Failure> {
        self.pool().detach_ublk(device, force)?;
        unlink(&device.name());
        self.save()
    }

    /// Makes the devices that are kept again, with their tables and maps, and takes over the disks
    /// that a daemon before this one has left. `abandon` lets go of all that were left behind
    /// instead: their requests fail.
    pub fn recover(&self, abandon: bool) -> anyhow::Result<()> {
        let keeps_all = self.folder.keeps_all();
        let mut left = match ublk::leftovers() {
            Ok(left) => left,
            Err(error) => {
                tracing::debug!(%error, "no disks to take over");
                if !keeps_all {
                    return Ok(());
                }
                Vec::new()
            }
        };
        if abandon {
            for leftover in left.drain(..) {
                ublk::remove_leftover(leftover.node.id)?;
                tracing::warn!(node = %leftover.node.path(), "abandoned");
            }
        }
        if left.is_empty() && !keeps_all {
            return self.folder.save(Vec::new()).context("cannot forget disks that are gone");
        }
        let state = self.folder.load().with_context(|| {
            format!("cannot read the state of the devices in '{}'", self.folder.path().display())
        })?;
        let is_left =
            |disk: Option<u32>| disk.is_some_and(|id| left.iter().any(|l| l.node.id == id));
        let known = |id: u32| state.devices.iter().any(|saved| saved.disk == Some(id));
        for leftover in left.iter().filter(|leftover| !known(leftover.node.id)) {
            tracing::warn!(node = %leftover.node.path(), pid = leftover.pid,
                "left behind by a blkswitch of which nothing is known here; serve --abandon-disks removes it");
        }
        if keeps_all || state.devices.iter().any(|saved| is_left(saved.disk)) {
            self.restore_all(&state, is_left)?;
        }
        self.save().map_err(|failure| anyhow::anyhow!(failure.reason))?;
        if let Some(how) = self.default_disk.filter(|_| keeps_all) {
            self.attach_all(how);
        }
        Ok(())
    }

    /// Makes disks of all devices that are none.
    fn attach_all(&self, how: AttachUblk) {
        for device in self.list() {
            let could_be = device.live().is_some() && !device.info().suspended;
            if could_be
                && self.pool().ublk_node(&device).is_none()
                && let Err(failure) = self.attach(&device, how)
            {
                tracing::warn!(device = %device.name(), reason = %failure.reason, "is no disk");
            }
        }
    }

    /// The disks that somebody uses, each a phrase that says who. May block.
    pub fn disks_in_use(&self) -> Vec<String> {
        let used = |device: Arc<Device>| {
            let (node, user) = (self.pool().ublk_node(&device)?, self.pool().ublk_user(&device)?);
            Some(format!("'{}' ({}: {user})", device.name(), node.path()))
        };
        self.list().into_iter().filter_map(used).collect()
    }

    /// Before the end: what is kept, and the disks, whose requests wait, are left to the next
    /// daemon.
    pub fn leave_disks(&self) {
        let disks =
            self.list().into_iter().filter_map(|device| self.pool().ublk_node(&device)).count();
        if disks > 0 {
            tracing::warn!(disks, "disks stay, and wait for the next serve; remove_all ends them");
        }
        self.folder.end();
    }
}

fn disk(device: &Device, node: Node) -> Disk {
    let link = Path::new(LINKS).join(device.name()).display().to_string();
    Disk {
        node: node.path(),
        link,
        queues: node.queues,
        depth: node.depth,
        zero_copy: node.zero_copy,
    }
}

/// Gives a disk the name of its device. Without it the disk can be used all the same.
pub(super) fn link(name: &str, node: &Node) {
    let path = Path::new(LINKS).join(name);
    unlink(name);
    let made = std::fs::create_dir_all(LINKS)
        .and_then(|()| std::os::unix::fs::symlink(node.path(), &path));
    if let Err(error) = made {
        tracing::warn!(path = %path.display(), %error, "a disk has no name");
    }
}

/// Takes the name away.
pub(super) fn unlink(name: &str) {
    let path = Path::new(LINKS).join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "the name of a disk stays behind");
        }
        _ => {}
    }
}
