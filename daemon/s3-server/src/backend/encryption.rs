//! A bucket's default encryption: a named key for what is put without saying. Everything is encrypted with AES-256 whether or not
//! a bucket says so.

use s3s::dto::*;
use s3s::{S3Request, S3Response, s3_error};

use super::{Answer, admitted};
use crate::documents::{self, ENCRYPTION};
use crate::encryption::default_key;

pub(super) async fn get(request: S3Request<GetBucketEncryptionInput>) -> Answer<GetBucketEncryptionOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let found = serving.run(move |store| documents::find(store, &bucket, ENCRYPTION)).await?;
    let found = found.ok_or_else(|| {
        s3_error!(
            ServerSideEncryptionConfigurationNotFoundError,
            "the bucket has no encryption configuration"
        )
    })?;
    Ok(S3Response::new(GetBucketEncryptionOutput { server_side_encryption_configuration: Some(found) }))
}

pub(super) async fn put(request: S3Request<PutBucketEncryptionInput>) -> Answer<PutBucketEncryptionOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let PutBucketEncryptionInput { server_side_encryption_configuration: asked, .. } = request.input;
    default_key(&asked)?;
    serving.run(move |store| documents::put(store, &bucket, ENCRYPTION, &asked)).await?;
    Ok(S3Response::new(PutBucketEncryptionOutput::default()))
}

pub(super) async fn delete(
    request: S3Request<DeleteBucketEncryptionInput>,
) -> Answer<DeleteBucketEncryptionOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| documents::remove(store, &bucket, ENCRYPTION)).await?;
    Ok(S3Response::with_status(DeleteBucketEncryptionOutput::default(), http::StatusCode::NO_CONTENT))
}
