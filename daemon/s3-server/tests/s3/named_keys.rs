//! Keys with names (SSE-KMS), as clients see them: asked for, said, and gone.

use std::collections::BTreeMap;

use objects::KeyAway;
use objects::simulated::SimulatedKey;

use crate::client::{Answered, Asked, Client};
use crate::server::Running;

const ALGORITHM: &str = "x-amz-server-side-encryption";
const KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";

async fn running() -> Running {
    let running = Running::start().await;
    running.named_keys.lend("photos", SimulatedKey::new(1));
    running.named_keys.lend("books", SimulatedKey::new(2));
    running
}

fn under(asked: Asked, key: &str) -> Asked {
    asked.header(ALGORITHM, "aws:kms").header(KEY, key)
}

async fn put(client: &mut Client, running: &Running, path: &str, key: &str, body: &[u8]) -> Answered {
    let asked = Asked::new("PUT", path).header("content-length", body.len());
    client.ask(&under(asked, key).sign(running), body).await
}

fn said(headers: &BTreeMap<String, String>) -> (&str, &str) {
    let of = |name: &str| headers.get(name).map_or("", String::as_str);
    (of(ALGORITHM), of(KEY))
}

fn refused(answer: &Answered, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.text().contains(&format!("<Code>{code}</Code>")), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_locks_its_objects_and_only_those_with_the_code_of_amazons_key_service() {
    let running = running().await;
    let mut client = Client::connect(&running).await;
    for (path, key) in [("/bucket/photo", "photos"), ("/bucket/book", "books")] {
        let made = put(&mut client, &running, path, key, &[7_u8; 300_000]).await;
        assert_eq!((made.status, said(&made.headers)), (200, ("aws:kms", key)));
    }
    assert_eq!(client.put(&running, "/bucket/open", b"open").await.status, 200);
    for (path, key) in [("/bucket/photo", "photos"), ("/bucket/book", "books")] {
        let got = client.get(&running, path).await;
        assert!(got.body == [7_u8; 300_000] && said(&got.headers) == ("aws:kms", key));
        let head = client.ask(&Asked::new("HEAD", path).sign(&running), b"").await;
        assert_eq!((head.status, said(&head.headers)), (200, ("aws:kms", key)));
    }

    running.named_keys.take_back("photos", KeyAway::Revoked);
    refused(&client.get(&running, "/bucket/photo").await, 403, "KMS.DisabledException");
    let copy = Asked::new("PUT", "/bucket/copy").header("content-length", 0);
    let copy = copy.header("x-amz-copy-source", "/bucket/photo").sign(&running);
    refused(&client.ask(&copy, b"").await, 403, "KMS.DisabledException");
    refused(&put(&mut client, &running, "/bucket/new", "photos", b"x").await, 403, "KMS.DisabledException");
    assert!(client.get(&running, "/bucket/book").await.body == [7_u8; 300_000]);
    assert_eq!(client.get(&running, "/bucket/open").await.body, b"open");
    let head = client.ask(&Asked::new("HEAD", "/bucket/photo").sign(&running), b"").await;
    assert_eq!((head.status, said(&head.headers)), (200, ("aws:kms", "photos")));
    assert!(client.get(&running, "/bucket").await.text().contains("<Key>photo</Key>"));

    running.named_keys.lend("photos", SimulatedKey::new(1));
    assert!(client.get(&running, "/bucket/photo").await.body == [7_u8; 300_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_on_its_way_is_no_final_answer() {
    let running = running().await;
    let mut client = Client::connect(&running).await;
    assert_eq!(put(&mut client, &running, "/bucket/photo", "photos", b"photo").await.status, 200);
    running.named_keys.take_all_back();
    running.named_keys.set_awaited(2);
    let got = client.get(&running, "/bucket/photo").await;
    refused(&got, 503, "ServiceUnavailable");
    assert!(got.headers.contains_key("retry-after"), "{:?}", got.headers);
    for key in ["photos", "unknown"] {
        refused(&put(&mut client, &running, "/bucket/new", key, b"x").await, 503, "ServiceUnavailable");
    }
    running.named_keys.lend("photos", SimulatedKey::new(1));
    running.named_keys.set_awaited(0);
    assert_eq!(client.get(&running, "/bucket/photo").await.body, b"photo");
    refused(&put(&mut client, &running, "/bucket/new", "unknown", b"x").await, 400, "KMS.NotFoundException");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_of_the_clear_bytes_is_told_while_the_key_is_lent_only() {
    const CHECKSUM: &str = "x-amz-checksum-crc32";
    const VALUE: &str = "y/Q5Jg==";
    let running = running().await;
    let mut client = Client::connect(&running).await;
    let asked = Asked::new("PUT", "/bucket/k").header("content-length", 9).header(CHECKSUM, VALUE);
    assert_eq!(client.ask(&under(asked, "photos").sign(&running), b"123456789").await.status, 200);
    let head = Asked::new("HEAD", "/bucket/k").header("x-amz-checksum-mode", "ENABLED").sign(&running);
    let attributes = Asked::new("GET", "/bucket/k?attributes");
    let attributes = attributes.header("x-amz-object-attributes", "Checksum,ObjectSize").sign(&running);
    let said = client.ask(&head, b"").await;
    assert_eq!((said.status, said.headers[CHECKSUM].as_str()), (200, VALUE));
    assert!(client.ask(&attributes, b"").await.text().contains(VALUE));

    running.named_keys.take_back("photos", KeyAway::Revoked);
    let said = client.ask(&head, b"").await;
    assert_eq!((said.status, said.headers["content-length"].as_str()), (200, "9"));
    assert!(!said.headers.contains_key(CHECKSUM), "{:?}", said.headers);
    let said = client.ask(&attributes, b"").await.text();
    assert!(said.contains("<ObjectSize>9</ObjectSize>") && !said.contains(VALUE), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_being_sent_ends_when_its_key_is_taken_back() {
    let running = running().await;
    let mut client = Client::connect(&running).await;
    let key = SimulatedKey::new(5);
    running.named_keys.lend("large", key.clone());
    let body = vec![7_u8; 24 << 20];
    assert_eq!(put(&mut client, &running, "/bucket/large", "large", &body).await.status, 200);
    client.send(Asked::new("GET", "/bucket/large").sign(&running).head().as_bytes()).await;
    let (status, _) = client.read_head().await.unwrap();
    let mut received = client.read_body(1 << 20).await;
    key.revoke();
    received.extend(client.read_body(body.len()).await);
    assert!(status == 200 && received.len() < body.len() && body.starts_with(&received));
    let mut client = Client::connect(&running).await;
    refused(&client.get(&running, "/bucket/large").await, 403, "KMS.DisabledException");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_meant_is_refused() {
    let running = running().await;
    let mut client = Client::connect(&running).await;
    let asks: [(&[(&str, &str)], u16, &str); 6] = [
        (&[(ALGORITHM, "aws:kms")], 400, "InvalidArgument"),
        (&[(KEY, "photos")], 400, "InvalidArgument"),
        (&[(ALGORITHM, "AES256"), (KEY, "photos")], 400, "InvalidArgument"),
        (&[(ALGORITHM, "aes:kms")], 400, "InvalidArgument"),
        (&[(ALGORITHM, "aws:kms"), (KEY, "nobody")], 400, "KMS.NotFoundException"),
        (&[(ALGORITHM, "aws:kms:dsse")], 501, "NotImplemented"),
    ];
    for (headers, status, code) in asks {
        let asked = headers
            .iter()
            .fold(Asked::new("PUT", "/bucket/k").header("content-length", 1), |asked, (name, value)| {
                asked.header(name, *value)
            });
        let answer = client.ask(&asked.sign(&running), b"x").await;
        refused(&answer, status, code);
        assert_eq!(client.get(&running, "/bucket/k").await.status, 404, "{headers:?}");
    }
    let presigned = Asked::new("PUT", &format!("/bucket/k?{KEY}=photos")).header("content-length", 1);
    let presigned = presigned.sign(&running);
    refused(&client.ask(&presigned, b"x").await, 501, "NotImplemented");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buckets_default_names_the_key_of_what_says_nothing() {
    let running = running().await;
    let mut client = Client::connect(&running).await;
    let configuration = |rule: &str| {
        format!(
            "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>{rule}\
             </ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"
        )
    };
    let keyless = configuration("<SSEAlgorithm>aws:kms</SSEAlgorithm>");
    let answer = client.put(&running, "/bucket?encryption", keyless.as_bytes()).await;
    refused(&answer, 400, "InvalidArgument");
    let photos = configuration("<SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>photos</KMSMasterKeyID>");
    assert_eq!(client.put(&running, "/bucket?encryption", photos.as_bytes()).await.status, 200);
    let found = client.get(&running, "/bucket?encryption").await.text();
    assert!(found.contains("<KMSMasterKeyID>photos</KMSMasterKeyID>"), "{found}");

    let made = client.put(&running, "/bucket/a", b"a").await;
    assert_eq!((made.status, said(&made.headers)), (200, ("aws:kms", "photos")));
    let other = put(&mut client, &running, "/bucket/b", "books", b"b").await;
    assert_eq!(said(&other.headers), ("aws:kms", "books"));
    let plain = Asked::new("PUT", "/bucket/c").header("content-length", 1);
    let plain = plain.header(ALGORITHM, "AES256").sign(&running);
    assert_eq!(said(&client.ask(&plain, b"c").await.headers), ("AES256", ""));
    let copy = Asked::new("PUT", "/bucket/d").header("content-length", 0);
    let copy = copy.header("x-amz-copy-source", "/bucket/c").sign(&running);
    assert_eq!(said(&client.ask(&copy, b"").await.headers), ("aws:kms", "photos"));
    let upload = client
        .ask(&Asked::new("POST", "/bucket/m?uploads").header("content-length", 0).sign(&running), b"")
        .await;
    assert_eq!(said(&upload.headers), ("aws:kms", "photos"));
    running.named_keys.take_back("photos", KeyAway::Revoked);
    for (path, status) in [("/bucket/a", 403), ("/bucket/b", 200), ("/bucket/c", 200), ("/bucket/d", 403)] {
        assert_eq!(client.get(&running, path).await.status, status, "{path}");
    }
    let gone = client.ask(&Asked::new("DELETE", "/bucket?encryption").sign(&running), b"").await;
    assert_eq!(gone.status, 204);
    assert_eq!(said(&client.put(&running, "/bucket/a", b"a").await.headers), ("AES256", ""));
}
