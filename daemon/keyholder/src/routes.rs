//! The endpoints. Each is added with its rule from [`crate::access::TABLE`], which is asked before the handler runs and
//! before the body is read.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Json, Router};
use identity::{PeerIdentity, Problem, Role};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::access::{Rule, Verb, rule};
use crate::api::{
    AddNode, ApproveNode, CeremonyRequest, CeremonyResult, ChangeNode, CloneVolume, CreateVolume, Done,
    DrillReport, KeyholderStatus, LedgerBackup, Lockdown, NodeEntry, Outcome, PromoteVolume, PushPolicy,
    ResizeVolume, RollBackVolume, Target, UnsealProgress, UnsealRequest, VolumeEntry, VolumeErased,
};
use crate::error::KeyholderError;
use crate::keyholder::Keyholder;

type Shared = State<Arc<Keyholder>>;
type Peer = Extension<PeerIdentity>;

impl Keyholder {
    /// The administrative interface. Requests must carry a [`PeerIdentity`] extension, as [`identity::serve_https`]
    /// gives them.
    pub fn router(self: &Arc<Self>) -> Router {
        let mut router = Router::new();
        for (verb, path, handler) in routes() {
            #[expect(
                clippy::expect_used,
                reason = "a route without a rule is a bug that every start would show"
            )]
            let rule = rule(verb, path).expect("every route has a rule in access::TABLE");
            router = router.route(path, handler.layer(middleware::from_fn_with_state(rule, authorise)));
        }
        router.fallback(unknown).with_state(Arc::clone(self))
    }
}

fn routes() -> [(Verb, &'static str, MethodRouter<Arc<Keyholder>>); 22] {
    [
        (Verb::Get, "/v1/status", routing::get(status)),
        (Verb::Post, "/v1/ceremony", routing::post(ceremony)),
        (Verb::Post, "/v1/unseal", routing::post(unseal)),
        (Verb::Get, "/v1/nodes", routing::get(nodes)),
        (Verb::Post, "/v1/nodes", routing::post(add_node)),
        (Verb::Post, "/v1/nodes/{name}/approve", routing::post(approve_node)),
        (Verb::Patch, "/v1/nodes/{name}", routing::patch(change_node)),
        (Verb::Delete, "/v1/nodes/{name}", routing::delete(remove_node)),
        (Verb::Get, "/v1/volumes", routing::get(volumes)),
        (Verb::Post, "/v1/volumes", routing::post(create_volume)),
        (Verb::Patch, "/v1/volumes/{label}", routing::patch(resize_volume)),
        (Verb::Delete, "/v1/volumes/{label}", routing::delete(delete_volume)),
        (Verb::Post, "/v1/volumes/{label}/clone", routing::post(clone_volume)),
        (Verb::Post, "/v1/volumes/{label}/rollback", routing::post(roll_back_volume)),
        (Verb::Post, "/v1/volumes/{label}/promote", routing::post(promote_volume)),
        (Verb::Post, "/v1/push", routing::post(push)),
        (Verb::Post, "/v1/revoke", routing::post(revoke)),
        (Verb::Post, "/v1/lockdown", routing::post(lockdown)),
        (Verb::Post, "/v1/unlatch", routing::post(unlatch)),
        (Verb::Get, "/v1/ledger/backup", routing::get(backup)),
        (Verb::Post, "/v1/ledger/restore", routing::post(restore)),
        (Verb::Post, "/v1/drills", routing::post(note_drill)),
    ]
}

/// Lets the request through when the peer's role is in the rule.
async fn authorise(State(rule): State<&'static Rule>, request: Request, next: Next) -> Response {
    let Some(peer) = request.extensions().get::<PeerIdentity>() else {
        let message = "no client certificate came with the request";
        return refusal(StatusCode::UNAUTHORIZED, "unauthenticated", message);
    };
    if rule.roles.contains(&peer.role) {
        return next.run(request).await;
    }
    let needed: Vec<_> = rule.roles.iter().map(ToString::to_string).collect();
    let message = format!("the role {} may not do this; it takes {}", peer.role, needed.join(" or "));
    refusal(StatusCode::FORBIDDEN, "forbidden", &message)
}

fn refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, Json(Problem::new(kind, message, "use a certificate that has the role"))).into_response()
}

async fn unknown() -> Response {
    let next = "compare the versions of both programs";
    let problem = Problem::new("not-found", "there is no such endpoint", next);
    (StatusCode::NOT_FOUND, Json(problem)).into_response()
}

/// An answer, or the refusal as JSON.
struct Answer<T>(Result<T, KeyholderError>);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        match self.0 {
            Ok(body) => Json(body).into_response(),
            Err(error) => {
                let (_, status) = error.kind();
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                if status.is_server_error() {
                    tracing::warn!(%error, "a request failed");
                }
                (status, Json(error.problem())).into_response()
            }
        }
    }
}

/// A JSON body whose refusal is a [`Problem`] too.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Answer<Done>;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(invalid_body(&rejection)),
        }
    }
}

