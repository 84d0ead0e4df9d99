//! Disks that an earlier daemon has left. This module decides which of them the new daemon takes
//! over, and when it must not start because it would forget one.
//!
//! Only the description of the devices says where the requests of a disk go. So a daemon starts
//! only if every disk in its description can be taken over or is gone. Otherwise it ends with the
//! reason, and the description stays as it is.
//!
//! Contract: may block for as long as a killed daemon needs to exit.

use anyhow::{Context, bail};
use blkswitch_io::export::ublk::{self, Found, Server, UblkError};

use crate::daemon::state::{Folder, SavedDevice};

/// Finds the disks that blkswitch daemons have made. With `abandon` it removes those that no
/// process serves, and returns none.
pub(crate) fn found(folder: &Folder, abandon: bool) -> anyhow::Result<Vec<Found>> {
    let found = match ublk::found() {
        Ok(found) => found,
        Err(error) => {
            let state = folder.load().context("cannot read which disks were left")?;
            if let Some(saved) = state.devices.iter().find(|saved| saved.disk.is_some()) {
                bail!(
                    "cannot find out what became of the disk of device '{}': {error}. Nothing was \
                     changed",
                    saved.name
                );
            }
            tracing::debug!(%error, "no disks to take over");
            return Ok(Vec::new());
        }
    };
    if !abandon {
        return Ok(found);
    }
    for found in found.iter().filter(|found| found.server != Server::Alive) {
        ublk::remove_leftover(found.id)?;
        tracing::warn!(node = %found.path(), "abandoned");
    }
    Ok(Vec::new())
}

/// Returns the numbers of the disks to take over for `devices`. Waits for servers that are exiting.
///
/// Errors: another process serves one of the disks.
pub(crate) fn of_devices(found: &[Found], devices: &[SavedDevice]) -> anyhow::Result<Vec<u32>> {
    let mut left = Vec::new();
    for found in found {
        let id = found.id;
        let Some(saved) = devices.iter().find(|saved| saved.disk == Some(id)) else {
            warn_of_stranger(found);
            continue;
        };
        match ublk::wait_until_left(id) {
            Ok(Some(Found { server: Server::NoDisk, .. })) => {
                ublk::remove_leftover(id)?;
                tracing::info!(device = %saved.name, node = %found.path(), "was stopped already");
            }
            Ok(Some(_)) => left.push(id),
            Ok(None) => {}
            Err(error @ UblkError::NotLeftover { .. }) => bail!(
                "cannot go on with device '{}': {error}. Nothing was changed; start again when \
                 that process has ended. If it is another daemon, which has given the number to a \
                 disk of its own, serve --abandon-disks forgets that '{}' was a disk",
                saved.name,
                saved.name
            ),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(left)
}

fn warn_of_stranger(found: &Found) {
    if found.server != Server::Alive {
        tracing::warn!(node = %found.path(), pid = found.pid,
            "left behind by a blkswitch of which nothing is known here; serve --abandon-disks removes it");
    }
}
