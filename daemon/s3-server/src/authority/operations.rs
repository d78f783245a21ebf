//! What each operation needs: the action that a policy names, and the permission that an access control list grants.
//!
//! "Actions defined by Amazon S3" (Service Authorization Reference) and "Mapping of ACL permissions and access policy
//! permissions" (Amazon S3 User Guide).

use objects::Permission;

use crate::limits::{
    DOCUMENT_XML_BYTES_MAX, LIFECYCLE_XML_BYTES_MAX, NOTIFICATION_XML_BYTES_MAX, PARTS_XML_BYTES_MAX,
    XML_BYTES_MAX,
};

/// What a list must grant where no policy allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// To be a user of the store.
    User,
    /// To own the bucket.
    BucketOwner,
    /// A permission on the bucket.
    Bucket(Permission),
    /// A permission on the object.
    Object(Permission),
    /// To own the object or its bucket.
    ObjectOwner,
    /// Nothing here: each key is asked about by itself.
    EachKey,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) action: &'static str,
    pub(crate) need: Need,
}

/// The action of a request that names a version.
pub(crate) fn of_version(action: &'static str) -> &'static str {
    match action {
        "s3:GetObject" => "s3:GetObjectVersion",
        "s3:DeleteObject" => "s3:DeleteObjectVersion",
        "s3:GetObjectAcl" => "s3:GetObjectVersionAcl",
        "s3:PutObjectAcl" => "s3:PutObjectVersionAcl",
        "s3:GetObjectTagging" => "s3:GetObjectVersionTagging",
        "s3:PutObjectTagging" => "s3:PutObjectVersionTagging",
        "s3:DeleteObjectTagging" => "s3:DeleteObjectVersionTagging",
        action => action,
    }
}

/// Names of the operations that this server has.
pub fn operation_names() -> impl Iterator<Item = &'static str> {
    OPERATIONS.iter().map(|operation| operation.name)
}

/// How long the body of a request may be that is gathered in memory before the operation begins; `None` where it is an object's, or
/// a form, which have limits of their own.
pub(crate) fn gathered_bytes_max(name: &str) -> Option<usize> {
    match name {
        "PutObject" | "UploadPart" | "PostObject" => None,
        "DeleteObjects" => Some(XML_BYTES_MAX),
        "CompleteMultipartUpload" => Some(PARTS_XML_BYTES_MAX),
        "PutBucketLifecycleConfiguration" => Some(LIFECYCLE_XML_BYTES_MAX),
        "PutBucketNotificationConfiguration" => Some(NOTIFICATION_XML_BYTES_MAX),
        _ => Some(DOCUMENT_XML_BYTES_MAX),
    }
}

/// Every operation.
#[cfg(test)]
pub(crate) fn all() -> impl Iterator<Item = &'static Operation> {
    OPERATIONS.iter()
}

pub(crate) fn find(name: &str) -> Option<&'static Operation> {
    OPERATIONS.iter().find(|operation| operation.name == name)
}

const fn row(name: &'static str, action: &'static str, need: Need) -> Operation {
    Operation { name, action, need }
}

use Need::*;
use Permission::*;

