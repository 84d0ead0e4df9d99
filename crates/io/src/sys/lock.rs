//! Locks that go on after a panic of whoever held them.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also after a panic. What is behind these locks has no half-done states: each
/// critical section is a few assignments.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
