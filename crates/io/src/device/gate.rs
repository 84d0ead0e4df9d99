//! The gate of a device, on the control side. A suspend closes it, and so does a swap of tables.
//!
//! A gate is closed when nothing is in flight. That can take for ever if a path is missing or a
//! leaf hangs. So a waiting caller can give up ([`Interrupt`]), a resume ends a suspend that waits,
//! and a forced removal fails the queued requests below. If a caller gives up, the gate opens again
//! and the device runs on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::host::Order;
use super::{Device, DeviceError, lock};
use crate::device::event::DeviceEvent;
use crate::device::table::Live;
use crate::sys::latch::{Latch, Waited};

/// Time after which the log warns that the gate still waits.
const TELL_AFTER: Duration = Duration::from_secs(5);
/// Pause between two rounds of failing queued requests.
const FORCE_PAUSE: Duration = Duration::from_millis(50);
/// How long a forced swap waits for leaves, which must give requests back themselves.
const FORCE_TIME: Duration = Duration::from_secs(10);

/// Lets another thread end a wait, for instance because the client has gone.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Mutex<Given>>);

#[derive(Default)]
struct Given {
    up: bool,
    latch: Option<Arc<Latch>>,
}

impl Interrupt {
    /// Ends the current wait, and any later one.
    pub fn give_up(&self) {
        let mut given = lock(&self.0);
        given.up = true;
        if let Some(latch) = &given.latch {
            latch.cancel();
        }
    }

    pub(super) fn waits_for(&self, latch: &Arc<Latch>) {
        let mut given = lock(&self.0);
        given.latch = Some(latch.clone());
        if given.up {
            latch.cancel();
        }
    }
}

/// The reason for closing a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// A suspend. A resume ends its wait.
    Suspend {
        /// Whether pieces without a path are queued rather than failed.
        noflush: bool,
    },
    /// A swap to another table.
    Swap {
        /// Whether requests fail that wait for a path or at a gate below.
        force: bool,
    },
}

impl Device {
    /// Closes the gate and waits until nothing is in flight. New requests wait at the gate. A
    /// second suspend has no effect. Requests that a multipath device has queued stay queued.
    /// Requests that lose their last path meanwhile fail.
    pub fn suspend(&self) -> Result<(), DeviceError> {
        self.suspend_unless(false, &Interrupt::default())
    }

    /// As [`Device::suspend`], but requests that lose their last path meanwhile are queued,
    /// whatever the device's policy is.
    pub fn suspend_noflush(&self) -> Result<(), DeviceError> {
        self.suspend_unless(true, &Interrupt::default())
    }

    /// As [`Device::suspend`], or with `noflush` as [`Device::suspend_noflush`]. If `interrupt`
    /// ends the wait, or another thread resumes the device, the gate opens again.
    pub fn suspend_unless(&self, noflush: bool, interrupt: &Interrupt) -> Result<(), DeviceError> {
        let _control = lock(&self.control);
        self.close_gate(Reason::Suspend { noflush }, interrupt)
    }

    /// Ends a suspend that waits.
    pub(super) fn end_suspend(&self) {
        if let Some(suspend) = lock(&self.suspending).clone() {
            suspend.give_up();
        }
    }

    pub(super) fn close_gate(
        &self,
        reason: Reason,
        interrupt: &Interrupt,
    ) -> Result<(), DeviceError> {
        if lock(&self.state).suspended {
            return Ok(());
        }
        let latch = Latch::new(self.host.len());
        interrupt.waits_for(&latch);
        let noflush = match reason {
            Reason::Suspend { noflush } => {
                *lock(&self.suspending) = Some(interrupt.clone());
                noflush
            }
            Reason::Swap { .. } => true,
        };
        self.host.send_all(|_| Order::Close { device: self.id, noflush, ack: latch.ack() });
        let closed = self.wait_closed(&latch, reason);
        *lock(&self.suspending) = None;
        match closed {
            Ok(()) => {
                lock(&self.state).suspended = true;
                self.host.tell(self, DeviceEvent::Suspended);
                Ok(())
            }
            Err(DeviceError::Stopping) => Err(DeviceError::Stopping),
            Err(error) => {
                let live = lock(&self.state).live.clone();
                self.open_gate(live)?;
                Err(error)
            }
        }
    }

    fn wait_closed(&self, latch: &Arc<Latch>, reason: Reason) -> Result<(), DeviceError> {
        let (began, mut has_told) = (Instant::now(), false);
        let by_force = reason == Reason::Swap { force: true };
        loop {
            if by_force {
                self.host.send_all(|_| Order::FailHeld { device: self.id });
            }
            match latch.wait_for(if by_force { FORCE_PAUSE } else { TELL_AFTER }) {
                Waited::Done => return Ok(()),
                Waited::Gone => return Err(DeviceError::Stopping),
                Waited::Cancelled => return Err(DeviceError::GivenUp(self.name())),
                Waited::NotYet if by_force && began.elapsed() > FORCE_TIME => {
                    return Err(DeviceError::InFlight(self.name()));
                }
                Waited::NotYet if !has_told && began.elapsed() >= TELL_AFTER => {
                    has_told = true;
                    let device = self.name();
                    tracing::warn!(
                        device,
                        "still waiting for requests in flight: no path takes them, or a leaf does not answer"
                    );
                }
                Waited::NotYet => {}
            }
        }
    }

    pub(super) fn open_gate(&self, live: Option<Arc<Live>>) -> Result<(), DeviceError> {
        let latch = Latch::new(self.host.len());
        self.host.send_all(|_| Order::Open {
            device: self.id,
            live: live.clone(),
            ack: latch.ack(),
        });
        drop(live);
        latch.wait().map_err(|_| DeviceError::Stopping)?;
        lock(&self.state).suspended = false;
        Ok(())
    }
}
