//! From readings to what is done: each condition's debounce and policy, and the state that status shows.
//!
//! Invariants:
//! - A condition fires once for each time that it comes on and stays on for its debounce; it fires again only after it
//!   has been off.
//! - Nothing here allocates, locks or reads a clock after it was made, except [`Monitor::on_trouble`] and
//!   [`SourceState::trouble`], which no event passes through.
//! - A condition whose policy wipes stands in the way of new keys for as long as it is on ([`SourceState::standing`]).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use units::BootInstant;

use crate::condition::{Action, Condition, Fired, Policy};

/// What everyone may see of a source.
#[derive(Debug)]
pub struct SourceState {
    name: String,
    kind: &'static str,
    twin: bool,
    active: AtomicU32,
    standing: AtomicU32,
    fired: AtomicU64,
    refused: AtomicU64,
    /// CLOCK_BOOTTIME in nanoseconds; 0 before the first reading.
    heard: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl SourceState {
    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its kind, as the configuration's table is called.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Whether it reads recorded events instead of the machine's.
    pub fn is_twin(&self) -> bool {
        self.twin
    }

    /// The conditions that are on, debounced.
    pub fn active(&self) -> impl Iterator<Item = Condition> {
        let bits = self.active.load(Ordering::SeqCst);
        Condition::ALL.iter().copied().filter(move |condition| bits & condition.bit() != 0)
    }

    /// A condition that is on and whose policy takes keys away: none should come in meanwhile.
    pub fn standing(&self) -> Option<Condition> {
        let bits = self.standing.load(Ordering::SeqCst);
        Condition::ALL.iter().copied().find(|condition| bits & condition.bit() != 0)
    }

    /// Whether it is heard.
    pub fn is_lost(&self) -> bool {
        self.trouble().is_some() || self.active.load(Ordering::SeqCst) & Condition::Lost.bit() != 0
    }

    /// How often a condition has fired.
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }

    /// Messages that were not what they claimed to be.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// When it was last heard.
    pub fn heard(&self) -> Option<BootInstant> {
        Some(self.heard.load(Ordering::Relaxed)).filter(|heard| *heard != 0).map(BootInstant)
    }

    /// Why it cannot be heard.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Off,
    /// On since then, and not yet for long enough.
    Since(BootInstant),
    Fired,
    /// Happened, and has no end that would be read.
    Happened,
}

#[derive(Debug)]
struct Watch {
    condition: Condition,
    policy: Policy,
    phase: Phase,
}

impl Watch {
    fn due(&self) -> Option<BootInstant> {
        match self.phase {
            Phase::Since(since) => {
                let debounce = u64::try_from(self.policy.debounce.as_nanos()).unwrap_or(u64::MAX);
                Some(BootInstant(since.0.saturating_add(debounce)))
            }
            Phase::Happened => Some(BootInstant(0)),
            Phase::Off | Phase::Fired => None,
        }
    }
}

/// One source's conditions.
#[derive(Debug)]
pub struct Monitor {
    watches: Vec<Watch>,
    state: Arc<SourceState>,
}

impl Monitor {
    /// A monitor of the conditions that have a policy; others are ignored when they are read.
    pub fn new(
        name: impl Into<String>,
        kind: &'static str,
        twin: bool,
        policies: &[(Condition, Policy)],
    ) -> Self {
        let watch = |(condition, policy): &(Condition, Policy)| Watch {
            condition: *condition,
            policy: *policy,
            phase: Phase::Off,
        };
        Self {
            watches: policies.iter().map(watch).collect(),
            state: Arc::new(SourceState {
                name: name.into(),
                kind,
                twin,
                active: AtomicU32::new(0),
                standing: AtomicU32::new(0),
                fired: AtomicU64::new(0),
                refused: AtomicU64::new(0),
                heard: AtomicU64::new(0),
                trouble: Mutex::new(None),
            }),
        }
    }

    /// What everyone may see.
    pub fn state(&self) -> &Arc<SourceState> {
        &self.state
    }

    /// The source answered.
    pub fn on_heard(&mut self, now: BootInstant) {
        self.state.heard.store(now.0.max(1), Ordering::Relaxed);
    }

