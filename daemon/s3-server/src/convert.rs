//! Between the types of the protocol and those of the store.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use objects::{Checksum, ChecksumAlgorithm, ChecksumKind, Condition, ETag, Metadata, ObjectInfo, TagMatch};
use s3s::dto::{self, ETagCondition, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::error::invalid;

/// What an object has whose client named no type (S3).
const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";

/// Owner of what no user owns: the node.
const NODE: &str = "nightlatch";

/// What clients see as the owner's name.
pub(crate) fn owner_name(user: &str) -> &str {
    if user.is_empty() { NODE } else { user }
}

pub(crate) fn owner(user: &str) -> dto::Owner {
    let name = owner_name(user).to_owned();
    dto::Owner { display_name: Some(name.clone()), id: Some(name) }
}

pub(crate) fn etag(etag: &ETag) -> dto::ETag {
    dto::ETag::Strong(etag.to_string())
}

pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

/// Seconds since 1970, as HTTP dates have them.
pub(crate) fn unix_seconds(time: &Timestamp) -> i64 {
    time::OffsetDateTime::from(time.clone()).unix_timestamp()
}

pub(crate) fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The five checksum fields that many of the protocol's types have.
#[derive(Debug, Default)]
pub(crate) struct ChecksumFields {
    pub(crate) crc32: Option<String>,
    pub(crate) crc32c: Option<String>,
    pub(crate) crc64nvme: Option<String>,
    pub(crate) sha1: Option<String>,
    pub(crate) sha256: Option<String>,
}

/// Takes the checksum fields of a protocol type.
macro_rules! checksum_fields {
    ($from:expr) => {
        $crate::convert::ChecksumFields {
            crc32: $from.checksum_crc32.take(),
            crc32c: $from.checksum_crc32c.take(),
            crc64nvme: $from.checksum_crc64nvme.take(),
            sha1: $from.checksum_sha1.take(),
            sha256: $from.checksum_sha256.take(),
        }
    };
}

/// Fills the checksum fields of a protocol type.
macro_rules! set_checksum_fields {
    ($to:expr, $checksum:expr) => {
        if let Some(checksum) = $checksum {
            let value = Some($crate::convert::checksum_text(checksum));
            match checksum.algorithm {
                objects::ChecksumAlgorithm::Crc32 => $to.checksum_crc32 = value,
                objects::ChecksumAlgorithm::Crc32c => $to.checksum_crc32c = value,
                objects::ChecksumAlgorithm::Crc64Nvme => $to.checksum_crc64nvme = value,
                objects::ChecksumAlgorithm::Sha1 => $to.checksum_sha1 = value,
                objects::ChecksumAlgorithm::Sha256 => $to.checksum_sha256 = value,
            }
        }
    };
}

pub(crate) use {checksum_fields, set_checksum_fields};

impl ChecksumFields {
    /// The one checksum that is given; S3 allows no two.
    pub(crate) fn checksum(self) -> S3Result<Option<Checksum>> {
        let given = [
            (ChecksumAlgorithm::Crc32, self.crc32),
            (ChecksumAlgorithm::Crc32c, self.crc32c),
            (ChecksumAlgorithm::Crc64Nvme, self.crc64nvme),
            (ChecksumAlgorithm::Sha1, self.sha1),
            (ChecksumAlgorithm::Sha256, self.sha256),
        ];
        let mut given = given.into_iter().filter_map(|(algorithm, text)| text.map(|text| (algorithm, text)));
        let Some((algorithm, text)) = given.next() else { return Ok(None) };
        if given.next().is_some() {
            return Err(invalid("more than one checksum is given"));
        }
        parse_checksum(algorithm, &text).map(Some)
    }
}

/// A checksum as clients write it: base64, and for composite ones the number of parts, which is left out here.
pub(crate) fn parse_checksum(algorithm: ChecksumAlgorithm, text: &str) -> S3Result<Checksum> {
    let value = text.split('-').next().unwrap_or_default();
    let value = STANDARD.decode(value).ok().and_then(|value| Checksum::of_bytes(algorithm, value));
    value.ok_or_else(|| S3Error::with_message(S3ErrorCode::BadDigest, "a checksum value is not well-formed"))
}

pub(crate) fn checksum_text(checksum: &Checksum) -> String {
    let value = STANDARD.encode(&checksum.value);
    match checksum.parts {
        0 => value,
        parts => format!("{value}-{parts}"),
    }
}

pub(crate) fn algorithm(name: &str) -> S3Result<ChecksumAlgorithm> {
    match name.to_ascii_uppercase().as_str() {
        "CRC32" => Ok(ChecksumAlgorithm::Crc32),
        "CRC32C" => Ok(ChecksumAlgorithm::Crc32c),
        "CRC64NVME" => Ok(ChecksumAlgorithm::Crc64Nvme),
        "SHA1" => Ok(ChecksumAlgorithm::Sha1),
        "SHA256" => Ok(ChecksumAlgorithm::Sha256),
        _ => Err(S3Error::with_message(S3ErrorCode::InvalidRequest, "this checksum algorithm is not known")),
    }
}

pub(crate) fn algorithm_name(algorithm: ChecksumAlgorithm) -> dto::ChecksumAlgorithm {
    dto::ChecksumAlgorithm::from_static(match algorithm {
        ChecksumAlgorithm::Crc32 => dto::ChecksumAlgorithm::CRC32,
        ChecksumAlgorithm::Crc32c => dto::ChecksumAlgorithm::CRC32C,
        ChecksumAlgorithm::Crc64Nvme => dto::ChecksumAlgorithm::CRC64NVME,
        ChecksumAlgorithm::Sha1 => dto::ChecksumAlgorithm::SHA1,
        ChecksumAlgorithm::Sha256 => dto::ChecksumAlgorithm::SHA256,
    })
}

pub(crate) fn kind(name: &dto::ChecksumType) -> S3Result<ChecksumKind> {
    match name.as_str() {
        dto::ChecksumType::FULL_OBJECT => Ok(ChecksumKind::FullObject),
        dto::ChecksumType::COMPOSITE => Ok(ChecksumKind::Composite),
        _ => Err(invalid("the checksum type is not known")),
    }
}

pub(crate) fn kind_name(kind: ChecksumKind) -> dto::ChecksumType {
    dto::ChecksumType::from_static(match kind {
        ChecksumKind::FullObject => dto::ChecksumType::FULL_OBJECT,
        ChecksumKind::Composite => dto::ChecksumType::COMPOSITE,
    })
}

/// `Content-MD5`: base64 of 16 bytes.
pub(crate) fn parse_md5(text: &str) -> S3Result<[u8; 16]> {
    let value = STANDARD.decode(text).ok().and_then(|value| value.try_into().ok());
    value.ok_or_else(|| S3Error::with_message(S3ErrorCode::InvalidDigest, "Content-MD5 is not well-formed"))
}

fn tag_match(condition: ETagCondition) -> TagMatch {
    match condition {
        ETagCondition::Any => TagMatch::Any,
        ETagCondition::ETag(etag) => TagMatch::Tag(etag.into_value()),
    }
}

pub(crate) fn condition(if_match: Option<ETagCondition>, if_none_match: Option<ETagCondition>) -> Condition {
    Condition {
        if_match: if_match.map(tag_match),
        if_none_match: if_none_match.map(tag_match),
        ..Condition::default()
    }
}

/// The headers of an object as a request gives them.
#[derive(Debug, Default)]
pub(crate) struct Headers {
    pub(crate) cache_control: Option<String>,
    pub(crate) content_disposition: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) content_language: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) user: Option<dto::Metadata>,
}

