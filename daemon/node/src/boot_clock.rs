//! CLOCK_BOOTTIME, the only clock that leases are counted on: it runs through a suspend and is never stepped.

use nix::time::{ClockId, clock_gettime};
use units::BootInstant;

/// Now. A kernel without CLOCK_BOOTTIME (older than 2.6.39) is refused at start by [`check`].
pub(crate) fn now() -> BootInstant {
    // After `check` this cannot fail; the end of time would expire every lease, which is the safe answer.
    read().unwrap_or(BootInstant(u64::MAX))
}

/// Whether this kernel has the clock.
pub(crate) fn check() -> Result<(), nix::Error> {
    read().map(|_| ())
}

fn read() -> Result<BootInstant, nix::Error> {
    let time = std::time::Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    Ok(BootInstant(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
}
