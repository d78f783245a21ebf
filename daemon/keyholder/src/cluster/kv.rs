//! The store that keyholders share, as they see it: values under names, each with the revision at which it was last written.

/// A value as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
    /// When it was last written; revisions grow with every write to the store.
    pub(crate) revision: u64,
}

/// What a look at the store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What was written after the revision that was asked for, in no order.
    pub(crate) items: Vec<Item>,
    /// The store's revision when it looked.
    pub(crate) revision: u64,
    /// How many values it had then, whenever they were written: by fewer than are known some were deleted.
    pub(crate) count: usize,
}

/// Why the store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KvError {
    /// No quorum of the store answered. A write may have been done all the same.
    #[error("no quorum of the store answers: {0}")]
    Unavailable(String),
    /// It answered something that makes no sense.
    #[error("the store answers what is not understood: {0}")]
    Malformed(String),
    /// It refuses.
    #[error("the store refuses: {0}")]
    Refused(String),
}

/// One write: all of it or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Write {
    /// Names, and the revision at which each was last written for all that the writer knows; 0 where there is none.
    pub(crate) expected: Vec<(String, u64)>,
    pub(crate) puts: Vec<(String, Vec<u8>)>,
    pub(crate) deletes: Vec<String>,
    /// The store refuses writes past a size that only it knows. This one is refused by so many bytes earlier.
    pub(crate) ballast_bytes: usize,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is durable at this revision.
    At(u64),
    /// Nothing was written: one of the names was written by somebody else.
    Conflict,
}

/// The store. Reads and writes are linearizable: what a read does not show had not been written when it began.
pub(crate) trait Kv: std::fmt::Debug + Send + Sync {
    /// Everything that was written after `since`, deletions apart.
    fn read(&self, since: u64) -> Result<Seen, KvError>;

    /// Writes, if nothing that is `expected` has changed.
    fn write(&self, write: Write) -> Result<Written, KvError>;

    /// Forgets what values were before the revision, as far as the store can.
    fn forget_before(&self, revision: u64) -> Result<(), KvError>;
}

#[cfg(test)]
pub(crate) mod simulated {
    //! A store in memory, that can be cut off, lose answers, and be set back to a backup.

    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Debug, Default)]
    pub(crate) struct Content {
        values: BTreeMap<String, (Vec<u8>, u64)>,
        revision: u64,
        write_bytes_max: Option<usize>,
    }

    /// The store of all keyholders.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct SimulatedStore(Arc<Mutex<Content>>);

    impl SimulatedStore {
        pub(crate) fn backup(&self) -> Content {
            self.0.lock().unwrap().clone()
        }

        pub(crate) fn restore(&self, backup: Content) {
            *self.0.lock().unwrap() = backup;
        }

        pub(crate) fn limit_writes(&self, bytes_max: usize) {
            self.0.lock().unwrap().write_bytes_max = Some(bytes_max);
        }

        pub(crate) fn value(&self, name: &str) -> Option<Vec<u8>> {
            self.0.lock().unwrap().values.get(name).map(|(value, _)| value.clone())
        }

        pub(crate) fn since(&self, revision: u64) -> (Vec<Item>, u64) {
            let seen = self.access().read(revision).unwrap();
            (seen.items, seen.revision)
        }

        pub(crate) fn names(&self) -> Vec<String> {
            self.0.lock().unwrap().values.keys().cloned().collect()
        }

        pub(crate) fn values(&self) -> Vec<Vec<u8>> {
            self.0.lock().unwrap().values.values().map(|(value, _)| value.clone()).collect()
        }

        pub(crate) fn remove(&self, name: &str) {
            self.0.lock().unwrap().values.remove(name);
        }

        pub(crate) fn overwrite(&self, name: &str, value: Vec<u8>) {
            let mut content = self.0.lock().unwrap();
            content.revision += 1;
            let revision = content.revision;
            content.values.insert(name.to_owned(), (value, revision));
        }

        pub(crate) fn access(&self) -> SimulatedKv {
            SimulatedKv { store: self.clone(), weather: Arc::default() }
        }
    }

    /// What one keyholder's way to the store is like.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) enum Weather {
        #[default]
        Fair,
        /// Nothing arrives.
        CutOff,
        /// Writes arrive, their answers do not.
        AnswersLost,
    }

    /// One keyholder's access.
    #[derive(Clone, Debug)]
    pub(crate) struct SimulatedKv {
        store: SimulatedStore,
        weather: Arc<Mutex<Weather>>,
    }

    impl SimulatedKv {
        pub(crate) fn set_weather(&self, weather: Weather) {
            *self.weather.lock().unwrap() = weather;
        }

        fn lost() -> KvError {
            KvError::Unavailable("simulated".to_owned())
        }
    }

    impl Kv for SimulatedKv {
        fn read(&self, since: u64) -> Result<Seen, KvError> {
            if *self.weather.lock().unwrap() != Weather::Fair {
                return Err(Self::lost());
            }
            let content = self.store.0.lock().unwrap();
            let newer = content.values.iter().filter(|(_, (_, revision))| *revision > since);
            let items = newer.map(|(name, (value, revision))| Item {
                name: name.clone(),
                value: value.clone(),
                revision: *revision,
            });
            Ok(Seen { items: items.collect(), revision: content.revision, count: content.values.len() })
        }

        fn write(&self, write: Write) -> Result<Written, KvError> {
            let weather = *self.weather.lock().unwrap();
            if weather == Weather::CutOff {
                return Err(Self::lost());
            }
            let mut content = self.store.0.lock().unwrap();
            let bytes: usize = write.puts.iter().map(|(name, value)| name.len() + value.len()).sum();
            if content.write_bytes_max.is_some_and(|most| bytes + write.ballast_bytes > most) {
                return Err(KvError::Refused("request is too large".to_owned()));
            }
            let revision_of = |name: &String| content.values.get(name).map_or(0, |(_, revision)| *revision);
            let conflict = write.expected.iter().any(|(name, revision)| revision_of(name) != *revision);
            if !conflict {
                content.revision += 1;
                let revision = content.revision;
                for name in write.deletes {
                    content.values.remove(&name);
                }
                for (name, value) in write.puts {
                    content.values.insert(name, (value, revision));
                }
            }
            let at = content.revision;
            match weather {
                Weather::AnswersLost => Err(Self::lost()),
                _ if conflict => Ok(Written::Conflict),
                _ => Ok(Written::At(at)),
            }
        }

        fn forget_before(&self, _revision: u64) -> Result<(), KvError> {
            Ok(())
        }
    }
}
