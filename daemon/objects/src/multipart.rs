//! Multipart uploads. Every part begins on a sector, so completing an upload only lists the runs of its parts: no byte is
//! copied.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use crate::body::{BodyWriter, Declared, FinishedBody};
use crate::buckets::BucketRef;
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, checksum_of_parts, md5_of_parts};
use crate::commit::{Dropped, Mutation, Shared};
use crate::condition::Condition;
use crate::customer_key::{BodyCipher, BodySalt, CustomerKey, KeyProof};
use crate::error::{DigestKind, StoreError};
use crate::events::{About, Happened, Notices};
use crate::index::{Changes, Step, UploadId, signed};
use crate::limits::{
    LIST_PAGE_MAX, LOST_REPLY_VERSIONS_MAX, OBJECT_BYTES_MAX, PART_BYTES_MIN, PART_NUMBER_MAX, PUT_BYTES_MAX,
};
use crate::named_key::SealedKey;
use crate::object::{Object, ObjectInfo};
use crate::records::{
    Attributes, Body, BodyId, BucketId, BucketRecord, ETag, Manifest, Metadata, ObjectRecord, PartExtent,
    PartRecord, UploadRecord, part_bytes,
};
use crate::space::Reservation;
use crate::store::{Store, check_key, now_ms, random_bytes, time_of};
use crate::usage::{self, Claim, UsageChange};
use crate::version::{self, Moment, Version, Versioning};
use crate::write::{check_attributes, check_metadata};

/// What is moved at a time when a part is copied from an object.
const COPY_CHUNK_BYTES: usize = 1 << 20;

/// What the object to be is to have.
#[derive(Clone, Debug, Default)]
pub struct UploadOptions {
    /// Headers and user metadata.
    pub metadata: Metadata,
    /// Tags, lock and access control list.
    pub attributes: Attributes,
    /// The checksum of the parts and of the whole.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
    /// The customer's key to encrypt every part under.
    pub customer_key: Option<CustomerKey>,
    /// Name of the key to encrypt every part under; where a customer's is given, that counts.
    pub named_key: Option<String>,
}

/// An unfinished upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadInfo {
    /// Key of the object to be.
    pub key: String,
    /// What the client calls it by: 32 hexadecimal digits.
    pub id: String,
    /// When it was begun.
    pub initiated: SystemTime,
    /// The checksum its parts are to have.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
    /// Who began it, and who is to own the object.
    pub owner: String,
}

/// A part that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartInfo {
    /// 1 to 10,000.
    pub number: u16,
    /// Size in bytes.
    pub bytes: u64,
    /// When it was taken in.
    pub modified: SystemTime,
    /// Entity tag.
    pub etag: ETag,
    /// Its checksum.
    pub checksum: Option<Checksum>,
    /// Name of the key that it is encrypted under; not said by [`Store::parts`].
    pub named_key: Option<String>,
}

/// A page of the parts of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsPage {
    /// The upload.
    pub upload: UploadInfo,
    /// Parts in ascending order.
    pub parts: Vec<PartInfo>,
    /// Whether more follow the last one.
    pub truncated: bool,
}

/// One line of the list that completes an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletedPart {
    /// Which part.
    pub number: u16,
    /// Its entity tag, without quotes.
    pub etag: String,
    /// Its checksum, where the client repeats it.
    pub checksum: Option<Checksum>,
}

/// What a client says when it completes an upload.
#[derive(Clone, Debug, Default)]
pub struct CompleteOptions {
    /// When to refuse.
    pub condition: Condition,
    /// `x-amz-mp-object-size`.
    pub bytes: Option<u64>,
    /// Checksum of the whole object.
    pub checksum: Option<Checksum>,
    /// The customer's key that the upload was begun with, where it was.
    pub customer_key: Option<CustomerKey>,
    /// Who is to be told.
    pub notices: Notices,
}

/// A part being received.
pub struct PartWriter {
    shared: Arc<Shared>,
    place: UploadPlace,
    number: u16,
    body: BodyWriter,
    /// Recognises the key that the upload was begun with.
    proof: Option<KeyProof>,
    /// The key of the object to be, where a named key seals it.
    sealed: Option<SealedKey>,
    salt: Option<BodySalt>,
    claim: Option<Claim>,
}

