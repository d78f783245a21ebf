//! Every interleaving, within stated budgets, of what can happen to one lease: time passes, the node is stopped (SIGSTOP,
//! a suspend) and goes on, its timers run late or never, its challenges reach the keyholder in any order and more than
//! once, and every frame that the keyholder ever sent arrives at any later moment, in any order, as often as the budget
//! allows, in its own session and in the next. No choice is drawn by chance: the search goes every way from every state
//! and ends when there is no new one.
//!
//! In every state:
//! 1. The deadline is no later than the sending of an answered challenge and its lease, by the model's own book.
//! 2. It lies within the expiry that the keyholder recorded before it sent anything for the grant.
//! 3. A key that can be used now, whether or not a timer ran, is used before both.
//! 4. A challenge prolongs once, and only in its own session.
//! 5. Whatever the node does first at or past its deadline (its timers, an admission, a message of its session, a new
//!    session), the keys are gone after it.
//!
//! The wall clock is not among the choices because nothing takes it: the machines get boot time alone (their clippy.toml
//! forbids any other). A shell that counted on it, and four more that break the rules, must each be found.
//!
//! Found as well, when the machines themselves were changed by hand: an answered challenge taken again, a renewal counted
//! from the latest challenge, a message looked at past the deadline, a grant counted from its arrival, an admission that
//! does not look at the deadline.

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use lease::keyholder::{Challenged, KeyholderEvent, KeyholderSession, KeyholderSessionParams};
use lease::limits::{LEASE_MS_MIN, lease_with_drift_ms};
use lease::message::{StateVerdict, WipeCause, WipeRecord, WipeStages};
use lease::node::{
    EvidenceInput, NodeEffect, NodeLease, NodeNote, NodeSession, NodeSessionParams, WipeReport,
};
use units::{BootInstant, GrantId, VolumeId};

use crate::support::{
    LEASE_MS, VOLUME, admitted, envelope_key, keyholder_params, ms, node_lease, order, sent, unframe,
};

/// How far time moves at once: half of the shortest lease, past the interval at which such a lease's node asks again.
const TICK_MS: u64 = LEASE_MS_MIN / 2;

/// What a renewal may be good for.
const LEASES_MS: [u64; 2] = [LEASE_MS_MIN, LEASE_MS_MIN + TICK_MS];

const GRANT: GrantId = GrantId([1; 16]);

/// How much may happen in one history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    ticks: u8,
    stops: u8,
    /// Challenges that reach the keyholder.
    heard: u8,
    /// Frames that reach the node.
    delivered: u8,
    reconnects: u8,
}

/// The clock and the rules that the node's shell goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shell {
    Sound,
    /// Counts a renewal from its arrival.
    CountsFromArrival,
    /// Takes any renewal for the answer to its latest challenge.
    TakesOldAnswers,
    /// Reads a clock that does not run while the node is suspended.
    ClockStopsInSuspend,
    /// Reads a clock that somebody sets back.
    WallClock,
    /// Trusts its timer and does not look at the deadline when it uses a key.
    TimerAlone,
}

/// A challenge, and when it was really sent.
#[derive(Clone, Debug)]
struct Asked {
    session: u8,
    at_ms: u64,
    frame: Rc<Vec<u8>>,
}

/// A grant or a renewal that the keyholder sent, and to which challenge it is the answer.
#[derive(Clone, Debug)]
struct Answered {
    challenge: usize,
    lease_ms: u64,
    frame: Rc<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Tick,
    Stop,
    Continue,
    SetWallClockBack,
    Timers,
    Admit,
    Hear { challenge: usize, lease_ms: u64 },
    Deliver { answer: usize },
    Reconnect,
}

/// A history that breaks a rule.
#[derive(Debug)]
struct Breach(String);

#[derive(Clone)]
struct World {
    shell: Shell,
    left: Budget,
    truth_ms: u64,
    stopped: bool,
    /// What the shell's clock is behind boot time.
    behind_ms: u64,

    lease: NodeLease,
    node: NodeSession,
    session: u8,
    admitting: bool,
    has_key: bool,
    deadline: Option<BootInstant>,

