//! What the rows of the index say, as types, and their encoding (FORMAT.md, "Rows").
//!
//! A row is a version byte and the postcard encoding of one of the types below. A field is only ever added together with
//! a new version byte. Where a row names runs, they come first, so that opening the store reads no further.
//!
//! Rows of an earlier version are read as they are and written anew only when they change; `earlier` has their types.

mod earlier;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::acl::Acl;
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind};
use crate::customer_key::{BodySalt, KeyProof};
use crate::error::StoreError;
use crate::events::Event;
use crate::index::Identity;
use crate::layout::SECTOR;
use crate::lock::{BucketLock, ObjectLock};
use crate::named_key::SealedKey;
use crate::usage::Quota;
use crate::version::{Version, Versioning};

/// Versions of the rows of access keys, which are encoded by hand. The first knows no expiry.
const ACCESS_KEY_VERSION: u8 = 2;
const ACCESS_KEY_VERSION_1: u8 = 1;

/// A type that rows are made of.
pub(crate) trait Row: Serialize + DeserializeOwned {
    /// Version that is written.
    const VERSION: u8;

    /// The row as an earlier version wrote it.
    fn decode_earlier(_version: u8, _row: &[u8]) -> Option<Self> {
        None
    }
}

/// Names a bucket in the keys of other rows; never shown. No bucket gets one that another had since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BucketId(pub(crate) u64);

/// Names one body for as long as it exists; readers pin it by this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct BodyId(pub(crate) u64);

/// Consecutive sectors of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Run {
    /// First sector, counted from the start of the volume.
    pub(crate) start: u64,
    pub(crate) sectors: u64,
}

/// Where an object's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// Here.
    Inline(Vec<u8>),
    /// In these runs, one after the other; the last sector may be partly used.
    Runs { id: BodyId, runs: Vec<Run> },
    /// In the runs of parts, listed in the row of `manifests` that has this id.
    Parts { id: BodyId },
}

/// One part of a multipart object; every part begins on a sector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartExtent {
    pub(crate) runs: Vec<Run>,
    pub(crate) number: u16,
    pub(crate) bytes: u64,
    pub(crate) checksum: Option<Checksum>,
    /// Where the part is encrypted under a customer's key.
    pub(crate) salt: Option<BodySalt>,
}

/// Row of `manifests`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) parts: Vec<PartExtent>,
}

/// Row of `buckets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BucketRecord {
    pub(crate) id: BucketId,
    pub(crate) created_ms: u64,
    /// Name of the user who made it; empty where it was made for all users of the store.
    pub(crate) owner: String,
    pub(crate) versioning: Versioning,
    pub(crate) lock: BucketLock,
    pub(crate) acl: Acl,
}

/// The entity tag of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ETag {
    /// MD5 of the body, or of the concatenated MD5s of the parts.
    pub md5: [u8; 16],
    /// Number of parts; 0 where the object was put in one piece.
    pub parts: u16,
}

impl std::fmt::Display for ETag {
    /// As in the HTTP header, without the quotes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.md5 {
            write!(f, "{byte:02x}")?;
        }
        match self.parts {
            0 => Ok(()),
            parts => write!(f, "-{parts}"),
        }
    }
}

/// What a client says about an object's bytes and gets back with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// `Content-Disposition`.
    pub content_disposition: Option<String>,
    /// `Content-Encoding`, without `aws-chunked`.
    pub content_encoding: Option<String>,
    /// `Content-Language`.
    pub content_language: Option<String>,
    /// `Expires`, as seconds since 1970.
    pub expires: Option<i64>,
    /// `x-amz-meta-*`: lower-case names without the prefix, in the order they came.
    pub user: Vec<(String, String)>,
}

/// What is kept with an object besides its bytes and headers, and with the upload that it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Tags: names and values, by name.
    pub tags: Vec<(String, String)>,
    /// Retention and legal hold.
    pub lock: ObjectLock,
    /// Owner and grants.
    pub acl: Acl,
}

/// Row of `objects` and of `versions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectRecord {
    pub(crate) body: Body,
    pub(crate) bytes: u64,
    pub(crate) modified_ms: u64,
    pub(crate) etag: ETag,
    pub(crate) checksum: Option<Checksum>,
    pub(crate) metadata: Metadata,
    pub(crate) version: Version,
    /// Whether this is not an object but the mark of its deletion; such rows are in `versions` only.
    pub(crate) delete_marker: bool,
    pub(crate) attributes: Attributes,
    /// Where the bytes are encrypted under a key of their own: a customer's, or the one in `named_key`.
    pub(crate) customer_key: Option<KeyProof>,
    /// That key, where a named key seals it.
    pub(crate) named_key: Option<SealedKey>,
}

