//! The gate that every operation passes: who asks, for what, and whether they may.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use http::{Method, Uri};
use objects::{Acl, BucketRef, ObjectInfo, Store, StoreError, VersionId};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{CopySource, PostObjectInput};
use s3s::path::S3Path;
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::attributes::{parse_tag_header, version};
use crate::authority::condition::Context;
use crate::authority::operations::{self, Need, Operation};
use crate::authority::{Authority, Subject};
use crate::caller::Caller;
use crate::convert::owner_name;
use crate::error::{self, from_store, invalid, not_implemented};
use crate::limits::GATHER_TIMEOUT;
use crate::policy::{self, Rules, denied, query_of};
use crate::rates::Throttle;
use crate::request_body::BodyShare;
use crate::resources::Resources;
use crate::slot::{Serving, Slot};

/// What a request turned out to be; travels with it and is read when it is finished.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account(Arc<Facts>);

#[derive(Debug, Default)]
struct Facts {
    request: String,
    address: Option<IpAddr>,
    operation: OnceLock<&'static str>,
    user: OnceLock<String>,
}

impl Account {
    pub(crate) fn new(request: &str, peer: Peer) -> Self {
        let address = Some(peer.address.to_canonical());
        Self(Arc::new(Facts { request: request.to_owned(), address, ..Facts::default() }))
    }

    /// The request's id.
    pub(crate) fn request(&self) -> &str {
        &self.0.request
    }

    /// Where it came from.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.0.address
    }

    /// The operation's name; "unknown" for what never became one.
    pub(crate) fn operation(&self) -> &'static str {
        self.0.operation.get().copied().unwrap_or("unknown")
    }

    /// Who signed it.
    pub(crate) fn user(&self) -> Option<&str> {
        self.0.user.get().map(String::as_str)
    }

    // A request is one operation of one caller: nobody sets them twice.

    fn note_operation(&self, name: &'static str) {
        let _ = self.0.operation.set(name);
    }

    fn note_signer(&self, user: &str) {
        let _ = self.0.user.set(user.to_owned());
    }
}

/// The connection that a request came over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// What was negotiated; `None` in clear.
    pub(crate) tls: Option<Tls>,
}

/// What was negotiated for a connection, by the names that the log has for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tls {
    pub(crate) version: &'static str,
    /// The suite, without the `TLS_` of its name: the library has another one for suites of TLS 1.3.
    pub(crate) cipher: &'static str,
}

/// Looks secrets up in the store.
#[derive(Debug)]
pub(crate) struct Secrets {
    pub(crate) slot: Arc<Slot>,
}

#[async_trait::async_trait]
impl S3Auth for Secrets {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        Ok(SecretKey::from(self.slot.serving()?.signer(access_key).await?.secret()))
    }
}

/// Lets through what the caller may do. What was found out on the way travels on with the request: the [`Caller`], and the
/// [`Admission`] to a bucket.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) rules: Rules,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) resources: Resources,
}

/// A request that was let through, and to what. Rights are decided about the bucket that had the name then: everything that is
/// done on account of them is done to [`Admission::bucket`], never to the name, which may be another bucket's by the time a slow body
/// has arrived.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    /// Who may do what with the bucket that the request names.
    pub(crate) authority: Arc<Authority>,
    /// The same of the bucket that holds the source of a copy.
    source: Option<Arc<Authority>>,
    request: Arc<Request>,
    /// Generation of the store's settings in which it was decided.
    settings: u64,
}

impl Admission {
    /// The bucket.
    pub(crate) fn bucket(&self) -> BucketRef {
        self.authority.bucket.reference()
    }

    /// The bucket that holds the source of a copy.
    pub(crate) fn source_bucket(&self) -> S3Result<BucketRef> {
        self.source.as_ref().map(|source| source.bucket.reference()).ok_or_else(refused)
    }

    /// Who asks.
    pub(crate) fn caller(&self) -> &Caller {
        &self.request.caller
    }

    /// What the request says that conditions of policies may ask for.
    pub(crate) fn context(&self) -> &Context {
        &self.request.context
    }

    /// Asks again, of the object that is used: another may be there since the request was let through, after a wait for memory that a
    /// client can stretch.
    pub(crate) fn check_object(&self, found: &ObjectInfo) -> S3Result<()> {
        if !self.request.needs_object(&self.authority) {
            return Ok(());
        }
        check(&self.authority, &self.request, Some(found))
    }

