//! One keyholder's view of the store that keyholders share.
//!
//! Invariants:
//! - A value is written only over the revision at which it was last read or written here, so of two keyholders one writes.
//! - Every write also writes this keyholder's own value, over the revision that it had. Nobody else writes that one: a store that
//!   was set back to a backup has an older one, and takes nothing from a keyholder that remembers.
//! - What this keyholder last wrote there is remembered in a file of its own before a new grant leaves and with every ledger, so
//!   that a restart does not take a store that was set back for the right one.
//! - A write whose answer was lost counts as not done here; the next look shows what became of it, as if somebody else had written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use units::{BootInstant, NodeId};

use super::kv::{Item, Kv, KvError, Seen, Write, Written};
use super::wire::{self, LEDGER, LeaseValue, LinkValue, MemberValue, Named, STORE, StoreValue};
use crate::clock;
use crate::durable::{self, OldContent, StorageError};
use crate::records::{Body, LeaseRecord};
use crate::store::{LEASES_FILE, LEDGER_FILE, RESERVE_BYTES, Room, StoreError};

/// What was last written to the store, and to which.
const MARK_FILE: &str = "store-mark";

const MARK_BYTES_MAX: u64 = 1024;

/// Values in one write; etcd takes 128 operations.
const BATCH_MAX: usize = 100;

/// Own writes that met another's hand on this keyholder's own value, with a look between them, before that is believed.
const CONFLICTS_MAX: u32 = 3;

/// What is needed to reach the store.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) kv: Arc<dyn Kv>,
    /// This keyholder's administrative port, as others reach it.
    pub(crate) address: String,
    pub(crate) ahead_ms: u64,
}

/// Which store it was, and when this keyholder last wrote to it something that must not be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    store: [u8; 16],
    own_revision: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// It has not answered since this program was started.
    Unheard,
    /// It has no ledger.
    Empty,
    Joined,
    Distrusted(String),
}

/// What is new in the store, for those whom it concerns.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    pub(crate) ledger: Option<Vec<u8>>,
    pub(crate) items: Vec<(Named, Item)>,
    /// What is not there any more.
    pub(crate) gone: Vec<Named>,
}

/// The view.
#[derive(Debug)]
pub(crate) struct Shared {
    access: Access,
    name: String,
    dir: PathBuf,
    mark: Option<Mark>,
    phase: Phase,
    /// Up to here everything was taken in.
    revision: u64,
    /// At which each value was last read or written.
    known: BTreeMap<String, u64>,
    /// Somebody deleted something: only a look at everything shows what.
    reread: bool,
    /// The lease records as the store has them.
    stored: Body,
    own: MemberValue,
    conflicts: u32,
    /// Why it did not answer, the last time that it was asked.
    away: Option<String>,
}

