//! Attaches, detaches and takes over disks.
//!
//! Contract: the methods block. Any thread except a queue's may call them. A device is at most one
//! disk, and counts as open while it is one. No lock is held while the driver works.

use std::fs::{File, OpenOptions};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::abi::{DevInfo, UblkParams, feature};
use super::control::{Control, kernel_release};
use super::leftover::{MARK, begin_recovery};
use super::server::Order;
use super::{
    DEFAULT_DEPTH, HwQueue, MAX_DEPTH, MAX_IO_BYTES, MAX_QUEUES, Node, Options, UblkError,
    ZERO_COPY, char_node, in_use, is_zero_copy, params,
};
use crate::device::{Device, OpenDevice};
use crate::sys::latch::{Gone, Latch};
use crate::sys::lock::lock;
use crate::sys::mailbox::Post;

/// Features without which no disk is made.
const FEATURES: u64 =
    feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE | feature::CMD_IOCTL_ENCODE;

/// A disk that this server serves.
struct Attached {
    node: Node,
    /// Done when all of its hardware queues have ended.
    over: Arc<Latch>,
    open: OpenDevice,
}

/// The disks of a pool.
#[derive(Default)]
pub(crate) struct Exports {
    /// By the device's id; `None` while it is being attached or detached.
    slots: Mutex<Vec<(u32, Option<Attached>)>>,
}

/// Reserves a device's slot, and frees it on drop unless it was filled.
struct Reserved<'a> {
    exports: &'a Exports,
    device: u32,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.exports
            .lock()
            .retain(|(device, attached)| *device != self.device || attached.is_some());
    }
}

/// A new device of the driver. Deleted on drop unless it is kept.
struct Added<'a> {
    control: &'a mut Control,
    id: Option<u32>,
}

impl Drop for Added<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id
            && let Err(error) = self.control.delete(id)
        {
            tracing::warn!(id, %error, "a ublk device that could not be started stays behind");
        }
    }
}

