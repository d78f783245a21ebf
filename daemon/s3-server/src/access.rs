//! The gate that every operation passes: who asks, for what, and whether they may.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, Uri};
use objects::{Acl, ObjectInfo, Store, StoreError, VersionId};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{CopySource, PostObjectInput};
use s3s::path::S3Path;
use s3s::{S3Error, S3Result, s3_error};

use crate::attributes::{parse_tag_header, version};
use crate::authority::condition::Context;
use crate::authority::operations::{self, Need, Operation};
use crate::authority::{Authority, Subject};
use crate::caller::Caller;
use crate::convert::owner_name;
use crate::error::{self, from_store, invalid};
use crate::policy::{denied, query_of};
use crate::slot::{Serving, Slot};

/// What a request turned out to be; travels with it and is read when it is finished.
#[derive(Clone, Debug, Default)]
pub(crate) struct OperationName(Arc<OnceLock<&'static str>>);

impl OperationName {
    pub(crate) fn as_str(&self) -> &'static str {
        self.0.get().copied().unwrap_or("unknown")
    }
}

/// The connection that a request came over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    pub(crate) is_encrypted: bool,
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

/// Lets through what the caller may do. What was found out on the way travels on with the request: the [`Caller`], and the
/// [`Authority`] over the bucket.
#[derive(Debug)]
pub(crate) struct Gate;

/// A request as far as permission depends on it.
struct Request {
    operation: &'static Operation,
    access_key: Option<String>,
    bucket: Option<String>,
    key: Option<String>,
    version: Option<VersionId>,
    source: Option<(String, String, Option<VersionId>)>,
    /// Whom the client takes for the owner of the bucket, and of the source's.
    expected_owners: [Option<String>; 2],
    bypasses_governance: bool,
    context: Context,
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(operation) = operations::find(context.s3_op().name()) else {
            // The protocol code answers what is not implemented; that much it tells to users only.
            return match context.credentials() {
                Some(_) => Ok(()),
                None => Err(denied("requests must be signed")),
            };
        };
        if let Some(name) = context.extensions_mut().get::<OperationName>() {
            // A request is one operation: nobody sets it twice.
            let _ = name.0.set(operation.name);
        }
        let peer = context.extensions_mut().get::<Peer>().copied();
        let request = Request::read(context, operation, peer)?;
        let serving = context.extensions_mut().get::<Serving>().cloned().ok_or_else(error::sealed)?;
        let (caller, authority) = serving.run(move |store| decide(store, request)).await?;
        context.extensions_mut().insert(caller);
        if let Some(authority) = authority {
            context.extensions_mut().insert(Arc::new(authority));
        }
        Ok(())
    }

    /// The key that a form names is known only now.
    async fn post_object(&self, request: &mut s3s::S3Request<PostObjectInput>) -> S3Result<()> {
        let authority = request.extensions.get::<Arc<Authority>>().ok_or_else(error::sealed)?;
        let operation = operations::find("PutObject").ok_or_else(refused)?;
        let subject = Subject { key: &request.input.key, acl: None };
        let user = Caller::of(request).user;
        let asked = (operation, operation.action);
        match authority.allows(user.as_deref(), asked, Some(subject), &Context::default()) {
            true => Ok(()),
            false => Err(refused()),
        }
    }
}

impl Request {
    fn read(
        context: &S3AccessContext<'_>,
        operation: &'static Operation,
        peer: Option<Peer>,
    ) -> S3Result<Self> {
        let headers = context.headers();
        let (bucket, key) = match context.s3_path() {
            S3Path::Root => (None, None),
            S3Path::Bucket { bucket } => (Some(bucket.to_string()), None),
            S3Path::Object { bucket, key } => (Some(bucket.to_string()), Some(key.to_string())),
        };
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let named = query_of(context.uri(), "versionId");
        let copies = matches!(operation.name, "CopyObject" | "UploadPartCopy");
        let source = text("x-amz-copy-source").filter(|_| copies).map(source).transpose()?;
        let bypass = text("x-amz-bypass-governance-retention");
        let tags = text("x-amz-tagging").map(parse_tag_header).transpose()?.unwrap_or_default();
        Ok(Self {
            operation,
            access_key: context.credentials().map(|credentials| credentials.access_key.clone()),
            bucket,
            key,
            version: version(named.as_deref())?,
            source,
            expected_owners: ["x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"]
                .map(|name| text(name).map(str::to_owned)),
            bypasses_governance: bypass.is_some_and(|text| text.eq_ignore_ascii_case("true")),
            context: conditions(headers, context.uri(), peer, &tags),
        })
    }

