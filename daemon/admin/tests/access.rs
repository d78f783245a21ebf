//! Every endpoint with every role, health while sealed, and the OpenAPI document against the table.
#![expect(clippy::unwrap_used, reason = "a test panics on what it did not expect")]

use std::sync::Arc;

use admin::access::{ACCEPTED_ROLES, TABLE, Verb};
use admin::{
    Act, ControlError, ErrorKind, NodeControl, Readiness, Reason, api, control_router, health_router,
};
use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use identity::{PeerIdentity, Role};
use prometheus_client::registry::Registry;
use tower::ServiceExt;
use units::{BootId, BootInstant, NodeId, PoolId, VolumeId};

/// A sealed node: everything that needs a key is refused, everything else works.
struct SealedNode;

fn sealed<T>() -> Result<T, ControlError> {
    Err(ControlError::new(ErrorKind::Sealed, "the node is sealed", "push the key"))
}

fn missing<T>() -> Result<T, ControlError> {
    Err(ControlError::new(ErrorKind::NotFound, "there is no such thing", "list what there is"))
}

impl NodeControl for SealedNode {
    fn is_alive(&self) -> bool {
        true
    }
    fn readiness(&self) -> Readiness {
        Readiness {
            refusal: Some(Reason::new("sealed", "never-unsealed")),
            notes: vec![Reason::new("disk-wear", "sda: 93% of its endurance is used")],
        }
    }
    async fn hardware(&self) -> Result<api::Hardware, ControlError> {
        missing()
    }
    async fn locate(&self, _: String, _: api::Locate) -> Result<api::Located, ControlError> {
        missing()
    }
    async fn status(&self) -> api::NodeStatus {
        api::NodeStatus {
            version: "0".into(),
            node: NodeId([1; 16]),
            name: "node".into(),
            boot: BootId([2; 16]),
            now_boot_ns: BootInstant(5),
            seal: api::SealState {
                sealed: true,
                since_unix_s: 1,
                since_boot_ns: BootInstant(1),
                cause: Some("never-unsealed".into()),
                lease_deadline_boot_ns: None,
                lease_remaining_ms: None,
            },
            last_wipe: None,
            key_memory: api::KeyMemory {
                memory: "memfd-secret".into(),
                keys: 0,
                key_slots: 1,
                generation: 0,
                last_use_boot_ns: None,
            },
            cipher: api::CipherStatus {
                algorithm: "AES-256-XTS".into(),
                kernel: "portable".into(),
                mib_per_second: 1,
            },
            pools: vec![],
            volumes: vec![],
            listening: vec![],
            sources: Vec::new(),
            hygiene: vec![],
            schedules: vec![],
            findings: vec![],
            workers: vec![],
        }
    }
    async fn grow_pool(&self, _: PoolId) -> Result<api::PoolStatus, ControlError> {
        missing()
    }
    async fn replace_pool(&self, _: PoolId, _: api::ReplaceAction) -> Result<api::PoolStatus, ControlError> {
        missing()
    }
    async fn check_pool(&self, _: PoolId) -> Result<api::PoolCheck, ControlError> {
        missing()
    }
    async fn scrub_pool(&self, _: PoolId, _: api::ScrubAction) -> Result<api::PoolStatus, ControlError> {
        missing()
    }
    async fn wanted_sectors(&self, _: PoolId) -> Result<Vec<api::WantedSector>, ControlError> {
        missing()
    }
    async fn find_sector(&self, _: api::FindSector) -> Result<Vec<u8>, ControlError> {
        missing()
    }
    async fn heal_sector(&self, _: PoolId, _: u64, _: bytes::Bytes) -> Result<api::Healed, ControlError> {
        missing()
    }
    async fn snapshot_manifest(
        &self,
        _: VolumeId,
        _: Option<VolumeId>,
    ) -> Result<api::SnapshotManifest, ControlError> {
        missing()
    }
    async fn snapshot_portion(
        &self,
        _: VolumeId,
        _: Option<VolumeId>,
        _: u64,
        _: u64,
    ) -> Result<Vec<u8>, ControlError> {
        missing()
    }
    async fn begin_receiving(&self, _: api::Receive) -> Result<api::Received, ControlError> {
        missing()
    }
    async fn receive(
        &self,
        _: VolumeId,
        _: VolumeId,
        _: bytes::Bytes,
    ) -> Result<api::Received, ControlError> {
        missing()
    }
    async fn end_receiving(&self, _: api::SnapshotManifest) -> Result<api::SnapshotStatus, ControlError> {
        missing()
    }
    async fn replication(&self) -> Result<api::Replication, ControlError> {
        missing()
    }
    async fn promote(&self, _: VolumeId) -> Result<api::Promoted, ControlError> {
        missing()
    }
    async fn create_volume(&self, _: api::CreateVolume) -> Result<api::VolumeStatus, ControlError> {
        missing()
    }
    async fn resize_volume(
        &self,
        _: VolumeId,
        _: api::ResizeVolume,
    ) -> Result<api::VolumeStatus, ControlError> {
        missing()
    }
    async fn delete_volume(&self, _: VolumeId) -> Result<(), ControlError> {
        missing()
    }
    async fn limit_volume(
        &self,
        _: VolumeId,
        _: api::VolumeLimits,
    ) -> Result<api::VolumeStatus, ControlError> {
        missing()
    }
    async fn volume_access(&self, _: VolumeId) -> Result<api::VolumeAccess, ControlError> {
        missing()
    }
    async fn set_volume_access(
        &self,
        _: VolumeId,
        _: api::VolumeAccess,
    ) -> Result<api::VolumeAccess, ControlError> {
        missing()
    }
    async fn roll_back_volume(
        &self,
        _: VolumeId,
        _: api::RollBack,
    ) -> Result<api::VolumeStatus, ControlError> {
        missing()
    }
    async fn snapshots(&self) -> Result<Vec<api::SnapshotStatus>, ControlError> {
        Ok(vec![])
    }
    async fn create_snapshot(&self, _: api::CreateSnapshot) -> Result<api::SnapshotStatus, ControlError> {
        missing()
    }
    async fn delete_snapshot(&self, _: VolumeId) -> Result<(), ControlError> {
        missing()
    }
    async fn lock_snapshot(
        &self,
        _: VolumeId,
        _: api::LockSnapshot,
    ) -> Result<api::SnapshotStatus, ControlError> {
        missing()
    }
    async fn set_schedule(
        &self,
        _: VolumeId,
        _: api::SnapshotSchedule,
    ) -> Result<api::ScheduleStatus, ControlError> {
        missing()
    }
    async fn remove_schedule(&self, _: VolumeId) -> Result<(), ControlError> {
        missing()
    }
    async fn acknowledge_rewrite(&self, _: VolumeId) -> Result<api::ScheduleStatus, ControlError> {
        missing()
    }
    async fn clone_snapshot(
        &self,
        _: VolumeId,
        _: api::CloneSnapshot,
    ) -> Result<api::VolumeStatus, ControlError> {
        missing()
    }
    async fn buckets(&self) -> Result<Vec<api::Bucket>, ControlError> {
        sealed()
    }
    async fn create_bucket(&self, _: String) -> Result<api::Bucket, ControlError> {
        sealed()
    }
    async fn delete_bucket(&self, _: String) -> Result<(), ControlError> {
        sealed()
    }
    async fn access_keys(&self) -> Result<Vec<api::AccessKey>, ControlError> {
        sealed()
    }
    async fn create_access_key(&self, _: api::CreateUser) -> Result<api::CreatedAccessKey, ControlError> {
        sealed()
    }
    async fn delete_user(&self, _: String) -> Result<(), ControlError> {
        sealed()
    }
    async fn delete_access_key(&self, _: String) -> Result<(), ControlError> {
        sealed()
    }
    async fn identities(&self) -> Result<api::Identities, ControlError> {
        sealed()
    }
    async fn change_identity(&self, _: api::IdentityChange) -> Result<(), ControlError> {
        sealed()
    }
    async fn webhooks(&self) -> Result<Vec<api::Webhook>, ControlError> {
        sealed()
    }
    async fn change_webhook(&self, _: api::WebhookChange) -> Result<api::WebhookChanged, ControlError> {
        sealed()
    }
    async fn note_act(&self, _: Act) {}
    async fn audit(&self, _: u64, _: usize) -> Result<audit_log::Page, ControlError> {
        missing()
    }
    async fn audit_digests(&self, _: u64, _: usize) -> Result<api::AuditDigests, ControlError> {
        missing()
    }
    async fn witness(&self, _: String, _: audit_log::Head) {}
    async fn wipe(&self, _: String) -> api::Wiped {
        api::Wiped { keys: 0, wipe_ns: 1, generation: 1 }
    }
}

