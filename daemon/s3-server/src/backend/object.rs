//! Operations on whole objects.

use objects::limits::DELETE_KEYS_MAX;
use objects::{Condition, Object, ObjectInfo, PutOptions};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::{
    Answer, Backend, check_acl, check_encryption, check_storage_class, check_version, header, serving,
};
use crate::conditions::{ReadConditions, Selection, select};
use crate::convert::{
    algorithm, checksum_fields, condition, etag, kind_name, object_headers, set_checksum_fields,
    set_object_headers, size, timestamp,
};
use crate::download;
use crate::error::{from_store, invalid};
use crate::upload::Upload;

pub(super) async fn put(
    backend: &Backend,
    mut request: S3Request<PutObjectInput>,
) -> Answer<PutObjectOutput> {
    let serving = serving(&request)?;
    let announced = header(&request, "x-amz-trailer").map(str::to_owned);
    let trailers = request.trailing_headers.take();
    let mut input = request.input;
    check_acl(input.acl.as_ref().map(ObjectCannedACL::as_str))?;
    check_storage_class(input.storage_class.as_ref())?;
    check_encryption(input.server_side_encryption.as_ref())?;
    let upload = Upload {
        body: input.body.take(),
        length: input.content_length,
        md5: input.content_md5.take(),
        checksums: checksum_fields!(input),
        algorithm: input.checksum_algorithm.map(|name| name.as_str().to_owned()),
        announced,
        trailers,
    };
    let receiver = upload.check()?;
    let metadata = object_headers!(input).into_metadata();
    let condition = condition(input.if_match, input.if_none_match);
    let (bucket, key, checksum) = (input.bucket, input.key, receiver.algorithm);
    let info = receiver
        .receive(
            &serving,
            &backend.resources,
            move |store, length| store.put_object(&bucket, &key, Some(length), checksum),
            move |writer, declared| writer.finish(PutOptions { metadata, condition, declared }),
        )
        .await?;
    let mut output = PutObjectOutput {
        e_tag: Some(etag(&info.etag)),
        checksum_type: info.checksum.as_ref().map(|checksum| kind_name(checksum.kind())),
        server_side_encryption: input.server_side_encryption,
        ..PutObjectOutput::default()
    };
    set_checksum_fields!(output, info.checksum.as_ref());
    Ok(S3Response::new(output))
}

fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}

/// Parts of a multipart object, for a request that names one.
fn parts_count(info: &ObjectInfo, number: Option<i32>) -> Option<i32> {
    number.and((info.etag.parts > 0).then(|| i32::from(info.etag.parts)))
}

fn select_from(object: &Object, range: Option<Range>, number: Option<i32>) -> S3Result<Selection> {
    select(object.info().bytes, range, number, |number| object.part(number))
}

pub(super) async fn get(backend: &Backend, request: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
    let serving = serving(&request)?;
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    let conditions = ReadConditions {
        if_match: input.if_match,
        if_none_match: input.if_none_match,
        if_modified_since: input.if_modified_since,
        if_unmodified_since: input.if_unmodified_since,
    };
    let (memory, length) = backend.resources.reserve_two_chunks().await;
    let worker = backend.resources.worker().await;
    let buffer = backend.resources.buffer(length);
    let (bucket, key, range, number) = (input.bucket, input.key, input.range, input.part_number);
    let (info, selection, first, reader) = serving
        .run(move |store| {
            let object = store.object(&bucket, &key).map_err(|error| from_store(&error))?;
            conditions.check(object.info())?;
            let selection = select_from(&object, range, number)?;
            let mut reader = object.reader(&selection.range);
            let first =
                download::read_chunk(&mut reader, buffer, length).map_err(|error| from_store(&error))?;
            drop(worker);
            Ok((object.info().clone(), selection, first.unwrap_or_default(), reader))
        })
        .await?;
    let whole = selection.range == (0..info.bytes);
    let mut output = GetObjectOutput {
        content_length: Some(size(selection.range.end - selection.range.start)),
        content_range: selection.content_range,
        parts_count: parts_count(&info, number),
        ..GetObjectOutput::default()
    };
    set_object_headers!(output, &info);
    if whole && wants_checksum(input.checksum_mode.as_ref()) {
        output.checksum_type = info.checksum.as_ref().map(|checksum| kind_name(checksum.kind()));
        set_checksum_fields!(output, info.checksum.as_ref());
    }
    output.body = Some(download::body(serving, backend.resources.clone(), first, reader, (memory, length)));
    Ok(S3Response::new(output))
}