    /// The same of whatever a new object by `key` would take the place of.
    pub(crate) fn check_replaced(&self, store: &Store, key: &str) -> S3Result<()> {
        if !self.request.needs_object(&self.authority) {
            return Ok(());
        }
        let found = existing(store, self.bucket(), key, None)?;
        check(&self.authority, &self.request, found.as_ref())
    }

    /// The same of the source of a copy.
    pub(crate) fn check_source(&self, found: &ObjectInfo) -> S3Result<()> {
        let (source, key, version) = self.asked_source()?;
        check_source(source, (key, version), "GetObject", &self.request, Some(found))
    }

    /// Whether the tags of a copy's source may be read, which the copy would show.
    pub(crate) fn check_source_tags(&self, found: &ObjectInfo) -> S3Result<()> {
        if found.attributes.tags.is_empty() {
            return Ok(());
        }
        let (source, key, version) = self.asked_source()?;
        check_source(source, (key, version), "GetObjectTagging", &self.request, Some(found))
    }

    /// Whether the caller may put objects with this prefix into another bucket.
    pub(crate) fn may_put(&self, other: &Authority, prefix: &str) -> bool {
        let Some(operation) = operations::find("PutObject") else { return false };
        let subject = Some(Subject { key: prefix, acl: None });
        let asker = self.request.caller.asker();
        other.allows(asker, (operation, operation.action), subject, &self.request.context)
    }

    fn asked_source(&self) -> S3Result<(&Authority, &str, Option<VersionId>)> {
        match (&self.source, &self.request.source) {
            (Some(source), Some((_, key, version))) => Ok((source, key, *version)),
            _ => Err(refused()),
        }
    }

    fn is_to_the_same(&self, other: &Self) -> bool {
        let id = |authority: &Arc<Authority>| authority.bucket.id;
        id(&self.authority) == id(&other.authority)
            && self.source.as_ref().map(id) == other.source.as_ref().map(id)
    }
}

/// The store that a request is carried out on, and what it was let through to: asked for when the body has arrived, and decided
/// anew where anything that decides about requests has changed meanwhile.
pub(crate) async fn admitted<T>(request: &s3s::S3Request<T>) -> S3Result<(Serving, Admission)> {
    let serving = request.extensions.get::<Serving>().cloned().ok_or_else(error::sealed)?;
    let before = request.extensions.get::<Admission>().cloned().ok_or_else(error::sealed)?;
    let unchanged = serving.store.settings_generation() == before.settings;
    if unchanged && !(before.request.had_to_wait() && before.request.needs_object(&before.authority)) {
        return Ok((serving, before));
    }
    let signer = match &request.credentials {
        Some(credentials) => Some(serving.signer(&credentials.access_key).await?),
        None => None,
    };
    let again = Request { caller: Caller { signer }, ..Request::clone(&before.request) };
    let again = decide(&serving, Arc::new(again)).await?.ok_or_else(refused)?;
    match again.is_to_the_same(&before) {
        true => Ok((serving, again)),
        false => Err(from_store(&StoreError::NoSuchBucket)),
    }
}

