//! The table of events that wait for somebody to take them, and of those that nobody took.

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition};

use super::rows::{Changes, Opened, Snapshot, put};
use crate::error::StoreError;
use crate::events::{Event, EventCounts, WaitingEvent};
use crate::limits::EVENTS_MAX;
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
        let mut counts = std::collections::BTreeMap::<String, EventCounts>::new();
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
    /// Adds an event at the end of a destination's queue. Where there is no room it is lost, and counted: who wants to be told must
    /// not keep others from deleting.
    pub(crate) fn add_event(&mut self, destination: &str, mut event: Event) -> Result<(), StoreError> {
        let held = self.view(&self.events).explain(self.events.len())?;
        if !self.takes_events || held >= EVENTS_MAX {
            self.events_lost += 1;
            return Ok(());
        }
        event.sequence = self.next_place(EventState::Waiting, destination)?;
        let key = (EventState::Waiting as u8, destination, event.sequence);
        self.written += put(self.file, &mut self.events, key, &records::encode(&event))?;
        self.events_added += 1;
        Ok(())
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
        if let Some(to) = to {
            let key = (to as u8, destination, self.next_place(to, destination)?);
            self.written += put(self.file, &mut self.events, key, &row)?;
            self.events_added += u64::from(to == EventState::Waiting);
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
