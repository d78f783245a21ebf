//! Access control lists between the protocol and the store: canned ones, grants in headers, and XML.

use objects::{Acl, Grant, Grantee, Permission, Store};
use s3s::dto;
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::convert::owner_name;
use crate::error::{from_store, invalid};

const EVERYONE: &str = "http://acs.amazonaws.com/groups/global/AllUsers";
const ANY_USER: &str = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers";
const LOG_DELIVERY: &str = "http://acs.amazonaws.com/groups/s3/LogDelivery";

/// What a request says about the list of what it makes or changes.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) canned: Option<String>,
    pub(crate) full_control: Option<String>,
    pub(crate) read: Option<String>,
    pub(crate) read_acp: Option<String>,
    pub(crate) write: Option<String>,
    pub(crate) write_acp: Option<String>,
}

/// Takes the fields of a protocol type that [`Asked`] has; objects have no grant of writing.
macro_rules! asked_acl {
    ($from:expr, $write:expr) => {
        $crate::authority::lists::Asked {
            canned: $from.acl.take().map(|acl| acl.as_str().to_owned()),
            full_control: $from.grant_full_control.take(),
            read: $from.grant_read.take(),
            read_acp: $from.grant_read_acp.take(),
            write: $write,
            write_acp: $from.grant_write_acp.take(),
        }
    };
}

pub(crate) use asked_acl;

fn grant(grantee: Grantee, permission: Permission) -> Grant {
    Grant { grantee, permission }
}

/// Whether a list lets in people that nobody named.
pub(crate) fn is_public(acl: &Acl) -> bool {
    let open = |grant: &Grant| matches!(grant.grantee, Grantee::Everyone | Grantee::AnyUser);
    acl.grants.iter().flatten().any(open)
}

impl Asked {
    /// Whether anything is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.canned.is_none() && self.headers().iter().all(|(_, text)| text.is_none())
    }

    fn headers(&self) -> [(Permission, Option<&str>); 5] {
        [
            (Permission::Read, self.read.as_deref()),
            (Permission::Write, self.write.as_deref()),
            (Permission::ReadAcp, self.read_acp.as_deref()),
            (Permission::WriteAcp, self.write_acp.as_deref()),
            (Permission::FullControl, self.full_control.as_deref()),
        ]
    }

    /// The list that `owner` asks for. `bucket_owner`: of the bucket that holds the object.
    pub(crate) fn list(&self, store: &Store, owner: &str, bucket_owner: &str) -> S3Result<Acl> {
        let mut grants = Vec::new();
        for (permission, text) in self.headers() {
            for entry in text.iter().flat_map(|text| text.split(',')) {
                grants.push(grant(grantee_of_header(store, entry.trim())?, permission));
            }
        }
        let grants = match (self.canned.as_deref(), grants.is_empty()) {
            (Some(_), false) => {
                return Err(S3Error::with_message(
                    S3ErrorCode::InvalidRequest,
                    "a canned list and grants can't be given together",
                ));
            }
            (None, false) => Some(grants),
            (None, true) => None,
            (Some(name), true) => canned(name, owner, bucket_owner)?,
        };
        Ok(Acl { owner: owner.to_owned(), grants })
    }
}

pub(super) fn canned(name: &str, owner: &str, bucket_owner: &str) -> S3Result<Option<Vec<Grant>>> {
    let more = match name {
        "private" => return Ok(None),
        "public-read" => vec![grant(Grantee::Everyone, Permission::Read)],
        "public-read-write" => {
            vec![grant(Grantee::Everyone, Permission::Read), grant(Grantee::Everyone, Permission::Write)]
        }
        "authenticated-read" => vec![grant(Grantee::AnyUser, Permission::Read)],
        "bucket-owner-read" => vec![grant(Grantee::User(bucket_owner.to_owned()), Permission::Read)],
        "bucket-owner-full-control" => {
            vec![grant(Grantee::User(bucket_owner.to_owned()), Permission::FullControl)]
        }
        "log-delivery-write" => {
            vec![
                grant(Grantee::LogDelivery, Permission::Write),
                grant(Grantee::LogDelivery, Permission::ReadAcp),
            ]
        }
        _ => return Err(invalid("there is no such canned access control list")),
    };
    let own = grant(Grantee::User(owner.to_owned()), Permission::FullControl);
    let others = more.into_iter().filter(|more| more.grantee != own.grantee);
    Ok(Some(std::iter::once(own.clone()).chain(others).collect()))
}

fn group(uri: &str) -> S3Result<Grantee> {
    match uri {
        EVERYONE => Ok(Grantee::Everyone),
        ANY_USER => Ok(Grantee::AnyUser),
        LOG_DELIVERY => Ok(Grantee::LogDelivery),
        _ => Err(invalid("there is no such group")),
    }
}

