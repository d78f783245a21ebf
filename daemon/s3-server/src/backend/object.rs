//! Operations on whole objects.

use objects::{Object, ObjectInfo, PutOptions};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result};

use super::acl::{NewAcl, authority};
use super::{Answer, Backend, check_encryption, check_storage_class, header, serving};
use crate::attributes::{asked_attributes, set_attribute_headers, tag_count, version};
use crate::authority::lists::asked_acl;
use crate::conditions::{ReadConditions, Selection, select};
use crate::convert::{
    checksum_fields, condition, etag, kind_name, object_headers, set_checksum_fields, set_object_headers,
    size,
};
use crate::customer_key::{asked_key, key_of, md5_of, set_encryption_headers};
use crate::download;
use crate::error::from_store;
use crate::lifecycle::rules;
use crate::upload::Upload;

pub(super) async fn put(
    backend: &Backend,
    mut request: S3Request<PutObjectInput>,
) -> Answer<PutObjectOutput> {
    let serving = serving(&request)?;
    let authority = authority(&request)?;
    let name = request.input.key.clone();
    let write = header(&request, "x-amz-grant-write").map(str::to_owned);
    let asked_acl = asked_acl!(request.input, write);
    let new_acl = NewAcl::of(&request, asked_acl)?;
    let announced = header(&request, "x-amz-trailer").map(str::to_owned);
    let trailers = request.trailing_headers.take();
    let mut input = request.input;
    check_storage_class(input.storage_class.as_ref())?;
    check_encryption(input.server_side_encryption.as_ref())?;
    let given = asked_key!(input);
    let customer_key = key_of(given.as_ref());
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
    let acl = serving.run(move |store| new_acl.resolve(store)).await?;
    let attributes = asked_attributes!(input).into_attributes(acl)?;
    let condition = condition(input.if_match, input.if_none_match);
    let (bucket, key, checksum) = (input.bucket, input.key, receiver.algorithm);
    let info = receiver
        .receive(
            &serving,
            &backend.resources,
            move |store, length| {
                let mut writer = store.put_object(&bucket, &key, Some(length), checksum)?;
                customer_key.iter().for_each(|key| writer.encrypt(key));
                Ok(writer)
            },
            move |writer, declared| writer.finish(PutOptions { metadata, attributes, condition, declared }),
        )
        .await?;
    let mut output = PutObjectOutput {
        e_tag: Some(etag(&info.etag)),
        expiration: rules::header(&authority.lifecycle, &name, &info),
        checksum_type: info.checksum.as_ref().map(|checksum| kind_name(checksum.kind())),
        version_id: info.version.map(|version| version.to_string()),
        ..PutObjectOutput::default()
    };
    set_encryption_headers!(output, md5_of(given));
    set_checksum_fields!(output, info.checksum.as_ref());
    Ok(S3Response::new(output))
}

fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}

/// Fills in the headers that the request wants instead of the object's.
macro_rules! overrides {
    ($to:expr, $from:expr) => {
        $to.cache_control = $from.response_cache_control.or($to.cache_control);
        $to.content_disposition = $from.response_content_disposition.or($to.content_disposition);
        $to.content_encoding = $from.response_content_encoding.or($to.content_encoding);
        $to.content_language = $from.response_content_language.or($to.content_language);
        $to.content_type = $from.response_content_type.or($to.content_type);
        $to.expires = $from.response_expires.or($to.expires);
    };
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
    let authority = authority(&request)?;
    let name = request.input.key.clone();
    let mut input = request.input;
    let given = asked_key!(input);
    let customer_key = key_of(given.as_ref());
    let version = version(input.version_id.as_deref())?;
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
            let mut object = store.object(&bucket, &key, version).map_err(|error| from_store(&error))?;
            let selection = select_from(&object, range, number)?;
            object.unlock(customer_key.as_ref()).map_err(|error| from_store(&error))?;
            conditions.check(object.info())?;
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
        expiration: rules::header(&authority.lifecycle, &name, &info),
        parts_count: parts_count(&info, number),
        tag_count: tag_count(&info),
        ..GetObjectOutput::default()
    };
    set_object_headers!(output, &info);
    set_attribute_headers!(output, &info);
    overrides!(output, input);
    set_encryption_headers!(output, md5_of(given));
    if whole && wants_checksum(input.checksum_mode.as_ref()) {
        output.checksum_type = info.checksum.as_ref().map(|checksum| kind_name(checksum.kind()));
        set_checksum_fields!(output, info.checksum.as_ref());
    }
    output.body = Some(download::body(serving, backend.resources.clone(), first, reader, (memory, length)));
    Ok(S3Response::new(output))
}

pub(super) async fn head(request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
    let serving = serving(&request)?;
    let authority = authority(&request)?;
    let name = request.input.key.clone();
    let mut input = request.input;
    let given = asked_key!(input);
    let customer_key = key_of(given.as_ref());
    let version = version(input.version_id.as_deref())?;
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
                let info = store.head_object(&bucket, &key, version).map_err(|error| from_store(&error))?;
                info.check_key(customer_key.as_ref()).map_err(|error| from_store(&error))?;
                conditions.check(&info)?;
                let whole = Selection { range: 0..info.bytes, content_range: None };
                return Ok((info, whole));
            }
            let mut object = store.object(&bucket, &key, version).map_err(|error| from_store(&error))?;
            let selection = select_from(&object, range, number)?;
            object.unlock(customer_key.as_ref()).map_err(|error| from_store(&error))?;
            conditions.check(object.info())?;
            Ok((object.info().clone(), selection))
        })
        .await?;
    let mut output = HeadObjectOutput {
        content_length: Some(size(selection.range.end - selection.range.start)),
        content_range: selection.content_range,
        expiration: rules::header(&authority.lifecycle, &name, &info),
        parts_count: parts_count(&info, number),
        ..HeadObjectOutput::default()
    };
    set_object_headers!(output, &info);
    set_attribute_headers!(output, &info);
    overrides!(output, input);
    set_encryption_headers!(output, md5_of(given));
    if selection.range == (0..info.bytes) && wants_checksum(input.checksum_mode.as_ref()) {
        output.checksum_type = info.checksum.as_ref().map(|checksum| kind_name(checksum.kind()));
        set_checksum_fields!(output, info.checksum.as_ref());
    }
    let count = tag_count(&info);
    let mut response = S3Response::new(output);
    if let Some(count) = count {
        response.headers.insert("x-amz-tagging-count", count.into());
    }
    Ok(response)
}