/// Row of `uploads`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadRecord {
    pub(crate) initiated_ms: u64,
    pub(crate) checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
    pub(crate) metadata: Metadata,
    pub(crate) attributes: Attributes,
    pub(crate) customer_key: Option<KeyProof>,
    pub(crate) named_key: Option<SealedKey>,
}

/// Row of `parts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartRecord {
    pub(crate) runs: Vec<Run>,
    pub(crate) id: BodyId,
    pub(crate) bytes: u64,
    pub(crate) modified_ms: u64,
    pub(crate) md5: [u8; 16],
    pub(crate) checksum: Option<Checksum>,
    pub(crate) salt: Option<BodySalt>,
}

impl PartRecord {
    /// What a part counts for until its upload is completed: whole sectors, as it takes them. Nobody fills a store with parts of a byte
    /// and a quota that says they are small.
    pub(crate) fn counted_bytes(&self) -> u64 {
        part_bytes(self.bytes)
    }
}

/// What a part of so many bytes counts for until its upload is completed.
pub(crate) fn part_bytes(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(SECTOR)
}

/// Row of `access_keys`, borrowed from the page it stands on. Written by hand, not derived: it holds a secret.
///
/// Version byte, creation time and time of expiry (u64, little-endian milliseconds), length of the user name (u8), user name,
/// secret. In version 1 there is no time of expiry.
pub(crate) struct AccessKeyRow<'a> {
    pub(crate) created_ms: u64,
    /// 0 for never.
    pub(crate) expires_ms: u64,
    pub(crate) user: &'a str,
    pub(crate) secret: &'a str,
}

impl<'a> AccessKeyRow<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Exact capacity: growing would leave copies of the secret behind.
        let mut row = Vec::with_capacity(18 + self.user.len() + self.secret.len());
        row.push(ACCESS_KEY_VERSION);
        row.extend_from_slice(&self.created_ms.to_le_bytes());
        row.extend_from_slice(&self.expires_ms.to_le_bytes());
        row.push(u8::try_from(self.user.len()).expect("user names are limited to 64 bytes"));
        row.extend_from_slice(self.user.as_bytes());
        row.extend_from_slice(self.secret.as_bytes());
        row
    }

    pub(crate) fn decode(row: &'a [u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::Corrupt { what: "a row of the access keys can't be read" };
        let (version, rest) = row.split_first().ok_or_else(damaged)?;
        let (created, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        let (expires_ms, rest) = match *version {
            ACCESS_KEY_VERSION_1 => (0, rest),
            ACCESS_KEY_VERSION => {
                let (expires, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
                (u64::from_le_bytes(*expires), rest)
            }
            _ => return Err(damaged()),
        };
        let (length, rest) = rest.split_first().ok_or_else(damaged)?;
        let (user, secret) = rest.split_at_checked(usize::from(*length)).ok_or_else(damaged)?;
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| damaged());
        let created_ms = u64::from_le_bytes(*created);
        Ok(Self { created_ms, expires_ms, user: text(user)?, secret: text(secret)? })
    }
}

/// Row of a user in `identities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserRecord {
    /// Whether policies decide what the user may do: from the first group or policy on.
    pub(crate) limited: bool,
    /// Names of the groups that the user belongs to.
    pub(crate) groups: Vec<String>,
    /// Names of the policies attached to the user.
    pub(crate) policies: Vec<String>,
}

/// Row of a group in `identities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    pub(crate) created_ms: u64,
    /// Names of the policies attached to the group.
    pub(crate) policies: Vec<String>,
}

/// Row of a policy in `identities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyRecord {
    pub(crate) created_ms: u64,
    /// As the head checked it.
    pub(crate) text: String,
}

/// Row of a quota in `identities`, named `bucket/` or `user/` and the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuotaRecord {
    pub(crate) quota: Quota,
}

impl Row for QuotaRecord {
    const VERSION: u8 = 1;
}

impl Identity for QuotaRecord {
    const KIND: &'static str = "quota";
}

impl Row for Event {
    const VERSION: u8 = 1;
}

impl Row for UserRecord {
    const VERSION: u8 = 1;
}

