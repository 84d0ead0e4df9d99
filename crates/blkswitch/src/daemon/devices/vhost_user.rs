//! Sockets for vhost-user front ends: attaches and detaches devices, and makes the sockets of kept
//! devices again.
//!
//! A socket lies beside the control socket and has its device's name when it is made. It keeps its
//! path when the device is renamed, because front ends connect there again.
//!
//! Contract: as [`super`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use blkswitch_io::Device;
use blkswitch_io::export::vhost_user::{Options, Socket, VhostUserError};

use crate::daemon::devices::Devices;
use crate::daemon::failure::Failure;
use crate::daemon::process::listen::{self, SocketFile};
use crate::daemon::state::SavedVhostUser;
use crate::protocol::{AttachVhostUser, Errno, VhostUser};

impl From<VhostUserError> for Failure {
    fn from(error: VhostUserError) -> Failure {
        Failure::new(Errno::from_number(error.errno()), error.to_string())
    }
}

/// The sockets of devices.
#[derive(Default)]
pub struct Sockets {
    /// The folder for them; nothing in a test without one.
    folder: PathBuf,
    /// The files, by device number.
    files: Mutex<HashMap<u32, SocketFile>>,
}

impl Sockets {
    /// Sockets in a folder.
    pub fn new(folder: PathBuf) -> Sockets {
        Sockets { folder, files: Mutex::default() }
    }

    fn keep(&self, device: &Device, file: Option<SocketFile>) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        match file {
            Some(file) => files.insert(device.id(), file),
            None => files.remove(&device.id()),
        };
    }
}

impl Devices {
    /// The socket of a device, for the protocol.
    pub(crate) fn vhost_user(&self, device: &Device) -> Option<VhostUser> {
        self.pool().vhost_user_socket(device).map(|socket| {
            let Socket { path, queues, connected } = socket;
            VhostUser { socket: path, queues, connected }
        })
    }

    /// Offers `device` to vhost-user front ends.
    pub fn attach_vhost_user(
        &self,
        device: &Arc<Device>,
        how: AttachVhostUser,
    ) -> Result<VhostUser, Failure> {
        if self.pool().vhost_user_socket(device).is_some() {
            return Err(VhostUserError::Attached(device.name()).into());
        }
        let path = self.sockets.folder.join(format!("{}.vhost", device.name()));
        self.listen_vhost_user(device, &path, how)?;
        if let Err(failure) = self.save() {
            self.detach_vhost_user(device, true)?;
            return Err(failure);
        }
        self.vhost_user(device).ok_or_else(|| VhostUserError::NotAttached(device.name()).into())
    }

    fn listen_vhost_user(
        &self,
        device: &Arc<Device>,
        path: &Path,
        how: AttachVhostUser,
    ) -> Result<(), Failure> {
        let (listener, file) =
            listen::unix(path).map_err(|error| Failure::new(Errno::Eio, format!("{error:#}")))?;
        let options = Options { queues: how.queues };
        self.pool().attach_vhost_user(device, listener, &options)?;
        self.sockets.keep(device, Some(file));
        Ok(())
    }

    /// Ends the socket of a device; with `force` also while a front end is connected.
    pub fn detach_vhost_user(&self, device: &Device, force: bool) -> Result<(), Failure> {
        self.pool().detach_vhost_user(device, force)?;
        self.sockets.keep(device, None);
        self.save().map_err(Failure::but_done)
    }

    /// The description of a device's socket for the next daemon.
    pub(crate) fn saved_vhost_user(&self, device: &Device) -> Option<SavedVhostUser> {
        let socket = self.pool().vhost_user_socket(device)?;
        Some(SavedVhostUser { socket: socket.path.into(), queues: socket.queues })
    }

    /// Makes the socket of a kept device again, where front ends expect it.
    pub(crate) fn restore_vhost_user(&self, device: &Arc<Device>, saved: &SavedVhostUser) {
        let how = AttachVhostUser { queues: Some(saved.queues) };
        if let Err(failure) = self.listen_vhost_user(device, &saved.socket, how) {
            tracing::error!(device = %device.name(), reason = %failure.reason,
                "is not offered to vhost-user front ends again");
        }
    }
}
