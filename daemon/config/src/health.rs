//! The `[health]` table: how the machine's parts are watched.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use health::Boards;
use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::tls::resolve;

/// From what a test can wait for to what still notices a fan that stopped.
const INTERVAL_MS: RangeInclusive<u64> = 100..=600_000;

const USED_PERCENT: RangeInclusive<u8> = 1..=200;

const CELSIUS: RangeInclusive<i64> = 30..=120;

const CORRECTED: RangeInclusive<u64> = 1..=1_000_000;

/// As many interfaces as are looked at.
const LINKS_MAX: usize = 256;

/// How the machine's parts are watched. Everything has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// Below this are `sys` and `proc`: the machine's, or recorded.
    pub root: PathBuf,
    /// Where `nightlatch-smart` leaves what disks answered.
    pub captures: PathBuf,
    /// How often everything is read.
    pub interval_ms: u64,
    /// A board profile by its name; the one that says most about the machine otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub board: Option<String>,
    /// A board profile of the site's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub board_file: Option<PathBuf>,
    /// From so much of a disk's endurance on, in percent, it is to be replaced.
    pub disk_used_percent: u8,
    /// From this temperature on a disk is too hot, in degrees Celsius.
    pub disk_celsius: i64,
    /// From so many corrected errors of a memory controller in a week on its module is to be replaced.
    pub memory_corrected: u64,
    /// Interfaces that must have a link; without any, every card that had one since the start.
    pub links: Vec<String>,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            root: "/".into(),
            captures: "/run/nightlatch-smart".into(),
            interval_ms: 30_000,
            board: None,
            board_file: None,
            disk_used_percent: 90,
            disk_celsius: 70,
            memory_corrected: 100,
            links: Vec::new(),
        }
    }
}

impl HealthConfig {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn resolve(&mut self, dir: &Path) {
        resolve(&mut self.root, dir);
        resolve(&mut self.captures, dir);
        self.board_file.iter_mut().for_each(|file| resolve(file, dir));
    }

    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        within("health.interval_ms", self.interval_ms, &INTERVAL_MS)?;
        within("health.disk_used_percent", self.disk_used_percent, &USED_PERCENT)?;
        within("health.disk_celsius", self.disk_celsius, &CELSIUS)?;
        within("health.memory_corrected", self.memory_corrected, &CORRECTED)?;
        if self.links.len() > LINKS_MAX {
            return Err(Invalid::new(
                "health.links",
                format!("{} interfaces are named", self.links.len()),
                format!("name {LINKS_MAX} at most"),
            ));
        }
        self.validate_board()
    }

    fn validate_board(&self) -> Result<(), Invalid> {
        let Some(name) = &self.board else { return Ok(()) };
        if self.board_file.is_some() {
            return Err(Invalid::new(
                "health.board",
                "a profile is named, and a file with another",
                "remove board or board_file",
            ));
        }
        let shipped = Boards::shipped()
            .map_err(|error| Invalid::new("health.board", error.to_string(), "report this"))?;
        if shipped.named(name).is_none() {
            let names: Vec<&str> = shipped.names().collect();
            return Err(Invalid::new(
                "health.board",
                format!("there is no board profile `{name}`"),
                format!("give one of {}, or a file of your own with board_file", names.join(", ")),
            ));
        }
        Ok(())
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    given: T,
    range: &RangeInclusive<T>,
) -> Result<(), Invalid> {
    if range.contains(&given) {
        return Ok(());
    }
    let (least, most) = (range.start(), range.end());
    Err(Invalid::new(key, format!("{given} is out of range"), format!("give {least} to {most}")))
}
