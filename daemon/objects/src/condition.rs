//! The conditions of a write, checked in the commit itself.

use crate::error::StoreError;
use crate::records::{ETag, ObjectRecord};

/// One entity tag of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagMatch {
    /// `*`
    Any,
    /// An entity tag, without quotes.
    Tag(String),
}

/// What must hold of the object that a write replaces or removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// The object must exist and match.
    pub if_match: Option<TagMatch>,
    /// The object must not exist, or not match.
    pub if_none_match: Option<TagMatch>,
    /// The object must have this size.
    pub size: Option<u64>,
    /// The object must have been modified in this second since 1970.
    pub modified_seconds: Option<u64>,
}

impl TagMatch {
    fn matches(&self, etag: &ETag) -> bool {
        match self {
            Self::Any => true,
            Self::Tag(tag) => *tag == etag.to_string(),
        }
    }
}

impl Condition {
    pub(crate) fn check(&self, current: Option<&ObjectRecord>) -> Result<(), StoreError> {
        let Some(current) = current else {
            let wants_one = self.if_match.is_some() || self.size.is_some() || self.modified_seconds.is_some();
            return if wants_one { Err(StoreError::NoSuchKey) } else { Ok(()) };
        };
        let holds = self.if_match.as_ref().is_none_or(|wanted| wanted.matches(&current.etag))
            && self.if_none_match.as_ref().is_none_or(|unwanted| !unwanted.matches(&current.etag))
            && self.size.is_none_or(|size| size == current.bytes)
            && self.modified_seconds.is_none_or(|seconds| seconds == current.modified_ms / 1000);
        if holds { Ok(()) } else { Err(StoreError::PreconditionFailed) }
    }
}
