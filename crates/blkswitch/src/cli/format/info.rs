//! The block that `info` prints, and `-v` with other verbs.

use std::fmt::Write as _;

use super::{READ_AHEAD_SECTORS, slot};
use crate::protocol::Device;

/// The block with its closing empty line. `Number of targets` counts the slot that `--inactive`
/// chooses.
pub(crate) fn block(device: &Device, inactive: bool) -> String {
    let mut text = String::new();
    let state = if device.suspended { "SUSPENDED" } else { "ACTIVE" };
    let read_only = if device.read_only { " (READ-ONLY)" } else { "" };
    let deferred = if device.deferred_remove { " (DEFERRED REMOVE)" } else { "" };
    let tables = match (&device.live, &device.inactive) {
        (None, None) => "None",
        (Some(_), None) => "LIVE",
        (None, Some(_)) => "INACTIVE",
        (Some(_), Some(_)) => "LIVE & INACTIVE",
    };
    let targets = slot(device, inactive).map_or(0, |table| table.segments.len());
    let _ = writeln!(text, "Name:              {}", device.name);
    let _ = writeln!(text, "State:             {state}{read_only}{deferred}");
    if device.live.is_some() {
        let _ = writeln!(text, "Read Ahead:        {READ_AHEAD_SECTORS}");
    }
    let _ = writeln!(text, "Tables present:    {tables}");
    let _ = writeln!(text, "Open count:        {}", device.open_count);
    let _ = writeln!(text, "Event number:      {}", device.event_nr);
    let _ = writeln!(text, "Major, minor:      {}, {}", device.major, device.minor);
    let _ = writeln!(text, "Number of targets: {targets}");
    if !device.uuid.is_empty() {
        let _ = writeln!(text, "UUID: {}", device.uuid);
    }
    if let Some(disk) = &device.disk {
        let zero_copy = if disk.zero_copy { ", zero copy" } else { "" };
        let _ = writeln!(
            text,
            "Disk:              {} ({}, {} queues{zero_copy})",
            disk.node, disk.link, disk.queues
        );
        for risk in &disk.risks {
            let _ = writeln!(text, "If memory is short: {risk}");
        }
    }
    text.push('\n');
    text
}
