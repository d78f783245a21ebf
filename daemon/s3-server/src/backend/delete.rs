//! Deletes.

use objects::limits::DELETE_KEYS_MAX;
use objects::{Condition, DeleteRequest, Deleted, VersionId};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::lock::{bypasses, count};
use super::{Answer, admitted};
use crate::access::may_delete;
use crate::attributes::version;
use crate::convert::{condition, unix_seconds};
use crate::error::from_store;
use crate::notifications::{Herald, REMOVED};
use crate::policy::denied;

/// The header `if-match` and its companions of a delete.
fn delete_condition(
    etag: Option<ETagCondition>,
    size: Option<i64>,
    modified: Option<&Timestamp>,
) -> S3Result<Condition> {
    let modified = modified.map(unix_seconds).map(count).transpose()?;
    Ok(Condition { size: size.map(count).transpose()?, modified_seconds: modified, ..condition(etag, None) })
}

pub(super) async fn one(request: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let user = admission.caller().owner();
    let notices = Herald::of(&request, &admission).notices(&request.input.key, &REMOVED);
    let input = request.input;
    let condition =
        delete_condition(input.if_match, input.if_match_size, input.if_match_last_modified_time.as_ref())?;
    let asked = DeleteRequest {
        key: input.key,
        version: version(input.version_id.as_deref())?,
        condition,
        bypass_governance: bypasses(input.bypass_governance_retention),
        user,
        notices,
        ..DeleteRequest::default()
    };
    let deleted = serving
        .run(move |store| store.delete_object(&bucket, asked).map_err(|error| from_store(&error)))
        .await?;
    Ok(S3Response::new(DeleteObjectOutput {
        delete_marker: deleted.delete_marker.then_some(true),
        version_id: deleted.version.map(|version| version.to_string()),
        request_charged: None,
    }))
}

/// What becomes of one key of many.
enum Fate {
    Asked(Option<VersionId>),
    Refused(s3s::S3Error),
}

fn many_asked(
    object: ObjectIdentifier,
    bypass_governance: bool,
    (user, herald): (&str, &Herald),
) -> S3Result<DeleteRequest> {
    let etag = object.e_tag.map(ETagCondition::ETag);
    let notices = herald.notices(&object.key, &REMOVED);
    Ok(DeleteRequest {
        key: object.key,
        version: version(object.version_id.as_deref())?,
        condition: delete_condition(etag, object.size, object.last_modified_time.as_ref())?,
        bypass_governance,
        user: user.to_owned(),
        notices,
        ..DeleteRequest::default()
    })
}

fn many_deleted(key: String, named: Option<VersionId>, deleted: Deleted) -> DeletedObject {
    let id = deleted.version.map(|version| version.to_string());
    let marker = deleted.delete_marker.then_some(true);
    DeletedObject {
        delete_marker: marker,
        delete_marker_version_id: marker.and(id),
        key: Some(key),
        version_id: named.map(|version| version.to_string()),
    }
}

pub(super) async fn many(request: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let user = admission.caller().owner();
    let herald = Herald::of(&request, &admission);
    let DeleteObjectsInput { delete, bypass_governance_retention, .. } = request.input;
    let bypass = bypasses(bypass_governance_retention);
    if delete.objects.is_empty() || delete.objects.len() > DELETE_KEYS_MAX {
        return Err(s3_error!(MalformedXML, "a request names 1 to {DELETE_KEYS_MAX} keys"));
    }
    let quiet = delete.quiet.unwrap_or(false);
    // Many keys and a long policy take their time to decide about, too.
    let (fates, results) = serving
        .run(move |store| {
            let mut asked = Vec::with_capacity(delete.objects.len());
            let mut fates = Vec::with_capacity(delete.objects.len());
            for object in delete.objects {
                let name = (object.key.clone(), object.version_id.clone());
                let request = many_asked(object, bypass, (&user, &herald)).and_then(|request| {
                    match may_delete(store, &admission, (&request.key, request.version), bypass)? {
                        true => Ok(request),
                        false => Err(denied("access denied")),
                    }
                });
                fates.push(match request {
                    Ok(request) => {
                        let version = request.version;
                        asked.push(request);
                        (name, Fate::Asked(version))
                    }
                    Err(error) => (name, Fate::Refused(error)),
                });
            }
            let results = store.delete_objects(&bucket, &asked).map_err(|error| from_store(&error))?;
            Ok((fates, results))
        })
        .await?;
    let mut results = results.into_iter();
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for ((key, version_id), fate) in fates {
        let result = match fate {
            Fate::Asked(named) => results
                .next()
                .unwrap_or_else(|| Ok(Deleted::default()))
                .map(|done| many_deleted(key.clone(), named, done))
                .map_err(|error| from_store(&error)),
            Fate::Refused(error) => Err(error),
        };
        match result {
            Ok(done) => deleted.push(done),
            Err(error) => errors.push(Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(key),
                message: error.message().map(str::to_owned),
                version_id,
            }),
        }
    }
    Ok(S3Response::new(DeleteObjectsOutput {
        deleted: (!quiet).then_some(deleted),
        errors: (!errors.is_empty()).then_some(errors),
        request_charged: None,
    }))
}
