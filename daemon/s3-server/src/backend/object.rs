//! Operations on whole objects.

use objects::{Checksum, ChecksumKind, Object, ObjectInfo, PutOptions};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::acl::NewAcl;
use super::{Answer, Backend, admitted, check_storage_class, header};
use crate::attributes::{asked_attributes, set_attribute_headers, tag_count, version};
use crate::authority::lists::asked_acl;
use crate::conditions::{ReadConditions, Selection, select};
use crate::convert::{
    checksum_fields, condition, etag, kind_name, object_headers, set_checksum_fields, set_object_headers,
    size,
};
use crate::customer_key::{asked_key, key_of, md5_of, set_encryption_headers};
use crate::download;
use crate::encryption::asked_named_key;
use crate::error::from_store;
use crate::lifecycle::rules;
use crate::notifications::Herald;
use crate::upload::Upload;

pub(super) async fn put(
    backend: &Backend,
    mut request: S3Request<PutObjectInput>,
) -> Answer<PutObjectOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let name = request.input.key.clone();
    let write = header(&request, "x-amz-grant-write").map(str::to_owned);
    let asked_acl = asked_acl!(request.input, write);
    let new_acl = NewAcl::of(&admission, asked_acl);
    let notices = Herald::of(&request, &admission).made(&name, "ObjectCreated:Put");
    let announced = header(&request, "x-amz-trailer").map(str::to_owned);
    let trailers = request.trailing_headers.take();
    let mut input = request.input;
    check_storage_class(input.storage_class.as_ref())?;
    let given = asked_key!(input);
    let customer_key = key_of(given.as_ref());
    // Of a form: as a header it does not come so far.
    if input.ssekms_encryption_context.is_some() {
        return Err(s3_error!(NotImplemented, "an encryption context is not implemented"));
    }
    let named_key = asked_named_key!(input, given, admission);
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
    let (key, checksum) = (input.key, receiver.algorithm);
    let (about, replaced) = (admission.clone(), key.clone());
    let info = receiver
        .receive(
            &serving,
            &backend.resources,
            move |store, length| {
                let mut writer = store.put_object(&bucket, &key, Some(length), checksum)?;
                match (&customer_key, &named_key) {
                    (Some(key), _) => writer.encrypt(key),
                    (None, Some(name)) => writer.encrypt_under(name)?,
                    (None, None) => {}
                }
                Ok(writer)
            },
            move |store, writer, declared| {
                // What is there may be another object, or have other tags, since the body began to come.
                about.check_replaced(store, &replaced)?;
                let options = PutOptions { metadata, attributes, condition, declared, notices };
                writer.finish(options).map_err(|error| from_store(&error))
            },
        )
        .await?;
    let mut output = PutObjectOutput {
        e_tag: Some(etag(&info.etag)),
        expiration: rules::header(&admission.authority.lifecycle, &name, &info),
        checksum_type: info.checksum.as_ref().map(|checksum| kind_name(checksum.kind())),
        version_id: info.version.map(|version| version.to_string()),
        ..PutObjectOutput::default()
    };
    set_encryption_headers!(output, md5_of(given), info.named_key);
    set_checksum_fields!(output, info.checksum.as_ref());
    Ok(S3Response::new(output))
}

/// The checksum of what is selected: of the whole object, or of one part; a range has none. Its type is the object's. It tells the clear
/// bytes of an object whose named key is not lent, and is not told.
fn checksum_of(
    object: &Object,
    selection: &Selection,
    number: Option<i32>,
) -> Option<(ChecksumKind, Checksum)> {
    let whole = object.info().checksum.as_ref().filter(|_| object.check_named_key().is_ok())?;
    let part = number
        .and_then(|number| object.parts().iter().find(|part| i32::from(part.number) == number))
        .map(|part| part.checksum.clone());
    let is_whole = selection.range == (0..object.info().bytes);
    let checksum = part.unwrap_or_else(|| is_whole.then(|| whole.clone()))?;
    Some((whole.kind(), checksum))
}

fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}

