//! Debian 13's client programs, for tests that run with Debian 12's and with these.
//!
//! The packages are unpacked to `~/.cache/blkswitch/trixie` and never installed. Each program is
//! reached by a script of its name, which makes that folder `/` in a mount namespace of its own
//! and there becomes the program: the process id is the script's, as tests that send signals
//! expect. Removing the folder is how one gets newer packages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::{self, Apt, cache_folder, made_once};

/// Packages whose programs the tests use, and the shells and tools that those programs need.
const PACKAGES: &[&str] = &[
    "bash",
    "coreutils",
    "dash",
    "file",
    "qemu-utils",
    "qemu-system-common",
    "nbdkit",
    "libnbd-bin",
    "python3-libnbd",
    "nbd-client",
    "fio",
];
/// Those programs, all in `/usr/bin`.
const PROGRAMS: &[&str] = &[
    "qemu-img",
    "qemu-io",
    "qemu-nbd",
    "qemu-storage-daemon",
    "nbdkit",
    "nbdcopy",
    "nbdinfo",
    "nbdsh",
    "fio",
];

/// The folder of the scripts. Downloads and unpacks the packages if they are not here.
pub(crate) fn prepare() -> Result<PathBuf> {
    let folder = cache_folder()?.join("trixie");
    made_once(&folder, |new| {
        eprintln!("xtask: unpacking Debian 13's client programs to {}", folder.display());
        unpack(new, &folder)
    })?;
    Ok(folder.join("programs"))
}

/// Makes the folder `new`, which will be called `folder`.
fn unpack(new: &Path, folder: &Path) -> Result<()> {
    let (root, programs) = (new.join("root"), new.join("programs"));
    let apt = Apt::new(&["trixie"], false, &new.join("apt"))?;
    for package in apt.download_all(PACKAGES)? {
        apt::unpack(&package, &root)?;
    }
    fs::remove_dir_all(&apt.folder)?;
    // Debian 13 has nothing outside `/usr`; its packages rely on these links.
    for name in ["bin", "sbin", "lib", "lib64"] {
        if !root.join(name).exists() {
            std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
        }
    }
    fs::create_dir(&programs)?;
    for name in PROGRAMS {
        let path = programs.join(name);
        fs::write(&path, script(name, &folder.join("root")))
            .with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The script that becomes the program `name` of the folder `root`.
fn script(name: &str, root: &Path) -> String {
    let root = root.display();
    format!(
        r#"#!/bin/sh
# {name} of Debian 13. A user who is not root becomes root of a namespace: only root may mount.
[ "$(id -u)" = 0 ] || as_root=--map-root-user
exec unshare --mount $as_root -- /bin/sh -euc '
    for folder in /dev /proc /sys /tmp "$PWD" ${{REPOSITORY-}}; do
        mkdir -p "{root}$folder"
        mount --rbind "$folder" "{root}$folder"
    done
    exec chroot "{root}" /usr/bin/env -C "$PWD" "/usr/bin/$0" "$@"' {name} "$@"
"#
    )
}