pub(super) async fn head(request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
    let serving = serving(&request)?;
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    let conditions = ReadConditions {
        if_match: input.if_match,
        if_none_match: input.if_none_match,
        if_modified_since: input.if_modified_since,
        if_unmodified_since: input.if_unmodified_since,
    };
    let (bucket, key, range, number) = (input.bucket, input.key, input.range, input.part_number);
    let (info, selection) = serving
        .run(move |store| {
            // Only a selection needs to know where the parts are.
            if range.is_none() && number.is_none() {
                let info = store.head_object(&bucket, &key).map_err(|error| from_store(&error))?;
                conditions.check(&info)?;
                let whole = Selection { range: 0..info.bytes, content_range: None };
                return Ok((info, whole));
            }
            let object = store.object(&bucket, &key).map_err(|error| from_store(&error))?;
            conditions.check(object.info())?;
            let selection = select_from(&object, range, number)?;
            Ok((object.info().clone(), selection))
        })
        .await?;
    let mut output = HeadObjectOutput {
        content_length: Some(size(selection.range.end - selection.range.start)),
        content_range: selection.content_range,
        parts_count: parts_count(&info, number),
        ..HeadObjectOutput::default()
    };
    set_object_headers!(output, &info);
    if selection.range == (0..info.bytes) && wants_checksum(input.checksum_mode.as_ref()) {
        output.checksum_type = info.checksum.as_ref().map(|checksum| kind_name(checksum.kind()));
        set_checksum_fields!(output, info.checksum.as_ref());
    }
    Ok(S3Response::new(output))
}

pub(super) async fn delete(request: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
    let serving = serving(&request)?;
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    if input.if_match_last_modified_time.is_some() || input.if_match_size.is_some() {
        return Err(s3_error!(NotImplemented, "If-Match is the only condition of a delete"));
    }
    let condition = condition(input.if_match, None);
    let (bucket, key) = (input.bucket, input.key);
    serving
        .run(move |store| store.delete_object(&bucket, &key, condition).map_err(|error| from_store(&error)))
        .await?;
    Ok(S3Response::new(DeleteObjectOutput::default()))
}

/// What becomes of one key of many.
enum Fate {
    Asked,
    Refused(s3s::S3Error),
}

pub(super) async fn delete_many(request: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
    let serving = serving(&request)?;
    let DeleteObjectsInput { bucket, delete, .. } = request.input;
    if delete.objects.is_empty() || delete.objects.len() > DELETE_KEYS_MAX {
        return Err(s3_error!(MalformedXML, "a request names 1 to {DELETE_KEYS_MAX} keys"));
    }
    let mut asked = Vec::with_capacity(delete.objects.len());
    let mut fates = Vec::with_capacity(delete.objects.len());
    for object in delete.objects {
        let refusal = check_version(object.version_id.as_deref()).err().or_else(|| {
            let unknown = object.last_modified_time.is_some() || object.size.is_some();
            unknown.then(|| s3_error!(NotImplemented, "ETag is the only condition of a delete"))
        });
        fates.push((object.key.clone(), refusal.map_or(Fate::Asked, Fate::Refused)));
        if matches!(fates.last(), Some((_, Fate::Asked))) {
            asked.push((object.key, condition(object.e_tag.map(ETagCondition::ETag), None)));
        }
    }
    let results = serving
        .run(move |store| store.delete_objects(&bucket, &asked).map_err(|error| from_store(&error)))
        .await?;
    let mut results = results.into_iter();
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for (key, fate) in fates {
        let result = match fate {
            Fate::Asked => results.next().unwrap_or(Ok(())).map_err(|error| from_store(&error)),
            Fate::Refused(error) => Err(error),
        };
        match result {
            Ok(()) => deleted.push(DeletedObject { key: Some(key), ..DeletedObject::default() }),
            Err(error) => errors.push(Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(key),
                message: error.message().map(str::to_owned),
                version_id: None,
            }),
        }
    }
    let quiet = delete.quiet.unwrap_or(false);
    Ok(S3Response::new(DeleteObjectsOutput {
        deleted: (!quiet).then_some(deleted),
        errors: (!errors.is_empty()).then_some(errors),
        request_charged: None,
    }))
}

