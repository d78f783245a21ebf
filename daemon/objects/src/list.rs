//! Listings: byte order, prefixes, delimiters, pages.
//!
//! A common prefix is one entry of the page, however many keys it stands for; the walk jumps over them, so a page costs
//! what it shows and not what it hides.

use std::time::SystemTime;

use crate::buckets::BucketRef;
use crate::checksum::Checksum;
use crate::error::StoreError;
use crate::index::{Snapshot, Step, UploadId, VersionsStart};
use crate::limits::{DELIMITER_BYTES_MAX, LIST_PAGE_MAX};
use crate::multipart::{UploadInfo, upload_info};
use crate::records::{self, BucketId, ETag, ObjectRecord};
use crate::store::{Store, time_of};
use crate::version::VersionId;

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Keys that have it after the prefix are shown as one common prefix, up to and with it. Empty: none.
    pub delimiter: String,
    /// Only what comes after this key, or after this common prefix.
    pub after: Option<String>,
    /// Entries of the page, at most [`LIST_PAGE_MAX`].
    pub limit: usize,
    /// Whether the tags of objects are asked for.
    pub tags: bool,
}

/// What a listing says of an object. Its metadata and its list of grants are not in it: they may be 20 KiB, and a page has a thousand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Size in bytes.
    pub bytes: u64,
    /// When the write that made it was taken in.
    pub modified: SystemTime,
    /// Entity tag.
    pub etag: ETag,
    /// The checksum it was stored with.
    pub checksum: Option<Checksum>,
    /// Who owns it.
    pub owner: String,
    /// Its tags, where they were asked for.
    pub tags: Vec<(String, String)>,
}

impl ListedObject {
    fn of(record: ObjectRecord, tags: bool) -> Self {
        Self {
            bytes: record.bytes,
            modified: time_of(record.modified_ms),
            etag: record.etag,
            checksum: record.checksum,
            owner: record.attributes.acl.owner,
            tags: if tags { record.attributes.tags } else { Vec::new() },
        }
    }
}

/// A page of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectsPage {
    /// Objects by key.
    pub objects: Vec<(String, ListedObject)>,
    /// Common prefixes.
    pub prefixes: Vec<String>,
    /// The page's last entry, to pass as `after` for the next one; `None` on the last page.
    pub next: Option<String>,
}

/// A page of unfinished uploads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadsPage {
    /// Uploads by key, then by age.
    pub uploads: Vec<UploadInfo>,
    /// Common prefixes.
    pub prefixes: Vec<String>,
    /// The page's last key or prefix, and the last upload's id where it was one; `None` on the last page.
    pub next: Option<(String, Option<String>)>,
}

/// A version of an object, or a delete marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionEntry {
    /// The object's key.
    pub key: String,
    /// Which version.
    pub version: VersionId,
    /// What is known about it; of a delete marker, when and by whom it was made.
    pub info: ListedObject,
    /// Whether it is the newest of its key.
    pub is_latest: bool,
    /// Whether it is the mark of a deletion.
    pub delete_marker: bool,
}

impl VersionEntry {
    pub(crate) fn of(key: &str, record: ObjectRecord, is_latest: bool, tags: bool) -> Self {
        Self {
            key: key.to_owned(),
            version: record.version.id(),
            delete_marker: record.delete_marker,
            info: ListedObject::of(record, tags),
            is_latest,
        }
    }
}

/// A page of versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionsPage {
    /// Versions by key, the newest first.
    pub versions: Vec<VersionEntry>,
    /// Common prefixes.
    pub prefixes: Vec<String>,
    /// The page's last key or prefix, and the last version where it was one; `None` on the last page.
    pub next: Option<(String, Option<VersionId>)>,
}

/// Sorts keys into entries and common prefixes.
struct Grouping<'a> {
    prefix: &'a [u8],
    delimiter: &'a [u8],
}

impl Grouping<'_> {
    /// The common prefix that `key`, which has the prefix, belongs to.
    fn common_prefix<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        if self.delimiter.is_empty() {
            return None;
        }
        let rest = &key[self.prefix.len()..];
        let at = rest.windows(self.delimiter.len()).position(|window| window == self.delimiter)?;
        Some(&key[..self.prefix.len() + at + self.delimiter.len()])
    }

    /// The first key that may be shown after `after`; `None` when nothing can follow.
    fn start(&self, after: Option<&str>) -> Option<Vec<u8>> {
        let after = match after.map(str::as_bytes) {
            Some(after) if after >= self.prefix => after,
            _ => return Some(self.prefix.to_vec()),
        };
        if !after.starts_with(self.prefix) {
            return None;
        }
        match self.common_prefix(after) {
            // A whole common prefix: everything under it was shown with it.
            Some(common) if common.len() == after.len() => successor(after),
            _ => Some([after, b"\0"].concat()),
        }
    }
}