impl Shared {
    pub(crate) fn open(access: Access, name: &str, dir: &Path, empty: Body) -> Result<Self, StorageError> {
        let file = dir.join(MARK_FILE);
        let mark = match durable::read(&file, MARK_BYTES_MAX)? {
            Some(bytes) => Some(wire::decode(&bytes).map_err(|wire::Unreadable| StorageError {
                operation: "understand",
                path: file,
                source: std::io::Error::from(std::io::ErrorKind::InvalidData),
            })?),
            None => None,
        };
        let mut incarnation = [0; 16];
        getrandom::fill(&mut incarnation).map_err(|error| StorageError {
            operation: "name a run in",
            path: dir.to_owned(),
            source: std::io::Error::other(error.to_string()),
        })?;
        let own = MemberValue {
            incarnation,
            beat: 0,
            unsealed: false,
            address: access.address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(Self {
            access,
            name: name.to_owned(),
            dir: dir.to_owned(),
            mark,
            phase: Phase::Unheard,
            revision: 0,
            known: BTreeMap::new(),
            reread: false,
            stored: empty,
            own,
            conflicts: 0,
            away: None,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn ahead_ms(&self) -> u64 {
        self.access.ahead_ms
    }

    /// What others see of this keyholder.
    pub(crate) fn own(&self) -> &MemberValue {
        &self.own
    }

    /// This run of this keyholder.
    pub(crate) fn incarnation(&self) -> [u8; 16] {
        self.own.incarnation
    }

    /// The store, and from where on it is to be read: both without holding anybody up.
    pub(crate) fn to_read(&self) -> (Arc<dyn Kv>, u64) {
        (Arc::clone(&self.access.kv), if self.reread { 0 } else { self.revision })
    }

    /// Whether a store has been known before: then the records of leases are there, and this keyholder's own file says nothing.
    pub(crate) fn has_mark(&self) -> bool {
        self.mark.is_some()
    }

    pub(crate) fn is_joined(&self) -> bool {
        self.phase == Phase::Joined
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.phase == Phase::Empty
    }

    /// Why it is not trusted, where it is not.
    pub(crate) fn distrust_reason(&self) -> Option<&str> {
        match &self.phase {
            Phase::Distrusted(why) => Some(why),
            _ => None,
        }
    }

    /// Why it did not answer when it was last asked.
    pub(crate) fn away_reason(&self) -> Option<&str> {
        match self.phase {
            Phase::Unheard => Some(self.away.as_deref().unwrap_or("it has not answered yet")),
            _ => self.away.as_deref(),
        }
    }

    pub(crate) fn is_usable(&self) -> Result<(), StoreError> {
        match &self.phase {
            Phase::Joined => match &self.away {
                None => Ok(()),
                Some(why) => Err(StoreError::Away { why: why.clone() }),
            },
            Phase::Unheard => {
                Err(StoreError::Away { why: self.away_reason().unwrap_or_default().to_owned() })
            }
            Phase::Empty => Err(StoreError::Away { why: "it has no ledger yet".to_owned() }),
            Phase::Distrusted(why) => Err(StoreError::Distrusted { why: why.clone() }),
        }
    }

    /// It did not answer.
    pub(crate) fn note_away(&mut self, error: &KvError) {
        self.away = Some(error.to_string());
    }

    /// From now on nothing is granted or written.
    pub(crate) fn distrust(&mut self, why: impl Into<String>) -> StoreError {
        let why = why.into();
        if self.distrust_reason().is_none() {
            tracing::error!(%why, "the store that keyholders share is not trusted any more");
        }
        self.phase = Phase::Distrusted(why.clone());
        StoreError::Distrusted { why }
    }

    /// Takes in what a look at the store found, which asked for what is newer than `since`. What is older than what is known here is
    /// left out: the look began before it was written.
    pub(crate) fn take_in(&mut self, since: u64, seen: Seen) -> Result<Fresh, StoreError> {
        self.away = None;
        let is_whole = self.reread && since == 0;
        if is_whole {
            self.reread = false;
        }
        // A later look was taken in before this one. Where a look at everything is older for another reason, the next one tells it.
        if (is_whole && seen.revision < self.revision) || (!is_whole && since != self.revision) {
            return Ok(Fresh::default());
        }
        self.is_the_store_it_was(&seen, is_whole)?;
        let mut fresh = Fresh::default();
        if is_whole {
            fresh.gone = self.forget_gone(&seen);
        }
        let (revision, count) = (seen.revision, seen.count);
        let own_name = wire::member_name(&self.name);
        for item in seen.items {
            if self.known.get(&item.name).is_some_and(|known| item.revision <= *known) {
                continue;
            }
            self.known.insert(item.name.clone(), item.revision);
            if self.phase == Phase::Empty {
                continue;
            }
            match Named::of(&item.name) {
                Named::Ledger => fresh.ledger = Some(item.value),
                Named::Member(_) if item.name == own_name => self.note_own(&item)?,
                named => fresh.items.push((named, item)),
            }
        }
        // While there is no ledger everything is read again each time, and taken in with it.
        if self.phase == Phase::Joined {
            self.revision = revision;
            self.reread = count < self.known.len();
        }
        Ok(fresh)
    }

    /// Forgets what was known and is not among all that was seen, but for this keyholder's own value, which nobody else may touch.
    fn forget_gone(&mut self, seen: &Seen) -> Vec<Named> {
        let there: BTreeSet<&str> = seen.items.iter().map(|item| item.name.as_str()).collect();
        let own_name = wire::member_name(&self.name);
        let mut gone = Vec::new();
        self.known.retain(|name, known| {
            // What was written here since that look began is not in it.
            let is_there = there.contains(name.as_str()) || *known > seen.revision || *name == own_name;
            if !is_there {
                gone.push(Named::of(name));
            }
            is_there
        });
        for named in &gone {
            match named {
                Named::Lease(volume) => drop(self.stored.records.remove(volume)),
                Named::State(pool) => drop(self.stored.states.remove(pool)),
                _ => {}
            }
        }
        gone
    }

    fn is_the_store_it_was(&mut self, seen: &Seen, is_whole: bool) -> Result<(), StoreError> {
        if seen.revision < self.revision {
            let why = format!("its revision was {} and is {}: it was set back", self.revision, seen.revision);
            return Err(self.distrust(why));
        }
        let find = |name: &str| seen.items.iter().find(|item| item.name == name);
        match &self.phase {
            Phase::Joined if is_whole && (find(STORE).is_none() || find(LEDGER).is_none()) => {
                return Err(self.distrust("it is empty, and was not before"));
            }
            Phase::Joined => return Ok(()),
            Phase::Distrusted(why) => return Err(StoreError::Distrusted { why: why.clone() }),
            Phase::Unheard | Phase::Empty => {}
        }
        let store = find(STORE).map(|item| wire::decode::<StoreValue>(&item.value));
        match (store, self.mark) {
            (None, None) => self.phase = Phase::Empty,
            (None, Some(_)) => return Err(self.distrust("it is empty, and was not before")),
            (Some(Err(wire::Unreadable)), _) => {
                return Err(self
                    .distrust("what it is does not read; is this program older than another keyholder's?"));
            }
            (Some(Ok(store)), Some(mark)) if store.id != mark.store => {
                return Err(self.distrust("it is another one"));
            }
            (Some(Ok(store)), mark) => {
                let own = find(&wire::member_name(&self.name)).map_or(0, |item| item.revision);
                let wanted = mark.map_or(0, |mark| mark.own_revision);
                if own < wanted {
                    let why = format!(
                        "this keyholder wrote to it at revision {wanted}, and it knows of revision {own}: it was set back"
                    );
                    return Err(self.distrust(why));
                }
                if mark.is_none() {
                    self.write_mark(Mark { store: store.id, own_revision: own })?;
                }
                if self.phase == Phase::Empty {
                    self.known.clear();
                }
                self.phase = Phase::Joined;
            }
        }
        Ok(())
    }

    /// This keyholder's own value, as the store has it: from a run before this one, or by a write of this one whose answer was lost.
    fn note_own(&mut self, item: &Item) -> Result<(), StoreError> {
        let ours = wire::decode::<MemberValue>(&item.value)
            .is_ok_and(|value| value.incarnation == self.own.incarnation);
        if !ours && self.own.beat > 0 {
            let why = format!("another keyholder calls itself {}; give each a name of its own", self.name);
            return Err(self.distrust(why));
        }
        self.conflicts = 0;
        Ok(())
    }

    fn write_mark(&mut self, mark: Mark) -> Result<(), StoreError> {
        if self.mark.is_none() {
            // Nobody keeps it up from now on: whoever takes the mark away again must find the records lost, not old.
            durable::remove(&self.dir.join(LEASES_FILE))?;
        }
        durable::replace(&self.dir.join(MARK_FILE), &wire::encode(&mark), OldContent::Leave)?;
        self.mark = Some(mark);
        Ok(())
    }

    /// Remembers that the store had this keyholder's last write.
    fn remember(&mut self) -> Result<(), StoreError> {
        let own_revision = self.known.get(&wire::member_name(&self.name)).copied().unwrap_or(0);
        match self.mark {
            Some(mark) if own_revision > mark.own_revision => self.write_mark(Mark { own_revision, ..mark }),
            _ => Ok(()),
        }
    }

    fn known_revision(&self, name: &str) -> u64 {
        self.known.get(name).copied().unwrap_or(0)
    }

    /// Writes these over what is known of them, and this keyholder's own value with them.
    fn write(&mut self, puts: Vec<(String, Vec<u8>)>, deletes: Vec<String>) -> Result<(), StoreError> {
        self.write_with_ballast(puts, deletes, 0)
    }

    fn write_with_ballast(
        &mut self,
        puts: Vec<(String, Vec<u8>)>,
        deletes: Vec<String>,
        ballast_bytes: usize,
    ) -> Result<(), StoreError> {
        let own_name = wire::member_name(&self.name);
        let own = MemberValue { beat: self.own.beat + 1, ..self.own.clone() };
        let mut write = Write { expected: Vec::new(), puts, deletes, ballast_bytes };
        write.puts.push((own_name, wire::encode(&own)));
        let names = write.puts.iter().map(|(name, _)| name).chain(&write.deletes);
        write.expected = names.map(|name| (name.clone(), self.known_revision(name))).collect();
        let expected = write.expected.clone();
        let deleted = write.deletes.clone();
        // Also where the answer is lost: it may be the store's.
        self.own = own;
        let written = self.access.kv.write(write).map_err(|error| match error {
            KvError::Unavailable(why) => {
                self.away = Some(why.clone());
                StoreError::Away { why }
            }
            error => StoreError::Refused { why: error.to_string() },
        })?;
        match written {
            // A write comes after all that was seen before it, or the store has forgotten some of that.
            Written::At(revision) if revision <= self.revision => {
                let why =
                    format!("its revision was {} and a write is {revision}: it was set back", self.revision);
                Err(self.distrust(why))
            }
            Written::At(revision) => {
                self.known.extend(expected.into_iter().map(|(name, _)| (name, revision)));
                for name in deleted {
                    self.known.remove(&name);
                }
                self.conflicts = 0;
                Ok(())
            }
            // Of its own value alone: nobody may be quicker with that.
            Written::Conflict if expected.len() == 1 => {
                self.conflicts += 1;
                if self.conflicts < CONFLICTS_MAX {
                    return Err(StoreError::Changed);
                }
                Err(self.distrust("what this keyholder wrote to it is not there any more: it was set back"))
            }
            Written::Conflict => Err(StoreError::Changed),
        }
    }

    /// Says that this keyholder lives.
    pub(crate) fn beat(&mut self, unsealed: bool) -> Result<(), StoreError> {
        self.is_usable()?;
        self.own.unsealed = unsealed;
        self.write(Vec::new(), Vec::new())
    }

    /// Puts a ledger in the place of the one known.
    pub(crate) fn put_ledger(&mut self, bytes: &[u8], room: Room) -> Result<(), StoreError> {
        self.is_usable()?;
        let ballast_bytes = if room == Room::Ordinary { RESERVE_BYTES } else { 0 };
        self.write_with_ballast(vec![(LEDGER.to_owned(), bytes.to_vec())], Vec::new(), ballast_bytes)?;
        // Done: whoever took it for not done would write another ledger under the same serial.
        let kept = self.remember().and_then(|()| self.keep_copy(bytes));
        kept.map_err(|error| {
            self.distrust(format!("the ledger that was written to it could not be kept here: {error}"))
        })
    }

    /// A copy of the newest ledger beside this keyholder: what a store that was lost or set back is made good from.
    pub(crate) fn keep_copy(&self, bytes: &[u8]) -> Result<(), StoreError> {
        Ok(durable::replace(&self.dir.join(LEDGER_FILE), bytes, OldContent::Overwrite)?)
    }

    /// Brings an empty store its first ledger, and the records of leases that run. The ledger comes last, in one write with the
    /// store's name: until then there is no store for anybody.
    pub(crate) fn found(&mut self, ledger: &[u8], body: &Body) -> Result<(), StoreError> {
        if self.phase != Phase::Empty {
            return Err(StoreError::Changed);
        }
        self.put_changed(body)?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| StoreError::Refused { why: error.to_string() })?;
        let puts =
            vec![(STORE.to_owned(), wire::encode(&StoreValue { id })), (LEDGER.to_owned(), ledger.to_vec())];
        self.write(puts, Vec::new())?;
        self.phase = Phase::Joined;
        let own_revision = self.known_revision(&wire::member_name(&self.name));
        self.write_mark(Mark { store: id, own_revision })
    }

    /// Writes the lease records that are not what the store has.
    pub(crate) fn put_leases(&mut self, body: &Body) -> Result<(), StoreError> {
        if !self.stored.differs_from(body) {
            return Ok(());
        }
        self.is_usable()?;
        if self.put_changed(body)? { self.remember() } else { Ok(()) }
    }

    /// Returns whether any of it was a new grant.
    fn put_changed(&mut self, body: &Body) -> Result<bool, StoreError> {
        let now = clock::now();
        let mut changes: Vec<Change> = Vec::new();
        for (volume, record) in &body.records {
            if self.stored.records.get(volume).is_none_or(|stored| !stored.is_recorded_as(record)) {
                changes.push(Change::Lease(*volume, *record));
            }
        }
        let gone = self.stored.records.keys().filter(|volume| !body.records.contains_key(volume));
        changes.extend(gone.map(|volume| Change::NoLease(*volume)));
        for (pool, state) in &body.states {
            if self.stored.states.get(pool) != Some(state) {
                changes.push(Change::State(*state));
            }
        }
        let gone = self.stored.states.keys().filter(|pool| !body.states.contains_key(pool));
        changes.extend(gone.map(|pool| Change::NoState(*pool)));
        let mut granted = false;
        for batch in changes.chunks(BATCH_MAX) {
            let mut puts = Vec::new();
            let mut deletes = Vec::new();
            for change in batch {
                match change {
                    Change::Lease(volume, record) => {
                        puts.push((wire::lease_name(*volume), wire::encode(&self.lease_value(record, now))));
                    }
                    Change::State(state) => puts.push((wire::state_name(state.pool), wire::encode(state))),
                    Change::NoLease(volume) => deletes.push(wire::lease_name(*volume)),
                    Change::NoState(pool) => deletes.push(wire::state_name(*pool)),
                }
            }
            self.write(puts, deletes)?;
            for change in batch {
                granted |= self.note_stored(change);
            }
        }
        Ok(granted)
    }

    /// Returns whether it was a new grant.
    fn note_stored(&mut self, change: &Change) -> bool {
        let stored = &mut self.stored;
        match change {
            Change::Lease(volume, record) => {
                let before = stored.records.insert(*volume, *record);
                return before.is_none_or(|before| before.grant != record.grant);
            }
            Change::NoLease(volume) => {
                stored.records.remove(volume);
            }
            Change::State(state) => {
                stored.states.insert(state.pool, *state);
            }
            Change::NoState(pool) => {
                stored.states.remove(pool);
            }
        }
        false
    }

    fn lease_value(&self, record: &LeaseRecord, now: BootInstant) -> LeaseValue {
        LeaseValue {
            node: record.node,
            grant: record.grant,
            fence: record.fence,
            lease_ms: record.lease_ms,
            // Rounded up: what is left of a millisecond counts.
            left_ms: record.expires.map(|expires| expires.0.saturating_sub(now.0).div_ceil(1_000_000)),
            pool: record.pool,
            by: self.name.clone(),
        }
    }

    /// What the store has of the lease records now, as it was seen.
    pub(crate) fn stored_mut(&mut self) -> &mut Body {
        &mut self.stored
    }

    /// Gives the link to a node to a keyholder, over the revision at which it was last seen.
    pub(crate) fn put_link(&mut self, node: NodeId, link: &LinkValue) -> Result<(), StoreError> {
        self.is_usable()?;
        self.write(vec![(wire::link_name(node), wire::encode(link))], Vec::new())
    }

    pub(crate) fn forget_history(&mut self) -> Result<(), StoreError> {
        let through = self.known_revision(LEDGER);
        self.access.kv.forget_before(through).map_err(|error| StoreError::Refused { why: error.to_string() })
    }
}

enum Change {
    Lease(units::VolumeId, LeaseRecord),
    NoLease(units::VolumeId),
    State(lease::message::PoolState),
    NoState(units::PoolId),
}
