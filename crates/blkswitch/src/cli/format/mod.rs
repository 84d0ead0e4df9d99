//! dmsetup's output formats, byte for byte: pure functions from the protocol's devices to text.
//!
//! `info` is the block of `info`, `report` the columns of `info -c`, `lines` the lines of `ls`,
//! `table`, `status` and `deps`, `tree` the tree of `ls --tree`. Tests compare them with the output
//! of a real dmsetup (tests/golden/tools.jsonl).

pub(super) mod info;
pub(super) mod lines;
pub(super) mod report;
pub(super) mod tree;

#[cfg(test)]
mod golden;

use crate::protocol::{Dependency, Device, Table};

/// `Read Ahead` of a device with a table: the kernel's default for a new disk, which a client that
/// attaches the export gets. The device itself does not read ahead.
pub(super) const READ_AHEAD_SECTORS: u32 = 256;

/// The slot that `--inactive` chooses.
pub(super) fn slot(device: &Device, inactive: bool) -> Option<&Table> {
    if inactive { device.inactive.as_ref() } else { device.live.as_ref() }
}

/// A device's name in place of the kernel's name.
pub(super) fn block_name(device: &Device) -> String {
    block_name_of(device.minor)
}

/// As [`block_name`], by minor number. The node does not exist; scripts look for this spelling of
/// the kernel.
pub(super) fn block_name_of(minor: u32) -> String {
    format!("dm-{minor}")
}

/// The numbers of a dependency, or the address of a file or of a leaf in memory, which has no
/// numbers.
pub(super) fn numbers_or_address(dep: &Dependency, separator: &str) -> String {
    if dep.major == 0 && !dep.is_device {
        dep.address.clone()
    } else {
        format!("{}{separator}{}", dep.major, dep.minor)
    }
}
