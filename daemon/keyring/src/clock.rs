//! Boot time as the keyring reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};
use units::BootInstant;

/// Where the time of a lease comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// CLOCK_BOOTTIME: counts through suspend, ignores the wall clock.
    Boot,
    /// Nanoseconds that a test or a simulation sets.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// Now. A clock that can't be read is past every deadline: keys are then gone, never kept.
    pub fn now(&self) -> BootInstant {
        match self {
            Self::Boot => clock_gettime(ClockId::CLOCK_BOOTTIME)
                .ok()
                .and_then(nanoseconds)
                .map_or(BootInstant(u64::MAX), BootInstant),
            Self::Manual(now) => BootInstant(now.load(Ordering::SeqCst)),
        }
    }
}

fn nanoseconds(time: nix::sys::time::TimeSpec) -> Option<u64> {
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(u64::try_from(time.tv_nsec()).ok()?)
}
