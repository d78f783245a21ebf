//! Where a node hears that power, trust or the machine itself is going: one source a file.
//!
//! ```text
//!   fast: gpio, button, bmc, uevent,     a file descriptor each; the wiper's own thread reads them
//!         power_supply
//!   slow: power_supply, nut, apcupsd,    asked or listened to on a thread each, by [`watch`]
//!         logind, chassis, clock
//!                │
//!            Monitor (debounce, policy) ── Fired ── the node's wiper
//!                └── SourceState ── status and metrics
//!   watchdog: fed by a slow source's thread while the wiper answers
//! ```
//!
//! Invariants:
//! - A source says what it reads ([`Condition`] on or off); what follows is its [`Policy`]'s matter, and the node's.
//! - Between an event and what [`Monitor`] makes of it a fast source neither allocates nor takes a lock.
//! - A source that cannot be read is never silently dead: [`Condition::Lost`] is a condition like the others, with a
//!   policy of its own.
//! - What comes from outside is parsed with limits, and is refused and counted where it is not what it claims to be.
//! - Every source has a twin that reads a recorded tree or recorded events. A twin says so in its state.
//!
//! What it is not: it knows no key, wipes nothing and starts no thread.

#![expect(
    unsafe_code,
    reason = "the ioctls of GPIO lines, management controllers and watchdogs, and descriptors that the kernel hands over"
)]

mod apcupsd;
mod bmc;
mod button;
mod chassis;
mod clock;
mod condition;
mod dbus;
mod gpio;
mod logind;
mod monitor;
mod nut;
mod power_supply;
mod slow;
mod uevent;
mod watchdog;

pub use apcupsd::{Apcupsd, ApcupsdSpec};
pub use bmc::{Bmc, SEL_RECORD_BYTES, sel_record};
pub use button::{INPUT_EVENT_BYTES, PowerButton, power_key_record};
pub use chassis::{Chassis, intrusion_alarms};
pub use clock::ClockWatch;
pub use condition::{Action, Condition, Fired, Policy};
pub use gpio::{ActiveLevel, Bias, EVENT_BYTES, GpioLine, LineSpec, event_record};
pub use logind::{Gate, Logind};
pub use monitor::{Monitor, SourceState};
pub use nut::{Nut, NutLogin, NutSpec};
pub use power_supply::{SupplyEvents, SupplyFiles};
pub use slow::{Slow, SourceError, Stop, watch};
pub use uevent::{KernelEvents, Pattern};
pub use watchdog::{Vital, Watchdog};

use std::os::fd::BorrowedFd;

use units::BootInstant;

/// A source that is read by the thread that wipes.
pub trait Fast: std::fmt::Debug + Send {
    /// What to wait on.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Reads all there is and tells the monitor. Neither blocks, allocates nor locks.
    ///
    /// # Errors
    /// Where the source has ended; it is not to be read again.
    fn read(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), nix::errno::Errno>;
}
