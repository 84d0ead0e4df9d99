//! What the reporting verbs share: which devices are meant, and what is printed for none of them.

use super::context::{Context, find};
use super::failure::Failure;
use super::format::lines::matching;
use super::format::slot;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{Device, DeviceList};

/// The devices of one run of a reporting verb.
pub(super) struct Devices {
    /// All there are, sorted by name.
    pub all: Vec<Device>,
    /// Positions in `all` of those that are meant, in the order in which they were named.
    pub chosen: Vec<usize>,
    /// Whether lines carry the device's name: when it is not the one device that the user named.
    pub prefixed: bool,
}

impl Devices {
    /// Fetches all and finds those that are named, or all. A missing one is a failure of `ioctl`;
    /// libdm has three for which it is a sentence instead.
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

    /// Those that are meant.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.chosen.iter().filter_map(|&index| self.all.get(index))
    }

    /// Leaves those with a segment of `--target`'s type in the table that is meant.
    pub(super) fn retain_target(&mut self, options: &Options) {
        let Some(target) = options.target.as_deref() else { return };
        let has_segment = |device: &Device| {
            let table = slot(device, options.inactive);
            table.is_some_and(|table| matching(&table.segments, Some(target)).next().is_some())
        };
        let all = &self.all;
        self.chosen.retain(|&index| all.get(index).is_some_and(has_segment));
    }

    /// Prints what stands for an empty list or, with `--json`, the devices as the protocol has
    /// them. Tells whether that was all there is to print.
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
    match ioctl {
        "info" | "status" | "mknodes" => Failure::message("Device does not exist."),
        _ => failure,
    }
}

/// Runs `--exec`'s command with the device's path behind its words and waits for it; its exit
/// status is not looked at, as in dmsetup.
pub(super) fn exec(command: &str, device: &Device) -> Result<(), Failure> {
    let mut words = command.split_whitespace();
    let Some(program) = words.next() else {
        return Err(Failure::message("--exec has no command to run."));
    };
    let path = format!("{}{}", super::names::DEVICE_FOLDERS[0], device.name);
    let ran = std::process::Command::new(program).args(words).arg(path).status();
    ran.map(drop).map_err(|error| Failure::Message(format!("Cannot run {program}: {error}.")))
}
