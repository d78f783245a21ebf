//! Conditions of a policy's statements, and what a request says that they ask for.
//!
//! "IAM JSON policy elements: Condition operators" (AWS IAM User Guide). A key that the request says nothing about makes a
//! positive operator fail and a negated one hold; `ForAnyValue` makes both fail, `IfExists` makes both hold.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::document::{Malformed, UNKNOWN_VARIABLE, strings};
use super::pattern;

/// Condition keys of a request in lower case, with their values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context(BTreeMap<String, Vec<String>>);

impl Context {
    pub(crate) fn add(&mut self, key: &str, value: impl Into<String>) {
        self.0.entry(key.to_ascii_lowercase()).or_default().push(value.into());
    }

    /// Says of `key` what `value` is, and nothing else.
    pub(crate) fn replace(&mut self, key: &str, value: Option<String>) {
        let key = key.to_ascii_lowercase();
        match value {
            Some(value) => self.0.insert(key, vec![value]),
            None => self.0.remove(&key),
        };
    }

    #[cfg(test)]
    pub(crate) fn key_count(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    pub(crate) fn has(&self, key: &str) -> bool {
        !self.values(&key.to_ascii_lowercase()).is_empty()
    }

    fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }
}

/// All conditions of a statement; each must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions(Vec<Condition>);

#[derive(Clone, Debug)]
struct Condition {
    test: Test,
    negated: bool,
    if_exists: bool,
    every: Quantifier,
    key: String,
    wanted: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantifier {
    Any,
    AnyOfMany,
    AllOfMany,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equals,
    EqualsIgnoreCase,
    Like,
    Number(Order),
    Date(Order),
    Bool,
    Address,
    Null,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Keys that requests are asked for. Those that end with a slash are followed by the name of a tag.
macro_rules! known_keys {
    () => {
        "aws:CurrentTime, aws:PrincipalArn, aws:Referer, aws:SecureTransport, aws:SourceIp, aws:UserAgent, aws:userid, \
         aws:username, s3:delimiter, s3:ExistingObjectTag/, s3:max-keys, s3:prefix, s3:RequestObjectTag/, \
         s3:RequestObjectTagKeys, s3:VersionId, s3:x-amz-acl, s3:x-amz-copy-source, s3:x-amz-grant-full-control, \
         s3:x-amz-grant-read, s3:x-amz-grant-read-acp, s3:x-amz-grant-write, s3:x-amz-grant-write-acp, \
         s3:x-amz-metadata-directive, s3:x-amz-server-side-encryption, \
         s3:x-amz-server-side-encryption-aws-kms-key-id, s3:x-amz-server-side-encryption-customer-algorithm, s3:x-amz-storage-class"
    };
}

pub(crate) fn known_keys() -> impl Iterator<Item = &'static str> {
    known_keys!().split(", ")
}

/// `key`: in lower case.
fn is_known(key: &str) -> bool {
    known_keys().any(|known| {
        let known = known.to_ascii_lowercase();
        if known.ends_with('/') { key.len() > known.len() && key.starts_with(&known) } else { key == known }
    })
}

/// Keys by which a policy can name who may do something, so that it is not public.
const WHO_KEYS: [&str; 9] = [
    "aws:sourceip",
    "aws:sourcearn",
    "aws:sourcevpc",
    "aws:sourcevpce",
    "aws:sourceaccount",
    "aws:userid",
    "aws:username",
    "aws:principalarn",
    "aws:principalorgid",
];

impl Conditions {
    pub(super) fn parse(value: Option<&Value>) -> Result<Self, Malformed> {
        let operators = match value {
            None => return Ok(Self::default()),
            Some(Value::Object(operators)) => operators,
            Some(_) => return Err(Malformed("a condition is not an object")),
        };
        let mut conditions = Vec::new();
        for (operator, keys) in operators {
            let keys = keys.as_object().ok_or(Malformed("a condition's operator has no keys"))?;
            for (key, wanted) in keys {
                conditions.push(Condition::parse(operator, key, strings(wanted)?)?);
            }
        }
        Ok(Self(conditions))
    }

