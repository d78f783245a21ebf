//! One request, from head to response.
//!
//! The order: is there a store; are there too many requests; does the policy allow it; does the protocol code (signature, parsing,
//! operation). What was
//! begun while a store was served ends with that store: sealed meanwhile, the client is told so, whatever the operation
//! would have answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::host::{MultiDomain, S3Host, VirtualHost};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3Error, S3ErrorCode, S3Result};

use crate::access::{Account, Gate, Peer, Secrets};
use crate::access_log::{Answer, Entry};
use crate::activity::Activity;
use crate::backend::Backend;
use crate::cors;
use crate::error;
use crate::limits::{
    CLOCK_SKEW_SECONDS_MAX, DRAIN_BYTES_MAX, DRAIN_TIMEOUT, FORM_FIELD_BYTES_MAX, FORM_FIELDS_BYTES_MAX,
    FORM_FILE_BYTES_MAX, FORM_PARTS_MAX, FORM_PIECE_BYTES, FORM_TIMEOUT, XML_BYTES_MAX,
};
use crate::metrics::{Finished, Metrics};
use crate::policy::{self, Rules, Signed, percent_decode};
use crate::rates::Throttle;
use crate::request_body::{BodyShare, RequestBody, Shape};
use crate::resources::{Resources, Room};
use crate::response_body::ResponseBody;
use crate::signature_v2;
use crate::slot::{Serving, Slot};

/// The domains that are served as virtual hosts.
#[derive(Clone)]
struct Domains(Arc<MultiDomain>);

impl S3Host for Domains {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        self.0.parse_host_header(host)
    }
}

/// Carries out requests; shared by all connections.
pub(crate) struct Service {
    protocol: S3Service,
    domains: Option<Domains>,
    slot: Arc<Slot>,
    resources: Resources,
    rules: Rules,
    throttle: Arc<Throttle>,
    metrics: Arc<Metrics>,
    request_ids: RequestIds,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// Ids that a client can quote and a log line has: unique while the process lives, different after a restart.
#[derive(Debug)]
struct RequestIds {
    base: u64,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        let mut base = [0; 8];
        getrandom::fill(&mut base).expect("the kernel's random source never fails once it is seeded");
        Self { base: u64::from_le_bytes(base), next: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        // An odd multiplier is a bijection of 64 bits: no two numbers meet.
        let number = self.next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{:016X}", self.base ^ number)
    }
}

impl Service {
    pub(crate) fn new(
        slot: Arc<Slot>,
        rules: Rules,
        domains: Option<MultiDomain>,
        webhooks: Arc<[String]>,
        throttle: Throttle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let throttle = Arc::new(throttle);
        let resources = Resources::new();
        let backend = Backend { region: rules.region.clone(), resources: resources.clone(), webhooks };
        let mut builder = S3ServiceBuilder::new(backend);
        let mut config = S3Config::default();
        config.xml_max_body_size = XML_BYTES_MAX;
        config.post_object_max_file_size = FORM_FILE_BYTES_MAX;
        config.form_max_fields_size = FORM_FIELDS_BYTES_MAX + FORM_PIECE_BYTES;
        config.form_max_field_size = FORM_FIELD_BYTES_MAX;
        config.form_max_parts = FORM_PARTS_MAX;
        config.presigned_url_max_skew_time_secs = CLOCK_SKEW_SECONDS_MAX;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        builder.set_auth(Secrets { slot: Arc::clone(&slot) });
        builder.set_access(Gate {
            rules: rules.clone(),
            throttle: Arc::clone(&throttle),
            resources: resources.clone(),
        });
        let domains = domains.map(|domains| Domains(Arc::new(domains)));
        if let Some(domains) = domains.clone() {
            builder.set_host(domains);
        }
        Self {
            protocol: builder.build(),
            domains,
            slot,
            resources,
            rules,
            throttle,
            metrics,
            request_ids: RequestIds::new(),
        }
    }

    /// Lets go of what is kept for the next body.
    pub(crate) fn release_buffers(&self) {
        self.resources.release_buffers();
    }

