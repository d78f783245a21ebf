//! What a new policy changes, and which of it asks for less than before.
//!
//! The comparison errs to one side: what cannot be shown to ask for at least as much counts as asking for less, so that a second
//! person looks at it.

use serde::{Deserialize, Serialize};

use super::{PersonRule, Policy, Reboots};

/// One thing that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which setting.
    pub setting: String,
    /// Before; empty where it was not there.
    pub before: String,
    /// From now on; empty where it is gone.
    pub after: String,
    /// Less is asked for than before.
    pub loosens: bool,
}

/// Everything that changes.
pub fn differences(old: &Policy, new: &Policy) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut differ = |setting: &str, before: String, after: String, loosens: bool| {
        if before != after {
            found.push(Difference { setting: setting.to_owned(), before, after, loosens });
        }
    };
    let listed = (old.push.listed_nodes_only, new.push.listed_nodes_only);
    differ("push.listed_nodes_only", listed.0.to_string(), listed.1.to_string(), listed.0 && !listed.1);
    let reboots = (old.push.reboots, new.push.reboots);
    differ("push.reboots", text(&reboots.0), text(&reboots.1), !is_as_strict(reboots.0, reboots.1));
    let images = (&old.push.images, &new.push.images);
    differ("push.images", text(images.0), text(images.1), !is_subset(images.1, images.0));
    let attestation = (old.push.attestation, new.push.attestation);
    let looser = attestation.1 < attestation.0;
    differ("push.attestation", text(&attestation.0), text(&attestation.1), looser);
    let lease = (old.push.lease_ms_max, new.push.lease_ms_max);
    differ("push.lease_ms_max", number(lease.0), number(lease.1), is_wider(lease.0, lease.1));
    let budget = (&old.budget, &new.budget);
    for (setting, before, after) in [
        ("budget.unseals_per_hour", budget.0.unseals_per_hour, budget.1.unseals_per_hour),
        ("budget.unseals_per_hour_all", budget.0.unseals_per_hour_all, budget.1.unseals_per_hour_all),
        ("budget.joins_per_hour", Some(old.joins_per_hour()), Some(new.joins_per_hour())),
    ] {
        differ(setting, number(before), number(after), is_wider(before, after));
    }
    let quorum = (&old.quorum, &new.quorum);
    for (setting, before, after) in [
        ("quorum.erase", quorum.0.erase, quorum.1.erase),
        ("quorum.loosen", quorum.0.loosen, quorum.1.loosen),
        ("quorum.overwrite", quorum.0.overwrite, quorum.1.overwrite),
        ("quorum.unlatch", quorum.0.unlatch, quorum.1.unlatch),
        ("quorum.people", quorum.0.people, quorum.1.people),
    ] {
        differ(setting, before.to_string(), after.to_string(), after < before);
    }
    let lapse = (quorum.0.lapse_minutes, quorum.1.lapse_minutes);
    differ("quorum.lapse_minutes", lapse.0.to_string(), lapse.1.to_string(), lapse.1 > lapse.0);
    let glass = (quorum.0.break_glass, quorum.1.break_glass);
    differ("quorum.break_glass", glass.0.to_string(), glass.1.to_string(), glass.1);
    let factor = (old.people.second_factor, new.people.second_factor);
    differ("people.second_factor", text(&factor.0), text(&factor.1), factor.1 < factor.0);
    let session = (old.people.session_minutes, new.people.session_minutes);
    differ("people.session_minutes", session.0.to_string(), session.1.to_string(), session.1 > session.0);
    for (setting, before, after) in [
        ("people.oidc_amr", &old.people.oidc_amr, &new.people.oidc_amr),
        ("people.oidc_acr", &old.people.oidc_acr, &new.people.oidc_acr),
    ] {
        // Here an empty list stands for none.
        let loosens = !after.iter().all(|word| before.contains(word));
        differ(setting, text(before), text(after), loosens);
    }
    let keep = (old.audit.keep_days, new.audit.keep_days);
    // Kept for a shorter time is asked for less; for good is the longest.
    let shorter = keep.1.is_some_and(|after| keep.0.is_none_or(|before| after < before));
    differ("audit.keep_days", number(keep.0), number(keep.1), shorter);
    let rotation = (old.rotation.every_days, new.rotation.every_days);
    differ("rotation.every_days", number(rotation.0), number(rotation.1), is_wider(rotation.0, rotation.1));
    persons(&old.persons, &new.persons, &mut found);
    rules("image", &old.images, &new.images, |rule| &rule.name, &mut found);
    rules("node", &old.nodes, &new.nodes, |rule| &rule.name, &mut found);
    rules("keyholder", &old.keyholders, &new.keyholders, |rule| &rule.name, &mut found);
    rules("volume", &old.volumes, &new.volumes, |rule| &rule.label, &mut found);
    found
}

