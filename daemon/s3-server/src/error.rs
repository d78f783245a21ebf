//! What S3 clients are told, per error of the store.

use objects::{DigestKind, StoreError, VersionId};
use s3s::{S3Error, S3ErrorCode, StdError};

use crate::convert::timestamp;
use crate::limits::RETRY_AFTER_SECONDS;
use crate::request_body::BodyError;

/// S3 has no code for "no room"; a status that clients don't retry at once says it best.
const INSUFFICIENT_STORAGE: &str = "InsufficientStorage";

/// Amazon has no quotas: the code of Ceph, which clients know.
const QUOTA_EXCEEDED: &str = "QuotaExceeded";

/// A code of S3 that the protocol code does not list.
const CONTENT_SHA256_MISMATCH: &str = "XAmzContentSHA256Mismatch";

/// Another one.
const INVALID_RETENTION_PERIOD: &str = "InvalidRetentionPeriod";

/// The codes that Amazon passes on from its key service.
const KEY_DISABLED: &str = "KMS.DisabledException";
const KEY_NOT_FOUND: &str = "KMS.NotFoundException";

fn bad_request(code: &'static str, error: &StoreError) -> S3Error {
    let mut error = coded(S3ErrorCode::Custom(code.into()), error);
    error.set_status_code(http::StatusCode::BAD_REQUEST);
    error
}

/// What is read is the mark of a deletion: not there, or, asked for by its name, nothing that can be read.
fn delete_marker(error: &StoreError, version: VersionId, modified_ms: u64, named: bool) -> S3Error {
    let code = if named { S3ErrorCode::MethodNotAllowed } else { S3ErrorCode::NoSuchKey };
    let mut answer = coded(code, error);
    let mut headers = http::HeaderMap::new();
    let mut put = |name: &'static str, value: String| {
        if let Ok(value) = value.parse::<http::HeaderValue>() {
            headers.insert(name, value);
        }
    };
    put("content-type", "application/xml".to_owned());
    put("x-amz-delete-marker", "true".to_owned());
    put("x-amz-version-id", version.to_string());
    if named {
        put("allow", "DELETE".to_owned());
        let modified = std::time::UNIX_EPOCH + std::time::Duration::from_millis(modified_ms);
        let mut text = Vec::new();
        if timestamp(modified).format(s3s::dto::TimestampFormat::HttpDate, &mut text).is_ok() {
            put("last-modified", String::from_utf8_lossy(&text).into_owned());
        }
    }
    answer.set_headers(headers);
    answer
}

fn coded(code: S3ErrorCode, error: &StoreError) -> S3Error {
    S3Error::with_message(code, error.to_string())
}

/// Tells the client when to send the request again.
pub(crate) fn with_retry_after(mut error: S3Error, seconds: u32) -> S3Error {
    let mut headers = http::HeaderMap::new();
    headers.insert(http::header::RETRY_AFTER, seconds.into());
    // The headers of an error replace those of its body.
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    error.set_headers(headers);
    error
}

/// The node is sealed: nothing about the request is known to have happened.
pub(crate) fn sealed() -> S3Error {
    let error = S3Error::with_message(
        S3ErrorCode::ServiceUnavailable,
        "this node is sealed: it holds no key; retry when the compute tier has pushed it",
    );
    with_retry_after(error, RETRY_AFTER_SECONDS)
}

