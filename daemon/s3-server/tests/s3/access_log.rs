//! The server access log, from a request to the object that says so.

use std::time::Duration;

use objects::simulated::SimulatedKey;
use objects::{BucketOptions, ListRequest};
use s3_server::S3Server;

use crate::client::{Answered, Asked, Client};
use crate::server::Running;

const LOGS: &str = "logs";

async fn ask(running: &Running, method: &'static str, path: &str, body: &str) -> Answered {
    let asked = Asked::new(method, path).header("content-length", body.len()).sign(running);
    Client::connect(running).await.ask(&asked, body.as_bytes()).await
}

fn logging(bucket: &str, prefix: &str, format: &str) -> String {
    format!(
        "<BucketLoggingStatus xmlns=\"http://doc.s3.amazonaws.com/2006-03-01\"><LoggingEnabled>\
         <TargetBucket>{bucket}</TargetBucket><TargetPrefix>{prefix}</TargetPrefix>{format}\
         </LoggingEnabled></BucketLoggingStatus>"
    )
}

/// A server with a bucket for logs, delivered as fast as possible.
async fn start() -> Running {
    let running = Running::start().await;
    let store = std::sync::Arc::clone(&running.store);
    let make = move || store.create_bucket(LOGS, BucketOptions::default()).unwrap();
    tokio::task::spawn_blocking(make).await.unwrap();
    let server: S3Server = running.server.clone();
    tokio::spawn(async move { server.keep_access_logs(Duration::from_millis(50)).await });
    running
}