    /// The action's name in a policy.
    fn action(&self) -> &'static str {
        match self.version {
            Some(_) => operations::of_version(self.operation.action),
            None => self.operation.action,
        }
    }
}

fn source(text: &str) -> S3Result<(String, String, Option<VersionId>)> {
    match CopySource::parse(text) {
        Ok(CopySource::Bucket { bucket, key, version_id }) => {
            Ok((bucket.to_string(), key.to_string(), version(version_id.as_deref())?))
        }
        _ => Err(invalid("x-amz-copy-source can't be read")),
    }
}

/// What the request says that conditions of policies may ask for.
fn conditions(headers: &HeaderMap, uri: &Uri, peer: Option<Peer>, tags: &[(String, String)]) -> Context {
    const HEADERS: [(&str, &str); 13] = [
        ("aws:Referer", "referer"),
        ("aws:UserAgent", "user-agent"),
        ("s3:x-amz-acl", "x-amz-acl"),
        ("s3:x-amz-copy-source", "x-amz-copy-source"),
        ("s3:x-amz-grant-full-control", "x-amz-grant-full-control"),
        ("s3:x-amz-grant-read", "x-amz-grant-read"),
        ("s3:x-amz-grant-read-acp", "x-amz-grant-read-acp"),
        ("s3:x-amz-grant-write", "x-amz-grant-write"),
        ("s3:x-amz-grant-write-acp", "x-amz-grant-write-acp"),
        ("s3:x-amz-metadata-directive", "x-amz-metadata-directive"),
        ("s3:x-amz-server-side-encryption", "x-amz-server-side-encryption"),
        (
            "s3:x-amz-server-side-encryption-customer-algorithm",
            "x-amz-server-side-encryption-customer-algorithm",
        ),
        ("s3:x-amz-storage-class", "x-amz-storage-class"),
    ];
    const PARAMETERS: [(&str, &str); 4] = [
        ("s3:prefix", "prefix"),
        ("s3:delimiter", "delimiter"),
        ("s3:max-keys", "max-keys"),
        ("s3:VersionId", "versionId"),
    ];
    let mut context = Context::default();
    for (key, name) in HEADERS {
        if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) {
            context.add(key, value);
        }
    }
    for (key, name) in PARAMETERS {
        if let Some(value) = query_of(uri, name) {
            context.add(key, value);
        }
    }
    for (name, value) in tags {
        context.add(&format!("s3:RequestObjectTag/{name}"), value);
        context.add("s3:RequestObjectTagKeys", name);
    }
    if let Some(peer) = peer {
        context.add("aws:SourceIp", peer.address.to_string());
        context.add("aws:SecureTransport", peer.is_encrypted.to_string());
    }
    context.add("aws:CurrentTime", time::OffsetDateTime::now_utc().unix_timestamp().to_string());
    context
}

fn refused() -> S3Error {
    denied("access denied")
}

fn decide(store: &Store, mut request: Request) -> S3Result<(Caller, Option<Authority>)> {
    let user = match &request.access_key {
        None => None,
        Some(access_key) => {
            // Between the signature and here the key may have been deleted.
            let found = store.secret(access_key).map_err(|error| from_store(&error))?;
            Some(found.ok_or_else(|| s3_error!(InvalidAccessKeyId, "{}", StoreError::NoSuchAccessKey))?.0)
        }
    };
    let caller = Caller { user };
    let user = caller.user.as_deref();
    if let Some(user) = user {
        request.context.add("aws:username", user);
        request.context.add("aws:userid", user);
        request.context.add("aws:PrincipalArn", format!("arn:aws:iam:::user/{user}"));
    }
    let Some(name) = request.bucket.as_deref().filter(|_| request.operation.need != Need::User) else {
        return if user.is_some() { Ok((caller, None)) } else { Err(denied("requests must be signed")) };
    };
    let authority = authority_over(store, name)?;
    let [expected_owner, expected_source_owner] = std::mem::take(&mut request.expected_owners);
    check_owner(&authority, expected_owner.as_deref())?;
    if !check(store, &authority, user, &mut request)? {
        return Err(refused());
    }
    if let Some((bucket, key, version)) = &request.source {
        let other = authority_over(store, bucket)?;
        check_owner(&other, expected_source_owner.as_deref())?;
        if !may_read(store, &other, user, (key, *version), &mut request.context)? {
            return Err(refused());
        }
    }
    Ok((caller, Some(authority)))
}

