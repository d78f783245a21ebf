//! The same request twice, and too many of them.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use identity::{PeerIdentity, Role};
use keyholder::Keyholder;
use keyholder::api::NewPolicy;
use serde::Serialize;
use tower::ServiceExt;

use crate::site::{Site, ceremony_request};

struct Answer {
    status: StatusCode,
    body: String,
    replayed: bool,
}

async fn post(keyholder: &Arc<Keyholder>, path: &str, body: &impl Serialize, key: Option<&str>) -> Answer {
    post_to(keyholder.router(), path, body, key).await
}

async fn post_to(router: Router, path: &str, body: &impl Serialize, key: Option<&str>) -> Answer {
    let mut request = Request::builder().method("POST").uri(path).header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let mut request = request.body(Body::from(serde_json::to_vec(body).unwrap())).unwrap();
    let name = "alice".parse().unwrap();
    let peer = PeerIdentity { role: Role::SecurityOfficer, name, spki_sha256: [0; 32] };
    request.extensions_mut().insert(peer);
    let answer = router.oneshot(request).await.unwrap();
    let replayed = answer.headers().contains_key("idempotency-replayed");
    let status = answer.status();
    let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    Answer { status, body: String::from_utf8(body.to_vec()).unwrap(), replayed }
}

fn serial(keyholder: &Keyholder) -> Option<u64> {
    keyholder.status().policy_serial
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_twice_under_one_name_is_carried_out_once() {
    let site = Site::new().await;
    let dir = tempfile::tempdir().unwrap();
    let keyholder = Keyholder::open(site.params(dir.path())).unwrap();
    let made = post(&keyholder, "/v1/ceremony", &ceremony_request(1, 1), Some("c")).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    let again = post(&keyholder, "/v1/ceremony", &ceremony_request(1, 1), Some("c")).await;
    assert!(!again.replayed && again.body != made.body, "shares are shown once and kept nowhere");

    let policy = NewPolicy { text: "version = 1\n".to_owned() };
    let first = post(&keyholder, "/v1/policy", &policy, Some("one")).await;
    let second = post(&keyholder, "/v1/policy", &policy, Some("one")).await;
    assert_eq!((first.status, second.status, second.replayed), (StatusCode::OK, StatusCode::OK, true));
    assert_eq!(first.body, second.body);
    assert_eq!(serial(&keyholder), Some(1), "it was applied once");
    post(&keyholder, "/v1/policy", &policy, Some("two")).await;
    post(&keyholder, "/v1/policy", &policy, None).await;
    assert_eq!(serial(&keyholder), Some(3));
    let other = NewPolicy { text: "version = 1\n[quorum]\nerase = 2\n".to_owned() };
    let clash = post(&keyholder, "/v1/policy", &other, Some("one")).await;
    assert_eq!(clash.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", clash.body);
    // A refusal may be none the next time, and is not kept.
    let wrong = NewPolicy { text: "version = 7\n".to_owned() };
    let refused = post(&keyholder, "/v1/policy", &wrong, Some("three")).await;
    let refused_again = post(&keyholder, "/v1/policy", &wrong, Some("three")).await;
    assert_eq!((refused.status, refused_again.replayed), (StatusCode::BAD_REQUEST, false));
    for key in ["", &"k".repeat(129)] {
        let answer = post(&keyholder, "/v1/policy", &policy, Some(key)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{key}");
    }
    assert_eq!(post(&keyholder, "/v1/policy", &policy, Some(&"k".repeat(128))).await.status, StatusCode::OK);
}

/// The state says what was done, and what may have been done is not done a second time by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_after_a_restart_is_not_carried_out_again() {
    let site = Site::new().await;
    let dir = tempfile::tempdir().unwrap();
    let policy = NewPolicy { text: "version = 1\n".to_owned() };
    let keyholder = Keyholder::open(site.params(dir.path())).unwrap();
    let made = post(&keyholder, "/v1/ceremony", &ceremony_request(1, 1), None).await;
    let made: keyholder::api::CeremonyResult = serde_json::from_str(&made.body).unwrap();
    let first = post(&keyholder, "/v1/policy", &policy, Some("one")).await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.body);
    let wrong = NewPolicy { text: "version = 7\n".to_owned() };
    let refused = post(&keyholder, "/v1/policy", &wrong, Some("two")).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    keyholder.shut_down().await;
    drop(keyholder);

    let file = std::fs::read(dir.path().join("requests")).unwrap();
    assert!(!file.windows(5).any(|window| window == b"alice"), "hashes alone");
    let keyholder = Keyholder::open(site.params(dir.path())).unwrap();
    let share = made.shares[0].open(&crate::site::officer_secret(1)).unwrap();
    post(&keyholder, "/v1/unseal", &keyholder::api::UnsealRequest { share }, None).await;
    let again = post(&keyholder, "/v1/policy", &policy, Some("one")).await;
    assert_eq!(again.status, StatusCode::CONFLICT, "{}", again.body);
    assert!(
        again.body.contains("already-done") && again.body.contains("look at the state"),
        "{}",
        again.body
    );
    assert_eq!(serial(&keyholder), Some(1), "it was applied once");
    let other = post(&keyholder, "/v1/policy", &wrong, Some("one")).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", other.body);
    let new = post(&keyholder, "/v1/policy", &policy, Some("three")).await;
    assert_eq!((new.status, serial(&keyholder)), (StatusCode::OK, Some(2)));
    // What was refused was not done, and can be sent again.
    let refused = post(&keyholder, "/v1/policy", &wrong, Some("two")).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_all_the_time_is_told_to_wait_and_can_still_take_keys_away() {
    let site = Site::new().await;
    let dir = tempfile::tempdir().unwrap();
    let keyholder = Keyholder::open(site.params(dir.path())).unwrap();
    let nothing = serde_json::json!({});
    // Made once: it is to be asked faster than it admits.
    let router = keyholder.router();
    let mut passed = 0;
    let told = loop {
        let answer = post_to(router.clone(), "/v1/logout", &nothing, None).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            break answer;
        }
        passed += 1;
        assert!(passed < 5_000, "nobody is told to wait");
    };
    assert!(told.body.contains("too-often") && passed >= 500, "{passed}: {}", told.body);
    for _ in 0..600 {
        let lockdown = post(&keyholder, "/v1/lockdown", &nothing, None).await;
        assert_ne!(lockdown.status, StatusCode::TOO_MANY_REQUESTS);
    }
}