/// Names and lines of all log objects, once there are so many lines.
async fn delivered(running: &Running, lines: usize) -> (Vec<String>, Vec<String>) {
    for _ in 0..2_400 {
        let store = std::sync::Arc::clone(&running.store);
        let read = move || {
            let request = ListRequest { limit: 1_000, ..ListRequest::default() };
            let names: Vec<String> =
                store.list_objects(LOGS, &request).unwrap().objects.into_iter().map(|(key, _)| key).collect();
            let mut text = String::new();
            for name in &names {
                let object = store.object(LOGS, name, None).unwrap();
                let bytes = object.reader(&(0..object.info().bytes)).next_chunk(1 << 20).unwrap().unwrap();
                text.push_str(std::str::from_utf8(&bytes).unwrap());
            }
            (names, text.lines().map(str::to_owned).collect::<Vec<_>>())
        };
        let found = tokio::task::spawn_blocking(read).await.unwrap();
        if found.1.len() >= lines {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{lines} lines were not delivered");
}

/// The fields of a line: separated by spaces, but for what is in quotes or brackets.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut closes) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (c, closes) {
            (' ', None) => fields.push(std::mem::take(&mut field)),
            ('"', None) => closes = Some('"'),
            ('[', None) => closes = Some(']'),
            (c, Some(end)) if c == end => closes = None,
            _ => field.push(c),
        }
    }
    fields.push(field);
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_to_a_bucket_is_a_line_with_what_it_was() {
    let running = start().await;
    let asked = logging(LOGS, "of-bucket/", "");
    assert_eq!(ask(&running, "PUT", "/bucket?logging", &asked).await.status, 200);
    let read = ask(&running, "GET", "/bucket?logging", "").await;
    assert!(read.text().contains("<TargetBucket>logs</TargetBucket>"), "{}", read.text());

    assert_eq!(ask(&running, "PUT", "/bucket/dir/a%20b", "twelve bytes").await.status, 200);
    let got = Asked::new("GET", "/bucket/dir/a%20b")
        .header("range", "bytes=0-3")
        .header("user-agent", "agent/1 \"x\"")
        .header("referer", "https://example.com/page?a=1&X-Amz-Signature=abc")
        .sign(&running);
    let got = Client::connect(&running).await.ask(&got, b"").await;
    assert_eq!((got.status, got.text().as_str()), (206, "twel"));
    assert_eq!(ask(&running, "GET", "/bucket/missing", "").await.status, 404);
    let unsigned =
        Asked::new("GET", "/bucket/dir/a%20b?X-Amz-Security-Token=secret").header("host", running.address);
    assert_eq!(Client::connect(&running).await.ask(&unsigned, b"").await.status, 403);
    ask(&running, "GET", "/logs?list-type=2", "").await;

    let (names, lines) = delivered(&running, 5).await;
    assert!(names.iter().all(|name| name.starts_with("of-bucket/20")), "{names:?}");
    let lines: Vec<Vec<String>> = lines.iter().map(|line| fields(line)).collect();
    assert!(lines.iter().all(|line| line.len() == 26 && line[1] == "bucket"), "{lines:?}");
    let find = |operation: &str, status: &str| {
        let mut found = lines.iter().filter(|line| line[6] == operation && line[9] == status);
        found.next().unwrap_or_else(|| panic!("no line of {operation} {status}: {lines:?}")).clone()
    };
    let put = find("REST.PUT.OBJECT", "200");
    assert_eq!((put[4].as_str(), put[7].as_str(), put[12].as_str()), ("tester", "dir/a%2520b", "12"));
    assert_eq!((put[3].as_str(), put[19].as_str(), put[21].as_str()), ("127.0.0.1", "SigV4", "AuthHeader"));
    let get = find("REST.GET.OBJECT", "206");
    assert_eq!((get[11].as_str(), get[12].as_str()), ("4", "12"), "sent, and the whole");
    assert_eq!(get[8], "GET /bucket/dir/a%20b HTTP/1.1");
    assert_eq!(
        (get[15].as_str(), get[16].as_str()),
        ("https://example.com/page?a=1&X-Amz-Signature=-", "agent/1 %22x%22")
    );
    assert_eq!(get[5], got.headers["x-amz-request-id"]);
    let missing = find("REST.GET.OBJECT", "404");
    assert_eq!((missing[10].as_str(), missing[7].as_str()), ("NoSuchKey", "missing"));
    let denied = find("REST.GET.OBJECT", "403");
    assert_eq!((denied[4].as_str(), denied[10].as_str(), denied[19].as_str()), ("-", "AccessDenied", "-"));
    assert!(denied[8].contains("X-Amz-Security-Token=- "), "{}", denied[8]);
    assert!(running.metrics_text().contains("s3_access_log_lines_lost_total 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_under_the_default_key_of_the_bucket_that_holds_them() {
    let running = start().await;
    running.named_keys.lend("books", SimulatedKey::new(1));
    let configuration = "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>\
                         <SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>books</KMSMasterKeyID>\
                         </ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>";
    assert_eq!(ask(&running, "PUT", "/logs?encryption", configuration).await.status, 200);
    assert_eq!(ask(&running, "PUT", "/bucket?logging", &logging(LOGS, "", "")).await.status, 200);
    assert_eq!(ask(&running, "PUT", "/bucket/k", "body").await.status, 200);
    let (names, _) = delivered(&running, 1).await;
    let store = std::sync::Arc::clone(&running.store);
    let head = move || store.head_object(LOGS, &names[0], None).unwrap();
    let info = tokio::task::spawn_blocking(head).await.unwrap();
    assert_eq!(info.named_key.as_deref(), Some("books"));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_go_only_where_they_may() {
    let running = start().await;
    let key = running.store.create_user("bob").unwrap();
    let put = |path: &str, body: String| {
        let asked = Asked::new("PUT", path).header("content-length", body.len()).sign_as(&running, &key);
        let running = &running;
        async move { Client::connect(running).await.ask(&asked, body.as_bytes()).await.status }
    };
    for bucket in ["/bobs", "/bobs-logs"] {
        assert_eq!(put(bucket, String::new()).await, 200);
    }
    assert_eq!(put("/bobs?logging", logging("bobs-logs", "p", "")).await, 200);
    assert_eq!(put("/bobs?logging", logging("missing", "p", "")).await, 400);
    // The shared bucket is nobody's, and so not bob's.
    assert_eq!(put("/bobs?logging", logging(LOGS, "p", "")).await, 400);
    let grants = "<TargetGrants><Grant><Permission>READ</Permission></Grant></TargetGrants>";
    assert!(put("/bobs?logging", logging("bobs-logs", "p", grants)).await >= 400);
    // Another's bucket cannot be logged, nor read about.
    let alice = running.store.create_user("alice").unwrap();
    let asked = Asked::new("GET", "/bobs?logging").sign_as(&running, &alice);
    assert_eq!(Client::connect(&running).await.ask(&asked, b"").await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_at_a_planned_stop_is_delivered_first() {
    let running = Running::start().await;
    let store = std::sync::Arc::clone(&running.store);
    let make = move || store.create_bucket(LOGS, BucketOptions::default()).unwrap();
    tokio::task::spawn_blocking(make).await.unwrap();
    let format = "<TargetObjectKeyFormat><PartitionedPrefix><PartitionDateSource>DeliveryTime</PartitionDateSource>\
                  </PartitionedPrefix></TargetObjectKeyFormat>";
    assert_eq!(ask(&running, "PUT", "/bucket?logging", &logging(LOGS, "", format)).await.status, 200);
    assert_eq!(ask(&running, "PUT", "/bucket/k", "body").await.status, 200);
    running.server.drain(Duration::from_secs(60)).await;
    let (names, lines) = delivered(&running, 1).await;
    assert!(lines.iter().any(|line| line.contains("REST.PUT.OBJECT")), "{lines:?}");
    assert!(names[0].starts_with("nightlatch/eu-central-1/bucket/20"), "{names:?}");
}
