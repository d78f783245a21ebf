//! Conditional requests and ranges, as RFC 9110 orders them (sections 13.2.2 and 14).

use std::ops::Range;

use objects::ObjectInfo;
use s3s::dto::{self, ETagCondition, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::convert::{timestamp, unix_seconds};
use crate::error::invalid;

/// The four conditions of a read, or of the source of a copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadConditions {
    pub(crate) if_match: Option<ETagCondition>,
    pub(crate) if_none_match: Option<ETagCondition>,
    pub(crate) if_modified_since: Option<Timestamp>,
    pub(crate) if_unmodified_since: Option<Timestamp>,
}

fn matches(condition: &ETagCondition, info: &ObjectInfo) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(etag) => etag.value() == info.etag.to_string(),
    }
}

/// What the conditions say about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Go,
    NotModified,
    Failed,
}

impl ReadConditions {
    pub(crate) fn evaluate(&self, info: &ObjectInfo) -> Verdict {
        let modified = unix_seconds(&timestamp(info.modified));
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(wanted), _) if !matches(wanted, info) => return Verdict::Failed,
            (None, Some(since)) if modified > unix_seconds(since) => return Verdict::Failed,
            _ => {}
        }
        match (&self.if_none_match, &self.if_modified_since) {
            (Some(unwanted), _) if matches(unwanted, info) => Verdict::NotModified,
            (None, Some(since)) if modified <= unix_seconds(since) => Verdict::NotModified,
            _ => Verdict::Go,
        }
    }

    /// For reads: 304 or 412.
    pub(crate) fn check(&self, info: &ObjectInfo) -> S3Result<()> {
        match self.evaluate(info) {
            Verdict::Go => Ok(()),
            Verdict::Failed => Err(failed()),
            Verdict::NotModified => Err(not_modified(info)),
        }
    }

    /// For the source of a copy nothing is ever "not modified".
    pub(crate) fn check_source(&self, info: &ObjectInfo) -> S3Result<()> {
        if self.evaluate(info) == Verdict::Go { Ok(()) } else { Err(failed()) }
    }
}

fn failed() -> S3Error {
    S3Error::with_message(S3ErrorCode::PreconditionFailed, "a precondition of the request did not hold")
}

fn not_modified(info: &ObjectInfo) -> S3Error {
    let mut headers = http::HeaderMap::new();
    if let Ok(etag) = format!("\"{}\"", info.etag).parse() {
        headers.insert(http::header::ETAG, etag);
    }
    let mut date = Vec::new();
    if timestamp(info.modified).format(dto::TimestampFormat::HttpDate, &mut date).is_ok()
        && let Ok(date) = http::HeaderValue::from_bytes(&date)
    {
        headers.insert(http::header::LAST_MODIFIED, date);
    }
    let mut error = S3Error::new(S3ErrorCode::NotModified);
    error.set_status_code(http::StatusCode::NOT_MODIFIED);
    error.set_headers(headers);
    error
}

/// The bytes that a request wants, and whether they are a part of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) range: Range<u64>,
    pub(crate) content_range: Option<String>,
}

/// `part`: gives the bytes of a numbered part.
pub(crate) fn select(
    bytes: u64,
    range: Option<dto::Range>,
    number: Option<i32>,
    part: impl FnOnce(u16) -> Option<Range<u64>>,
) -> S3Result<Selection> {
    let range = match (range, number) {
        (None, None) => return Ok(Selection { range: 0..bytes, content_range: None }),
        (Some(_), Some(_)) => {
            return Err(S3Error::with_message(
                S3ErrorCode::InvalidRequest,
                "a range and a part number can't go together",
            ));
        }
        (Some(range), None) if bytes > 0 => range.check(bytes).map_err(|_| unsatisfiable(bytes))?,
        (Some(_), None) => return Err(unsatisfiable(bytes)),
        (None, Some(number)) => {
            let number = u16::try_from(number).ok().filter(|number| *number > 0);
            part(number.ok_or(invalid("part numbers run from 1 to 10,000"))?)
                .ok_or_else(|| S3Error::with_message(S3ErrorCode::InvalidPart, "there is no such part"))?
        }
    };
    let content_range =
        (range.start < range.end).then(|| format!("bytes {}-{}/{bytes}", range.start, range.end - 1));
    Ok(Selection { range, content_range })
}

fn unsatisfiable(bytes: u64) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::InvalidRange, "the range is not within the object");
    let mut headers = http::HeaderMap::new();
    if let Ok(range) = format!("bytes */{bytes}").parse() {
        headers.insert(http::header::CONTENT_RANGE, range);
    }
    // The headers of an error replace those of its body.
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    error.set_headers(headers);
    error
}

