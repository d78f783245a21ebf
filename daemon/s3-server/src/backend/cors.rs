//! The configuration of cross-origin requests.

use s3s::dto::*;
use s3s::{S3Request, S3Response, s3_error};

use super::{Answer, admitted};
use crate::cors::{METHODS, RULES_MAX};
use crate::documents::{self, CORS};

pub(super) async fn get(request: S3Request<GetBucketCorsInput>) -> Answer<GetBucketCorsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let found: Option<CORSConfiguration> =
        serving.run(move |store| documents::find(store, &bucket, CORS)).await?;
    let found =
        found.ok_or_else(|| s3_error!(NoSuchCORSConfiguration, "the bucket has no CORS configuration"))?;
    Ok(S3Response::new(GetBucketCorsOutput { cors_rules: Some(found.cors_rules) }))
}

pub(super) async fn put(request: S3Request<PutBucketCorsInput>) -> Answer<PutBucketCorsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let PutBucketCorsInput { cors_configuration: asked, .. } = request.input;
    let rules = &asked.cors_rules;
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(s3_error!(MalformedXML, "a CORS configuration has 1 to {RULES_MAX} rules"));
    }
    let one_star = |text: &String| text.matches('*').count() <= 1;
    let sound = |rule: &CORSRule| {
        !rule.allowed_methods.is_empty()
            && !rule.allowed_origins.is_empty()
            && rule.allowed_methods.iter().all(|method| METHODS.contains(&method.as_str()))
            && rule.allowed_origins.iter().all(one_star)
            && rule.allowed_headers.iter().flatten().all(one_star)
    };
    if !rules.iter().all(sound) {
        return Err(s3_error!(
            InvalidRequest,
            "a CORS rule has a method, origin or header that S3 does not allow"
        ));
    }
    serving.run(move |store| documents::put(store, &bucket, CORS, &asked)).await?;
    Ok(S3Response::new(PutBucketCorsOutput::default()))
}

pub(super) async fn delete(request: S3Request<DeleteBucketCorsInput>) -> Answer<DeleteBucketCorsOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    serving.run(move |store| documents::remove(store, &bucket, CORS)).await?;
    Ok(S3Response::with_status(DeleteBucketCorsOutput::default(), http::StatusCode::NO_CONTENT))
}
