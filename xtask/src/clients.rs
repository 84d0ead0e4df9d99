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
/// The programs of the tests, below `/usr`.
const PROGRAMS: &[&str] = &[
    "bin/qemu-img",
    "bin/qemu-io",
    "bin/qemu-nbd",
    "bin/qemu-storage-daemon",
    "bin/nbdkit",
    "bin/nbdcopy",
    "bin/nbdinfo",
    "bin/nbdsh",
    "bin/fio",
    "sbin/nbd-client",
];

/// Returns the folder of the scripts. Downloads and unpacks the packages if they are missing.
pub(crate) fn prepare() -> Result<PathBuf> {
    let folder = cache_folder()?.join("trixie");
    made_once(&folder, |new| {
        eprintln!("xtask: unpacking Debian 13's client programs to {}", folder.display());
        unpack(new)
    })?;
    let programs = folder.join("programs");
    fs::create_dir_all(&programs)?;
    for program in PROGRAMS {
        let name = program.rsplit('/').next().unwrap_or(program);
        // An older version may have unpacked the packages and not have known this program.
        write_script(&programs.join(name), &script(program, &folder.join("root")))?;
    }
    Ok(programs)
}

/// Writes a script, unless it is there. Other runs may execute it meanwhile.
fn write_script(path: &Path, script: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == script) {
        return Ok(());
    }
    let new = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&new, script).with_context(|| format!("write {}", new.display()))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(new, path)?)
}

/// Fills the folder `new`.
fn unpack(new: &Path) -> Result<()> {
    let root = new.join("root");
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
    Ok(())
}

/// The script that executes `program` of the folder `root`.
fn script(program: &str, root: &Path) -> String {
    let root = root.display();
    format!(
        r#"#!/bin/sh
# {program} of Debian 13. A user who is not root becomes root of a namespace: only root may mount.
[ "$(id -u)" = 0 ] || as_root=--map-root-user
exec unshare --mount $as_root -- /bin/sh -euc '
    for folder in /dev /proc /sys /tmp "$PWD" ${{REPOSITORY-}}; do
        mkdir -p "{root}$folder"
        mount --rbind "$folder" "{root}$folder"
    done
    exec chroot "{root}" /usr/bin/env -C "$PWD" "/usr/$0" "$@"' {program} "$@"
"#
    )
}
