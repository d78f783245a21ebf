//! The machine's parts, and what works in the background.

use serde::{Deserialize, Serialize};
use units::BootInstant;

/// What the machine is and how its parts fare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// When it was read, on CLOCK_BOOTTIME, nanoseconds.
    pub read_boot_ns: BootInstant,
    /// What it is.
    pub inventory: health::Inventory,
    /// How its parts fare.
    pub readings: health::Readings,
    /// What somebody should look after.
    pub findings: Vec<health::Finding>,
}

/// Asks for the light at a disk's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locate {
    /// Whether it is to be on.
    pub on: bool,
}

/// The light is as was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// The disk.
    pub disk: String,
    /// Whether the light is on.
    pub on: bool,
}

/// Something that works in the background.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// What it does, as in `scrub-0`.
    pub name: String,
    /// When it last gave a sign of life, on CLOCK_BOOTTIME, nanoseconds.
    pub beat_boot_ns: BootInstant,
    /// It should have given another since.
    pub stalled: bool,
}