    pub(super) fn hold(&self, context: &Context) -> bool {
        self.0.iter().all(|condition| condition.holds(context))
    }

    /// Refuses what asks for a key that no request has, or has a variable that is not filled in.
    pub(super) fn check_known(&self) -> Result<(), Malformed> {
        if !self.0.iter().all(|condition| is_known(&condition.key)) {
            return Err(Malformed(concat!(
                "a condition asks for a key that no request has here: use one of these, with a tag's name after the slash: ",
                known_keys!()
            )));
        }
        let mut wanted = self.0.iter().flat_map(|condition| &condition.wanted);
        match wanted.all(|wanted| pattern::has_known_variables(wanted)) {
            true => Ok(()),
            false => Err(UNKNOWN_VARIABLE),
        }
    }

    /// Whether one says what the user's name is not to be: of somebody without a name that holds by chance only.
    pub(super) fn negate_the_user(&self) -> bool {
        let negated = self.0.iter().filter(|condition| condition.negated);
        negated.flat_map(|condition| &condition.wanted).any(|wanted| pattern::names_the_user(wanted))
    }

    /// Whether a condition narrows down who may, and not only how.
    pub(super) fn names_who_may(&self) -> bool {
        let everybody = |wanted: &String| matches!(wanted.as_str(), "*" | "0.0.0.0/0" | "::/0");
        self.0.iter().any(|condition| {
            !condition.negated
                && !condition.if_exists
                && WHO_KEYS.contains(&condition.key.as_str())
                && !condition.wanted.iter().any(everybody)
        })
    }
}

impl Condition {
    fn parse(operator: &str, key: &str, wanted: Vec<String>) -> Result<Self, Malformed> {
        let (every, name) = match operator.split_once(':') {
            None => (Quantifier::Any, operator),
            Some(("ForAnyValue", name)) => (Quantifier::AnyOfMany, name),
            Some(("ForAllValues", name)) => (Quantifier::AllOfMany, name),
            Some(_) => return Err(Malformed("a condition has a quantifier that there is not")),
        };
        let (name, if_exists) = match name.strip_suffix("IfExists") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let (test, negated) = match name {
            "StringEquals" | "BinaryEquals" => (Test::Equals, false),
            "StringNotEquals" => (Test::Equals, true),
            "StringEqualsIgnoreCase" => (Test::EqualsIgnoreCase, false),
            "StringNotEqualsIgnoreCase" => (Test::EqualsIgnoreCase, true),
            "StringLike" | "ArnLike" | "ArnEquals" => (Test::Like, false),
            "StringNotLike" | "ArnNotLike" | "ArnNotEquals" => (Test::Like, true),
            "NumericEquals" => (Test::Number(Order::Equal), false),
            "NumericNotEquals" => (Test::Number(Order::Equal), true),
            "NumericLessThan" => (Test::Number(Order::Less), false),
            "NumericLessThanEquals" => (Test::Number(Order::LessOrEqual), false),
            "NumericGreaterThan" => (Test::Number(Order::Greater), false),
            "NumericGreaterThanEquals" => (Test::Number(Order::GreaterOrEqual), false),
            "DateEquals" => (Test::Date(Order::Equal), false),
            "DateNotEquals" => (Test::Date(Order::Equal), true),
            "DateLessThan" => (Test::Date(Order::Less), false),
            "DateLessThanEquals" => (Test::Date(Order::LessOrEqual), false),
            "DateGreaterThan" => (Test::Date(Order::Greater), false),
            "DateGreaterThanEquals" => (Test::Date(Order::GreaterOrEqual), false),
            "Bool" => (Test::Bool, false),
            "IpAddress" => (Test::Address, false),
            "NotIpAddress" => (Test::Address, true),
            "Null" => (Test::Null, false),
            _ => return Err(Malformed("a condition has an operator that there is not")),
        };
        if wanted.is_empty() || !wanted.iter().all(|wanted| test.reads(wanted)) {
            return Err(Malformed("a condition's value can't be read"));
        }
        let key = key.to_ascii_lowercase();
        Ok(Self { test, negated, if_exists, every, key, wanted })
    }

