//! The endpoints over mutual TLS. Each is added with its rule from [`crate::access::TABLE`], which is asked before
//! the handler runs and before the body is read.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Extension, FromRequest, Path, Query, RawPathParams, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Json, Router};
use identity::{PeerIdentity, Problem};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use units::{PoolId, VolumeId};

use crate::access::{Rule, Verb, rule};
use crate::api;
use crate::control::{Act, ControlError, ErrorKind, NodeControl};
use crate::transfer;

/// The administrative interface of `node`. Requests must carry a [`PeerIdentity`] extension.
pub fn control_router<N: NodeControl>(node: Arc<N>) -> Router {
    let routes: [(Verb, &str, MethodRouter<Arc<N>>); 50] = [
        (Verb::Get, "/v1/status", routing::get(status::<N>)),
        (Verb::Get, "/v1/hardware", routing::get(hardware::<N>)),
        (Verb::Post, "/v1/disks/{disk}/locate", routing::post(locate::<N>)),
        (Verb::Get, "/v1/pools", routing::get(pools::<N>)),
        (Verb::Post, "/v1/pools/{pool}/grow", routing::post(grow_pool::<N>)),
        (Verb::Post, "/v1/pools/{pool}/replace", routing::post(replace_pool::<N>)),
        (Verb::Get, "/v1/pools/{pool}/check", routing::get(check_pool::<N>)),
        (Verb::Post, "/v1/pools/{pool}/scrub", routing::post(scrub_pool::<N>)),
        (Verb::Get, "/v1/pools/{pool}/wanted", routing::get(transfer::wanted::<N>)),
        (Verb::Post, "/v1/pools/{pool}/heal/{offset}", routing::post(transfer::heal::<N>)),
        (Verb::Post, "/v1/sectors/find", routing::post(transfer::find::<N>)),
        (Verb::Get, "/v1/volumes", routing::get(volumes::<N>)),
        (Verb::Post, "/v1/volumes", routing::post(create_volume::<N>)),
        (Verb::Patch, "/v1/volumes/{volume}", routing::patch(resize_volume::<N>)),
        (Verb::Delete, "/v1/volumes/{volume}", routing::delete(delete_volume::<N>)),
        (Verb::Post, "/v1/volumes/{volume}/limits", routing::post(limit_volume::<N>)),
        (Verb::Get, "/v1/volumes/{volume}/access", routing::get(volume_access::<N>)),
        (Verb::Post, "/v1/volumes/{volume}/access", routing::post(set_volume_access::<N>)),
        (Verb::Post, "/v1/volumes/{volume}/rollback", routing::post(roll_back_volume::<N>)),
        (Verb::Get, "/v1/snapshots", routing::get(snapshots::<N>)),
        (Verb::Post, "/v1/snapshots", routing::post(create_snapshot::<N>)),
        (Verb::Delete, "/v1/snapshots/{snapshot}", routing::delete(delete_snapshot::<N>)),
        (Verb::Post, "/v1/snapshots/{snapshot}/lock", routing::post(lock_snapshot::<N>)),
        (Verb::Get, "/v1/replication", routing::get(replication::<N>)),
        (Verb::Get, "/v1/schedules", routing::get(schedules::<N>)),
        (Verb::Post, "/v1/volumes/{volume}/schedule", routing::post(set_schedule::<N>)),
        (Verb::Delete, "/v1/volumes/{volume}/schedule", routing::delete(remove_schedule::<N>)),
        (Verb::Post, "/v1/volumes/{volume}/schedule/acknowledge", routing::post(acknowledge_rewrite::<N>)),
        (Verb::Post, "/v1/snapshots/{snapshot}/clone", routing::post(clone_snapshot::<N>)),
        (Verb::Get, "/v1/snapshots/{snapshot}/manifest", routing::get(transfer::manifest::<N>)),
        (Verb::Get, "/v1/snapshots/{snapshot}/portion", routing::get(transfer::portion::<N>)),
        (Verb::Post, "/v1/replicas", routing::post(transfer::begin::<N>)),
        // The listener's own limit holds, which is larger.
        (
            Verb::Post,
            "/v1/replicas/{volume}/{snapshot}",
            routing::post(transfer::receive::<N>).layer(DefaultBodyLimit::disable()),
        ),
        (Verb::Post, "/v1/replicas/{volume}/{snapshot}/end", routing::post(transfer::end::<N>)),
        (Verb::Post, "/v1/replicas/{volume}/promote", routing::post(transfer::promote::<N>)),
        (Verb::Get, "/v1/buckets", routing::get(buckets::<N>)),
        (Verb::Post, "/v1/buckets", routing::post(create_bucket::<N>)),
        (Verb::Delete, "/v1/buckets/{bucket}", routing::delete(delete_bucket::<N>)),
        (Verb::Get, "/v1/users", routing::get(access_keys::<N>)),
        (Verb::Post, "/v1/users", routing::post(create_user::<N>)),
        (Verb::Delete, "/v1/users/{user}", routing::delete(delete_user::<N>)),
        (Verb::Delete, "/v1/access-keys/{access_key}", routing::delete(delete_access_key::<N>)),
        (Verb::Get, "/v1/identities", routing::get(identities::<N>)),
        (Verb::Post, "/v1/identities", routing::post(change_identity::<N>)),
        (Verb::Get, "/v1/webhooks", routing::get(webhooks::<N>)),
        (Verb::Post, "/v1/webhooks", routing::post(change_webhook::<N>)),
        (Verb::Get, "/v1/audit", routing::get(audit::<N>)),
        (Verb::Get, "/v1/audit/digests", routing::get(audit_digests::<N>)),
        (Verb::Post, "/v1/audit/witnessed", routing::post(witness::<N>)),
        (Verb::Post, "/v1/wipe", routing::post(wipe::<N>)),
    ];
    let mut router = Router::new();
    for (verb, path, handler) in routes {
        let rule = rule(verb, path).expect("every route has a rule in access::TABLE");
        let gate = Gate { rule, node: Arc::clone(&node) };
        router = router.route(path, handler.layer(middleware::from_fn_with_state(gate, pass)));
    }
    router.fallback(unknown).with_state(node)
}