/// What asks for less.
pub fn loosenings(old: &Policy, new: &Policy) -> Vec<Difference> {
    differences(old, new).into_iter().filter(|difference| difference.loosens).collect()
}

/// Rules are compared by what they are for. A further rule for volumes only adds conditions; a rule for nodes takes the place of the
/// general ones, and a changed or removed rule of either kind may ask for less.
fn rules<R: Serialize + PartialEq>(
    kind: &str,
    old: &[R],
    new: &[R],
    key: impl Fn(&R) -> &String,
    found: &mut Vec<Difference>,
) {
    for rule in old {
        let after = new.iter().find(|other| key(other) == key(rule));
        if after != Some(rule) {
            found.push(Difference {
                setting: format!("{kind} {}", key(rule)),
                before: text(rule),
                after: after.map(text).unwrap_or_default(),
                // An image or a keyholder that is not known any more holds nothing.
                loosens: !matches!(kind, "image" | "keyholder") || after.is_some(),
            });
        }
    }
    for rule in new.iter().filter(|rule| !old.iter().any(|other| key(other) == key(rule))) {
        found.push(Difference {
            setting: format!("{kind} {}", key(rule)),
            before: String::new(),
            after: text(rule),
            // What a name stands for may be allowed by a pattern.
            loosens: kind != "volume",
        });
    }
    let order = |rules: &[R]| -> Vec<String> { rules.iter().map(|rule| key(rule).clone()).collect() };
    let (before, after) = (order(old), order(new));
    let kept: Vec<_> = after.iter().filter(|name| before.contains(name)).collect();
    let was: Vec<_> = before.iter().filter(|name| after.contains(name)).collect();
    if kind == "node" && kept != was {
        found.push(Difference {
            setting: "order of node rules".to_owned(),
            before: before.join(", "),
            after: after.join(", "),
            loosens: true,
        });
    }
}

/// A rule that is added or changed lets in somebody; one that is removed lets in nobody, and their order only says which role is taken
/// where none is asked for.
fn persons(old: &[PersonRule], new: &[PersonRule], found: &mut Vec<Difference>) {
    let setting = |rule: &PersonRule| format!("person {}", rule.role);
    for rule in old.iter().filter(|rule| !new.contains(rule)) {
        let (before, after) = (text(rule), String::new());
        found.push(Difference { setting: setting(rule), before, after, loosens: false });
    }
    for rule in new.iter().filter(|rule| !old.contains(rule)) {
        let (before, after) = (String::new(), text(rule));
        found.push(Difference { setting: setting(rule), before, after, loosens: true });
    }
}

fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned()
}

fn number<N: ToString>(value: Option<N>) -> String {
    value.map_or("no limit".to_owned(), |value| value.to_string())
}

