//! One request, from head to response.
//!
//! The order: is there a store; does the policy allow it; does the protocol code (signature, parsing, operation). What was
//! begun while a store was served ends with that store: sealed meanwhile, the client is told so, whatever the operation
//! would have answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::host::MultiDomain;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3Error, S3ErrorCode, S3Result};

use crate::access::{OperationName, Secrets, SignedOnly};
use crate::activity::Activity;
use crate::backend::Backend;
use crate::error;
use crate::limits::{CLOCK_SKEW_SECONDS_MAX, DRAIN_BYTES_MAX, DRAIN_TIMEOUT, XML_BYTES_MAX};
use crate::metrics::{Finished, Metrics};
use crate::policy::{self, Signed};
use crate::request_body::{BodyShare, RequestBody};
use crate::resources::Resources;
use crate::response_body::ResponseBody;
use crate::signature_v2;
use crate::slot::{Serving, Slot};

/// Carries out requests; shared by all connections.
pub(crate) struct Service {
    protocol: S3Service,
    secrets: Secrets,
    slot: Arc<Slot>,
    resources: Resources,
    region: String,
    metrics: Arc<Metrics>,
    request_ids: RequestIds,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("region", &self.region).finish_non_exhaustive()
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
        region: String,
        domains: Option<MultiDomain>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let resources = Resources::new();
        let backend = Backend { region: region.clone(), resources: resources.clone() };
        let mut builder = S3ServiceBuilder::new(backend);
        let mut config = S3Config::default();
        config.xml_max_body_size = XML_BYTES_MAX;
        config.presigned_url_max_skew_time_secs = CLOCK_SKEW_SECONDS_MAX;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        builder.set_auth(Secrets { slot: Arc::clone(&slot) });
        builder.set_access(SignedOnly);
        if let Some(domains) = domains {
            builder.set_host(domains);
        }
        let secrets = Secrets { slot: Arc::clone(&slot) };
        Self {
            protocol: builder.build(),
            secrets,
            slot,
            resources,
            region,
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
    ) -> Response<ResponseBody> {
        let began = Instant::now();
        let in_flight = activity.begin();
        let request_id = self.request_ids.next();
        let is_head = request.method() == http::Method::HEAD;
        let waits = request.headers().contains_key(http::header::EXPECT);
        let operation = OperationName::default();
        let share = Arc::new(BodyShare::default());
        let (result, serving) = self.carry_out(request, &operation, &share).await;
        let response = result.unwrap_or_else(|error| error_response(error, &request_id));
        let status = response.status();
        // A client that waits for "100 Continue" and gets an error instead sends no body: what came next on the
        // connection would be taken for it.
        if status.as_u16() >= 400 && (!waits || share.received() > 0) {
            drain(&share);
        }
        let (mut head, body) = response.into_parts();
        if let Ok(id) = HeaderValue::from_str(&request_id) {
            head.headers.insert("x-amz-request-id", id);
        }
        head.headers.insert(http::header::SERVER, HeaderValue::from_static("Nightlatch"));
        let finished = Finished {
            operation: operation.as_str(),
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
        let body = if status == http::StatusCode::NOT_MODIFIED { Body::empty() } else { body };
        let sealed = serving.map(|serving| serving.sealed.cancelled_owned());
        Response::from_parts(
            head,
            ResponseBody::new(body, sealed, in_flight, Arc::clone(&self.metrics), finished),
        )
    }

    async fn carry_out(
        &self,
        request: Request<Incoming>,
        operation: &OperationName,
        share: &Arc<BodyShare>,
    ) -> (S3Result<Response<Body>>, Option<Serving>) {
        let (mut head, incoming) = request.into_parts();
        let body = RequestBody::new(incoming, Arc::clone(share), is_chunked(&head));
        let serving = match self.slot.serving() {
            Ok(serving) => serving,
            Err(sealed) => return (Err(sealed), None),
        };
        if let Err(refused) = self.check(&head).await {
            return (Err(refused), None);
        }
        head.extensions.insert(operation.clone());
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
        (result, Some(serving))
    }

    async fn check(&self, head: &Parts) -> S3Result<()> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        match policy::check(head, &self.region, now)? {
            Signed::V4 => Ok(()),
            Signed::PresignedV2 { access_key, signature, expires } => {
                let secret = self.secrets.find(&access_key).await?;
                signature_v2::verifies(head, &expires, &signature, secret.expose())
            }
        }
    }
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
