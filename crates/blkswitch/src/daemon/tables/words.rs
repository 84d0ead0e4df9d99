//! The words by which tables name paths and devices.
//!
//! Contract: reads only; any thread.

use std::os::unix::ffi::OsStrExt;

use blkswitch_io::{Address, Below, Segment, Table};

use crate::raw;

/// The word of a path, as a table text can have it.
pub(crate) fn address(table: &Table, segment: &Segment, path: usize) -> String {
    match segment.target.paths().get(path).map(|to| to.below) {
        Some(Below::Leaf(_)) => segment.words.get(path).map(|word| word.to_string()),
        Some(Below::Device(id)) => {
            let below = table.devices().find(|device| device.id() == id);
            below.map(|device| device_word(&device.name()))
        }
        None => None,
    }
    .unwrap_or_default()
}

/// The word by which a table names the leaf at an address. Bytes of a path that are not UTF-8 are
/// encoded ([`raw`]).
pub(super) fn word_of(address: &Address) -> String {
    match address {
        Address::Path(path) => raw::encode(path.as_os_str().as_bytes()).into_owned(),
        address => address.to_string(),
    }
}

/// `head`, followed by each path of a segment with its offset.
pub(super) fn paths_text(head: String, table: &Table, segment: &Segment) -> String {
    let mut text = head;
    for (path, to) in segment.target.paths().iter().enumerate() {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&format!("{} {}", address(table, segment, path), to.offset));
    }
    text
}

/// The word by which a table names a device of this daemon. A space in the name is written as
/// `\x20`, because white space ends a word.
pub(crate) fn device_word(name: &str) -> String {
    format!("/dev/blkswitch/{}", name.replace(' ', "\\x20"))
}

/// A short name for an address: the last component of a path; any other address as it is.
pub(crate) fn short_name(address: &str) -> &str {
    match address.rsplit_once('/') {
        Some((_, name)) if address.starts_with('/') => name,
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_those_of_block_devices() {
        assert_eq!(short_name("/dev/vg1/switch0"), "switch0");
        assert_eq!(short_name("sim:1M,seed=1"), "sim:1M,seed=1");
        assert_eq!(short_name("low0"), "low0");
    }
}