/// What stands before a handler.
struct Gate<N> {
    rule: &'static Rule,
    node: Arc<N>,
}

impl<N> Clone for Gate<N> {
    fn clone(&self) -> Self {
        Self { rule: self.rule, node: Arc::clone(&self.node) }
    }
}

/// Endpoints whose calls come in thousands; their beginning and end are written down.
const UNLISTED: &[&str] = &["/v1/replicas/{volume}/{snapshot}", "/v1/sectors/find", "/v1/audit/witnessed"];

/// Parameters of paths that are ids and say nothing of what customers store.
const IDS: &[&str] = &["pool", "volume", "snapshot", "disk"];

/// Lets the request through when the peer's role is in the rule. What changes something, and what is refused to a role, is
/// written down.
async fn pass<N: NodeControl>(
    State(gate): State<Gate<N>>,
    path: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    let rule = gate.rule;
    let Some(peer) = request.extensions().get::<PeerIdentity>().cloned() else {
        return refusal(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "no client certificate came with the request",
        );
    };
    let allowed = rule.roles.contains(&peer.role);
    let response = if allowed { next.run(request).await } else { forbidden(rule, &peer) };
    let listed = rule.verb != Verb::Get && !UNLISTED.contains(&rule.path);
    if listed || !allowed {
        let about = path.iter().filter(|(name, _)| IDS.contains(name));
        let act = Act {
            by: format!("{}/{}", peer.role, peer.name),
            endpoint: format!("{} {}", rule.verb.as_str(), rule.path),
            about: about.map(|(_, value)| value.to_owned()).collect(),
            status: response.status().as_u16(),
        };
        gate.node.note_act(act).await;
    }
    response
}

fn forbidden(rule: &Rule, peer: &PeerIdentity) -> Response {
    let needed: Vec<_> = rule.roles.iter().map(ToString::to_string).collect();
    let message = format!("the role {} may not do this; it takes {}", peer.role, needed.join(" or "));
    refusal(StatusCode::FORBIDDEN, "forbidden", &message)
}

fn refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, Json(Problem::new(kind, message, "use a certificate that has the role"))).into_response()
}

async fn unknown() -> Response {
    let problem = Problem::new(
        "not-found",
        "there is no such endpoint",
        "see openapi.json, and compare the versions of both sides",
    );
    (StatusCode::NOT_FOUND, Json(problem)).into_response()
}

/// An answer, or the refusal as JSON.
pub(crate) struct Answer<T>(pub(crate) Result<T, ControlError>);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        match self.0 {
            Ok(body) => Json(body).into_response(),
            Err(error) => {
                let status =
                    StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (status, Json(error.problem())).into_response()
            }
        }
    }
}

/// A JSON body whose refusal is a [`Problem`] too.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Answer<api::Done>;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(invalid_body(&rejection)),
        }
    }
}

fn invalid_body(rejection: &JsonRejection) -> Answer<api::Done> {
    let next = "see openapi.json for the request's shape";
    Answer(Err(ControlError::new(ErrorKind::Invalid, rejection.body_text(), next)))
}

