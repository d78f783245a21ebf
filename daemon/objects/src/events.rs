//! What happened to objects, kept for those who asked to be told of it until they were.
//!
//! A change and the events that it makes are one commit: what was acknowledged is told, after a crash too, and what never
//! happened is not. Each event waits for its destination, in the order of commits, until whoever delivers says that it was taken
//! ([`Store::settle_events`]); one that nobody takes becomes a dead letter, which stays until a person decides.
//!
//! The store knows neither what events are called nor where destinations are: the head says so with each call.

use serde::{Deserialize, Serialize};

use crate::buckets::BucketRef;
use crate::commit::{Dropped, Mutation};
use crate::error::StoreError;
use crate::index::{Changes, EventState};
use crate::limits::EVENTS_MOVED_MAX;
use crate::records::{BucketRecord, ETag, ObjectRecord};
use crate::store::{Store, now_ms, random_bytes};
use crate::version::{Deleted, VersionId, Versioning};

/// What a call did to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// There is a new newest version.
    Made,
    /// A version is gone for good.
    Removed,
    /// The newest version is hidden behind a delete marker.
    Hidden,
    /// What is kept beside the bytes of a version is another.
    Changed,
}

/// Who is to be told of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Of what.
    pub happened: Happened,
    /// What it is called then.
    pub event: &'static str,
    /// Whom.
    pub destination: String,
    /// On account of which of the bucket's settings.
    pub configuration: String,
}

/// Everybody who is to be told of what a call does, and who asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Nobody, mostly.
    pub to: Vec<Notice>,
    /// The user who asked.
    pub user: String,
    /// From where.
    pub address: String,
    /// The request's id.
    pub request: String,
}

/// Row of `events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Tells it from every other, however often it is delivered.
    pub id: u128,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What it is called.
    pub name: String,
    /// On account of which of the bucket's settings.
    pub configuration: String,
    /// The bucket.
    pub bucket: String,
    /// Its owner.
    pub owner: String,
    /// The object's key; empty where it is about the bucket.
    pub key: String,
    /// The object's size.
    pub bytes: u64,
    /// Its entity tag, where there is an object.
    pub etag: Option<ETag>,
    /// Which version it is about, in a bucket that keeps versions.
    pub version: Option<String>,
    /// Orders the events of a key.
    pub sequence: u64,
    /// The user who asked.
    pub user: String,
    /// From where.
    pub address: String,
    /// The request's id.
    pub request: String,
}

/// An event that waits, by its place in its destination's queue.
pub type WaitingEvent = (u64, Event);

/// How many events a destination has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// To be delivered.
    pub waiting: u64,
    /// That nobody took.
    pub dead: u64,
}

/// The object that something happened to.
pub(crate) struct About<'a> {
    pub(crate) bucket: (&'a str, &'a BucketRecord),
    pub(crate) key: &'a str,
    pub(crate) version: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) etag: Option<ETag>,
}

impl<'a> About<'a> {
    pub(crate) fn object(bucket: (&'a str, &'a BucketRecord), key: &'a str, record: &ObjectRecord) -> Self {
        let versioned = bucket.1.versioning != Versioning::Unversioned;
        let version = versioned.then(|| record.version.id().to_string());
        Self { bucket, key, version, bytes: record.bytes, etag: Some(record.etag) }
    }

    pub(crate) fn deleted(bucket: (&'a str, &'a BucketRecord), key: &'a str, deleted: &Deleted) -> Self {
        let version = deleted.version.as_ref().map(VersionId::to_string);
        Self { bucket, key, version, bytes: 0, etag: None }
    }
}

impl Notices {
    /// Puts down, as part of a change, whom to tell of what it does.
    pub(crate) fn put(
        &self,
        changes: &mut Changes<'_>,
        happened: Happened,
        about: &About<'_>,
    ) -> Result<(), StoreError> {
        let (name, bucket) = about.bucket;
        for notice in self.to.iter().filter(|notice| notice.happened == happened) {
            let event = Event {
                id: u128::from_le_bytes(random_bytes()),
                at_ms: now_ms(),
                name: notice.event.to_owned(),
                configuration: notice.configuration.clone(),
                bucket: name.to_owned(),
                owner: bucket.owner.clone(),
                key: about.key.to_owned(),
                bytes: about.bytes,
                etag: about.etag,
                version: about.version.clone(),
                sequence: 0,
                user: self.user.clone(),
                address: self.address.clone(),
                request: self.request.clone(),
            };
            changes.add_event(&notice.destination, event)?;
        }
        Ok(())
    }
}