    keyholder: KeyholderSession,
    recorded_until_ms: u64,

    asked: Vec<Asked>,
    answered: Vec<Answered>,
    /// By the book: the latest that a delivered answer allows.
    entitled_until_ms: u64,
    prolonged_by: BTreeSet<usize>,
}

impl World {
    fn new(shell: Shell, left: Budget) -> Self {
        let mut lease = node_lease();
        let params = NodeSessionParams { exporter: [0; 32], seed: [0; 32] };
        let node = NodeSession::new(&mut lease, ms(0), params);
        let mut world = Self {
            shell,
            left,
            truth_ms: 0,
            stopped: false,
            behind_ms: 0,
            lease,
            node,
            session: 0,
            admitting: false,
            has_key: false,
            deadline: None,
            keyholder: KeyholderSession::new(ms(0), keyholder_params()),
            recorded_until_ms: 0,
            asked: Vec::new(),
            answered: Vec::new(),
            entitled_until_ms: 0,
            prolonged_by: BTreeSet::new(),
        };
        world.connect();
        world.record(LEASE_MS_MIN);
        let order = lease::keyholder::GrantOrder { lease_ms: LEASE_MS_MIN, ..order(1, 8) };
        let sealed = |_: &lease::keyholder::SealRequest<'_>| Ok::<_, std::convert::Infallible>(vec![0; 8]);
        let frame = Rc::new(unframe(&world.keyholder.grant(order, sealed).unwrap()));
        world.answered.push(Answered { challenge: 0, lease_ms: LEASE_MS_MIN, frame });
        world
    }

    fn node_now(&self) -> BootInstant {
        ms(self.truth_ms.saturating_sub(self.behind_ms))
    }

    /// Hello and evidence on a new connection, whose evidence is its first challenge.
    fn connect(&mut self) {
        self.session += 1;
        let (exporter, challenge, seed) = ([self.session; 32], [self.session; 32], [self.session; 32]);
        let params = KeyholderSessionParams { exporter, challenge, ..keyholder_params() };
        self.keyholder = KeyholderSession::new(ms(self.truth_ms), params);
        let now = self.node_now();
        self.node = NodeSession::new(&mut self.lease, now, NodeSessionParams { exporter, seed });
        let hello = unframe(&self.keyholder.start().unwrap());
        let effects = self.node.on_frame(&mut self.lease, now, &hello).unwrap();
        // Evidence waits for what the session before was taking in.
        self.finish_admission();
        if effects != [NodeEffect::NeedEvidence] {
            return self.perform(effects);
        }
        let input = EvidenceInput { hygiene: String::new(), envelope_key: envelope_key(), attests: false };
        let effects = self.node.on_evidence(&mut self.lease, now, input).unwrap();
        let evidence = sent(&effects).remove(0);
        let event = self.keyholder.on_frame(ms(self.truth_ms), &evidence).unwrap();
        assert!(matches!(event, Some(KeyholderEvent::Evidence(_, None))));
        self.asked.push(Asked { session: self.session, at_ms: self.truth_ms, frame: Rc::new(evidence) });
    }

    /// What the keyholder makes durable before it sends.
    fn record(&mut self, lease_ms: u64) {
        self.recorded_until_ms = self.recorded_until_ms.max(self.truth_ms + lease_with_drift_ms(lease_ms));
    }

    fn perform(&mut self, effects: Vec<NodeEffect>) {
        for effect in effects {
            match effect {
                NodeEffect::Send(bytes) => self.on_sent(unframe(&bytes)),
                NodeEffect::AdmitGrant(_) => self.admitting = true,
                NodeEffect::SetDeadline(deadline) => self.deadline = deadline,
                NodeEffect::DropVolume { volume, grant, .. } => self.drop_key(volume, grant),
                NodeEffect::Wipe(cause) => self.wipe(cause),
                NodeEffect::NeedEvidence
                | NodeEffect::AdmitEpoch(_)
                | NodeEffect::NeedAttestation(_)
                | NodeEffect::OpenCredential(_)
                | NodeEffect::Note(_)
                | NodeEffect::Close => {}
            }
        }
    }

