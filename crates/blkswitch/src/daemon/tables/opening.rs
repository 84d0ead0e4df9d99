//! Records which devices have a table under construction, and what each construction waits for.
//! Opening a file or reaching a server can take any time, and other verbs must be able to report
//! it.
//!
//! Contract: plain data under a short lock; any thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::daemon::failure::Failure;
use crate::protocol::Errno;

/// State of one construction.
#[derive(Debug)]
pub struct Opening {
    since: Instant,
    /// The address that is being opened; empty if none is.
    address: Mutex<String>,
}

impl Default for Opening {
    /// A construction that opens nothing yet.
    fn default() -> Opening {
        Opening { since: Instant::now(), address: Mutex::default() }
    }
}

impl Opening {
    /// Runs `open`, and records meanwhile that `address` is being opened.
    pub fn at<T>(&self, address: &str, open: impl FnOnce() -> T) -> T {
        address.clone_into(&mut lock(&self.address));
        let opened = open();
        lock(&self.address).clear();
        opened
    }

    /// Describes what the construction waits for, as a phrase.
    pub fn waits_for(&self) -> String {
        let seconds = self.since.elapsed().as_secs();
        match lock(&self.address).as_str() {
            "" => "its table is being made".to_owned(),
            address => format!("waits for '{address}' to be opened, for {seconds} s now"),
        }
    }
}

/// The constructions under way, by device number.
#[derive(Debug, Default)]
pub struct Openings(Mutex<HashMap<u32, Arc<Opening>>>);

impl Openings {
    /// Begins the construction of a table for a device.
    ///
    /// Errors: another construction is under way for this device; the reason says what it waits
    /// for.
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

    /// Describes what the construction for a device waits for; `None` if none is under way.
    pub fn waits_for(&self, device: u32) -> Option<String> {
        lock(&self.0).get(&device).map(|opening| opening.waits_for())
    }
}

/// A construction that has begun. It ends when this is dropped.
pub struct Begun<'a> {
    openings: &'a Openings,
    device: u32,
    /// Records what the construction waits for.
    pub opening: Arc<Opening>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        // The number may belong to another device by now, which has a construction of its own.
        let mut all = lock(&self.openings.0);
        if all.get(&self.device).is_some_and(|other| Arc::ptr_eq(other, &self.opening)) {
            all.remove(&self.device);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
