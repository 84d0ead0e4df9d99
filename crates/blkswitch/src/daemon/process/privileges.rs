//! What the daemon asks of the kernel for its whole process, so that its disks go on when memory is
//! short, and what it was refused.
//!
//! Contract: [`claim`] is called once, before the process has a second thread. It claims something
//! only where disks can be made: with a ublk driver, or if they are asked for.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blkswitch_io::process;

use crate::daemon::process::mounts;

/// There is a ublk driver where this is.
pub(crate) const UBLK_CONTROL: &str = "/dev/ublk-control";

/// What was refused, and what the process has.
#[derive(Clone, Debug)]
pub struct Privileges {
    /// What its disks have to do without, each a phrase.
    lacks: Vec<String>,
    /// Its mount namespace is its own.
    pub(crate) has_own_mounts: bool,
}

impl Default for Privileges {
    /// Nothing was claimed.
    fn default() -> Self {
        let why = "the daemon was started before there was a ublk driver: start it again";
        Privileges { lacks: vec![why.to_owned()], has_own_mounts: false }
    }
}

impl Privileges {
    /// What may hold up a disk when memory is short, each a phrase; empty if nothing does.
    pub fn lacks(&self) -> &[String] {
        &self.lacks
    }
}

/// Claims what a server of disks needs, if there can be disks; `wanted` if they were asked for.
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

/// Leaves the mount namespace, where a mount of an own disk could be the daemon's to end: the last
/// process of a namespace unmounts what is in it, and the daemon would wait for itself.
///
/// It stays where the namespace is that of the machine's first process, which outlives it, and
/// mounts of which would not come along.
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
        // Who may not do that may not make disks either.
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