    /// Answers one request of the connection that `activity` belongs to.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        activity: &Arc<Activity>,
        peer: Peer,
    ) -> Response<ResponseBody> {
        let began = Instant::now();
        let in_flight = activity.begin();
        let request_id = self.request_ids.next();
        let is_head = request.method() == http::Method::HEAD;
        let is_form = request.method() == http::Method::POST;
        let is_http1 = request.version() < http::Version::HTTP_2;
        let waits = request.headers().contains_key(http::header::EXPECT);
        let account = Account::new(&request_id, peer);
        let share = Arc::new(BodyShare::of(request.body()));
        let cross_origin = self.cross_origin(&request);
        let Carried { result, serving, mut entry } = self.carry_out(request, peer, &account, &share).await;
        // Carried out while the key was there; it may be gone since.
        let lent = |_: &Response<Body>| serving.as_ref().is_none_or(|serving| serving.store.check().is_ok());
        let result = result.and_then(|done| if lent(&done) { Ok(done) } else { Err(error::sealed()) });
        let mut response = result.unwrap_or_else(|error| error_response(error, &request_id));
        if let (Some((bucket, question)), Some(serving)) = (cross_origin, &serving) {
            response.headers_mut().extend(cors::headers(serving, bucket, &question).await);
        }
        if is_form && response.status() == http::StatusCode::BAD_REQUEST {
            response = refused_by_policy(response);
        }
        let status = response.status();
        if status.as_u16() >= 400 {
            response = with_request_id(response, &request_id);
        }
        if account.operation() == "GetObjectAttributes" && status.is_success() {
            response = without_quotes(response);
        }
        // A client that waits for "100 Continue" and gets an error instead sends no body: what came next on the
        // connection would be taken for it.
        let unsent = status.as_u16() >= 400 && waits && share.received() == 0;
        if status.as_u16() >= 400 && !unsent {
            drain(&share);
        }
        if let Some(entry) = &mut entry {
            let turnaround = share.ended().unwrap_or(began).elapsed();
            entry.answer = answered(&response, (&request_id, account.user()), turnaround);
        }
        let (mut head, body) = response.into_parts();
        if let Ok(id) = HeaderValue::from_str(&request_id) {
            head.headers.insert("x-amz-request-id", id);
        }
        if unsent && is_http1 {
            // Said, so that the client does not send its next request on a connection that is about to end.
            head.headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        head.headers.insert(http::header::SERVER, HeaderValue::from_static("Nightlatch"));
        let finished = Finished {
            operation: account.operation(),
            status: status.as_u16(),
            received: share.received(),
            sent: 0,
            began,
            complete: is_head,
        };
        tracing::debug!(
            request_id,
            operation = finished.operation,
            status = finished.status,
            "request answered"
        );
        let room = head.extensions.remove::<Room>();
        if let (Some(room), Some(text)) = (&room, body.bytes()) {
            room.shrink_to(text.len());
        }
        let body = if status == http::StatusCode::NOT_MODIFIED { Body::empty() } else { body };
        Response::from_parts(
            head,
            ResponseBody::new(
                body,
                serving.filter(|_| status.is_success()),
                in_flight,
                Arc::clone(&self.metrics),
                finished,
                (entry, room),
            ),
        )
    }

    /// What a page of another origin asks for, but for questions that are answered by themselves.
    fn cross_origin<B>(&self, request: &Request<B>) -> Option<(String, cors::Question)> {
        if request.method() == http::Method::OPTIONS {
            return None;
        }
        let question = cors::Question::of(request.method(), request.headers())?;
        let (bucket, _) = named(request.headers(), request.uri(), self.domains.as_ref())?;
        Some((bucket, question))
    }

    /// The request's line in its bucket's access log, where the bucket wants one.
    async fn entry(&self, serving: &Serving, head: &Parts, peer: Peer) -> Option<Box<Entry>> {
        let (bucket, key) = named(&head.headers, &head.uri, self.domains.as_ref())?;
        let authority = serving.authority(&bucket).await.ok()?;
        Entry::begin((&serving.log, &self.metrics), authority, (head, key), peer)
    }

    async fn carry_out(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        account: &Account,
        share: &Arc<BodyShare>,
    ) -> Carried {
        let (mut head, incoming) = request.into_parts();
        let is_form = policy::is_form(&head);
        let shape = match is_form {
            true => Shape::Form,
            false if is_chunked(&head) => Shape::Chunked,
            false => Shape::Plain,
        };
        let body = RequestBody::new(incoming, Arc::clone(share), shape);
        let serving = match self.slot.serving() {
            Ok(serving) => serving,
            Err(sealed) => return Carried { result: Err(sealed), serving: None, entry: None },
        };
        if let Err(refused) = self.throttle.address(peer.address) {
            return Carried { result: Err(refused), serving: Some(serving), entry: None };
        }
        let entry = self.entry(&serving, &head, peer).await;
        let carried = |result, serving| Carried { result, serving: Some(serving), entry };
        if head.method == http::Method::OPTIONS {
            let answer = match named(&head.headers, &head.uri, self.domains.as_ref()) {
                Some((bucket, _)) => cors::preflight(&serving, bucket, &head).await,
                None => Err(S3Error::new(S3ErrorCode::MethodNotAllowed)),
            };
            return carried(answer, serving);
        }
        if let Err(refused) = self.check(&mut head, &serving).await {
            return carried(Err(refused), serving);
        }
        head.extensions.insert(peer);
        let _form = match is_form {
            true => {
                let turn = self.resources.form().await;
                share.must_end_within(FORM_TIMEOUT);
                Some(turn)
            }
            false => None,
        };
        head.extensions.insert(Arc::clone(share));
        head.extensions.insert(account.clone());
        head.extensions.insert(serving.clone());
        let request = Request::from_parts(head, Body::http_body(body));
        let result = tokio::select! {
            biased;
            result = self.protocol.call(request) => result.map_err(|error| {
                tracing::error!(?error, "a request could not be answered");
                S3Error::new(S3ErrorCode::InternalError)
            }),
            () = serving.sealed.cancelled() => Err(error::sealed()),
        };
        // Said as it is, whatever the protocol code makes of a body that breaks off.
        let late = || S3Error::with_message(S3ErrorCode::RequestTimeout, "the body did not arrive in time");
        let result = result.and_then(|done| if share.ended_early() { Err(late()) } else { Ok(done) });
        carried(result, serving)
    }

    async fn check(&self, head: &mut Parts, serving: &Serving) -> S3Result<()> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        match policy::check(head, &self.rules, now)? {
            Signed::V4 | Signed::Anonymous | Signed::Form => Ok(()),
            Signed::V2 { access_key } => {
                let names_bucket = head.uri.path().trim_start_matches('/').split_once('/').is_none();
                let in_path = named(&head.headers, &head.uri, self.domains.as_ref())
                    .is_some_and(|(bucket, _)| head.uri.path().trim_start_matches('/') == bucket);
                if names_bucket && in_path {
                    let signer = serving.signer(&access_key).await?;
                    let path = signature_v2::signed_bucket_path(head, signer.secret())?;
                    head.uri = with_path(&head.uri, &path);
                }
                Ok(())
            }
            Signed::PresignedV2 { access_key, signature, expires } => {
                let signer = serving.signer(&access_key).await?;
                signature_v2::verifies(head, &expires, &signature, signer.secret())
            }
        }
    }
}