/// A request as far as permission depends on it.
#[derive(Clone, Debug)]
struct Request {
    operation: &'static Operation,
    caller: Caller,
    bucket: Option<String>,
    key: Option<String>,
    version: Option<VersionId>,
    source: Option<(String, String, Option<VersionId>)>,
    /// Whom the client takes for the owner of the bucket, and of the source's.
    expected_owners: [Option<String>; 2],
    bypasses_governance: bool,
    /// Whether it may have a body.
    has_body: bool,
    /// What policies are asked about besides the operation's own action.
    besides: Vec<&'static str>,
    context: Context,
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(operation) = operations::find(context.s3_op().name()) else {
            // What is not implemented is told to users only, and before a body is read for it.
            let name = context.s3_op().name();
            return match context.credentials() {
                Some(_) => Err(not_implemented(format!("{name} is not implemented"))),
                None => Err(denied("requests must be signed")),
            };
        };
        let account = context.extensions_mut().get::<Account>().cloned().unwrap_or_default();
        account.note_operation(operation.name);
        let peer = context.extensions_mut().get::<Peer>().copied();
        let serving = context.extensions_mut().get::<Serving>().cloned().ok_or_else(error::sealed)?;
        let signer = match context.credentials() {
            // Between the signature and here the key may have been deleted.
            Some(credentials) => Some(serving.signer(&credentials.access_key).await?),
            None => None,
        };
        signer.iter().for_each(|signer| account.note_signer(&signer.user));
        let access_key = context.credentials().map(|credentials| credentials.access_key.as_str());
        self.throttle.operation(operation.name, access_key)?;
        let caller = Caller { signer };
        let request = Request::read(context, operation, peer, caller.clone())?;
        let admission = decide(&serving, Arc::new(request)).await?;
        context.extensions_mut().insert(caller);
        if let Some(admission) = admission {
            context.extensions_mut().insert(admission);
        }
        self.gather(operation, context).await
    }

    /// The key that a form names is known only now, and how it is signed.
    async fn post_object(&self, request: &mut s3s::S3Request<PostObjectInput>) -> S3Result<()> {
        if request.credentials.is_some() {
            // Version 2 names no region.
            match &request.region {
                Some(region) => policy::check_region_name(region.as_str(), &self.rules.region)?,
                None if self.rules.signature_v2 => {}
                None => return Err(policy::old_signature()),
            }
        }
        if request.credentials.is_none() && request.input.policy.is_some() {
            return Err(invalid("a form with a policy is signed: there is no signature"));
        }
        let serving = request.extensions.get::<Serving>().cloned().ok_or_else(error::sealed)?;
        let asked = Arc::new(Request::of_form(request)?);
        let admission = decide(&serving, asked).await?.ok_or_else(refused)?;
        request.extensions.insert(admission);
        Ok(())
    }
}

impl Gate {
    /// Makes room for a body that the protocol code gathers next, twice as much as it is long: it is put together from pieces, and what
    /// it says is held beside it. The room is the request's until it ends.
    async fn gather(&self, operation: &Operation, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let may_have_one = matches!(*context.method(), Method::PUT | Method::POST);
        let max = operations::gathered_bytes_max(operation.name).filter(|_| may_have_one);
        let Some(max) = max else { return Ok(()) };
        let share = context.extensions_mut().get::<Arc<BodyShare>>().cloned().ok_or_else(error::sealed)?;
        let length = share.length().ok_or(S3Error::new(S3ErrorCode::MissingContentLength))?;
        let length = usize::try_from(length).ok().filter(|length| *length <= max).ok_or_else(|| {
            let message = format!("the body of {} has at most {max} bytes", operation.name);
            S3Error::with_message(S3ErrorCode::MaxMessageLengthExceeded, message)
        })?;
        if length > 0 {
            let room = self.resources.document(2 * length).await;
            context.extensions_mut().insert(Arc::new(room));
            share.must_end_within(GATHER_TIMEOUT);
        }
        Ok(())
    }
}

impl Request {
    fn read(
        context: &S3AccessContext<'_>,
        operation: &'static Operation,
        peer: Option<Peer>,
        caller: Caller,
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
        let makes_object = matches!(operation.name, "PutObject" | "CopyObject" | "CreateMultipartUpload");
        let bypass = text("x-amz-bypass-governance-retention");
        // What a form asks for is in its fields, and read with them.
        let is_form = operation.name == "PostObject";
        let said = |name: &str| text(name).filter(|_| !is_form || !name.starts_with("x-amz-"));
        let mut conditions = conditions(context.uri(), peer);
        add_said(&mut conditions, said)?;
        if let Some(user) = caller.user() {
            add_user(&mut conditions, user);
        }
        Ok(Self {
            operation,
            caller,
            bucket,
            key,
            version: version(named.as_deref())?,
            source,
            expected_owners: ["x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"]
                .map(|name| text(name).map(str::to_owned)),
            bypasses_governance: bypass.is_some_and(|text| text.eq_ignore_ascii_case("true")),
            has_body: matches!(*context.method(), Method::PUT | Method::POST),
            besides: if makes_object { besides(text) } else { Vec::new() },
            context: conditions,
        })
    }

