//! What an operation of the store can end in.
//!
//! Three families, and a head treats them differently: the request was wrong (answer it), the store can't serve now
//! (`Sealed`, `NoSpace`: the client tries again later), the store is broken (`Failed`, `Corrupt`: a person is needed).

use std::error::Error;
use std::sync::Arc;

use units::ByteLen;

use crate::version::VersionId;
use crate::volume::{BlockError, BlockErrorKind};

/// Which declared digest did not match the body that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DigestKind {
    /// `Content-MD5`.
    Md5,
    /// `x-amz-checksum-*`.
    Checksum,
}

/// Why the store could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    // The store can't serve now.
    /// The key is gone. Nothing about the request is known to have happened; it is to be sent again after the next push.
    #[error("the store is sealed: its key is gone until the compute tier pushes it again")]
    Sealed,
    /// [`Store::close`](crate::Store::close) was called.
    #[error("the store was closed")]
    Closed,
    /// The pool or the index region is full. Deletes still work.
    #[error("the store is full: delete objects, or grow the pool with `nightlatch pool grow`")]
    NoSpace,
    /// The device failed this request; the store goes on.
    #[error("the device failed a request of the object store; see its health and the kernel log")]
    Io(#[source] BlockError),

    // The store is broken.
    /// The index failed and stays failed: nothing is acknowledged any more until the store is opened again.
    #[error(
        "the object store has failed and serves nothing until it is opened again: fix the device, restart the node"
    )]
    Failed(#[source] Arc<dyn Error + Send + Sync>),
    /// The index can't be read any more.
    #[error("the object store's index is damaged ({what}): restore the volume from its replica or backup")]
    IndexDamaged {
        /// What was found.
        what: &'static str,
    },
    /// A row of the index says something that can't be. What does not need the row is still served.
    #[error(
        "an entry of the object store is damaged ({what}): restore the volume from its replica or backup"
    )]
    Corrupt {
        /// What was found.
        what: &'static str,
    },
    /// The volume holds something else.
    #[error("the volume holds data but no object store; it is left as it is")]
    NotAStore,
    /// Both copies of the header are unreadable.
    #[error(
        "both copies of the object store's header are damaged: restore the volume from its replica or backup"
    )]
    HeaderDamaged,
    /// The volume was formatted by a newer version.
    #[error("the object store has format version {found}, this program knows up to {known}: update the node")]
    NewerFormat {
        /// On the volume.
        found: u32,
        /// Highest that this program reads.
        known: u32,
    },
    /// The volume is shorter than it was when the store was formatted, or too short to hold one.
    #[error("the volume has {found}, the object store needs at least {needed}: resize the volume")]
    VolumeTooSmall {
        /// Size now.
        found: ByteLen,
        /// Size it must have.
        needed: ByteLen,
    },

    // The request was wrong.
    /// No such bucket.
    #[error("there is no such bucket")]
    NoSuchBucket,
    /// The bucket exists.
    #[error("the bucket exists already")]
    BucketExists,
    /// The bucket exists and is another user's.
    #[error("the bucket exists already and belongs to somebody else")]
    BucketTaken,
    /// The bucket's versioning and object lock do not allow it.
    #[error("the bucket's versioning or object lock does not allow this")]
    InvalidBucketState,
    /// Longer than [`DOCUMENT_BYTES_MAX`](crate::limits::DOCUMENT_BYTES_MAX).
    #[error("the configuration is longer than this store keeps")]
    DocumentTooLarge,
    /// The bucket holds objects or versions of some.
    #[error("the bucket still holds objects, or versions of objects")]
    BucketNotEmpty,
    /// [`BUCKETS_MAX`](crate::limits::BUCKETS_MAX) reached.
    #[error("the store has as many buckets as it may have")]
    TooManyBuckets,
    /// Not a name by S3's rules.
    #[error("not a valid bucket name: 3 to 63 lower-case letters, digits, dots and hyphens")]
    InvalidBucketName,
    /// No such object.
    #[error("there is no such object")]
    NoSuchKey,
    /// No such version.
    #[error("there is no such version")]
    NoSuchVersion,
    /// The newest version, or the one that was named, is a delete marker.
    #[error("the object was deleted: this version is a delete marker")]
    IsDeleteMarker {
        /// Which version.
        version: VersionId,
        /// When the object was deleted, in milliseconds since 1970.
        modified_ms: u64,
        /// Whether the request named it.
        named: bool,
    },
    /// The object is encrypted under a customer's key, and none was given.
    #[error("the object is encrypted under a key of its customer's, which must be given")]
    CustomerKeyNeeded,
    /// Another key than the object was encrypted with.
    #[error("this is not the customer's key that the object is encrypted with")]
    WrongCustomerKey,
    /// A customer's key for an object that is not encrypted under one.
    #[error("the object is not encrypted under a customer's key")]
    CustomerKeyUnexpected,
    /// The key was lent and went with a wipe or a lease, or it may be one of those that have not been lent since: it is on its way.
    #[error(
        "the key {name} is not on this node yet: send the request again when the compute tier has pushed it"
    )]
    NamedKeyAway {
        /// Which.
        name: String,
    },
    /// The object is encrypted under a named key that was revoked or erased.
    #[error(
        "the key {name} is not on this node: it was revoked or has not been pushed; what it encrypts can't be read or written \
         until it is pushed again"
    )]
    NamedKeyRevoked {
        /// Which.
        name: String,
    },
    /// No key of this name was lent since the node was started.
    #[error("there is no key {name} on this node: make it with `nightlatch key create {name}`, or push it")]
    NoSuchNamedKey {
        /// Which.
        name: String,
    },
    /// The key of this name is not the one that encrypted the object.
    #[error("the key {name} is another one than the object was encrypted under")]
    WrongNamedKey {
        /// Which.
        name: String,
    },
    /// Retained or held.
    #[error("the version is locked")]
    Locked,
    /// The bucket does not lock versions.
    #[error("the bucket has no object lock")]
    LockNotEnabled,
    /// A retention that is over.
    #[error("the time to retain until must be in the future")]
    RetentionPassed,
    /// A default retention of no time, or too much.
    #[error("a default retention lasts 1 to 36,500 days")]
    InvalidRetention,
    /// Too many tags.
    #[error("more than {max} tags")]
    TooManyTags {
        /// How many there may be.
        max: usize,
    },
    /// A tag without a name, too long, or given twice.
    #[error("tags have distinct names of 1 to 128 characters and values of up to 256")]
    InvalidTags,
    /// More than [`GRANTS_MAX`](crate::limits::GRANTS_MAX).
    #[error("the access control list has more lines than it may have")]
    TooManyGrants,
    /// Empty, too long, or containing a NUL.
    #[error("not a valid object key: 1 to 1024 bytes without NUL")]
    InvalidKey,
    /// Too much user metadata.
    #[error("the object's metadata is larger than S3 allows")]
    MetadataTooLarge,
    /// Longer than S3 allows.
    #[error("the body is longer than the {limit} that S3 allows")]
    TooLarge {
        /// The limit that was passed.
        limit: ByteLen,
    },
    /// Fewer or more bytes than declared.
    #[error("the body has {received} where {declared} was declared")]
    LengthMismatch {
        /// What the client declared.
        declared: ByteLen,
        /// What came.
        received: ByteLen,
    },
    /// The body is not what the client's digest says.
    #[error("the body does not match its declared {0:?} digest")]
    DigestMismatch(DigestKind),
    /// If-Match or If-None-Match did not hold.
    #[error("a precondition of the request did not hold")]
    PreconditionFailed,
    /// The object changed between two steps of one request.
    #[error("the object changed meanwhile; send the request again")]
    Conflict,
    /// No such multipart upload.
    #[error("there is no such multipart upload")]
    NoSuchUpload,
    /// Part number outside 1..=10,000.
    #[error("part numbers run from 1 to 10,000")]
    InvalidPartNumber,
    /// A part in the list was never uploaded, or with another ETag or checksum.
    #[error("part {number} was not uploaded, or not with this ETag or checksum")]
    InvalidPart {
        /// Which.
        number: u16,
    },
    /// The list is empty, unordered or has duplicates.
    #[error("the list of parts is empty or not in ascending order")]
    InvalidPartOrder,
    /// A part that is not the last is below 5 MiB.
    #[error("part {number} is smaller than 5 MiB and not the last one")]
    PartTooSmall {
        /// Which.
        number: u16,
    },
    /// The checksum type does not exist for the algorithm, or the parts carry none.
    #[error("this checksum algorithm and type do not go together")]
    InvalidChecksum,
    /// More than [`DELETE_KEYS_MAX`](crate::limits::DELETE_KEYS_MAX) keys.
    #[error("more keys than one request may name")]
    TooManyKeys,
    /// No such user.
    #[error("there is no such user")]
    NoSuchUser,
    /// The user exists.
    #[error("the user exists already")]
    UserExists,
    /// Empty, too long or with unusual characters.
    #[error("not a valid user name: 1 to 64 letters, digits and any of . _ @ -")]
    InvalidUserName,
    /// No such access key.
    #[error("there is no such access key")]
    NoSuchAccessKey,
    /// The bucket's quota, or that of its owner, does not allow so much more.
    #[error(
        "the quota of the bucket or of its owner is used up: delete something, or ask the operator for more"
    )]
    QuotaExceeded,
    /// No such group.
    #[error("there is no such group")]
    NoSuchGroup,
    /// The group exists.
    #[error("the group exists already")]
    GroupExists,
    /// No such policy.
    #[error("there is no such policy")]
    NoSuchPolicy,
    /// The policy is attached to somebody.
    #[error("the policy is attached to a user or a group: detach it first")]
    PolicyInUse,
    /// Empty, too long or with unusual characters.
    #[error("not a valid name of a group or a policy: 1 to 64 letters, digits and any of . _ -")]
    InvalidIdentityName,
    /// [`GROUPS_MAX`](crate::limits::GROUPS_MAX), [`POLICIES_MAX`](crate::limits::POLICIES_MAX) or
    /// [`ATTACHED_MAX`](crate::limits::ATTACHED_MAX) reached.
    #[error("there are as many groups or policies as there may be, here or attached to this user or group")]
    TooManyIdentities,
    /// [`USERS_MAX`](crate::limits::USERS_MAX) or [`ACCESS_KEYS_PER_USER_MAX`](crate::limits::ACCESS_KEYS_PER_USER_MAX) reached.
    #[error("there are as many users, or as many access keys of this user, as there may be")]
    TooManyUsers,
}

impl StoreError {
    /// Whether the store, not the request, is at fault.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Sealed
                | Self::Closed
                | Self::NoSpace
                | Self::Io(_)
                | Self::Failed(_)
                | Self::IndexDamaged { .. }
                | Self::Corrupt { .. }
        )
    }

    /// Whether nothing can be served any more until the store is opened again.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Sealed | Self::Closed | Self::Failed(_) | Self::IndexDamaged { .. })
    }
}

impl From<BlockError> for StoreError {
    fn from(error: BlockError) -> Self {
        match error.kind() {
            BlockErrorKind::KeyGone => Self::Sealed,
            BlockErrorKind::NoSpace => Self::NoSpace,
            BlockErrorKind::Io => Self::Io(error),
            BlockErrorKind::Failed => Self::Failed(Arc::new(error)),
        }
    }
}
