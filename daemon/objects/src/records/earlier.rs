//! Rows as earlier versions of the format wrote them, and what they mean today.
//!
//! Version 1 knew no versions, owners, tags, locks, access control lists or customers' keys; version 2 of objects and uploads no
//! named keys.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{
    Attributes, Body, BodyId, BucketId, BucketRecord, ETag, Manifest, Metadata, ObjectRecord, PartExtent,
    PartRecord, Row, Run, UploadRecord,
};
use crate::acl::Acl;
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind};
use crate::customer_key::KeyProof;
use crate::lock::BucketLock;
use crate::version::{Version, Versioning};

#[derive(Serialize, Deserialize)]
struct BucketRecord1 {
    id: BucketId,
    created_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct ObjectRecord1 {
    body: Body,
    bytes: u64,
    modified_ms: u64,
    etag: ETag,
    checksum: Option<Checksum>,
    metadata: Metadata,
}

#[derive(Serialize, Deserialize)]
struct PartExtent1 {
    runs: Vec<Run>,
    number: u16,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Manifest1 {
    parts: Vec<PartExtent1>,
}

#[derive(Serialize, Deserialize)]
struct UploadRecord1 {
    initiated_ms: u64,
    checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
    metadata: Metadata,
}

#[derive(Serialize, Deserialize)]
struct PartRecord1 {
    runs: Vec<Run>,
    id: BodyId,
    bytes: u64,
    modified_ms: u64,
    md5: [u8; 16],
    checksum: Option<Checksum>,
}

#[derive(Serialize, Deserialize)]
struct ObjectRecord2 {
    body: Body,
    bytes: u64,
    modified_ms: u64,
    etag: ETag,
    checksum: Option<Checksum>,
    metadata: Metadata,
    version: Version,
    delete_marker: bool,
    attributes: Attributes,
    customer_key: Option<KeyProof>,
}

#[derive(Serialize, Deserialize)]
struct UploadRecord2 {
    initiated_ms: u64,
    checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
    metadata: Metadata,
    attributes: Attributes,
    customer_key: Option<KeyProof>,
}

/// The whole row as version 1 wrote it.
fn version_1<T: DeserializeOwned>(version: u8, row: &[u8]) -> Option<T> {
    whole((version, 1), row)
}

/// The whole row, where it is of the version that is wanted.
fn whole<T: DeserializeOwned>((version, wanted): (u8, u8), row: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(row).ok()?;
    (version == wanted && rest.is_empty()).then_some(value)
}

impl Row for BucketRecord {
    const VERSION: u8 = 2;

    fn decode_earlier(version: u8, row: &[u8]) -> Option<Self> {
        let BucketRecord1 { id, created_ms } = version_1(version, row)?;
        Some(Self {
            id,
            created_ms,
            owner: String::new(),
            versioning: Versioning::Unversioned,
            lock: BucketLock::default(),
            acl: Acl::default(),
        })
    }
}

impl Row for ObjectRecord {
    const VERSION: u8 = 3;

    fn decode_earlier(version: u8, row: &[u8]) -> Option<Self> {
        if version == 2 {
            let row: ObjectRecord2 = whole((version, 2), row)?;
            return Some(Self {
                body: row.body,
                bytes: row.bytes,
                modified_ms: row.modified_ms,
                etag: row.etag,
                checksum: row.checksum,
                metadata: row.metadata,
                version: row.version,
                delete_marker: row.delete_marker,
                attributes: row.attributes,
                customer_key: row.customer_key,
                named_key: None,
            });
        }
        let row: ObjectRecord1 = version_1(version, row)?;
        Some(Self {
            body: row.body,
            bytes: row.bytes,
            modified_ms: row.modified_ms,
            etag: row.etag,
            checksum: row.checksum,
            metadata: row.metadata,
            version: Version::UNVERSIONED,
            delete_marker: false,
            attributes: Attributes::default(),
            customer_key: None,
            named_key: None,
        })
    }
}

impl Row for Manifest {
    const VERSION: u8 = 2;

    fn decode_earlier(version: u8, row: &[u8]) -> Option<Self> {
        let Manifest1 { parts } = version_1(version, row)?;
        let part = |PartExtent1 { runs, number, bytes }| PartExtent {
            runs,
            number,
            bytes,
            checksum: None,
            salt: None,
        };
        Some(Self { parts: parts.into_iter().map(part).collect() })
    }
}

impl Row for UploadRecord {
    const VERSION: u8 = 3;

