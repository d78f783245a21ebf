//! Who may do what.
//!
//! In order, the first that says something counts: the bucket's policy denies; the caller owns the bucket; the policy allows;
//! the access control list grants. Nobody else may do anything. What public access block and ownership controls take away is
//! taken away before it is looked at.
//!
//! A bucket without an owner, made by the operator, is shared: every user of the store is as good as its owner.

pub(crate) mod condition;
pub(crate) mod document;
pub(crate) mod lists;
pub(crate) mod operations;
pub(crate) mod pattern;

use objects::{Acl, BucketInfo, Documents, Grantee, Permission};
use s3s::S3Result;
use s3s::dto::{BucketLifecycleConfiguration, OwnershipControls, PublicAccessBlockConfiguration};

use condition::Context;
use document::{Effect, Policy, Question};
use operations::{Need, Operation};

use crate::documents::{self, LIFECYCLE, OWNERSHIP, POLICY, PUBLIC_ACCESS};
use crate::lifecycle::rules::{self, Rule};

/// Who owns new objects, and whether access control lists count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Whoever writes an object owns it.
    #[default]
    ObjectWriter,
    /// The bucket's owner does where the writer grants full control.
    BucketOwnerPreferred,
    /// The bucket's owner does, and lists say nothing.
    BucketOwnerEnforced,
}

impl Ownership {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "ObjectWriter" => Some(Self::ObjectWriter),
            "BucketOwnerPreferred" => Some(Self::BucketOwnerPreferred),
            "BucketOwnerEnforced" => Some(Self::BucketOwnerEnforced),
            _ => None,
        }
    }
}

/// A bucket's public access block; what is not set is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PublicAccess {
    pub(crate) block_acls: bool,
    pub(crate) ignore_acls: bool,
    pub(crate) block_policy: bool,
    pub(crate) restrict: bool,
}

impl PublicAccess {
    pub(crate) fn of(configuration: &PublicAccessBlockConfiguration) -> Self {
        Self {
            block_acls: configuration.block_public_acls.unwrap_or(false),
            ignore_acls: configuration.ignore_public_acls.unwrap_or(false),
            block_policy: configuration.block_public_policy.unwrap_or(false),
            restrict: configuration.restrict_public_buckets.unwrap_or(false),
        }
    }
}

/// Everything about a bucket that decides who may do what with it.
#[derive(Debug)]
pub(crate) struct Authority {
    pub(crate) bucket: BucketInfo,
    pub(crate) policy: Option<Policy>,
    pub(crate) public_access: PublicAccess,
    pub(crate) ownership: Ownership,
    /// What goes by itself, and when: answers about objects say so.
    pub(crate) lifecycle: Vec<Rule>,
}

/// An object that a request is about, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) key: &'a str,
    /// Its list, where there is such an object.
    pub(crate) acl: Option<&'a Acl>,
}

impl Authority {
    pub(crate) fn read(bucket: BucketInfo, documents: &Documents) -> S3Result<Self> {
        let find = |name: &str| documents.iter().find(|(found, _)| found == name).map(|(_, text)| text);
        let policy = match find(POLICY) {
            Some(text) => Some(Policy::parse(text, &bucket.name).map_err(documents::damaged)?),
            None => None,
        };
        let public_access = match find(PUBLIC_ACCESS) {
            Some(text) => PublicAccess::of(&documents::parse(text)?),
            None => PublicAccess::default(),
        };
        let ownership = match find(OWNERSHIP) {
            Some(text) => ownership_of(&documents::parse(text)?).unwrap_or_default(),
            None => Ownership::default(),
        };
        let lifecycle = match find(LIFECYCLE) {
            Some(text) => rules::read(&documents::parse::<BucketLifecycleConfiguration>(text)?.rules)?,
            None => Vec::new(),
        };
        Ok(Self { bucket, policy, public_access, ownership, lifecycle })
    }

