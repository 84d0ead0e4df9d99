//! The privileges that the daemon requests from the kernel, so that its disks go on when memory is
//! short, and those that it was refused.
//!
//! Contract: [`claim`] is called once, before the process has a second thread. It requests
//! something only if disks are possible: with a ublk driver, or if disks are asked for.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blkswitch_io::process;

use crate::daemon::process::mounts;

/// Control device of the ublk driver; it exists if the driver is loaded.
pub(crate) const UBLK_CONTROL: &str = "/dev/ublk-control";

/// The result of [`claim`].
#[derive(Clone, Debug)]
pub struct Privileges {
    /// Properties that the disks have to do without; each entry is a phrase.
    lacks: Vec<String>,
    /// Whether the process has a mount namespace of its own.
    pub(crate) has_own_mounts: bool,
}

impl Default for Privileges {
    /// The privileges of a process that has claimed nothing.
    fn default() -> Self {
        let why = "the daemon was started before there was a ublk driver: start it again";
        Privileges { lacks: vec![why.to_owned()], has_own_mounts: false }
    }
}

impl Privileges {
    /// Reasons why a disk may be held up when memory is short; each entry is a phrase. Empty if
    /// nothing does.
    pub fn lacks(&self) -> &[String] {
        &self.lacks
    }
}

/// Requests the privileges that a server of disks needs, if disks are possible. `wanted`: disks are
/// asked for.
pub fn claim(wanted: bool) -> Privileges {
    if !wanted && !Path::new(UBLK_CONTROL).exists() {
        return Privileges::default();
    }
    let mut lacks = Vec::new();
    let mut had = |what: &str, needs: &str, result: io::Result<()>| {
        lacks.extend(result.err().map(|error| format!("{what} ({needs}: {error})")));
    };
    had("is held up by write-back", "no CAP_SYS_RESOURCE", process::io_flusher());
    let locked = process::lock_memory();
    had("its memory is not locked", "no CAP_IPC_LOCK and LimitMEMLOCK below infinity", locked);
    had("may be killed for memory", "no CAP_SYS_RESOURCE", process::spare_from_oom());
    Privileges { lacks, has_own_mounts: separate_mounts() }
}

/// Moves the process into a mount namespace of its own, and returns whether that worked. In a
/// shared namespace the daemon could be the last process: it would unmount a file system on one of
/// its own disks, and wait for itself.
///
/// The process stays in its namespace if that is the namespace of the machine's first process and
/// its mounts do not propagate. The first process outlives the daemon, and new mounts would not be
/// seen in a copy.
fn separate_mounts() -> bool {
    let is_shared = mounts::root_is_shared(&mounts::read());
    if !is_shared && is_that_of_the_first_process() {
        return false;
    }
    match process::separate_mounts() {
        Ok(()) if !is_shared => {
            tracing::warn!(
                "file systems that are mounted from now on are not seen here, for this mount \
                 namespace is private: 'mount --make-rshared /' before serve changes that"
            );
            true
        }
        Ok(()) => true,
        // A process without this privilege cannot create disks either.
        Err(error) => {
            tracing::debug!(%error, "the mount namespace is shared with others");
            false
        }
    }
}

fn is_that_of_the_first_process() -> bool {
    let namespace = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/mnt")).map(|meta| meta.ino());
    match (namespace("1"), namespace("self")) {
        (Ok(first), Ok(own)) => first == own,
        _ => false,
    }
}