    fn decode_earlier(version: u8, row: &[u8]) -> Option<Self> {
        let (record, attributes, customer_key) = match version {
            2 => {
                let row: UploadRecord2 = whole((version, 2), row)?;
                let record = UploadRecord1 {
                    initiated_ms: row.initiated_ms,
                    checksum: row.checksum,
                    metadata: row.metadata,
                };
                (record, row.attributes, row.customer_key)
            }
            _ => (version_1(version, row)?, Attributes::default(), None),
        };
        let UploadRecord1 { initiated_ms, checksum, metadata } = record;
        Some(Self { initiated_ms, checksum, metadata, attributes, customer_key, named_key: None })
    }
}

impl Row for PartRecord {
    const VERSION: u8 = 2;

    fn decode_earlier(version: u8, row: &[u8]) -> Option<Self> {
        let PartRecord1 { runs, id, bytes, modified_ms, md5, checksum } = version_1(version, row)?;
        Some(Self { runs, id, bytes, modified_ms, md5, checksum, salt: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{decode, decode_body};

    fn written<T: Serialize>(row: &T) -> Vec<u8> {
        postcard::to_extend(row, vec![1]).unwrap()
    }

    #[test]
    fn rows_of_version_1_mean_what_they_meant() {
        let body = Body::Inline(b"hello".to_vec());
        let etag = ETag { md5: [3; 16], parts: 0 };
        let metadata = Metadata { content_type: Some("text/plain".into()), ..Metadata::default() };
        let row = written(&ObjectRecord1 {
            body: body.clone(),
            bytes: 5,
            modified_ms: 9,
            etag,
            checksum: None,
            metadata: metadata.clone(),
        });
        let object: ObjectRecord = decode(&row).unwrap();
        assert_eq!((&object.body, object.bytes, object.metadata), (&body, 5, metadata));
        assert!(object.version.is_null && !object.delete_marker && object.customer_key.is_none());
        assert_eq!(decode_body(&row).unwrap(), (body, 5));

        let bucket: BucketRecord =
            decode(&written(&BucketRecord1 { id: BucketId(4), created_ms: 7 })).unwrap();
        assert_eq!((bucket.id, bucket.created_ms, bucket.owner.as_str()), (BucketId(4), 7, ""));
        assert_eq!(bucket.versioning, Versioning::Unversioned);

        let runs = vec![Run { start: 3, sectors: 4 }];
        let parts = vec![PartExtent1 { runs: runs.clone(), number: 2, bytes: 9000 }];
        let manifest: Manifest = decode(&written(&Manifest1 { parts })).unwrap();
        assert_eq!((&manifest.parts[0].runs, manifest.parts[0].bytes), (&runs, 9000));
    }

    #[test]
    fn rows_of_version_2_mean_what_they_meant() {
        let proof = KeyProof::of(&[9; 32]);
        let (metadata, attributes) = (Metadata::default(), Attributes::default());
        let object = ObjectRecord2 {
            body: Body::Inline(b"hello".to_vec()),
            bytes: 5,
            modified_ms: 9,
            etag: ETag { md5: [3; 16], parts: 0 },
            checksum: None,
            metadata: metadata.clone(),
            version: Version::UNVERSIONED,
            delete_marker: false,
            attributes: attributes.clone(),
            customer_key: Some(proof),
        };
        let row = postcard::to_extend(&object, vec![2]).unwrap();
        let read: ObjectRecord = decode(&row).unwrap();
        assert_eq!((read.body, read.customer_key, read.named_key), (object.body, Some(proof), None));
        assert!(decode::<ObjectRecord>(&row[..row.len() - 1]).is_err());
        let customer_key = Some(proof);
        let upload = UploadRecord2 { initiated_ms: 7, checksum: None, metadata, attributes, customer_key };
        let row = postcard::to_extend(&upload, vec![2]).unwrap();
        let read: UploadRecord = decode(&row).unwrap();
        assert_eq!((read.initiated_ms, read.customer_key, read.named_key), (7, Some(proof), None));
    }

    #[test]
    fn a_row_with_more_than_its_fields_is_damaged() {
        let mut row = written(&BucketRecord1 { id: BucketId(4), created_ms: 7 });
        row.push(0);
        assert!(decode::<BucketRecord>(&row).is_err());
    }
}
