//! Replaces a stand-in table by the real one, while the device is in use.
//!
//! Contract: as [`super`]. The inactive slot belongs to the user and is not touched.

use std::sync::Arc;

use super::host::Order;
use super::{
    Device, DeviceError, Interrupt, LOADING, Latch, Reason, give_up_tables, leaving, lock,
};
use crate::device::table::{Live, MAX_DEPTH, Table};

impl Device {
    /// Makes `table` live in place of `old`, and opens the gate if `open` is set. `false` if
    /// another table is live by now; then nothing has changed.
    ///
    /// # Errors
    /// As [`Device::load`], or the pool is stopping.
    pub fn replace(
        &self,
        mut table: Table,
        old: &Arc<Table>,
        open: bool,
    ) -> Result<bool, DeviceError> {
        let loading = lock(&LOADING);
        table.serve(self.host.queues()).map_err(DeviceError::OtherQueues)?;
        self.check_below(&table, MAX_DEPTH)?;
        let table = Arc::new(table);
        lock(&self.state).coming = Some(table.clone());
        drop(loading);
        let replaced = self.replace_live(&table, old, open);
        lock(&self.state).coming = None;
        if !matches!(replaced, Ok(true)) {
            give_up_tables(None, Some(table));
        }
        replaced
    }

    fn replace_live(
        &self,
        table: &Arc<Table>,
        old: &Arc<Table>,
        open: bool,
    ) -> Result<bool, DeviceError> {
        let _control = lock(&self.control);
        let now = lock(&self.state).live.clone();
        let Some(now) = now.filter(|live| Arc::ptr_eq(&live.table, old)) else { return Ok(false) };
        let _message = lock(&self.message);
        self.close_gate(Reason::Swap { force: false }, &Interrupt::default())?;
        let departed = leaving::departed(Some(&now), table);
        let live = Arc::new(Live { departed, table: table.clone() });
        drop(now);
        if open {
            self.open_gate(Some(live.clone()))?;
        } else {
            let latch = Latch::new(self.host.len());
            self.host.send_all(|_| Order::Exchange {
                device: self.id,
                live: live.clone(),
                ack: latch.ack(),
            });
            latch.wait().map_err(|_| DeviceError::Stopping)?;
        }
        let old = lock(&self.state).live.replace(live);
        give_up_tables(old, None);
        Ok(true)
    }
}