impl Exports {
    fn lock(&self) -> MutexGuard<'_, Vec<(u32, Option<Attached>)>> {
        lock(&self.slots)
    }

    fn reserve(&self, device: &Device) -> Result<Reserved<'_>, UblkError> {
        let mut slots = self.lock();
        if slots.iter().any(|(id, _)| *id == device.id()) {
            return Err(UblkError::Attached(device.name()));
        }
        slots.push((device.id(), None));
        Ok(Reserved { exports: self, device: device.id() })
    }

    fn fill(&self, reserved: Reserved<'_>, attached: Attached) -> Node {
        let node = attached.node;
        if let Some((_, slot)) = self.lock().iter_mut().find(|(id, _)| *id == reserved.device) {
            *slot = Some(attached);
        }
        node
    }

    /// The disk of a device; `None` if the device is not attached.
    pub(crate) fn node(&self, device: &Device) -> Option<Node> {
        let slots = self.lock();
        let (_, attached) = slots.iter().find(|(id, _)| *id == device.id())?;
        attached.as_ref().map(|attached| attached.node)
    }

    /// Describes a user of the device's disk; `None` if there is none, or if it is not attached.
    pub(crate) fn user(&self, device: &Device) -> Option<String> {
        in_use::user(&self.node(device)?)
    }

    /// Attaches `device` as a ublk disk. The device counts as open until the disk is detached.
    pub(crate) fn attach(
        &self,
        device: &Arc<Device>,
        options: &Options,
        post: &dyn Post<Order>,
    ) -> Result<Node, UblkError> {
        let reserved = self.reserve(device)?;
        let mut info = wanted(options, post.queues())?;
        let table = device.live().ok_or_else(|| UblkError::Table(device.name()))?;
        let params =
            params::params(&table, MAX_IO_BYTES).ok_or_else(|| UblkError::Table(device.name()))?;
        let wanted_pages = options.zero_copy.unwrap_or_else(|| table.gains_by_pages());
        drop(table);
        let open = OpenDevice::new(device).ok_or_else(|| UblkError::Stopping(device.name()))?;
        let mut control = Control::open()?;
        let features = control.features()?;
        need(features)?;
        if device.info().suspended {
            return Err(UblkError::Suspended(device.name()));
        }
        let zero_copy =
            if wanted_pages && features & ZERO_COPY == ZERO_COPY { ZERO_COPY } else { 0 };
        control.add(&mut info, zero_copy)?;
        let mut added = Added { control: &mut control, id: Some(info.dev_id) };
        need(info.flags)?;
        added.control.set_params(info.dev_id, &params)?;
        let over = serve(device, &info, post)?;
        added.control.start(info.dev_id)?;
        added.id = None;
        let node = self.fill(reserved, Attached { node: node(&info, &params), over, open });
        tracing::info!(device = %device.name(), node = %node.path(), queues = node.queues,
            zero_copy = node.zero_copy, "attached");
        Ok(node)
    }

    /// Takes over a disk that a dead blkswitch server has left. `device` serves it from now on.
    pub(crate) fn recover(
        &self,
        device: &Arc<Device>,
        id: u32,
        post: &dyn Post<Order>,
    ) -> Result<Node, UblkError> {
        let reserved = self.reserve(device)?;
        let table = device.live().ok_or_else(|| UblkError::Table(device.name()))?;
        let needed = table.logical_block();
        drop(table);
        let open = OpenDevice::new(device).ok_or_else(|| UblkError::Stopping(device.name()))?;
        let mut control = Control::open()?;
        let params = control.params(id)?;
        let disk = params.logical_block();
        if needed > disk {
            return Err(UblkError::Block { id, disk, device: device.name(), table: needed });
        }
        let info = begin_recovery(&mut control, id)?;
        let over = serve(device, &info, post)?;
        control.end_recovery(id)?;
        let node = self.fill(reserved, Attached { node: node(&info, &params), over, open });
        tracing::info!(device = %device.name(), node = %node.path(), "taken over");
        Ok(node)
    }

    /// Detaches a device's disk. `Err` if the disk is in use, unless `force` is set. With force,
    /// its users get errors from now on, and data that the kernel has not written yet is lost.
    pub(crate) fn detach(
        &self,
        device: &Device,
        force: bool,
        post: &dyn Post<Order>,
    ) -> Result<(), UblkError> {
        let attached = self
            .lock()
            .iter_mut()
            .find(|(id, _)| *id == device.id())
            .and_then(|(_, attached)| attached.take())
            .ok_or_else(|| UblkError::NotAttached(device.name()))?;
        match end(&attached, force, post) {
            Ok(()) => {
                drop(Reserved { exports: self, device: device.id() });
                tracing::info!(device = %device.name(), node = %attached.node.path(), "detached");
                // A removal may have waited for this last use.
                drop(attached);
                Ok(())
            }
            Err(error) => {
                self.fill(Reserved { exports: self, device: device.id() }, attached);
                Err(error)
            }
        }
    }
}

fn end(attached: &Attached, force: bool, post: &dyn Post<Order>) -> Result<(), UblkError> {
    let (device, node) = (attached.open.device(), &attached.node);
    // Held until the disk has gone, so that it cannot be mounted meanwhile.
    let held = match force {
        true => {
            let latch = Latch::new(post.queues());
            post.send_all(|_| Order::Fail { device: device.id(), ack: latch.ack() });
            // Queues that have ended have no requests to refuse.
            let _ = latch.wait();
            None
        }
        false if device.info().suspended => return Err(UblkError::Suspended(device.name())),
        false => Some(hold(node)?),
    };
    let mut control = Control::open()?;
    control.stop(node.id)?;
    drop(held);
    let _ = attached.over.wait();
    control.delete(node.id)
}

/// Opens the disk exclusively, and writes back its cache.
fn hold(node: &Node) -> Result<File, UblkError> {
    let file = in_use::claim(node)?;
    file.sync_all().map_err(|source| UblkError::System {
        what: "flush",
        name: node.path(),
        source,
    })?;
    Ok(file)
}

