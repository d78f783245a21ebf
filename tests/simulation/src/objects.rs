//! One object client's keys: what each of them may hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::pattern::{self, Tag};

/// An object's body by the write that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    pub tag: Tag,
    pub len: usize,
}

impl Body {
    /// The bytes.
    pub fn bytes(self) -> Vec<u8> {
        pattern::body(self.tag, self.len)
    }
}

/// A key's acknowledged state, and the state that an unanswered request would give it.
#[derive(Clone, Debug, Default)]
struct Slot {
    acknowledged: Option<Body>,
    in_flight: Option<Option<Body>>,
}

/// A key that holds what it must not.
#[derive(Clone, Debug)]
pub struct Mismatch {
    pub key: String,
    /// What was read, as far as it can be told.
    pub found: String,
    /// What may be there; `None` is no object.
    pub allowed: Vec<Option<Body>>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {} is {}, allowed are {:?}", self.key, self.found, self.allowed)
    }
}

/// The model of one client's keys.
#[derive(Clone, Debug, Default)]
pub struct ObjectModel {
    slots: BTreeMap<String, Slot>,
}

impl ObjectModel {
    /// Every key that was ever touched.
    pub fn keys(&self) -> Vec<String> {
        self.slots.keys().cloned().collect()
    }

    /// What a running node must answer for this key.
    pub fn current(&self, key: &str) -> Option<Body> {
        self.slots.get(key).and_then(|slot| slot.acknowledged)
    }

    /// Keys that a listing of a running node must show.
    pub fn listed(&self) -> BTreeSet<String> {
        self.slots
            .iter()
            .filter(|(_, slot)| slot.acknowledged.is_some())
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// A put (or, with `None`, a delete) is about to be sent.
    pub fn begin(&mut self, key: &str, to: Option<Body>) {
        self.slots.entry(key.to_owned()).or_default().in_flight = Some(to);
    }

    /// It was answered with success.
    pub fn acknowledge(&mut self, key: &str) {
        let slot = self.slots.entry(key.to_owned()).or_default();
        if let Some(to) = slot.in_flight.take() {
            slot.acknowledged = to;
        }
    }

    /// Compares what a key holds after a crash, and takes it as durable from here on.
    ///
    /// # Errors
    /// Where it is neither the old nor the new state, whole.
    pub fn check_recovered(&mut self, key: &str, found: Option<&[u8]>) -> Result<(), Mismatch> {
        let slot = self.slots.entry(key.to_owned()).or_default();
        let allowed: Vec<Option<Body>> =
            [Some(slot.acknowledged), slot.in_flight].into_iter().flatten().collect();
        let fits = |body: &Option<Body>| match (body, found) {
            (None, None) => true,
            (Some(body), Some(bytes)) => body.len == bytes.len() && body.bytes() == bytes,
            _ => false,
        };
        if let Some(body) = allowed.iter().find(|body| fits(body)) {
            slot.acknowledged = *body;
            slot.in_flight = None;
            return Ok(());
        }
        Err(Mismatch { key: key.to_owned(), found: describe(found), allowed })
    }
}

fn describe(found: Option<&[u8]>) -> String {
    match found {
        None => "gone".to_owned(),
        Some(bytes) if bytes.len() < 8 => format!("{} bytes", bytes.len()),
        Some(bytes) => {
            let tag = Tag::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            let whole = pattern::body(tag, bytes.len()) == bytes;
            format!(
                "{} bytes that begin as write {tag} and are {}",
                bytes.len(),
                if whole { "whole" } else { "mixed" }
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unacknowledged_overwrite_leaves_old_or_new_and_never_a_mixture() {
        let old = Body { tag: 7, len: 5000 };
        let new = Body { tag: 8, len: 5000 };
        let mut model = ObjectModel::default();
        model.begin("a", Some(old));
        model.acknowledge("a");
        model.begin("a", Some(new));
        model.clone().check_recovered("a", Some(&old.bytes())).unwrap();
        model.clone().check_recovered("a", Some(&new.bytes())).unwrap();
        let mut mixed = new.bytes();
        mixed[4096..].copy_from_slice(&old.bytes()[4096..]);
        assert!(model.clone().check_recovered("a", Some(&mixed)).is_err());
        assert!(model.check_recovered("a", None).is_err());
    }

    #[test]
    fn an_acknowledged_delete_does_not_come_back() {
        let body = Body { tag: 7, len: 10 };
        let mut model = ObjectModel::default();
        model.begin("a", Some(body));
        model.acknowledge("a");
        model.begin("a", None);
        model.clone().check_recovered("a", Some(&body.bytes())).unwrap();
        model.acknowledge("a");
        assert!(model.check_recovered("a", Some(&body.bytes())).is_err());
    }
}
