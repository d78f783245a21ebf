//! The table of events that wait for somebody to take them, and of those that nobody took.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition};

use super::rows::{Changes, Opened, Snapshot, put};
use crate::error::StoreError;
use crate::events::{Event, EventCounts, WaitingEvent};
use crate::limits::{EVENTS_ENSURED, EVENTS_MAX};
use crate::records;
use crate::store::now_ms;

/// State, destination, place in its queue.
pub(super) type EventKey = (u8, &'static str, u64);
pub(super) const EVENTS: TableDefinition<EventKey, &[u8]> = TableDefinition::new("events");

/// What becomes of an event next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventState {
    /// It is to be delivered.
    Waiting = 0,
    /// A person decides.
    Dead = 1,
}

/// Who events are kept for, and how many there are.
#[derive(Debug, Default)]
pub(super) struct Destinations(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// All that there are; `None`: any.
    named: Option<BTreeSet<String>>,
    /// Rows of those that were asked about, as the last commit left them.
    rows: BTreeMap<String, u64>,
}

impl Destinations {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_named(&self, named: BTreeSet<String>) {
        self.known().named = Some(named);
    }

    /// What a commit changed.
    pub(super) fn add(&self, changes: &BTreeMap<String, i64>) {
        let mut known = self.known();
        for (destination, change) in changes {
            if let Some(rows) = known.rows.get_mut(destination) {
                *rows = rows.saturating_add_signed(*change);
            }
        }
    }

    /// What is there may be otherwise than it was counted.
    pub(super) fn forget_rows(&self) {
        self.known().rows.clear();
    }
}

impl Snapshot {
    /// The first events of a destination, at most `limit`.
    pub(crate) fn events(
        &self,
        state: EventState,
        destination: &str,
        limit: usize,
    ) -> Result<Vec<WaitingEvent>, StoreError> {
        let table = self.event_table()?;
        let view = self.view(&table);
        let range = (state as u8, destination, 0)..=(state as u8, destination, u64::MAX);
        let mut events = Vec::new();
        for row in view.explain(view.table.range(range))?.take(limit) {
            let (key, row) = view.explain(row)?;
            events.push((key.value().2, records::decode(row.value())?));
        }
        Ok(events)
    }

    /// Rows by destination.
    pub(crate) fn event_counts(&self) -> Result<Vec<(String, EventCounts)>, StoreError> {
        let table = self.event_table()?;
        let view = self.view(&table);
        let mut counts = BTreeMap::<String, EventCounts>::new();
        for row in view.explain(view.table.iter())? {
            let (key, _) = view.explain(row)?;
            let (state, destination, _) = key.value();
            let count = match counts.get_mut(destination) {
                Some(count) => count,
                None => counts.entry(destination.to_owned()).or_default(),
            };
            match state == EventState::Dead as u8 {
                true => count.dead += 1,
                false => count.waiting += 1,
            }
        }
        Ok(counts.into_iter().collect())
    }

    fn event_table(&self) -> Opened<EventKey> {
        self.open(EVENTS)
    }
}

impl Changes<'_> {
    /// Adds an event at the end of a destination's queue. Where there is no such destination, or no room, it is lost, and counted: who
    /// wants to be told must not keep others from deleting, nor from being told.
    pub(crate) fn add_event(&mut self, destination: &str, mut event: Event) -> Result<(), StoreError> {
        if !self.takes_event(destination)? {
            self.events_lost += 1;
            return Ok(());
        }
        event.sequence = self.next_place(EventState::Waiting, destination)?;
        let key = (EventState::Waiting as u8, destination, event.sequence);
        self.written += put(self.file, &mut self.events, key, &records::encode(&event))?;
        self.events_added += 1;
        self.count_event(destination, 1);
        Ok(())
    }

    fn takes_event(&self, destination: &str) -> Result<bool, StoreError> {
        let is_named =
            self.destinations.known().named.as_ref().is_none_or(|named| named.contains(destination));
        if !self.takes_events || !is_named {
            return Ok(false);
        }
        let all = self.view(&self.events).explain(self.events.len())?;
        // Counting a destination's takes as long as there are many of them.
        Ok(all < EVENTS_MAX || self.events_of(destination)? < EVENTS_ENSURED)
    }

    fn count_event(&mut self, destination: &str, change: i64) {
        if let Some(count) = self.event_changes.get_mut(destination) {
            *count += change;
            return;
        }
        self.event_changes.insert(destination.to_owned(), change);
    }

    /// Rows of a destination, with what was changed so far. They are counted once.
    fn events_of(&self, destination: &str) -> Result<u64, StoreError> {
        let changed = self.event_changes.get(destination).copied().unwrap_or_default();
        if let Some(rows) = self.destinations.known().rows.get(destination) {
            return Ok(rows.saturating_add_signed(changed));
        }
        let view = self.view(&self.events);
        let mut rows = 0_u64;
        for state in [EventState::Waiting, EventState::Dead] {
            let range = (state as u8, destination, 0)..=(state as u8, destination, u64::MAX);
            for row in view.explain(view.table.range(range))? {
                view.explain(row)?;
                rows += 1;
            }
        }
        let committed = rows.saturating_add_signed(-changed);
        self.destinations.known().rows.insert(destination.to_owned(), committed);
        Ok(rows)
    }

    /// Moves an event to the end of the queue of another state, or out; whether it was there.
    pub(crate) fn move_event(
        &mut self,
        (from, to): (EventState, Option<EventState>),
        destination: &str,
        place: u64,
    ) -> Result<bool, StoreError> {
        let file = self.file;
        let fault = |error: redb::StorageError| super::explain(file, error.into());
        let taken = self.events.remove((from as u8, destination, place)).map_err(fault)?;
        let Some(row) = taken.map(|row| row.value().to_vec()) else { return Ok(false) };
        self.removed += 1;
        self.count_event(destination, -1);
        if let Some(to) = to {
            let key = (to as u8, destination, self.next_place(to, destination)?);
            self.written += put(self.file, &mut self.events, key, &row)?;
            self.events_added += u64::from(to == EventState::Waiting);
            self.count_event(destination, 1);
        }
        Ok(true)
    }

    /// The first places of a destination's queue.
    pub(crate) fn event_places(
        &self,
        state: EventState,
        destination: &str,
        limit: usize,
    ) -> Result<Vec<u64>, StoreError> {
        let view = self.view(&self.events);
        let range = (state as u8, destination, 0)..=(state as u8, destination, u64::MAX);
        view.explain(view.table.range(range))?
            .take(limit)
            .map(|row| Ok(view.explain(row)?.0.value().2))
            .collect()
    }

    /// Behind the last; the time in microseconds where that is later, so that no place is given twice.
    fn next_place(&self, state: EventState, destination: &str) -> Result<u64, StoreError> {
        let view = self.view(&self.events);
        let range = (state as u8, destination, 0)..=(state as u8, destination, u64::MAX);
        let last = view.explain(view.table.range(range))?.next_back();
        let last = last.map(|row| view.explain(row)).transpose()?.map_or(0, |(key, _)| key.value().2);
        Ok(now_ms().saturating_mul(1000).max(last.saturating_add(1)))
    }
}