/// The parameters of the device to request from the driver.
fn wanted(options: &Options, pool_queues: usize) -> Result<DevInfo, UblkError> {
    let own = u16::try_from(pool_queues).unwrap_or(MAX_QUEUES);
    let queues = in_range("queues", options.queues.unwrap_or(own), MAX_QUEUES)?;
    let depth = in_range("depth", options.depth.unwrap_or(DEFAULT_DEPTH), MAX_DEPTH)?;
    Ok(DevInfo {
        nr_hw_queues: queues,
        queue_depth: depth,
        max_io_buf_bytes: MAX_IO_BYTES,
        // Any free number.
        dev_id: u32::MAX,
        flags: FEATURES,
        ublksrv_flags: MARK,
        ..DevInfo::default()
    })
}

fn in_range(what: &'static str, given: u16, most: u16) -> Result<u16, UblkError> {
    if (1..=most).contains(&given) {
        Ok(given)
    } else {
        Err(UblkError::Range { what, given, most })
    }
}

/// The driver silently drops features that it does not know.
fn need(features: u64) -> Result<(), UblkError> {
    if features & FEATURES == FEATURES {
        return Ok(());
    }
    Err(UblkError::TooOld { release: kernel_release(), lacks: "user recovery" })
}

pub(super) fn node(info: &DevInfo, params: &UblkParams) -> Node {
    Node {
        id: info.dev_id,
        queues: info.nr_hw_queues,
        depth: info.queue_depth,
        zero_copy: is_zero_copy(info),
        sectors: params.basic.dev_sectors,
        logical_block: params.logical_block(),
    }
}

/// Gives each hardware queue to a queue of the pool. Returns a latch that ends when all have ended.
fn serve(
    device: &Arc<Device>,
    info: &DevInfo,
    post: &dyn Post<Order>,
) -> Result<Arc<Latch>, UblkError> {
    let name = char_node(info.dev_id);
    let system = |what| {
        let name = name.clone();
        move |source: io::Error| UblkError::System { what, name, source }
    };
    let file = OpenOptions::new().read(true).write(true).open(&name).map_err(system("open"))?;
    let file = Arc::new(file);
    let over = Latch::new(usize::from(info.nr_hw_queues));
    let taken = Latch::new(usize::from(info.nr_hw_queues));
    for number in 0..info.nr_hw_queues {
        let queue = HwQueue::new(file.clone(), info, number, device.id(), over.ack())
            .map_err(system("map"))?;
        let of = usize::from(number) % post.queues().max(1);
        post.send(of, Order::Serve { queue: Box::new(queue), ack: taken.ack() });
    }
    taken.wait().map_err(|Gone| UblkError::Stopping(device.name()))?;
    Ok(over)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_defaults_and_ranges() {
        let info = wanted(&Options::default(), 3).unwrap();
        assert_eq!((info.nr_hw_queues, info.queue_depth), (3, DEFAULT_DEPTH));
        let options = Options { queues: Some(1), depth: Some(MAX_DEPTH), zero_copy: None };
        let info = wanted(&options, 3).unwrap();
        assert_eq!((info.nr_hw_queues, info.queue_depth), (1, MAX_DEPTH));
        for options in [
            Options { queues: Some(0), ..Options::default() },
            Options { depth: Some(0), ..Options::default() },
            Options { depth: Some(MAX_DEPTH + 1), ..Options::default() },
        ] {
            let error = wanted(&options, 3).unwrap_err();
            assert!(matches!(error, UblkError::Range { .. }), "{options:?}: {error}");
        }
    }

    #[test]
    fn a_driver_without_recovery_is_refused() {
        assert!(need(FEATURES | 1 << 40).is_ok());
        let needed =
            [feature::USER_RECOVERY, feature::USER_RECOVERY_REISSUE, feature::CMD_IOCTL_ENCODE];
        for missing in needed.into_iter().chain([FEATURES]) {
            let error = need(FEATURES & !missing).unwrap_err();
            let begin = format!("the ublk driver of kernel {} lacks ", kernel_release());
            let text = error.to_string();
            assert!(text.starts_with(&begin), "{text}");
            assert!(text.ends_with("user recovery: Linux 6.5 or newer is needed"), "{text}");
            assert_eq!(error.errno(), libc::EOPNOTSUPP);
        }
    }
}
