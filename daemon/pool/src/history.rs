//! Whether a pool is in the state it was last known in, or in a later one that came of it.
//!
//! A state's head (`digest.rs`) is told to the keyholder with every lease. When a key comes back, what the device holds must
//! contain the head that was told last, or be later. What is later came of it if each batch since that changes anything of the
//! key's domain has the word of somebody who held that key: a **vouch**, over everything up to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};

use units::DomainId;

use crate::StateHead;
use crate::allocator::Account;
use crate::commit::lock;
use crate::log::VouchMac;

/// Heads that are remembered as told: a keyholder knows one of the last few.
const TOLD_MAX: usize = 4096;

/// Who has a volume's key and can give its word for a state, without which nobody can make or check it.
pub trait Witness: Send + Sync {
    /// The key's word for this state; `None` where the key is held no more.
    fn vouch(&self, state: &StateHead) -> Option<[u8; 16]>;
}

/// How a pool's state stands to the one that was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pool's format keeps no state (versions before 5).
    NotKept,
    /// Nothing was told before.
    First,
    /// The state that was told, or one that came of it with the key's word for every change to the volume's data since.
    Continues,
    /// As [`Verdict::Continues`], but so many batches that change the volume's data have no such word: they were made while the
    /// key was not held, or by somebody else.
    Unvouched { batches: u64 },
    /// Later than what was told, and the log reaches back neither to that nor to the key's word for anything later.
    Unconnected,
    /// Older than what was told: the device was wound back, or what it had made durable is lost.
    Older,
    /// Not older, and what was told is not in it: another history.
    Other,
    /// Tables or digests are not those of the last checkpoint.
    Altered,
}

/// A batch of the log, as opening found it.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) state: StateHead,
    /// What the vouches are for.
    pub(crate) vouched: StateHead,
    pub(crate) vouches: Vec<VouchMac>,
    pub(crate) touches: Touches,
}

/// Whose data a batch changes.
#[derive(Debug)]
pub(crate) enum Touches {
    /// It frees what nobody can tell any more whose it was.
    Anybody,
    Domains(BTreeSet<DomainId>),
}

/// What the device held when the pool was opened.
#[derive(Debug)]
pub(crate) struct AtOpening {
    /// The state that the log begins from.
    pub(crate) start: StateHead,
    pub(crate) notes: Vec<Note>,
    pub(crate) altered: bool,
}

impl AtOpening {
    fn end(&self) -> StateHead {
        self.notes.last().map_or(self.start, |note| note.state)
    }

    fn judge(
        &self,
        domain: DomainId,
        told: StateHead,
        is_word: impl Fn(&StateHead, &VouchMac) -> bool,
    ) -> Verdict {
        let at_that_count = if self.start.count == told.count {
            Some(self.start)
        } else {
            self.notes.iter().map(|note| note.state).find(|state| state.count == told.count)
        };
        if at_that_count.is_some_and(|state| state != told) {
            return Verdict::Other;
        }
        let has_word = |note: &&Note| note.vouches.iter().any(|mac| is_word(&note.vouched, mac));
        let word = self.notes.iter().rev().find(has_word).map(|note| note.state.count);
        let Some(known) = at_that_count.map(|state| state.count).max(word) else {
            return Verdict::Unconnected;
        };
        let touched = |note: &&Note| match &note.touches {
            Touches::Anybody => true,
            Touches::Domains(domains) => domains.contains(&domain),
        };
        match self.notes.iter().filter(|note| note.state.count > known).filter(touched).count() {
            0 => Verdict::Continues,
            batches => Verdict::Unvouched { batches: batches as u64 },
        }
    }
}

/// Whose word a batch needs.
#[derive(Debug)]
pub(crate) enum Whose {
    All,
    Some(Vec<Account>),
}

struct Attached {
    account: Account,
    witness: Arc<dyn Witness>,
}

/// The states of an open pool.
pub(crate) struct History {
    /// `None` of a pool that keeps none.
    opened: Option<AtOpening>,
    /// By volume slot.
    attached: Mutex<BTreeMap<u32, Attached>>,
    now: Mutex<Now>,
}

struct Now {
    /// Durable.
    state: StateHead,
    told: VecDeque<StateHead>,
    /// What had been told before this opening, as the first key said that came.
    told_before: Option<StateHead>,
    /// Whose data has been judged since the opening.
    judged: BTreeSet<DomainId>,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("state", &lock(&self.now).state).finish_non_exhaustive()
    }
}

impl History {
    pub(crate) fn new(opened: Option<AtOpening>) -> Self {
        let state = opened.as_ref().map_or(StateHead::BEGINNING, AtOpening::end);
        Self {
            opened,
            attached: Mutex::default(),
            now: Mutex::new(Now { state, told: VecDeque::new(), told_before: None, judged: BTreeSet::new() }),
        }
    }

    /// This is durable.
    pub(crate) fn reached(&self, state: StateHead) {
        lock(&self.now).state = state;
    }

    /// The state to tell: it is durable.
    pub(crate) fn tell(&self) -> Option<StateHead> {
        self.opened.as_ref()?;
        let mut now = lock(&self.now);
        let state = now.state;
        if now.told.back() != Some(&state) {
            now.told.push_back(state);
        }
        if now.told.len() > TOLD_MAX {
            now.told.pop_front();
        }
        Some(state)
    }

    /// How what there is stands to what was told last.
    pub(crate) fn judge(
        &self,
        domain: DomainId,
        told: Option<StateHead>,
        is_word: impl Fn(&StateHead, &VouchMac) -> bool,
    ) -> Verdict {
        let Some(opened) = &self.opened else {
            // Whoever makes a pool look like one of an older format takes its state away.
            return if told.is_some() { Verdict::Other } else { Verdict::NotKept };
        };
        if opened.altered {
            return Verdict::Altered;
        }
        let Some(told) = told else { return Verdict::First };
        let mut now = lock(&self.now);
        let before = if now.told.contains(&told) {
            // Another key's volume has been judged, and this program has told since: what this one's data has to do with is
            // what was told before.
            if !now.judged.insert(domain) {
                return Verdict::Continues;
            }
            match now.told_before {
                Some(before) => before,
                None => return Verdict::First,
            }
        } else if told.count > now.state.count {
            return Verdict::Older;
        } else if told.count > opened.end().count {
            // Not told by this program, which made every state since.
            return Verdict::Other;
        } else {
            now.told_before.get_or_insert(told);
            now.judged.insert(domain);
            told
        };
        drop(now);
        opened.judge(domain, before, is_word)
    }

    pub(crate) fn attach(&self, slot: u32, account: Account, witness: Arc<dyn Witness>) {
        lock(&self.attached).insert(slot, Attached { account, witness });
    }

    /// Nobody vouches for a volume that is gone: its slot is the next one's.
    pub(crate) fn detach(&self, slot: u32) {
        lock(&self.attached).remove(&slot);
    }

    /// How many may vouch.
    pub(crate) fn witnesses(&self) -> usize {
        lock(&self.attached).len()
    }

    /// The words for a state of those whose it is.
    pub(crate) fn vouches(&self, whose: &Whose, state: &StateHead) -> Vec<(u32, VouchMac)> {
        let asked: Vec<(u32, Arc<dyn Witness>)> = lock(&self.attached)
            .iter()
            .filter(|(_, attached)| match whose {
                Whose::All => true,
                Whose::Some(accounts) => accounts.contains(&attached.account),
            })
            .map(|(slot, attached)| (*slot, Arc::clone(&attached.witness)))
            .collect();
        asked.into_iter().filter_map(|(slot, witness)| Some((slot, witness.vouch(state)?))).collect()
    }
}
