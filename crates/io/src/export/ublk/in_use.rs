//! Finds the users of a disk, before the disk or its server goes away.
//!
//! Contract: may block, because it asks the kernel and looks at other processes, but never waits
//! for the disk's own I/O.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Node, UblkError};

/// Opens the disk exclusively.
pub(super) fn claim(node: &Node) -> Result<File, UblkError> {
    let name = node.path();
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&name);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => UblkError::InUse { node: name },
        _ => UblkError::System { what: "open", name, source },
    })
}

/// Describes a user of the disk; `None` if there is none.
pub(super) fn user(node: &Node) -> Option<String> {
    match claim(node) {
        Err(UblkError::InUse { .. }) => Some("it is mounted or another device stands on it".into()),
        // A process that only has it open, such as a virtual machine, does not conflict with that.
        _ => process_with(&node.path(), std::process::id()),
    }
}

/// Describes a process, other than `own`, that has the disk or a partition of it open. `own` may
/// still have a descriptor itself.
fn process_with(path: &str, own: u32) -> Option<String> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter(|process| has_open(&process.path(), path)).find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok().filter(|pid| *pid != own)?;
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("process {pid} ({}) has it open", name.trim_end()))
    })
}

fn has_open(process: &Path, path: &str) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    // Compare names, because following the links would access the file systems of the files.
    files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
        let rest = target.to_str().and_then(|target| target.strip_prefix(path));
        rest.is_some_and(|rest| rest.is_empty() || is_partition(rest))
    })
}

/// Whether `rest` turns the name of the disk into that of a partition.
fn is_partition(rest: &str) -> bool {
    let digits = rest.strip_prefix('p').unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_has_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ublkb1");
        let name = path.to_str().unwrap();
        let own = std::process::id();
        assert_eq!(process_with(name, 0), None);
        let file = File::create(&path).unwrap();
        let user = process_with(name, 0).unwrap();
        assert!(user.starts_with(&format!("process {own} (")), "{user}");
        assert_eq!(process_with(name, own), None);
        assert_eq!(process_with(&name[..name.len() - 1], 0), None, "ublkb1 is not ublkb");
        drop(file);
        let part = File::create(folder.path().join("ublkb1p12")).unwrap();
        assert!(process_with(name, 0).is_some(), "a partition is a part of the disk");
        drop(part);
        assert_eq!(process_with(name, 0), None);
    }
}