/// The first byte string after all those that begin with `prefix`.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut next = prefix[..=last].to_vec();
    next[last] += 1;
    Some(next)
}

fn text(key: &[u8]) -> Result<String, StoreError> {
    String::from_utf8(key.to_vec()).map_err(|_| StoreError::Corrupt { what: "an object's key is not text" })
}

fn check(request: &ListRequest) -> Result<usize, StoreError> {
    if request.delimiter.len() > DELIMITER_BYTES_MAX {
        return Err(StoreError::InvalidKey);
    }
    Ok(request.limit.min(LIST_PAGE_MAX))
}

impl Store {
    /// A page of the objects of `bucket`.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    pub fn list_objects(
        &self,
        bucket: impl Into<BucketRef>,
        request: &ListRequest,
    ) -> Result<ObjectsPage, StoreError> {
        let (bucket, limit) = (bucket.into(), check(request)?);
        self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(&bucket)?.id;
            if limit == 0 {
                return Ok(ObjectsPage::default());
            }
            objects_page(snapshot, bucket, request, limit)
        })
    }

    /// A page of the versions of the objects of `bucket`; with `after_version`, older versions of the key `after` are shown
    /// too.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    pub fn list_versions(
        &self,
        bucket: impl Into<BucketRef>,
        request: &ListRequest,
        after_version: Option<VersionId>,
    ) -> Result<VersionsPage, StoreError> {
        let (bucket, limit) = (bucket.into(), check(request)?);
        self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(&bucket)?.id;
            if limit == 0 {
                return Ok(VersionsPage::default());
            }
            versions_page(snapshot, bucket, request, after_version, limit)
        })
    }

    /// A page of the unfinished uploads of `bucket`; with `after_upload`, uploads of the key `after` that are younger
    /// than it are shown too.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchUpload`] for an id that is none.
    pub fn list_uploads(
        &self,
        bucket: impl Into<BucketRef>,
        request: &ListRequest,
        after_upload: Option<&str>,
    ) -> Result<UploadsPage, StoreError> {
        let (bucket, limit) = (bucket.into(), check(request)?);
        let after_upload = after_upload
            .map(|id| UploadId::from_str_radix(id, 16).map_err(|_| StoreError::NoSuchUpload))
            .transpose()?;
        self.shared.read(|snapshot| {
            let bucket = snapshot.bucket(&bucket)?.id;
            if limit == 0 {
                return Ok(UploadsPage::default());
            }
            uploads_page(snapshot, bucket, request, after_upload, limit)
        })
    }
}

fn objects_page(
    snapshot: &Snapshot,
    bucket: BucketId,
    request: &ListRequest,
    limit: usize,
) -> Result<ObjectsPage, StoreError> {
    let grouping = Grouping { prefix: request.prefix.as_bytes(), delimiter: request.delimiter.as_bytes() };
    let mut page = ObjectsPage::default();
    let Some(start) = grouping.start(request.after.as_deref()) else { return Ok(page) };
    let mut last = String::new();
    snapshot.walk_objects(bucket, &start, &mut |key, row| {
        if !key.starts_with(grouping.prefix) {
            return Ok(Step::Stop);
        }
        if page.objects.len() + page.prefixes.len() == limit {
            page.next = Some(std::mem::take(&mut last));
            return Ok(Step::Stop);
        }
        if let Some(common) = grouping.common_prefix(key) {
            last = text(common)?;
            page.prefixes.push(last.clone());
            return Ok(successor(common).map_or(Step::Stop, Step::Seek));
        }
        last = text(key)?;
        let record: ObjectRecord = records::decode(row)?;
        page.objects.push((last.clone(), ListedObject::of(record, request.tags)));
        Ok(Step::Next)
    })?;
    Ok(page)
}

