//! Reports paths that cannot be reached or are not used to watchers.
//!
//! A leaf has the reason ([`blkswitch_io::Leaf::trouble`]), because it belongs to no single device.
//! A check every second finds changes. The leaf does not report by itself: it may be opened before
//! anybody watches, and several devices may share it.
//!
//! Contract: one task per daemon. It forgets a device that was removed, and the paths of a table
//! that was replaced.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use blkswitch_io::Table;

use crate::daemon::devices::Devices;
use crate::daemon::server::monitor::Monitor;
use crate::daemon::tables::describe::path_word;

/// Interval between two checks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The paths and reasons that were reported, for each device with trouble.
type Told = HashMap<u32, HashMap<String, String>>;

/// Checks for as long as the future is polled.
pub async fn run(devices: Arc<Devices>, monitor: Monitor) {
    let mut told = Told::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        told = look(&devices, &monitor, &mut told);
    }
}

/// Reports the differences to `told`, the state that was reported before. Returns the current
/// state.
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