impl Row for GroupRecord {
    const VERSION: u8 = 1;
}

impl Row for PolicyRecord {
    const VERSION: u8 = 1;
}

impl Identity for UserRecord {
    const KIND: &'static str = "user";
}

impl Identity for GroupRecord {
    const KIND: &'static str = "group";
}

impl Identity for PolicyRecord {
    const KIND: &'static str = "policy";
}

pub(crate) fn encode<T: Row>(record: &T) -> Vec<u8> {
    // Records are plain data without maps of unknown length or fallible parts: encoding them can't fail.
    postcard::to_extend(record, vec![T::VERSION]).expect("a record always encodes")
}

pub(crate) fn decode<T: Row>(row: &[u8]) -> Result<T, StoreError> {
    let decoded = row.split_first().and_then(|(version, rest)| match *version {
        version if version == T::VERSION => {
            postcard::take_from_bytes(rest).ok().map(|(value, rest)| (value, rest.is_empty()))
        }
        version => T::decode_earlier(version, rest).map(|value| (value, true)),
    });
    match decoded {
        Some((value, true)) => Ok(value),
        _ => Err(StoreError::Corrupt { what: "a row of the index can't be read" }),
    }
}

/// Body and size in an object's row, without reading the rest: they are the first fields of every version.
pub(crate) fn decode_body(row: &[u8]) -> Result<(Body, u64), StoreError> {
    let known = |version: u8| (1..=ObjectRecord::VERSION).contains(&version);
    let body = match row.split_first() {
        Some((version, rest)) if known(*version) => postcard::take_from_bytes(rest).ok(),
        _ => None,
    };
    body.map(|(body, _): ((Body, u64), _)| body)
        .ok_or(StoreError::Corrupt { what: "a row of the index can't be read" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ObjectRecord {
        ObjectRecord {
            body: Body::Runs { id: BodyId(7), runs: vec![Run { start: 1 << 40, sectors: 3 }] },
            bytes: 9000,
            modified_ms: 1_700_000_000_000,
            etag: ETag { md5: [0xab; 16], parts: 0 },
            checksum: None,
            metadata: Metadata { user: vec![("a".into(), "b".into())], ..Metadata::default() },
            version: Version { sequence: 5, random: 6, is_null: false },
            delete_marker: false,
            attributes: Attributes::default(),
            customer_key: None,
            named_key: None,
        }
    }

    #[test]
    fn a_record_survives_its_encoding_and_its_body_reads_alone() {
        let row = encode(&record());
        assert_eq!(decode::<ObjectRecord>(&row).unwrap(), record());
        assert_eq!(decode_body(&row).unwrap(), (record().body, record().bytes));
    }

    #[test]
    fn no_truncated_or_foreign_row_panics() {
        let row = encode(&record());
        for len in 0..row.len() {
            assert!(decode::<ObjectRecord>(&row[..len]).is_err(), "{len} bytes were enough");
        }
        let mut newer = row.clone();
        newer[0] = ObjectRecord::VERSION + 1;
        assert!(decode::<ObjectRecord>(&newer).is_err() && decode_body(&newer).is_err());
        for (version, bytes) in [(1, 10), (2, 18)] {
            for len in 0..=bytes {
                assert!(AccessKeyRow::decode(&vec![version; bytes][..len]).is_err(), "{version}: {len}");
            }
        }
        assert!(AccessKeyRow::decode(&[3; 40]).is_err(), "a later version");
    }

    #[test]
    fn rows_of_access_keys_are_read_with_and_without_an_expiry() {
        let row = AccessKeyRow { created_ms: 7, expires_ms: 9, user: "alice", secret: "hidden" }.encode();
        let read = AccessKeyRow::decode(&row).unwrap();
        assert_eq!((read.created_ms, read.expires_ms, read.user, read.secret), (7, 9, "alice", "hidden"));
        let earlier = [&[1], &7_u64.to_le_bytes()[..], &[5], b"alicehidden"].concat();
        let read = AccessKeyRow::decode(&earlier).unwrap();
        assert_eq!((read.created_ms, read.expires_ms, read.user, read.secret), (7, 0, "alice", "hidden"));
    }

    #[test]
    fn an_etag_of_parts_carries_their_number() {
        assert_eq!(record().etag.to_string(), "ab".repeat(16));
        assert_eq!(ETag { parts: 3, ..record().etag }.to_string(), format!("{}-3", "ab".repeat(16)));
    }
}