    /// Whether `user` may carry out `operation`, under the name that a policy has for it.
    pub(crate) fn allows(
        &self,
        user: Option<&str>,
        (operation, action): (&Operation, &'static str),
        subject: Option<Subject<'_>>,
        context: &Context,
    ) -> bool {
        let name = self.bucket.name.as_str();
        let resource = subject.map(|subject| format!("{name}/{}", subject.key));
        let resource = resource.as_deref().unwrap_or(name);
        let question = Question { user, action, resource, context };
        let said = self.policy.as_ref().and_then(|policy| policy.decide(question));
        let owns_bucket = self.is_owner(user);
        // An owner who locks themselves out can still mend the policy.
        let mends = owns_bucket
            && matches!(operation.name, "GetBucketPolicy" | "PutBucketPolicy" | "DeleteBucketPolicy");
        match said {
            Some(Effect::Deny) if !mends => return false,
            Some(Effect::Allow) if !self.restricts(user) => return true,
            _ => {}
        }
        match operation.need {
            Need::User => user.is_some(),
            Need::EachKey => true,
            Need::BucketOwner => owns_bucket,
            Need::Bucket(permission) => self.bucket_grants(user, permission, owns_bucket),
            Need::ObjectOwner => {
                owns_bucket || subject.and_then(|subject| subject.acl).is_some_and(|acl| self.owns(user, acl))
            }
            Need::Object(permission) => match subject.and_then(|subject| subject.acl) {
                Some(acl) => self.object_grants(user, acl, permission, owns_bucket),
                // Who may list the bucket may know that there is no such object.
                None => self.bucket_grants(user, Permission::Read, owns_bucket),
            },
        }
    }

    /// Whether `user` has the right to delete or change what is locked under governance.
    pub(crate) fn bypasses_governance(&self, user: Option<&str>, key: &str, context: &Context) -> bool {
        let resource = format!("{}/{key}", self.bucket.name);
        let question =
            Question { user, action: "s3:BypassGovernanceRetention", resource: &resource, context };
        match self.policy.as_ref().and_then(|policy| policy.decide(question)) {
            Some(Effect::Deny) => false,
            Some(Effect::Allow) if !self.restricts(user) => true,
            _ => self.is_owner(user),
        }
    }

    /// Whether the bucket's owner asks; every user owns a shared bucket.
    pub(crate) fn is_owner(&self, user: Option<&str>) -> bool {
        user.is_some_and(|user| self.bucket.owner.is_empty() || self.bucket.owner == user)
    }

    /// Whether lists or the policy let in people that nobody named.
    pub(crate) fn is_public(&self) -> bool {
        let lists = self.ownership != Ownership::BucketOwnerEnforced && !self.public_access.ignore_acls;
        (lists && lists::is_public(&self.bucket.acl)) || self.policy.as_ref().is_some_and(Policy::is_public)
    }

    /// Whether what a public policy allows is taken away from this user.
    fn restricts(&self, user: Option<&str>) -> bool {
        self.public_access.restrict
            && !self.is_owner(user)
            && self.policy.as_ref().is_some_and(Policy::is_public)
    }

    fn owns(&self, user: Option<&str>, acl: &Acl) -> bool {
        match self.ownership {
            Ownership::BucketOwnerEnforced => self.is_owner(user),
            _ => user.is_some_and(|user| acl.owner == user),
        }
    }

    fn bucket_grants(&self, user: Option<&str>, permission: Permission, owns: bool) -> bool {
        self.grants(user, &self.bucket.acl, permission, owns)
    }

    fn object_grants(
        &self,
        user: Option<&str>,
        acl: &Acl,
        permission: Permission,
        owns_bucket: bool,
    ) -> bool {
        // What a shared bucket holds is shared; what nobody owns was there before there were owners.
        let shared = self.bucket.owner.is_empty() || acl.owner.is_empty();
        if owns_bucket && (shared || self.ownership == Ownership::BucketOwnerEnforced) {
            return true;
        }
        self.grants(user, acl, permission, self.owns(user, acl))
    }

    fn grants(&self, user: Option<&str>, acl: &Acl, permission: Permission, owns: bool) -> bool {
        // What someone owns is theirs, whatever its list says (S3).
        if owns || self.ownership == Ownership::BucketOwnerEnforced {
            return owns;
        }
        let grants = acl.grants.as_deref().unwrap_or_default();
        grants.iter().any(|grant| {
            let to = match &grant.grantee {
                Grantee::User(name) => user == Some(name.as_str()),
                Grantee::AnyUser => user.is_some() && !self.public_access.ignore_acls,
                Grantee::Everyone => !self.public_access.ignore_acls,
                Grantee::LogDelivery => false,
            };
            to && (grant.permission == permission || grant.permission == Permission::FullControl)
        })
    }
}

/// What ownership controls say; `None` if they say nothing that there is.
pub(crate) fn ownership_of(controls: &OwnershipControls) -> Option<Ownership> {
    match controls.rules.as_slice() {
        [rule] => Ownership::parse(rule.object_ownership.as_str()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use objects::{Grant, Versioning};

    fn authority(owner: &str) -> Authority {
        let bucket = BucketInfo {
            name: "b".to_owned(),
            created: std::time::UNIX_EPOCH,
            owner: owner.to_owned(),
            versioning: Versioning::Unversioned,
            lock: Default::default(),
            acl: Acl { owner: owner.to_owned(), grants: None },
        };
        Authority {
            bucket,
            policy: None,
            public_access: Default::default(),
            ownership: Default::default(),
            lifecycle: Vec::new(),
        }
    }

    fn may(authority: &Authority, user: Option<&str>, operation: &str, acl: Option<&Acl>) -> bool {
        let operation = operations::find(operation).unwrap();
        let subject = Subject { key: "k", acl };
        authority.allows(user, (operation, operation.action), Some(subject), &Context::default())
    }

    fn private(owner: &str) -> Acl {
        Acl { owner: owner.to_owned(), grants: None }
    }

    #[test]
    fn nobody_but_the_owner_may_do_anything_in_a_private_bucket() {
        let bucket = authority("alice");
        let acl = private("alice");
        for operation in
            operations::all().filter(|operation| !matches!(operation.need, Need::User | Need::EachKey))
        {
            assert!(may(&bucket, Some("alice"), operation.name, Some(&acl)), "{}", operation.name);
            for stranger in [Some("bob"), None] {
                assert!(
                    !may(&bucket, stranger, operation.name, Some(&acl)),
                    "{} {stranger:?}",
                    operation.name
                );
                assert!(!may(&bucket, stranger, operation.name, None), "{} {stranger:?}", operation.name);
            }
        }
        assert!(!may(&bucket, None, "CreateBucket", None));
    }

    #[test]
    fn a_shared_bucket_is_every_users_and_nobody_elses() {
        let bucket = authority("");
        for operation in ["PutObject", "GetObject", "ListObjectsV2", "DeleteBucket"] {
            assert!(may(&bucket, Some("bob"), operation, Some(&private("alice"))), "{operation}");
            assert!(!may(&bucket, None, operation, Some(&private("alice"))), "{operation}");
        }
    }

    #[test]
    fn a_list_grants_what_it_says_to_whom_it_says() {
        let bucket = authority("alice");
        let granted = |grantee, permission| Acl {
            owner: "alice".to_owned(),
            grants: Some(vec![Grant { grantee, permission }]),
        };
        let named = granted(Grantee::User("bob".into()), Permission::Read);
        assert!(may(&bucket, Some("bob"), "GetObject", Some(&named)));
        assert!(!may(&bucket, Some("eve"), "GetObject", Some(&named)));
        assert!(!may(&bucket, Some("bob"), "PutObjectAcl", Some(&named)));
        let everyone = granted(Grantee::Everyone, Permission::FullControl);
        assert!(
            may(&bucket, None, "GetObject", Some(&everyone))
                && may(&bucket, None, "GetObjectAcl", Some(&everyone))
        );
        let users = granted(Grantee::AnyUser, Permission::Read);
        assert!(
            may(&bucket, Some("eve"), "GetObject", Some(&users))
                && !may(&bucket, None, "GetObject", Some(&users))
        );
        let ignoring = Authority {
            public_access: PublicAccess { ignore_acls: true, ..PublicAccess::default() },
            ..authority("alice")
        };
        assert!(!may(&ignoring, None, "GetObject", Some(&everyone)));
        let enforced = Authority { ownership: Ownership::BucketOwnerEnforced, ..authority("alice") };
        assert!(!may(&enforced, Some("bob"), "GetObject", Some(&named)));
        assert!(may(&enforced, Some("alice"), "GetObject", Some(&private("bob"))));
        assert!(
            !may(&bucket, Some("alice"), "GetObject", Some(&private("bob"))),
            "an object of somebody else"
        );
    }

    #[test]
    fn a_policy_lets_in_and_shuts_out_even_the_owner_but_for_the_policy_itself() {
        let with = |text: &str| Authority {
            policy: Some(Policy::parse(text.as_bytes(), "b").unwrap()),
            ..authority("alice")
        };
        let open = with(
            r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}]}"#,
        );
        assert!(may(&open, None, "GetObject", Some(&private("alice"))));
        assert!(!may(&open, None, "PutObject", None));
        let restricted =
            Authority { public_access: PublicAccess { restrict: true, ..Default::default() }, ..open };
        assert!(!may(&restricted, Some("bob"), "GetObject", Some(&private("alice"))));
        let shut = with(
            r#"{"Statement":[{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::b","arn:aws:s3:::b/*"]}]}"#,
        );
        assert!(!may(&shut, Some("alice"), "GetObject", Some(&private("alice"))));
        let mends = operations::find("DeleteBucketPolicy").unwrap();
        assert!(shut.allows(Some("alice"), (mends, mends.action), None, &Context::default()));
        assert!(!shut.allows(Some("bob"), (mends, mends.action), None, &Context::default()));
    }
}
