//! Which keyholders may have the root from one that runs.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Policy, PolicyError, wrong};

/// Joins in an hour where the policy does not say: a rolling restart of all that a store may have, and some.
const JOINS_PER_HOUR_DEFAULT: u32 = 6;

/// What it takes beside being named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Join {
    /// Nothing: it comes up unsealed by itself wherever another one runs.
    Automatic,
    /// A security officer's word, each time.
    #[default]
    Approve,
}

/// A keyholder that may have the root from another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyholderRule {
    /// Its name, as in its certificate.
    pub name: String,
    /// Its identity key, hex, as its log and its status show it.
    pub identity: String,
    /// What it takes.
    #[serde(default)]
    pub join: Join,
}

impl Policy {
    /// The rule for a keyholder, where there is one.
    pub fn keyholder(&self, name: &str) -> Option<&KeyholderRule> {
        self.keyholders.iter().find(|rule| rule.name == name)
    }

    /// How many keyholders may have the root from one that runs within an hour.
    pub fn joins_per_hour(&self) -> u32 {
        self.budget.joins_per_hour.unwrap_or(JOINS_PER_HOUR_DEFAULT)
    }

    pub(super) fn check_keyholders(&self) -> Result<(), PolicyError> {
        let mut names = BTreeSet::new();
        for rule in &self.keyholders {
            if !hex::decode(&rule.identity).is_ok_and(|key| key.len() == 32) {
                return Err(wrong(
                    format!("the identity of keyholder {} is not a key", rule.name),
                    "give the 64 hexadecimal digits that `nightlatch keyholder status` shows there",
                ));
            }
            if !names.insert(&rule.name) {
                return Err(wrong(
                    format!("two [[keyholder]] tables are named {}", rule.name),
                    "give each keyholder a name of its own, as in its certificate",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{differences, loosenings};
    use super::*;

    fn policy(rules: &str) -> Result<Policy, PolicyError> {
        Policy::parse(&format!("version = 1\n{rules}"))
    }

    fn rule(name: &str, digit: char, join: &str) -> String {
        let identity: String = std::iter::repeat_n(digit, 64).collect();
        format!("[[keyholder]]\nname = \"{name}\"\nidentity = \"{identity}\"\n{join}")
    }

    #[test]
    fn only_named_keyholders_may_join_and_by_approval_unless_it_says_otherwise() {
        let automatic = rule("b", '2', "join = \"automatic\"");
        let policy = policy(&format!("{}{automatic}", rule("a", '1', ""))).unwrap();
        assert_eq!(policy.keyholder("a").unwrap().join, Join::Approve);
        assert_eq!(policy.keyholder("b").unwrap().join, Join::Automatic);
        assert!(policy.keyholder("c").is_none() && Policy::default().keyholder("a").is_none());
    }

    #[test]
    fn a_key_that_is_none_and_a_name_twice_are_refused() {
        assert!(policy(&rule("a", 'x', "")).is_err());
        assert!(policy(&format!("{}{}", rule("a", '1', ""), rule("a", '2', ""))).is_err());
    }

    #[test]
    fn a_further_keyholder_asks_for_less_and_one_less_does_not() {
        let (none, one) = (Policy::default(), policy(&rule("a", '1', "")).unwrap());
        assert_eq!(loosenings(&none, &one).len(), 1);
        assert_eq!((differences(&one, &none).len(), loosenings(&one, &none).len()), (1, 0));
        let automatic = policy(&rule("a", '1', "join = \"automatic\"")).unwrap();
        assert_eq!(loosenings(&one, &automatic).len(), 1);
    }
}
