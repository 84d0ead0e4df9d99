//! dmsetup's output formats, byte for byte: pure functions from the protocol's devices to text.
//!
//! `info` is the block of `info`, `report` the columns of `info -c`, `lines` the lines of `ls`,
//! `table`, `status` and `deps`, `tree` the tree of `ls --tree`. Checked against what a real
//! dmsetup printed (tests/golden/tools.jsonl).

pub(super) mod info;
pub(super) mod lines;
pub(super) mod report;
pub(super) mod tree;

#[cfg(test)]
mod golden;

use crate::protocol::{Dependency, Device, Table};

/// What `Read Ahead` says of a device with a table: the kernel's default for a new disk, and thus
/// what a client that attaches the export gets. The device itself reads nothing ahead.
pub(super) const READ_AHEAD_SECTORS: u32 = 256;

/// The slot that `--inactive` chooses.
pub(super) fn slot(device: &Device, inactive: bool) -> Option<&Table> {
    if inactive { device.inactive.as_ref() } else { device.live.as_ref() }
}

/// What stands for the kernel's name of one of our devices.
pub(super) fn block_name(device: &Device) -> String {
    block_name_of(device.minor)
}

/// The same by its minor number. No such node exists; the spelling is the kernel's, which scripts
/// look for.
pub(super) fn block_name_of(minor: u32) -> String {
    format!("dm-{minor}")
}

/// What stands for the numbers of a dependency. A file or a leaf in memory has none: its address
/// says more.
pub(super) fn numbers_or_address(dep: &Dependency, separator: &str) -> String {
    if dep.major == 0 && !dep.is_device {
        dep.address.clone()
    } else {
        format!("{}{separator}{}", dep.major, dep.minor)
    }
}