fn done(result: Result<(), ControlError>) -> Answer<api::Done> {
    Answer(result.map(|()| api::Done {}))
}

pub(crate) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, ControlError> {
    text.parse().map_err(|error: T::Err| {
        ControlError::new(ErrorKind::Invalid, error.to_string(), "take the id from the node's status")
    })
}

async fn status<N: NodeControl>(State(node): State<Arc<N>>) -> Json<api::NodeStatus> {
    Json(node.status().await)
}

async fn hardware<N: NodeControl>(State(node): State<Arc<N>>) -> Answer<api::Hardware> {
    Answer(node.hardware().await)
}

async fn locate<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(disk): Path<String>,
    Body(request): Body<api::Locate>,
) -> Answer<api::Located> {
    Answer(node.locate(disk, request).await)
}

async fn pools<N: NodeControl>(State(node): State<Arc<N>>) -> Json<Vec<api::PoolStatus>> {
    Json(node.status().await.pools)
}

async fn grow_pool<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(pool): Path<String>,
) -> Answer<api::PoolStatus> {
    match parsed::<PoolId>(&pool) {
        Ok(pool) => Answer(node.grow_pool(pool).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn replace_pool<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(pool): Path<String>,
    Body(action): Body<api::ReplaceAction>,
) -> Answer<api::PoolStatus> {
    match parsed::<PoolId>(&pool) {
        Ok(pool) => Answer(node.replace_pool(pool, action).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn check_pool<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(pool): Path<String>,
) -> Answer<api::PoolCheck> {
    match parsed::<PoolId>(&pool) {
        Ok(pool) => Answer(node.check_pool(pool).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn scrub_pool<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(pool): Path<String>,
    Body(order): Body<api::OrderScrub>,
) -> Answer<api::PoolStatus> {
    match parsed::<PoolId>(&pool) {
        Ok(pool) => Answer(node.scrub_pool(pool, order.action).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn volumes<N: NodeControl>(State(node): State<Arc<N>>) -> Json<Vec<api::VolumeStatus>> {
    Json(node.status().await.volumes)
}

async fn create_volume<N: NodeControl>(
    State(node): State<Arc<N>>,
    Body(request): Body<api::CreateVolume>,
) -> Answer<api::VolumeStatus> {
    Answer(node.create_volume(request).await)
}

async fn resize_volume<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
    Body(request): Body<api::ResizeVolume>,
) -> Answer<api::VolumeStatus> {
    match parsed::<VolumeId>(&volume) {
        Ok(volume) => Answer(node.resize_volume(volume, request).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn delete_volume<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
) -> Answer<api::Done> {
    match parsed::<VolumeId>(&volume) {
        Ok(volume) => done(node.delete_volume(volume).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn limit_volume<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
    Body(limits): Body<api::VolumeLimits>,
) -> Answer<api::VolumeStatus> {
    match parsed::<VolumeId>(&volume) {
        Ok(volume) => Answer(node.limit_volume(volume, limits).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn volume_access<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
) -> Answer<api::VolumeAccess> {
    match parsed::<VolumeId>(&volume) {
        Ok(volume) => Answer(node.volume_access(volume).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn set_volume_access<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
    Body(access): Body<api::VolumeAccess>,
) -> Answer<api::VolumeAccess> {
    match parsed::<VolumeId>(&volume) {
        Ok(volume) => Answer(node.set_volume_access(volume, access).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn roll_back_volume<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
    Body(request): Body<api::RollBack>,
) -> Answer<api::VolumeStatus> {
    match parsed::<VolumeId>(&volume) {
        Ok(volume) => Answer(node.roll_back_volume(volume, request).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn snapshots<N: NodeControl>(State(node): State<Arc<N>>) -> Answer<Vec<api::SnapshotStatus>> {
    Answer(node.snapshots().await)
}

async fn create_snapshot<N: NodeControl>(
    State(node): State<Arc<N>>,
    Body(request): Body<api::CreateSnapshot>,
) -> Answer<api::SnapshotStatus> {
    Answer(node.create_snapshot(request).await)
}

async fn delete_snapshot<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(snapshot): Path<String>,
) -> Answer<api::Done> {
    match parsed::<VolumeId>(&snapshot) {
        Ok(snapshot) => done(node.delete_snapshot(snapshot).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn lock_snapshot<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(snapshot): Path<String>,
    Body(lock): Body<api::LockSnapshot>,
) -> Answer<api::SnapshotStatus> {
    match parsed::<VolumeId>(&snapshot) {
        Ok(snapshot) => Answer(node.lock_snapshot(snapshot, lock).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn replication<N: NodeControl>(State(node): State<Arc<N>>) -> Answer<api::Replication> {
    Answer(node.replication().await)
}

async fn schedules<N: NodeControl>(State(node): State<Arc<N>>) -> Json<Vec<api::ScheduleStatus>> {
    Json(node.status().await.schedules)
}

async fn set_schedule<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
    Body(schedule): Body<api::SnapshotSchedule>,
) -> Answer<api::ScheduleStatus> {
    match parsed::<VolumeId>(&volume) {
        Ok(volume) => Answer(node.set_schedule(volume, schedule).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn remove_schedule<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
) -> Answer<api::Done> {
    match parsed::<VolumeId>(&volume) {
        Ok(volume) => done(node.remove_schedule(volume).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn acknowledge_rewrite<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(volume): Path<String>,
) -> Answer<api::ScheduleStatus> {
    match parsed::<VolumeId>(&volume) {
        Ok(volume) => Answer(node.acknowledge_rewrite(volume).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn clone_snapshot<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(snapshot): Path<String>,
    Body(request): Body<api::CloneSnapshot>,
) -> Answer<api::VolumeStatus> {
    match parsed::<VolumeId>(&snapshot) {
        Ok(snapshot) => Answer(node.clone_snapshot(snapshot, request).await),
        Err(error) => Answer(Err(error)),
    }
}

async fn buckets<N: NodeControl>(State(node): State<Arc<N>>) -> Answer<Vec<api::Bucket>> {
    Answer(node.buckets().await)
}

async fn create_bucket<N: NodeControl>(
    State(node): State<Arc<N>>,
    Body(request): Body<api::CreateBucket>,
) -> Answer<api::Bucket> {
    Answer(node.create_bucket(request.name).await)
}

async fn delete_bucket<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(bucket): Path<String>,
) -> Answer<api::Done> {
    done(node.delete_bucket(bucket).await)
}

async fn access_keys<N: NodeControl>(State(node): State<Arc<N>>) -> Answer<Vec<api::AccessKey>> {
    Answer(node.access_keys().await)
}

async fn create_user<N: NodeControl>(
    State(node): State<Arc<N>>,
    Body(request): Body<api::CreateUser>,
) -> Answer<api::CreatedAccessKey> {
    Answer(node.create_access_key(request).await)
}

async fn delete_user<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(user): Path<String>,
) -> Answer<api::Done> {
    done(node.delete_user(user).await)
}

async fn delete_access_key<N: NodeControl>(
    State(node): State<Arc<N>>,
    Path(access_key): Path<String>,
) -> Answer<api::Done> {
    done(node.delete_access_key(access_key).await)
}

async fn identities<N: NodeControl>(State(node): State<Arc<N>>) -> Answer<api::Identities> {
    Answer(node.identities().await)
}

async fn change_identity<N: NodeControl>(
    State(node): State<Arc<N>>,
    Body(change): Body<api::IdentityChange>,
) -> Answer<api::Done> {
    done(node.change_identity(change).await)
}

async fn webhooks<N: NodeControl>(State(node): State<Arc<N>>) -> Answer<Vec<api::Webhook>> {
    Answer(node.webhooks().await)
}

async fn change_webhook<N: NodeControl>(
    State(node): State<Arc<N>>,
    Body(change): Body<api::WebhookChange>,
) -> Answer<api::WebhookChanged> {
    Answer(node.change_webhook(change).await)
}

async fn wipe<N: NodeControl>(
    State(node): State<Arc<N>>,
    Extension(peer): Extension<PeerIdentity>,
) -> Json<api::Wiped> {
    Json(node.wipe(format!("{}/{}", peer.role, peer.name)).await)
}

/// A part of the trail.
#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    after: u64,
    #[serde(default = "all_of_it")]
    count: usize,
}

fn all_of_it() -> usize {
    audit_log::ENTRIES_MAX
}

async fn audit<N: NodeControl>(
    State(node): State<Arc<N>>,
    Query(part): Query<Part>,
) -> Answer<audit_log::Page> {
    Answer(node.audit(part.after, part.count).await)
}

async fn audit_digests<N: NodeControl>(
    State(node): State<Arc<N>>,
    Query(part): Query<Part>,
) -> Answer<api::AuditDigests> {
    Answer(node.audit_digests(part.after, part.count).await)
}

async fn witness<N: NodeControl>(
    State(node): State<Arc<N>>,
    Extension(peer): Extension<PeerIdentity>,
    Body(head): Body<audit_log::Head>,
) -> Answer<api::Done> {
    node.witness(format!("{}/{}", peer.role, peer.name), head).await;
    done(Ok(()))
}
