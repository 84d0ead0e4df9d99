//! Keeps mounts of the daemon's own disks out of its mount namespace.
//!
//! The process that ends the last mount of a file system unmounts it, and the last process of a
//! namespace ends the mounts there. The daemon must not be that process for a file system on one of
//! its own disks: while exiting it would wait for requests that nobody serves any more. So the
//! daemon has a namespace of its own ([`super::privileges`]), and it detaches such mounts when they
//! arrive from the old one.
//!
//! Contract: a thread of its own waits for mounts. A disk may hold up that thread, but no other.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::bail;
use blkswitch_io::export::ublk::{self, Server};
use blkswitch_io::process;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `MAJOR:MINOR` of the file system.
    numbers: String,
    point: PathBuf,
    /// The source that was mounted. For a file system without a block device number of its own,
    /// this names the device.
    source: PathBuf,
    is_shared: bool,
}

/// The mounts in this process's namespace.
pub(crate) fn read() -> Vec<Mount> {
    let text = fs::read(MOUNTINFO).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let numbers = String::from_utf8(words.nth(2)?.to_vec()).ok()?;
    let point = unescape(words.nth(1)?);
    let mut is_shared = false;
    // The options, then optional fields about propagation, up to a dash.
    for word in words.by_ref().skip(1).take_while(|word| *word != b"-") {
        is_shared |= word.starts_with(b"shared:");
    }
    Some(Mount { numbers, point, source: unescape(words.nth(1)?), is_shared })
}

/// Decodes octal escapes: a space is written as `\040`.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, others)) = rest.split_first() {
        let octal = others.get(..3).filter(|_| *first == b'\\');
        let byte = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { others.get(3..).unwrap_or_default() } else { others };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Returns whether later mounts in this namespace propagate to its copies.
pub(crate) fn root_is_shared(mounts: &[Mount]) -> bool {
    mounts
        .iter()
        .rev()
        .find(|mount| mount.point == Path::new("/"))
        .is_some_and(|root| root.is_shared)
}

/// Detaches mounts of the daemon's disks as they appear, until `own`, which names the disks,
/// returns `None`.
pub(crate) fn watch(own: impl Fn() -> Option<HashSet<String>> + Send + 'static) {
    let watched = File::open(MOUNTINFO).and_then(|mountinfo| {
        std::thread::Builder::new().name("mounts".into()).spawn(move || {
            while let Some(own) = own() {
                detach_own(&own);
                if let Err(error) = process::wait_for_mounts(&mountinfo) {
                    tracing::warn!(%error, "mounts of own disks are not looked for any more");
                    return;
                }
            }
        })
    });
    if let Err(error) = watched {
        tracing::warn!(%error, "mounts of own disks stay in the daemon's namespace");
    }
}

/// Detaches the mounts of the disks with these names.
pub(crate) fn detach_own(own: &HashSet<String>) {
    if own.is_empty() {
        return;
    }
    for mount in read().iter().rev().filter(|mount| stands_on(mount, own)) {
        let point = mount.point.display();
        match process::detach_mount(&mount.point) {
            Ok(()) => tracing::info!(%point, "a mount of an own disk is kept out of the daemon"),
            Err(error) => tracing::warn!(%point, %error, "a mount of an own disk stays here"),
        }
    }
}

/// Finds the mount that a path is on, by the path's text alone. It does not touch the file system,
/// which may wait for this daemon.
fn mount_of<'a>(path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    // Of several mounts on one point, the last one hides the others.
    let on = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    on.max_by_key(|mount| mount.point.iter().count())
}

/// Returns whether a path is on one of these disks, is one, or is a block device that stands on
/// one.
pub(crate) fn is_below(path: &Path, disks: &HashSet<String>) -> bool {
    if disks.is_empty() {
        return false;
    }
    let mounts = read();
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if mount_of(&path, &mounts).is_some_and(|mount| stands_on(mount, disks)) {
        return true;
    }
    // By its text the path is on none of the disks, so links in it can be followed without waiting.
    let Ok(real) = fs::canonicalize(&path) else { return false };
    let is_disk = fs::metadata(&real).is_ok_and(|file| {
        let numbers = format!("{}:{}", libc_major(file.rdev()), libc_minor(file.rdev()));
        file.file_type().is_block_device()
            && fs::canonicalize(format!("/sys/dev/block/{numbers}"))
                .is_ok_and(|folder| is_on(&folder, disks))
    });
    is_disk || mount_of(&real, &mounts).is_some_and(|mount| stands_on(mount, disks))
}