/// A user by name, which is also how the user's mail address is known.
fn user(store: &Store, name: &str) -> S3Result<Option<Grantee>> {
    let known = store.has_user(name).map_err(|error| from_store(&error))?;
    Ok(known.then(|| Grantee::User(name.to_owned())))
}

fn user_of_id(store: &Store, id: &str) -> S3Result<Grantee> {
    user(store, id)?.ok_or_else(|| invalid("there is no such user"))
}

fn user_of_email(store: &Store, address: &str) -> S3Result<Grantee> {
    user(store, address)?.ok_or_else(|| {
        S3Error::with_message(
            S3ErrorCode::UnresolvableGrantByEmailAddress,
            "no user has this mail address for a name",
        )
    })
}

/// `id="name"`, `emailAddress="name"` or `uri="group"`.
fn grantee_of_header(store: &Store, entry: &str) -> S3Result<Grantee> {
    let malformed = || invalid("a grant must be id=, emailAddress= or uri=");
    let (kind, value) = entry.split_once('=').ok_or_else(malformed)?;
    let value = value.trim().trim_matches('"');
    match kind.trim() {
        kind if kind.eq_ignore_ascii_case("id") => user_of_id(store, value),
        kind if kind.eq_ignore_ascii_case("emailaddress") => user_of_email(store, value),
        kind if kind.eq_ignore_ascii_case("uri") => group(value),
        _ => Err(malformed()),
    }
}

fn malformed() -> S3Error {
    S3Error::with_message(S3ErrorCode::MalformedACLError, "the access control list can't be read")
}

/// A list as XML gives it. The owner stays who it is.
pub(crate) fn list_of_xml(store: &Store, policy: dto::AccessControlPolicy, owner: &str) -> S3Result<Acl> {
    let named = policy.owner.and_then(|owner| owner.id).ok_or_else(malformed)?;
    if named != owner_name(owner) {
        return Err(S3Error::with_message(S3ErrorCode::AccessDenied, "the owner can't be changed"));
    }
    let mut grants = Vec::new();
    for granted in policy.grants.unwrap_or_default() {
        let to = granted.grantee.ok_or_else(malformed)?;
        let grantee = match (to.id, to.email_address, to.uri) {
            (Some(id), _, _) => user_of_id(store, &id)?,
            (None, Some(address), _) => user_of_email(store, &address)?,
            (None, None, Some(uri)) => group(&uri)?,
            _ => return Err(malformed()),
        };
        let permission = permission_of(granted.permission.ok_or_else(malformed)?.as_str())?;
        grants.push(grant(grantee, permission));
    }
    Ok(Acl { owner: owner.to_owned(), grants: Some(grants) })
}

fn permission_of(name: &str) -> S3Result<Permission> {
    match name {
        "FULL_CONTROL" => Ok(Permission::FullControl),
        "WRITE" => Ok(Permission::Write),
        "WRITE_ACP" => Ok(Permission::WriteAcp),
        "READ" => Ok(Permission::Read),
        "READ_ACP" => Ok(Permission::ReadAcp),
        _ => Err(malformed()),
    }
}

fn permission_name(permission: Permission) -> &'static str {
    match permission {
        Permission::FullControl => "FULL_CONTROL",
        Permission::Write => "WRITE",
        Permission::WriteAcp => "WRITE_ACP",
        Permission::Read => "READ",
        Permission::ReadAcp => "READ_ACP",
    }
}

/// The grants of a list as XML shows them: those to groups first.
pub(crate) fn xml_of_list(acl: &Acl) -> Vec<dto::Grant> {
    let own = [grant(Grantee::User(acl.owner.clone()), Permission::FullControl)];
    let grants = acl.grants.as_deref().unwrap_or(&own);
    let (users, groups): (Vec<_>, Vec<_>) =
        grants.iter().partition(|grant| matches!(grant.grantee, Grantee::User(_)));
    groups.into_iter().chain(users).map(xml_of_grant).collect()
}

fn xml_of_grant(granted: &Grant) -> dto::Grant {
    let group = |uri: &str| dto::Grantee {
        display_name: None,
        email_address: None,
        id: None,
        type_: dto::Type::from_static(dto::Type::GROUP),
        uri: Some(uri.to_owned()),
    };
    let grantee = match &granted.grantee {
        Grantee::Everyone => group(EVERYONE),
        Grantee::AnyUser => group(ANY_USER),
        Grantee::LogDelivery => group(LOG_DELIVERY),
        Grantee::User(name) => dto::Grantee {
            display_name: Some(owner_name(name).to_owned()),
            email_address: None,
            id: Some(owner_name(name).to_owned()),
            type_: dto::Type::from_static(dto::Type::CANONICAL_USER),
            uri: None,
        },
    };
    let permission = Some(dto::Permission::from_static(permission_name(granted.permission)));
    dto::Grant { grantee: Some(grantee), permission }
}
