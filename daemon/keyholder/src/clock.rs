//! The clocks: CLOCK_BOOTTIME with the boot it belongs to, for leases; the wall clock, for people.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use units::{BootId, BootInstant};

const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Now, on CLOCK_BOOTTIME.
pub(crate) fn now() -> BootInstant {
    #[cfg(test)]
    if let Some(now) = simulated::NOW.get() {
        return now;
    }
    #[expect(
        clippy::expect_used,
        reason = "Linux has had CLOCK_BOOTTIME since 2.6.39; leases have no other clock"
    )]
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME can be read");
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
    BootInstant(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Which boot that clock counts from.
pub(crate) fn boot_id() -> std::io::Result<BootId> {
    let text = std::fs::read_to_string(BOOT_ID_FILE)?;
    text.trim().replace('-', "").parse().map_err(std::io::Error::other)
}

/// Seconds since 1970 by the wall clock: for people to read, for no decision about a key.
pub(crate) fn unix_s() -> u64 {
    unix_ms() / 1_000
}

/// The same in milliseconds.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod simulated {
    //! A clock that a simulation sets, for its own thread.

    use std::cell::Cell;

    use units::BootInstant;

    thread_local! {
        pub(super) static NOW: Cell<Option<BootInstant>> = const { Cell::new(None) };
    }

    pub(crate) fn set(now: BootInstant) {
        NOW.set(Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_moves_forward_and_names_its_boot() {
        let first = now();
        assert!(now() >= first);
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_ne!(boot_id().unwrap(), BootId([0; 16]));
    }
}
