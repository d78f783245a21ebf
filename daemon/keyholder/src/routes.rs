//! The endpoints. Each is added with its rule from [`crate::access::TABLE`], which is asked before the handler runs and
//! before the body is read.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Extension, FromRequest, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Json, Router};
use identity::{ChannelBinding, GuestKey, PeerIdentity, Problem, Role};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use units::VolumeId;

use crate::access::{Proof, Rule, Verb, rule};
use crate::api::{
    AddNode, Approval, ApproveNode, AuditDigests, CeremonyRequest, CeremonyResult, ChangeNode, CloneVolume,
    Code, Compromised, ConfirmErasure, CreateToken, CreateVolume, CreatedToken, Done, DrillReport,
    EnrolledFactor, ErasureEntry, JoinApproved, KeyholderStatus, LedgerBackup, Letters, Lockdown, Login,
    NewPolicy, NodeEntry, OidcLoggedIn, OidcLogin, OidcProvider, Outcome, PersonEntry, PolicyPreview,
    PolicyStatus, PromoteVolume, PushPolicy, Reason, ResizeVolume, RollBackVolume, SignedErasure, Target,
    TokenEntry, UnsealProgress, UnsealRequest, VolumeEntry, VolumeErased, WebhookEntry, WebhookTested,
};
use crate::book::who;
use crate::clock;
use crate::error::KeyholderError;
use crate::join::{JoinAnswer, JoinRequest};
use crate::keyholder::Keyholder;
use crate::requests;

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
            let gate = Gate { rule, keyholder: Arc::clone(self) };
            router = router.route(path, handler.layer(middleware::from_fn_with_state(gate, pass)));
        }
        router.fallback(unknown).with_state(Arc::clone(self))
    }
}

fn routes() -> [(Verb, &'static str, MethodRouter<Arc<Keyholder>>); 54] {
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
        (Verb::Post, "/v1/volumes/{label}/accept-state", routing::post(accept_state)),
        (Verb::Post, "/v1/volumes/{label}/rotate", routing::post(rotate_volume)),
        (Verb::Post, "/v1/push", routing::post(push)),
        (Verb::Post, "/v1/revoke", routing::post(revoke)),
        (Verb::Post, "/v1/lockdown", routing::post(lockdown)),
        (Verb::Post, "/v1/unlatch", routing::post(unlatch)),
        (Verb::Get, "/v1/ledger/backup", routing::get(backup)),
        (
            Verb::Post,
            "/v1/ledger/restore",
            routing::post(restore).layer(DefaultBodyLimit::max(RESTORE_BYTES_MAX)),
        ),
        (Verb::Post, "/v1/drills", routing::post(note_drill)),
        (Verb::Post, "/v1/nodes/{name}/compromised", routing::post(mark_compromised)),
        (Verb::Get, "/v1/policy", routing::get(policy)),
        (Verb::Post, "/v1/policy", routing::post(apply_policy)),
        (Verb::Post, "/v1/policy/check", routing::post(preview_policy)),
        (Verb::Get, "/v1/people", routing::get(people)),
        (Verb::Post, "/v1/people/me/second-factor", routing::post(enrol)),
        (Verb::Post, "/v1/people/me/second-factor/confirm", routing::post(confirm_enrolment)),
        (Verb::Delete, "/v1/people/{role}/{name}/second-factor", routing::delete(forget_factor)),
        (Verb::Post, "/v1/login", routing::post(login)),
        (Verb::Get, "/v1/login/oidc", routing::get(oidc_provider)),
        (Verb::Post, "/v1/login/oidc", routing::post(oidc_login)),
        (Verb::Post, "/v1/logout", routing::post(logout)),
        (Verb::Get, "/v1/approvals", routing::get(approvals)),
        (Verb::Post, "/v1/approvals/{id}/approve", routing::post(approve_request)),
        (Verb::Post, "/v1/approvals/{id}/refuse", routing::post(refuse_request)),
        (Verb::Post, "/v1/approvals/{id}/break-glass", routing::post(break_glass)),
        (Verb::Get, "/v1/tokens", routing::get(tokens)),
        (Verb::Post, "/v1/tokens", routing::post(create_token)),
        (Verb::Delete, "/v1/tokens/{id}", routing::delete(revoke_token)),
        (Verb::Get, "/v1/erasures", routing::get(erasures)),
        (Verb::Post, "/v1/erasures/{volume}/confirm", routing::post(confirm_erasure)),
        (Verb::Post, "/v1/erasures/{volume}/certificate", routing::post(certify_erasure)),
        (Verb::Get, "/v1/webhooks", routing::get(webhooks)),
        (Verb::Post, "/v1/webhooks/{name}/test", routing::post(test_webhook)),
        (Verb::Post, "/v1/webhooks/{name}/replay", routing::post(replay_webhook)),
        (Verb::Post, "/v1/webhooks/{name}/discard", routing::post(discard_letters)),
        (Verb::Get, "/v1/audit", routing::get(audit)),
        (Verb::Get, "/v1/audit/digests", routing::get(audit_digests)),
        (Verb::Post, "/v1/keyholders/{name}/join", routing::post(approve_join)),
        (Verb::Post, "/v1/root", routing::post(give_root)),
    ]
}

