//! Listings: of objects in both versions, of uploads, of parts.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use objects::limits::LIST_PAGE_MAX;
use objects::{ListRequest, ListedObject, PartInfo, UploadInfo, VersionEntry};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::{Answer, Backend, admitted};
use crate::attributes::version;
use crate::convert::{
    algorithm_name, etag, kind_name, owner, owner_name, set_checksum_fields, size, timestamp, url_encoded,
};
use crate::error::{from_store, invalid};
use crate::resources::Room;

/// Names this server's continuation tokens, so that a later one may look different.
const TOKEN_PREFIX: &str = "1";

fn limit(asked: Option<i32>) -> S3Result<usize> {
    match asked {
        None => Ok(LIST_PAGE_MAX),
        Some(asked) => match usize::try_from(asked) {
            Ok(asked) => Ok(asked.min(LIST_PAGE_MAX)),
            Err(_) => Err(invalid("the number of entries can't be negative")),
        },
    }
}

fn shown(limit: usize) -> Option<i32> {
    i32::try_from(limit).ok()
}

/// Whether names are to be percent-encoded, and the function that does it or doesn't.
fn encoder(encoding: Option<&EncodingType>) -> S3Result<fn(&str) -> String> {
    match encoding.map(EncodingType::as_str) {
        None => Ok(str::to_owned),
        Some(EncodingType::URL) => Ok(url_encoded),
        Some(_) => Err(invalid("url is the only encoding-type")),
    }
}

/// An answer that holds memory until it is sent.
fn in_room<T>(output: T, room: Room) -> S3Response<T> {
    let mut response = S3Response::new(output);
    response.extensions.insert(room);
    response
}

fn object(key: String, info: &ListedObject, with_owner: bool) -> Object {
    let checksum = info.checksum.as_ref();
    Object {
        checksum_algorithm: checksum.map(|checksum| vec![algorithm_name(checksum.algorithm)]),
        checksum_type: checksum.map(|checksum| kind_name(checksum.kind())),
        e_tag: Some(etag(&info.etag)),
        key: Some(key),
        last_modified: Some(timestamp(info.modified)),
        owner: with_owner.then(|| owner(&info.owner)),
        restore_status: None,
        size: Some(size(info.bytes)),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
    }
}

fn common_prefixes(prefixes: &[String], encode: fn(&str) -> String) -> Option<Vec<CommonPrefix>> {
    let prefix = |prefix: &String| CommonPrefix { prefix: Some(encode(prefix)) };
    (!prefixes.is_empty()).then(|| prefixes.iter().map(prefix).collect())
}

/// What is there and not empty: clients send empty markers for none.
fn given(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

fn list_request(
    prefix: &Option<String>,
    delimiter: &Option<String>,
    after: Option<String>,
    limit: usize,
) -> ListRequest {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    ListRequest { prefix: text(prefix), delimiter: text(delimiter), after, limit, tags: false }
}

pub(super) async fn objects_v1(
    backend: &Backend,
    request: S3Request<ListObjectsInput>,
) -> Answer<ListObjectsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let limit = limit(input.max_keys)?;
    let encode = encoder(input.encoding_type.as_ref())?;
    let list = list_request(&input.prefix, &input.delimiter, given(&input.marker), limit);
    let room = backend.resources.page(limit).await;
    let page = serving
        .run(move |store| store.list_objects(&bucket, &list).map_err(|error| from_store(&error)))
        .await?;
    let output = ListObjectsOutput {
        name: Some(input.bucket),
        // Clients decode everything else that is encoded, but not this.
        prefix: Some(input.prefix.unwrap_or_default()),
        marker: Some(encode(&input.marker.unwrap_or_default())),
        max_keys: shown(limit),
        is_truncated: Some(page.next.is_some()),
        common_prefixes: common_prefixes(&page.prefixes, encode),
        contents: Some(page.objects.iter().map(|(key, info)| object(encode(key), info, true)).collect()),
        delimiter: input.delimiter.as_deref().filter(|text| !text.is_empty()).map(encode),
        next_marker: page.next.as_deref().map(encode),
        encoding_type: input.encoding_type,
        request_charged: None,
    };
    Ok(in_room(output, room))
}

fn token(last: &str) -> String {
    format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(last))
}

fn parse_token(token: &str) -> S3Result<String> {
    let last = token.strip_prefix(TOKEN_PREFIX).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let last = last.and_then(|bytes| String::from_utf8(bytes).ok());
    last.ok_or(invalid("the continuation token was not made by this server"))
}

