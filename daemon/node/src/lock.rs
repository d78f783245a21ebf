//! The node's way to take a mutex.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Every critical section leaves its data whole, so one that panicked has left nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
