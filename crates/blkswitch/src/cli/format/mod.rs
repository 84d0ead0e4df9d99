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

use crate::protocol::{Dependency, Device, LoadedTable};

/// `Read Ahead` of a device with a table. It is the kernel's default for a new disk, which applies
/// to a client that attaches the export. The device itself does not read ahead.
pub(super) const READ_AHEAD_SECTORS: u32 = 256;

/// The table that `--inactive` chooses.
pub(super) fn slot(device: &Device, inactive: bool) -> Option<&LoadedTable> {
    if inactive { device.inactive.as_ref() } else { device.live.as_ref() }
}

/// The name of a device where dmsetup shows the kernel's name.
pub(super) fn block_name(device: &Device) -> String {
    block_name_of(device.minor)
}

/// The name of a device where dmsetup shows the kernel's name, by its minor number. No such node
/// exists; scripts look for this spelling.
pub(super) fn block_name_of(minor: u32) -> String {
    format!("dm-{minor}")
}

/// The numbers of a dependency. A file or a leaf in memory has none; then its address.
pub(super) fn numbers_or_address(dep: &Dependency, separator: &str) -> String {
    if dep.major == 0 && !dep.is_device {
        dep.address.clone()
    } else {
        format!("{}{separator}{}", dep.major, dep.minor)
    }
}
