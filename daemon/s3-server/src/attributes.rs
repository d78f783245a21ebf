//! Tags, locks and versions, between the protocol and the store.

use std::time::{Duration, UNIX_EPOCH};

use objects::{Acl, Attributes, LockMode, ObjectInfo, ObjectLock, Retention, VersionId};
use s3s::dto::{self, ObjectLockLegalHoldStatus, ObjectLockMode, ObjectLockRetentionMode, Tag, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::convert::timestamp;
use crate::error::invalid;
use crate::policy::percent_decode;

/// What a request that makes an object says about it besides headers and bytes.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) tagging: Option<String>,
    pub(crate) mode: Option<ObjectLockMode>,
    pub(crate) until: Option<Timestamp>,
    pub(crate) hold: Option<ObjectLockLegalHoldStatus>,
}

/// Takes the fields of a protocol type that [`Asked`] has.
macro_rules! asked_attributes {
    ($from:expr) => {
        $crate::attributes::Asked {
            tagging: $from.tagging.take(),
            mode: $from.object_lock_mode.take(),
            until: $from.object_lock_retain_until_date.take(),
            hold: $from.object_lock_legal_hold_status.take(),
        }
    };
}

/// Fills the lock and version headers of a response that carries an object, or would.
macro_rules! set_attribute_headers {
    ($to:expr, $info:expr) => {
        let lock = $info.attributes.lock;
        $to.object_lock_mode =
            lock.retention.map(|retention| $crate::attributes::mode_header(retention.mode));
        $to.object_lock_retain_until_date = lock.retention.map($crate::attributes::until);
        $to.object_lock_legal_hold_status = lock.legal_hold.map($crate::attributes::hold_status);
        $to.version_id = $info.version.map(|version| version.to_string());
    };
}

pub(crate) use {asked_attributes, set_attribute_headers};

impl Asked {
    pub(crate) fn into_attributes(self, acl: Acl) -> S3Result<Attributes> {
        let tags = self.tagging.as_deref().map(parse_tag_header).transpose()?.unwrap_or_default();
        let retention = match (self.mode, self.until) {
            (None, None) => None,
            (Some(mode), Some(until)) => {
                Some(Retention { mode: lock_mode(mode.as_str())?, until_ms: ms(&until)? })
            }
            _ => {
                return Err(invalid(
                    "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must be given together",
                ));
            }
        };
        let legal_hold = self.hold.map(|hold| parse_hold(hold.as_str())).transpose()?;
        Ok(Attributes { tags, lock: ObjectLock { retention, legal_hold }, acl })
    }
}

/// The version that a request names; `None` for the newest.
pub(crate) fn version(text: Option<&str>) -> S3Result<Option<VersionId>> {
    match text {
        None => Ok(None),
        Some(text) => VersionId::parse(text)
            .map(Some)
            .ok_or_else(|| invalid("the version id is not one of this server's")),
    }
}

/// `x-amz-tagging`: names and values as in a query.
pub(crate) fn parse_tag_header(text: &str) -> S3Result<Vec<(String, String)>> {
    let malformed = || invalid("the tagging header can't be read");
    let mut tags = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        tags.push((
            percent_decode(name).ok_or_else(malformed)?,
            percent_decode(value).ok_or_else(malformed)?,
        ));
    }
    tags.sort_unstable();
    Ok(tags)
}

pub(crate) fn tags_of(set: Vec<Tag>) -> S3Result<Vec<(String, String)>> {
    let pair = |tag: Tag| match (tag.key, tag.value) {
        (Some(name), value) => Ok((name, value.unwrap_or_default())),
        (None, _) => Err(S3Error::with_message(S3ErrorCode::MalformedXML, "a tag has no key")),
    };
    let mut tags = set.into_iter().map(pair).collect::<S3Result<Vec<_>>>()?;
    tags.sort_unstable();
    Ok(tags)
}