    fn on_sent(&mut self, frame: Vec<u8>) {
        const RENEWAL_CHALLENGE: u8 = 7;
        if frame[1] == RENEWAL_CHALLENGE {
            let (session, at_ms) = (self.session, self.truth_ms);
            self.asked.push(Asked { session, at_ms, frame: Rc::new(frame) });
        }
    }

    fn finish_admission(&mut self) {
        if !std::mem::take(&mut self.admitting) {
            return;
        }
        self.has_key = true;
        let now = self.node_now();
        let effects = self.node.on_admitted(&mut self.lease, now, VOLUME, GRANT, Ok(StateVerdict::First));
        self.perform(effects);
    }

    fn drop_key(&mut self, volume: VolumeId, grant: GrantId) {
        self.has_key = false;
        let record = WipeRecord { cause: WipeCause::NotRenewed, at: self.node_now(), generation: 0 };
        let report = WipeReport { record, stages: WipeStages::keys(1), more: false };
        let effects = self.node.on_dropped(&mut self.lease, volume, grant, &report);
        self.perform(effects);
    }

    fn wipe(&mut self, cause: WipeCause) {
        self.has_key = false;
        self.admitting = false;
        self.deadline = None;
        let record = WipeRecord { cause, at: self.node_now(), generation: 1 };
        let ended = self.lease.on_wiped(record);
        let report = WipeReport { record, stages: WipeStages::keys(1), more: false };
        let effects = self.node.on_wiped(&self.lease, &report, ended);
        self.perform(effects);
    }

