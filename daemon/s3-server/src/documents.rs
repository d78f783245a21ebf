//! The documents that configure a bucket, as the store keeps them: XML as clients send and get it, and a policy's JSON.

use objects::{BucketRef, Store};
use s3s::xml::{Deserialize, Deserializer, Serialize, Serializer};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::error::from_store;

pub(crate) const CORS: &str = "cors";
pub(crate) const ENCRYPTION: &str = "encryption";
pub(crate) const LIFECYCLE: &str = "lifecycle";
pub(crate) const LOGGING: &str = "logging";
pub(crate) const NOTIFICATIONS: &str = "notifications";
pub(crate) const OWNERSHIP: &str = "ownership";
pub(crate) const POLICY: &str = "policy";
pub(crate) const PUBLIC_ACCESS: &str = "public-access-block";
pub(crate) const TAGGING: &str = "tagging";

/// Replaces a document of a bucket.
pub(crate) fn put<T: Serialize>(
    store: &Store,
    bucket: &BucketRef,
    name: &'static str,
    document: &T,
) -> S3Result<()> {
    store.set_bucket_document(bucket, name, Some(text(document)?)).map_err(|error| from_store(&error))
}

/// A document as it is kept.
pub(crate) fn text<T: Serialize>(document: &T) -> S3Result<Vec<u8>> {
    let mut text = Vec::new();
    document.serialize(&mut Serializer::new(&mut text)).map_err(S3Error::internal_error)?;
    Ok(text)
}

/// Removes a document of a bucket, if it has one.
pub(crate) fn remove(store: &Store, bucket: &BucketRef, name: &'static str) -> S3Result<()> {
    store.set_bucket_document(bucket, name, None).map_err(|error| from_store(&error))
}

/// A document of a bucket.
pub(crate) fn find<T: for<'xml> Deserialize<'xml>>(
    store: &Store,
    bucket: &BucketRef,
    name: &'static str,
) -> S3Result<Option<T>> {
    let text = store.bucket_document(bucket, name).map_err(|error| from_store(&error))?;
    text.map(|text| parse(&text)).transpose()
}

/// A document that was written by [`put`].
pub(crate) fn parse<T: for<'xml> Deserialize<'xml>>(text: &[u8]) -> S3Result<T> {
    let mut deserializer = Deserializer::new(text);
    T::deserialize(&mut deserializer).map_err(damaged)
}

/// A document that was checked before it was kept and can't be read now.
pub(crate) fn damaged(error: impl std::error::Error) -> S3Error {
    tracing::error!(%error, "a bucket's configuration can't be read");
    S3Error::with_message(S3ErrorCode::InternalError, "the bucket's configuration is damaged")
}