pub(super) async fn objects_v2(
    backend: &Backend,
    request: S3Request<ListObjectsV2Input>,
) -> Answer<ListObjectsV2Output> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let limit = limit(input.max_keys)?;
    let encode = encoder(input.encoding_type.as_ref())?;
    let after = match &input.continuation_token {
        Some(token) if !token.is_empty() => Some(parse_token(token)?),
        _ => given(&input.start_after),
    };
    let list = list_request(&input.prefix, &input.delimiter, after, limit);
    let room = backend.resources.page(limit).await;
    let page = serving
        .run(move |store| store.list_objects(&bucket, &list).map_err(|error| from_store(&error)))
        .await?;
    let with_owner = input.fetch_owner.unwrap_or(false);
    let output = ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encode(&input.prefix.unwrap_or_default())),
        max_keys: shown(limit),
        key_count: shown(page.objects.len() + page.prefixes.len()),
        continuation_token: input.continuation_token,
        is_truncated: Some(page.next.is_some()),
        next_continuation_token: page.next.as_deref().map(token),
        common_prefixes: common_prefixes(&page.prefixes, encode),
        contents: Some(
            page.objects.iter().map(|(key, info)| object(encode(key), info, with_owner)).collect(),
        ),
        delimiter: input.delimiter.as_deref().filter(|text| !text.is_empty()).map(encode),
        encoding_type: input.encoding_type,
        start_after: input.start_after.as_deref().map(encode),
        request_charged: None,
    };
    Ok(in_room(output, room))
}

fn object_version(entry: &VersionEntry, encode: fn(&str) -> String) -> ObjectVersion {
    let checksum = entry.info.checksum.as_ref();
    ObjectVersion {
        checksum_algorithm: checksum.map(|checksum| vec![algorithm_name(checksum.algorithm)]),
        checksum_type: checksum.map(|checksum| kind_name(checksum.kind())),
        e_tag: Some(etag(&entry.info.etag)),
        is_latest: Some(entry.is_latest),
        key: Some(encode(&entry.key)),
        last_modified: Some(timestamp(entry.info.modified)),
        owner: Some(owner(&entry.info.owner)),
        restore_status: None,
        size: Some(size(entry.info.bytes)),
        storage_class: Some(ObjectVersionStorageClass::from_static(ObjectVersionStorageClass::STANDARD)),
        version_id: Some(entry.version.to_string()),
    }
}

fn delete_marker(entry: &VersionEntry, encode: fn(&str) -> String) -> DeleteMarkerEntry {
    DeleteMarkerEntry {
        is_latest: Some(entry.is_latest),
        key: Some(encode(&entry.key)),
        last_modified: Some(timestamp(entry.info.modified)),
        owner: Some(owner(&entry.info.owner)),
        version_id: Some(entry.version.to_string()),
    }
}

pub(super) async fn versions(
    backend: &Backend,
    request: S3Request<ListObjectVersionsInput>,
) -> Answer<ListObjectVersionsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let limit = limit(input.max_keys)?;
    let encode = encoder(input.encoding_type.as_ref())?;
    let list = list_request(&input.prefix, &input.delimiter, given(&input.key_marker), limit);
    let marker = given(&input.version_id_marker);
    if marker.is_some() && list.after.is_none() {
        return Err(invalid("a version-id-marker can't be given without a key-marker"));
    }
    let after_version = version(marker.as_deref())?;
    let room = backend.resources.page(limit).await;
    let page = serving
        .run(move |store| {
            store.list_versions(&bucket, &list, after_version).map_err(|error| from_store(&error))
        })
        .await?;
    let truncated = page.next.is_some();
    let (next_key, next_version) = page.next.unwrap_or_default();
    let (markers, versions): (Vec<_>, Vec<_>) = page.versions.iter().partition(|entry| entry.delete_marker);
    let output = ListObjectVersionsOutput {
        common_prefixes: common_prefixes(&page.prefixes, encode),
        delete_markers: Some(markers.into_iter().map(|entry| delete_marker(entry, encode)).collect()),
        delimiter: input.delimiter.as_deref().filter(|text| !text.is_empty()).map(encode),
        encoding_type: input.encoding_type,
        is_truncated: Some(truncated),
        key_marker: Some(encode(&input.key_marker.unwrap_or_default())),
        max_keys: shown(limit),
        name: Some(input.bucket),
        next_key_marker: truncated.then(|| encode(&next_key)),
        next_version_id_marker: next_version.filter(|_| truncated).map(|version| version.to_string()),
        prefix: Some(encode(&input.prefix.unwrap_or_default())),
        request_charged: None,
        version_id_marker: Some(input.version_id_marker.unwrap_or_default()),
        versions: Some(versions.into_iter().map(|entry| object_version(entry, encode)).collect()),
    };
    Ok(in_room(output, room))
}

