//! `attach` and `detach`: begin and end a device's ublk disk, or its socket for vhost-user front
//! ends.

use clap::Args;
use hyper::Method;

use super::context::Context;
use super::failure::Failure;
use super::names::Selector;
use super::options::Options;
use crate::protocol::{AttachUblk, AttachVhostUser, Device, Disk, VhostUser, device_path, route};

/// Attach devices as disks of this machine or of virtual machines
///
/// With --ublk the disk is /dev/ublkbN and, by the device's name, /dev/blkswitch/NAME. It outlives
/// the daemon: see serve. Needs root and the kernel's ublk driver (Linux 6.5 or newer, modprobe
/// ublk_drv).
///
/// With --vhost-user the device gets a socket NAME.vhost beside the control socket, to which QEMU
/// and other vhost-user front ends connect (docs/vhost-user.md). Its path is printed.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("how").required(true).args(["ublk", "vhost_user"]))]
pub(super) struct Attach {
    /// The devices
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    /// Use the kernel's ublk driver
    #[arg(long)]
    ublk: bool,
    /// Offer it to vhost-user front ends, each with one socket
    #[arg(long)]
    vhost_user: bool,
    /// Hardware queues of a ublk disk [default: the number of the daemon's queues; the kernel
    /// allows one per processor]; or most virtqueues of a vhost-user front end, at most 256
    /// [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    queues: Option<u16>,
    /// Requests per hardware queue of a ublk disk [default: 128]
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u16).range(1..=4096),
        conflicts_with = "vhost_user")]
    depth: Option<u16>,
    /// Zero copy of a ublk disk if the kernel can (Linux 6.16): true or false [default: true if all
    /// leaves can, and one of them bypasses the page cache]
    #[arg(long, value_name = "BOOL", conflicts_with = "vhost_user")]
    zero_copy: Option<bool>,
    #[command(flatten)]
    options: Options,
}

/// Detach the disks of devices: ublk disks, and sockets for vhost-user front ends
///
/// A disk that is mounted, or below another device, is refused, and so is a socket to which a front
/// end is connected. With --force its users get errors from now on, and data that the kernel has
/// not written is lost. The device stays in any case.
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
        for selector in Selector::list(&self.devices, &self.options)? {
            let name = context.name_of(&selector, "attach").await?;
            if self.vhost_user {
                self.offer(&selector, &name, context).await?;
                continue;
            }
            let how =
                AttachUblk { queues: self.queues, depth: self.depth, zero_copy: self.zero_copy };
            let path = device_path(route::UBLK, &name);
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

    async fn offer(
        &self,
        selector: &Selector,
        name: &str,
        context: &mut Context,
    ) -> Result<(), Failure> {
        let how = AttachVhostUser { queues: self.queues };
        let path = device_path(route::VHOST_USER, name);
        let made = context.client.exchange(Method::PUT, &path, &how).await;
        let socket: VhostUser = made.map_err(|error| error.about(selector.subject()))?;
        if self.options.json {
            return context.print_json(&socket);
        }
        context.print(&format!("{}\n", socket.socket))?;
        context.show_if_verbose(selector, &self.options).await
    }
}

impl Detach {
    pub(super) async fn run(self, context: &mut Context) -> Result<(), Failure> {
        for selector in Selector::list(&self.devices, &self.options)? {
            let name = context.name_of(&selector, "detach").await?;
            let path = device_path(route::DEVICE, &name);
            let found = context.client.get(&path).await;
            let device: Device = found.map_err(|error| error.about(selector.subject()))?;
            let (has_socket, is_disk) = (device.vhost_user.is_some(), device.disk.is_some());
            // Without either, the daemon says that it is no disk.
            let ways = [(route::VHOST_USER, has_socket), (route::UBLK, is_disk || !has_socket)];
            for (way, _) in ways.into_iter().filter(|(_, is_there)| *is_there) {
                let path = format!("{}?force={}", device_path(way, &name), self.options.force);
                let sent = context.client.send(Method::DELETE, &path, &()).await;
                sent.map_err(|error| error.about(selector.subject()))?;
            }
            context.show_if_verbose(&selector, &self.options).await?;
        }
        Ok(())
    }
}