impl Store {
    /// The first events that wait for a destination, at most `limit`.
    ///
    /// # Errors
    /// Outages only.
    pub fn waiting_events(&self, destination: &str, limit: usize) -> Result<Vec<WaitingEvent>, StoreError> {
        self.shared.read(|snapshot| snapshot.events(EventState::Waiting, destination, limit))
    }

    /// A destination's first dead letters, at most `limit`.
    ///
    /// # Errors
    /// Outages only.
    pub fn dead_events(&self, destination: &str, limit: usize) -> Result<Vec<WaitingEvent>, StoreError> {
        self.shared.read(|snapshot| snapshot.events(EventState::Dead, destination, limit))
    }

    /// How many events each destination has that has any, by name.
    ///
    /// # Errors
    /// Outages only.
    pub fn event_counts(&self) -> Result<Vec<(String, EventCounts)>, StoreError> {
        self.shared.read(|snapshot| snapshot.event_counts())
    }

    /// Keeps events for these destinations from now on, and for no others: until it is called, for all.
    pub fn keep_events_for(&self, destinations: impl IntoIterator<Item = String>) {
        self.shared.index.set_destinations(destinations.into_iter().collect());
    }

    /// Events since the store was opened for which there was no room or no destination: nobody is told of them.
    pub fn events_lost(&self) -> u64 {
        self.shared.index.events_lost()
    }

    /// Grows with every commit after which more events wait than before.
    pub fn events_added(&self) -> u64 {
        self.shared.index.events_added()
    }

    /// Takes events out of a destination's queue: it has them, or they become dead letters.
    ///
    /// # Errors
    /// Outages only.
    pub fn settle_events(&self, destination: &str, places: Vec<u64>, dead: bool) -> Result<(), StoreError> {
        let to = dead.then_some(EventState::Dead);
        let (destination, from) = (destination.to_owned(), EventState::Waiting);
        self.shared.submit(MoveEvents { destination, places: Some(places), from, to }).map(drop)
    }

    /// Puts all dead letters of a destination back into its queue; how many there were.
    ///
    /// # Errors
    /// Outages only.
    pub fn retry_events(&self, destination: &str) -> Result<u64, StoreError> {
        self.move_all(destination, EventState::Dead, Some(EventState::Waiting))
    }

    /// Drops all dead letters of a destination, and what waits for it where it is gone for good; how many there were.
    ///
    /// # Errors
    /// Outages only.
    pub fn discard_events(&self, destination: &str, waiting: bool) -> Result<u64, StoreError> {
        let dead = self.move_all(destination, EventState::Dead, None)?;
        Ok(dead + if waiting { self.move_all(destination, EventState::Waiting, None)? } else { 0 })
    }

    /// Step by step: a commit stays short.
    fn move_all(
        &self,
        destination: &str,
        from: EventState,
        to: Option<EventState>,
    ) -> Result<u64, StoreError> {
        let mut moved = 0;
        loop {
            let destination = destination.to_owned();
            match self.shared.submit(MoveEvents { destination, places: None, from, to })? {
                0 => return Ok(moved),
                step => moved += step,
            }
        }
    }

    /// Tells whoever is in `notices` of something about a bucket that changes nothing in it, as what happened to none of its objects:
    /// [`Happened::Changed`].
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    pub fn note(&self, bucket: impl Into<BucketRef>, notices: Notices) -> Result<(), StoreError> {
        self.shared.submit(Note { bucket: bucket.into(), notices })
    }
}

struct MoveEvents {
    destination: String,
    /// The first of them, where none are named.
    places: Option<Vec<u64>>,
    from: EventState,
    to: Option<EventState>,
}

impl Mutation for MoveEvents {
    type Output = u64;
    const NEEDS_ROOM: bool = false;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<u64, StoreError> {
        let places = match &self.places {
            Some(places) => places.clone(),
            None => changes.event_places(self.from, &self.destination, EVENTS_MOVED_MAX)?,
        };
        let mut moved = 0;
        for place in places {
            moved += u64::from(changes.move_event((self.from, self.to), &self.destination, place)?);
        }
        Ok(moved)
    }

    fn committed(self) {}
}

struct Note {
    bucket: BucketRef,
    notices: Notices,
}

impl Mutation for Note {
    type Output = ();
    const NEEDS_ROOM: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        let bucket = changes.bucket(&self.bucket)?;
        let about =
            About { bucket: (self.bucket.name(), &bucket), key: "", version: None, bytes: 0, etag: None };
        self.notices.put(changes, Happened::Changed, &about)
    }

    fn committed(self) {}
}
