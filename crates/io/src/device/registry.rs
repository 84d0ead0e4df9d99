//! The registry of devices.
//!
//! Contract: names, uuids and ids are unique. Control and the handshakes of exports look devices up
//! here; a request never does.

use std::hash::{BuildHasher, Hasher, RandomState};
#[cfg(feature = "internals")]
use std::sync::mpsc;
use std::sync::{Arc, PoisonError, RwLock};

use super::event::DeviceEvent;
use super::host::{Host, Order};
use super::{Device, DeviceError, MAX_DEVICES, names};
use crate::queues::Queues;
use crate::sys::latch::{Gone, Latch};
#[cfg(feature = "internals")]
use crate::sys::memory::DEFAULT_BYTES;
use crate::sys::memory::Memory;

/// The devices of a pool or driver, by name.
pub struct Registry {
    devices: RwLock<Vec<Arc<Device>>>,
    host: Arc<Host>,
    memory: Arc<Memory>,
    instance: u64,
}

impl Registry {
    /// A registry without queues, whose devices serve no requests. For tests that run pipelines
    /// themselves, like the simulation.
    #[cfg(feature = "internals")]
    #[doc(hidden)]
    pub fn detached(queues: Queues) -> Registry {
        let host = Host::new(queues, None, mpsc::channel().0);
        Registry::new(Arc::new(host), DEFAULT_BYTES)
    }

    pub(crate) fn new(host: Arc<Host>, memory_bytes: usize) -> Registry {
        let memory = Arc::new(Memory::new(memory_bytes));
        // A random key of the system, so in practice no other pool has this number.
        let instance = RandomState::new().build_hasher().finish();
        Registry { devices: RwLock::default(), host, memory, instance }
    }

    /// The budget for clients' data, shared by all queues.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Device>>> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Arc<Device>>> {
        self.devices.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queues that serve its devices. Open leaves for these.
    pub fn queues(&self) -> Queues {
        self.host.queues()
    }

    /// All devices, in the order of creation.
    pub fn list(&self) -> Vec<Arc<Device>> {
        self.read().clone()
    }

    /// The device of this stored name.
    pub fn find(&self, name: &str) -> Option<Arc<Device>> {
        self.read().iter().find(|d| d.name() == name).cloned()
    }

    /// The device with this id.
    pub fn by_id(&self, id: u32) -> Option<Arc<Device>> {
        self.read().iter().find(|d| d.id() == id).cloned()
    }

    /// Creates a device without a table. Uses `id`, or the lowest free id if that is `None`.
    pub fn create(
        &self,
        name: &str,
        uuid: &str,
        id: Option<u32>,
    ) -> Result<Arc<Device>, DeviceError> {
        let mut devices = self.write();
        for device in devices.iter() {
            let info = device.info();
            if names::is_same(&info.name, name) {
                return Err(DeviceError::Exists(name.to_string()));
            }
            if !uuid.is_empty() && info.uuid == uuid {
                return Err(DeviceError::Exists(uuid.to_string()));
            }
        }
        let is_free = |id: &u32| devices.iter().all(|d| d.id() != *id);
        let id = match id {
            Some(id) if id as usize >= MAX_DEVICES => return Err(DeviceError::Number(id)),
            Some(id) => Some(id)
                .filter(is_free)
                .ok_or_else(|| DeviceError::Exists(format!("number {id}")))?,
            None => (0..MAX_DEVICES as u32).find(is_free).ok_or(DeviceError::TooMany)?,
        };
        let device = Arc::new(Device::new(id, name, uuid, self.host.clone()));
        let latch = Latch::new(self.host.len());
        // Send this before the device can be found, so that it is the first order about it on each
        // queue. Wait for it without the lock: a queue may need the lock for a handshake before it
        // reads its orders.
        self.host.send_all(|_| Order::Install {
            device: id,
            counters: device.counters(),
            ack: latch.ack(),
        });
        devices.push(device.clone());
        drop(devices);
        latch.wait().map_err(|Gone| DeviceError::Stopping)?;
        self.host.tell(&device, DeviceEvent::Created);
        Ok(device)
    }

    /// Renames a device. `Err` if another device has the name.
    pub fn rename(&self, device: &Device, name: &str) -> Result<(), DeviceError> {
        let devices = self.write();
        if devices.iter().any(|d| names::is_same(&d.name(), name)) {
            return Err(DeviceError::Exists(name.to_string()));
        }
        let from = device.name();
        device.set_name(name);
        drop(devices);
        self.host.tell(device, DeviceEvent::Renamed { from });
        Ok(())
    }

    /// Sets the uuid of a device. `Err` if it has one, or if another device has this one.
    pub fn set_uuid(&self, device: &Device, uuid: &str) -> Result<(), DeviceError> {
        let devices = self.write();
        if devices.iter().any(|d| d.info().uuid == uuid) {
            return Err(DeviceError::Exists(uuid.to_string()));
        }
        device.set_uuid(uuid)
    }

    /// Removes a device. `Err` if it is open.
    pub fn remove(&self, device: &Arc<Device>) -> Result<(), DeviceError> {
        self.remove_if(device, || true)
    }

    /// As [`Registry::remove`], but asks `agrees` when the device cannot be opened any more. If
    /// that returns `false`, the device stays, and the result is `Ok`.
    pub fn remove_if(
        &self,
        device: &Arc<Device>,
        agrees: impl FnOnce() -> bool,
    ) -> Result<(), DeviceError> {
        device.retire()?;
        if !agrees() {
            device.take_back();
            return Ok(());
        }
        device.dismantle();
        // Only now may another device take the name and the id.
        self.write().retain(|d| !Arc::ptr_eq(d, device));
        self.host.tell(device, DeviceEvent::Removed);
        Ok(())
    }

    /// Drops all devices of a stopped pool, and so closes leaves without other users.
    pub(crate) fn forget_devices(&self) {
        let devices = std::mem::take(&mut *self.write());
        drop(devices);
    }

    /// A random number of this registry. In practice no other registry has it.
    pub(crate) fn instance(&self) -> u64 {
        self.instance
    }
}