/// Where the versions begin that are shown after the request's marker.
fn versions_start(
    snapshot: &Snapshot,
    bucket: BucketId,
    grouping: &Grouping<'_>,
    after: Option<&str>,
    after_version: Option<VersionId>,
) -> Result<Option<VersionsStart>, StoreError> {
    let behind_key = || {
        let mut start = grouping.start(after)?;
        // A key's versions are rows behind it and a zero, which no key has: none of them is to be shown.
        if let Some(last) = start.last_mut().filter(|last| **last == 0) {
            *last = 1;
        }
        Some(VersionsStart::Key(start))
    };
    let (Some(key), Some(version)) = (after, after_version) else { return Ok(behind_key()) };
    if key.as_bytes() < grouping.prefix {
        return Ok(behind_key());
    }
    let key_bytes = key.as_bytes().to_vec();
    let sequence = match version {
        VersionId::Id { sequence, .. } => Some(sequence),
        // Where it is gone since the last page: better some versions twice than some never.
        VersionId::Null => snapshot.version(bucket, key, version)?.map(|null| null.version.sequence),
    };
    let Some(sequence) = sequence else { return Ok(Some(VersionsStart::Key(key_bytes))) };
    // What was shown has been deleted since, and one that was not has become the newest.
    let newest = snapshot.object(bucket, key)?;
    let risen = newest.is_some_and(|newest| newest.version.sequence < sequence);
    Ok(Some(if risen { VersionsStart::Key(key_bytes) } else { VersionsStart::After(key_bytes, sequence) }))
}

fn versions_page(
    snapshot: &Snapshot,
    bucket: BucketId,
    request: &ListRequest,
    after_version: Option<VersionId>,
    limit: usize,
) -> Result<VersionsPage, StoreError> {
    let grouping = Grouping { prefix: request.prefix.as_bytes(), delimiter: request.delimiter.as_bytes() };
    let mut page = VersionsPage::default();
    let start = versions_start(snapshot, bucket, &grouping, request.after.as_deref(), after_version)?;
    let Some(start) = start else { return Ok(page) };
    let mut last = (String::new(), None);
    snapshot.walk_versions(bucket, start, &mut |key, row, is_latest| {
        if !key.starts_with(grouping.prefix) {
            return Ok(if key < grouping.prefix { Step::Next } else { Step::Stop });
        }
        if page.versions.len() + page.prefixes.len() == limit {
            page.next = Some(std::mem::take(&mut last));
            return Ok(Step::Stop);
        }
        if let Some(common) = grouping.common_prefix(key) {
            last = (text(common)?, None);
            page.prefixes.push(last.0.clone());
            return Ok(successor(common).map_or(Step::Stop, Step::Seek));
        }
        let record: ObjectRecord = records::decode(row)?;
        last = (text(key)?, Some(record.version.id()));
        page.versions.push(VersionEntry::of(&last.0, record, is_latest, request.tags));
        Ok(Step::Next)
    })?;
    Ok(page)
}

fn uploads_page(
    snapshot: &Snapshot,
    bucket: BucketId,
    request: &ListRequest,
    after_upload: Option<UploadId>,
    limit: usize,
) -> Result<UploadsPage, StoreError> {
    let grouping = Grouping { prefix: request.prefix.as_bytes(), delimiter: request.delimiter.as_bytes() };
    let mut page = UploadsPage::default();
    let start = match (&request.after, after_upload) {
        (Some(key), Some(upload)) if key.as_bytes() >= grouping.prefix => {
            Some((key.clone().into_bytes(), upload.saturating_add(1)))
        }
        (after, _) => grouping.start(after.as_deref()).map(|start| (start, 0)),
    };
    let Some((key, upload)) = start else { return Ok(page) };
    let mut last = (String::new(), None);
    snapshot.walk_uploads(bucket, (&key, upload), &mut |key, upload, record| {
        if !key.starts_with(grouping.prefix) {
            return Ok(Step::Stop);
        }
        if page.uploads.len() + page.prefixes.len() == limit {
            page.next = Some(std::mem::take(&mut last));
            return Ok(Step::Stop);
        }
        if let Some(common) = grouping.common_prefix(key) {
            let common_text = text(common)?;
            last = (common_text.clone(), None);
            page.prefixes.push(common_text);
            return Ok(successor(common).map_or(Step::Stop, Step::Seek));
        }
        let info = upload_info(text(key)?, upload, &record);
        last = (info.key.clone(), Some(info.id.clone()));
        page.uploads.push(info);
        Ok(Step::Next)
    })?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_skips_everything_under_a_prefix() {
        assert_eq!(successor(b"a/").unwrap(), b"a0");
        assert_eq!(successor(b"a\xff\xff").unwrap(), b"b");
        assert_eq!(successor(b"\xff"), None);
    }

    #[test]
    fn a_page_starts_after_a_whole_common_prefix_but_inside_a_partial_one() {
        let grouping = Grouping { prefix: b"p/", delimiter: b"/" };
        assert_eq!(grouping.start(None).unwrap(), b"p/");
        assert_eq!(grouping.start(Some("a")).unwrap(), b"p/");
        assert_eq!(grouping.start(Some("p/x/")).unwrap(), b"p/x0");
        assert_eq!(grouping.start(Some("p/x/y")).unwrap(), b"p/x/y\0");
        assert_eq!(grouping.start(Some("q")), None);
    }
}
