//! Lifecycle rules as values: read from what a client puts, and asked what they say about a version.
//!
//! Amazon S3 User Guide, "Lifecycle configuration elements". Transitions to other storage classes don't exist here and are
//! refused when a configuration is put.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use objects::{ObjectInfo, VersionEntry};
use s3s::dto::{LifecycleExpiration, LifecycleRule, LifecycleRuleFilter, Tag, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::attributes::tags_of;
use crate::convert::{timestamp, unix_seconds};
use crate::error::{invalid, not_implemented};

/// Rules of a configuration (S3).
const RULES_MAX: usize = 1000;

/// Longest id of a rule (S3).
const ID_BYTES_MAX: usize = 255;

const DAY_SECONDS: u64 = 24 * 3600;

/// When current versions go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    Never,
    /// Days after they were written.
    After(u32),
    /// All of them, from this moment on: seconds since 1970.
    From(u64),
}

/// A rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) id: String,
    pub(crate) prefix: String,
    tags: Vec<(String, String)>,
    larger_than: Option<u64>,
    smaller_than: Option<u64>,
    pub(crate) expiry: Expiry,
    pub(crate) expires_markers: bool,
    /// Days after they were replaced, and how many of the newest stay whatever their age.
    pub(crate) noncurrent: Option<(u32, usize)>,
    /// Days after they were begun.
    pub(crate) aborts_uploads: Option<u32>,
}

fn malformed(message: &'static str) -> S3Error {
    S3Error::with_message(S3ErrorCode::MalformedXML, message)
}

/// The rules of a configuration that are enabled; refuses a configuration that S3 would.
pub(crate) fn read(rules: &[LifecycleRule]) -> S3Result<Vec<Rule>> {
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(malformed("a lifecycle configuration has 1 to 1,000 rules"));
    }
    let mut ids = HashSet::new();
    let mut enabled = Vec::new();
    for rule in rules {
        let id = rule.id.clone().unwrap_or_default();
        if id.len() > ID_BYTES_MAX {
            return Err(invalid("the id of a rule has at most 255 characters"));
        }
        if !id.is_empty() && !ids.insert(id.clone()) {
            return Err(invalid("two rules have the same id"));
        }
        let found = read_rule(rule, id)?;
        match rule.status.as_str() {
            "Enabled" => enabled.push(found),
            "Disabled" => {}
            _ => return Err(malformed("the status of a rule must be Enabled or Disabled")),
        }
    }
    Ok(enabled)
}

fn read_rule(rule: &LifecycleRule, id: String) -> S3Result<Rule> {
    let transitions = rule.transitions.as_ref().is_some_and(|list| !list.is_empty())
        || rule.noncurrent_version_transitions.as_ref().is_some_and(|list| !list.is_empty());
    if transitions {
        return Err(not_implemented(
            "there is one storage class: transitions are not implemented".to_owned(),
        ));
    }
    let (expiry, expires_markers) = match &rule.expiration {
        Some(expiration) => read_expiration(expiration)?,
        None => (Expiry::Never, false),
    };
    let noncurrent = match &rule.noncurrent_version_expiration {
        None => None,
        Some(asked) => {
            let kept = asked.newer_noncurrent_versions.unwrap_or(0);
            let kept = usize::try_from(kept).map_err(|_| invalid("NewerNoncurrentVersions"))?;
            Some((days(asked.noncurrent_days)?, kept))
        }
    };
    let aborts_uploads = match &rule.abort_incomplete_multipart_upload {
        None => None,
        Some(asked) => Some(days(asked.days_after_initiation)?),
    };
    if rule.expiration.is_none() && noncurrent.is_none() && aborts_uploads.is_none() {
        return Err(s3_error!(InvalidRequest, "a rule has no action"));
    }
    let filter = rule.filter.as_ref();
    if rule.prefix.is_some() && filter.is_some() {
        return Err(malformed("a rule has a filter or a prefix, not both"));
    }
    let mut read = read_filter(filter)?;
    read.id = id;
    if let Some(prefix) = &rule.prefix {
        read.prefix.clone_from(prefix);
    }
    if !read.tags.is_empty() && (aborts_uploads.is_some() || expires_markers) {
        return Err(s3_error!(InvalidRequest, "uploads and delete markers have no tags to choose them by"));
    }
    Ok(Rule { expiry, expires_markers, noncurrent, aborts_uploads, ..read })
}

fn days(asked: Option<i32>) -> S3Result<u32> {
    let days = asked.ok_or_else(|| malformed("an action has no number of days"))?;
    u32::try_from(days)
        .ok()
        .filter(|days| *days > 0)
        .ok_or_else(|| invalid("the number of days must be positive"))
}