    /// Everything that can happen next.
    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        let left = self.left;
        if left.ticks > 0 {
            actions.push(Action::Tick);
        }
        if self.stopped {
            actions.push(Action::Continue);
        } else {
            if left.stops > 0 {
                actions.push(Action::Stop);
            }
            actions.push(Action::Timers);
            if self.admitting {
                actions.push(Action::Admit);
            }
            if left.delivered > 0 {
                actions.extend((0..self.answered.len()).map(|answer| Action::Deliver { answer }));
            }
            if left.reconnects > 0 {
                actions.push(Action::Reconnect);
            }
        }
        if self.shell == Shell::WallClock && self.behind_ms == 0 {
            actions.push(Action::SetWallClockBack);
        }
        // The evidence of a session, its first challenge, has been heard when the session began.
        let heard_at_first =
            |index: usize| self.asked[..index].iter().all(|a| a.session != self.asked[index].session);
        if left.heard > 0 && self.keyholder.is_established() {
            for (challenge, asked) in self.asked.iter().enumerate() {
                if asked.session == self.session && !heard_at_first(challenge) {
                    actions.extend(LEASES_MS.map(|lease_ms| Action::Hear { challenge, lease_ms }));
                }
            }
        }
        actions
    }

    fn act(&mut self, action: Action) -> Result<(), Breach> {
        match action {
            Action::Tick => {
                self.left.ticks -= 1;
                self.truth_ms += TICK_MS;
                if self.stopped && self.shell == Shell::ClockStopsInSuspend {
                    self.behind_ms += TICK_MS;
                }
                return self.check();
            }
            Action::Stop => {
                self.left.stops -= 1;
                self.stopped = true;
            }
            Action::Continue => self.stopped = false,
            Action::SetWallClockBack => self.behind_ms = TICK_MS,
            Action::Hear { challenge, lease_ms } => self.hear(challenge, lease_ms),
            Action::Timers => {
                let now = self.node_now();
                let effects = self.lease.on_time(now);
                self.perform(effects);
                let effects = self.node.on_time(&mut self.lease, now);
                self.perform(effects);
                self.check_wiped("its timers")?;
            }
            Action::Admit => {
                self.finish_admission();
                self.check_wiped("an admission")?;
            }
            Action::Deliver { answer } => {
                self.left.delivered -= 1;
                // A session that is over looks at nothing; the deadline is then the timer's, and the gate's at each use.
                let listens = self.node.is_established();
                self.deliver(answer)?;
                if listens {
                    self.check_wiped("a message")?;
                }
            }
            Action::Reconnect => {
                self.left.reconnects -= 1;
                self.node.on_closed(&mut self.lease);
                self.connect();
                self.check_wiped("a new session")?;
            }
        }
        self.check()
    }

    fn hear(&mut self, challenge: usize, lease_ms: u64) {
        self.left.heard -= 1;
        let frame = Rc::clone(&self.asked[challenge].frame);
        let now = ms(self.truth_ms);
        let Some(KeyholderEvent::Challenged(challenged, _)) = self.keyholder.on_frame(now, &frame).unwrap()
        else {
            panic!("a challenge is a challenge");
        };
        let challenged: Challenged = challenged;
        self.record(lease_ms);
        let frame = Rc::new(unframe(&self.keyholder.renewal(challenged, lease_ms, vec![GRANT]).unwrap()));
        self.answered.push(Answered { challenge, lease_ms, frame });
    }

    fn deliver(&mut self, answer: usize) -> Result<(), Breach> {
        let Answered { challenge, lease_ms, frame } = self.answered[answer].clone();
        let asked = self.asked[challenge].clone();
        let held_until = |lease: &NodeLease| lease.held().next().map(|held| held.deadline);
        let before = held_until(&self.lease);
        if asked.session == self.session {
            self.entitled_until_ms = self.entitled_until_ms.max(asked.at_ms + lease_ms);
        }
        let now = self.node_now();
        // An error ends the session and changes nothing else.
        let effects = self.node.on_frame(&mut self.lease, now, &frame).unwrap_or_default();
        if effects.iter().any(|effect| matches!(effect, NodeEffect::AdmitGrant(_))) {
            assert_eq!(admitted(&effects).grant, GRANT);
        }
        let stale = effects.contains(&NodeEffect::Note(NodeNote::StaleRenewal));
        self.perform(effects);
        if before.is_some_and(|before| held_until(&self.lease).is_some_and(|after| after > before)) {
            if asked.session != self.session {
                return Err(Breach(format!("an answer of session {} prolonged in another", asked.session)));
            }
            if !self.prolonged_by.insert(challenge) {
                return Err(Breach(format!("challenge {challenge} prolonged twice")));
            }
            if self.shell == Shell::CountsFromArrival {
                self.deadline = Some(now.saturating_add_ms(lease_ms));
            }
        }
        if stale && self.has_key && self.shell == Shell::TakesOldAnswers {
            let latest = self.asked.last().map_or(0, |asked| asked.at_ms);
            self.deadline = self.deadline.max(Some(ms(latest + lease_ms)));
        }
        Ok(())
    }

    /// The node has just done something: if its time was over, the keys went first.
    fn check_wiped(&self, what: &str) -> Result<(), Breach> {
        let over = self.deadline.is_some_and(|deadline| self.node_now() >= deadline);
        if over && self.has_key {
            return Err(Breach(format!("after {what} past the deadline the key is still there")));
        }
        Ok(())
    }

    /// The rules that hold in every state.
    fn check(&self) -> Result<(), Breach> {
        if !self.has_key {
            return Ok(());
        }
        let entitled = ms(self.entitled_until_ms.min(self.recorded_until_ms));
        let deadline = self.deadline.ok_or_else(|| Breach("a key without a deadline".to_owned()))?;
        if deadline > entitled {
            let what = format!("deadline {deadline:?} past {entitled:?}");
            return Err(Breach(format!("{what}: recorded until {} ms", self.recorded_until_ms)));
        }
        // An I/O on the first instruction after a stop, before any timer.
        let usable = self.shell == Shell::TimerAlone || self.node_now() < deadline;
        if !self.stopped && usable && ms(self.truth_ms) >= entitled {
            return Err(Breach(format!("a key is used at {} ms, past {entitled:?}", self.truth_ms)));
        }
        Ok(())
    }

    /// What tells this state from every other.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.left, self.truth_ms, self.stopped, self.behind_ms, self.session).hash(&mut hasher);
        (self.admitting, self.has_key, self.deadline, self.recorded_until_ms).hash(&mut hasher);
        (self.entitled_until_ms, &self.prolonged_by).hash(&mut hasher);
        format!("{:?} {:?} {:?}", self.lease, self.node, self.keyholder).hash(&mut hasher);
        for asked in &self.asked {
            (asked.session, asked.at_ms).hash(&mut hasher);
        }
        // Answers are a set: which was made first makes no difference to who can deliver any of them.
        let answers: BTreeSet<_> = self.answered.iter().map(|a| (a.challenge, a.lease_ms)).collect();
        answers.hash(&mut hasher);
        hasher.finish()
    }
}