/// Bucket and key of a copy's source.
pub(super) fn copy_source(source: &CopySource) -> S3Result<(String, String)> {
    match source {
        CopySource::Bucket { bucket, key, version_id } => {
            check_version(version_id.as_deref())?;
            Ok((bucket.to_string(), key.to_string()))
        }
        _ => Err(s3_error!(NotImplemented, "access points are not implemented")),
    }
}

/// A condition that the type of the operation has no field for.
fn target_condition(request: &S3Request<CopyObjectInput>) -> S3Result<Condition> {
    let parse = |name| {
        let text = header(request, name);
        text.map(|text| ETagCondition::parse_http_header(text.as_bytes()))
            .transpose()
            .map_err(|_| invalid("a condition can't be read"))
    };
    Ok(condition(parse("if-match")?, parse("if-none-match")?))
}

pub(super) async fn copy(backend: &Backend, request: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
    let serving = serving(&request)?;
    let target = target_condition(&request)?;
    let mut input = request.input;
    check_acl(input.acl.as_ref().map(ObjectCannedACL::as_str))?;
    check_storage_class(input.storage_class.as_ref())?;
    check_encryption(input.server_side_encryption.as_ref())?;
    let replace = match input.metadata_directive.as_ref().map(MetadataDirective::as_str) {
        None | Some(MetadataDirective::COPY) => false,
        Some(MetadataDirective::REPLACE) => true,
        Some(_) => return Err(invalid("the metadata directive must be COPY or REPLACE")),
    };
    let source = copy_source(&input.copy_source)?;
    if !replace && source == (input.bucket.clone(), input.key.clone()) && input.checksum_algorithm.is_none() {
        return Err(s3_error!(
            InvalidRequest,
            "an object can be copied onto itself only with other metadata or another checksum"
        ));
    }
    let metadata = replace.then(|| object_headers!(input).into_metadata());
    let conditions = ReadConditions {
        if_match: input.copy_source_if_match,
        if_none_match: input.copy_source_if_none_match,
        if_modified_since: input.copy_source_if_modified_since,
        if_unmodified_since: input.copy_source_if_unmodified_since,
    };
    let checksum = input.checksum_algorithm.as_ref().map(|name| algorithm(name.as_str())).transpose()?;
    let (bucket, key) = (input.bucket, input.key);
    let turn = backend.resources.copy().await;
    let info = serving
        .run(move |store| {
            // Held by the work itself: a client that leaves does not end it.
            let _turn = turn;
            let object = store.object(&source.0, &source.1).map_err(|error| from_store(&error))?;
            conditions.check_source(object.info())?;
            store
                .copy_object(&object, &bucket, &key, metadata, checksum, target)
                .map_err(|error| from_store(&error))
        })
        .await?;
    let mut result = CopyObjectResult {
        e_tag: Some(etag(&info.etag)),
        last_modified: Some(timestamp(info.modified)),
        checksum_type: info.checksum.as_ref().map(|checksum| kind_name(checksum.kind())),
        ..CopyObjectResult::default()
    };
    set_checksum_fields!(result, info.checksum.as_ref());
    Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() }))
}
