//! Tags of buckets and objects.

use objects::Happened;
use objects::limits::BUCKET_TAGS_MAX;
use s3s::dto::*;
use s3s::{S3Request, S3Response, s3_error};

use super::{Answer, admitted};
use crate::attributes::{tag_set, tags_of, version};
use crate::documents::{self, TAGGING};
use crate::error::from_store;
use crate::notifications::Herald;

pub(super) async fn get(request: S3Request<GetObjectTaggingInput>) -> Answer<GetObjectTaggingOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let version = version(input.version_id.as_deref())?;
    let info = serving
        .run(move |store| store.head_object(&bucket, &input.key, version).map_err(|error| from_store(&error)))
        .await?;
    Ok(S3Response::new(GetObjectTaggingOutput {
        tag_set: tag_set(&info.attributes.tags),
        version_id: info.version.map(|version| version.to_string()),
    }))
}

pub(super) async fn put(request: S3Request<PutObjectTaggingInput>) -> Answer<PutObjectTaggingOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let event = [(Happened::Changed, "ObjectTagging:Put")];
    let notices = Herald::of(&request, &admission).notices(&request.input.key, &event);
    let input = request.input;
    let version = version(input.version_id.as_deref())?;
    let tags = tags_of(input.tagging.tag_set)?;
    let info = serving
        .run(move |store| {
            store.set_tags(&bucket, &input.key, version, tags, notices).map_err(|error| from_store(&error))
        })
        .await?;
    let version_id = info.version.map(|version| version.to_string());
    Ok(S3Response::new(PutObjectTaggingOutput { version_id }))
}

pub(super) async fn delete(
    request: S3Request<DeleteObjectTaggingInput>,
) -> Answer<DeleteObjectTaggingOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let event = [(Happened::Changed, "ObjectTagging:Delete")];
    let notices = Herald::of(&request, &admission).notices(&request.input.key, &event);
    let input = request.input;
    let version = version(input.version_id.as_deref())?;
    let info = serving
        .run(move |store| {
            store
                .set_tags(&bucket, &input.key, version, Vec::new(), notices)
                .map_err(|error| from_store(&error))
        })
        .await?;
    let version_id = info.version.map(|version| version.to_string());
    Ok(S3Response::with_status(DeleteObjectTaggingOutput { version_id }, http::StatusCode::NO_CONTENT))
}

pub(super) async fn get_bucket(request: S3Request<GetBucketTaggingInput>) -> Answer<GetBucketTaggingOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let found: Option<Tagging> = serving.run(move |store| documents::find(store, &bucket, TAGGING)).await?;
    match found {
        Some(tagging) => Ok(S3Response::new(GetBucketTaggingOutput { tag_set: tagging.tag_set })),
        None => Err(s3_error!(NoSuchTagSet, "the bucket has no tags")),
    }
}

pub(super) async fn put_bucket(request: S3Request<PutBucketTaggingInput>) -> Answer<PutBucketTaggingOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let PutBucketTaggingInput { tagging, .. } = request.input;
    let tags = tags_of(tagging.tag_set)?;
    objects::check_tags(&tags, BUCKET_TAGS_MAX).map_err(|error| from_store(&error))?;
    let tagging = Tagging { tag_set: tag_set(&tags) };
    serving.run(move |store| documents::put(store, &bucket, TAGGING, &tagging)).await?;
    Ok(S3Response::with_status(PutBucketTaggingOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn delete_bucket(
    request: S3Request<DeleteBucketTaggingInput>,
) -> Answer<DeleteBucketTaggingOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| documents::remove(store, &bucket, TAGGING)).await?;
    Ok(S3Response::with_status(DeleteBucketTaggingOutput::default(), http::StatusCode::NO_CONTENT))
}