impl std::fmt::Debug for PartWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartWriter").field("number", &self.number).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct UploadPlace {
    bucket: BucketRef,
    key: String,
    upload: UploadId,
}

impl UploadPlace {
    fn parse(bucket: impl Into<BucketRef>, key: &str, id: &str) -> Result<Self, StoreError> {
        check_key(key)?;
        let well_formed = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let upload = well_formed.then(|| UploadId::from_str_radix(id, 16).ok()).flatten();
        let upload = upload.ok_or(StoreError::NoSuchUpload)?;
        Ok(Self { bucket: bucket.into(), key: key.to_owned(), upload })
    }

    fn find(&self, changes: &Changes<'_>) -> Result<(BucketRecord, UploadRecord), StoreError> {
        let bucket = changes.bucket(&self.bucket)?;
        let record = changes.upload(bucket.id, &self.key, self.upload)?.ok_or(StoreError::NoSuchUpload)?;
        Ok((bucket, record))
    }
}

pub(crate) fn upload_info(key: String, id: UploadId, record: &UploadRecord) -> UploadInfo {
    UploadInfo {
        key,
        id: format!("{id:032x}"),
        initiated: time_of(record.initiated_ms),
        checksum: record.checksum,
        owner: record.attributes.acl.owner.clone(),
    }
}

impl PartInfo {
    fn of(number: u16, record: PartRecord) -> Self {
        Self {
            number,
            bytes: record.bytes,
            modified: time_of(record.modified_ms),
            etag: ETag { md5: record.md5, parts: 0 },
            checksum: record.checksum,
            named_key: None,
        }
    }
}

impl PartWriter {
    /// Encrypts the part under the key that the upload was begun with: the customer's, which has to be given, or the named one;
    /// to be called before the first byte is appended.
    ///
    /// # Errors
    /// [`StoreError::CustomerKeyNeeded`], [`StoreError::WrongCustomerKey`], [`StoreError::CustomerKeyUnexpected`],
    /// [`StoreError::NamedKeyRevoked`], [`StoreError::NamedKeyAway`], [`StoreError::WrongNamedKey`].
    pub fn encrypt(&mut self, key: Option<&CustomerKey>) -> Result<(), StoreError> {
        let customers = self.proof.as_ref().filter(|_| self.sealed.is_none());
        KeyProof::check_given(customers, key)?;
        let salt = BodySalt(random_bytes());
        let cipher = match (&self.sealed, key) {
            (Some(sealed), _) => BodyCipher::Sealed(self.shared.named_keys.open(sealed)?, salt),
            (None, Some(key)) => key.body(salt),
            (None, None) => return Ok(()),
        };
        self.body.encrypt(cipher);
        self.salt = Some(salt);
        Ok(())
    }

    /// The next bytes of the part.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::LengthMismatch`], outages. After an error the writer is of no use.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.body.append(bytes)
    }

    /// Ends the part and makes it durable. A part with the same number is replaced.
    ///
    /// # Errors
    /// [`StoreError::LengthMismatch`], [`StoreError::DigestMismatch`], [`StoreError::NoSuchUpload`].
    pub fn finish(self, declared: &Declared) -> Result<PartInfo, StoreError> {
        if self.proof.is_some() && self.salt.is_none() {
            return Err(StoreError::CustomerKeyNeeded);
        }
        self.body.check_cipher()?;
        let FinishedBody { bytes, digests, reservation, .. } = self.body.finish(declared, false)?;
        drop(self.claim);
        let record = PartRecord {
            runs: reservation.runs().to_vec(),
            id: self.shared.next_body(),
            bytes,
            modified_ms: now_ms(),
            md5: digests.md5,
            checksum: digests.checksum,
            salt: self.salt,
        };
        let named_key = self.sealed.map(|sealed| sealed.name);
        let info = PartInfo { named_key, ..PartInfo::of(self.number, record.clone()) };
        self.shared.submit(PutPart { place: self.place, number: self.number, record, reservation })?;
        Ok(info)
    }
}

