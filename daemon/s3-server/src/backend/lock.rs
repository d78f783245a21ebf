//! Object lock: a bucket's configuration, and retention and legal hold of versions.

use objects::{DefaultRetention, Period};
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::{Answer, admitted};
use crate::attributes::{hold_status, lock_mode, parse_hold, retention, retention_mode, until, version};
use crate::error::{from_store, invalid};

fn malformed() -> S3Error {
    S3Error::with_message(S3ErrorCode::MalformedXML, "the lock configuration can't be read")
}

fn default_retention(rule: ObjectLockRule) -> S3Result<DefaultRetention> {
    let default = rule.default_retention.ok_or_else(malformed)?;
    let mode = lock_mode(default.mode.ok_or_else(malformed)?.as_str())?;
    // Zero and too many are refused by the store.
    let count = |number: i32| u32::try_from(number).unwrap_or_default();
    let period = match (default.days, default.years) {
        (Some(days), None) => Period::Days(count(days)),
        (None, Some(years)) => Period::Years(count(years)),
        _ => return Err(malformed()),
    };
    Ok(DefaultRetention { mode, period })
}

pub(super) async fn configure(
    request: S3Request<PutObjectLockConfigurationInput>,
) -> Answer<PutObjectLockConfigurationOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let asked = input.object_lock_configuration.ok_or_else(malformed)?;
    let enabled = asked.object_lock_enabled.as_ref().map(ObjectLockEnabled::as_str);
    if enabled != Some(ObjectLockEnabled::ENABLED) {
        return Err(malformed());
    }
    let default = asked.rule.map(default_retention).transpose()?;
    serving
        .run(move |store| store.set_bucket_lock(&bucket, default).map_err(|error| from_store(&error)))
        .await?;
    Ok(S3Response::new(PutObjectLockConfigurationOutput::default()))
}

pub(super) async fn configuration(
    request: S3Request<GetObjectLockConfigurationInput>,
) -> Answer<GetObjectLockConfigurationOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let lock =
        serving.run(move |store| store.bucket(&bucket).map_err(|error| from_store(&error))).await?.lock;
    if !lock.enabled {
        return Err(s3_error!(ObjectLockConfigurationNotFoundError, "the bucket has no object lock"));
    }
    let rule = lock.default.map(|default| {
        let (days, years) = match default.period {
            Period::Days(days) => (i32::try_from(days).ok(), None),
            Period::Years(years) => (None, i32::try_from(years).ok()),
        };
        let mode = Some(retention_mode(default.mode));
        ObjectLockRule { default_retention: Some(s3s::dto::DefaultRetention { days, mode, years }) }
    });
    Ok(S3Response::new(GetObjectLockConfigurationOutput {
        object_lock_configuration: Some(ObjectLockConfiguration {
            object_lock_enabled: Some(ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED)),
            rule,
        }),
    }))
}

pub(super) async fn retain(request: S3Request<PutObjectRetentionInput>) -> Answer<PutObjectRetentionOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let version = version(input.version_id.as_deref())?;
    let retention = retention(input.retention)?;
    let bypass = input.bypass_governance_retention.unwrap_or(false);
    serving
        .run(move |store| {
            store
                .set_retention(&bucket, &input.key, version, retention, bypass)
                .map_err(|error| from_store(&error))
        })
        .await?;
    Ok(S3Response::new(PutObjectRetentionOutput::default()))
}

/// Refuses where the bucket has no object lock, as S3 does before it looks at the object.
fn locked_object(
    store: &objects::Store,
    bucket: &objects::BucketRef,
    key: &str,
    version: Option<objects::VersionId>,
) -> S3Result<objects::ObjectLock> {
    if !store.bucket(bucket).map_err(|error| from_store(&error))?.lock.enabled {
        return Err(from_store(&objects::StoreError::LockNotEnabled));
    }
    let info = store.head_object(bucket, key, version).map_err(|error| from_store(&error))?;
    Ok(info.attributes.lock)
}

pub(super) async fn retained(
    request: S3Request<GetObjectRetentionInput>,
) -> Answer<GetObjectRetentionOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let version = version(input.version_id.as_deref())?;
    let lock = serving.run(move |store| locked_object(store, &bucket, &input.key, version)).await?;
    let retention = lock
        .retention
        .ok_or_else(|| s3_error!(NoSuchObjectLockConfiguration, "the version is not retained"))?;
    Ok(S3Response::new(GetObjectRetentionOutput {
        retention: Some(ObjectLockRetention {
            mode: Some(retention_mode(retention.mode)),
            retain_until_date: Some(until(retention)),
        }),
    }))
}

pub(super) async fn hold(request: S3Request<PutObjectLegalHoldInput>) -> Answer<PutObjectLegalHoldOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let version = version(input.version_id.as_deref())?;
    let status = input.legal_hold.and_then(|hold| hold.status).ok_or_else(malformed)?;
    let hold = parse_hold(status.as_str())?;
    serving
        .run(move |store| {
            store.set_legal_hold(&bucket, &input.key, version, hold).map_err(|error| from_store(&error))
        })
        .await?;
    Ok(S3Response::new(PutObjectLegalHoldOutput::default()))
}

pub(super) async fn held(request: S3Request<GetObjectLegalHoldInput>) -> Answer<GetObjectLegalHoldOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let version = version(input.version_id.as_deref())?;
    let lock = serving.run(move |store| locked_object(store, &bucket, &input.key, version)).await?;
    let hold = lock
        .legal_hold
        .ok_or_else(|| s3_error!(NoSuchObjectLockConfiguration, "the version was never held"))?;
    Ok(S3Response::new(GetObjectLegalHoldOutput {
        legal_hold: Some(ObjectLockLegalHold { status: Some(hold_status(hold)) }),
    }))
}

/// Only `true` asks for something.
pub(super) fn bypasses(asked: Option<bool>) -> bool {
    asked.unwrap_or(false)
}

/// A number of the client's that must not be negative.
pub(super) fn count(number: i64) -> S3Result<u64> {
    u64::try_from(number).map_err(|_| invalid("a size can't be negative"))
}