/// Takes the object headers of a protocol type.
macro_rules! object_headers {
    ($from:expr) => {
        $crate::convert::Headers {
            cache_control: $from.cache_control.take(),
            content_disposition: $from.content_disposition.take(),
            content_encoding: $from.content_encoding.take(),
            content_language: $from.content_language.take(),
            content_type: $from.content_type.take(),
            expires: $from.expires.take(),
            user: $from.metadata.take(),
        }
    };
}

/// Fills the headers of a response that carries an object, or would.
macro_rules! set_object_headers {
    ($to:expr, $info:expr) => {
        let info: &objects::ObjectInfo = $info;
        $to.accept_ranges = Some("bytes".to_owned());
        $to.cache_control = info.metadata.cache_control.clone();
        $to.content_disposition = info.metadata.content_disposition.clone();
        $to.content_encoding = info.metadata.content_encoding.clone();
        $to.content_language = info.metadata.content_language.clone();
        $to.content_type = Some($crate::convert::content_type(info));
        $to.expires = $crate::convert::expires(info);
        $to.e_tag = Some($crate::convert::etag(&info.etag));
        $to.last_modified = Some($crate::convert::timestamp(info.modified));
        $to.metadata = Some(info.metadata.user.iter().cloned().collect());
    };
}

pub(crate) use {object_headers, set_object_headers};