impl Store {
    /// Begins a multipart upload.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::InvalidKey`], [`StoreError::MetadataTooLarge`],
    /// [`StoreError::InvalidChecksum`].
    pub fn create_upload(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        options: UploadOptions,
    ) -> Result<UploadInfo, StoreError> {
        let UploadOptions { metadata, attributes, checksum, customer_key, named_key } = options;
        check_key(key)?;
        check_metadata(&metadata)?;
        check_attributes(&attributes)?;
        if checksum.is_some_and(|(algorithm, kind)| !algorithm.allows(kind)) {
            return Err(StoreError::InvalidChecksum);
        }
        let initiated_ms = now_ms();
        let upload = UploadId::from(initiated_ms) << 64 | UploadId::from(u64::from_le_bytes(random_bytes()));
        let (customer_key, named_key) = match (customer_key, named_key) {
            (Some(key), _) => (Some(key.proof()), None),
            (None, Some(name)) => {
                let key = self.shared.named_keys.find(&name)?.make()?;
                (Some(key.with(KeyProof::of)?), Some(SealedKey::clone(&key.sealed)))
            }
            (None, None) => (None, None),
        };
        let record = UploadRecord { initiated_ms, checksum, metadata, attributes, customer_key, named_key };
        let info = upload_info(key.to_owned(), upload, &record);
        let place = UploadPlace { bucket: bucket.into(), key: key.to_owned(), upload };
        self.shared.submit(CreateUpload { place, record })?;
        Ok(info)
    }

    /// Begins part `number` of an upload. Without a `checksum` the part gets the one that the upload asks for.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchUpload`], [`StoreError::InvalidPartNumber`],
    /// [`StoreError::TooLarge`], [`StoreError::QuotaExceeded`].
    pub fn upload_part(
        &self,
        (bucket, key): (impl Into<BucketRef>, &str),
        upload: &str,
        number: u16,
        length: Option<u64>,
        checksum: Option<ChecksumAlgorithm>,
    ) -> Result<PartWriter, StoreError> {
        if !(1..=PART_NUMBER_MAX).contains(&number) {
            return Err(StoreError::InvalidPartNumber);
        }
        let place = UploadPlace::parse(bucket, key, upload)?;
        let (record, claim) = self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(&place.bucket)?;
            let record = snapshot.upload(bucket.id, key, place.upload)?.ok_or(StoreError::NoSuchUpload)?;
            let mut more = signed(part_bytes(length.unwrap_or_default()));
            snapshot.walk_parts(place.upload, number - 1, &mut |found, replaced| {
                if found == number {
                    more -= signed(replaced.counted_bytes());
                }
                Ok(Step::Stop)
            })?;
            let claim = usage::claim(&self.shared, snapshot, (place.bucket.name(), &bucket), more)?;
            Ok((record, claim))
        })?;
        let wanted = record.checksum.map(|(algorithm, _)| algorithm);
        let shared = Arc::clone(&self.shared);
        let body = BodyWriter::new(Arc::clone(&shared), length, PUT_BYTES_MAX, checksum.or(wanted))?;
        let (proof, sealed) = (record.customer_key, record.named_key);
        Ok(PartWriter { shared, place, number, body, proof, sealed, salt: None, claim })
    }

    /// Makes part `number` of an upload from a range of `source`, under the upload's customer's key where it has one.
    ///
    /// # Errors
    /// Those of [`Store::upload_part`].
    pub fn copy_part(
        &self,
        source: &Object,
        range: &Range<u64>,
        place: (impl Into<BucketRef>, &str),
        (upload, key): (&str, Option<&CustomerKey>),
        number: u16,
    ) -> Result<PartInfo, StoreError> {
        let length = range.end.saturating_sub(range.start);
        let mut writer = self.upload_part(place, upload, number, Some(length), None)?;
        writer.encrypt(key)?;
        let mut reader = source.reader(range);
        while let Some(chunk) = reader.next_chunk(COPY_CHUNK_BYTES)? {
            writer.append(&chunk)?;
        }
        writer.finish(&Declared::default())
    }

    /// The parts of an upload above number `after`, at most `limit`; without checksums where its named key is not lent.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchUpload`].
    pub fn parts(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        upload: &str,
        after: u16,
        limit: usize,
    ) -> Result<PartsPage, StoreError> {
        let place = UploadPlace::parse(bucket, key, upload)?;
        let limit = limit.min(LIST_PAGE_MAX);
        self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(&place.bucket)?.id;
            let record = snapshot.upload(bucket, key, place.upload)?.ok_or(StoreError::NoSuchUpload)?;
            let upload = upload_info(place.key.clone(), place.upload, &record);
            let mut page = PartsPage { upload, parts: Vec::new(), truncated: false };
            // They tell the clear bytes.
            let sealed = record.named_key.as_ref();
            let tells_checksums = sealed.is_none_or(|sealed| self.shared.named_keys.open(sealed).is_ok());
            snapshot.walk_parts(place.upload, after, &mut |number, record| {
                if page.parts.len() == limit {
                    page.truncated = true;
                    return Ok(Step::Stop);
                }
                let part = PartInfo::of(number, record);
                let checksum = part.checksum.filter(|_| tells_checksums);
                page.parts.push(PartInfo { checksum, ..part });
                Ok(Step::Next)
            })?;
            Ok(page)
        })
    }

    /// Makes an object of the listed parts; those not listed are given back. Copies nothing.
    ///
    /// A completion that is sent again after its reply was lost finds its own object and succeeds.
    ///
    /// # Errors
    /// [`StoreError::NoSuchUpload`], [`StoreError::InvalidPartOrder`], [`StoreError::InvalidPart`],
    /// [`StoreError::PartTooSmall`], [`StoreError::InvalidChecksum`], [`StoreError::DigestMismatch`],
    /// [`StoreError::LengthMismatch`], [`StoreError::PreconditionFailed`]; [`StoreError::NamedKeyRevoked`],
    /// [`StoreError::NamedKeyAway`] and [`StoreError::WrongNamedKey`] where the upload was begun under a named key.
    pub fn complete_upload(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        upload: &str,
        parts: Vec<CompletedPart>,
        options: CompleteOptions,
    ) -> Result<ObjectInfo, StoreError> {
        let place = UploadPlace::parse(bucket, key, upload)?;
        let ascending = parts.windows(2).all(|pair| pair[0].number < pair[1].number);
        if parts.is_empty() || !ascending {
            return Err(StoreError::InvalidPartOrder);
        }
        // Parts under a key that is gone would be an object that nobody can read. Not in the commit: keys come and go without it.
        let upload = self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(&place.bucket)?.id;
            snapshot.upload(bucket, &place.key, place.upload)
        })?;
        if let Some(sealed) = upload.and_then(|upload| upload.named_key) {
            self.shared.named_keys.open(&sealed)?;
        }
        let id = self.shared.next_body();
        self.shared.submit(CompleteUpload { place, parts, options, id, moment: Moment::now() })
    }

    /// Ends an upload without an object; its parts are given back.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchUpload`].
    pub fn abort_upload(
        &self,
        bucket: impl Into<BucketRef>,
        key: &str,
        upload: &str,
    ) -> Result<(), StoreError> {
        self.shared.submit(AbortUpload { place: UploadPlace::parse(bucket, key, upload)? })
    }
}