fn read_expiration(expiration: &LifecycleExpiration) -> S3Result<(Expiry, bool)> {
    let markers = expiration.expired_object_delete_marker;
    match (expiration.days, &expiration.date, markers) {
        (Some(number), None, None) => Ok((Expiry::After(days(Some(number))?), false)),
        (None, Some(date), None) => {
            let seconds = u64::try_from(unix_seconds(date)).map_err(|_| invalid("the date of a rule"))?;
            if !seconds.is_multiple_of(DAY_SECONDS) {
                return Err(invalid("the date of a rule must be midnight UTC"));
            }
            Ok((Expiry::From(seconds), false))
        }
        (None, None, Some(markers)) => Ok((Expiry::Never, markers)),
        _ => Err(malformed("an expiration has days, a date or expired delete markers, one of them")),
    }
}

fn read_filter(filter: Option<&LifecycleRuleFilter>) -> S3Result<Rule> {
    let bytes = |number: Option<i64>| {
        number.map(u64::try_from).transpose().map_err(|_| invalid("the size of a filter can't be negative"))
    };
    let tag = |tag: &Tag| tags_of(vec![tag.clone()]);
    let mut rule = Rule {
        id: String::new(),
        prefix: String::new(),
        tags: Vec::new(),
        larger_than: None,
        smaller_than: None,
        expiry: Expiry::Never,
        expires_markers: false,
        noncurrent: None,
        aborts_uploads: None,
    };
    let Some(filter) = filter else { return Ok(rule) };
    if let Some(prefix) = &filter.prefix {
        rule.prefix.clone_from(prefix);
    }
    if let Some(one) = &filter.tag {
        rule.tags = tag(one)?;
    }
    rule.larger_than = bytes(filter.object_size_greater_than)?;
    rule.smaller_than = bytes(filter.object_size_less_than)?;
    if let Some(and) = &filter.and {
        rule.prefix = and.prefix.clone().unwrap_or_default();
        rule.tags = tags_of(and.tags.clone().unwrap_or_default())?;
        rule.larger_than = bytes(and.object_size_greater_than)?;
        rule.smaller_than = bytes(and.object_size_less_than)?;
    }
    Ok(rule)
}

/// An object, as far as rules ask about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    key: &'a str,
    bytes: u64,
    modified: SystemTime,
    tags: &'a [(String, String)],
}

impl<'a> Candidate<'a> {
    pub(crate) fn of(key: &'a str, info: &'a ObjectInfo) -> Self {
        Self { key, bytes: info.bytes, modified: info.modified, tags: &info.attributes.tags }
    }

    pub(crate) fn listed(entry: &'a VersionEntry) -> Self {
        let info = &entry.info;
        Self { key: &entry.key, bytes: info.bytes, modified: info.modified, tags: &info.tags }
    }
}

impl Rule {
    /// Whether the rule is about this object.
    pub(crate) fn fits(&self, object: Candidate<'_>) -> bool {
        object.key.starts_with(&self.prefix)
            && self.tags.iter().all(|tag| object.tags.contains(tag))
            && self.larger_than.is_none_or(|bytes| object.bytes > bytes)
            && self.smaller_than.is_none_or(|bytes| object.bytes < bytes)
    }
}

/// When something that happened at `since` is due after `days`: at the first midnight after that many whole days, or, where a
/// test has shorter days, at once after them.
pub(crate) fn due(since: SystemTime, days: u32, day: Duration) -> SystemTime {
    let whole = day == Duration::from_secs(DAY_SECONDS);
    let moment = since + day.saturating_mul(days);
    if !whole {
        return moment;
    }
    let seconds = moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    UNIX_EPOCH + Duration::from_secs(seconds.div_ceil(DAY_SECONDS) * DAY_SECONDS)
}

/// `x-amz-expiration`: when the current version of an object goes, in whole days whatever a test's days are.
pub(crate) fn header(rules: &[Rule], key: &str, info: &ObjectInfo) -> Option<String> {
    let (moment, rule) = expiry(rules, Candidate::of(key, info), Duration::from_secs(DAY_SECONDS))?;
    let mut date = Vec::new();
    timestamp(moment).format(TimestampFormat::HttpDate, &mut date).ok()?;
    Some(format!("expiry-date=\"{}\", rule-id=\"{}\"", String::from_utf8(date).ok()?, rule.id))
}

/// When the current version of an object goes, and by which rule: the first of those that fit.
pub(crate) fn expiry<'a>(
    rules: &'a [Rule],
    object: Candidate<'_>,
    day: Duration,
) -> Option<(SystemTime, &'a Rule)> {
    let moment = |rule: &Rule| match rule.expiry {
        Expiry::Never => None,
        Expiry::After(days) => Some(due(object.modified, days, day)),
        Expiry::From(seconds) => Some(UNIX_EPOCH + Duration::from_secs(seconds)),
    };
    let fitting = rules.iter().filter(|rule| rule.fits(object));
    fitting.filter_map(|rule| Some((moment(rule)?, rule))).min_by_key(|(moment, _)| *moment)
}
