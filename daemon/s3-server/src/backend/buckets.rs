//! Bucket operations.

use objects::{BucketInfo, BucketOptions, StoreError, Versioning};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::{Answer, Backend, admitted, serving};
use crate::authority::Ownership;
use crate::authority::lists::asked_acl;
use crate::caller::Caller;
use crate::convert::{owner, timestamp};
use crate::documents::{self, OWNERSHIP};
use crate::error::{from_store, invalid};

/// The region whose buckets have no location constraint (S3).
const CLASSIC_REGION: &str = "us-east-1";

pub(super) async fn list(
    backend: &Backend,
    request: S3Request<ListBucketsInput>,
) -> Answer<ListBucketsOutput> {
    let serving = serving(&request)?;
    let user = Caller::of(&request).owner();
    let ListBucketsInput { bucket_region, continuation_token, max_buckets, prefix } = request.input;
    let limit = match max_buckets {
        None => usize::MAX,
        Some(limit) => {
            usize::try_from(limit).ok().filter(|limit| *limit > 0).ok_or(invalid("max-buckets"))?
        }
    };
    let mut buckets = serving.run(|store| store.buckets().map_err(|error| from_store(&error))).await?;
    let shown = |bucket: &BucketInfo| {
        (bucket.owner.is_empty() || bucket.owner == user)
            && prefix.as_ref().is_none_or(|prefix| bucket.name.starts_with(prefix.as_str()))
            && continuation_token.as_ref().is_none_or(|token| bucket.name > *token)
            && bucket_region.as_ref().is_none_or(|region| *region == backend.region)
    };
    buckets.retain(shown);
    let truncated = buckets.len() > limit;
    buckets.truncate(limit);
    let continuation_token = buckets.last().filter(|_| truncated).map(|bucket| bucket.name.clone());
    let entry = |bucket: BucketInfo| Bucket {
        bucket_region: Some(backend.region.clone()),
        creation_date: Some(timestamp(bucket.created)),
        name: Some(bucket.name),
    };
    Ok(S3Response::new(ListBucketsOutput {
        buckets: Some(buckets.into_iter().map(entry).collect()),
        continuation_token,
        owner: Some(owner(&user)),
        prefix,
    }))
}

pub(super) async fn create(
    backend: &Backend,
    request: S3Request<CreateBucketInput>,
) -> Answer<CreateBucketOutput> {
    let serving = serving(&request)?;
    let owner = Caller::of(&request).owner();
    let mut input = request.input;
    let asked = asked_acl!(input, input.grant_write.take());
    let CreateBucketInput {
        bucket,
        create_bucket_configuration,
        object_lock_enabled_for_bucket,
        object_ownership,
        ..
    } = input;
    check_location(&backend.region, create_bucket_configuration)?;
    let documents = match &object_ownership {
        Some(ownership) => vec![(OWNERSHIP.to_owned(), ownership_document(ownership, asked.is_empty())?)],
        None => Vec::new(),
    };
    let location = format!("/{bucket}");
    let is_classic = backend.region == CLASSIC_REGION;
    serving
        .run(move |store| {
            let acl = asked.list(store, &owner, &owner)?;
            let lock = object_lock_enabled_for_bucket.unwrap_or(false);
            let options = BucketOptions { owner, lock, acl: acl.clone(), documents };
            match store.create_bucket(&bucket, options) {
                // In its first region S3 takes a bucket that its owner makes again, as it is (S3).
                Err(StoreError::BucketExists) if is_classic => {
                    let existing = store.bucket(&bucket).map_err(|error| from_store(&error))?;
                    let error = StoreError::BucketTaken;
                    if existing.acl == acl { Ok(()) } else { Err(from_store(&error)) }
                }
                result => result.map_err(|error| from_store(&error)),
            }
        })
        .await?;
    Ok(S3Response::new(CreateBucketOutput { location: Some(location) }))
}

/// The ownership controls that a bucket is made with.
fn ownership_document(ownership: &ObjectOwnership, lists_nobody: bool) -> S3Result<Vec<u8>> {
    let known =
        Ownership::parse(ownership.as_str()).ok_or(invalid("the object ownership is not one of S3"))?;
    if known == Ownership::BucketOwnerEnforced && !lists_nobody {
        return Err(s3_error!(
            InvalidBucketAclWithObjectOwnership,
            "a bucket whose owner owns everything has no access control list"
        ));
    }
    let rules = vec![OwnershipControlsRule { object_ownership: ownership.clone() }];
    documents::text(&OwnershipControls { rules })
}

fn check_location(region: &str, configuration: Option<CreateBucketConfiguration>) -> S3Result<()> {
    let constraint = configuration.and_then(|configuration| configuration.location_constraint);
    let constraint = constraint.as_ref().map(BucketLocationConstraint::as_str).unwrap_or_default();
    if constraint.is_empty() || constraint == region {
        return Ok(());
    }
    Err(s3_error!(IllegalLocationConstraintException, "buckets of this server are in the region {region}"))
}

pub(super) async fn head(backend: &Backend, request: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| store.bucket(&bucket).map_err(|error| from_store(&error))).await?;
    let bucket_region = Some(backend.region.clone());
    Ok(S3Response::new(HeadBucketOutput { bucket_region, ..HeadBucketOutput::default() }))
}

pub(super) async fn location(
    backend: &Backend,
    request: S3Request<GetBucketLocationInput>,
) -> Answer<GetBucketLocationOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| store.bucket(&bucket).map_err(|error| from_store(&error))).await?;
    let location_constraint =
        (backend.region != CLASSIC_REGION).then(|| BucketLocationConstraint::from(backend.region.clone()));
    Ok(S3Response::new(GetBucketLocationOutput { location_constraint }))
}

/// A bucket that never kept versions has no status (S3).
pub(super) async fn versioning(
    request: S3Request<GetBucketVersioningInput>,
) -> Answer<GetBucketVersioningOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let bucket = serving.run(move |store| store.bucket(&bucket).map_err(|error| from_store(&error))).await?;
    let status = match bucket.versioning {
        Versioning::Unversioned => None,
        Versioning::Enabled => Some(BucketVersioningStatus::ENABLED),
        Versioning::Suspended => Some(BucketVersioningStatus::SUSPENDED),
    };
    let status = status.map(BucketVersioningStatus::from_static);
    Ok(S3Response::new(GetBucketVersioningOutput { status, mfa_delete: None }))
}

pub(super) async fn set_versioning(
    request: S3Request<PutBucketVersioningInput>,
) -> Answer<PutBucketVersioningOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let PutBucketVersioningInput { versioning_configuration: asked, .. } = request.input;
    if asked.mfa_delete.is_some_and(|delete| delete.as_str() != MFADelete::DISABLED) {
        return Err(s3_error!(NotImplemented, "a second factor for deletes is not implemented"));
    }
    let versioning = match asked.status.as_ref().map(BucketVersioningStatus::as_str) {
        Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
        Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
        _ => return Err(s3_error!(MalformedXML, "the status must be Enabled or Suspended")),
    };
    serving
        .run(move |store| store.set_versioning(&bucket, versioning).map_err(|error| from_store(&error)))
        .await?;
    Ok(S3Response::new(PutBucketVersioningOutput::default()))
}

pub(super) async fn delete(request: S3Request<DeleteBucketInput>) -> Answer<DeleteBucketOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| store.delete_bucket(&bucket).map_err(|error| from_store(&error))).await?;
    Ok(S3Response::new(DeleteBucketOutput::default()))
}