struct CreateUpload {
    place: UploadPlace,
    record: UploadRecord,
}

impl Mutation for CreateUpload {
    type Output = ();
    const NEEDS_ROOM: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, _: &mut Dropped) -> Result<(), StoreError> {
        let UploadPlace { bucket, key, upload } = &self.place;
        let bucket = changes.bucket(bucket)?;
        // Said now: at its completion it is too late.
        bucket.lock.of_new(self.record.attributes.lock, self.record.initiated_ms)?;
        changes.put_upload(bucket.id, key, *upload, &self.record)
    }

    fn committed(self) {}
}

struct PutPart {
    place: UploadPlace,
    number: u16,
    record: PartRecord,
    reservation: Reservation,
}

impl Mutation for PutPart {
    type Output = ();
    const NEEDS_ROOM: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<(), StoreError> {
        let (bucket, _) = self.place.find(changes)?;
        let replaced = changes.part(self.place.upload, self.number)?;
        let before = replaced.as_ref().map_or(0, PartRecord::counted_bytes);
        let bytes = signed(self.record.counted_bytes()) - signed(before);
        usage::check(changes, (self.place.bucket.name(), &bucket), UsageChange { bytes, objects: 0 })?;
        changes.count(bucket.id, bytes, 0);
        if let Some(replaced) = replaced {
            dropped.push((replaced.id, replaced.runs));
        }
        changes.put_part(self.place.upload, self.number, &self.record)
    }

