//! Who may do what: every user of the store everything, nobody else anything.

use std::sync::{Arc, OnceLock};

use objects::StoreError;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

use crate::caller::Caller;
use crate::error::{self, from_store};
use crate::slot::{Serving, Slot};

/// Operations that metrics tell apart. The others are not implemented.
const OPERATIONS: &[&str] = &[
    "AbortMultipartUpload",
    "CompleteMultipartUpload",
    "CopyObject",
    "CreateBucket",
    "CreateMultipartUpload",
    "DeleteBucket",
    "DeleteBucketTagging",
    "DeleteObject",
    "DeleteObjectTagging",
    "DeleteObjects",
    "GetBucketLocation",
    "GetBucketTagging",
    "GetBucketVersioning",
    "GetObject",
    "GetObjectAttributes",
    "GetObjectLegalHold",
    "GetObjectLockConfiguration",
    "GetObjectRetention",
    "GetObjectTagging",
    "HeadBucket",
    "HeadObject",
    "ListBuckets",
    "ListMultipartUploads",
    "ListObjectVersions",
    "ListObjects",
    "ListObjectsV2",
    "ListParts",
    "PutBucketTagging",
    "PutBucketVersioning",
    "PutObject",
    "PutObjectLegalHold",
    "PutObjectLockConfiguration",
    "PutObjectRetention",
    "PutObjectTagging",
    "UploadPart",
    "UploadPartCopy",
];

/// What a request turned out to be; travels with it and is read when it is finished.
#[derive(Clone, Debug, Default)]
pub(crate) struct OperationName(Arc<OnceLock<&'static str>>);

impl OperationName {
    pub(crate) fn as_str(&self) -> &'static str {
        self.0.get().copied().unwrap_or("unknown")
    }
}

/// Looks secrets up in the store.
#[derive(Debug)]
pub(crate) struct Secrets {
    pub(crate) slot: Arc<Slot>,
}

impl Secrets {
    /// The secret of an access key.
    pub(crate) async fn find(&self, access_key: &str) -> S3Result<SecretKey> {
        let id = access_key.to_owned();
        let found = self
            .slot
            .serving()?
            .run(move |store| store.secret(&id).map_err(|error| from_store(&error)))
            .await?;
        match found {
            Some((_, secret)) => Ok(SecretKey::from(secret.expose())),
            None => Err(s3_error!(InvalidAccessKeyId, "{}", StoreError::NoSuchAccessKey)),
        }
    }
}

#[async_trait::async_trait]
impl S3Auth for Secrets {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        self.find(access_key).await
    }
}

/// Lets through what is signed.
#[derive(Debug)]
pub(crate) struct SignedOnly;

#[async_trait::async_trait]
impl S3Access for SignedOnly {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let name = OPERATIONS.iter().find(|name| **name == context.s3_op().name()).copied();
        if let (Some(name), Some(operation)) = (name, context.extensions_mut().get::<OperationName>()) {
            // A request is one operation: nobody sets it twice.
            let _ = operation.0.set(name);
        }
        let Some(access_key) = context.credentials().map(|credentials| credentials.access_key.clone()) else {
            return Err(s3_error!(AccessDenied, "requests must be signed"));
        };
        let serving = context.extensions_mut().get::<Serving>().cloned().ok_or_else(error::sealed)?;
        let found =
            serving.run(move |store| store.secret(&access_key).map_err(|error| from_store(&error))).await?;
        // Between the signature and here the key may have been deleted.
        let (user, _) =
            found.ok_or_else(|| s3_error!(InvalidAccessKeyId, "{}", StoreError::NoSuchAccessKey))?;
        context.extensions_mut().insert(Caller { user: Some(user) });
        Ok(())
    }
}
