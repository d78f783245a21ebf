//! Access control lists of buckets and objects.

use std::sync::Arc;

use objects::{Acl, Happened, Store};
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::{Answer, admitted};
use crate::access::Admission;
use crate::attributes::version;
use crate::authority::lists::{Asked, asked_acl, is_public, list_of_xml, xml_of_list};
use crate::authority::{Authority, Ownership};
use crate::caller::Caller;
use crate::convert::owner;
use crate::error::{from_store, invalid};
use crate::notifications::Herald;
use crate::policy::denied;

fn lists_are_off() -> S3Error {
    S3Error::with_message(
        S3ErrorCode::AccessControlListNotSupported,
        "the bucket does not allow access control lists",
    )
}

/// Who is to own an object that is written, and its list.
#[derive(Debug)]
pub(super) struct NewAcl {
    authority: Arc<Authority>,
    caller: Caller,
    asked: Asked,
}

impl NewAcl {
    pub(super) fn of(admission: &Admission, asked: Asked) -> Self {
        let authority = Arc::clone(&admission.authority);
        Self { authority, caller: admission.caller().clone(), asked }
    }

    /// The list to store.
    pub(super) fn resolve(&self, store: &Store) -> S3Result<Acl> {
        let (authority, bucket_owner) = (&self.authority, self.authority.bucket.owner.as_str());
        let gives_all = self.asked.canned.as_deref() == Some("bucket-owner-full-control");
        let writer = self.caller.owner();
        match authority.ownership {
            Ownership::BucketOwnerEnforced => {
                let harmless = self.asked.is_empty() || gives_all;
                if !harmless {
                    return Err(lists_are_off());
                }
                return Ok(Acl { owner: bucket_owner.to_owned(), grants: None });
            }
            Ownership::BucketOwnerPreferred if gives_all => {
                return Ok(Acl { owner: bucket_owner.to_owned(), grants: None });
            }
            _ => {}
        }
        let acl = self.asked.list(store, &writer, bucket_owner)?;
        check_public(authority, &acl)?;
        Ok(acl)
    }
}

fn check_public(authority: &Authority, acl: &Acl) -> S3Result<()> {
    if authority.public_access.block_acls && is_public(acl) {
        return Err(denied("the bucket blocks public access control lists"));
    }
    Ok(())
}

pub(super) async fn get_bucket(request: S3Request<GetBucketAclInput>) -> Answer<GetBucketAclOutput> {
    let (_, admission) = admitted(&request).await?;
    let acl = &admission.authority.bucket.acl;
    Ok(S3Response::new(GetBucketAclOutput { grants: Some(xml_of_list(acl)), owner: Some(owner(&acl.owner)) }))
}

/// The list that a request replaces another with: canned, in headers or in XML, one of them.
fn replacement(
    store: &Store,
    authority: &Authority,
    asked: &Asked,
    policy: Option<AccessControlPolicy>,
    owner: &str,
) -> S3Result<Acl> {
    let acl = match policy {
        Some(policy) if asked.is_empty() => list_of_xml(store, policy, owner)?,
        Some(_) => return Err(invalid("the list can't be given in headers and in the body")),
        None if asked.is_empty() => {
            return Err(S3Error::with_message(S3ErrorCode::MissingSecurityHeader, "no list is given"));
        }
        None => asked.list(store, owner, &authority.bucket.owner)?,
    };
    let harmless = asked.canned.as_deref() == Some("bucket-owner-full-control");
    if authority.ownership == Ownership::BucketOwnerEnforced && !harmless {
        return Err(lists_are_off());
    }
    check_public(authority, &acl)?;
    Ok(acl)
}

pub(super) async fn put_bucket(request: S3Request<PutBucketAclInput>) -> Answer<PutBucketAclOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let mut input = request.input;
    let asked = asked_acl!(input, input.grant_write.take());
    serving
        .run(move |store| {
            let authority = &admission.authority;
            let owner = authority.bucket.acl.owner.as_str();
            let acl = replacement(store, authority, &asked, input.access_control_policy, owner)?;
            store.set_bucket_acl(bucket, acl).map_err(|error| from_store(&error))
        })
        .await?;
    Ok(S3Response::new(PutBucketAclOutput::default()))
}

pub(super) async fn get_object(request: S3Request<GetObjectAclInput>) -> Answer<GetObjectAclOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let input = request.input;
    let version = version(input.version_id.as_deref())?;
    let info = serving
        .run(move |store| store.head_object(&bucket, &input.key, version).map_err(|error| from_store(&error)))
        .await?;
    let acl = &info.attributes.acl;
    Ok(S3Response::new(GetObjectAclOutput {
        grants: Some(xml_of_list(acl)),
        owner: Some(owner(&acl.owner)),
        request_charged: None,
    }))
}

pub(super) async fn put_object(request: S3Request<PutObjectAclInput>) -> Answer<PutObjectAclOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let event = [(Happened::Changed, "ObjectAcl:Put")];
    let notices = Herald::of(&request, &admission).notices(&request.input.key, &event);
    let mut input = request.input;
    let version = version(input.version_id.as_deref())?;
    let asked = asked_acl!(input, input.grant_write.take());
    serving
        .run(move |store| {
            let info = store.head_object(&bucket, &input.key, version).map_err(|error| from_store(&error))?;
            let owner = info.attributes.acl.owner.as_str();
            let acl = replacement(store, &admission.authority, &asked, input.access_control_policy, owner)?;
            store
                .set_object_acl(&bucket, &input.key, version, acl, notices)
                .map_err(|error| from_store(&error))
        })
        .await?;
    Ok(S3Response::new(PutObjectAclOutput::default()))
}