    fn committed(self) {
        self.reservation.keep();
    }
}

/// Takes every part of an upload out of the index.
fn take_parts(
    changes: &mut Changes<'_>,
    bucket: BucketId,
    upload: UploadId,
) -> Result<HashMap<u16, PartRecord>, StoreError> {
    let mut parts = HashMap::new();
    changes.walk_parts(upload, 0, &mut |number, record| {
        parts.insert(number, record);
        Ok(Step::Next)
    })?;
    for (number, part) in &parts {
        changes.count(bucket, -signed(part.counted_bytes()), 0);
        changes.remove_part(upload, *number)?;
    }
    Ok(parts)
}

struct AbortUpload {
    place: UploadPlace,
}

impl Mutation for AbortUpload {
    type Output = ();
    const NEEDS_ROOM: bool = false;

    fn apply(&self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<(), StoreError> {
        let (bucket, _) = self.place.find(changes)?;
        let parts = take_parts(changes, bucket.id, self.place.upload)?;
        dropped.extend(parts.into_values().map(|part| (part.id, part.runs)));
        changes.remove_upload(bucket.id, &self.place.key, self.place.upload)
    }

    fn committed(self) {}
}

struct CompleteUpload {
    place: UploadPlace,
    parts: Vec<CompletedPart>,
    options: CompleteOptions,
    id: BodyId,
    moment: Moment,
}

impl CompleteUpload {
    /// The listed parts as they are in the index, checked against what the client says of them.
    fn check_parts(&self, changes: &Changes<'_>) -> Result<Vec<PartRecord>, StoreError> {
        let mut records = Vec::with_capacity(self.parts.len());
        for (position, listed) in self.parts.iter().enumerate() {
            let number = listed.number;
            let record =
                changes.part(self.place.upload, number)?.ok_or(StoreError::InvalidPart { number })?;
            let same_etag = listed.etag == ETag { md5: record.md5, parts: 0 }.to_string();
            let same_checksum = listed.checksum.is_none() || listed.checksum == record.checksum;
            if !same_etag || !same_checksum {
                return Err(StoreError::InvalidPart { number });
            }
            if record.bytes < PART_BYTES_MIN && position + 1 < self.parts.len() {
                return Err(StoreError::PartTooSmall { number });
            }
            records.push(record);
        }
        Ok(records)
    }

    fn record(&self, upload: &UploadRecord, parts: &[PartRecord]) -> Result<ObjectRecord, StoreError> {
        let bytes = parts.iter().map(|part| part.bytes).sum();
        if bytes > OBJECT_BYTES_MAX {
            return Err(StoreError::TooLarge { limit: units::ByteLen(OBJECT_BYTES_MAX) });
        }
        if let Some(declared) = self.options.bytes.filter(|declared| *declared != bytes) {
            return Err(StoreError::LengthMismatch {
                declared: units::ByteLen(declared),
                received: units::ByteLen(bytes),
            });
        }
        let checksum = match upload.checksum {
            None => None,
            Some((algorithm, kind)) => {
                let known: Option<Vec<_>> =
                    parts.iter().map(|part| part.checksum.as_ref().map(|sum| (sum, part.bytes))).collect();
                Some(checksum_of_parts(algorithm, kind, &known.ok_or(StoreError::InvalidChecksum)?)?)
            }
        };
        let declared = self.options.checksum.as_ref();
        if declared.is_some_and(|declared| !same_value(declared, checksum.as_ref())) {
            return Err(StoreError::DigestMismatch(DigestKind::Checksum));
        }
        Ok(ObjectRecord {
            body: Body::Parts { id: self.id },
            bytes,
            modified_ms: self.moment.now_ms,
            etag: self.etag(parts.iter().map(|part| part.md5))?,
            checksum,
            metadata: upload.metadata.clone(),
            version: Version::UNVERSIONED,
            delete_marker: false,
            attributes: upload.attributes.clone(),
            customer_key: upload.customer_key,
            named_key: upload.named_key.clone(),
        })
    }

