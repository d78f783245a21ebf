//! Access control lists: who owns something and what others may do with it. Kept and given back here; what a grant allows
//! is decided by the head.

use serde::{Deserialize, Serialize};

/// Owner and grants of a bucket or an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acl {
    /// Name of the user; empty where nobody in particular owns it.
    pub owner: String,
    /// Grants beyond the owner's own rights; `None` is the list that only the owner is on.
    pub grants: Option<Vec<Grant>>,
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// To whom.
    pub grantee: Grantee,
    /// What.
    pub permission: Permission,
}

/// Who is granted something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grantee {
    /// A user of the store, by name.
    User(String),
    /// Everybody, signed or not.
    Everyone,
    /// Every user of the store.
    AnyUser,
    /// The service that writes access logs.
    LogDelivery,
}

/// What is granted. S3's table says what each means for a bucket and for an object ("Access control list (ACL)
/// overview").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Permission {
    /// Everything below.
    FullControl,
    /// Write objects of the bucket.
    Write,
    /// Write the list.
    WriteAcp,
    /// List the bucket, read the object.
    Read,
    /// Read the list.
    ReadAcp,
}