impl Headers {
    pub(crate) fn into_metadata(self) -> Metadata {
        let mut user: Vec<_> = self.user.unwrap_or_default().into_iter().collect();
        user.sort_unstable();
        Metadata {
            content_type: self.content_type,
            cache_control: self.cache_control,
            content_disposition: self.content_disposition,
            content_encoding: self.content_encoding.and_then(|encoding| stored_encoding(&encoding)),
            content_language: self.content_language,
            expires: self.expires.as_ref().map(unix_seconds),
            user,
        }
    }
}

/// `aws-chunked` is how the body came, not how it is.
fn stored_encoding(encoding: &str) -> Option<String> {
    let kept: Vec<&str> =
        encoding.split(',').map(str::trim).filter(|part| !part.eq_ignore_ascii_case("aws-chunked")).collect();
    (!kept.is_empty() && !kept.concat().is_empty()).then(|| kept.join(", "))
}

pub(crate) fn content_type(info: &ObjectInfo) -> String {
    info.metadata.content_type.clone().unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned())
}

pub(crate) fn expires(info: &ObjectInfo) -> Option<Timestamp> {
    let seconds = info.metadata.expires?;
    time::OffsetDateTime::from_unix_timestamp(seconds).ok().map(Timestamp::from)
}

/// S3's `encoding-type=url`: everything but unreserved characters and the slash.
pub(crate) fn url_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_of_the_transport_are_not_kept() {
        assert_eq!(stored_encoding("aws-chunked"), None);
        assert_eq!(stored_encoding("gzip, aws-chunked").unwrap(), "gzip");
        assert_eq!(stored_encoding("aws-chunked,gzip,br").unwrap(), "gzip, br");
        assert_eq!(stored_encoding(""), None);
    }

    #[test]
    fn keys_are_encoded_so_that_both_ways_of_decoding_agree() {
        assert_eq!(url_encoded("a/b c+ä\n"), "a/b%20c%2B%C3%A4%0A");
    }

    #[test]
    fn checksums_are_read_with_and_without_a_part_count() {
        let plain = parse_checksum(ChecksumAlgorithm::Crc32, "y/Q5Jg==").unwrap();
        assert_eq!(plain, parse_checksum(ChecksumAlgorithm::Crc32, "y/Q5Jg==-3").unwrap());
        assert_eq!(checksum_text(&Checksum { parts: 3, ..plain }), "y/Q5Jg==-3");
        for bad in ["", "y/Q5", "not base64!", "y/Q5JgAA"] {
            assert!(parse_checksum(ChecksumAlgorithm::Crc32, bad).is_err(), "{bad}");
        }
        let two =
            ChecksumFields { crc32: Some("y/Q5Jg==".into()), sha1: Some("x".into()), ..Default::default() };
        assert!(two.checksum().is_err());
    }
}
