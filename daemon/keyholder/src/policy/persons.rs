//! Who may log in at the OpenID provider, as what, and when that counts as a second factor.

use std::collections::BTreeMap;

use identity::{IssuerClass, Role};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Policy, PolicyError, wrong};

/// Makes people of an OpenID provider's claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonRule {
    /// What they may be.
    pub role: Role,
    /// Each claim has this value, or is a list with it.
    pub claims: BTreeMap<String, String>,
}

impl Policy {
    /// A rule without claims would make everybody that the provider knows one of us.
    pub(super) fn check_persons(&self) -> Result<(), PolicyError> {
        for rule in &self.persons {
            if rule.claims.is_empty() {
                return Err(wrong(
                    format!("a [[person]] rule makes everybody {}", rule.role),
                    "name the claims that such a person has, as in claims = { groups = \"storage\" }",
                ));
            }
            if rule.role.issuer_class() != IssuerClass::People {
                return Err(wrong(
                    format!("nobody is {} by logging in", rule.role),
                    "give operator, storage-admin, security-officer or auditor",
                ));
            }
        }
        Ok(())
    }

    /// The roles of somebody with these claims, in the order of the rules.
    pub fn roles_of(&self, claims: &Map<String, Value>) -> Vec<Role> {
        let has = |claim: &str, wanted: &str| match claims.get(claim) {
            Some(Value::String(text)) => text == wanted,
            Some(Value::Array(items)) => items.iter().any(|item| item.as_str() == Some(wanted)),
            _ => false,
        };
        let fits = |rule: &&PersonRule| rule.claims.iter().all(|(claim, wanted)| has(claim, wanted));
        self.persons.iter().filter(fits).map(|rule| rule.role).collect()
    }

    /// Whether the provider says that it has asked for a second factor, in a way that counts here.
    pub fn takes_second_factor(&self, claims: &Map<String, Value>) -> bool {
        let says = |claim: &str, wanted: &[String]| match claims.get(claim) {
            Some(Value::String(text)) => wanted.contains(text),
            Some(Value::Array(items)) => {
                items.iter().filter_map(Value::as_str).any(|item| wanted.iter().any(|one| one == item))
            }
            _ => false,
        };
        says("amr", &self.people.oidc_amr) || says("acr", &self.people.oidc_acr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::loosenings;

    const TEXT: &str = r#"version = 1
[people]
oidc_amr = ["otp", "hwk"]
oidc_acr = ["high"]
[[person]]
role = "security-officer"
claims = { groups = "officers", country = "eu" }
[[person]]
role = "storage-admin"
claims = { groups = "storage" }
"#;

    fn claims(json: &Value) -> Map<String, Value> {
        json.as_object().unwrap().clone()
    }

    #[test]
    fn every_claim_of_a_rule_has_to_be_there_and_every_rule_that_fits_gives_its_role() {
        let policy = Policy::parse(TEXT).unwrap();
        let roles = |json: Value| policy.roles_of(&claims(&json));
        assert_eq!(roles(serde_json::json!({ "groups": "storage" })), [Role::StorageAdmin]);
        assert_eq!(roles(serde_json::json!({ "groups": ["a", "storage"] })), [Role::StorageAdmin]);
        assert_eq!(
            roles(serde_json::json!({ "groups": ["storage", "officers"], "country": "eu" })),
            [Role::SecurityOfficer, Role::StorageAdmin]
        );
        for none in [
            serde_json::json!({}),
            serde_json::json!({ "groups": "officers" }),
            serde_json::json!({ "groups": "storage officers" }),
            serde_json::json!({ "groups": { "storage": true } }),
            serde_json::json!({ "groups": ["STORAGE"] }),
        ] {
            assert_eq!(roles(none.clone()), [], "{none}");
        }
        assert_eq!(Policy::default().roles_of(&claims(&serde_json::json!({ "groups": "storage" }))), []);
    }

    #[test]
    fn a_second_factor_is_one_that_the_policy_names() {
        let policy = Policy::parse(TEXT).unwrap();
        for (json, counts) in [
            (serde_json::json!({ "amr": ["pwd", "otp"] }), true),
            (serde_json::json!({ "acr": "high" }), true),
            (serde_json::json!({ "amr": ["pwd", "mfa"] }), false),
            (serde_json::json!({ "acr": "low" }), false),
            (serde_json::json!({ "acr": ["otp"] }), false),
            (serde_json::json!({}), false),
        ] {
            assert_eq!(policy.takes_second_factor(&claims(&json)), counts, "{json}");
            assert!(!Policy::default().takes_second_factor(&claims(&json)), "{json}");
        }
    }

    #[test]
    fn what_lets_in_somebody_more_asks_for_less_and_a_rule_for_everybody_or_a_machine_is_none() {
        let of = |text: &str| Policy::parse(text).unwrap();
        let (old, without) = (of(TEXT), of("version = 1"));
        let looser = |old: &Policy, new: &Policy| loosenings(old, new).len();
        assert_eq!((looser(&without, &old), looser(&old, &without)), (4, 0));
        let changed = of(&TEXT.replace("groups = \"storage\"", "groups = \"all\""));
        assert_eq!(loosenings(&old, &changed)[0].setting, "person storage-admin");
        let words = of(&TEXT.replace("\"otp\", \"hwk\"", "\"pwd\""));
        assert_eq!(loosenings(&old, &words)[0].setting, "people.oidc_amr");
        assert_eq!(looser(&old, &of(&TEXT.replace("\"otp\", \"hwk\"", "\"hwk\""))), 0);
        for (text, said) in [
            ("version = 1\n[[person]]\nrole = \"operator\"\nclaims = {}\n", "makes everybody operator"),
            ("version = 1\n[[person]]\nrole = \"node\"\nclaims = { a = \"b\" }\n", "nobody is node"),
        ] {
            let refused = Policy::parse(text).unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
    }
}