/// Every operation that this server has.
const OPERATIONS: &[Operation] = &[
    row("ListBuckets", "s3:ListAllMyBuckets", User),
    row("CreateBucket", "s3:CreateBucket", User),
    row("DeleteBucket", "s3:DeleteBucket", BucketOwner),
    row("HeadBucket", "s3:ListBucket", Bucket(Read)),
    row("ListObjects", "s3:ListBucket", Bucket(Read)),
    row("ListObjectsV2", "s3:ListBucket", Bucket(Read)),
    row("ListObjectVersions", "s3:ListBucketVersions", Bucket(Read)),
    row("ListMultipartUploads", "s3:ListBucketMultipartUploads", Bucket(Read)),
    row("GetBucketAcl", "s3:GetBucketAcl", Bucket(ReadAcp)),
    row("PutBucketAcl", "s3:PutBucketAcl", Bucket(WriteAcp)),
    row("GetBucketLocation", "s3:GetBucketLocation", BucketOwner),
    row("GetBucketVersioning", "s3:GetBucketVersioning", BucketOwner),
    row("PutBucketVersioning", "s3:PutBucketVersioning", BucketOwner),
    row("GetBucketTagging", "s3:GetBucketTagging", BucketOwner),
    row("PutBucketTagging", "s3:PutBucketTagging", BucketOwner),
    row("DeleteBucketTagging", "s3:PutBucketTagging", BucketOwner),
    row("GetObjectLockConfiguration", "s3:GetBucketObjectLockConfiguration", BucketOwner),
    row("PutObjectLockConfiguration", "s3:PutBucketObjectLockConfiguration", BucketOwner),
    row("GetBucketPolicy", "s3:GetBucketPolicy", BucketOwner),
    row("PutBucketPolicy", "s3:PutBucketPolicy", BucketOwner),
    row("DeleteBucketPolicy", "s3:DeleteBucketPolicy", BucketOwner),
    row("GetBucketPolicyStatus", "s3:GetBucketPolicyStatus", BucketOwner),
    row("GetPublicAccessBlock", "s3:GetBucketPublicAccessBlock", BucketOwner),
    row("PutPublicAccessBlock", "s3:PutBucketPublicAccessBlock", BucketOwner),
    row("DeletePublicAccessBlock", "s3:PutBucketPublicAccessBlock", BucketOwner),
    row("GetBucketOwnershipControls", "s3:GetBucketOwnershipControls", BucketOwner),
    row("PutBucketOwnershipControls", "s3:PutBucketOwnershipControls", BucketOwner),
    row("DeleteBucketOwnershipControls", "s3:PutBucketOwnershipControls", BucketOwner),
    row("GetBucketCors", "s3:GetBucketCORS", BucketOwner),
    row("PutBucketCors", "s3:PutBucketCORS", BucketOwner),
    row("DeleteBucketCors", "s3:PutBucketCORS", BucketOwner),
    row("GetBucketEncryption", "s3:GetEncryptionConfiguration", BucketOwner),
    row("PutBucketEncryption", "s3:PutEncryptionConfiguration", BucketOwner),
    row("DeleteBucketEncryption", "s3:PutEncryptionConfiguration", BucketOwner),
    row("GetBucketLifecycleConfiguration", "s3:GetLifecycleConfiguration", BucketOwner),
    row("PutBucketLifecycleConfiguration", "s3:PutLifecycleConfiguration", BucketOwner),
    row("DeleteBucketLifecycle", "s3:PutLifecycleConfiguration", BucketOwner),
    row("GetBucketLogging", "s3:GetBucketLogging", BucketOwner),
    row("PutBucketLogging", "s3:PutBucketLogging", BucketOwner),
    row("GetBucketNotificationConfiguration", "s3:GetBucketNotification", BucketOwner),
    row("PutBucketNotificationConfiguration", "s3:PutBucketNotification", BucketOwner),
    row("PutObject", "s3:PutObject", Bucket(Write)),
    row("PostObject", "s3:PutObject", EachKey),
    row("CopyObject", "s3:PutObject", Bucket(Write)),
    row("CreateMultipartUpload", "s3:PutObject", Bucket(Write)),
    row("UploadPart", "s3:PutObject", Bucket(Write)),
    row("UploadPartCopy", "s3:PutObject", Bucket(Write)),
    row("CompleteMultipartUpload", "s3:PutObject", Bucket(Write)),
    row("AbortMultipartUpload", "s3:AbortMultipartUpload", Bucket(Write)),
    row("ListParts", "s3:ListMultipartUploadParts", Bucket(Write)),
    row("DeleteObject", "s3:DeleteObject", Bucket(Write)),
    row("DeleteObjects", "s3:DeleteObject", EachKey),
    row("GetObject", "s3:GetObject", Object(Read)),
    row("HeadObject", "s3:GetObject", Object(Read)),
    row("GetObjectAttributes", "s3:GetObject", Object(Read)),
    row("GetObjectAcl", "s3:GetObjectAcl", Object(ReadAcp)),
    row("PutObjectAcl", "s3:PutObjectAcl", Object(WriteAcp)),
    row("GetObjectTagging", "s3:GetObjectTagging", ObjectOwner),
    row("PutObjectTagging", "s3:PutObjectTagging", ObjectOwner),
    row("DeleteObjectTagging", "s3:DeleteObjectTagging", ObjectOwner),
    row("GetObjectRetention", "s3:GetObjectRetention", ObjectOwner),
    row("PutObjectRetention", "s3:PutObjectRetention", ObjectOwner),
    row("GetObjectLegalHold", "s3:GetObjectLegalHold", ObjectOwner),
    row("PutObjectLegalHold", "s3:PutObjectLegalHold", ObjectOwner),
];