#[derive(Debug, Default)]
struct Explored {
    states: u64,
    steps: u64,
    /// Steps in which something that matters happened, so that an idle search does not pass.
    prolonged: u64,
    wiped: u64,
    stopped_past_deadline: u64,
}

/// Goes every way from every state; the first breach with the history that leads to it.
fn explore(shell: Shell, budget: Budget) -> (Explored, Option<(Breach, Vec<Action>)>) {
    let mut explored = Explored::default();
    let mut seen = HashSet::new();
    let mut open = vec![(World::new(shell, budget), Vec::new())];
    while let Some((world, history)) = open.pop() {
        for action in world.actions() {
            let mut next = world.clone();
            let mut history: Vec<Action> = history.clone();
            history.push(action);
            explored.steps += 1;
            if let Err(breach) = next.act(action) {
                return (explored, Some((breach, history)));
            }
            explored.prolonged += u64::from(next.prolonged_by.len() > world.prolonged_by.len());
            explored.wiped += u64::from(world.has_key && !next.has_key);
            let overdue = next.deadline.is_some_and(|deadline| ms(next.truth_ms) >= deadline);
            explored.stopped_past_deadline += u64::from(next.stopped && next.has_key && overdue);
            if seen.insert(next.fingerprint()) {
                explored.states += 1;
                open.push((next, history));
            }
        }
    }
    (explored, None)
}

/// One session, time for three leases.
const ONE_SESSION: Budget = Budget { ticks: 6, stops: 1, heard: 3, delivered: 3, reconnects: 0 };

/// The same under `make soak`: a minute and a half.
const ONE_SESSION_SOAK: Budget = Budget { stops: 2, delivered: 4, ..ONE_SESSION };

/// Enough for each of the broken shells.
const SMALL: Budget = Budget { ticks: 5, stops: 1, heard: 2, delivered: 3, reconnects: 0 };

/// Two sessions, whose messages may turn up in each other.
const TWO_SESSIONS: Budget = Budget { ticks: 5, stops: 1, heard: 2, delivered: 3, reconnects: 1 };

fn assert_sound(budget: Budget, states_min: u64) {
    let (explored, breach) = explore(Shell::Sound, budget);
    println!("{budget:?}: {explored:?}");
    if let Some((breach, history)) = breach {
        panic!("{} after {history:#?}", breach.0);
    }
    let Explored { states, prolonged, wiped, stopped_past_deadline, .. } = explored;
    assert!(states >= states_min, "{states} states: the search has become smaller");
    assert!([prolonged, wiped, stopped_past_deadline].iter().all(|count| *count >= 100), "idle");
}

#[test]
fn no_interleaving_within_a_session_stretches_a_lease() {
    assert_eq!(LEASE_MS % LEASE_MS_MIN, 0);
    let soak = std::env::var_os("NIGHTLATCH_SOAK_SECONDS").is_some();
    let (budget, states_min) = if soak { (ONE_SESSION_SOAK, 800_000) } else { (ONE_SESSION, 230_000) };
    assert_sound(budget, states_min);
}

#[test]
fn no_interleaving_across_two_sessions_stretches_a_lease() {
    // No session is established while a key of the one before is on its way.
    assert_sound(TWO_SESSIONS, 90_000);
}

#[test]
fn each_shell_that_breaks_a_rule_is_found() {
    for shell in [
        Shell::CountsFromArrival,
        Shell::TakesOldAnswers,
        Shell::ClockStopsInSuspend,
        Shell::WallClock,
        Shell::TimerAlone,
    ] {
        let (explored, breach) = explore(shell, SMALL);
        let (breach, history) = breach.unwrap_or_else(|| panic!("{shell:?} was not found: {explored:?}"));
        println!("{shell:?}: {} after {} steps of {history:?}", breach.0, history.len());
    }
}
