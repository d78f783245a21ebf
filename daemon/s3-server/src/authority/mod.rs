//! Who may do what.
//!
//! In order, the first that says something counts: a policy of the caller's or of the bucket denies; one of them allows; the
//! caller owns the bucket; the access control list grants. Nobody else may do anything. What public access block and ownership
//! controls take away is taken away before it is looked at.
//!
//! A bucket without an owner, made by the operator, is shared: every user of the store is as good as its owner. A user whose
//! rights are what policies say owns nothing in this sense, and lists grant them only what they grant everybody.

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

use crate::access_log::Target;
use crate::documents::{
    self, ENCRYPTION, LIFECYCLE, LOGGING, NOTIFICATIONS, OWNERSHIP, POLICY, PUBLIC_ACCESS,
};
use crate::encryption::default_key;
use crate::lifecycle::rules::{self, Rule};
use crate::notifications;

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

/// Why a policy for users is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy is refused: {0}")]
pub struct InvalidPolicy(document::Malformed);

/// Whether a text is a policy that can be attached to users and groups: AWS's language, without principals, and without
/// condition keys and variables that this server does not know.
///
/// # Errors
/// [`InvalidPolicy`], with what is wrong.
pub fn check_user_policy(text: &str) -> Result<(), InvalidPolicy> {
    Policy::parse(text.as_bytes(), None).and_then(|policy| policy.check_known()).map_err(InvalidPolicy)
}

/// Who asks, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    /// The user; `None` for a request that is not signed.
    pub(crate) user: Option<&'a str>,
    /// The policies that decide what the user may do; `None` where that is what the user owns.
    pub(crate) policies: Option<&'a [Policy]>,
}

impl<'a> Asker<'a> {
    /// Of a request that is not signed.
    pub(crate) const NOBODY: Self = Self { user: None, policies: None };

    /// What the user's own policies say.
    fn decide(&self, question: Question<'_>) -> Option<Effect> {
        document::decide(self.policies.unwrap_or_default(), question)
    }

    /// The user, where what they own is theirs to use.
    fn as_owner(&self) -> Option<&'a str> {
        self.user.filter(|_| self.policies.is_none())
    }

    /// Whether an operation that is about no bucket that there is may be carried out.
    pub(crate) fn may(&self, action: &'static str, bucket: Option<&str>, context: &Context) -> bool {
        let question = Question { user: self.user, action, resource: bucket.unwrap_or(EVERYTHING), context };
        match self.decide(question) {
            Some(effect) => effect == Effect::Allow,
            None => self.as_owner().is_some(),
        }
    }
}

/// What operations are about that are about no bucket in particular, as policies name it.
const EVERYTHING: &str = "*";