pub(crate) fn tag_set(tags: &[(String, String)]) -> Vec<Tag> {
    tags.iter().map(|(name, value)| Tag { key: Some(name.clone()), value: Some(value.clone()) }).collect()
}

/// `x-amz-tagging-count` is there only where there are tags.
pub(crate) fn tag_count(info: &ObjectInfo) -> Option<i32> {
    i32::try_from(info.attributes.tags.len()).ok().filter(|count| *count > 0)
}

fn malformed() -> S3Error {
    S3Error::with_message(S3ErrorCode::MalformedXML, "the lock configuration can't be read")
}

pub(crate) fn lock_mode(text: &str) -> S3Result<LockMode> {
    match text {
        "GOVERNANCE" => Ok(LockMode::Governance),
        "COMPLIANCE" => Ok(LockMode::Compliance),
        _ => Err(malformed()),
    }
}

fn mode_text(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Governance => "GOVERNANCE",
        LockMode::Compliance => "COMPLIANCE",
    }
}

pub(crate) fn mode_header(mode: LockMode) -> ObjectLockMode {
    ObjectLockMode::from_static(mode_text(mode))
}

pub(crate) fn retention_mode(mode: LockMode) -> ObjectLockRetentionMode {
    ObjectLockRetentionMode::from_static(mode_text(mode))
}

pub(crate) fn parse_hold(text: &str) -> S3Result<bool> {
    match text {
        "ON" => Ok(true),
        "OFF" => Ok(false),
        _ => Err(malformed()),
    }
}

pub(crate) fn hold_status(hold: bool) -> ObjectLockLegalHoldStatus {
    ObjectLockLegalHoldStatus::from_static(if hold { "ON" } else { "OFF" })
}

/// The last moment of the year 9999: what a timestamp can be written for.
const UNTIL_MS_MAX: u64 = 253_402_300_799_999;

pub(crate) fn until(retention: Retention) -> Timestamp {
    timestamp(UNIX_EPOCH + Duration::from_millis(retention.until_ms.min(UNTIL_MS_MAX)))
}

pub(crate) fn retention(asked: Option<dto::ObjectLockRetention>) -> S3Result<Option<Retention>> {
    match asked.map(|asked| (asked.mode, asked.retain_until_date)) {
        Some((Some(mode), Some(until))) => {
            Ok(Some(Retention { mode: lock_mode(mode.as_str())?, until_ms: ms(&until)? }))
        }
        Some((None, None)) => Ok(None),
        _ => Err(malformed()),
    }
}

fn ms(time: &Timestamp) -> S3Result<u64> {
    let nanoseconds = time::OffsetDateTime::from(time.clone()).unix_timestamp_nanos();
    let ms = u64::try_from(nanoseconds / 1_000_000)
        .map_err(|_| invalid("the time to retain until must be in the future"))?;
    if ms > UNTIL_MS_MAX {
        return Err(invalid("the time to retain until must be before the year 10000"));
    }
    Ok(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_from_a_header_as_from_a_query() {
        let expected = vec![("a b".to_owned(), "c+d".to_owned()), ("e".to_owned(), String::new())];
        assert_eq!(parse_tag_header("a%20b=c%2Bd&e").unwrap(), expected);
        assert_eq!(parse_tag_header("").unwrap(), Vec::new());
        assert!(parse_tag_header("a=%ff").is_err());
    }

    #[test]
    fn a_retention_needs_both_its_mode_and_its_time() {
        let mode = ObjectLockMode::from_static("GOVERNANCE");
        let asked = Asked { mode: Some(mode), ..Asked::default() };
        assert!(asked.into_attributes(Acl::default()).is_err());
        let lower = Asked {
            mode: Some(ObjectLockMode::from_static("governance")),
            until: Some(Timestamp::from(UNIX_EPOCH)),
            ..Asked::default()
        };
        assert!(lower.into_attributes(Acl::default()).is_err());
    }
}
