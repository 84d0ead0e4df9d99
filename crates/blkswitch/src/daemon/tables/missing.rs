//! Explains a word of a table that names nothing: sentences that quote the word and say what to
//! write or do instead.
//!
//! Contract: called only after a failure, so it may read the file system. It changes neither the
//! errno nor the kernel's lines.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blkswitch_io::pool::Registry;
use blkswitch_io::{Address, LeafError};

use crate::daemon::failure::Failure;
use crate::daemon::tables::words::device_word;
use crate::nearest::did_you_mean;
use crate::raw;

/// The sentence for a device that does not exist.
pub(crate) fn device(name: &str, registry: &Registry) -> String {
    let devices: Vec<String> = registry.list().iter().map(|device| device.name()).collect();
    let near = did_you_mean(name, devices.iter().map(String::as_str));
    let others = match devices.len() {
        0 => "there are none yet".to_owned(),
        _ => "blkswitch ls lists those there are".to_owned(),
    };
    format!("there is no device '{name}': {near}{others}")
}

/// The sentence for a word that is no address. The most likely mistake is the bare name of a
/// device.
pub(crate) fn no_address(word: &str, error: &LeafError, registry: &Registry) -> String {
    let name = device_word(word);
    match registry.find(word) {
        Some(_) => format!("'{word}' is a device's name: a table names it by its path, {name}"),
        None => error.to_string(),
    }
}

/// The failure for a leaf that could not be opened.
pub(crate) fn leaf(address: &Address, error: LeafError, registry: &Registry) -> Failure {
    let reason = match (&error, address) {
        (LeafError::System { source, .. }, Address::Path(path)) => why(path, source, registry),
        _ => None,
    };
    let failure = Failure::from(error);
    match reason {
        Some(reason) => Failure { reason, ..failure },
        None => failure,
    }
}

/// The sentence for a file that cannot be opened or created; `None` if the system's error says
/// enough.
fn why(path: &Path, error: &std::io::Error, registry: &Registry) -> Option<String> {
    let shown = raw::encode_os(path.as_os_str());
    match error.kind() {
        ErrorKind::NotFound => {}
        ErrorKind::PermissionDenied => {
            let user = std::fs::metadata("/proc/self").ok()?.uid();
            return Some(format!("cannot open '{shown}': {error}; the daemon is the user {user}"));
        }
        _ => return None,
    }
    if let Some(name) = path.to_str().and_then(crate::daemon::tables::lookup::device_name) {
        return Some(device(name, registry));
    }
    Some(match folder(path) {
        Some(reason) => reason,
        None if path.starts_with("/dev") => {
            format!("cannot open '{shown}': there is no such disk; lsblk lists those there are")
        }
        None => format!(
            "cannot open '{shown}': there is no such file; make it, or say --make-files to have \
             missing files made"
        ),
    })
}

/// The sentence for a path whose folder is missing; `None` if the folder exists.
pub(crate) fn folder(path: &Path) -> Option<String> {
    let missing = path.ancestors().skip(1).take_while(|folder| !folder.exists()).last()?;
    Some(format!(
        "cannot open '{}': there is no folder '{}'; make it first (mkdir -p)",
        raw::encode_os(path.as_os_str()),
        raw::encode_os(missing.as_os_str())
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_folder_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/file");
        let text = super::folder(&path).unwrap();
        assert!(
            text.contains(&format!("no folder '{}'", folder.path().join("a").display())),
            "{text}"
        );
        assert_eq!(super::folder(&folder.path().join("file")), None);
    }
}
