//! Who uses a disk: what must be known before it, or its server, goes away.
//!
//! Contract: may block (the kernel is asked, other processes are looked at), never for the disk's
//! own I/O.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Node, UblkError};

/// Opens the disk for nobody else.
pub(super) fn claim(node: &Node) -> Result<File, UblkError> {
    let name = node.path();
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&name);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => UblkError::InUse { node: name },
        _ => UblkError::System { what: "open", name, source },
    })
}

/// Who uses the disk, in words; nothing if nobody does.
pub(super) fn user(node: &Node) -> Option<String> {
    match claim(node) {
        Err(UblkError::InUse { .. }) => Some("it is mounted or another device stands on it".into()),
        // A process that has it open claims nothing: a virtual machine, say.
        _ => process_with(&node.path(), std::process::id()),
    }
}

/// A process that has a disk or a partition of it open, other than `own`, which a descriptor may
/// have been left to.
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
    // By name: to follow the links would ask whatever file systems the files are on.
    files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
        let rest = target.to_str().and_then(|target| target.strip_prefix(path));
        rest.is_some_and(|rest| rest.is_empty() || is_partition(rest))
    })
}

/// What follows a disk's name in a partition's.
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
