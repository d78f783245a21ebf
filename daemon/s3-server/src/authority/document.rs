//! Policies in Amazon's language, as JSON, and what they say about a request.
//!
//! "IAM JSON policy elements reference" and "IAM JSON policy evaluation logic" (AWS IAM User Guide): an explicit deny wins,
//! then an explicit allow, then nothing is said. Everything that can't be read is refused when the policy is put, so that no
//! statement is ever silently left out.

use serde_json::{Map, Value};

use super::condition::{Conditions, Context};
use super::pattern;

/// Longest policy (S3).
pub(crate) const POLICY_BYTES_MAX: usize = 20 * 1024;

const BUCKET_ARN: &str = "arn:aws:s3:::";
const USER_MARK: &str = ":user/";

/// Why a policy is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A variable that is never filled in would be taken for text.
pub(super) const UNKNOWN_VARIABLE: Malformed =
    Malformed("the policy has a variable that there is not: ${aws:username} is the only one");

/// A policy of a bucket, or of users.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    statements: Vec<Statement>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Debug)]
struct Statement {
    effect: Effect,
    principals: Listed,
    actions: Listed,
    resources: Listed,
    conditions: Conditions,
}

/// An element and its negation: `Action` and `NotAction`.
#[derive(Clone, Debug)]
struct Listed {
    negated: bool,
    values: Vec<String>,
}

impl Listed {
    fn matches(&self, matches: impl Fn(&str) -> bool) -> bool {
        self.values.iter().any(|value| matches(value)) != self.negated
    }
}

/// What a policy is asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    /// The user; `None` for a request that is not signed.
    pub(crate) user: Option<&'a str>,
    /// `s3:GetObject` and so on.
    pub(crate) action: &'a str,
    /// Name of the bucket, or bucket and key.
    pub(crate) resource: &'a str,
    pub(crate) context: &'a Context,
}

impl Policy {
    /// Reads a policy of `bucket`, or one that is attached to users and so names nobody and any bucket.
    pub(crate) fn parse(text: &[u8], bucket: Option<&str>) -> Result<Self, Malformed> {
        if text.len() > POLICY_BYTES_MAX {
            return Err(Malformed("a policy has at most 20 KiB"));
        }
        let value: Value =
            serde_json::from_slice(text).map_err(|_| Malformed("the policy is not valid JSON"))?;
        let policy = value.as_object().ok_or(Malformed("the policy is not an object"))?;
        let unknown = policy.keys().find(|key| !matches!(key.as_str(), "Version" | "Id" | "Statement"));
        if unknown.is_some() {
            return Err(Malformed("the policy has an element that there is not"));
        }
        let statements = match policy.get("Statement") {
            Some(Value::Array(statements)) if !statements.is_empty() => statements.iter().collect(),
            Some(statement @ Value::Object(_)) => vec![statement],
            _ => return Err(Malformed("the policy has no statement")),
        };
        let statement = |value: &Value| {
            Statement::parse(value.as_object().ok_or(Malformed("a statement is not an object"))?, bucket)
        };
        Ok(Self { statements: statements.into_iter().map(statement).collect::<Result<_, _>>()? })
    }

    /// Refuses what reads well and could never mean what it says: conditions on what no request has, and variables that are not
    /// filled in. A deny that asks for one would never hold. Policies that were put before this was asked stay as they are.
    pub(crate) fn check_known(&self) -> Result<(), Malformed> {
        self.statements.iter().try_for_each(Statement::check_known)
    }

    /// What the policy says; `None` where no statement fits.
    pub(crate) fn decide(&self, question: Question<'_>) -> Option<Effect> {
        decide(std::slice::from_ref(self), question)
    }

    /// Whether it lets in people that nobody named (Amazon S3 User Guide, "The meaning of public").
    pub(crate) fn is_public(&self) -> bool {
        self.statements.iter().any(|statement| {
            let everybody =
                statement.principals.negated || statement.principals.values.iter().any(|name| name == "*");
            statement.effect == Effect::Allow && everybody && !statement.conditions.names_who_may()
        })
    }
}

/// What several policies say together; `None` where no statement fits.
pub(crate) fn decide(policies: &[Policy], question: Question<'_>) -> Option<Effect> {
    let statements = policies.iter().flat_map(|policy| &policy.statements);
    let mut effects =
        statements.filter(|statement| statement.fits(question)).map(|statement| statement.effect);
    let first = effects.next()?;
    let denied = first == Effect::Deny || effects.any(|effect| effect == Effect::Deny);
    Some(if denied { Effect::Deny } else { Effect::Allow })
}

