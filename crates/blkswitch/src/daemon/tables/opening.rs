//! Which devices have a table under construction, and what each waits for. To open a file or to
//! reach a server can take any time, and everybody else must be able to learn of it.
//!
//! Contract: plain data under a short lock; any thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::daemon::failure::Failure;
use crate::protocol::Errno;

/// What one construction waits for.
#[derive(Debug)]
pub struct Opening {
    since: Instant,
    /// The address that is being opened; empty between two.
    address: Mutex<String>,
}

impl Default for Opening {
    /// Nothing is being opened yet.
    fn default() -> Opening {
        Opening { since: Instant::now(), address: Mutex::default() }
    }
}

impl Opening {
    /// Notes which address is being opened, while `open` runs.
    pub fn at<T>(&self, address: &str, open: impl FnOnce() -> T) -> T {
        address.clone_into(&mut lock(&self.address));
        let opened = open();
        lock(&self.address).clear();
        opened
    }

    /// What it waits for, as a phrase.
    pub fn waits_for(&self) -> String {
        let seconds = self.since.elapsed().as_secs();
        match lock(&self.address).as_str() {
            "" => "its table is being made".to_owned(),
            address => format!("waits for '{address}' to be opened, for {seconds} s now"),
        }
    }
}

/// The constructions under way, by the number of the device.
#[derive(Debug, Default)]
pub struct Openings(Mutex<HashMap<u32, Arc<Opening>>>);

impl Openings {
    /// Begins one for a device. Errors: there is one already; it says what it waits for.
    pub fn begin(&self, device: u32, name: &str) -> Result<Begun<'_>, Failure> {
        let mut all = lock(&self.0);
        if let Some(other) = all.get(&device) {
            let reason = format!("device '{name}' is busy: another load {}", other.waits_for());
            return Err(Failure::new(Errno::Ebusy, reason));
        }
        let opening = Arc::new(Opening::default());
        all.insert(device, opening.clone());
        Ok(Begun { openings: self, device, opening })
    }

    /// What the construction for a device waits for, if there is one.
    pub fn waits_for(&self, device: u32) -> Option<String> {
        lock(&self.0).get(&device).map(|opening| opening.waits_for())
    }
}

/// A construction that has begun; over when it is dropped.
pub struct Begun<'a> {
    openings: &'a Openings,
    device: u32,
    /// What it waits for.
    pub opening: Arc<Opening>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        // The number may be another device's already, whose construction has begun since.
        let mut all = lock(&self.openings.0);
        if all.get(&self.device).is_some_and(|other| Arc::ptr_eq(other, &self.opening)) {
            all.remove(&self.device);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