/// Refuses to start if the state folder or the log is on a disk that waits for this daemon: the
/// first access to it would never end.
pub(crate) fn check_start(state: Option<&Path>) -> anyhow::Result<()> {
    let left = ublk::found().unwrap_or_default();
    let left = left.iter().filter(|found| found.server != Server::Alive);
    let disks: HashSet<String> =
        left.filter_map(|found| Some(found.path().strip_prefix("/dev/")?.to_owned())).collect();
    let log = fs::read_link("/proc/self/fd/2").ok().filter(|log| log.is_absolute());
    for (what, path) in [("the state folder", state), ("the log", log.as_deref())] {
        if let Some(path) = path.filter(|path| is_below(path, &disks)) {
            bail!(
                "{what} '{}' is on a disk that no daemon serves: to use it would wait for this \
                 daemon. Put it elsewhere",
                path.display()
            );
        }
    }
    Ok(())
}

fn stands_on(mount: &Mount, own: &HashSet<String>) -> bool {
    let numbers = if mount.numbers.starts_with("0:") {
        let Ok(source) = fs::metadata(&mount.source) else { return false };
        if !source.file_type().is_block_device() {
            return false;
        }
        let rdev = source.rdev();
        format!("{}:{}", libc_major(rdev), libc_minor(rdev))
    } else {
        mount.numbers.clone()
    };
    let Ok(folder) = fs::canonicalize(format!("/sys/dev/block/{numbers}")) else { return false };
    is_on(&folder, own)
}

/// Returns whether a block device, given by its folder in sysfs, is one of `own`, a partition of
/// one, or stands on one.
fn is_on(folder: &Path, own: &HashSet<String>) -> bool {
    let is_own = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| own.contains(name));
    // The folder of a partition is inside that of its disk.
    if folder.iter().any(is_own) {
        return true;
    }
    let below = fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
    below.filter_map(|entry| fs::canonicalize(entry.path()).ok()).any(|below| is_on(&below, own))
}

/// The major number of a `dev_t` as Linux packs it.
fn libc_major(rdev: u64) -> u64 {
    ((rdev >> 8) & 0xfff) | ((rdev >> 32) & !0xfff)
}

fn libc_minor(rdev: u64) -> u64 {
    (rdev & 0xff) | ((rdev >> 12) & !0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_blanks_and_without_words_of_propagation() {
        let line =
            br"36 35 259:3 / /mnt/a\040b rw,noatime shared:7 master:1 - ext4 /dev/ublkb0p1 rw";
        let mount = parse(line).unwrap();
        assert_eq!((mount.numbers.as_str(), mount.is_shared), ("259:3", true));
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert_eq!(mount.source, Path::new("/dev/ublkb0p1"));
        let plain = parse(b"1 1 0:2 / / rw - rootfs none rw").unwrap();
        assert_eq!((plain.is_shared, plain.source.as_path()), (false, Path::new("none")));
        assert_eq!(parse(b""), None);
        assert!(!root_is_shared(&[plain]) && !root_is_shared(&[mount]));
    }

    #[test]
    fn a_path_is_on_the_innermost_mount() {
        let mount = |numbers: &str, point: &str| Mount {
            numbers: numbers.into(),
            point: point.into(),
            source: "none".into(),
            is_shared: false,
        };
        let mounts = [mount("8:1", "/"), mount("259:3", "/mnt"), mount("259:4", "/mnt")];
        let of = |path: &str| mount_of(Path::new(path), &mounts).unwrap().numbers.clone();
        assert_eq!(
            (of("/mnt/a/b"), of("/mnt"), of("/mntx")),
            ("259:4".into(), "259:4".into(), "8:1".into())
        );
        assert!(!is_below(Path::new("/"), &HashSet::from(["ublkb4711".to_owned()])));
    }

    #[test]
    fn what_stands_on_an_own_disk_is_found_below_it() {
        let sysfs = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = sysfs.path().join(name);
            fs::create_dir_all(path.join("slaves")).unwrap();
            path
        };
        let (own, partition, other) =
            (folder("ublkb1"), folder("ublkb1/ublkb1p2"), folder("ublkb10"));
        let (lower, upper) = (folder("dm-0"), folder("dm-1"));
        std::os::unix::fs::symlink(&partition, lower.join("slaves/ublkb1p2")).unwrap();
        std::os::unix::fs::symlink(&lower, upper.join("slaves/dm-0")).unwrap();
        let names = HashSet::from(["ublkb1".to_owned()]);
        for on in [own, partition, lower, upper] {
            assert!(is_on(&on, &names), "{}", on.display());
        }
        assert!(!is_on(&other, &names));
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(read().iter().any(|mount| mount.point == Path::new("/")));
        let rdev = fs::metadata("/dev/null").unwrap().rdev();
        assert_eq!((libc_major(rdev), libc_minor(rdev)), (1, 3));
    }
}
