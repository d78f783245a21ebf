//! The object store: buckets, objects, multipart uploads and access keys on one sealed volume.
//!
//! ```text
//!   Store ── commit (one thread: many changes, one durable index commit)
//!     │        └── index (redb on the index region; the only module that knows it)
//!     ├── body (whole sectors in and out; digests)
//!     └── space (free map in memory; when a freed run may be used again)
//!            all on one BlockVolume, in production a `sealing::Volume`
//! ```
//!
//! Invariants:
//! - A call that returned success is durable: a power cut at any later moment keeps it, byte for byte (`commit` has the
//!   numbered order). A call that did not return leaves the old state or the new one, each whole.
//! - A reader sees one version of an object to its end, whatever is written, deleted or reclaimed meanwhile.
//! - Reads don't wait for writes.
//! - Names, metadata and secrets are on the volume only, so they are as encrypted as the bodies.
//! - No success and no byte is returned after the key is gone: every way out asks the volume again.
//! - Memory does not grow with the size of an object. It grows with the number of free extents, and a multipart object
//!   that is being read holds the places of its parts.
//!
//! It is not S3: no XML, no HTTP, no signatures (the `s3-server` crate); it knows nothing of keys or ciphertext (`sealing`).
//! All calls block. FORMAT.md says what is on the volume.

mod acl;
mod body;
mod buckets;
mod checksum;
mod commit;
mod condition;
mod credentials;
mod customer_key;
mod delete;
mod error;
mod events;
mod identities;
mod index;
mod layout;
pub mod limits;
mod list;
mod lock;
mod multipart;
mod named_key;
mod object;
mod records;
#[cfg(feature = "simulated")]
pub mod simulated;
mod space;
mod store;
mod usage;
mod version;
mod volume;
mod write;

pub use acl::{Acl, Grant, Grantee, Permission};
pub use body::{Declared, ObjectReader};
pub use buckets::{BucketInfo, BucketOptions, BucketRef, Documents};
pub use checksum::{Checksum, ChecksumAlgorithm, ChecksumKind};
pub use condition::{Condition, TagMatch};
pub use credentials::{AccessKeyInfo, NewAccessKey, SecretAccessKey, UserInfo};
pub use customer_key::{CustomerKey, KeyProof};
pub use delete::DeleteRequest;
pub use error::{DigestKind, StoreError};
pub use events::{Event, EventCounts, Happened, Notice, Notices, WaitingEvent};
pub use identities::{Credential, GroupInfo, PolicyInfo, Principal};
pub use layout::FORMAT_VERSION;
pub use list::{ListRequest, ListedObject, ObjectsPage, UploadsPage, VersionEntry, VersionsPage};
pub use lock::{BucketLock, DefaultRetention, LockMode, ObjectLock, Period, Retention};
pub use multipart::{
    CompleteOptions, CompletedPart, PartInfo, PartWriter, PartsPage, UploadInfo, UploadOptions,
};
pub use named_key::{KEY_INPUT_BYTES, KeyAway, KeyFunction, NamedKeys};
pub use object::{Object, ObjectInfo, ObjectPart};
pub use records::{Attributes, BucketId, ETag, Metadata};
pub use store::{Store, StoreStatus};
pub use usage::{Quota, QuotaOf, Usage};
pub use version::{Deleted, VersionId, Versioning};
pub use volume::{BlockError, BlockErrorKind, BlockVolume};
pub use write::{CopyOptions, ObjectWriter, PutOptions, check_tags};