/// `x-amz-copy-source-range`: `bytes=first-last`, both within the source.
pub(crate) fn source_range(text: Option<&str>, bytes: u64) -> S3Result<Range<u64>> {
    let Some(text) = text else { return Ok(0..bytes) };
    let ends = text.strip_prefix("bytes=").and_then(|text| text.split_once('-'));
    let ends = ends.and_then(|(first, last)| Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?)));
    match ends {
        None => Err(invalid("x-amz-copy-source-range must be bytes=first-last")),
        Some((first, last)) if first <= last && last < bytes => Ok(first..last + 1),
        Some(_) => Err(unsatisfiable(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use objects::{Attributes, ETag, Metadata};

    use super::*;

    fn info() -> ObjectInfo {
        ObjectInfo {
            bytes: 100,
            modified: UNIX_EPOCH + Duration::from_millis(1_000_500),
            etag: ETag { md5: [0; 16], parts: 0 },
            checksum: None,
            metadata: Metadata::default(),
            version: None,
            attributes: Attributes::default(),
            proof: None,
            named_key: None,
        }
    }

    fn at(seconds: u64) -> Option<Timestamp> {
        Some(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)))
    }

    fn tag(value: &str) -> Option<ETagCondition> {
        Some(ETagCondition::ETag(dto::ETag::Strong(value.to_owned())))
    }

    #[test]
    fn conditions_take_precedence_as_rfc_9110_says() {
        let this = "0".repeat(32);
        let verdict = |conditions: ReadConditions| conditions.evaluate(&info());
        assert_eq!(verdict(ReadConditions::default()), Verdict::Go);
        let outdated = ReadConditions { if_match: tag("other"), ..Default::default() };
        assert_eq!(verdict(outdated), Verdict::Failed);
        // A matching If-Match makes If-Unmodified-Since irrelevant.
        let both = ReadConditions { if_match: tag(&this), if_unmodified_since: at(1), ..Default::default() };
        assert_eq!(verdict(both), Verdict::Go);
        let since = ReadConditions { if_unmodified_since: at(999), ..Default::default() };
        assert_eq!(verdict(since), Verdict::Failed);
        let cached = ReadConditions { if_none_match: tag(&this), ..Default::default() };
        assert_eq!(verdict(cached), Verdict::NotModified);
        // An If-None-Match that does not match makes If-Modified-Since irrelevant.
        let new = ReadConditions {
            if_none_match: tag("other"),
            if_modified_since: at(5_000),
            ..Default::default()
        };
        assert_eq!(verdict(new), Verdict::Go);
        // HTTP dates have whole seconds: the half second is not a modification.
        let same = ReadConditions { if_modified_since: at(1_000), ..Default::default() };
        assert_eq!(verdict(same), Verdict::NotModified);
    }

    #[test]
    fn ranges_select_what_they_name_or_nothing() {
        let range = |text: &str, bytes| select(bytes, Some(dto::Range::parse(text).unwrap()), None, |_| None);
        let selected = |text, bytes| range(text, bytes).map(|selection| selection.range);
        assert_eq!(selected("bytes=0-9", 100).unwrap(), 0..10);
        assert_eq!(selected("bytes=90-", 100).unwrap(), 90..100);
        assert_eq!(selected("bytes=90-1000", 100).unwrap(), 90..100);
        assert_eq!(selected("bytes=-7", 100).unwrap(), 93..100);
        assert_eq!(selected("bytes=-700", 100).unwrap(), 0..100);
        assert_eq!(range("bytes=5-5", 100).unwrap().content_range.unwrap(), "bytes 5-5/100");
        for (text, bytes) in [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-5", 0)] {
            assert_eq!(range(text, bytes).unwrap_err().code(), &S3ErrorCode::InvalidRange, "{text}");
        }
        let part = select(100, None, Some(2), |number| (number == 2).then_some(50..100)).unwrap();
        assert_eq!(part.content_range.unwrap(), "bytes 50-99/100");
        assert!(select(100, None, Some(3), |_| None).is_err());
        assert!(select(100, None, Some(0), |_| Some(0..1)).is_err());
    }

    #[test]
    fn copy_ranges_lie_within_the_source() {
        assert_eq!(source_range(None, 10).unwrap(), 0..10);
        assert_eq!(source_range(Some("bytes=2-9"), 10).unwrap(), 2..10);
        for bad in ["bytes=2-10", "bytes=5-2", "bytes=-5", "bytes=5-", "2-5", "bytes=a-b"] {
            assert!(source_range(Some(bad), 10).is_err(), "{bad}");
        }
    }
}