fn method(verb: Verb) -> Method {
    match verb {
        Verb::Get => Method::GET,
        Verb::Post => Method::POST,
        Verb::Patch => Method::PATCH,
        Verb::Delete => Method::DELETE,
    }
}

/// A path with its parameters filled in, and a body that the endpoint accepts.
fn request(verb: Verb, path: &str, peer: Option<Role>) -> Request<Body> {
    let id = "0".repeat(32);
    let path = path
        .replace("{pool}", &id)
        .replace("{volume}", &id)
        .replace("{snapshot}", &id)
        .replace("{offset}", "4096")
        .replace("{bucket}", "photos")
        .replace("{user}", "anna")
        .replace("{access_key}", "AK1");
    let body = match (verb, path.split('/').nth(2)) {
        (Verb::Post, _) if path.ends_with("/limits") => r#"{"reserve_bytes":4096}"#.to_owned(),
        (Verb::Post, _) if path.ends_with("/access") => r#"{"clients":["db"],"read_only":true}"#.to_owned(),
        (Verb::Post, _) if path.ends_with("/rollback") => format!(r#"{{"snapshot":"{id}"}}"#),
        (Verb::Post, _) if path.ends_with("/lock") => r#"{"for_s":60}"#.to_owned(),
        (Verb::Post, _) if path.ends_with("/schedule") => r#"{"every_s":3600,"keep":24}"#.to_owned(),
        (Verb::Post, Some("sectors")) => {
            format!(r#"{{"volume":"{id}","sector":0,"record":{{"sequence":1,"checksum":1,"tag":"{id}"}}}}"#)
        }
        (Verb::Post, Some("snapshots")) => format!(r#"{{"volume":"{id}"}}"#),
        (Verb::Post, Some("volumes")) => format!(
            r#"{{"volume":"{id}","kind":"block","size_bytes":4096,"domain":"{id}","epoch":1,"check":"{id}"}}"#
        ),
        (Verb::Patch, _) => r#"{"size_bytes":8192}"#.to_owned(),
        (Verb::Post, Some("replicas")) if !path.ends_with("/promote") => {
            let manifest = format!(
                r#"{{"volume":"{id}","snapshot":"{id}","created_unix_s":1,"size_bytes":4096,"domain":"{id}","epoch":1,"check":"{id}","kind":"block"}}"#
            );
            if path.ends_with("/end") { manifest } else { format!(r#"{{"manifest":{manifest}}}"#) }
        }
        (Verb::Post, Some("audit")) => {
            format!(r#"{{"trail":"{id}","seq":1,"hash":"{}"}}"#, "0".repeat(64))
        }
        (Verb::Post, Some("identities")) => r#"{"change":"create-group","group":"staff"}"#.to_owned(),
        (Verb::Post, Some("webhooks")) => r#"{"change":"retry","webhook":"billing"}"#.to_owned(),
        (Verb::Post, _) if path.ends_with("/locate") => r#"{"on":true}"#.to_owned(),
        (Verb::Post, _) if path.ends_with("/scrub") => r#"{"action":"start"}"#.to_owned(),
        (Verb::Post, _) => r#"{"name":"anna"}"#.to_owned(),
        _ => String::new(),
    };
    let mut request = Request::builder()
        .method(method(verb))
        .uri(path)
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap();
    if let Some(role) = peer {
        let name = "anna".parse().unwrap();
        request.extensions_mut().insert(PeerIdentity { role, name, spki_sha256: [0; 32] });
    }
    request
}

async fn call(request: Request<Body>) -> (StatusCode, String) {
    let answer = control_router(Arc::new(SealedNode)).oneshot(request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn each_endpoint_serves_exactly_the_roles_of_its_rule() {
    for rule in TABLE {
        for role in Role::ALL {
            let (status, body) = call(request(rule.verb, rule.path, Some(role))).await;
            let allowed = rule.roles.contains(&role);
            assert_eq!(
                status != StatusCode::FORBIDDEN,
                allowed,
                "{:?} {} as {role}: {body}",
                rule.verb,
                rule.path
            );
            if allowed {
                let expected = [StatusCode::OK, StatusCode::NOT_FOUND, StatusCode::SERVICE_UNAVAILABLE];
                assert!(expected.contains(&status), "{:?} {}: {status} {body}", rule.verb, rule.path);
            }
        }
        let (status, _) = call(request(rule.verb, rule.path, None)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{} without a certificate", rule.path);
    }
}

#[test]
fn no_client_of_a_head_and_no_node_is_accepted_at_all() {
    for role in [Role::NbdClient, Role::Node] {
        assert!(!ACCEPTED_ROLES.contains(&role));
        assert!(TABLE.iter().all(|rule| !rule.roles.contains(&role)));
    }
    for rule in TABLE {
        assert!(rule.roles.iter().all(|role| ACCEPTED_ROLES.contains(role)), "{}", rule.path);
    }
}

#[tokio::test]
async fn a_body_that_does_not_fit_is_refused_with_a_next_step() {
    let mut wrong = request(Verb::Post, "/v1/users", Some(Role::Operator));
    *wrong.body_mut() = Body::from(r#"{"name":"anna","admin":true}"#);
    let (status, body) = call(wrong).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("admin") && body.contains("openapi.json"), "{body}");
}

#[tokio::test]
async fn health_tells_a_sealed_node_from_a_dead_one() {
    let router = health_router(Arc::new(SealedNode), Registry::default(), || {});
    let ask = |path: &str| {
        let router = router.clone();
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        async move {
            let answer = router.oneshot(request).await.unwrap();
            let status = answer.status();
            (
                status,
                String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap(),
            )
        }
    };
    assert_eq!(ask("/livez").await.0, StatusCode::OK);
    let (status, reason) = ask("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reason, "sealed: never-unsealed\nnote disk-wear: sda: 93% of its endurance is used\n");
    let (status, text) = ask("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn the_openapi_document_lists_exactly_the_endpoints() {
    let document: serde_json::Value = serde_json::from_str(include_str!("../openapi.json")).unwrap();
    let mut documented: Vec<String> = vec![];
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            documented.push(format!("{method} {path}"));
        }
    }
    let mut served: Vec<String> = TABLE
        .iter()
        .map(|rule| format!("{} {}", method(rule.verb).as_str().to_lowercase(), rule.path))
        .collect();
    documented.sort();
    served.sort();
    assert_eq!(documented, served);
}