/// Says what happened in the terms of S3.
pub(crate) fn from_store(error: &StoreError) -> S3Error {
    let code = match error {
        StoreError::Sealed | StoreError::Closed => return sealed(),
        StoreError::NoSpace => {
            let mut full = coded(S3ErrorCode::Custom(INSUFFICIENT_STORAGE.into()), error);
            full.set_status_code(http::StatusCode::INSUFFICIENT_STORAGE);
            return full;
        }
        StoreError::QuotaExceeded => {
            let mut refused = coded(S3ErrorCode::Custom(QUOTA_EXCEEDED.into()), error);
            refused.set_status_code(http::StatusCode::FORBIDDEN);
            return refused;
        }
        StoreError::NamedKeyAway { .. } => {
            return with_retry_after(coded(S3ErrorCode::ServiceUnavailable, error), RETRY_AFTER_SECONDS);
        }
        StoreError::NamedKeyRevoked { .. } | StoreError::WrongNamedKey { .. } => {
            let mut refused = coded(S3ErrorCode::Custom(KEY_DISABLED.into()), error);
            refused.set_status_code(http::StatusCode::FORBIDDEN);
            return refused;
        }
        StoreError::NoSuchNamedKey { .. } => return bad_request(KEY_NOT_FOUND, error),
        StoreError::NoSuchBucket => S3ErrorCode::NoSuchBucket,
        StoreError::BucketExists => S3ErrorCode::BucketAlreadyOwnedByYou,
        StoreError::BucketTaken => S3ErrorCode::BucketAlreadyExists,
        StoreError::InvalidBucketState => S3ErrorCode::InvalidBucketState,
        StoreError::DocumentTooLarge => S3ErrorCode::EntityTooLarge,
        StoreError::NoSuchVersion => S3ErrorCode::NoSuchVersion,
        StoreError::IsDeleteMarker { version, modified_ms, named } => {
            return delete_marker(error, *version, *modified_ms, *named);
        }
        StoreError::Locked => S3ErrorCode::AccessDenied,
        StoreError::CustomerKeyNeeded | StoreError::CustomerKeyUnexpected | StoreError::WrongCustomerKey => {
            S3ErrorCode::InvalidRequest
        }
        StoreError::LockNotEnabled => S3ErrorCode::InvalidRequest,
        StoreError::RetentionPassed => S3ErrorCode::InvalidArgument,
        StoreError::InvalidRetention => return bad_request(INVALID_RETENTION_PERIOD, error),
        StoreError::TooManyTags { .. } | StoreError::InvalidTags => S3ErrorCode::InvalidTag,
        StoreError::TooManyGrants => S3ErrorCode::MalformedACLError,
        StoreError::BucketNotEmpty => S3ErrorCode::BucketNotEmpty,
        StoreError::TooManyBuckets => S3ErrorCode::TooManyBuckets,
        StoreError::InvalidBucketName => S3ErrorCode::InvalidBucketName,
        StoreError::NoSuchKey => S3ErrorCode::NoSuchKey,
        StoreError::InvalidKey => S3ErrorCode::KeyTooLongError,
        StoreError::MetadataTooLarge => S3ErrorCode::MetadataTooLarge,
        StoreError::TooLarge { .. } => S3ErrorCode::EntityTooLarge,
        StoreError::LengthMismatch { .. } => S3ErrorCode::IncompleteBody,
        StoreError::DigestMismatch(DigestKind::Md5 | DigestKind::Checksum) => S3ErrorCode::BadDigest,
        StoreError::PreconditionFailed => S3ErrorCode::PreconditionFailed,
        StoreError::Conflict => S3ErrorCode::ConditionalRequestConflict,
        StoreError::NoSuchUpload => S3ErrorCode::NoSuchUpload,
        StoreError::InvalidPart { .. } => S3ErrorCode::InvalidPart,
        StoreError::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
        StoreError::PartTooSmall { .. } => S3ErrorCode::EntityTooSmall,
        StoreError::InvalidPartNumber => S3ErrorCode::InvalidArgument,
        StoreError::InvalidChecksum => S3ErrorCode::InvalidRequest,
        StoreError::TooManyKeys => S3ErrorCode::MalformedXML,
        error => {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the object store cannot serve a request"
            );
            return S3Error::with_message(S3ErrorCode::InternalError, "the node cannot serve the request");
        }
    };
    coded(code, error)
}

/// Why a request body ended early. The errors of s3s about bodies are private types: their texts tell them apart.
pub(crate) fn from_body(error: &StdError) -> S3Error {
    let text = error.to_string();
    let says = |part: &str| text.contains(part);
    if says(BodyError::STALLED) {
        S3Error::with_message(S3ErrorCode::RequestTimeout, "the body stopped arriving")
    } else if says(BodyError::CHUNK_TOO_LARGE) {
        S3Error::with_message(S3ErrorCode::InvalidRequest, "a signed chunk is longer than this server holds")
    } else if says("Sha256Mismatch") {
        let code = S3ErrorCode::Custom(CONTENT_SHA256_MISMATCH.into());
        let mut mismatch = S3Error::with_message(code, "the body does not match x-amz-content-sha256");
        mismatch.set_status_code(http::StatusCode::BAD_REQUEST);
        mismatch
    } else if says("SignatureMismatch") {
        S3Error::with_message(S3ErrorCode::SignatureDoesNotMatch, "the signature of a chunk does not match")
    } else {
        S3Error::with_message(S3ErrorCode::IncompleteBody, "the body ended early or is not well-formed")
    }
}

pub(crate) fn invalid(message: &'static str) -> S3Error {
    S3Error::with_message(S3ErrorCode::InvalidArgument, message)
}

pub(crate) fn not_implemented(message: String) -> S3Error {
    S3Error::with_message(S3ErrorCode::NotImplemented, message)
}