fn upload(upload: UploadInfo, encode: fn(&str) -> String) -> MultipartUpload {
    MultipartUpload {
        checksum_algorithm: upload.checksum.map(|(algorithm, _)| algorithm_name(algorithm)),
        checksum_type: upload.checksum.map(|(_, kind)| kind_name(kind)),
        initiated: Some(timestamp(upload.initiated)),
        initiator: Some(Initiator {
            display_name: Some(owner_name(&upload.owner).to_owned()),
            id: Some(owner_name(&upload.owner).to_owned()),
        }),
        key: Some(encode(&upload.key)),
        owner: Some(owner(&upload.owner)),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        upload_id: Some(upload.id),
    }
}

pub(super) async fn uploads(
    backend: &Backend,
    request: S3Request<ListMultipartUploadsInput>,
) -> Answer<ListMultipartUploadsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let limit = limit(input.max_uploads)?;
    let encode = encoder(input.encoding_type.as_ref())?;
    let list = list_request(&input.prefix, &input.delimiter, given(&input.key_marker), limit);
    // Without a key marker the upload marker means nothing (S3).
    let after_upload = given(&input.upload_id_marker).filter(|_| list.after.is_some());
    let room = backend.resources.page(limit).await;
    let page = serving
        .run(move |store| {
            store.list_uploads(&bucket, &list, after_upload.as_deref()).map_err(|error| from_store(&error))
        })
        .await?;
    let truncated = page.next.is_some();
    let (next_key, next_upload) = page.next.unwrap_or_default();
    let output = ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        common_prefixes: common_prefixes(&page.prefixes, encode),
        delimiter: input.delimiter.as_deref().filter(|text| !text.is_empty()).map(encode),
        is_truncated: Some(truncated),
        key_marker: Some(encode(&input.key_marker.unwrap_or_default())),
        max_uploads: shown(limit),
        next_key_marker: truncated.then(|| encode(&next_key)),
        next_upload_id_marker: next_upload.filter(|_| truncated),
        prefix: Some(encode(&input.prefix.unwrap_or_default())),
        upload_id_marker: Some(input.upload_id_marker.unwrap_or_default()),
        uploads: Some(page.uploads.into_iter().map(|entry| upload(entry, encode)).collect()),
        encoding_type: input.encoding_type,
        request_charged: None,
    };
    Ok(in_room(output, room))
}

fn part(info: &PartInfo) -> Part {
    let mut part = Part {
        e_tag: Some(etag(&info.etag)),
        last_modified: Some(timestamp(info.modified)),
        part_number: Some(i32::from(info.number)),
        size: Some(size(info.bytes)),
        ..Part::default()
    };
    set_checksum_fields!(part, info.checksum.as_ref());
    part
}

pub(super) async fn parts(request: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let limit = limit(input.max_parts)?;
    let after = match input.part_number_marker {
        None => 0,
        Some(marker) => u16::try_from(marker)
            .map_err(|_| s3_error!(InvalidArgument, "part-number-marker is out of range"))?,
    };
    let (key, id) = (input.key.clone(), input.upload_id.clone());
    let page = serving
        .run(move |store| store.parts(&bucket, &key, &id, after, limit).map_err(|error| from_store(&error)))
        .await?;
    let last = page.parts.last().map(|part| i32::from(part.number));
    Ok(S3Response::new(ListPartsOutput {
        bucket: Some(input.bucket),
        checksum_algorithm: page.upload.checksum.map(|(algorithm, _)| algorithm_name(algorithm)),
        checksum_type: page.upload.checksum.map(|(_, kind)| kind_name(kind)),
        is_truncated: Some(page.truncated),
        key: Some(input.key),
        max_parts: shown(limit),
        next_part_number_marker: last.filter(|_| page.truncated),
        owner: Some(owner(&page.upload.owner)),
        part_number_marker: Some(i32::from(after)),
        parts: Some(page.parts.iter().map(part).collect()),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        upload_id: Some(input.upload_id),
        ..ListPartsOutput::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were_and_others_are_refused() {
        for key in ["a", "ä/日本", "with space"] {
            assert_eq!(parse_token(&token(key)).unwrap(), key);
        }
        for bad in ["", "2YQ", "1%%", "1_w"] {
            assert!(parse_token(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn page_sizes_are_capped_and_never_negative() {
        assert_eq!(limit(None).unwrap(), LIST_PAGE_MAX);
        assert_eq!(limit(Some(0)).unwrap(), 0);
        assert_eq!(limit(Some(i32::MAX)).unwrap(), LIST_PAGE_MAX);
        assert!(limit(Some(-1)).is_err());
    }
}
