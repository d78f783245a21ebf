//! Every operation, by people who may not: another user, a user whose policies say nothing, one whose key has ended, nobody.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use objects::{BucketOptions, NewAccessKey, Principal};

use crate::client::{Answered, Asked, Client};
use crate::server::Running;

const LOCK: &str =
    "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>";
const TAGS: &str = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>";
const RULES: &str = "<LifecycleConfiguration><Rule><ID>r</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>\
    <Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>";

/// Operation, method, path in the bucket, body. `{upload}` stands for an upload's id.
const OPERATIONS: &[(&str, &str, &str, &str)] = &[
    ("DeleteBucket", "DELETE", "", ""),
    ("HeadBucket", "HEAD", "", ""),
    ("ListObjects", "GET", "", ""),
    ("ListObjectsV2", "GET", "?list-type=2", ""),
    ("ListObjectVersions", "GET", "?versions", ""),
    ("ListMultipartUploads", "GET", "?uploads", ""),
    ("GetBucketAcl", "GET", "?acl", ""),
    ("PutBucketAcl", "PUT", "?acl", ""),
    ("GetBucketLocation", "GET", "?location", ""),
    ("GetBucketVersioning", "GET", "?versioning", ""),
    (
        "PutBucketVersioning",
        "PUT",
        "?versioning",
        "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
    ),
    ("GetBucketTagging", "GET", "?tagging", ""),
    ("PutBucketTagging", "PUT", "?tagging", TAGS),
    ("DeleteBucketTagging", "DELETE", "?tagging", ""),
    ("GetObjectLockConfiguration", "GET", "?object-lock", ""),
    ("PutObjectLockConfiguration", "PUT", "?object-lock", LOCK),
    ("GetBucketPolicy", "GET", "?policy", ""),
    ("PutBucketPolicy", "PUT", "?policy", "{}"),
    ("DeleteBucketPolicy", "DELETE", "?policy", ""),
    ("GetBucketPolicyStatus", "GET", "?policyStatus", ""),
    ("GetPublicAccessBlock", "GET", "?publicAccessBlock", ""),
    (
        "PutPublicAccessBlock",
        "PUT",
        "?publicAccessBlock",
        "<PublicAccessBlockConfiguration></PublicAccessBlockConfiguration>",
    ),
    ("DeletePublicAccessBlock", "DELETE", "?publicAccessBlock", ""),
    ("GetBucketOwnershipControls", "GET", "?ownershipControls", ""),
    (
        "PutBucketOwnershipControls",
        "PUT",
        "?ownershipControls",
        "<OwnershipControls><Rule><ObjectOwnership>ObjectWriter</ObjectOwnership></Rule></OwnershipControls>",
    ),
    ("DeleteBucketOwnershipControls", "DELETE", "?ownershipControls", ""),
    ("GetBucketCors", "GET", "?cors", ""),
    (
        "PutBucketCors",
        "PUT",
        "?cors",
        "<CORSConfiguration><CORSRule><AllowedMethod>GET</AllowedMethod><AllowedOrigin>*</AllowedOrigin></CORSRule></CORSConfiguration>",
    ),
    ("DeleteBucketCors", "DELETE", "?cors", ""),
    ("GetBucketEncryption", "GET", "?encryption", ""),
    (
        "PutBucketEncryption",
        "PUT",
        "?encryption",
        "<ServerSideEncryptionConfiguration><Rule></Rule></ServerSideEncryptionConfiguration>",
    ),
    ("DeleteBucketEncryption", "DELETE", "?encryption", ""),
    ("GetBucketLifecycleConfiguration", "GET", "?lifecycle", ""),
    ("PutBucketLifecycleConfiguration", "PUT", "?lifecycle", RULES),
    ("DeleteBucketLifecycle", "DELETE", "?lifecycle", ""),
    ("GetBucketLogging", "GET", "?logging", ""),
    ("PutBucketLogging", "PUT", "?logging", "<BucketLoggingStatus></BucketLoggingStatus>"),
    ("GetBucketNotificationConfiguration", "GET", "?notification", ""),
    (
        "PutBucketNotificationConfiguration",
        "PUT",
        "?notification",
        "<NotificationConfiguration></NotificationConfiguration>",
    ),
    ("PutObject", "PUT", "/new", "body"),
    ("CreateMultipartUpload", "POST", "/new?uploads", ""),
    ("UploadPart", "PUT", "/parts?partNumber=1&uploadId={upload}", "body"),
    (
        "CompleteMultipartUpload",
        "POST",
        "/parts?uploadId={upload}",
        "<CompleteMultipartUpload></CompleteMultipartUpload>",
    ),
    ("AbortMultipartUpload", "DELETE", "/parts?uploadId={upload}", ""),
    ("ListParts", "GET", "/parts?uploadId={upload}", ""),
    ("DeleteObject", "DELETE", "/k", ""),
    ("GetObject", "GET", "/k", ""),
    ("HeadObject", "HEAD", "/k", ""),
    ("GetObjectAttributes", "GET", "/k?attributes", ""),
    ("GetObjectAcl", "GET", "/k?acl", ""),
    ("PutObjectAcl", "PUT", "/k?acl", ""),
    ("GetObjectTagging", "GET", "/k?tagging", ""),
    ("PutObjectTagging", "PUT", "/k?tagging", TAGS),
    ("DeleteObjectTagging", "DELETE", "/k?tagging", ""),
    ("GetObjectRetention", "GET", "/k?retention", ""),
    ("PutObjectRetention", "PUT", "/k?retention", "<Retention></Retention>"),
    ("GetObjectLegalHold", "GET", "/k?legal-hold", ""),
    ("PutObjectLegalHold", "PUT", "/k?legal-hold", "<LegalHold><Status>ON</Status></LegalHold>"),
];

