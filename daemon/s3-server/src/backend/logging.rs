//! Where requests to a bucket are written down.

use s3s::dto::*;
use s3s::{S3Request, S3Response, s3_error};

use super::{Answer, admitted};
use crate::access_log::{Target, takes_logs_of};
use crate::documents::{self, LOGGING};

pub(super) async fn get(request: S3Request<GetBucketLoggingInput>) -> Answer<GetBucketLoggingOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let found: Option<BucketLoggingStatus> =
        serving.run(move |store| documents::find(store, &bucket, LOGGING)).await?;
    Ok(S3Response::new(GetBucketLoggingOutput {
        logging_enabled: found.and_then(|found| found.logging_enabled),
    }))
}

/// The log is written by the node itself, so who turns it on needs the right to write where it goes.
pub(super) async fn put(request: S3Request<PutBucketLoggingInput>) -> Answer<PutBucketLoggingOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let PutBucketLoggingInput { bucket_logging_status: asked, .. } = request.input;
    let target = Target::of(&asked)?;
    if let Some(target) = &target {
        let invalid = || {
            s3_error!(
                InvalidTargetBucketForLogging,
                "logs are delivered into a bucket of the same owner, or one that lets the log delivery group write, \
                 and that you may write to"
            )
        };
        let holds = serving.authority(&target.bucket).await.map_err(|_| invalid())?;
        let owner = &admission.authority.bucket.owner;
        if !takes_logs_of(&holds.bucket, owner) || !admission.may_put(&holds, &target.prefix) {
            return Err(invalid());
        }
    }
    serving
        .run(move |store| match target {
            Some(_) => documents::put(store, &bucket, LOGGING, &asked),
            None => documents::remove(store, &bucket, LOGGING),
        })
        .await?;
    Ok(S3Response::new(PutBucketLoggingOutput::default()))
}
