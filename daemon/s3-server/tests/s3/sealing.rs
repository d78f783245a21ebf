//! The key goes: requests are told so, bodies end, nothing wrong is sent; the key comes: service resumes.

use std::time::Duration;

use crate::client::{Asked, Client};
use crate::server::Running;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from((n * 31 + n / 251) % 256).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_server_ends_the_connections_from_before_and_says_so_to_everybody_new() {
    let mut running = Running::start().await;
    let mut client = Client::connect(&running).await;
    assert_eq!(client.put(&running, "/bucket/k", b"value").await.status, 200);
    let leaving = running.server.leaving();
    running.seal().await;
    leaving.wait().await;
    assert!(client.read_head().await.is_none(), "ended without an answer to nothing");
    let mut client = Client::connect(&running).await;
    for path in ["/", "/bucket", "/bucket/k", "/bucket?list-type=2"] {
        let answer = client.get(&running, path).await;
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.headers["retry-after"], "5");
        assert_eq!(answer.headers["content-type"], "application/xml");
        assert!(answer.text().contains("<Code>ServiceUnavailable</Code>"), "{}", answer.text());
        assert!(answer.text().contains(&answer.headers["x-amz-request-id"]));
    }
    // Not even who would be refused anyhow learns more.
    let anonymous = client.ask(&Asked::new("GET", "/bucket/k").header("host", "x"), b"").await;
    assert_eq!(anonymous.status, 503);
    let put = client.put(&running, "/bucket/other", &pattern(300_000)).await;
    assert_eq!(put.status, 503);
    running.unseal().await;
    let mut client = Client::connect(&running).await;
    assert_eq!(client.get(&running, "/bucket/k").await.body, b"value");
    assert_eq!(client.get(&running, "/bucket/other").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_being_sent_ends_early_and_without_a_wrong_byte() {
    let mut running = Running::start().await;
    let body = pattern(24 << 20);
    let mut client = Client::connect(&running).await;
    assert_eq!(client.put(&running, "/bucket/big", &body).await.status, 200);
    client.send(Asked::new("GET", "/bucket/big").sign(&running).head().as_bytes()).await;
    let (status, headers) = client.read_head().await.unwrap();
    assert_eq!((status, headers["content-length"].as_str()), (200, "25165824"));
    let mut received = client.read_body(1 << 20).await;
    running.seal().await;
    received.extend(client.read_body(body.len()).await);
    assert!(received.len() < body.len(), "the whole body came after the key was gone");
    assert!(body.starts_with(&received), "a byte is wrong");
    running.unseal().await;
    let mut client = Client::connect(&running).await;
    assert!(client.get(&running, "/bucket/big").await.body == body);
    let metrics = running.metrics_text();
    assert!(metrics.contains("s3_unfinished_total{operation=\"GetObject\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_does_not_hold_the_sealed_store() {
    let running = Running::start().await;
    let body = pattern(24 << 20);
    let mut client = Client::connect(&running).await;
    assert_eq!(client.put(&running, "/bucket/big", &body).await.status, 200);
    client.send(Asked::new("GET", "/bucket/big").sign(&running).head().as_bytes()).await;
    client.read_head().await.unwrap();
    running.seal().await;
    // The client reads nothing; still its request ends and lets go.
    let gone = async {
        while !running.metrics_text().contains("s3_requests_in_flight 0\n") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the request holds on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_being_received_is_answered_with_503_and_leaves_no_object() {
    let mut running = Running::start().await;
    let body = pattern(4 << 20);
    let mut client = Client::connect(&running).await;
    let asked = Asked::new("PUT", "/bucket/late").header("content-length", body.len()).sign(&running);
    client.send(asked.head().as_bytes()).await;
    client.send(&body[..2 << 20]).await;
    while running.metrics_text().contains("s3_requests_in_flight 0\n") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.seal().await;
    let answer = client.answer("PUT").await;
    assert_eq!(answer.status, 503);
    running.unseal().await;
    let mut client = Client::connect(&running).await;
    assert_eq!(client.get(&running, "/bucket/late").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_is_in_flight_and_refuses_what_is_new() {
    let running = Running::start().await;
    let body = pattern(2 << 20);
    let mut client = Client::connect(&running).await;
    let asked = Asked::new("PUT", "/bucket/last").header("content-length", body.len()).sign(&running);
    client.send(asked.head().as_bytes()).await;
    client.send(&body[..1 << 20]).await;
    while running.metrics_text().contains("s3_requests_in_flight 0\n") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let server = running.server.clone();
    let drain = tokio::spawn(async move { server.drain(Duration::from_secs(30)).await });
    running.accepting.await.unwrap();
    client.send(&body[1 << 20..]).await;
    assert_eq!(client.answer("PUT").await.status, 200);
    assert_eq!(drain.await.unwrap().cut, 0);
    assert!(running.store.head_object("bucket", "last", None).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_cuts_what_does_not_finish() {
    let running = Running::start().await;
    let mut client = Client::connect(&running).await;
    let asked = Asked::new("PUT", "/bucket/never").header("content-length", 1000).sign(&running);
    client.send(asked.head().as_bytes()).await;
    while running.metrics_text().contains("s3_requests_in_flight 0\n") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(running.server.drain(Duration::from_millis(50)).await.cut, 1);
    assert!(client.read_head().await.is_none());
}