/// Those whose table is elsewhere in this file, and forms, whose refusal the suite of boto3 has.
const ELSEWHERE: [&str; 6] =
    ["ListBuckets", "CreateBucket", "CopyObject", "UploadPartCopy", "DeleteObjects", "PostObject"];

const PRIVATE: &str = "/private";

enum Stranger<'a> {
    Signs(&'a NewAccessKey),
    Nobody,
}

struct Site {
    running: Running,
    owner: NewAccessKey,
    upload: String,
}

async fn site() -> Site {
    let running = Running::start().await;
    let store = running.store.clone();
    let (owner, upload) = tokio::task::spawn_blocking(move || {
        let owner = store.create_user("owner").unwrap();
        let options = BucketOptions { owner: "owner".into(), ..BucketOptions::default() };
        store.create_bucket("private", options).unwrap();
        (owner, store.create_upload("private", "parts", Default::default()).unwrap().id)
    })
    .await
    .unwrap();
    let site = Site { running, owner, upload };
    let put = site.ask("PUT", "/private/k", "secret", &[], &Stranger::Signs(&site.owner)).await;
    assert_eq!(put.status, 200, "{}", put.text());
    site
}

impl Site {
    async fn ask(
        &self,
        method: &'static str,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
        who: &Stranger<'_>,
    ) -> Answered {
        let path = path.replace("{upload}", &self.upload);
        let mut asked = Asked::new(method, &path).header("content-length", body.len());
        for (name, value) in headers {
            asked = asked.header(name, *value);
        }
        if path.ends_with("?attributes") {
            asked = asked.header("x-amz-object-attributes", "ETag");
        }
        let asked = match who {
            Stranger::Signs(key) => asked.sign_as(&self.running, key),
            Stranger::Nobody => asked.header("host", self.running.address),
        };
        // Refused early, a body may be left unread: a connection each.
        Client::connect(&self.running).await.ask(&asked, body.as_bytes()).await
    }