impl Statement {
    fn parse(statement: &Map<String, Value>, bucket: Option<&str>) -> Result<Self, Malformed> {
        const KNOWN: [&str; 9] = [
            "Sid",
            "Effect",
            "Principal",
            "NotPrincipal",
            "Action",
            "NotAction",
            "Resource",
            "NotResource",
            "Condition",
        ];
        if statement.keys().any(|key| !KNOWN.contains(&key.as_str())) {
            return Err(Malformed("a statement has an element that there is not"));
        }
        let effect = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => Effect::Allow,
            Some("Deny") => Effect::Deny,
            _ => return Err(Malformed("a statement's effect must be Allow or Deny")),
        };
        let principals = match bucket {
            Some(_) => listed(statement, ("Principal", "NotPrincipal"), principals)?,
            None if statement.contains_key("Principal") || statement.contains_key("NotPrincipal") => {
                return Err(Malformed("a policy that is attached to users names no principal"));
            }
            None => Listed { negated: false, values: vec!["*".to_owned()] },
        };
        if principals.negated && effect == Effect::Allow {
            return Err(Malformed("NotPrincipal goes with Deny only"));
        }
        let actions = listed(statement, ("Action", "NotAction"), strings)?;
        let known = |action: &String| action == "*" || action.to_ascii_lowercase().starts_with("s3:");
        if !actions.values.iter().all(known) {
            return Err(Malformed("a statement names an action that is not one of S3"));
        }
        let mut resources = listed(statement, ("Resource", "NotResource"), strings)?;
        for resource in &mut resources.values {
            let name = resource.strip_prefix(BUCKET_ARN).unwrap_or(if resource == "*" { "*" } else { "" });
            let first = name.split('/').next().unwrap_or_default();
            if bucket.is_some_and(|bucket| !pattern::matches(first, bucket)) {
                return Err(Malformed("a statement's resource is not this bucket or in it"));
            }
            if name.is_empty() {
                return Err(Malformed(
                    "a statement's resource is not * and does not begin with arn:aws:s3:::",
                ));
            }
            *resource = name.to_owned();
        }
        let conditions = Conditions::parse(statement.get("Condition"))?;
        Ok(Self { effect, principals, actions, resources, conditions })
    }

    fn check_known(&self) -> Result<(), Malformed> {
        let mut patterns = self.actions.values.iter().chain(&self.resources.values);
        match patterns.all(|pattern| pattern::has_known_variables(pattern)) {
            true => self.conditions.check_known(),
            false => Err(UNKNOWN_VARIABLE),
        }
    }

    fn negates_the_user(&self) -> bool {
        let named = |resource: &String| pattern::names_the_user(resource);
        (self.resources.negated && self.resources.values.iter().any(named))
            || self.conditions.negate_the_user()
    }

    fn fits(&self, question: Question<'_>) -> bool {
        // What is allowed to all but one user, or everywhere but at their place, is not allowed to somebody without a name.
        if self.effect == Effect::Allow && question.user.is_none() && self.negates_the_user() {
            return false;
        }
        let action = question.action.to_ascii_lowercase();
        self.principals.matches(|principal| is_principal(principal, question.user))
            && self.actions.matches(|pattern| pattern::matches(&pattern.to_ascii_lowercase(), &action))
            && self.resources.matches(|pattern| {
                let pattern = pattern::for_user(pattern, question.user);
                pattern.is_some_and(|pattern| pattern::matches(&pattern, question.resource))
            })
            && self.conditions.hold(question.context)
    }
}

/// A principal is `*`, a user's name, or an ARN that ends with it.
fn is_principal(principal: &str, user: Option<&str>) -> bool {
    let named = principal.rsplit_once(USER_MARK).map_or(principal, |(_, name)| name);
    principal == "*" || user.is_some_and(|user| user == named)
}

fn listed(
    statement: &Map<String, Value>,
    (name, negation): (&str, &str),
    read: impl Fn(&Value) -> Result<Vec<String>, Malformed>,
) -> Result<Listed, Malformed> {
    let (negated, value) = match (statement.get(name), statement.get(negation)) {
        (Some(value), None) => (false, value),
        (None, Some(value)) => (true, value),
        _ => return Err(Malformed("a statement needs a principal, an action and a resource, each once")),
    };
    let values = read(value)?;
    if values.is_empty() {
        return Err(Malformed("a statement has an empty list"));
    }
    Ok(Listed { negated, values })
}