/// The same, under another path.
fn with_path(uri: &http::Uri, path: &str) -> http::Uri {
    let mut parts = uri.clone().into_parts();
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    parts.path_and_query = format!("{path}{query}").parse().ok();
    http::Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// What became of a request.
struct Carried {
    result: S3Result<Response<Body>>,
    /// What served it, unless the node was sealed.
    serving: Option<Serving>,
    entry: Option<Box<Entry>>,
}

/// What the log says of an answer.
fn answered(
    response: &Response<Body>,
    (request_id, user): (&str, Option<&str>),
    turnaround: Duration,
) -> Answer {
    let header = |name: http::HeaderName| response.headers().get(name)?.to_str().ok();
    let range = header(http::header::CONTENT_RANGE).and_then(|range| range.rsplit_once('/'));
    let length = range.map(|(_, whole)| whole).or_else(|| header(http::header::CONTENT_LENGTH));
    let is_about_object = header(http::header::ETAG).is_some();
    let code = || {
        let text = response.body().bytes().and_then(|text| String::from_utf8(text.to_vec()).ok())?;
        Some(text.split_once("<Code>")?.1.split_once("</Code>")?.0.to_owned())
    };
    Answer {
        request_id: request_id.to_owned(),
        user: user.map(str::to_owned),
        error: if response.status().as_u16() >= 400 { code() } else { None },
        version: header(http::HeaderName::from_static("x-amz-version-id")).map(str::to_owned),
        object_bytes: length.filter(|_| is_about_object).and_then(|length| length.parse().ok()),
        turnaround,
    }
}

/// The bucket that a request names, in its host or in its path, and the key in it, which may be empty.
fn named(headers: &http::HeaderMap, uri: &http::Uri, domains: Option<&Domains>) -> Option<(String, String)> {
    let host = headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| uri.authority().map(http::uri::Authority::as_str));
    let virtual_host = domains.zip(host).and_then(|(domains, host)| domains.parse_host_header(host).ok());
    let path = uri.path().strip_prefix('/').unwrap_or_default();
    let text = |encoded: &str| percent_decode(&encoded.replace('+', "%2B"));
    if let Some(bucket) = virtual_host.as_ref().and_then(|host| host.bucket()) {
        return Some((bucket.to_owned(), text(path)?));
    }
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    Some((text(bucket).filter(|name| !name.is_empty())?, text(key)?))
}

