//! `attach` and `detach`: begin and end a device's ublk disk.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{AttachUblk, Disk, device_path, route};

/// Attach devices as ublk disks of this machine
///
/// The disk is /dev/ublkbN and, by the device's name, /dev/blkswitch/NAME. It outlives the daemon:
/// see serve. Needs root and the kernel's ublk driver (Linux 6.5 or newer, modprobe ublk_drv).
#[derive(Debug, Args)]
pub(super) struct Attach {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    /// Use the kernel's ublk driver, the only way at present
    #[arg(long, required = true)]
    ublk: bool,
    /// Hardware queues [default: the number of the daemon's queues; the kernel allows one per
    /// processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    queues: Option<u16>,
    /// Requests per hardware queue [default: 128]
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: Option<u16>,
    /// Zero copy if the kernel can (Linux 6.16): true or false [default: true if all leaves can,
    /// and one of them bypasses the page cache]
    #[arg(long, value_name = "BOOL")]
    zero_copy: Option<bool>,
    #[command(flatten)]
    options: Options,
}

/// Detach the ublk disks of devices
///
/// A disk that is mounted, or below another device, is refused. With --force its users get errors
/// from now on, and data that the kernel has not written is lost. The device stays in any case.
#[derive(Debug, Args)]
pub(super) struct Detach {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) const ATTACH_SHOWN: &[&str] = &["uuid", "major", "minor"];
pub(super) const DETACH_SHOWN: &[&str] = &["force", "uuid", "major", "minor"];

impl Attach {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        let how = AttachUblk { queues: self.queues, depth: self.depth, zero_copy: self.zero_copy };
        for selector in Selector::list(&self.devices, &self.options)? {
            let path = device_path(route::UBLK, &context.name_of(&selector, "attach").await?);
            let made = context.client.exchange(Method::PUT, &path, &how).await;
            let disk: Disk = made.map_err(|error| error.about(selector.subject()))?;
            if self.options.json {
                context.print_json(&disk)?;
            } else {
                context.show_if_verbose(&selector, &self.options).await?;
            }
        }
        Ok(())
    }
}

impl Detach {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        for selector in Selector::list(&self.devices, &self.options)? {
            let name = context.name_of(&selector, "detach").await?;
            let path = format!("{}?force={}", device_path(route::UBLK, &name), self.options.force);
            let sent = context.client.send(Method::DELETE, &path, &()).await;
            sent.map_err(|error| error.about(selector.subject()))?;
            context.show_if_verbose(&selector, &self.options).await?;
        }
        Ok(())
    }
}
