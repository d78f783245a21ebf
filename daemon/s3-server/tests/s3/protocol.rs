//! What S3 clients rely on, and what they must not get away with.

use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3_server::{Rates, S3Options};
use tokio::net::TcpStream;

use crate::client::{Asked, Client, UNSIGNED_CHUNKS};
use crate::server::{Running, options};

fn code(answer: &crate::client::Answered) -> (u16, String) {
    let text = answer.text();
    let code = text.split("<Code>").nth(1).and_then(|rest| rest.split("</Code>").next());
    (answer.status, code.unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_without_a_signature_that_covers_it() {
    let running = Running::start().await;
    let mut client = Client::connect(&running).await;
    client.put(&running, "/bucket/secret", b"secret").await;
    let anonymous = Asked::new("GET", "/bucket/secret").header("host", running.address);
    assert_eq!(code(&client.ask(&anonymous, b"").await), (403, "AccessDenied".into()));
    let mut forged = Asked::new("GET", "/bucket/secret").sign(&running);
    forged.path = "/bucket/other".into();
    assert_eq!(code(&client.ask(&forged, b"").await), (403, "SignatureDoesNotMatch".into()));
    let added = Asked::new("PUT", "/bucket/copy").header("content-length", 0).sign(&running);
    let added = added.header("x-amz-copy-source", "/bucket/secret");
    assert_eq!(code(&client.ask(&added, b"").await), (403, "AccessDenied".into()));
    let mut stranger = Asked::new("GET", "/bucket/secret").sign(&running);
    let authorization = stranger.headers["authorization"].replace(&running.key.id, "NLAAAAAAAAAAAAAAAAAA");
    stranger.headers.insert("authorization".into(), authorization);
    assert_eq!(code(&client.ask(&stranger, b"").await), (403, "InvalidAccessKeyId".into()));
    running.store.delete_access_key(&running.key.id).unwrap();
    assert_eq!(code(&client.get(&running, "/bucket/secret").await), (403, "InvalidAccessKeyId".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_implemented_is_refused_by_name() {
    let running = Running::start().await;
    let mut client = Client::connect(&running).await;
    for path in ["/bucket?accelerate", "/bucket?website", "/bucket?replication", "/bucket?inventory"] {
        assert_eq!(code(&client.get(&running, path).await), (501, "NotImplemented".into()), "{path}");
    }
    let confirmed =
        Asked::new("PUT", "/bucket/k").header("content-length", 0).header("x-amz-mfa", "20899872 301749");
    assert_eq!(code(&client.ask(&confirmed.sign(&running), b"").await), (501, "NotImplemented".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_upload_gets_its_reason_even_if_it_does_not_wait_for_it() {
    let running = Running::start().await;
    let mut client = Client::connect(&running).await;
    let body = vec![7; 8 << 20];
    let asked = Asked::new("PUT", "/no-such-bucket/k").header("content-length", body.len()).sign(&running);
    client.send(asked.head().as_bytes()).await;
    assert!(client.try_send(&body).await, "the connection was reset while the client was sending");
    assert_eq!(code(&client.answer("PUT").await), (404, "NoSuchBucket".into()));
    assert_eq!(client.put(&running, "/bucket/next", b"same connection").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_100_continue_need_not_send_what_is_refused() {
    let running = Running::start().await;
    let mut client = Client::connect(&running).await;
    let waiting = |path: &str, length: usize| {
        Asked::new("PUT", path)
            .header("content-length", length)
            .header("expect", "100-continue")
            .sign(&running)
    };
    client.send(waiting("/no-such-bucket/k", 1 << 20).head().as_bytes()).await;
    assert_eq!(client.answer("PUT").await.status, 404);
    // The body was never sent: what comes next is a request or nothing at all.
    client.try_send(Asked::new("GET", "/").sign(&running).head().as_bytes()).await;
    assert!(client.read_head().await.is_none_or(|(status, _)| status == 200));
    let mut client = Client::connect(&running).await;
    client.send(waiting("/bucket/k", 5).head().as_bytes()).await;
    assert_eq!(client.read_head().await.unwrap().0, 100);
    client.send(b"12345").await;
    assert_eq!(client.answer("PUT").await.status, 200);
}

/// `body` as one `aws-chunked` chunk with a checksum behind it.
fn one_chunk(body: &[u8], crc32c: u32) -> Vec<u8> {
    use base64::Engine;
    let value = base64::engine::general_purpose::STANDARD.encode(crc32c.to_be_bytes());
    let mut framed = format!("{:x}\r\n", body.len()).into_bytes();
    framed.extend_from_slice(body);
    framed.extend_from_slice(format!("\r\n0\r\nx-amz-checksum-crc32c:{value}\r\n\r\n").as_bytes());
    framed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_that_follows_the_body_is_checked() {
    let running = Running::start().await;
    let mut client = Client::connect(&running).await;
    let body: Vec<u8> = (0..3_000_017_u32).map(|n| (n % 253) as u8).collect();
    let put = |framed: &[u8], announced: usize| {
        let mut asked = Asked::new("PUT", "/bucket/chunked")
            .header("content-length", framed.len())
            .header("content-encoding", "aws-chunked")
            .header("x-amz-decoded-content-length", announced)
            .header("x-amz-trailer", "x-amz-checksum-crc32c");
        asked.payload = UNSIGNED_CHUNKS;
        asked.sign(&running)
    };
    let wrong = one_chunk(&body, 1);
    let answer = client.ask(&put(&wrong, body.len()), &wrong).await;
    assert_eq!(code(&answer), (400, "BadDigest".into()));
    assert_eq!(client.get(&running, "/bucket/chunked").await.status, 404);
    let right = one_chunk(&body, crc32c::crc32c(&body));
    let answer = client.ask(&put(&right, body.len() + 1), &right).await;
    assert_eq!(code(&answer), (400, "IncompleteBody".into()));
    let answer = client.ask(&put(&right, body.len()), &right).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let get = client.get(&running, "/bucket/chunked").await;
    assert!(get.body == body);
    assert!(!get.headers.contains_key("content-encoding"), "the framing is not the object's encoding");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_heads_and_bodies_hurt_nobody_else() {
    let running = Running::start().await;
    let mut client = Client::connect(&running).await;
    for bad in ["GET\r\n\r\n", "\u{1}\u{2}\u{3}\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let mut spoiler = Client::connect(&running).await;
        spoiler.send(bad.as_bytes()).await;
        let _ = spoiler.read_head().await;
    }
    let mut long = Client::connect(&running).await;
    let endless =
        format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(s3_server::limits::CONNECTION_BUFFER_BYTES));
    long.try_send(endless.as_bytes()).await;
    assert!(long.read_head().await.is_none_or(|(status, _)| status == 431));
    for (path, body) in [
        ("/bucket?delete", "<Delete><Object>"),
        ("/bucket?delete", ""),
        ("/bucket/k?uploadId=x", "<CompleteMultipartUpload></CompleteMultipartUpload>"),
        ("/bucket/k?uploadId=x", "not xml"),
    ] {
        let asked = Asked::new("POST", path).header("content-length", body.len()).sign(&running);
        let answer = client.ask(&asked, body.as_bytes()).await;
        assert!((400..500).contains(&answer.status), "{path} {body}: {}", answer.status);
    }
    let mut cut = Client::connect(&running).await;
    let asked = Asked::new("PUT", "/bucket/cut").header("content-length", 100).sign(&running);
    cut.send(asked.head().as_bytes()).await;
    cut.send(b"only this").await;
    drop(cut);
    assert_eq!(client.get(&running, "/bucket/cut").await.status, 404);
    assert_eq!(client.put(&running, "/bucket/fine", b"fine").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_answers_do_not_wait_for_acknowledgements() {
    let running = Running::start().await;
    let mut client = Client::connect(&running).await;
    client.put(&running, "/bucket/small", &[1; 4096]).await;
    let mut times = Vec::new();
    for _ in 0..60 {
        let began = Instant::now();
        assert_eq!(client.get(&running, "/bucket/small").await.body.len(), 4096);
        times.push(began.elapsed().as_millis());
    }
    // Nagle's algorithm meeting a delayed acknowledgement costs 40 ms each time, once the kernel delays acknowledgements. A busy
    // machine delays an answer here and there, and not each.
    let quickest = times[20..].iter().min().unwrap();
    assert!(*quickest < 30, "the quickest GET took {quickest} ms: {times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_serves_the_same() {
    let running = Running::start().await;
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(
        TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let body: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 241) as u8).collect();
    let request = |asked: Asked, body: Vec<u8>| {
        let mut request = http::Request::builder()
            .method(asked.method)
            .uri(format!("http://{}{}", running.address, asked.path));
        for (name, value) in asked.headers.iter().filter(|(name, _)| *name != "host") {
            request = request.header(name, value);
        }
        request.body(Full::new(Bytes::from(body))).unwrap()
    };
    let put = Asked::new("PUT", "/bucket/h2").header("content-length", body.len()).sign(&running);
    let answer = sender.send_request(request(put, body.clone())).await.unwrap();
    assert_eq!(answer.status(), 200);
    let get = Asked::new("GET", "/bucket/h2").sign(&running);
    let answer = sender.send_request(request(get, Vec::new())).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.into_body().collect().await.unwrap().to_bytes() == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_counted_under_its_operation() {
    let running = Running::start().await;
    let mut client = Client::connect(&running).await;
    client.put(&running, "/bucket/k", &[0; 1000]).await;
    let first = client.get(&running, "/bucket/k").await;
    let second = client.get(&running, "/bucket/missing").await;
    assert_ne!(first.headers["x-amz-request-id"], second.headers["x-amz-request-id"]);
    let text = running.metrics_text();
    for line in [
        "s3_requests_total{operation=\"PutObject\"} 1",
        "s3_requests_total{operation=\"GetObject\"} 2",
        "s3_errors_total{operation=\"GetObject\",status=\"404\"} 1",
        "s3_received_bytes_total{operation=\"PutObject\"} 1000",
        "s3_latency_seconds_count{operation=\"GetObject\"} 2",
        "s3_connections 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

/// Far more than are needed to be too quick, on a machine that takes its time too.
const REQUESTS_MAX: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_allowed_are_told_to_slow_down() {
    let operations = [("GetObject".to_owned(), 3)].into();
    let rates = Rates { per_address: 0, per_key: 8, operations };
    let running = Running::start_with(S3Options { rates, ..options() }).await;
    let mut client = Client::connect(&running).await;
    assert_eq!(client.put(&running, "/bucket/k", b"body").await.status, 200);
    let mut refused = client.get(&running, "/bucket/k").await;
    for _ in 0..REQUESTS_MAX {
        if refused.status == 503 {
            break;
        }
        refused = client.get(&running, "/bucket/k").await;
    }
    assert_eq!(code(&refused), (503, "SlowDown".into()));
    assert!(refused.headers["retry-after"].parse::<u32>().unwrap() >= 1);
    assert!(refused.text().contains(&refused.headers["x-amz-request-id"]));
    let mut statuses = Vec::new();
    while statuses.len() < REQUESTS_MAX && !statuses.contains(&503) {
        statuses.push(client.put(&running, "/bucket/k", b"body").await.status);
    }
    assert!(statuses.contains(&503) && statuses[0] == 200, "the key's own limit: {statuses:?}");
    let other = running.store.clone();
    let other = tokio::task::spawn_blocking(move || other.create_user("other").unwrap()).await.unwrap();
    let asked = Asked::new("PUT", "/bucket/k").header("content-length", 0).sign_as(&running, &other);
    assert_eq!(client.ask(&asked, b"").await.status, 200, "another key is not held up");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_from_one_address_are_not_even_looked_at() {
    let rates = Rates { per_address: 5, ..Rates::default() };
    let running = Running::start_with(S3Options { rates, ..options() }).await;
    let mut client = Client::connect(&running).await;
    let anonymous = Asked::new("GET", "/bucket/k").header("host", running.address);
    let mut statuses = Vec::new();
    while statuses.len() < REQUESTS_MAX && !statuses.contains(&503) {
        statuses.push(client.ask(&anonymous, b"").await.status);
    }
    assert!(statuses.contains(&403) && statuses.contains(&503), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_are_host_names_too_where_a_domain_says_so() {
    let running =
        Running::start_with(S3Options { domains: vec!["s3.example.com".to_owned()], ..options() }).await;
    let mut client = Client::connect(&running).await;
    let ask = |method, path| {
        let asked = Asked::new(method, path).header("content-length", 0);
        asked.sign_for(&running, "bucket.s3.example.com")
    };
    assert_eq!(client.ask(&ask("PUT", "/k"), b"").await.status, 200);
    assert_eq!(client.ask(&ask("GET", "/k"), b"").await.status, 200);
    assert_eq!(client.get(&running, "/bucket/k").await.status, 200, "and in paths");
    let unknown = S3Options { domains: vec!["a.b".to_owned(), "x.a.b".to_owned()], ..options() };
    assert!(s3_server::S3Server::with_options(unknown).is_err());
}
