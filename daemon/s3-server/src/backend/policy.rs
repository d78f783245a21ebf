//! Bucket policies, public access block and ownership controls.

use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, s3_error};

use super::{Answer, admitted};
use crate::authority::document::Policy;
use crate::authority::ownership_of;
use crate::documents::{self, OWNERSHIP, POLICY, PUBLIC_ACCESS};
use crate::error::from_store;
use crate::policy::denied;

pub(super) async fn get(request: S3Request<GetBucketPolicyInput>) -> Answer<GetBucketPolicyOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let text = serving
        .run(move |store| store.bucket_document(&bucket, POLICY).map_err(|error| from_store(&error)))
        .await?;
    let text = text.ok_or_else(|| s3_error!(NoSuchBucketPolicy, "the bucket has no policy"))?;
    let policy = Some(String::from_utf8_lossy(&text).into_owned());
    Ok(S3Response::new(GetBucketPolicyOutput { policy }))
}

pub(super) async fn put(request: S3Request<PutBucketPolicyInput>) -> Answer<PutBucketPolicyOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let PutBucketPolicyInput { policy: text, .. } = request.input;
    let policy = Policy::parse(text.as_bytes(), Some(bucket.name()))
        .map_err(|error| S3Error::with_message(S3ErrorCode::MalformedPolicy, error.to_string()))?;
    if admission.authority.public_access.block_policy && policy.is_public() {
        return Err(denied("the bucket blocks public policies"));
    }
    serving
        .run(move |store| {
            store
                .set_bucket_document(&bucket, POLICY, Some(text.into_bytes()))
                .map_err(|error| from_store(&error))
        })
        .await?;
    Ok(S3Response::with_status(PutBucketPolicyOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn delete(request: S3Request<DeleteBucketPolicyInput>) -> Answer<DeleteBucketPolicyOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| documents::remove(store, &bucket, POLICY)).await?;
    Ok(S3Response::with_status(DeleteBucketPolicyOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn status(
    request: S3Request<GetBucketPolicyStatusInput>,
) -> Answer<GetBucketPolicyStatusOutput> {
    let (_, admission) = admitted(&request).await?;
    let is_public = Some(admission.authority.is_public());
    Ok(S3Response::new(GetBucketPolicyStatusOutput { policy_status: Some(PolicyStatus { is_public }) }))
}

pub(super) async fn get_public_access(
    request: S3Request<GetPublicAccessBlockInput>,
) -> Answer<GetPublicAccessBlockOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let found = serving.run(move |store| documents::find(store, &bucket, PUBLIC_ACCESS)).await?;
    let Some(found) = found else {
        let mut missing = S3Error::with_message(
            S3ErrorCode::Custom("NoSuchPublicAccessBlockConfiguration".into()),
            "the bucket has no public access block",
        );
        missing.set_status_code(http::StatusCode::NOT_FOUND);
        return Err(missing);
    };
    Ok(S3Response::new(GetPublicAccessBlockOutput { public_access_block_configuration: Some(found) }))
}

pub(super) async fn put_public_access(
    request: S3Request<PutPublicAccessBlockInput>,
) -> Answer<PutPublicAccessBlockOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let PutPublicAccessBlockInput { public_access_block_configuration: asked, .. } = request.input;
    // What is not said is off, and is said so.
    let asked = PublicAccessBlockConfiguration {
        block_public_acls: Some(asked.block_public_acls.unwrap_or(false)),
        block_public_policy: Some(asked.block_public_policy.unwrap_or(false)),
        ignore_public_acls: Some(asked.ignore_public_acls.unwrap_or(false)),
        restrict_public_buckets: Some(asked.restrict_public_buckets.unwrap_or(false)),
    };
    serving.run(move |store| documents::put(store, &bucket, PUBLIC_ACCESS, &asked)).await?;
    Ok(S3Response::new(PutPublicAccessBlockOutput::default()))
}

pub(super) async fn delete_public_access(
    request: S3Request<DeletePublicAccessBlockInput>,
) -> Answer<DeletePublicAccessBlockOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| documents::remove(store, &bucket, PUBLIC_ACCESS)).await?;
    Ok(S3Response::with_status(DeletePublicAccessBlockOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn get_ownership(
    request: S3Request<GetBucketOwnershipControlsInput>,
) -> Answer<GetBucketOwnershipControlsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let found = serving.run(move |store| documents::find(store, &bucket, OWNERSHIP)).await?;
    let found = found
        .ok_or_else(|| s3_error!(OwnershipControlsNotFoundError, "the bucket has no ownership controls"))?;
    Ok(S3Response::new(GetBucketOwnershipControlsOutput { ownership_controls: Some(found) }))
}

pub(super) async fn put_ownership(
    request: S3Request<PutBucketOwnershipControlsInput>,
) -> Answer<PutBucketOwnershipControlsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let PutBucketOwnershipControlsInput { ownership_controls: asked, .. } = request.input;
    let ownership = ownership_of(&asked)
        .ok_or_else(|| s3_error!(MalformedXML, "the ownership controls are not those of S3"))?;
    let authority = &admission.authority;
    let lists_more = authority.bucket.acl.grants.as_ref().is_some_and(|grants| {
        grants.iter().any(|grant| grant.grantee != objects::Grantee::User(authority.bucket.owner.clone()))
    });
    if ownership == crate::authority::Ownership::BucketOwnerEnforced && lists_more {
        return Err(s3_error!(
            InvalidBucketAclWithObjectOwnership,
            "the bucket's access control list grants something to others"
        ));
    }
    serving.run(move |store| documents::put(store, &bucket, OWNERSHIP, &asked)).await?;
    Ok(S3Response::new(PutBucketOwnershipControlsOutput::default()))
}

pub(super) async fn delete_ownership(
    request: S3Request<DeleteBucketOwnershipControlsInput>,
) -> Answer<DeleteBucketOwnershipControlsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| documents::remove(store, &bucket, OWNERSHIP)).await?;
    Ok(S3Response::with_status(DeleteBucketOwnershipControlsOutput::default(), http::StatusCode::NO_CONTENT))
}
