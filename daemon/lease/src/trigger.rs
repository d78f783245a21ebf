//! The trigger table: what makes keys go, what is done, and how they come back (DESIGN section 7).
//!
//! The node acts by it, the keyholder decides by it whether a key comes back by itself, and TRIGGERS.md is printed from
//! it: a test compares the two.
//!
//! Invariants:
//! - Every [`WipeCause`] has one row, in the order of the causes.
//! - A cause that somebody's hand or will may be behind latches; a cause that passes by itself does not.

use crate::message::{RepushRule, WipeCause};

/// What is done when a trigger fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Every key goes, at once.
    Wipe,
    /// Clients get some seconds to finish, then every key goes.
    DrainThenWipe,
    /// It is said in log, status and metrics.
    Report,
    /// One volume's key goes.
    DropOne,
}

impl Action {
    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wipe => "wipe",
            Self::DrainThenWipe => "drain, then wipe",
            Self::Report => "report",
            Self::DropOne => "drop that key",
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The cause, as it travels in evidence.
    pub cause: WipeCause,
    /// What the node hears or sees.
    pub event: &'static str,
    /// What is done, where the configuration does not say otherwise.
    pub action: Action,
    /// Whether the node's configuration may say otherwise.
    pub configurable: bool,
    /// How keys come back.
    pub repush: RepushRule,
    /// Why so.
    pub why: &'static str,
}

const fn fixed(
    cause: WipeCause,
    event: &'static str,
    action: Action,
    repush: RepushRule,
    why: &'static str,
) -> Row {
    Row { cause, event, action, configurable: false, repush, why }
}

const fn source(
    cause: WipeCause,
    event: &'static str,
    action: Action,
    repush: RepushRule,
    why: &'static str,
) -> Row {
    Row { cause, event, action, configurable: true, repush, why }
}

use Action::{DrainThenWipe, DropOne, Report, Wipe};
use RepushRule::{Latched, Policy};
use WipeCause as Cause;

/// The table.
pub const TABLE: &[Row] = &[
    fixed(Cause::PowerLoss, "SIGPWR", Wipe, Policy, "power comes back by itself"),
    fixed(
        Cause::PlannedStop,
        "SIGTERM, SIGINT",
        DrainThenWipe,
        Policy,
        "a person or the service manager meant it",
    ),
    fixed(Cause::LeaseExpired, "the lease's deadline", Wipe, Policy, "a network cut passes by itself"),
    fixed(Cause::Revoked, "revoke by a keyholder", Wipe, Latched, "a person decided it"),
    fixed(Cause::Lockdown, "lockdown by a keyholder", Wipe, Latched, "a person decided it"),
    fixed(Cause::Admin, "wipe by an administrator of the node", Wipe, Latched, "a person decided it"),
    source(
        Cause::Intrusion,
        "chassis sensor, management controller",
        Wipe,
        Latched,
        "somebody is at the machine",
    ),
    fixed(Cause::Watchdog, "a watchdog", Wipe, Latched, "the program hung: look first"),
    source(
        Cause::Hygiene,
        "a hygiene probe that was good is weak",
        Wipe,
        Latched,
        "a way for memory to leave the machine was opened",
    ),
    fixed(Cause::Fault, "the program finds itself broken", Wipe, Policy, "a restart mends it"),
    source(
        Cause::Clock,
        "the clock disagrees with the battery-backed one",
        Wipe,
        Latched,
        "the lease's promise does not hold there",
    ),
    fixed(Cause::Deleted, "the volume is deleted", DropOne, Latched, "there is nothing to come back to"),
    fixed(Cause::NotRenewed, "not named in a renewal", DropOne, Policy, "a newer session decides"),
    source(Cause::PowerLine, "GPIO power-fail line", Wipe, Policy, "power comes back by itself"),
    source(
        Cause::PowerSupply,
        "power_supply class: every supply offline",
        Wipe,
        Policy,
        "power comes back by itself",
    ),
    source(
        Cause::KernelEvent,
        "a kernel event that the configuration names",
        Wipe,
        Latched,
        "hardware came or went: look first",
    ),
    source(Cause::UpsOnBattery, "NUT or apcupsd: on battery", Wipe, Policy, "power comes back by itself"),
    source(Cause::UpsLowBattery, "NUT or apcupsd: battery low", Wipe, Policy, "power comes back by itself"),
    source(
        Cause::UpsForcedShutdown,
        "NUT or apcupsd: forced shutdown",
        Wipe,
        Policy,
        "power comes back by itself",
    ),
    source(
        Cause::MachineShutdown,
        "logind: shutdown or restart; power button",
        DrainThenWipe,
        Policy,
        "a person or the service manager meant it",
    ),
    source(Cause::MachineSleep, "logind: sleep", Wipe, Policy, "memory would outlive the lease"),
    source(Cause::BmcPower, "management controller: power going", Wipe, Policy, "power comes back by itself"),
    source(
        Cause::SourceLost,
        "a source of triggers cannot be heard",
        Report,
        Latched,
        "the next trigger would not be heard: look first",
    ),
];

/// The row of a cause.
pub fn row(cause: WipeCause) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.cause == cause)
}

/// The table as TRIGGERS.md shows it.
pub fn markdown() -> String {
    let mut text = String::from(
        "| cause | event | action | configurable | keys come back | why |\n|---|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let configurable = if row.configurable { "yes" } else { "no" };
        let repush = match row.repush {
            RepushRule::Policy => "by the node's push policy",
            RepushRule::Latched => "latched: when a security officer unlatches",
        };
        text.push_str(&format!(
            "| {} | {} | {} | {configurable} | {repush} | {} |\n",
            row.cause,
            row.event,
            row.action.name(),
            row.why
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_one_row_in_its_place() {
        let rows: Vec<_> = TABLE.iter().map(|row| row.cause).collect();
        assert_eq!(rows, Cause::ALL);
    }

    #[test]
    fn what_a_person_decided_or_may_be_behind_latches_and_power_does_not() {
        for cause in [Cause::Revoked, Cause::Lockdown, Cause::Admin, Cause::Intrusion, Cause::Hygiene] {
            assert_eq!(cause.repush_rule(), Latched, "{cause}");
        }
        for cause in [Cause::PowerLoss, Cause::PowerLine, Cause::UpsLowBattery, Cause::LeaseExpired] {
            assert_eq!(cause.repush_rule(), Policy, "{cause}");
        }
    }
}
