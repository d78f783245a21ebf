//! Copies of whole objects.

use objects::{BucketRef, Condition, CopyOptions, CustomerKey, Object, Store, StoreError, VersionId};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::acl::NewAcl;
use super::{Answer, Backend, admitted, check_storage_class, header};
use crate::access::Admission;
use crate::attributes::{asked_attributes, version};
use crate::authority::lists::asked_acl;
use crate::conditions::ReadConditions;
use crate::convert::{algorithm, condition, etag, kind_name, object_headers, set_checksum_fields, timestamp};
use crate::customer_key::{asked_key, key_of, md5_of, set_encryption_headers};
use crate::encryption::asked_named_key;
use crate::error::{from_store, invalid};
use crate::notifications::Herald;

/// What a copy says of its source: the customer's key that opens it, and the conditions it must meet.
macro_rules! asked_of_source {
    ($from:expr) => {{
        let key = $crate::customer_key::AskedKey {
            algorithm: $from.copy_source_sse_customer_algorithm.take(),
            key: $from.copy_source_sse_customer_key.take(),
            md5: $from.copy_source_sse_customer_key_md5.take(),
        };
        let conditions = $crate::conditions::ReadConditions {
            if_match: $from.copy_source_if_match.take(),
            if_none_match: $from.copy_source_if_none_match.take(),
            if_modified_since: $from.copy_source_if_modified_since.take(),
            if_unmodified_since: $from.copy_source_if_unmodified_since.take(),
        };
        ($crate::customer_key::key_of(key.read()?.as_ref()), conditions)
    }};
}

pub(super) use asked_of_source;

/// Bucket, key and version of a copy's source.
pub(super) fn copy_source(
    admission: &Admission,
    source: &CopySource,
) -> S3Result<(BucketRef, String, Option<VersionId>)> {
    match source {
        CopySource::Bucket { key, version_id, .. } => {
            Ok((admission.source_bucket()?, key.to_string(), version(version_id.as_deref())?))
        }
        _ => Err(s3_error!(NotImplemented, "access points are not implemented")),
    }
}

/// The object to copy from, opened with the customer's key that was given for it.
pub(super) fn open_source(
    store: &Store,
    admission: &Admission,
    (bucket, key, version): &(BucketRef, String, Option<VersionId>),
    customer_key: Option<&CustomerKey>,
    conditions: &ReadConditions,
) -> S3Result<Object> {
    let mut object = store.object(bucket, key, *version).map_err(|error| match error {
        StoreError::IsDeleteMarker { named: true, .. } => {
            s3_error!(InvalidRequest, "the source of a copy is the mark of a deletion: name another version")
        }
        error => from_store(&error),
    })?;
    admission.check_source(object.info())?;
    object.unlock(customer_key).map_err(|error| from_store(&error))?;
    object.check_named_key().map_err(|error| from_store(&error))?;
    conditions.check_source(object.info())?;
    Ok(object)
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

/// Whether a directive says that the copy does not have what its source has.
fn replaces(directive: Option<&str>) -> S3Result<bool> {
    match directive {
        None | Some("COPY") => Ok(false),
        Some("REPLACE") => Ok(true),
        Some(_) => Err(invalid("a directive must be COPY or REPLACE")),
    }
}

pub(super) async fn object(
    backend: &Backend,
    mut request: S3Request<CopyObjectInput>,
) -> Answer<CopyObjectOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let write = header(&request, "x-amz-grant-write").map(str::to_owned);
    let asked_acl = asked_acl!(request.input, write);
    let new_acl = NewAcl::of(&admission, asked_acl);
    let target = target_condition(&request)?;
    let notices = Herald::of(&request, &admission).made(&request.input.key, "ObjectCreated:Copy");
    let mut input = request.input;
    check_storage_class(input.storage_class.as_ref())?;
    let replace = replaces(input.metadata_directive.as_ref().map(MetadataDirective::as_str))?;
    let replace_tags = replaces(input.tagging_directive.as_ref().map(TaggingDirective::as_str))?;
    let source = copy_source(&admission, &input.copy_source)?;
    let onto_itself = source == (bucket.clone(), input.key.clone(), None);
    let encrypts = input.server_side_encryption.is_some() || input.sse_customer_algorithm.is_some();
    if !replace && !encrypts && onto_itself && input.checksum_algorithm.is_none() {
        return Err(s3_error!(
            InvalidRequest,
            "an object can be copied onto itself only with other metadata, another checksum or another encryption"
        ));
    }
    let metadata = replace.then(|| object_headers!(input).into_metadata());
    let acl = serving.run(move |store| new_acl.resolve(store)).await?;
    let mut attributes = asked_attributes!(input).into_attributes(acl)?;
    let given = asked_key!(input);
    let customer_key = key_of(given.as_ref());
    let named_key = asked_named_key!(input, given, admission);
    let (source_key, conditions) = asked_of_source!(input);
    let checksum = input.checksum_algorithm.as_ref().map(|name| algorithm(name.as_str())).transpose()?;
    let key = input.key;
    let turn = backend.resources.copy().await;
    let (info, source_version) = serving
        .run(move |store| {
            // Held by the work itself: a client that leaves does not end it.
            let _turn = turn;
            let object = open_source(store, &admission, &source, source_key.as_ref(), &conditions)?;
            if !replace_tags {
                admission.check_source_tags(object.info())?;
                attributes.tags.clone_from(&object.info().attributes.tags);
            }
            let options = CopyOptions {
                metadata,
                attributes,
                checksum,
                condition: target,
                customer_key,
                named_key,
                notices,
            };
            let info =
                store.copy_object(&object, &bucket, &key, options).map_err(|error| from_store(&error))?;
            Ok((info, object.info().version))
        })
        .await?;
    let mut result = CopyObjectResult {
        e_tag: Some(etag(&info.etag)),
        last_modified: Some(timestamp(info.modified)),
        checksum_type: info.checksum.as_ref().map(|checksum| kind_name(checksum.kind())),
        ..CopyObjectResult::default()
    };
    set_checksum_fields!(result, info.checksum.as_ref());
    let mut output = CopyObjectOutput {
        copy_object_result: Some(result),
        copy_source_version_id: source_version.map(|version| version.to_string()),
        version_id: info.version.map(|version| version.to_string()),
        ..CopyObjectOutput::default()
    };
    set_encryption_headers!(output, md5_of(given), info.named_key);
    Ok(S3Response::new(output))
}