/// The longest ledger, as base64 in JSON.
const RESTORE_BYTES_MAX: usize = 48 << 20;

/// What stands before a handler.
#[derive(Clone)]
struct Gate {
    rule: &'static Rule,
    keyholder: Arc<Keyholder>,
}

/// Lets the request through when the peer may, and sees to it that a refusal is in the trail.
async fn pass(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let token = bearer(&request).map(str::to_owned);
    let guest = request.extensions().get::<GuestKey>().copied();
    let peer = match request.extensions().get::<PeerIdentity>() {
        Some(peer) => Some(peer.clone()),
        None => guest.and_then(|guest| gate.keyholder.guest(&guest, token.as_deref()?)),
    };
    if let (Proof::IdToken, Some(guest)) = (gate.rule.proof, guest) {
        return admit_guest(&gate, &guest, request, next).await;
    }
    let Some(peer) = peer else {
        let message = match guest {
            Some(_) => "nobody is logged in with this key, or not any more",
            None => "no client certificate came with the request",
        };
        let next = "use a certificate that has the role, or log in with `nightlatch login --oidc`";
        return refused(StatusCode::UNAUTHORIZED, Problem::new("unauthenticated", message, next));
    };
    request.extensions_mut().insert(peer.clone());
    let response = if !gate.rule.roles.contains(&peer.role) {
        forbidden(gate.rule, &peer)
    } else if let Err(error) = gate.may_go_on(&peer, token.as_deref()) {
        refused_by(&error)
    } else if gate.rule.verb == Verb::Get || SECRET_ANSWERS.contains(&gate.rule.path) {
        next.run(request).await
    } else {
        let longest = match gate.rule.path {
            "/v1/ledger/restore" => RESTORE_BYTES_MAX,
            _ => requests::BODY_BYTES_MAX,
        };
        requests::once(&gate.keyholder.requests, &who(&peer), request, longest, next, refused).await
    };
    if let Some(Refused { kind }) = response.extensions().get() {
        gate.keyholder.note_refusal(&who(&peer), gate.rule, response.status().as_u16(), kind);
    }
    response
}

/// Whoever has yet to say who they are asks no more often than anybody else, each by their address: a key costs nothing.
async fn admit_guest(gate: &Gate, guest: &GuestKey, request: Request, next: Next) -> Response {
    let address =
        request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip());
    let from =
        address.map_or_else(|| hex::encode(guest.spki_sha256), |address| network_of(address).to_string());
    let by = format!("{}{from}", requests::GUEST_PREFIX);
    if let Err(wait_s) = gate.keyholder.requests.admit(&by, clock::now()) {
        return refused_by(&KeyholderError::TooOften { wait_s });
    }
    let response = next.run(request).await;
    if let Some(Refused { kind }) = response.extensions().get() {
        gate.keyholder.note_refusal(&by, gate.rule, response.status().as_u16(), kind);
    }
    response
}

/// Whoever is given IPv6 is given a network of 2^64 addresses, and is one.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

fn forbidden(rule: &Rule, peer: &PeerIdentity) -> Response {
    if rule.proof == Proof::IdToken {
        let message = "this is for people without a certificate, and this one has one";
        let problem = Problem::new("forbidden", message, "log in with `nightlatch login`");
        return refused(StatusCode::FORBIDDEN, problem);
    }
    let needed: Vec<_> = rule.roles.iter().map(ToString::to_string).collect();
    let message = format!("the role {} may not do this; it takes {}", peer.role, needed.join(" or "));
    refusal(StatusCode::FORBIDDEN, "forbidden", &message)
}

/// What they answer is shown once, or is of no use a second time: nothing of it is kept, whatever the request calls itself.
const SECRET_ANSWERS: &[&str] =
    &["/v1/tokens", "/v1/login", "/v1/people/me/second-factor", "/v1/unseal", "/v1/ceremony", "/v1/root"];