fn is_wider<N: PartialOrd>(before: Option<N>, after: Option<N>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => after > before,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// An empty list stands for any.
fn is_subset(after: &[String], before: &[String]) -> bool {
    before.is_empty() || (!after.is_empty() && after.iter().all(|image| before.contains(image)))
}

/// Receipted and maintenance each let through what the other does not.
fn is_as_strict(before: Reboots, after: Reboots) -> bool {
    before == after || before == Reboots::Any || after == Reboots::Never
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loosens(old: &str, new: &str) -> Vec<String> {
        let parse = |text: &str| Policy::parse(&format!("version = 1\n{text}")).unwrap();
        let found = loosenings(&parse(old), &parse(new));
        found.into_iter().map(|difference| difference.setting).collect()
    }

    #[test]
    fn whatever_asks_for_less_is_found_and_its_opposite_is_not() {
        let image = |digit: &str| format!("\"{}\"", digit.repeat(64));
        let images = |all: &[&str]| {
            let all: Vec<_> = all.iter().map(|digit| image(digit)).collect();
            format!("[push]\nimages = [{}]", all.join(", "))
        };
        let pairs = [
            ("push.listed_nodes_only", "[push]\nlisted_nodes_only = true".to_owned(), String::new()),
            (
                "push.reboots",
                "[push]\nreboots = \"never\"".to_owned(),
                "[push]\nreboots = \"receipted\"".to_owned(),
            ),
            ("push.images", images(&["a"]), images(&["a", "b"])),
            ("push.images", images(&["a"]), String::new()),
            (
                "push.attestation",
                "[push]\nattestation = \"required\"".to_owned(),
                "[push]\nattestation = \"approve\"".to_owned(),
            ),
            ("push.attestation", "[push]\nattestation = \"approve\"".to_owned(), String::new()),
            (
                "image a",
                String::new(),
                format!("[[image]]\nname = \"a\"\npcr4 = {0}\npcr11 = {0}", image("a")),
            ),
            (
                "push.lease_ms_max",
                "[push]\nlease_ms_max = 1000".to_owned(),
                "[push]\nlease_ms_max = 2000".to_owned(),
            ),
            ("budget.unseals_per_hour", "[budget]\nunseals_per_hour = 1".to_owned(), String::new()),
            ("quorum.erase", "[quorum]\nerase = 2".to_owned(), String::new()),
            ("quorum.loosen", "[quorum]\nloosen = 3".to_owned(), "[quorum]\nloosen = 2".to_owned()),
            ("quorum.break_glass", String::new(), "[quorum]\nbreak_glass = true".to_owned()),
            ("quorum.lapse_minutes", String::new(), "[quorum]\nlapse_minutes = 61".to_owned()),
            ("people.second_factor", "[people]\nsecond_factor = \"required\"".to_owned(), String::new()),
            ("people.session_minutes", String::new(), "[people]\nsession_minutes = 16".to_owned()),
            ("audit.keep_days", String::new(), "[audit]\nkeep_days = 10".to_owned()),
            ("rotation.every_days", "[rotation]\nevery_days = 90".to_owned(), String::new()),
        ];
        for (setting, strict, loose) in &pairs {
            assert_eq!(loosens(strict, loose), [*setting], "{strict} -> {loose}");
            assert_eq!(loosens(loose, strict), [""; 0], "{loose} -> {strict}");
            assert_eq!(loosens(strict, strict), [""; 0]);
        }
    }

    #[test]
    fn what_cannot_be_shown_to_be_as_strict_is_looked_at_by_two() {
        let receipted = "[push]\nreboots = \"receipted\"";
        let maintenance = "[push]\nreboots = \"maintenance\"";
        assert_eq!(loosens(receipted, maintenance), ["push.reboots"]);
        assert_eq!(loosens(maintenance, receipted), ["push.reboots"]);
        let rule = |extra: &str| format!("[[node]]\nname = \"a\"\n{extra}");
        assert_eq!(loosens(&rule("region = \"x\""), &rule("region = \"y\"")), ["node a"]);
        assert_eq!(loosens(&rule(""), ""), ["node a"]);
        assert_eq!(
            loosens("", &rule("reboots = \"any\"")),
            ["node a"],
            "it takes the place of the general rule"
        );
        let volume = "[[volume]]\nlabel = \"v\"\nnodes = [\"n\"]";
        assert_eq!(loosens("", volume), [""; 0], "a further rule for volumes only adds");
        assert_eq!(loosens(volume, ""), ["volume v"]);
        let two = |first: &str, second: &str| {
            format!("[[node]]\nname = \"{first}\"\n[[node]]\nname = \"{second}\"")
        };
        assert_eq!(loosens(&two("a*", "ab"), &two("ab", "a*")), ["order of node rules"]);
    }
}