    /// What a form asks for: its fields say what the headers of a PutObject would.
    fn of_form(form: &s3s::S3Request<PostObjectInput>) -> S3Result<Self> {
        let said = |name: &str| said_by_form(form, name);
        let head = form.extensions.get::<Admission>().ok_or_else(error::sealed)?;
        let mut conditions = head.context().clone();
        add_said(&mut conditions, said)?;
        Ok(Self {
            operation: operations::find("PutObject").ok_or_else(refused)?,
            caller: Caller::of(form),
            bucket: Some(form.input.bucket.clone()),
            key: Some(form.input.key.clone()),
            version: None,
            source: None,
            expected_owners: [form.input.expected_bucket_owner.clone(), None],
            bypasses_governance: false,
            has_body: true,
            besides: besides(said),
            context: conditions,
        })
    }

    /// Whether a body was gathered since the request was let through, and what is known of an object is old.
    fn had_to_wait(&self) -> bool {
        self.has_body && operations::gathered_bytes_max(self.operation.name).is_some()
    }

    /// Whether what is decided depends on the object that is there.
    fn needs_object(&self, authority: &Authority) -> bool {
        let asker = self.caller.asker();
        let about_object = matches!(self.operation.need, Need::Object(_) | Need::ObjectOwner);
        let by_policy = authority.policy.is_some() || asker.policies.is_some();
        by_policy || (about_object && !authority.owns_whatever_is_in_it(asker))
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

/// Actions that a write needs for what it says of the new object's list, lock and tags ("Required permissions for Amazon S3
/// API operations", Amazon S3 User Guide).
fn besides<'a>(said: impl Fn(&str) -> Option<&'a str>) -> Vec<&'static str> {
    const ACTIONS: [(&str, &str); 10] = [
        ("x-amz-acl", "s3:PutObjectAcl"),
        ("x-amz-grant-full-control", "s3:PutObjectAcl"),
        ("x-amz-grant-read", "s3:PutObjectAcl"),
        ("x-amz-grant-read-acp", "s3:PutObjectAcl"),
        ("x-amz-grant-write", "s3:PutObjectAcl"),
        ("x-amz-grant-write-acp", "s3:PutObjectAcl"),
        ("x-amz-object-lock-mode", "s3:PutObjectRetention"),
        ("x-amz-object-lock-retain-until-date", "s3:PutObjectRetention"),
        ("x-amz-object-lock-legal-hold", "s3:PutObjectLegalHold"),
        ("x-amz-tagging", "s3:PutObjectTagging"),
    ];
    let asked = ACTIONS.into_iter().filter(|(name, _)| said(name).is_some());
    let mut actions: Vec<&'static str> = asked.map(|(_, action)| action).collect();
    actions.dedup();
    actions
}

/// The field of a form that has a header's name.
fn said_by_form<'a>(form: &'a s3s::S3Request<PostObjectInput>, name: &str) -> Option<&'a str> {
    let input = &form.input;
    match name {
        "x-amz-acl" => input.acl.as_ref().map(|acl| acl.as_str()),
        "x-amz-grant-full-control" => input.grant_full_control.as_deref(),
        "x-amz-grant-read" => input.grant_read.as_deref(),
        "x-amz-grant-read-acp" => input.grant_read_acp.as_deref(),
        "x-amz-grant-write-acp" => input.grant_write_acp.as_deref(),
        // The type of a form has no field for it: it is taken from the header.
        "x-amz-grant-write" => form.headers.get(name).and_then(|value| value.to_str().ok()),
        "x-amz-object-lock-mode" => input.object_lock_mode.as_ref().map(|mode| mode.as_str()),
        // No condition asks until when: it is there.
        "x-amz-object-lock-retain-until-date" => input.object_lock_retain_until_date.as_ref().map(|_| ""),
        "x-amz-object-lock-legal-hold" => {
            input.object_lock_legal_hold_status.as_ref().map(|hold| hold.as_str())
        }
        "x-amz-server-side-encryption" => input.server_side_encryption.as_ref().map(|name| name.as_str()),
        "x-amz-server-side-encryption-aws-kms-key-id" => input.ssekms_key_id.as_deref(),
        "x-amz-server-side-encryption-customer-algorithm" => input.sse_customer_algorithm.as_deref(),
        "x-amz-storage-class" => input.storage_class.as_ref().map(|class| class.as_str()),
        "x-amz-tagging" => input.tagging.as_deref(),
        _ => None,
    }
}