pub(super) fn strings(value: &Value) -> Result<Vec<String>, Malformed> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(Malformed("a list in a statement holds something else than text")),
    };
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        value => Ok(vec![text(value)?]),
    }
}

fn principals(value: &Value) -> Result<Vec<String>, Malformed> {
    let kinds = match value {
        Value::String(text) if text == "*" => return Ok(vec!["*".to_owned()]),
        Value::Object(kinds) => kinds,
        _ => return Err(Malformed("a principal must be * or a list of users")),
    };
    let mut found = Vec::new();
    for (kind, names) in kinds {
        match kind.as_str() {
            "AWS" | "CanonicalUser" => found.extend(strings(names)?),
            // Nobody of these kinds ever asks: they are read so that other clients' policies can be put.
            "Service" | "Federated" => {
                found.extend(strings(names)?.into_iter().map(|name| format!("{kind}:{name}")))
            }
            _ => return Err(Malformed("a principal is of a kind that there is not")),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(statements: &str) -> Result<Policy, Malformed> {
        Policy::parse(format!(r#"{{"Version":"2012-10-17","Statement":{statements}}}"#).as_bytes(), Some("b"))
    }

    fn ask(policy: &Policy, user: Option<&str>, action: &str, resource: &str) -> Option<Effect> {
        policy.decide(Question { user, action, resource, context: &Context::default() })
    }

    #[test]
    fn a_deny_wins_over_an_allow_and_what_is_not_named_is_not_decided() {
        let policy = policy(
            r#"[{"Effect":"Allow","Principal":"*","Action":"s3:Get*","Resource":"arn:aws:s3:::b/*"},
                {"Effect":"Deny","Principal":{"AWS":"arn:aws:iam:::user/eve"},"Action":"s3:*",
                 "Resource":["arn:aws:s3:::b","arn:aws:s3:::b/*"]}]"#,
        )
        .unwrap();
        assert_eq!(ask(&policy, None, "s3:GetObject", "b/k"), Some(Effect::Allow));
        assert_eq!(ask(&policy, Some("eve"), "s3:GetObject", "b/k"), Some(Effect::Deny));
        assert_eq!(ask(&policy, Some("bob"), "s3:PutObject", "b/k"), None);
        assert_eq!(ask(&policy, Some("bob"), "s3:GetObject", "b"), None);
        assert!(policy.is_public());
    }

    #[test]
    fn negations_mean_everything_else() {
        let policy = policy(
            r#"{"Effect":"Deny","NotPrincipal":{"AWS":["bob"]},"NotAction":"s3:GetObject",
                "NotResource":"arn:aws:s3:::b/open/*"}"#,
        )
        .unwrap();
        assert_eq!(ask(&policy, Some("bob"), "s3:PutObject", "b/k"), None);
        assert_eq!(ask(&policy, Some("eve"), "s3:PutObject", "b/k"), Some(Effect::Deny));
        assert_eq!(ask(&policy, Some("eve"), "s3:GetObject", "b/k"), None);
        assert_eq!(ask(&policy, None, "s3:PutObject", "b/open/k"), None);
        assert!(!policy.is_public());
    }

    #[test]
    fn a_negated_name_allows_nobody_without_one_and_denies_them() {
        let condition = r#""Resource":"arn:aws:s3:::b/*","Condition":{"StringNotEquals":{"s3:prefix":"${aws:username}"}}"#;
        let resource = r#""NotResource":"arn:aws:s3:::b/${aws:username}/*""#;
        for negated in [condition, resource] {
            for (effect, nobody, bob) in
                [("Allow", None, Effect::Allow), ("Deny", Some(Effect::Deny), Effect::Deny)]
            {
                let statement =
                    format!(r#"[{{"Effect":"{effect}","Principal":"*","Action":"s3:*",{negated}}}]"#);
                let policy = policy(&statement).unwrap();
                assert_eq!(ask(&policy, None, "s3:GetObject", "b/k"), nobody, "{statement}");
                assert_eq!(ask(&policy, Some("bob"), "s3:GetObject", "b/k"), Some(bob), "{statement}");
            }
        }
    }

    #[test]
    fn what_can_not_be_read_is_refused() {
        let good =
            r#""Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*""#;
        assert!(policy(&format!("[{{{good}}}]")).is_ok());
        for bad in [
            "[]",
            "7",
            "[7]",
            &format!("[{{{good},\"Surprise\":1}}]"),
            &format!("[{{{good},\"NotAction\":\"s3:*\"}}]"),
            &format!("[{{{good},\"Condition\":{{\"Unknown\":{{\"aws:SourceIp\":\"1.1.1.1\"}}}}}}]"),
            &format!("[{{{}}}]", good.replace("Allow", "allow")),
            &format!("[{{{}}}]", good.replace("s3:GetObject", "ec2:RunInstances")),
            &format!("[{{{}}}]", good.replace(":::b/", ":::other/")),
            &format!("[{{{}}}]", good.replace("\"*\"", "\"bob\"")),
            &format!("[{{{}}}]", good.replace("\"Principal\":\"*\",", "")),
        ] {
            assert!(policy(bad).is_err(), "{bad}");
        }
        for bad in ["", "{", "[]", "{}", &"[".repeat(1000)] {
            assert!(Policy::parse(bad.as_bytes(), Some("b")).is_err());
        }
        let long = format!("{{\"Statement\":[{{{good}}}]}}{}", " ".repeat(POLICY_BYTES_MAX));
        assert!(Policy::parse(long.as_bytes(), Some("b")).is_err());
    }

    #[test]
    fn a_policy_of_users_names_any_bucket_and_nobody_and_knows_its_user() {
        let parse = |text: &str| Policy::parse(text.as_bytes(), None);
        let home = parse(
            r#"{"Statement":{"Effect":"Allow","Action":["s3:GetObject","s3:PutObject"],
                "Resource":"arn:aws:s3:::homes/${aws:username}/*"}}"#,
        )
        .unwrap();
        assert_eq!(ask(&home, Some("bob"), "s3:GetObject", "homes/bob/k"), Some(Effect::Allow));
        assert_eq!(ask(&home, Some("bob"), "s3:GetObject", "homes/eve/k"), None);
        assert_eq!(ask(&home, None, "s3:GetObject", "homes//k"), None);
        for bad in [
            r#"{"Statement":{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"*"}}"#,
            r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"homes/*"}}"#,
            r#"{"Statement":{"Effect":"Allow","Action":"iam:*","Resource":"*"}}"#,
            r#"{"Statement":{"Effect":"Allow","Action":"s3:*"}}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_new_policy_of_users_asks_for_nothing_that_is_never_there() {
        let check = |resource: &str, condition: &str| {
            let text = format!(
                r#"{{"Statement":{{"Effect":"Deny","Action":"s3:*","Resource":"arn:aws:s3:::{resource}",
                    "Condition":{{{condition}}}}}}}"#
            );
            Policy::parse(text.as_bytes(), None).unwrap().check_known().map_err(|error| error.to_string())
        };
        for (resource, condition) in [
            ("homes/${aws:username}/*", r#""StringEquals":{"S3:existingObjectTag/Owner":"${aws:username}"}"#),
            ("*", r#""IpAddress":{"aws:sourceip":"10.0.0.0/8"},"Null":{"s3:VersionId":"true"}"#),
            ("price-in-$", r#""StringLike":{"s3:x-amz-acl":"{*"}"#),
        ] {
            assert_eq!(check(resource, condition), Ok(()), "{resource} {condition}");
        }
        for (resource, condition) in [
            ("homes/${aws:userid}/*", ""),
            ("homes/${AWS:username}/*", ""),
            ("homes/${aws:username}/${*}", ""),
            ("*", r#""StringEquals":{"s3:prefix":"${aws:PrincipalTag/team}"}"#),
        ] {
            let error = check(resource, condition).unwrap_err();
            assert!(error.contains("${aws:username}"), "{resource} {condition}: {error}");
        }
        for key in ["aws:MultiFactorAuthPresent", "aws:SourceVpc", "s3:ExistingObjectTag/", "prefix", ""] {
            let error = check("*", &format!(r#""StringNotEquals":{{"{key}":"x"}}"#)).unwrap_err();
            assert!(error.contains("aws:SourceIp, ") && error.contains("s3:x-amz-storage-class"), "{error}");
        }
    }
}
