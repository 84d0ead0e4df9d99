//! Paths that cannot be reached or are not used, told to those who watch.
//!
//! A leaf keeps the reason ([`blkswitch_io::Leaf::trouble`]), because it belongs to no device. A look
//! every second finds what has changed. The leaf does not call: it may be opened before anybody
//! watches, and several devices may share it.
//!
//! Contract: one task per daemon. It forgets a device that is gone, and what another table had.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use blkswitch_io::Table;

use crate::daemon::devices::Devices;
use crate::daemon::server::monitor::Monitor;
use crate::daemon::tables::describe::path_word;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Of each device that has trouble, the paths and the reasons that were told.
type Told = HashMap<u32, HashMap<String, String>>;

/// Looks for as long as it is polled.
pub async fn run(devices: Arc<Devices>, monitor: Monitor) {
    let mut told = Told::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        told = look(&devices, &monitor, &mut told);
    }
}

/// Tells what differs from what was told before; returns what is so now.
fn look(devices: &Devices, monitor: &Monitor, told: &mut Told) -> Told {
    let mut now = Told::new();
    for device in devices.list() {
        let Some(table) = device.live() else { continue };
        let mut before = told.remove(&device.id()).unwrap_or_default();
        let troubles = troubles(&table);
        for (path, reason) in &troubles {
            if before.remove(path).as_ref() != Some(reason) {
                monitor.path_trouble(&device, path.clone(), Some(reason.clone()));
            }
        }
        for path in before.into_keys() {
            monitor.path_trouble(&device, path, None);
        }
        if !troubles.is_empty() {
            now.insert(device.id(), troubles);
        }
    }
    now
}

fn troubles(table: &Table) -> HashMap<String, String> {
    let troubles = table.leaves().iter().zip(0u32..).filter_map(|(leaf, index)| {
        let reason = leaf.trouble()?;
        Some((path_word(table, index)?, reason))
    });
    troubles.collect()
}
