//! Multipart uploads.

use http::HeaderName;
use objects::{CompleteOptions, PartInfo, UploadOptions};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::acl::NewAcl;
use super::copy::{asked_of_source, copy_source, open_source};
use super::{Answer, Backend, admitted, check_storage_class, header, set_server_encryption};
use crate::attributes::asked_attributes;
use crate::authority::lists::asked_acl;
use crate::conditions::source_range;
use crate::convert::{
    algorithm, algorithm_name, checksum_fields, condition, etag, kind, kind_name, object_headers,
    set_checksum_fields, timestamp,
};
use crate::customer_key::{asked_key, key_of, md5_of, set_encryption_headers};
use crate::encryption::asked_named_key;
use crate::error::{from_store, invalid};
use crate::notifications::Herald;
use crate::upload::Upload;

fn part_number(number: i32) -> S3Result<u16> {
    u16::try_from(number).map_err(|_| invalid("part numbers run from 1 to 10,000"))
}

pub(super) async fn create(
    mut request: S3Request<CreateMultipartUploadInput>,
) -> Answer<CreateMultipartUploadOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let write = header(&request, "x-amz-grant-write").map(str::to_owned);
    let asked_acl = asked_acl!(request.input, write);
    let new_acl = NewAcl::of(&admission, asked_acl);
    let mut input = request.input;
    check_storage_class(input.storage_class.as_ref())?;
    let checksum = match &input.checksum_algorithm {
        None => None,
        Some(name) => {
            let algorithm = algorithm(name.as_str())?;
            let kind = input.checksum_type.as_ref().map(kind).transpose()?;
            Some((algorithm, kind.unwrap_or_else(|| algorithm.default_kind())))
        }
    };
    let metadata = object_headers!(input).into_metadata();
    let acl = serving.run(move |store| new_acl.resolve(store)).await?;
    let attributes = asked_attributes!(input).into_attributes(acl)?;
    let given = asked_key!(input);
    let customer_key = key_of(given.as_ref());
    let named_key = asked_named_key!(input, given, admission);
    let said_key = named_key.clone();
    let options = UploadOptions { metadata, attributes, checksum, customer_key, named_key };
    let key = input.key.clone();
    let upload = serving
        .run(move |store| store.create_upload(&bucket, &key, options).map_err(|error| from_store(&error)))
        .await?;
    let mut output = CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        checksum_algorithm: checksum.map(|(algorithm, _)| algorithm_name(algorithm)),
        checksum_type: checksum.map(|(_, kind)| kind_name(kind)),
        key: Some(input.key),
        upload_id: Some(upload.id),
        ..CreateMultipartUploadOutput::default()
    };
    set_encryption_headers!(output, md5_of(given), said_key);
    Ok(S3Response::new(output))
}

pub(super) async fn upload(
    backend: &Backend,
    mut request: S3Request<UploadPartInput>,
) -> Answer<UploadPartOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let announced = header(&request, "x-amz-trailer").map(str::to_owned);
    let trailers = request.trailing_headers.take();
    let mut input = request.input;
    let number = part_number(input.part_number)?;
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
    let (key, id, checksum) = (input.key, input.upload_id, receiver.algorithm);
    let part: PartInfo = receiver
        .receive(
            &serving,
            &backend.resources,
            move |store, length| {
                let mut writer = store.upload_part((&bucket, &key), &id, number, Some(length), checksum)?;
                writer.encrypt(customer_key.as_ref())?;
                Ok(writer)
            },
            |_, writer, declared| writer.finish(&declared).map_err(|error| from_store(&error)),
        )
        .await?;
    let mut output = UploadPartOutput { e_tag: Some(etag(&part.etag)), ..UploadPartOutput::default() };
    set_encryption_headers!(output, md5_of(given), part.named_key);
    set_checksum_fields!(output, part.checksum.as_ref());
    Ok(S3Response::new(output))
}