    fn etag(&self, md5s: impl Iterator<Item = [u8; 16]>) -> Result<ETag, StoreError> {
        let parts = u16::try_from(self.parts.len()).map_err(|_| StoreError::InvalidPartNumber)?;
        Ok(ETag { md5: md5_of_parts(md5s), parts })
    }

    /// The version that this very completion made, if it is there: the reply was lost and the client asks again. It may not be
    /// the newest any more, but it is no older than the upload.
    fn made_before(
        &self,
        changes: &Changes<'_>,
        bucket: &BucketRecord,
    ) -> Result<Option<ObjectInfo>, StoreError> {
        let md5s: Option<Vec<_>> = self.parts.iter().map(|part| parse_md5(&part.etag)).collect();
        let Some(md5s) = md5s else { return Ok(None) };
        let etag = self.etag(md5s.into_iter())?;
        let begun_ms = self.place.upload >> 64;
        let (bucket_id, key) = (bucket.id, &self.place.key);
        let mut made = changes.object(bucket_id, key)?.filter(|current| current.etag == etag);
        if made.is_none() {
            let mut looked_at = 0;
            changes.walk_older(bucket_id, key, &mut |older| {
                looked_at += 1;
                if u128::from(older.modified_ms) < begun_ms || looked_at > LOST_REPLY_VERSIONS_MAX {
                    return Ok(Step::Stop);
                }
                made = (older.etag == etag && !older.delete_marker).then_some(older);
                Ok(if made.is_some() { Step::Stop } else { Step::Next })
            })?;
        }
        Ok(made.map(|made| ObjectInfo::of(&made, bucket)))
    }
}

/// Clients may repeat a composite checksum with or without its number of parts.
fn same_value(declared: &Checksum, made: Option<&Checksum>) -> bool {
    made.is_some_and(|made| made.algorithm == declared.algorithm && made.value == declared.value)
}

fn parse_md5(etag: &str) -> Option<[u8; 16]> {
    let digits = etag.as_bytes();
    let mut md5 = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in md5.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(md5)
}

impl Mutation for CompleteUpload {
    type Output = ObjectInfo;
    const NEEDS_ROOM: bool = true;

    fn apply(&self, changes: &mut Changes<'_>, dropped: &mut Dropped) -> Result<ObjectInfo, StoreError> {
        let (bucket, upload) = match self.place.find(changes) {
            Err(StoreError::NoSuchUpload) => {
                let bucket = changes.bucket(&self.place.bucket)?;
                return self.made_before(changes, &bucket)?.ok_or(StoreError::NoSuchUpload);
            }
            found => found?,
        };
        let customers = upload.customer_key.as_ref().filter(|_| upload.named_key.is_none());
        KeyProof::check_given(customers, self.options.customer_key.as_ref())?;
        let records = self.check_parts(changes)?;
        let mut record = self.record(&upload, &records)?;
        record.attributes.lock = bucket.lock.of_begun(record.attributes.lock, self.moment.now_ms);
        let current = changes.object(bucket.id, &self.place.key)?;
        self.options.condition.check(current.as_ref())?;
        // Its bytes were counted when they came.
        let is_new = current.is_none() || bucket.versioning != Versioning::Unversioned;
        usage::check(
            changes,
            (self.place.bucket.name(), &bucket),
            UsageChange { bytes: 0, objects: i64::from(is_new) },
        )?;
        let place = (&bucket, self.place.key.as_str());
        let record = version::put(changes, place, record, self.moment, dropped)?;

        let mut parts = take_parts(changes, bucket.id, self.place.upload)?;
        let mut manifest = Manifest { parts: Vec::with_capacity(records.len()) };
        for (listed, part) in self.parts.iter().zip(records) {
            parts.remove(&listed.number);
            let PartRecord { runs, bytes, checksum, salt, .. } = part;
            manifest.parts.push(PartExtent { runs, number: listed.number, bytes, checksum, salt });
        }
        dropped.extend(parts.into_values().map(|part| (part.id, part.runs)));
        changes.put_manifest(self.id, &manifest)?;
        changes.remove_upload(bucket.id, &self.place.key, self.place.upload)?;
        let about = About::object((self.place.bucket.name(), &bucket), &self.place.key, &record);
        self.options.notices.put(changes, Happened::Made, &about)?;
        Ok(ObjectInfo::of(&record, &bucket))
    }

    fn committed(self) {}
}