/// Everything about a bucket that decides who may do what with it.
#[derive(Debug)]
pub(crate) struct Authority {
    pub(crate) bucket: BucketInfo,
    pub(crate) policy: Option<Policy>,
    pub(crate) public_access: PublicAccess,
    pub(crate) ownership: Ownership,
    /// What goes by itself, and when: answers about objects say so.
    pub(crate) lifecycle: Vec<Rule>,
    /// Where requests are written down.
    pub(crate) logging: Option<Target>,
    /// Who is told of what happens in it.
    pub(crate) notifications: Vec<notifications::Rule>,
    /// The named key that new objects are encrypted under where a request says nothing.
    pub(crate) default_key: Option<String>,
    /// Bytes that it was read from.
    pub(crate) weight: usize,
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
            Some(text) => Some(Policy::parse(text, Some(&bucket.name)).map_err(documents::damaged)?),
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
        let logging = match find(LOGGING) {
            Some(text) => Target::of(&documents::parse(text)?)?,
            None => None,
        };
        let notifications = match find(NOTIFICATIONS) {
            Some(text) => notifications::read(&documents::parse(text)?)?,
            None => Vec::new(),
        };
        let default_key = match find(ENCRYPTION) {
            Some(text) => default_key(&documents::parse(text)?)?,
            None => None,
        };
        let weight = documents.iter().map(|(_, text)| text.len()).sum();
        Ok(Self {
            bucket,
            policy,
            public_access,
            ownership,
            lifecycle,
            logging,
            notifications,
            default_key,
            weight,
        })
    }

    /// Whether `asker` may carry out `operation`, under the name that a policy has for it.
    pub(crate) fn allows(
        &self,
        asker: Asker<'_>,
        (operation, action): (&Operation, &'static str),
        subject: Option<Subject<'_>>,
        context: &Context,
    ) -> bool {
        let name = self.bucket.name.as_str();
        let resource = subject.map(|subject| format!("{name}/{}", subject.key));
        let resource = resource.as_deref().unwrap_or(name);
        let question = Question { user: asker.user, action, resource, context };
        let owns_bucket = self.is_owner(asker);
        // An owner who locks themselves out can still mend the policy.
        let mends = owns_bucket
            && matches!(operation.name, "GetBucketPolicy" | "PutBucketPolicy" | "DeleteBucketPolicy");
        match self.said(asker, question) {
            (Some(Effect::Deny), _) => return false,
            (_, Some(Effect::Deny)) if !mends => return false,
            (Some(Effect::Allow), _) | (_, Some(Effect::Allow)) => return true,
            _ => {}
        }
        match operation.need {
            Need::User => asker.as_owner().is_some(),
            Need::EachKey => true,
            Need::BucketOwner => owns_bucket,
            Need::Bucket(permission) => self.bucket_grants(asker, permission),
            Need::ObjectOwner => {
                owns_bucket
                    || subject.and_then(|subject| subject.acl).is_some_and(|acl| self.owns(asker, acl))
            }
            Need::Object(permission) => match subject.and_then(|subject| subject.acl) {
                Some(acl) => self.object_grants(asker, acl, permission),
                None => self.may_list(asker, subject, context),
            },
        }
    }

    /// What the caller's own policies say, and what the bucket's says to the caller.
    fn said(&self, asker: Asker<'_>, question: Question<'_>) -> (Option<Effect>, Option<Effect>) {
        let policy = self.policy.as_ref().and_then(|policy| policy.decide(question));
        let taken_away = policy == Some(Effect::Allow) && self.restricts(asker);
        (asker.decide(question), policy.filter(|_| !taken_away))
    }

    /// Who may list the bucket may know that there is no such object.
    fn may_list(&self, asker: Asker<'_>, subject: Option<Subject<'_>>, context: &Context) -> bool {
        let mut context = context.clone();
        subject.iter().for_each(|subject| context.add("s3:prefix", subject.key));
        let resource = self.bucket.name.as_str();
        let question = Question { user: asker.user, action: "s3:ListBucket", resource, context: &context };
        match self.said(asker, question) {
            (Some(Effect::Deny), _) | (_, Some(Effect::Deny)) => false,
            (Some(Effect::Allow), _) | (_, Some(Effect::Allow)) => true,
            (None, None) => self.bucket_grants(asker, Permission::Read),
        }
    }

    /// Whether `asker` has the right to delete or change what is locked under governance.
    pub(crate) fn bypasses_governance(&self, asker: Asker<'_>, key: &str, context: &Context) -> bool {
        let resource = format!("{}/{key}", self.bucket.name);
        let action = "s3:BypassGovernanceRetention";
        match self.said(asker, Question { user: asker.user, action, resource: &resource, context }) {
            (Some(Effect::Deny), _) | (_, Some(Effect::Deny)) => false,
            (Some(Effect::Allow), _) | (_, Some(Effect::Allow)) => true,
            (None, None) => self.is_owner(asker),
        }
    }

    /// Whether `asker`, who may write an object, may also do what `action` names to what they write: it is theirs, but for one
    /// whose rights are what policies say.
    pub(crate) fn allows_besides(
        &self,
        asker: Asker<'_>,
        action: &str,
        key: &str,
        context: &Context,
    ) -> bool {
        let resource = format!("{}/{key}", self.bucket.name);
        match self.said(asker, Question { user: asker.user, action, resource: &resource, context }) {
            (Some(Effect::Deny), _) | (_, Some(Effect::Deny)) => false,
            (Some(Effect::Allow), _) | (_, Some(Effect::Allow)) => true,
            (None, None) => asker.policies.is_none(),
        }
    }

    /// Whether there may be a key that somebody without a signature may delete. The keys come in the body, which is not read for
    /// nobody's sake.
    pub(crate) fn may_let_anybody_delete(&self) -> bool {
        let asker = Asker::NOBODY;
        (self.policy.is_some() && !self.restricts(asker)) || self.bucket_grants(asker, Permission::Write)
    }

    /// Whether the bucket's owner asks; every user owns a shared bucket.
    pub(crate) fn is_owner(&self, asker: Asker<'_>) -> bool {
        asker.as_owner().is_some_and(|user| self.bucket.owner.is_empty() || self.bucket.owner == user)
    }

    /// Whether what an object's list says can make no difference to `asker`, so that the object need not be looked up.
    pub(crate) fn owns_whatever_is_in_it(&self, asker: Asker<'_>) -> bool {
        let all_the_owners = self.bucket.owner.is_empty() || self.ownership == Ownership::BucketOwnerEnforced;
        all_the_owners && self.policy.is_none() && self.is_owner(asker)
    }

    /// Whether lists or the policy let in people that nobody named.
    pub(crate) fn is_public(&self) -> bool {
        let lists = self.ownership != Ownership::BucketOwnerEnforced && !self.public_access.ignore_acls;
        (lists && lists::is_public(&self.bucket.acl)) || self.policy.as_ref().is_some_and(Policy::is_public)
    }

    /// Whether what a public policy allows is taken away from this user.
    fn restricts(&self, asker: Asker<'_>) -> bool {
        self.public_access.restrict
            && !self.is_owner(asker)
            && self.policy.as_ref().is_some_and(Policy::is_public)
    }

    fn owns(&self, asker: Asker<'_>, acl: &Acl) -> bool {
        match self.ownership {
            Ownership::BucketOwnerEnforced => self.is_owner(asker),
            _ => asker.as_owner().is_some_and(|user| acl.owner == user),
        }
    }

    fn bucket_grants(&self, asker: Asker<'_>, permission: Permission) -> bool {
        self.grants(asker, &self.bucket.acl, permission, self.is_owner(asker))
    }

    fn object_grants(&self, asker: Asker<'_>, acl: &Acl, permission: Permission) -> bool {
        // What a shared bucket holds is shared; what nobody owns was there before there were owners.
        let shared = self.bucket.owner.is_empty() || acl.owner.is_empty();
        if self.is_owner(asker) && (shared || self.ownership == Ownership::BucketOwnerEnforced) {
            return true;
        }
        self.grants(asker, acl, permission, self.owns(asker, acl))
    }

    fn grants(&self, asker: Asker<'_>, acl: &Acl, permission: Permission, owns: bool) -> bool {
        // What someone owns is theirs, whatever its list says (S3).
        if owns || self.ownership == Ownership::BucketOwnerEnforced {
            return owns;
        }
        let grants = acl.grants.as_deref().unwrap_or_default();
        // What a list gives to users it does not give to one whose rights are what policies say: the list of what they make
        // would name them, whatever policies are taken away later.
        let user = asker.as_owner();
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
            id: Default::default(),
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
            logging: None,
            notifications: Vec::new(),
            default_key: None,
            weight: 0,
        }
    }

    fn may(authority: &Authority, user: Option<&str>, operation: &str, acl: Option<&Acl>) -> bool {
        may_as(authority, Asker { user, policies: None }, operation, acl)
    }

    fn may_as(authority: &Authority, asker: Asker<'_>, operation: &str, acl: Option<&Acl>) -> bool {
        let operation = operations::find(operation).unwrap();
        let subject = Subject { key: "k", acl };
        authority.allows(asker, (operation, operation.action), Some(subject), &Context::default())
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
            policy: Some(Policy::parse(text.as_bytes(), Some("b")).unwrap()),
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
        let may = |user| {
            let asker = Asker { user: Some(user), policies: None };
            shut.allows(asker, (mends, mends.action), None, &Context::default())
        };
        assert!(may("alice") && !may("bob"));
    }

    #[test]
    fn a_user_with_policies_may_what_they_say_and_nothing_that_they_do_not() {
        let policy = |statement: &str| {
            Policy::parse(format!(r#"{{"Version":"2012-10-17","Statement":[{statement}]}}"#).as_bytes(), None)
                .unwrap()
        };
        let reads = policy(r#"{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}"#);
        let stops = policy(r#"{"Effect":"Deny","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/k"}"#);
        for bucket in [authority("alice"), authority("bob"), authority("")] {
            let acl = private("bob");
            let asker = Asker { user: Some("bob"), policies: Some(std::slice::from_ref(&reads)) };
            for operation in operations::all().filter(|operation| operation.need != Need::EachKey) {
                let expected = matches!(operation.name, "GetObject" | "HeadObject" | "GetObjectAttributes");
                assert_eq!(
                    may_as(&bucket, asker, operation.name, Some(&acl)),
                    expected,
                    "{}",
                    operation.name
                );
            }
            let both = [reads.clone(), stops.clone()];
            let asker = Asker { user: Some("bob"), policies: Some(&both) };
            assert!(!may_as(&bucket, asker, "GetObject", Some(&acl)), "a deny wins");
            let none = Asker { user: Some("bob"), policies: Some(&[]) };
            assert!(!may_as(&bucket, none, "GetObject", Some(&acl)), "the last policy was taken away");
        }
        let context = Context::default();
        let none = Asker { user: Some("bob"), policies: Some(&[]) };
        let free = Asker { user: Some("bob"), policies: None };
        assert!(!none.may("s3:CreateBucket", Some("new"), &context));
        assert!(free.may("s3:CreateBucket", Some("new"), &context));
        assert!(!Asker::NOBODY.may("s3:ListAllMyBuckets", None, &context));
        let lists = [policy(r#"{"Effect":"Allow","Action":"s3:ListAllMyBuckets","Resource":"*"}"#)];
        assert!(Asker { policies: Some(&lists), ..none }.may("s3:ListAllMyBuckets", None, &context));
    }

    #[test]
    fn a_list_gives_a_user_with_policies_only_what_it_gives_everybody() {
        let listed = |grants| Acl { owner: "bob".to_owned(), grants };
        let granted = |grantee| listed(Some(vec![Grant { grantee, permission: Permission::FullControl }]));
        let none = Asker { user: Some("bob"), policies: Some(&[]) };
        let own =
            ["authenticated-read", "bucket-owner-read", "bucket-owner-full-control", "log-delivery-write"];
        let canned = own.map(|name| listed(lists::canned(name, "bob", "alice").unwrap()));
        let explicit = [granted(Grantee::User("bob".to_owned())), granted(Grantee::AnyUser)];
        for acl in canned.iter().chain(&explicit) {
            let bucket = Authority {
                bucket: BucketInfo { acl: acl.clone(), ..authority("alice").bucket },
                ..authority("alice")
            };
            for operation in operations::all().filter(|operation| operation.need != Need::EachKey) {
                assert!(!may_as(&bucket, none, operation.name, Some(acl)), "{} {acl:?}", operation.name);
            }
        }
        let bucket = authority("alice");
        let named = granted(Grantee::User("bob".to_owned()));
        assert!(may(&bucket, Some("bob"), "GetObject", Some(&named)), "it does give it to a user without");
        let public = listed(lists::canned("public-read", "bob", "alice").unwrap());
        assert!(may_as(&bucket, none, "GetObject", Some(&public)), "who may ask without a name as well");
        assert!(!may_as(&bucket, none, "PutObjectAcl", Some(&public)));
        assert!(!may_as(&bucket, none, "GetObjectAcl", Some(&public)));
    }
}
