//! The block of text that `info` prints, and other verbs with `-v`.

use std::fmt::Write as _;

use super::{READ_AHEAD_SECTORS, slot};
use crate::protocol::{Client, Device, MapSource, TroubledPath};

/// The block, with the empty line at its end. `Number of targets` counts the table that
/// `--inactive` chooses.
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
    if let Some(source) = &device.map_source {
        map_source(&mut text, source);
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
    if let Some(vhost_user) = &device.vhost_user {
        let front_end = if vhost_user.connected { "connected" } else { "no front end" };
        let _ = writeln!(
            text,
            "Vhost-user:        {} ({} queues, {front_end})",
            vhost_user.socket, vhost_user.queues
        );
    }
    if let Some(reason) = &device.away {
        let io = if device.suspended { "waits" } else { "fails" };
        let _ = writeln!(text, "Away:              {reason}; I/O {io} until it is back");
    }
    for path in &device.read_only_paths {
        let _ = writeln!(text, "Read-only path:    {path}");
    }
    for path in &device.troubled_paths {
        let TroubledPath { path, reason, doubted_writes, marginal } = path;
        if let Some(reason) = reason {
            let _ = writeln!(text, "Unusable path:     {path}: {reason}");
        }
        if *marginal {
            let _ = writeln!(text, "Marginal path:     {path}");
        }
        if *doubted_writes > 0 {
            let _ = writeln!(text, "Doubted writes:    {path}: {doubted_writes}");
        }
    }
    if let Some(waits) = &device.waits {
        let _ = writeln!(text, "Waits:             {waits}");
    }
    for one in &device.clients {
        let _ = writeln!(text, "Client:            {}", client(one));
    }
    text.push('\n');
    text
}

fn map_source(text: &mut String, source: &MapSource) {
    let MapSource { source, read_at, generation, failures, error, remarks } = source;
    let read = match (read_at, generation) {
        (Some(at), Some(generation)) => {
            format!("read {}, generation {generation}", time(*at))
        }
        _ => "not read yet".to_owned(),
    };
    let _ = writeln!(text, "Map from:          {source} ({read}, {failures} failed readings)");
    if let Some(error) = error {
        let _ = writeln!(text, "Map not read:      {error}");
    }
    for remark in remarks {
        let _ = writeln!(text, "About the map:     {remark}");
    }
}

/// Describes a client, on one line.
pub(crate) fn client(client: &Client) -> String {
    let Client { number, peer, since, in_flight } = client;
    format!("{peer} (number {number}, since {}, {in_flight} in flight)", time(*since))
}

/// Formats a Unix time as in RFC 3339.
fn time(unix: u64) -> String {
    let (mut days, second) = (unix / 86_400, unix % 86_400);
    let length = |year: u64| {
        let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    };
    let (mut year, mut month) = (1970, 0);
    // Bounded, so that a clock that is wrong by ages costs some time but causes no overflow.
    while days >= length(year).iter().sum() && year < 9999 {
        days -= length(year).iter().sum::<u64>();
        year += 1;
    }
    for days_of_month in length(year) {
        if days < days_of_month || month == 11 {
            break;
        }
        days -= days_of_month;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_796_083_199, "2026-11-30T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(unix), text);
        }
        assert!(time(u64::MAX).starts_with("9999-12-"));
    }
}
