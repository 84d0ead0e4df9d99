//! `monitor`: shows events of devices as they happen.

use clap::Args;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{MonitorEvent, percent_encode, route};
use crate::raw;

/// Show what happens to devices: failing paths, groups that take over, remaps, changed tables
///
/// A line per event, until the daemon stops or the program is interrupted. With --json a line of
/// JSON.
#[derive(Debug, Args)]
pub(super) struct Monitor {
    /// The devices [default: all]
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const SHOWN: &[&str] = &["uuid", "major", "minor"];

impl Monitor {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let all = self.devices.is_empty() && !super::names::named_by_switch(&self.options);
        let selectors =
            if all { Vec::new() } else { Selector::list(&self.devices, &self.options)? };
        let mut names = Vec::new();
        for selector in &selectors {
            names.push(context.name_of(selector, "waitevent").await?);
        }
        let path = format!("{}?devices={}", route::MONITOR, percent_encode(&names.join(",")));
        let subject = selectors.first().map(Selector::subject).unwrap_or_default();
        let is_json = self.options.json;
        context
            .print_lines(&path, subject, |line| match text(line) {
                _ if is_json => Some(line.into()),
                text => Some(raw::decode(&text?).into_owned()),
            })
            .await
    }
}

/// Formats an event for people; `None` if the line is not an event.
fn text(line: &str) -> Option<String> {
    let event: MonitorEvent = serde_json::from_str(line).ok()?;
    let mut text = format!("[{}.{:03}] ", event.time_ms / 1000, event.time_ms % 1000);
    if !event.device.is_empty() {
        text.push_str(&format!("{}: ", event.device));
    }
    text.push_str(&event.event);
    if let Some(path) = &event.path {
        text.push_str(&format!(" {path}"));
    }
    if let Some(from) = &event.from {
        text.push_str(&format!(" from={from}"));
    }
    if let Some(errno) = event.errno {
        text.push_str(&format!(" errno={errno}"));
    }
    let mut more = |what: &str, number: Option<u64>| {
        if let Some(number) = number {
            text.push_str(&format!(" {what}={number}"));
        }
    };
    more("paths_up", event.paths_up.map(u64::from));
    more("group", event.group.map(u64::from));
    more("sector", event.sector);
    more("arguments", event.arguments);
    more("generation", event.generation);
    more("uid", event.uid.map(u64::from));
    more("pid", event.pid.map(u64::from));
    more("count", event.count);
    more("lost", event.lost);
    if let Some(reason) = &event.reason {
        text.push_str(&format!(" reason='{reason}'"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_per_event() {
        let event = MonitorEvent {
            time_ms: 12_034,
            device: "member0".into(),
            event: "PATH_FAILED".into(),
            path: Some("/dev/sda".into()),
            paths_up: Some(1),
            ..MonitorEvent::default()
        };
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(text(&line).unwrap(), "[12.034] member0: PATH_FAILED /dev/sda paths_up=1");
        let lost =
            MonitorEvent { event: "EVENTS_LOST".into(), lost: Some(3), ..MonitorEvent::default() };
        assert_eq!(
            text(&serde_json::to_string(&lost).unwrap()).unwrap(),
            "[0.000] EVENTS_LOST lost=3"
        );
        assert_eq!(text("nonsense"), None);
    }
}