    /// Everything, asked by somebody who may do nothing: 403, whatever the request is.
    async fn refuses_everything(&self, name: &str, who: Stranger<'_>) {
        for (operation, method, path, body) in OPERATIONS {
            let answer = self.ask(method, &format!("{PRIVATE}{path}"), body, &[], &who).await;
            assert_eq!(answer.status, 403, "{operation} by {name}: {}", answer.text());
            assert!(!answer.text().contains("secret"), "{operation} by {name}");
        }
        let source = [("x-amz-copy-source", "/private/k")];
        for path in ["/private/copy", "/bucket/copy", "/private/parts?partNumber=1&uploadId={upload}"] {
            let answer = self.ask("PUT", path, "", &source, &who).await;
            assert_eq!(answer.status, 403, "copy to {path} by {name}: {}", answer.text());
        }
        let many = "<Delete><Object><Key>k</Key></Object></Delete>";
        let answer = self.ask("POST", "/private?delete", many, &[], &who).await;
        let refused = answer.status == 403 || answer.text().contains("<Code>AccessDenied</Code>");
        assert!(refused, "DeleteObjects by {name}: {} {}", answer.status, answer.text());
    }

    async fn is_untouched(&self) {
        let owner = Stranger::Signs(&self.owner);
        let found = self.ask("GET", "/private/k", "", &[], &owner).await;
        assert_eq!((found.status, found.body.as_slice()), (200, b"secret".as_slice()));
        let listed = self.ask("GET", "/private", "", &[], &owner).await.text();
        assert_eq!(listed.matches("<Key>").count(), 1, "{listed}");
    }
}