fn check_owner(authority: &Authority, expected: Option<&str>) -> S3Result<()> {
    match expected {
        Some(expected) if expected != owner_name(&authority.bucket.owner) => Err(refused()),
        _ => Ok(()),
    }
}

pub(crate) fn authority_over(store: &Store, bucket: &str) -> S3Result<Authority> {
    let (bucket, documents) = store.bucket_with_documents(bucket).map_err(|error| from_store(&error))?;
    Authority::read(bucket, &documents)
}

/// The object as it is now; `None` where there is none that could be read.
fn existing(
    store: &Store,
    bucket: &str,
    key: &str,
    version: Option<VersionId>,
) -> S3Result<Option<ObjectInfo>> {
    match store.head_object(bucket, key, version) {
        Ok(info) => Ok(Some(info)),
        Err(StoreError::NoSuchKey | StoreError::NoSuchVersion | StoreError::IsDeleteMarker { .. }) => {
            Ok(None)
        }
        Err(error) => Err(from_store(&error)),
    }
}

fn add_existing_tags(context: &mut Context, info: Option<&ObjectInfo>) {
    for (name, value) in info.iter().flat_map(|info| &info.attributes.tags) {
        context.add(&format!("s3:ExistingObjectTag/{name}"), value);
    }
}

fn check(store: &Store, authority: &Authority, user: Option<&str>, request: &mut Request) -> S3Result<bool> {
    let action = request.action();
    let operation = request.operation;
    let about_object = matches!(operation.need, Need::Object(_) | Need::ObjectOwner);
    let found = match &request.key {
        Some(key) if about_object || authority.policy.is_some() => {
            existing(store, &authority.bucket.name, key, request.version)?
        }
        _ => None,
    };
    add_existing_tags(&mut request.context, found.as_ref());
    let acl = found.as_ref().map(|info| &info.attributes.acl);
    let subject = request.key.as_deref().map(|key| Subject { key, acl });
    if let (true, Some(key)) = (request.bypasses_governance, &request.key)
        && !authority.bypasses_governance(user, key, &request.context)
    {
        return Ok(false);
    }
    Ok(authority.allows(user, (operation, action), subject, &request.context))
}

fn may_read(
    store: &Store,
    authority: &Authority,
    user: Option<&str>,
    (key, version): (&str, Option<VersionId>),
    context: &mut Context,
) -> S3Result<bool> {
    let operation = operations::find("GetObject").ok_or_else(refused)?;
    let found = existing(store, &authority.bucket.name, key, version)?;
    add_existing_tags(context, found.as_ref());
    let acl: Option<&Acl> = found.as_ref().map(|info| &info.attributes.acl);
    let action = match version {
        Some(_) => operations::of_version(operation.action),
        None => operation.action,
    };
    Ok(authority.allows(user, (operation, action), Some(Subject { key, acl }), context))
}

/// Whether one key of many may be deleted; what the request says besides was checked with the request.
pub(crate) fn may_delete(
    authority: &Authority,
    user: Option<&str>,
    (key, version): (&str, Option<VersionId>),
    bypasses_governance: bool,
) -> bool {
    let Some(operation) = operations::find("DeleteObject") else { return false };
    let context = Context::default();
    let action = match version {
        Some(_) => operations::of_version(operation.action),
        None => operation.action,
    };
    let bypasses = !bypasses_governance || authority.bypasses_governance(user, key, &context);
    bypasses && authority.allows(user, (operation, action), Some(Subject { key, acl: None }), &context)
}
