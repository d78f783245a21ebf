//! Which entries of the trail are told, under which name, and which of their fields.

use audit_log::Entry;
use serde_json::{Map, Value};

/// An entry of the trail that receivers hear of.
struct Told {
    /// The event in the trail.
    entry: &'static str,
    /// What it is called outside.
    event: &'static str,
    /// Fields that go along: machines, causes, actors. No label, no reason in a person's words, nothing that a later version of the
    /// entry may add.
    fields: &'static [&'static str],
}

const fn told(entry: &'static str, event: &'static str, fields: &'static [&'static str]) -> Told {
    Told { entry, event, fields }
}

const TOLD: &[Told] = &[
    told("start", "keyholder.sealed", &[]),
    told("unsealed", "keyholder.unsealed", &["by"]),
    told("stop", "keyholder.stopped", &[]),
    told("share-refused", "keyholder.share-refused", &["by", "index"]),
    told("lease-records-lost", "keyholder.lease-records-lost", &["wait_ms"]),
    told("wiped", "node.wiped", &["node", "cause", "scope", "stage"]),
    told("node-lost", "node.lost", &["node"]),
    told("node-vanished", "node.vanished", &["node"]),
    told("latched-by-wipe", "node.latched", &["node", "cause"]),
    told("push-refused", "node.push-refused", &["node", "volume"]),
    told("node-compromised", "node.compromised", &["node", "by"]),
    told("node-trail-broken", "audit.node-trail-broken", &["node"]),
    told("audit-truncated", "audit.truncated", &["known_seq"]),
    told("revoke", "keys.revoked", &["by"]),
    told("lockdown", "keys.lockdown", &["by"]),
    told("unlatch", "keys.unlatched", &["by"]),
    told("epoch-begun", "keys.rotation-begun", &["by", "volume", "epoch"]),
    told("epoch-refused", "keys.rotation-refused", &["node", "volume", "epoch"]),
    told("epoch-retired", "keys.epoch-destroyed", &["domain", "epoch"]),
    told("drill", "drill.failed", &["by", "node", "serial"]),
    told("approval-wanted", "approval.wanted", &["by", "request", "need"]),
    told("approval-given", "approval.given", &["by", "request"]),
    told("approval-refused", "approval.refused", &["by", "request"]),
    told("approval-lapsed", "approval.lapsed", &["asked_by", "request"]),
    told("break-glass", "approval.break-glass", &["by", "asked_by", "request"]),
    told("policy-applied", "policy.applied", &["by", "serial"]),
    told("login-refused", "login.refused", &["by", "in_a_row"]),
    told("volume-erased", "volume.erased", &["by", "volume"]),
];

/// The name of the event that a receiver is tested with.
pub(crate) const TEST: &str = "webhook.test";

/// Whether receivers may want to hear of this event of the trail.
pub(crate) fn is_told(entry: &str) -> bool {
    TOLD.iter().any(|told| told.entry == entry)
}

/// The event's name outside and what is told of it; `None` where nobody is told.
pub(super) fn of(entry: &Entry) -> Option<(&'static str, Map<String, Value>)> {
    let told = TOLD.iter().find(|told| told.entry == entry.event)?;
    // A drill that has passed wakes nobody.
    if told.entry == "drill" && entry.fields.get("passed") != Some(&Value::Bool(false)) {
        return None;
    }
    let field = |name: &&str| Some(((*name).to_owned(), entry.fields.get(*name)?.clone()));
    Some((told.event, told.fields.iter().filter_map(field).collect()))
}

/// Whether `wanted`, a name or the beginning of one followed by `*`, can ever mean an event.
pub(super) fn is_known(wanted: &str) -> bool {
    TOLD.iter().any(|told| is_meant(wanted, told.event))
}

/// Whether `wanted` means this event.
pub(super) fn is_meant(wanted: &str, event: &str) -> bool {
    wanted.strip_suffix('*').map_or(wanted == event, |start| event.starts_with(start))
}

/// Every name, for whoever wrote one that is none.
pub(super) fn names() -> Vec<&'static str> {
    TOLD.iter().map(|told| told.event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_event_with_its_fields() {
        let document = include_str!("../../WEBHOOKS.md");
        for told in TOLD {
            let fields: Vec<_> = told.fields.iter().map(|field| format!("`{field}`")).collect();
            let row = format!("| `{}` | `{}` | {} |", told.event, told.entry, fields.join(", "));
            assert!(document.contains(&row), "WEBHOOKS.md lacks the row\n{row}");
        }
        assert_eq!(document.matches("\n| `").count(), TOLD.len(), "a row of an event that is none");
    }

    #[test]
    fn each_entry_is_told_under_one_name() {
        for (index, told) in TOLD.iter().enumerate() {
            assert!(
                !TOLD[..index].iter().any(|other| other.entry == told.entry || other.event == told.event)
            );
            assert!(is_known(told.event) && is_told(told.entry));
            let free_text = ["reason", "act", "why", "label", "volumes", "changed"];
            assert!(told.fields.iter().all(|field| !free_text.contains(field)), "{}", told.event);
        }
    }

    #[test]
    fn a_star_stands_for_the_rest_of_a_name() {
        for (wanted, known) in [
            ("*", true),
            ("node.*", true),
            ("node.wiped", true),
            ("node.wip*", true),
            ("node", false),
            ("", false),
            ("nodes.*", false),
            ("*.wiped", false),
        ] {
            assert_eq!(is_known(wanted), known, "{wanted}");
        }
    }
}
