//! `attach` and `detach`: a device becomes a disk of this machine, and ceases to be one.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{AttachUblk, Disk, device_path, route};

/// Make a disk of this machine of devices
///
/// The disk is /dev/ublkbN and, by the device's name, /dev/blkswitch/NAME. It outlives the daemon:
/// see serve. Needs root and the kernel's ublk driver (Linux 6.5 or newer, modprobe ublk_drv).
#[derive(Debug, Args)]
pub(super) struct Attach {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    /// By the kernel's ublk driver; the only way there is
    #[arg(long, required = true)]
    ublk: bool,
    /// Hardware queues [default: as many as the daemon has queues; the kernel makes no more than
    /// processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    queues: Option<u16>,
    /// Requests per hardware queue [default: 128]
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: Option<u16>,
    /// Whether to do without copies of data if the kernel can (Linux 6.16): true or false
    /// [default: if all leaves can, and one goes past the page cache]
    #[arg(long, value_name = "BOOL")]
    zero_copy: Option<bool>,
    #[command(flatten)]
    options: Options,
}

/// End devices' being disks
///
/// A disk that is mounted, or below another device, stays, unless --force: then its users get
/// errors from now on, and what the kernel has not written yet is lost. The device stays in any
/// case.
#[derive(Debug, Args)]
pub(super) struct Detach {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    options: Options,
}

/// The switches that its help shows.
pub(super) const ATTACH_SHOWN: &[&str] = &["uuid", "major", "minor"];
/// The switches that its help shows.
pub(super) const DETACH_SHOWN: &[&str] = &["force", "uuid", "major", "minor"];

impl Attach {
    /// Runs the verb.
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
    /// Runs the verb.
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
