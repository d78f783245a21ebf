//! What a source can say, and what is to follow.

use std::time::Duration;

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// What a source can say. The text of each is its name in status and metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Condition { $($(#[$doc])* $name,)* }

        impl Condition {
            /// Every condition.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

conditions! {
    /// The power-fail line is active.
    PowerLine = "power-line";
    /// Every watched supply is without mains.
    PowerSupply = "power-supply";
    /// A kernel event that the configuration names.
    KernelEvent = "kernel-event";
    /// The UPS runs on its battery.
    UpsOnBattery = "ups-on-battery";
    /// The UPS's battery is nearly empty, or the UPS fell silent while on battery.
    UpsLowBattery = "ups-low-battery";
    /// The UPS's master has ordered everyone down.
    UpsForcedShutdown = "ups-forced-shutdown";
    /// The machine is about to shut down or restart.
    Shutdown = "machine-shutdown";
    /// The machine is about to sleep.
    Sleep = "machine-sleep";
    /// The chassis was opened.
    Intrusion = "intrusion";
    /// The management controller reports the power going.
    BmcPower = "bmc-power";
    /// The machine's clock disagrees with its battery-backed one.
    Clock = "clock";
    /// Memory hygiene got worse.
    Hygiene = "hygiene";
    /// The source itself cannot be heard.
    Lost = "source-lost";
}

impl Condition {
    pub(crate) const fn bit(self) -> u32 {
        1 << (self as u32)
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wipe now.
    Wipe,
    /// Give clients this long, then wipe.
    Drain(Duration),
    /// Say so, and nothing else.
    Report,
}

/// What follows a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What to do.
    pub action: Action,
    /// For how long the condition must hold first. Of an event without an end this is ignored.
    pub debounce: Duration,
}

impl Policy {
    /// At once.
    pub const WIPE: Self = Self { action: Action::Wipe, debounce: Duration::ZERO };
    /// Said, nothing else.
    pub const REPORT: Self = Self { action: Action::Report, debounce: Duration::ZERO };
}

/// A condition has held for as long as its policy asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fired {
    /// Which.
    pub condition: Condition,
    /// What to do.
    pub action: Action,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_has_a_bit_and_a_name_of_its_own() {
        let mut bits = 0;
        let mut names = std::collections::BTreeSet::new();
        for condition in Condition::ALL {
            assert_eq!(bits & condition.bit(), 0, "{condition:?}");
            bits |= condition.bit();
            assert!(names.insert(condition.name()), "{condition:?}");
        }
    }
}