    /// The source was read: the condition is on, or off.
    pub fn on_reading(&mut self, now: BootInstant, condition: Condition, on: bool) {
        let Some(watch) = self.watches.iter_mut().find(|watch| watch.condition == condition) else { return };
        match (on, watch.phase) {
            (true, Phase::Off) => watch.phase = Phase::Since(now),
            (false, Phase::Since(_) | Phase::Fired | Phase::Happened) => {
                watch.phase = Phase::Off;
                self.state.active.fetch_and(!condition.bit(), Ordering::SeqCst);
                self.state.standing.fetch_and(!condition.bit(), Ordering::SeqCst);
            }
            (true, Phase::Since(_) | Phase::Fired | Phase::Happened) | (false, Phase::Off) => {}
        }
    }

    /// Something happened that has no end.
    pub fn on_event(&mut self, condition: Condition) {
        if let Some(watch) = self.watches.iter_mut().find(|watch| watch.condition == condition) {
            watch.phase = Phase::Happened;
        }
    }

    /// A message was not what it claimed to be.
    pub fn on_refused(&mut self) {
        self.state.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The source could not be read, for this reason; `None` where it could.
    pub fn on_trouble(&mut self, now: BootInstant, trouble: Option<String>) {
        self.on_reading(now, Condition::Lost, trouble.is_some());
        *self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// When to ask [`Self::next_fired`] again even if nothing is read.
    pub fn due(&self) -> Option<BootInstant> {
        self.watches.iter().filter_map(Watch::due).min()
    }

    /// A condition that has held for long enough by now. To be asked until it says `None`.
    pub fn next_fired(&mut self, now: BootInstant) -> Option<Fired> {
        let watch = self.watches.iter_mut().find(|watch| watch.due().is_some_and(|due| due <= now))?;
        let event = matches!(watch.phase, Phase::Happened);
        watch.phase = if event { Phase::Off } else { Phase::Fired };
        let fired = Fired { condition: watch.condition, action: watch.policy.action };
        self.state.fired.fetch_add(1, Ordering::Relaxed);
        if event {
            return Some(fired);
        }
        if fired.action != Action::Report {
            self.state.standing.fetch_or(fired.condition.bit(), Ordering::SeqCst);
        }
        self.state.active.fetch_or(fired.condition.bit(), Ordering::SeqCst);
        // A UPS that falls silent while on battery: its last word was that time is running out.
        if fired.condition == Condition::Lost && self.is_on(Condition::UpsOnBattery) {
            self.on_reading(now, Condition::UpsLowBattery, true);
        }
        Some(fired)
    }

    /// Whether a condition was on when it was last read, for long enough or not.
    fn is_on(&self, condition: Condition) -> bool {
        let is_on = |watch: &Watch| !matches!(watch.phase, Phase::Off);
        self.watches.iter().any(|watch| watch.condition == condition && is_on(watch))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DEBOUNCE_MS: u64 = 50;

    fn ms(ms: u64) -> BootInstant {
        BootInstant(ms * 1_000_000)
    }

    fn monitor(action: Action) -> Monitor {
        let policy = Policy { action, debounce: Duration::from_millis(DEBOUNCE_MS) };
        Monitor::new("test", "test", false, &[(Condition::PowerLine, policy)])
    }

    fn active(monitor: &Monitor) -> Vec<Condition> {
        monitor.state().active().collect()
    }

    #[test]
    fn a_condition_fires_once_when_it_has_held_for_its_debounce() {
        let mut monitor = monitor(Action::Wipe);
        monitor.on_reading(ms(10), Condition::PowerLine, true);
        assert_eq!(monitor.due(), Some(ms(60)));
        assert_eq!(monitor.next_fired(BootInstant(ms(60).0 - 1)), None);
        assert_eq!(monitor.state().standing(), None);
        let fired = Fired { condition: Condition::PowerLine, action: Action::Wipe };
        assert_eq!(monitor.next_fired(ms(60)), Some(fired));
        assert_eq!(monitor.next_fired(ms(1000)), None);
        monitor.on_reading(ms(1001), Condition::PowerLine, true);
        assert_eq!((monitor.next_fired(ms(9000)), monitor.due()), (None, None));
        assert_eq!(monitor.state().standing(), Some(Condition::PowerLine));
        monitor.on_reading(ms(9001), Condition::PowerLine, false);
        assert_eq!((active(&monitor), monitor.state().standing()), (vec![], None));
        monitor.on_reading(ms(9002), Condition::PowerLine, true);
        assert_eq!(monitor.next_fired(ms(9052)), Some(fired));
        assert_eq!(monitor.state().fired(), 2);
    }

    #[test]
    fn a_bounce_shorter_than_the_debounce_fires_nothing() {
        let mut monitor = monitor(Action::Wipe);
        for start in (0..1000).step_by(100) {
            monitor.on_reading(ms(start), Condition::PowerLine, true);
            assert_eq!(monitor.next_fired(ms(start + DEBOUNCE_MS - 1)), None);
            monitor.on_reading(ms(start + DEBOUNCE_MS - 1), Condition::PowerLine, false);
            assert_eq!(monitor.next_fired(ms(start + 99)), None);
        }
        assert_eq!(monitor.state().fired(), 0);
    }

    #[test]
    fn a_repeated_reading_does_not_start_the_debounce_anew() {
        let mut monitor = monitor(Action::Wipe);
        for at in 0..DEBOUNCE_MS {
            monitor.on_reading(ms(at), Condition::PowerLine, true);
            assert_eq!(monitor.next_fired(ms(at)), None);
        }
        assert!(monitor.next_fired(ms(DEBOUNCE_MS)).is_some());
    }

    #[test]
    fn what_is_only_reported_stands_in_nobodys_way() {
        let mut monitor = monitor(Action::Report);
        monitor.on_reading(ms(0), Condition::PowerLine, true);
        assert_eq!(monitor.next_fired(ms(50)).map(|fired| fired.action), Some(Action::Report));
        assert_eq!((active(&monitor), monitor.state().standing()), (vec![Condition::PowerLine], None));
    }

    #[test]
    fn what_has_no_policy_is_ignored() {
        let mut monitor = monitor(Action::Wipe);
        monitor.on_reading(ms(0), Condition::Intrusion, true);
        monitor.on_event(Condition::KernelEvent);
        assert_eq!(monitor.next_fired(ms(1000)), None);
    }

    #[test]
    fn an_event_fires_each_time_at_once_and_is_not_on_afterwards() {
        let mut monitor = monitor(Action::Wipe);
        for round in 1..=2 {
            monitor.on_event(Condition::PowerLine);
            assert!(monitor.next_fired(ms(0)).is_some());
            assert_eq!((monitor.next_fired(ms(1000)), monitor.state().fired()), (None, round));
            assert_eq!((active(&monitor), monitor.state().standing()), (vec![], None));
        }
    }

    #[test]
    fn a_ups_that_falls_silent_on_battery_counts_as_nearly_empty() {
        let lost = Policy { debounce: Duration::from_millis(10), ..Policy::REPORT };
        let policies = [
            (Condition::UpsOnBattery, Policy::REPORT),
            (Condition::UpsLowBattery, Policy::WIPE),
            (Condition::Lost, lost),
        ];
        let late = Policy { debounce: Duration::from_secs(60), ..Policy::REPORT };
        let of_long = [(Condition::UpsOnBattery, late), policies[1], policies[2]];
        let low = Some(Condition::UpsLowBattery);
        let cases =
            [(policies, true, low), (policies, false, None), (of_long, true, low), (of_long, false, None)];
        for (policies, on_battery, expected) in cases {
            let mut monitor = Monitor::new("ups", "nut", false, &policies);
            monitor.on_reading(ms(0), Condition::UpsOnBattery, on_battery);
            while monitor.next_fired(ms(0)).is_some() {}
            monitor.on_trouble(ms(1), Some("no answer".into()));
            assert_eq!(monitor.next_fired(ms(10)), None, "silent, not yet for long");
            assert!(monitor.state().is_lost());
            assert_eq!(monitor.next_fired(ms(11)).map(|fired| fired.condition), Some(Condition::Lost));
            assert_eq!(monitor.next_fired(ms(11)).map(|fired| fired.condition), expected);
        }
    }
}