/// Fills in the checksum, for a request that wants it.
macro_rules! set_wanted_checksum {
    ($to:expr, $mode:expr, $checksum:expr) => {
        let wanted = wants_checksum($mode);
        if let Some((kind, checksum)) = $checksum.filter(|_| wanted) {
            $to.checksum_type = Some(kind_name(kind));
            set_checksum_fields!($to, Some(&checksum));
        }
    };
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
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
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
    let (key, range, number) = (input.key, input.range, input.part_number);
    let about = admission.clone();
    let (info, checksum, selection, first, reader) = serving
        .run(move |store| {
            let mut object = store.object(&bucket, &key, version).map_err(|error| from_store(&error))?;
            about.check_object(object.info())?;
            let selection = select_from(&object, range, number)?;
            object.unlock(customer_key.as_ref()).map_err(|error| from_store(&error))?;
            object.check_named_key().map_err(|error| from_store(&error))?;
            conditions.check(object.info())?;
            let mut reader = object.reader(&selection.range);
            let first =
                download::read_chunk(&mut reader, buffer, length).map_err(|error| from_store(&error))?;
            drop(worker);
            let checksum = checksum_of(&object, &selection, number);
            Ok((object.info().clone(), checksum, selection, first.unwrap_or_default(), reader))
        })
        .await?;
    let mut output = GetObjectOutput {
        content_length: Some(size(selection.range.end - selection.range.start)),
        content_range: selection.content_range,
        expiration: rules::header(&admission.authority.lifecycle, &name, &info),
        parts_count: parts_count(&info, number),
        tag_count: tag_count(&info),
        ..GetObjectOutput::default()
    };
    set_object_headers!(output, &info);
    set_attribute_headers!(output, &info);
    overrides!(output, input);
    set_encryption_headers!(output, md5_of(given), info.named_key.clone());
    set_wanted_checksum!(output, input.checksum_mode.as_ref(), checksum);
    output.body = Some(download::body(backend.resources.clone(), first, reader, (memory, length)));
    Ok(S3Response::new(output))
}

pub(super) async fn head(request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
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
    let (key, range, number) = (input.key, input.range, input.part_number);
    let wants_checksum = wants_checksum(input.checksum_mode.as_ref());
    let about = admission.clone();
    let (info, checksum, selection) = serving
        .run(move |store| {
            // Only a selection needs to know where the parts are, and only a checksum whether the key is lent.
            if range.is_none() && number.is_none() && !wants_checksum {
                let info = store.head_object(&bucket, &key, version).map_err(|error| from_store(&error))?;
                about.check_object(&info)?;
                info.check_key(customer_key.as_ref()).map_err(|error| from_store(&error))?;
                conditions.check(&info)?;
                let whole = Selection { range: 0..info.bytes, content_range: None };
                return Ok((info, None, whole));
            }
            let mut object = store.object(&bucket, &key, version).map_err(|error| from_store(&error))?;
            about.check_object(object.info())?;
            let selection = select_from(&object, range, number)?;
            object.unlock(customer_key.as_ref()).map_err(|error| from_store(&error))?;
            conditions.check(object.info())?;
            let checksum = checksum_of(&object, &selection, number);
            Ok((object.info().clone(), checksum, selection))
        })
        .await?;
    let mut output = HeadObjectOutput {
        content_length: Some(size(selection.range.end - selection.range.start)),
        content_range: selection.content_range,
        expiration: rules::header(&admission.authority.lifecycle, &name, &info),
        parts_count: parts_count(&info, number),
        ..HeadObjectOutput::default()
    };
    set_object_headers!(output, &info);
    set_attribute_headers!(output, &info);
    overrides!(output, input);
    set_encryption_headers!(output, md5_of(given), info.named_key.clone());
    set_wanted_checksum!(output, input.checksum_mode.as_ref(), checksum);
    let count = tag_count(&info);
    let mut response = S3Response::new(output);
    if let Some(count) = count {
        response.headers.insert("x-amz-tagging-count", count.into());
    }
    Ok(response)
}