/// Adds what headers, or a form's fields, say that conditions of policies may ask for.
fn add_said<'a>(context: &mut Context, said: impl Fn(&str) -> Option<&'a str>) -> S3Result<()> {
    const HEADERS: [(&str, &str); 14] = [
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
        ("s3:x-amz-server-side-encryption-aws-kms-key-id", "x-amz-server-side-encryption-aws-kms-key-id"),
        (
            "s3:x-amz-server-side-encryption-customer-algorithm",
            "x-amz-server-side-encryption-customer-algorithm",
        ),
        ("s3:x-amz-storage-class", "x-amz-storage-class"),
    ];
    for (key, name) in HEADERS {
        if let Some(value) = said(name) {
            context.add(key, value);
        }
    }
    let tags = said("x-amz-tagging").map(parse_tag_header).transpose()?.unwrap_or_default();
    for (name, value) in &tags {
        context.add(&format!("s3:RequestObjectTag/{name}"), value);
        context.add("s3:RequestObjectTagKeys", name);
    }
    Ok(())
}

fn add_user(context: &mut Context, user: &str) {
    context.add("aws:username", user);
    context.add("aws:userid", user);
    context.add("aws:PrincipalArn", format!("arn:aws:iam:::user/{user}"));
}

/// What the rest of the request says that conditions of policies may ask for.
fn conditions(uri: &Uri, peer: Option<Peer>) -> Context {
    const PARAMETERS: [(&str, &str); 4] = [
        ("s3:prefix", "prefix"),
        ("s3:delimiter", "delimiter"),
        ("s3:max-keys", "max-keys"),
        ("s3:VersionId", "versionId"),
    ];
    let mut context = Context::default();
    for (key, name) in PARAMETERS {
        if let Some(value) = query_of(uri, name) {
            context.add(key, value);
        }
    }
    if let Some(peer) = peer {
        context.add("aws:SourceIp", peer.address.to_string());
        context.add("aws:SecureTransport", peer.tls.is_some().to_string());
    }
    context.add("aws:CurrentTime", time::OffsetDateTime::now_utc().unix_timestamp().to_string());
    context
}

fn refused() -> S3Error {
    denied("access denied")
}

/// Whether a request may be carried out, and to which bucket; `None` where it is about none that there is.
async fn decide(serving: &Serving, request: Arc<Request>) -> S3Result<Option<Admission>> {
    let settings = serving.store.settings_generation();
    let Some(name) = request.bucket.as_deref().filter(|_| request.operation.need != Need::User) else {
        let may = request.caller.asker().may(request.action(), request.bucket.as_deref(), &request.context);
        return match (may, request.caller.user()) {
            (true, _) => Ok(None),
            (false, Some(_)) => Err(refused()),
            (false, None) => Err(denied("requests must be signed")),
        };
    };
    let authority = serving.authority(name).await?;
    let [expected_owner, expected_source_owner] = &request.expected_owners;
    check_owner(&authority, expected_owner.as_deref())?;
    let deletes_many = request.operation.name == "DeleteObjects";
    if deletes_many && request.caller.user().is_none() && !authority.may_let_anybody_delete() {
        return Err(refused());
    }
    match request.key.clone().filter(|_| request.needs_object(&authority)) {
        Some(key) => {
            let (about, request) = (Arc::clone(&authority), Arc::clone(&request));
            let look_up = move |store: &Store| {
                let found = existing(store, about.bucket.reference(), &key, request.version)?;
                check(&about, &request, found.as_ref())
            };
            serving.run(look_up).await?;
        }
        None => check(&authority, &request, None)?,
    }
    let source = match request.source.clone() {
        None => None,
        Some((bucket, key, version)) => {
            let source = serving.authority(&bucket).await?;
            check_owner(&source, expected_source_owner.as_deref())?;
            let (about, request) = (Arc::clone(&source), Arc::clone(&request));
            let look_up = move |store: &Store| {
                let found = existing(store, about.bucket.reference(), &key, version)?;
                check_source(&about, (&key, version), "GetObject", &request, found.as_ref())
            };
            serving.run(look_up).await?;
            Some(source)
        }
    };
    Ok(Some(Admission { authority, source, request, settings }))
}

fn check_owner(authority: &Authority, expected: Option<&str>) -> S3Result<()> {
    match expected {
        Some(expected) if expected != owner_name(&authority.bucket.owner) => Err(refused()),
        _ => Ok(()),
    }
}