impl Gate {
    /// Whether it comes too often, and brings what the rule wants beside a certificate. What takes keys away never comes too often.
    fn may_go_on(&self, peer: &PeerIdentity, token: Option<&str>) -> Result<(), KeyholderError> {
        let takes_away = matches!(self.rule.path, "/v1/revoke" | "/v1/lockdown");
        if self.rule.verb != Verb::Get && !takes_away {
            let admitted = self.keyholder.requests.admit(&who(peer), clock::now());
            admitted.map_err(|wait_s| KeyholderError::TooOften { wait_s })?;
        }
        match self.rule.proof {
            Proof::SecondFactor => self.keyholder.check_second_factor(peer, token, self.rule),
            Proof::Certificate | Proof::Share | Proof::IdToken => Ok(()),
        }
    }
}

/// The token of a login.
fn bearer(request: &Request) -> Option<&str> {
    request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// Travels with an answer that refuses.
#[derive(Clone)]
struct Refused {
    kind: String,
}

fn refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    refused(status, Problem::new(kind, message, "use a certificate that has the role"))
}

fn refused(status: StatusCode, problem: Problem) -> Response {
    let kind = problem.kind.clone();
    let mut response = (status, Json(problem)).into_response();
    response.extensions_mut().insert(Refused { kind });
    response
}

async fn unknown() -> Response {
    let next = "compare the versions of both programs";
    let problem = Problem::new("not-found", "there is no such endpoint", next);
    (StatusCode::NOT_FOUND, Json(problem)).into_response()
}

fn refused_by(error: &KeyholderError) -> Response {
    let (_, status) = error.kind();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status.is_server_error() {
        tracing::warn!(%error, "a request failed");
    }
    refused(status, error.problem())
}