fn is_chunked(head: &Parts) -> bool {
    head.headers.get("x-amz-content-sha256").is_some_and(|value| value.as_bytes().starts_with(b"STREAMING-"))
}

fn error_response(mut error: S3Error, request_id: &str) -> Response<Body> {
    error.set_request_id(request_id);
    error.to_http_response().unwrap_or_else(|_| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// Says in the body of an error, too, which request it is about.
fn with_request_id(response: Response<Body>, request_id: &str) -> Response<Body> {
    const END: &[u8] = b"</Error>";
    let (mut head, body) = response.into_parts();
    let text = body.bytes().filter(|text| text.ends_with(END) && !contains(text, b"<RequestId>"));
    let Some(text) = text else { return Response::from_parts(head, body) };
    let id = format!("<RequestId>{request_id}</RequestId>");
    let whole = [&text[..text.len() - END.len()], id.as_bytes(), END].concat();
    head.headers.remove(http::header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(whole))
}

/// A form that its own policy does not allow is denied (S3); the protocol code takes the policy for malformed.
fn refused_by_policy(response: Response<Body>) -> Response<Body> {
    const CODE: &str = "<Code>InvalidPolicyDocument</Code>";
    const REASONS: [&str; 2] = ["<Message>Policy condition ", "<Message>Bucket in form field "];
    let (mut head, body) = response.into_parts();
    let text = body.bytes().and_then(|text| String::from_utf8(text.to_vec()).ok());
    let refused = |text: &String| text.contains(CODE) && REASONS.iter().any(|reason| text.contains(reason));
    let Some(text) = text.filter(refused) else { return Response::from_parts(head, body) };
    head.status = http::StatusCode::FORBIDDEN;
    head.headers.remove(http::header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(text.replace(CODE, "<Code>AccessDenied</Code>")))
}

/// S3 puts no quotes around this one entity tag; the protocol code always does.
fn without_quotes(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    let Some(text) = body.bytes().and_then(|text| String::from_utf8(text.to_vec()).ok()) else {
        return Response::from_parts(head, body);
    };
    head.headers.remove(http::header::CONTENT_LENGTH);
    let text = text.replace("<ETag>\"", "<ETag>").replace("\"</ETag>", "</ETag>");
    Response::from_parts(head, Body::from(text))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Reads on for a while after a failure: a client that is still sending would otherwise find its connection reset
/// instead of the reason.
fn drain(share: &BodyShare) {
    let Some(mut rest) = share.take_rest() else { return };
    tokio::spawn(tokio::time::timeout(DRAIN_TIMEOUT, async move {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = rest.frame().await {
            let Some(still) = left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len)) else { return };
            left = still;
        }
    }));
}
