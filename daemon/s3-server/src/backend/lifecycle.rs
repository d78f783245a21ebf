//! The configuration of a bucket's lifecycle.

use s3s::dto::*;
use s3s::{S3Request, S3Response, s3_error};

use super::{Answer, admitted};
use crate::documents::{self, LIFECYCLE};
use crate::lifecycle::rules;

pub(super) async fn get(
    request: S3Request<GetBucketLifecycleConfigurationInput>,
) -> Answer<GetBucketLifecycleConfigurationOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let found: Option<BucketLifecycleConfiguration> =
        serving.run(move |store| documents::find(store, &bucket, LIFECYCLE)).await?;
    let found = found.ok_or_else(|| {
        s3_error!(NoSuchLifecycleConfiguration, "the bucket has no lifecycle configuration")
    })?;
    Ok(S3Response::new(GetBucketLifecycleConfigurationOutput {
        rules: Some(found.rules),
        ..GetBucketLifecycleConfigurationOutput::default()
    }))
}

pub(super) async fn put(
    request: S3Request<PutBucketLifecycleConfigurationInput>,
) -> Answer<PutBucketLifecycleConfigurationOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let PutBucketLifecycleConfigurationInput { lifecycle_configuration, .. } = request.input;
    let mut asked = lifecycle_configuration
        .ok_or_else(|| s3_error!(MalformedXML, "there is no lifecycle configuration"))?;
    rules::read(&asked.rules)?;
    for (number, rule) in asked.rules.iter_mut().enumerate() {
        // Clients find a rule again by its id: one that has none is given one.
        rule.id.get_or_insert_with(|| format!("rule-{}", number + 1));
    }
    serving.run(move |store| documents::put(store, &bucket, LIFECYCLE, &asked)).await?;
    Ok(S3Response::new(PutBucketLifecycleConfigurationOutput::default()))
}

pub(super) async fn delete(
    request: S3Request<DeleteBucketLifecycleInput>,
) -> Answer<DeleteBucketLifecycleOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| documents::remove(store, &bucket, LIFECYCLE)).await?;
    Ok(S3Response::with_status(DeleteBucketLifecycleOutput::default(), http::StatusCode::NO_CONTENT))
}