    fn holds(&self, context: &Context) -> bool {
        let found = context.values(&self.key);
        if self.test == Test::Null {
            return self.wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case("true") == found.is_empty());
        }
        if found.is_empty() {
            return match self.every {
                Quantifier::AllOfMany => true,
                // Of no value there is none that fits, negated or not.
                Quantifier::AnyOfMany => self.if_exists,
                Quantifier::Any => self.negated || self.if_exists,
            };
        }
        let user = context.values("aws:username").first().map(String::as_str);
        let passes = |wanted: &String, found: &str| {
            pattern::for_user(wanted, user).is_some_and(|wanted| self.test.passes(&wanted, found))
        };
        let fits = |found: &String| self.wanted.iter().any(|wanted| passes(wanted, found)) != self.negated;
        match self.every {
            Quantifier::AllOfMany => found.iter().all(fits),
            Quantifier::Any | Quantifier::AnyOfMany => found.iter().any(fits),
        }
    }
}

impl Test {
    /// Whether a policy may ask for this.
    fn reads(self, wanted: &str) -> bool {
        match self {
            Self::Equals | Self::EqualsIgnoreCase | Self::Like => true,
            Self::Number(_) => wanted.parse::<f64>().is_ok(),
            Self::Date(_) => moment(wanted).is_some(),
            Self::Bool | Self::Null => {
                wanted.eq_ignore_ascii_case("true") || wanted.eq_ignore_ascii_case("false")
            }
            Self::Address => network(wanted).is_some(),
        }
    }

    fn passes(self, wanted: &str, found: &str) -> bool {
        match self {
            Self::Equals => wanted == found,
            Self::EqualsIgnoreCase | Self::Bool => wanted.eq_ignore_ascii_case(found),
            Self::Like => pattern::matches(wanted, found),
            Self::Number(order) => match (found.parse::<f64>(), wanted.parse::<f64>()) {
                (Ok(found), Ok(wanted)) => order.holds(found.partial_cmp(&wanted)),
                _ => false,
            },
            Self::Date(order) => match (moment(found), moment(wanted)) {
                (Some(found), Some(wanted)) => order.holds(found.partial_cmp(&wanted)),
                _ => false,
            },
            Self::Address => match (network(wanted), found.parse::<IpAddr>()) {
                (Some(network), Ok(address)) => contains(network, address),
                _ => false,
            },
            Self::Null => false,
        }
    }
}

impl Order {
    fn holds(self, order: Option<std::cmp::Ordering>) -> bool {
        match self {
            Self::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
            Self::Less => order.is_some_and(std::cmp::Ordering::is_lt),
            Self::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
            Self::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
            Self::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
        }
    }
}

/// A moment: in the form of RFC 3339, a day, or seconds since 1970.
fn moment(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(seconds);
    }
    let whole = if text.contains('T') { text.to_owned() } else { format!("{text}T00:00:00Z") };
    OffsetDateTime::parse(&whole, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

type Network = (u128, u32, bool);

/// Bits of an address, and whether it is one of version 6.
fn bits(address: IpAddr) -> (u128, bool) {
    match address.to_canonical() {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, false),
        IpAddr::V6(address) => (address.to_bits(), true),
    }
}

/// An address or a network: leading bits, how many of them count, and the version.
fn network(text: &str) -> Option<Network> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u32>().ok()?)),
        None => (text, None),
    };
    let (bits, is_v6) = bits(address.parse().ok()?);
    let longest = if is_v6 { 128 } else { 32 };
    let length = length.unwrap_or(longest);
    (length <= longest).then_some((bits, length, is_v6))
}