#[test]
fn the_table_names_every_operation() {
    let named: BTreeSet<&str> =
        OPERATIONS.iter().map(|(operation, ..)| *operation).chain(ELSEWHERE).collect();
    assert_eq!(named, s3_server::operation_names().collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_may_do_nothing() {
    let site = site().await;
    let store = site.running.store.clone();
    let (bob, limited, ended, gone) = tokio::task::spawn_blocking(move || {
        let [bob, limited, ended, gone] =
            ["bob", "limited", "ended", "gone"].map(|name| store.create_user(name).unwrap());
        store
            .put_policy("nothing", r#"{"Statement":[{"Effect":"Deny","Action":"s3:Get*","Resource":"*"}]}"#)
            .unwrap();
        store.set_attached("nothing", Principal::User("limited".into()), true).unwrap();
        store.set_access_key_expiry(&ended.id, Some(SystemTime::now() - Duration::from_secs(1))).unwrap();
        store.delete_access_key(&gone.id).unwrap();
        (bob, limited, ended, gone)
    })
    .await
    .unwrap();
    site.refuses_everything("another user", Stranger::Signs(&bob)).await;
    site.refuses_everything("a user without rights", Stranger::Signs(&limited)).await;
    site.refuses_everything("an ended key", Stranger::Signs(&ended)).await;
    site.refuses_everything("a removed key", Stranger::Signs(&gone)).await;
    site.refuses_everything("nobody", Stranger::Nobody).await;
    for (name, who, expected) in [
        ("another user", Stranger::Signs(&bob), 200),
        ("a user without rights", Stranger::Signs(&limited), 403),
        ("an ended key", Stranger::Signs(&ended), 403),
        ("a removed key", Stranger::Signs(&gone), 403),
        ("nobody", Stranger::Nobody, 403),
    ] {
        let listed = site.ask("GET", "/", "", &[], &who).await;
        assert_eq!(listed.status, expected, "ListBuckets by {name}");
        assert!(!listed.text().contains("private"), "ListBuckets by {name}: {}", listed.text());
        let location = "<CreateBucketConfiguration><LocationConstraint>eu-central-1</LocationConstraint></CreateBucketConfiguration>";
        let made = site.ask("PUT", &format!("/made-by-{expected}-{}", name.len()), location, &[], &who).await;
        assert_eq!(made.status, expected, "CreateBucket by {name}: {}", made.text());
    }
    site.is_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_gives_what_it_says_under_its_conditions_and_takes_it_away_at_once() {
    let site = site().await;
    let store = site.running.store.clone();
    let allow = |action: &str, resource: &str, condition: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"{action}","Resource":"arn:aws:s3:::{resource}","Condition":{{{condition}}}}}]}}"#
        )
    };
    let policies = [
        ("read", allow("s3:GetObject", "private/*", r#""IpAddress":{"aws:SourceIp":"127.0.0.0/8"}"#)),
        ("elsewhere", allow("s3:PutObject", "private/*", r#""IpAddress":{"aws:SourceIp":"10.0.0.0/8"}"#)),
        ("encrypted", allow("s3:DeleteObject", "private/*", r#""Bool":{"aws:SecureTransport":"true"}"#)),
        (
            "once",
            allow("s3:ListBucket", "private", r#""DateLessThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"}"#),
        ),
        ("home", allow("s3:*", "private/home/${aws:username}/*", "")),
    ];
    let bob = {
        let store = store.clone();
        tokio::task::spawn_blocking(move || {
            let bob = store.create_user("bob").unwrap();
            store.create_group("staff").unwrap();
            for (name, text) in &policies {
                s3_server::check_user_policy(text).unwrap();
                store.put_policy(name, text).unwrap();
                store.set_attached(name, Principal::Group("staff".into()), true).unwrap();
            }
            store.set_membership("bob", "staff", true).unwrap();
            bob
        })
        .await
        .unwrap()
    };
    let who = Stranger::Signs(&bob);
    let status = async |method, path: &str| site.ask(method, path, "", &[], &who).await.status;
    assert_eq!(status("GET", "/private/k").await, 200, "from here");
    assert_eq!(status("PUT", "/private/k").await, 403, "not from here");
    assert_eq!(status("DELETE", "/private/k").await, 403, "not without TLS");
    assert_eq!(status("GET", "/private").await, 403, "not any more");
    assert_eq!(status("PUT", "/private/home/bob/k").await, 200, "in a home of one's own");
    assert_eq!(status("PUT", "/private/home/eve/k").await, 403, "not in another's");
    let many = "<Delete><Object><Key>k</Key></Object></Delete>";
    let answer = site.ask("POST", "/private?delete", many, &[], &who).await;
    assert!(
        answer.text().contains("<Code>AccessDenied</Code>"),
        "conditions count for each key: {}",
        answer.text()
    );
    tokio::task::spawn_blocking(move || store.set_membership("bob", "staff", false).unwrap()).await.unwrap();
    assert_eq!(status("GET", "/private/k").await, 403, "taken away");
    assert_eq!(status("PUT", "/bucket/k").await, 403, "and nothing gained by it");
    let found = site.ask("GET", "/private/k", "", &[], &Stranger::Signs(&site.owner)).await;
    assert_eq!(found.body, b"secret");
}

/// A body that would be gathered is not even read where nothing could come of it.
#[tokio::test(flavor = "multi_thread")]
async fn no_body_is_gathered_for_nobody_or_beyond_its_limit() {
    let site = site().await;
    let max = s3_server::limits::DOCUMENT_XML_BYTES_MAX;
    let nobody = |asked: Asked| asked.header("host", site.running.address);
    let owner = |asked: Asked| asked.sign_as(&site.running, &site.owner);
    let delete = Asked::new("POST", "/private?delete");
    let tagging = Asked::new("PUT", "/private?tagging");
    let website = Asked::new("PUT", "/private?website");
    for (asked, length, expected) in [
        (nobody(delete.clone().header("content-length", 1_000_000)), Some(1_000_000), 403),
        (owner(tagging.clone().header("content-length", max + 1)), Some(max + 1), 400),
        (owner(tagging.clone().header("transfer-encoding", "chunked")), None, 411),
        (owner(website.header("content-length", 1_000)), Some(1_000), 501),
    ] {
        // Neither is anything sent: only what does not wait for it is answered.
        let mut client = Client::connect(&site.running).await;
        client.send(asked.head().as_bytes()).await;
        let answer = client.answer(asked.method).await;
        assert_eq!(answer.status, expected, "{} {length:?}: {}", asked.path, answer.text());
    }
    let padded = TAGS.replacen("<Tagging", &format!("<Tagging{}", " ".repeat(max - TAGS.len())), 1);
    assert_eq!(padded.len(), max);
    let answer = site.ask("PUT", "/private?tagging", &padded, &[], &Stranger::Signs(&site.owner)).await;
    assert_eq!(answer.status, 200, "as long as it may be: {}", answer.text());
}

/// What was begun on a bucket is not done to the next one of its name: the rights to it were decided before.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_request_never_reaches_the_bucket_that_has_the_name_by_then() {
    let site = site().await;
    let store = site.running.store.clone();
    let (alice, bob) = (store.create_user("alice").unwrap(), store.create_user("bob").unwrap());
    let opens = r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::b00","arn:aws:s3:::b00/*"]}]}"#;
    let keyed = "<Delete><Object><Key>k</Key></Object></Delete>";
    let acl = "<AccessControlPolicy><Owner><ID>alice</ID></Owner><AccessControlList></AccessControlList></AccessControlPolicy>";
    let suspended = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";
    let large = "x".repeat(300_000);
    for (method, path, body) in [
        ("PUT", "/b00?policy", opens),
        ("PUT", "/b00?acl", acl),
        ("PUT", "/b00?lifecycle", RULES),
        ("PUT", "/b00?tagging", TAGS),
        ("PUT", "/b00?versioning", suspended),
        ("POST", "/b00?delete", keyed),
        ("PUT", "/b00/k", "small"),
        ("PUT", "/b00/k", &large),
    ] {
        let owned_by = |owner: &str| BucketOptions { owner: owner.to_owned(), ..BucketOptions::default() };
        store.create_bucket("b00", owned_by("alice")).unwrap();
        let asked = Asked::new(method, path)
            .header("content-length", body.len())
            .header("expect", "100-continue")
            .sign_as(&site.running, &alice);
        let mut slow = Client::connect(&site.running).await;
        slow.send(asked.head().as_bytes()).await;
        assert_eq!(slow.read_head().await.unwrap().0, 100, "{path}: the gate is passed");
        slow.send(&body.as_bytes()[..body.len() - 1]).await;
        store.delete_bucket("b00").unwrap();
        store.create_bucket("b00", owned_by("bob")).unwrap();
        let before = store.bucket_with_documents("b00").unwrap();
        let put = site.ask("PUT", "/b00/k", "bob's", &[], &Stranger::Signs(&bob)).await;
        assert_eq!(put.status, 200, "{}", put.text());
        slow.send(&body.as_bytes()[body.len() - 1..]).await;
        let answer = slow.answer(method).await;
        // Asked again, rights to bob's bucket are what is missing first.
        assert!(matches!(answer.status, 403 | 404), "{path}: {}", answer.text());
        assert_eq!(store.bucket_with_documents("b00").unwrap(), before, "{path}");
        let found = site.ask("GET", "/b00/k", "", &[], &Stranger::Signs(&bob)).await;
        assert_eq!((found.status, found.text()), (200, "bob's".to_owned()), "{path}");
        store.delete_object("b00", objects::DeleteRequest::of("k")).unwrap();
        store.delete_bucket("b00").unwrap();
    }
}

/// A right that ends while a body is on its way is gone when the body has arrived.
#[tokio::test(flavor = "multi_thread")]
async fn rights_are_asked_for_again_when_a_slow_body_has_arrived() {
    let site = site().await;
    let store = site.running.store.clone();
    let bob = store.create_user("bob").unwrap();
    store.put_policy("all", r#"{"Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#).unwrap();
    store.set_attached("all", Principal::User("bob".into()), true).unwrap();
    let asked = Asked::new("PUT", "/private?tagging")
        .header("content-length", TAGS.len())
        .header("expect", "100-continue")
        .sign_as(&site.running, &bob);
    let mut slow = Client::connect(&site.running).await;
    slow.send(asked.head().as_bytes()).await;
    assert_eq!(slow.read_head().await.unwrap().0, 100);
    store.set_attached("all", Principal::User("bob".into()), false).unwrap();
    slow.send(TAGS.as_bytes()).await;
    assert_eq!(slow.answer("PUT").await.status, 403);
}
