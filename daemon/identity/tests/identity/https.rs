//! The HTTPS server and client together: answers, refusals, limits and the end of service.

use std::time::Duration;

use crate::support::{Installation, PATIENCE};
use identity::{ClientError, ExpectedPeer, HttpsClient, Role, ServeLimits, control_client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn refusals_carry_kind_message_and_next_step() {
    let installation = Installation::new();
    let server = installation.serve(&[Role::Operator]).await;
    let client = installation.client(&installation.issue(Role::Operator, "alice"), &server);
    match client.get::<String>("/refuse").await {
        Err(ClientError::Refused { status, problem, .. }) => {
            assert_eq!(status, 409);
            assert_eq!(problem.kind, "sealed");
            assert_eq!(problem.to_string(), "the node is sealed; push its keys");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.get::<String>("/nothing").await, Err(ClientError::Refused { status: 404, .. })));
    assert!(matches!(client.get::<String>("/text").await, Err(ClientError::Malformed { .. })));
    client.get::<()>("/empty").await.unwrap();
}

#[tokio::test]
async fn nobody_there_silence_and_clear_text_are_told_apart() {
    let installation = Installation::new();
    let alice = installation.issue(Role::Operator, "alice");
    let tls = control_client(&alice, &installation.trust(), ExpectedPeer::role(Role::Node)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = HttpsClient::new(address.into(), tls).with_timeout(PATIENCE);

    // Accepted by the kernel, never answered.
    let hurried = client.clone().with_timeout(Duration::from_millis(300));
    assert!(matches!(hurried.get::<()>("/").await, Err(ClientError::Timeout { .. })));

    let clear = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = client.get::<()>("/").await.unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error}");
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    clear.abort();
    let _ = clear.await;

    let error = client.get::<()>("/").await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let installation = Installation::new();
    let limits = ServeLimits { body_bytes_max: 1000, ..ServeLimits::default() };
    let server = installation.serve_with(&[Role::Operator], limits).await;
    let client = installation.client(&installation.issue(Role::Operator, "alice"), &server);
    // Two quotes belong to the JSON string.
    assert_eq!(client.post::<usize>("/length", &"x".repeat(998)).await.unwrap(), 1000);
    assert!(matches!(
        client.post::<usize>("/length", &"x".repeat(999)).await,
        Err(ClientError::Refused { status: 413, .. })
    ));
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_let_go() {
    let installation = Installation::new();
    let limits = ServeLimits { head_timeout: Duration::from_millis(200), ..ServeLimits::default() };
    let server = installation.serve_with(&[Role::Operator], limits).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_so() {
    let installation = Installation::new();
    let limits = ServeLimits { request_timeout: Duration::from_millis(100), ..ServeLimits::default() };
    let server = installation.serve_with(&[Role::Operator], limits).await;
    let client = installation.client(&installation.issue(Role::Operator, "alice"), &server);
    match client.get::<String>("/hold").await {
        Err(ClientError::Refused { status: 504, problem, .. }) => assert_eq!(problem.kind, "timeout"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way_and_takes_nothing_new() {
    let installation = Installation::new();
    let limits = ServeLimits { drain_timeout: PATIENCE, ..ServeLimits::default() };
    let server = installation.serve_with(&[Role::Operator], limits).await;
    let client = installation.client(&installation.issue(Role::Operator, "alice"), &server);
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.get::<String>("/hold").await }
    });
    server.held.notified().await;
    server.stop.cancel();
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.release.notify_one();
    assert_eq!(held.await.unwrap().unwrap(), "released");
    server.ended.await.unwrap();
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let installation = Installation::new();
    let limits = ServeLimits { drain_timeout: Duration::from_millis(100), ..ServeLimits::default() };
    let server = installation.serve_with(&[Role::Operator], limits).await;
    let client = installation.client(&installation.issue(Role::Operator, "alice"), &server);
    let held = tokio::spawn(async move { client.get::<String>("/hold").await });
    server.held.notified().await;
    server.stop.cancel();
    server.ended.await.unwrap();
    assert!(matches!(held.await.unwrap(), Err(ClientError::Unreachable { .. })));
}

#[tokio::test]
async fn strangers_who_say_nothing_keep_nobody_with_a_certificate_out() {
    let installation = Installation::new();
    let limits = ServeLimits { connections_max: 1, head_timeout: 10 * PATIENCE, ..ServeLimits::default() };
    let server = installation.serve_with(&[Role::Operator], limits).await;
    // More than there are places for handshakes; each would be kept for longer than the client waits.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let client = installation.client(&installation.issue(Role::Operator, "alice"), &server);
    assert_eq!(client.get::<String>("/whoami").await.unwrap(), "operator alice");
    assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0, "the oldest has given way");
}