/// An answer, or the refusal as JSON.
struct Answer<T>(Result<T, KeyholderError>);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        match self.0 {
            Ok(body) => Json(body).into_response(),
            Err(error) => refused_by(&error),
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

async fn approve_join(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(name): Path<String>,
) -> Answer<JoinApproved> {
    Answer(keyholder.book(|book| book.approve_join(&name, &who(&peer))))
}

async fn give_root(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Extension(binding): Extension<ChannelBinding>,
    Body(request): Body<JoinRequest>,
) -> Answer<JoinAnswer> {
    Answer(keyholder.give_root(&request, &peer, binding))
}

async fn nodes(State(keyholder): Shared) -> Json<Vec<NodeEntry>> {
    Json(keyholder.status().nodes)
}

/// Whoever may say this decides that nobody has to approve a push.
const AUTO_PUSH: &str = "letting a node be pushed to without approval";

async fn add_node(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(request): Body<AddNode>,
) -> Answer<NodeEntry> {
    // With its key the node is approved at once, and approving is an officer's to do.
    if request.identity_key.is_some() && peer.role != Role::SecurityOfficer {
        return Answer(Err(KeyholderError::OfficerOnly { act: "pinning a node's key" }));
    }
    if request.push == PushPolicy::Auto && peer.role != Role::SecurityOfficer {
        return Answer(Err(KeyholderError::OfficerOnly { act: AUTO_PUSH }));
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
        return Answer(Err(KeyholderError::OfficerOnly { act: AUTO_PUSH }));
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

async fn accept_state(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(label): Path<String>,
) -> Answer<VolumeEntry> {
    Answer(keyholder.accept_state(&label, &who(&peer)).await)
}

async fn rotate_volume(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(label): Path<String>,
) -> Answer<VolumeEntry> {
    Answer(keyholder.rotate_volume(&label, &who(&peer)).await)
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

async fn audit(State(keyholder): Shared, Query(part): Query<Part>) -> Answer<audit_log::Page> {
    Answer(keyholder.audit(part.after, part.count))
}

async fn audit_digests(State(keyholder): Shared, Query(part): Query<Part>) -> Answer<AuditDigests> {
    Answer(keyholder.audit_digests(part.after, part.count))
}

async fn mark_compromised(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(name): Path<String>,
    Body(Done {}): Body<Done>,
) -> Answer<Compromised> {
    Answer(keyholder.mark_compromised(&name, &who(&peer)).await)
}

async fn policy(State(keyholder): Shared) -> Answer<PolicyStatus> {
    Answer(keyholder.book(|book| book.policy_status()))
}

async fn preview_policy(State(keyholder): Shared, Body(policy): Body<NewPolicy>) -> Answer<PolicyPreview> {
    Answer(keyholder.book(|book| book.preview_policy(&policy.text)))
}

async fn apply_policy(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(policy): Body<NewPolicy>,
) -> Answer<PolicyPreview> {
    Answer(keyholder.apply_policy(&policy.text, &who(&peer)).await)
}

async fn people(State(keyholder): Shared) -> Answer<Vec<PersonEntry>> {
    Answer(keyholder.book(|book| book.person_entries()))
}

async fn enrol(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(Done {}): Body<Done>,
) -> Answer<EnrolledFactor> {
    Answer(keyholder.book(|book| book.begin_enrolment(&peer)))
}

async fn confirm_enrolment(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(Code { code }): Body<Code>,
) -> Answer<Done> {
    Answer(keyholder.book(|book| book.confirm_enrolment(&peer, &code)).map(|()| Done {}))
}

async fn forget_factor(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path((role, name)): Path<(String, String)>,
) -> Answer<Done> {
    let of = format!("{role}/{name}");
    Answer(keyholder.forget_factor(&of, &who(&peer)).map(|()| Done {}))
}

async fn login(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(Code { code }): Body<Code>,
) -> Answer<Login> {
    Answer(keyholder.book(|book| book.log_in(&peer, &code)))
}

async fn oidc_provider(State(keyholder): Shared) -> Answer<OidcProvider> {
    Answer(keyholder.oidc_provider())
}

async fn oidc_login(
    State(keyholder): Shared,
    Extension(guest): Extension<GuestKey>,
    Body(OidcLogin { id_token, role }): Body<OidcLogin>,
) -> Answer<OidcLoggedIn> {
    Answer(keyholder.log_in_by_provider(&guest, &id_token, role).await)
}

async fn logout(State(keyholder): Shared, Extension(peer): Peer, Body(Done {}): Body<Done>) -> Answer<Done> {
    Answer(keyholder.book(|book| book.log_out(&peer)).map(|()| Done {}))
}

async fn approvals(State(keyholder): Shared) -> Answer<Vec<Approval>> {
    Answer(keyholder.book(|book| book.approval_entries()))
}

async fn approve_request(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(id): Path<String>,
    Body(Done {}): Body<Done>,
) -> Answer<Approval> {
    Answer(keyholder.book(|book| book.approve_request(&id, peer.role, &who(&peer))))
}

async fn refuse_request(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(id): Path<String>,
    Body(Done {}): Body<Done>,
) -> Answer<Done> {
    Answer(keyholder.book(|book| book.refuse_request(&id, &who(&peer))).map(|()| Done {}))
}

async fn break_glass(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(id): Path<String>,
    Body(Reason { reason }): Body<Reason>,
) -> Answer<Approval> {
    Answer(keyholder.book(|book| book.break_glass(&id, &reason, &who(&peer))))
}

async fn erasures(State(keyholder): Shared) -> Answer<Vec<ErasureEntry>> {
    Answer(keyholder.book(|book| book.erasure_entries()))
}

fn erased_volume(text: &str) -> Result<VolumeId, KeyholderError> {
    text.parse().map_err(|_| KeyholderError::NoSuchErasure { what: text.to_owned() })
}

async fn confirm_erasure(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(volume): Path<String>,
    Body(ConfirmErasure { destroyed_up_to_serial }): Body<ConfirmErasure>,
) -> Answer<ErasureEntry> {
    let confirmed = erased_volume(&volume).and_then(|volume| {
        keyholder.book(|book| book.confirm_erasure(volume, destroyed_up_to_serial, &who(&peer)))
    });
    Answer(confirmed)
}

async fn certify_erasure(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(volume): Path<String>,
    Body(Done {}): Body<Done>,
) -> Answer<SignedErasure> {
    let certified = erased_volume(&volume)
        .and_then(|volume| keyholder.book(|book| book.certify_erasure(volume, &who(&peer))));
    Answer(certified)
}

async fn tokens(State(keyholder): Shared) -> Answer<Vec<TokenEntry>> {
    Answer(keyholder.book(|book| book.token_entries()))
}

async fn create_token(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Body(request): Body<CreateToken>,
) -> Answer<CreatedToken> {
    Answer(keyholder.book(|book| book.create_token(&request, &who(&peer))))
}

async fn revoke_token(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(id): Path<String>,
) -> Answer<Done> {
    Answer(keyholder.book(|book| book.revoke_token(&id, &who(&peer))).map(|()| Done {}))
}

async fn webhooks(State(keyholder): Shared) -> Json<Vec<WebhookEntry>> {
    Json(keyholder.webhook_entries())
}

async fn test_webhook(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(name): Path<String>,
    Body(Done {}): Body<Done>,
) -> Answer<WebhookTested> {
    Answer(keyholder.test_webhook(&name, &who(&peer)).await)
}

async fn replay_webhook(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(name): Path<String>,
    Body(letters): Body<Letters>,
) -> Answer<WebhookEntry> {
    Answer(keyholder.replay_webhook(&name, &letters.entries, &who(&peer)))
}

async fn discard_letters(
    State(keyholder): Shared,
    Extension(peer): Peer,
    Path(name): Path<String>,
    Body(letters): Body<Letters>,
) -> Answer<WebhookEntry> {
    Answer(keyholder.discard_letters(&name, &letters.entries, &who(&peer)))
}
