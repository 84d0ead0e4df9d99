//! Debian 13's client programs, for tests that run with them and with Debian 12's.
//!
//! The packages are unpacked to `~/.cache/blkswitch/trixie`, not installed. Each program has a
//! script of its name. The script makes that folder `/` in a mount namespace of its own and
//! executes the program there. So the process keeps the script's id, which tests that send signals
//! need. Remove the folder to get newer packages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::{self, Apt, cache_folder, made_once};

/// Packages with the programs of the tests, and with the shells and tools that those need.
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
/// The programs of the tests, all in `/usr/bin`.
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

/// Returns the folder of the scripts. Downloads and unpacks the packages if they are missing.
pub(crate) fn prepare() -> Result<PathBuf> {
    let folder = cache_folder()?.join("trixie");
    made_once(&folder, |new| {
        eprintln!("xtask: unpacking Debian 13's client programs to {}", folder.display());
        unpack(new, &folder)
    })?;
    Ok(folder.join("programs"))
}

/// Fills the folder `new`, which will be renamed to `folder`.
fn unpack(new: &Path, folder: &Path) -> Result<()> {
    let (root, programs) = (new.join("root"), new.join("programs"));
    let apt = Apt::new(&["trixie"], false, &new.join("apt"))?;
    for package in apt.download_all(PACKAGES)? {
        apt::unpack(&package, &root)?;
    }
    fs::remove_dir_all(&apt.folder)?;
    // Debian 13 has all files in `/usr`; its packages need these links.
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

/// The script that executes the program `name` of the folder `root`.
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
