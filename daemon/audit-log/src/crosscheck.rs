//! What a keyholder says of a node beside what the node says of itself: keys that were lent, and wipes.
//!
//! Both trails hold on their own; a keyholder that left out a grant, or a node that denies one, shows here.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::verify::Severity;

/// Where the two trails do not agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "disagreement")]
pub enum Disagreement {
    /// The node took a key that the keyholder never granted.
    #[error("the node took grant {grant} (its entry {seq}), which the keyholder's trail does not know")]
    NeverGranted {
        /// The grant.
        grant: String,
        /// The node's entry.
        seq: u64,
    },
    /// The keyholder has a receipt that the node never gave.
    #[error(
        "the keyholder has a receipt for grant {grant} (its entry {seq}), which the node's trail does not know"
    )]
    NeverTaken {
        /// The grant.
        grant: String,
        /// The keyholder's entry.
        seq: u64,
    },
    /// The keyholder has a wipe that the node never had.
    #[error(
        "the keyholder was told of a wipe ({cause}, its entry {seq}) that the node's trail does not know"
    )]
    NeverWiped {
        /// Its cause.
        cause: String,
        /// The keyholder's entry.
        seq: u64,
    },
    /// The node told of a wipe, and ended before it had written anything more.
    #[error(
        "the keyholder was told of a wipe ({cause}, its entry {seq}) after which the node's trail has nothing of that run: it \
         ended before it wrote the wipe down"
    )]
    WipeUnwritten {
        /// Its cause.
        cause: String,
        /// The keyholder's entry.
        seq: u64,
    },
}

impl Disagreement {
    /// How bad it is.
    pub const fn severity(&self) -> Severity {
        match self {
            Self::NeverGranted { .. } | Self::NeverTaken { .. } | Self::NeverWiped { .. } => Severity::Broken,
            Self::WipeUnwritten { .. } => Severity::Doubt,
        }
    }
}

/// Compares the two, from the moment on from which both say something. A node writes that it took a key before it tells, so what the
/// keyholder was told up to its entry `told_until` has to stand in a trail of the node that was read after that. Of a wipe it tells
/// first, because a wipe waits for no disk: one that ended with the power may be missing, and only if nothing follows it.
pub fn crosscheck(keyholder: &[Entry], told_until: u64, node_id: &str, node: &[Entry]) -> Vec<Disagreement> {
    let begins = node.first().map_or(u64::MAX, |entry| entry.at.unix_ms);
    let told = |entry: &&Entry| {
        entry.text("node") == node_id && entry.seq <= told_until && entry.at.unix_ms >= begins
    };
    let granted: BTreeSet<&str> =
        keyholder.iter().filter(|entry| entry.event == "grant").map(|entry| entry.text("grant")).collect();
    let taken: BTreeMap<&str, u64> = node
        .iter()
        .filter(|entry| entry.event == "key-taken")
        .map(|entry| (entry.text("grant"), entry.seq))
        .collect();
    let wiped: BTreeSet<(&str, u64)> = node
        .iter()
        .filter(|entry| entry.event == "wiped")
        .map(|entry| (entry.text("boot"), number(entry, "at_boot_ns")))
        .collect();
    let mut found = Vec::new();
    let known_from = keyholder.first().map_or(u64::MAX, |entry| entry.at.unix_ms);
    for entry in node.iter().filter(|entry| entry.event == "key-taken" && entry.at.unix_ms >= known_from) {
        let grant = entry.text("grant");
        if !granted.contains(grant) {
            found.push(Disagreement::NeverGranted { grant: grant.to_owned(), seq: entry.seq });
        }
    }
    for entry in keyholder.iter().filter(told) {
        match entry.event.as_str() {
            "receipt" if !taken.contains_key(entry.text("grant")) => {
                let grant = entry.text("grant").to_owned();
                found.push(Disagreement::NeverTaken { grant, seq: entry.seq });
            }
            // One volume's key is dropped without a wipe.
            "wiped" if entry.fields.get("scope").is_some_and(serde_json::Value::is_object) => {}
            "wiped" if !wiped.contains(&(entry.text("node_boot"), number(entry, "node_boot_ns"))) => {
                let (cause, seq) = (entry.text("cause").to_owned(), entry.seq);
                found.push(match ended_with(entry, node) {
                    true => Disagreement::WipeUnwritten { cause, seq },
                    false => Disagreement::NeverWiped { cause, seq },
                });
            }
            _ => {}
        }
    }
    found
}

/// Whether the node's run ended with this wipe: of that boot it has written something, and after the wipe nothing but a new start.
fn ended_with(wipe: &Entry, node: &[Entry]) -> bool {
    let mut of_boot = node.iter().filter(|entry| entry.text("boot") == wipe.text("node_boot")).peekable();
    let at_boot_ns = number(wipe, "node_boot_ns");
    of_boot.peek().is_some_and(|first| first.at.boot_ns <= at_boot_ns)
        && of_boot.find(|entry| entry.at.boot_ns > at_boot_ns).is_none_or(|next| next.event == "start")
}

fn number(entry: &Entry, field: &str) -> u64 {
    entry.fields.get(field).and_then(serde_json::Value::as_u64).unwrap_or(0)
}
