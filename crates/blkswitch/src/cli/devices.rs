//! Common code of the reporting verbs: the choice of devices, and the output for an empty list.

use super::context::{Context, find};
use super::failure::Failure;
use super::format::lines::matching;
use super::format::slot;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{Device, DeviceList};
use crate::raw;

/// The devices of one run of a reporting verb.
pub(super) struct Devices {
    /// All devices, sorted by name.
    pub all: Vec<Device>,
    /// Indices in `all` of the chosen devices, in the order of the command line.
    pub chosen: Vec<usize>,
    /// Whether each line begins with the name of its device. It does not if the user named exactly
    /// one device.
    pub prefixed: bool,
}

impl Devices {
    /// Fetches all devices and chooses the named ones, or all. A missing device is a failure of
    /// `ioctl`; three ioctls of libdm have a sentence instead.
    pub(super) async fn fetch(
        names: &[String],
        options: &Options,
        ioctl: &str,
        context: &Context,
    ) -> Result<Self, Failure> {
        let named = match Selector::optional(None, options)? {
            _ if !names.is_empty() => Selector::list(names, options)?,
            Some(selector) => vec![selector],
            None => Vec::new(),
        };
        let all = context.devices().await?;
        let mut chosen = Vec::new();
        for selector in &named {
            let device =
                find(&all, selector, ioctl).map_err(|failure| does_not_exist(failure, ioctl))?;
            chosen.extend(all.iter().position(|other| other.name == device.name));
        }
        if named.is_empty() {
            chosen = (0..all.len()).collect();
        }
        Ok(Self { chosen, prefixed: named.len() != 1, all })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.chosen.iter().filter_map(|&index| self.all.get(index))
    }

    /// Keeps the devices that have a segment of `--target`'s type in the table that `--inactive`
    /// chooses.
    pub(super) fn retain_target(&mut self, options: &Options) {
        let Some(target) = options.target.as_deref() else { return };
        let has_segment = |device: &Device| {
            let table = slot(device, options.inactive);
            table.is_some_and(|table| matching(&table.segments, Some(target)).next().is_some())
        };
        let all = &self.all;
        self.chosen.retain(|&index| all.get(index).is_some_and(has_segment));
    }

    /// Prints the text for an empty list or, with `--json`, the devices as in the protocol. Returns
    /// `true` if the output is complete with that.
    pub(super) fn printed(
        &self,
        options: &Options,
        context: &mut Context,
    ) -> Result<bool, Failure> {
        if options.json {
            context.print_json(&DeviceList { devices: self.iter().cloned().collect() })?;
        } else if self.all.is_empty() {
            context.print("No devices found\n")?;
        }
        Ok(options.json || self.all.is_empty())
    }
}

fn does_not_exist(failure: Failure, ioctl: &str) -> Failure {
    match (ioctl, failure) {
        ("info" | "status" | "mknodes", Failure::Refused(refusal)) => {
            Failure::Message(format!("Device does not exist.\n  {}", refusal.body.reason))
        }
        (_, failure) => failure,
    }
}

/// Runs `--exec`'s command with the device's path as its last word and waits for it. Ignores its
/// exit status, as dmsetup does.
pub(super) fn exec(command: &str, device: &Device) -> Result<(), Failure> {
    let mut words = command.split_whitespace().map(raw::path);
    let Some(program) = words.next() else {
        return Err(Failure::message("--exec has no command to run."));
    };
    let path = format!("{}{}", super::names::DEVICE_FOLDERS[0], device.name);
    let ran = std::process::Command::new(&program).args(words).arg(path).status();
    ran.map(drop)
        .map_err(|error| Failure::Message(format!("Cannot run {}: {error}.", program.display())))
}