fn contains((network, length, is_v6): Network, address: IpAddr) -> bool {
    let (address, address_is_v6) = bits(address);
    let differing = (network ^ address).checked_shr(128 - length).unwrap_or(0);
    is_v6 == address_is_v6 && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(operator: &str, key: &str, wanted: &[&str], context: &Context) -> bool {
        let wanted = wanted.iter().map(|text| (*text).to_owned()).collect();
        Condition::parse(operator, key, wanted).unwrap().holds(context)
    }

    #[test]
    fn operators_do_what_their_names_say() {
        let mut context = Context::default();
        context.add("aws:SourceIp", "10.1.2.3");
        context.add("s3:prefix", "Photos/2024");
        context.add("s3:max-keys", "10");
        context.add("aws:SecureTransport", "false");
        context.add("aws:CurrentTime", "2024-06-01T00:00:00Z");
        for (operator, key, wanted, expected) in [
            ("IpAddress", "aws:SourceIp", "10.0.0.0/8", true),
            ("IpAddress", "aws:SourceIp", "10.1.2.3", true),
            ("IpAddress", "aws:SourceIp", "0.0.0.0/0", true),
            ("IpAddress", "aws:SourceIp", "::/0", false),
            ("NotIpAddress", "aws:SourceIp", "192.168.0.0/16", true),
            ("StringEquals", "s3:prefix", "photos/2024", false),
            ("StringEqualsIgnoreCase", "s3:prefix", "photos/2024", true),
            ("StringLike", "S3:Prefix", "Photos/*", true),
            ("StringNotLike", "s3:prefix", "Photos/*", false),
            ("NumericLessThanEquals", "s3:max-keys", "10", true),
            ("NumericGreaterThan", "s3:max-keys", "10", false),
            ("Bool", "aws:SecureTransport", "true", false),
            ("DateLessThan", "aws:CurrentTime", "2025-01-01", true),
            ("DateGreaterThan", "aws:CurrentTime", "2025-01-01T00:00:00Z", false),
            ("Null", "s3:delimiter", "true", true),
            ("Null", "s3:prefix", "true", false),
        ] {
            assert_eq!(holds(operator, key, &[wanted], &context), expected, "{operator} {key} {wanted}");
        }
    }

    #[test]
    fn an_absent_key_fails_a_positive_operator_only() {
        let empty = Context::default();
        assert!(!holds("StringEquals", "aws:Referer", &["x"], &empty));
        assert!(holds("StringNotEquals", "aws:Referer", &["x"], &empty));
        assert!(holds("StringEqualsIfExists", "aws:Referer", &["x"], &empty));
        let tags = |operator| holds(operator, "s3:RequestObjectTagKeys", &["x"], &empty);
        assert!(!tags("ForAnyValue:StringEquals") && !tags("ForAnyValue:StringNotEquals"));
        assert!(tags("ForAllValues:StringEquals") && tags("ForAllValues:StringNotEquals"));
        assert!(tags("ForAnyValue:StringNotEqualsIfExists"));
    }

    #[test]
    fn quantifiers_look_at_every_value_of_a_key() {
        let mut context = Context::default();
        context.add("s3:RequestObjectTagKeys", "a");
        context.add("s3:RequestObjectTagKeys", "b");
        let ask = |operator, wanted: &[&str]| holds(operator, "s3:RequestObjectTagKeys", wanted, &context);
        assert!(ask("ForAllValues:StringEquals", &["a", "b", "c"]));
        assert!(!ask("ForAllValues:StringEquals", &["a"]));
        assert!(ask("ForAnyValue:StringEquals", &["a"]));
        assert!(!ask("ForAnyValue:StringEquals", &["c"]));
    }

    #[test]
    fn values_that_can_not_be_read_are_refused() {
        for (operator, wanted) in [
            ("NumericEquals", "many"),
            ("DateEquals", "yesterday"),
            ("IpAddress", "10.0.0.0/33"),
            ("IpAddress", "ten"),
            ("Bool", "perhaps"),
            ("ForEver:StringEquals", "x"),
        ] {
            assert!(Condition::parse(operator, "k", vec![wanted.to_owned()]).is_err(), "{operator} {wanted}");
        }
    }
}
