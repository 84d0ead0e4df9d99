//! The context of a verb: the daemon, standard output, and look-ups of devices.
//!
//! Contract: a verb prints through [`Context::print`] only. So all output is buffered, and one
//! place handles a closed pipe. A context stays on the thread of `main`.

use std::io::{BufWriter, Stdout, Write};

use hyper::Method;
use serde::Serialize;

use super::client::{Client, ClientError};
use super::failure::{Failure, Subject};
use super::format;
use super::names::Selector;
use super::options::Options;
use crate::nearest::did_you_mean;
use crate::protocol::{Device, DeviceList, Errno, device_path, route};
use crate::raw;

/// The daemon and the output of one verb.
pub(super) struct Context {
    pub client: Client,
    out: BufWriter<Stdout>,
}

impl Context {
    /// A context for one run of one verb.
    pub(super) fn new(client: Client) -> Self {
        Self { client, out: BufWriter::new(std::io::stdout()) }
    }

    /// Prints a text. Its bytes that are not UTF-8 appear as they are.
    pub(super) fn print(&mut self, text: &str) -> Result<(), Failure> {
        Ok(self.out.write_all(&raw::decode(text))?)
    }

    /// Prints a value as JSON, with a newline.
    pub(super) fn print_json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer_pretty(&mut self.out, value).map_err(std::io::Error::from)?;
        self.print("\n")
    }

    /// Flushes the output buffer to standard output.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }

    /// Copies a reply to standard output as it arrives.
    pub(super) async fn print_download(
        &mut self,
        path: &str,
        subject: Subject,
    ) -> Result<(), Failure> {
        let out = &mut self.out;
        self.client
            .download(path, |data| out.write_all(data))
            .await
            .map_err(|error| error.about(subject))
    }

    /// Prints the lines of a reply as they arrive, each converted to bytes by `line`, and flushes
    /// after each.
    pub(super) async fn print_lines(
        &mut self,
        path: &str,
        subject: Subject,
        line: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Result<(), Failure> {
        let (out, mut lines) = (&mut self.out, Lines::default());
        let sink = |data: &[u8]| {
            lines.each(data, |text| match line(&String::from_utf8_lossy(text)) {
                Some(text) => {
                    out.write_all(&text)?;
                    out.write_all(b"\n")
                }
                None => Ok(()),
            })?;
            out.flush()
        };
        self.client.download(path, sink).await.map_err(|error| error.about(subject))
    }

    /// Standard output, for a reply that is copied to it.
    pub(super) fn out(&mut self) -> &mut impl Write {
        &mut self.out
    }

    /// All devices, sorted by name.
    pub(super) async fn devices(&self) -> Result<Vec<Device>, Failure> {
        let list: DeviceList = self.get(route::DEVICES).await?;
        Ok(list.devices)
    }

    /// Sends `GET path` for a route that is not about a device.
    pub(super) async fn get<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<T, Failure> {
        self.client.get(path).await.map_err(|error| error.about(Subject::default()))
    }

    /// The name of the device that `selector` names.
    pub(super) async fn name_of(
        &self,
        selector: &Selector,
        ioctl: &str,
    ) -> Result<String, Failure> {
        match selector {
            Selector::Name(name) => Ok(name.clone()),
            _ => Ok(find(&self.devices().await?, selector, ioctl)?.name.clone()),
        }
    }

    /// Prints the `info` block of a device if the verb has `-v`.
    pub(super) async fn show_if_verbose(
        &mut self,
        selector: &Selector,
        options: &Options,
    ) -> Result<(), Failure> {
        if options.verbose == 0 {
            return Ok(());
        }
        let devices = self.devices().await?;
        let device = find(&devices, selector, "info")?;
        self.print(&format::info::block(device, options.inactive))
    }

    /// Sends a request about one device with a JSON body and ignores the reply's body. The daemon's
    /// note goes to standard error.
    pub(super) async fn command(
        &self,
        method: Method,
        route: &str,
        selector: &Selector,
        ioctl: &str,
        body: &impl Serialize,
    ) -> Result<(), Failure> {
        let path = device_path(route, &self.name_of(selector, ioctl).await?);
        let sent = self.client.send(method, &path, body).await;
        let note = sent.map_err(|error: ClientError| error.about(selector.subject()))?;
        if let Some(note) = note {
            super::terminal::complain(&format!("blkswitch: {note}\n"));
        }
        Ok(())
    }
}

/// Cuts a reply into its lines.
#[derive(Default)]
pub(super) struct Lines {
    /// The beginning of a line that is not complete.
    rest: Vec<u8>,
}

impl Lines {
    /// Passes the lines that `data` completes to `each`, without their line breaks.
    pub(super) fn each(
        &mut self,
        data: &[u8],
        mut each: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        self.rest.extend_from_slice(data);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in self.rest[..end].split_inclusive(|byte| *byte == b'\n') {
            each(line.trim_ascii_end())?;
        }
        self.rest.drain(..end);
        Ok(())
    }
}

/// Describes a missing device, and suggests similar names.
fn missing(devices: &[Device], selector: &Selector) -> String {
    let names = devices.iter().map(|device| device.name.as_str());
    let uuids = devices.iter().map(|device| device.uuid.as_str());
    let (what, near) = match selector {
        Selector::Name(name) => (format!("device '{name}'"), did_you_mean(name, names)),
        Selector::Uuid(uuid) => {
            (format!("device with the uuid '{uuid}'"), did_you_mean(uuid, uuids))
        }
        Selector::Number([major, minor]) => (format!("device {major}:{minor}"), String::new()),
    };
    let others = match devices.len() {
        0 => "there are none yet",
        _ => "blkswitch ls lists those there are",
    };
    format!("there is no {what}: {near}{others}")
}

/// The device that `selector` names. `Err` is the kernel's failure of `ioctl` for a missing device.
pub(super) fn find<'a>(
    devices: &'a [Device],
    selector: &Selector,
    ioctl: &str,
) -> Result<&'a Device, Failure> {
    let wanted = |device: &&Device| match selector {
        Selector::Name(name) => device.name == *name,
        Selector::Uuid(uuid) => !uuid.is_empty() && device.uuid == *uuid,
        Selector::Number(number) => [device.major, device.minor] == *number,
    };
    devices.iter().find(wanted).ok_or_else(|| {
        let reason = missing(devices, selector);
        Failure::refused(ioctl, Errno::Enxio, reason, selector.subject())
    })
}