fn invalid_body(rejection: &JsonRejection) -> Answer<Done> {
    let next_step = "compare the versions of both programs, or the request with keyholder::api";
    Answer(Err(KeyholderError::Invalid { what: rejection.body_text(), next_step }))
}

/// Who asks, as the audit trail names people.
fn who(peer: &PeerIdentity) -> String {
    format!("{}/{}", peer.role, peer.name)
}

async fn status(State(keyholder): Shared) -> Json<KeyholderStatus> {
    Json(keyholder.status())
}

async fn ceremony(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(request): Body<CeremonyRequest>,
) -> Answer<CeremonyResult> {
    Answer(keyholder.ceremony(&request, &who(&peer)))
}

async fn unseal(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(request): Body<UnsealRequest>,
) -> Answer<UnsealProgress> {
    Answer(keyholder.unseal(&request, &who(&peer)))
}

async fn nodes(State(keyholder): Shared) -> Json<Vec<NodeEntry>> {
    Json(keyholder.status().nodes)
}

async fn add_node(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(request): Body<AddNode>,
) -> Answer<NodeEntry> {
    // With its key the node is approved at once, and approving is an officer's to do.
    if request.identity_key.is_some() && peer.role != Role::SecurityOfficer {
        return Answer(Err(KeyholderError::OfficerOnly { act: "pinning a node's key" }));
    }
    Answer(keyholder.add_node(&request, &who(&peer)))
}

async fn approve_node(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(name): Path<String>,
    Body(request): Body<ApproveNode>,
) -> Answer<NodeEntry> {
    Answer(keyholder.approve_node(&name, &request, &who(&peer)).await)
}

async fn change_node(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(name): Path<String>,
    Body(change): Body<ChangeNode>,
) -> Answer<NodeEntry> {
    if change.push == Some(PushPolicy::Auto) && peer.role != Role::SecurityOfficer {
        return Answer(Err(KeyholderError::OfficerOnly {
            act: "letting a node be pushed to without approval",
        }));
    }
    Answer(keyholder.change_node(&name, &change, &who(&peer)).await)
}

async fn remove_node(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(name): Path<String>,
) -> Answer<Done> {
    Answer(keyholder.remove_node(&name, &who(&peer)).map(|()| Done {}))
}

async fn volumes(State(keyholder): Shared) -> Json<Vec<VolumeEntry>> {
    Json(keyholder.status().volumes)
}

async fn create_volume(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(request): Body<CreateVolume>,
) -> Answer<VolumeEntry> {
    Answer(keyholder.create_volume(&request, &who(&peer)).await)
}

async fn resize_volume(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(label): Path<String>,
    Body(request): Body<ResizeVolume>,
) -> Answer<VolumeEntry> {
    Answer(keyholder.resize_volume(&label, &request, &who(&peer)).await)
}

#[derive(Deserialize)]
struct Deletion {
    #[serde(default)]
    force: bool,
}

async fn delete_volume(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(label): Path<String>,
    Query(Deletion { force }): Query<Deletion>,
) -> Answer<VolumeErased> {
    Answer(keyholder.delete_volume(&label, force, &who(&peer)).await)
}

async fn clone_volume(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(label): Path<String>,
    Body(request): Body<CloneVolume>,
) -> Answer<VolumeEntry> {
    Answer(keyholder.clone_volume(&label, &request, &who(&peer)).await)
}

async fn roll_back_volume(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(label): Path<String>,
    Body(request): Body<RollBackVolume>,
) -> Answer<VolumeEntry> {
    Answer(keyholder.roll_back_volume(&label, &request, &who(&peer)).await)
}

async fn promote_volume(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(label): Path<String>,
    Body(request): Body<PromoteVolume>,
) -> Answer<VolumeEntry> {
    Answer(keyholder.promote_volume(&label, &request, &who(&peer)).await)
}

async fn push(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(target): Body<Target>,
) -> Answer<Outcome> {
    Answer(keyholder.push(&target, &who(&peer)).await)
}

async fn revoke(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(target): Body<Target>,
) -> Answer<Outcome> {
    Answer(keyholder.revoke(&target, &who(&peer)).await)
}

async fn lockdown(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(Lockdown {}): Body<Lockdown>,
) -> Answer<Outcome> {
    Answer(keyholder.lock_down(&who(&peer)).await)
}

async fn unlatch(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(target): Body<Target>,
) -> Answer<Outcome> {
    Answer(keyholder.unlatch(&target, &who(&peer)).await)
}

async fn backup(State(keyholder): Shared, Extension(peer): Peer) -> Answer<LedgerBackup> {
    Answer(keyholder.backup(&who(&peer)))
}

async fn restore(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(backup): Body<LedgerBackup>,
) -> Answer<KeyholderStatus> {
    Answer(keyholder.restore(&backup, &who(&peer)))
}

async fn note_drill(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(report): Body<DrillReport>,
) -> Answer<KeyholderStatus> {
    Answer(keyholder.note_drill(&report, &who(&peer)))
}