/// The object as it is now; `None` where there is none that could be read.
fn existing(
    store: &Store,
    bucket: BucketRef,
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

/// What conditions may ask for where it is about this object, and no other's tags.
fn about_existing<'a>(context: &'a Context, info: Option<&ObjectInfo>) -> Cow<'a, Context> {
    let mut context = Cow::Borrowed(context);
    for (name, value) in info.iter().flat_map(|info| &info.attributes.tags) {
        context.to_mut().add(&format!("s3:ExistingObjectTag/{name}"), value);
    }
    context
}

fn check(authority: &Authority, request: &Request, found: Option<&ObjectInfo>) -> S3Result<()> {
    let context = about_existing(&request.context, found);
    let acl = found.map(|info| &info.attributes.acl);
    let subject = request.key.as_deref().map(|key| Subject { key, acl });
    let asker = request.caller.asker();
    let may_besides = request.key.as_deref().is_none_or(|key| {
        (!request.bypasses_governance || authority.bypasses_governance(asker, key, &context))
            && request.besides.iter().all(|action| authority.allows_besides(asker, action, key, &context))
    });
    let asked = (request.operation, request.action());
    match may_besides && authority.allows(asker, asked, subject, &context) {
        true => Ok(()),
        false => Err(refused()),
    }
}

fn check_source(
    authority: &Authority,
    (key, version): (&str, Option<VersionId>),
    operation: &str,
    request: &Request,
    found: Option<&ObjectInfo>,
) -> S3Result<()> {
    let operation = operations::find(operation).ok_or_else(refused)?;
    let mut context = about_existing(&request.context, found);
    // What the query names is a version of the destination.
    context.to_mut().replace("s3:VersionId", version.map(|version| version.to_string()));
    let acl: Option<&Acl> = found.map(|info| &info.attributes.acl);
    let action = match version {
        Some(_) => operations::of_version(operation.action),
        None => operation.action,
    };
    let subject = Some(Subject { key, acl });
    match authority.allows(request.caller.asker(), (operation, action), subject, &context) {
        true => Ok(()),
        false => Err(refused()),
    }
}

/// Whether one key of many may be deleted; what the request says besides was checked with the request.
///
/// # Errors
/// Where policies count, those of looking the object up; that there is none is not one.
pub(crate) fn may_delete(
    store: &Store,
    admission: &Admission,
    (key, version): (&str, Option<VersionId>),
    bypasses_governance: bool,
) -> S3Result<bool> {
    let Admission { authority, request, .. } = admission;
    let asker = request.caller.asker();
    let operation = operations::find("DeleteObject").ok_or_else(refused)?;
    let action = match version {
        Some(_) => operations::of_version(operation.action),
        None => operation.action,
    };
    // Nothing but a policy asks what the object is like.
    let by_policy = authority.policy.is_some() || asker.policies.is_some();
    let found = if by_policy { existing(store, admission.bucket(), key, version)? } else { None };
    let mut context = about_existing(&request.context, found.as_ref());
    if by_policy {
        context.to_mut().replace("s3:VersionId", version.map(|version| version.to_string()));
    }
    let bypasses = !bypasses_governance || authority.bypasses_governance(asker, key, &context);
    let subject = Some(Subject { key, acl: None });
    Ok(bypasses && authority.allows(asker, (operation, action), subject, &context))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::condition::known_keys;

    #[test]
    fn the_keys_that_policies_of_users_may_ask_for_are_those_that_requests_have() {
        let said = |name: &str| Some(if name == "x-amz-tagging" { "name=value" } else { "said" });
        let uri = Uri::from_static("/bucket?prefix=p&delimiter=d&max-keys=1&versionId=null");
        let peer = Peer { address: IpAddr::from([127, 0, 0, 1]), tls: None };
        let mut context = conditions(&uri, Some(peer));
        add_said(&mut context, said).unwrap();
        add_user(&mut context, "bob");
        context.add("s3:ExistingObjectTag/name", "value");
        for key in known_keys() {
            let whole = if key.ends_with('/') { format!("{key}name") } else { key.to_owned() };
            assert!(context.has(&whole), "no request has {whole}");
        }
        assert_eq!(
            context.key_count(),
            known_keys().count(),
            "a request has a key that is not known: {context:?}"
        );
    }
}