pub(super) async fn upload_copy(
    backend: &Backend,
    request: S3Request<UploadPartCopyInput>,
) -> Answer<UploadPartCopyOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let mut input = request.input;
    let number = part_number(input.part_number)?;
    let source = copy_source(&admission, &input.copy_source)?;
    let given = asked_key!(input);
    let customer_key = key_of(given.as_ref());
    let (source_key, conditions) = asked_of_source!(input);
    let (key, id, range) = (input.key, input.upload_id, input.copy_source_range);
    let turn = backend.resources.copy().await;
    let (part, source_version) = serving
        .run(move |store| {
            // Held by the work itself: a client that leaves does not end it.
            let _turn = turn;
            let object = open_source(store, &admission, &source, source_key.as_ref(), &conditions)?;
            let range = source_range(range.as_deref(), object.info().bytes)?;
            let part = store
                .copy_part(&object, &range, (&bucket, &key), (&id, customer_key.as_ref()), number)
                .map_err(|error| from_store(&error))?;
            Ok((part, object.info().version))
        })
        .await?;
    let mut result = CopyPartResult {
        e_tag: Some(etag(&part.etag)),
        last_modified: Some(timestamp(part.modified)),
        ..CopyPartResult::default()
    };
    set_checksum_fields!(result, part.checksum.as_ref());
    let mut output = UploadPartCopyOutput {
        copy_part_result: Some(result),
        copy_source_version_id: source_version.map(|version| version.to_string()),
        ..UploadPartCopyOutput::default()
    };
    set_encryption_headers!(output, md5_of(given), part.named_key);
    Ok(S3Response::new(output))
}

fn completed_part(mut part: CompletedPart) -> S3Result<objects::CompletedPart> {
    let malformed = || s3_error!(MalformedXML, "every part needs its number and its ETag");
    let number = part_number(part.part_number.ok_or_else(malformed)?)?;
    let etag = part.e_tag.take().ok_or_else(malformed)?.into_value();
    let checksum = checksum_fields!(part).checksum()?;
    Ok(objects::CompletedPart { number, etag, checksum })
}

pub(super) async fn complete(
    request: S3Request<CompleteMultipartUploadInput>,
) -> Answer<CompleteMultipartUploadOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let event = "ObjectCreated:CompleteMultipartUpload";
    let notices = Herald::of(&request, &admission).made(&request.input.key, event);
    let mut input = request.input;
    let listed = input.multipart_upload.take().and_then(|upload| upload.parts).unwrap_or_default();
    if listed.is_empty() {
        return Err(s3_error!(MalformedXML, "the list of parts is empty"));
    }
    let parts = listed.into_iter().map(completed_part).collect::<S3Result<Vec<_>>>()?;
    let bytes =
        input.mpu_object_size.map(u64::try_from).transpose().map_err(|_| invalid("x-amz-mp-object-size"))?;
    let checksum = checksum_fields!(input).checksum()?;
    let condition = condition(input.if_match.take(), input.if_none_match.take());
    let given = asked_key!(input);
    let customer_key = key_of(given.as_ref());
    let options = CompleteOptions { condition, bytes, checksum, customer_key, notices };
    let customer_key_md5 = md5_of(given);
    let (key, id) = (input.key.clone(), input.upload_id);
    let info = serving
        .run(move |store| {
            store.complete_upload(&bucket, &key, &id, parts, options).map_err(|error| from_store(&error))
        })
        .await?;
    let mut output = CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(etag(&info.etag)),
        checksum_type: info.checksum.as_ref().map(|checksum| kind_name(checksum.kind())),
        version_id: info.version.map(|version| version.to_string()),
        ..CompleteMultipartUploadOutput::default()
    };
    set_checksum_fields!(output, info.checksum.as_ref());
    // The type has no field for the customer's key.
    if customer_key_md5.is_none() {
        set_server_encryption!(output, info.named_key);
    }
    let mut response = S3Response::new(output);
    if let Some(md5) = customer_key_md5 {
        // As the other answers about the upload have it.
        let prefix = "x-amz-server-side-encryption-customer";
        for (name, value) in [("algorithm", "AES256"), ("key-md5", md5.as_str())] {
            if let (Ok(name), Ok(value)) = (format!("{prefix}-{name}").parse::<HeaderName>(), value.parse()) {
                response.headers.insert(name, value);
            }
        }
    }
    Ok(response)
}

pub(super) async fn abort(
    request: S3Request<AbortMultipartUploadInput>,
) -> Answer<AbortMultipartUploadOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let AbortMultipartUploadInput { key, upload_id, .. } = request.input;
    serving
        .run(move |store| store.abort_upload(&bucket, &key, &upload_id).map_err(|error| from_store(&error)))
        .await?;
    Ok(S3Response::new(AbortMultipartUploadOutput::default()))
}
