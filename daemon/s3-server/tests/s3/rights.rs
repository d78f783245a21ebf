//! What policies say of tags, headers and fields counts wherever a request has them.

use objects::{BucketOptions, NewAccessKey, Principal};

use crate::client::{Answered, Asked, Client};
use crate::server::Running;

/// A server, its first user, and one whose rights are what a policy says.
struct Site {
    running: Running,
    bob: NewAccessKey,
}

impl Site {
    async fn start(statements: &str) -> Self {
        let running = Running::start().await;
        let text = format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
        s3_server::check_user_policy(&text).unwrap();
        let bob = running.store.create_user("bob").unwrap();
        running.store.put_policy("rights", &text).unwrap();
        running.store.set_attached("rights", Principal::User("bob".into()), true).unwrap();
        Self { running, bob }
    }

    async fn ask(
        &self,
        who: &NewAccessKey,
        (method, path): (&'static str, &str),
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        let mut asked = Asked::new(method, path).header("content-length", body.len());
        for (name, value) in headers {
            asked = asked.header(name, *value);
        }
        let asked = asked.sign_as(&self.running, who);
        Client::connect(&self.running).await.ask(&asked, body.as_bytes()).await
    }

    /// A form that nobody signed.
    async fn post(&self, key: &str, field: Option<(&str, &str)>, header: Option<(&str, &str)>) -> Answered {
        let mut body = String::new();
        for (name, value) in [("key", key)].into_iter().chain(field) {
            let part =
                format!("--line\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
            body.push_str(&part);
        }
        body.push_str("--line\r\ncontent-disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nbody\r\n--line--\r\n");
        let mut asked = Asked::new("POST", "/bucket")
            .header("content-length", body.len())
            .header("content-type", "multipart/form-data; boundary=line")
            .header("host", self.running.address);
        if let Some((name, value)) = header {
            asked = asked.header(name, value);
        }
        Client::connect(&self.running).await.ask(&asked, body.as_bytes()).await
    }

    /// An object of the first user's, with tags as a header has them.
    async fn put(&self, key: &str, tags: &str) {
        let path = format!("/bucket/{key}");
        let answer = self.ask(&self.running.key, ("PUT", &path), &[("x-amz-tagging", tags)], "body").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_of_a_copy_is_judged_by_its_own_tags() {
    let site = Site::start(
        r#"{"Effect":"Allow","Action":"s3:PutObject","Resource":"*"},
           {"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::bucket/*",
            "Condition":{"StringEquals":{"s3:ExistingObjectTag/open":"yes"}}},
           {"Effect":"Allow","Action":"s3:GetObjectTagging","Resource":"arn:aws:s3:::bucket/*"}"#,
    )
    .await;
    site.put("destination", "open=yes").await;
    site.put("closed", "open=no").await;
    site.put("open", "open=yes").await;
    let upload = site.running.store.create_upload("bucket", "destination", Default::default()).unwrap().id;
    let part = format!("/bucket/destination?partNumber=1&uploadId={upload}");
    for to in [part.as_str(), "/bucket/destination"] {
        for (source, expected) in [("/bucket/closed", 403), ("/bucket/open", 200)] {
            let headers = [("x-amz-copy-source", source)];
            let answer = site.ask(&site.bob, ("PUT", to), &headers, "").await;
            assert_eq!(answer.status, expected, "{source} to {to}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tags_of_a_source_are_copied_for_who_may_read_them() {
    let site = Site::start(
        r#"{"Effect":"Allow","Action":["s3:GetObject","s3:PutObject","s3:PutObjectTagging"],"Resource":"*"},
           {"Effect":"Allow","Action":"s3:GetObjectTagging","Resource":"arn:aws:s3:::bucket/shown/*"}"#,
    )
    .await;
    site.put("shown/k", "a=b").await;
    site.put("hidden", "a=b").await;
    site.put("untagged", "").await;
    let own = [("x-amz-tagging-directive", "REPLACE"), ("x-amz-tagging", "own=yes")];
    for (source, besides, expected) in [
        ("/bucket/shown/k", &[][..], 200),
        ("/bucket/hidden", &[][..], 403),
        ("/bucket/hidden", &own[..], 200),
        ("/bucket/untagged", &[][..], 200),
    ] {
        let headers: Vec<_> = [("x-amz-copy-source", source)].iter().chain(besides).copied().collect();
        let answer = site.ask(&site.bob, ("PUT", "/bucket/copy"), &headers, "").await;
        assert_eq!(answer.status, expected, "{source} {besides:?}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_judged_as_it_is_when_a_slow_body_has_arrived() {
    let site = Site::start(
        r#"{"Effect":"Allow","Action":"s3:PutObjectTagging","Resource":"arn:aws:s3:::bucket/*",
            "Condition":{"StringEquals":{"s3:ExistingObjectTag/open":"yes"}}}"#,
    )
    .await;
    site.put("k", "open=yes").await;
    let body = "<Tagging><TagSet><Tag><Key>open</Key><Value>yes</Value></Tag></TagSet></Tagging>";
    let asked = Asked::new("PUT", "/bucket/k?tagging")
        .header("content-length", body.len())
        .header("expect", "100-continue")
        .sign_as(&site.running, &site.bob);
    let mut slow = Client::connect(&site.running).await;
    slow.send(asked.head().as_bytes()).await;
    assert_eq!(slow.read_head().await.unwrap().0, 100);
    site.running
        .store
        .set_tags("bucket", "k", None, vec![("open".to_owned(), "no".to_owned())], Default::default())
        .unwrap();
    slow.send(body.as_bytes()).await;
    let answer = slow.answer("PUT").await;
    assert_eq!(answer.status, 403, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_deletes_is_judged_by_the_tags_of_its_object() {
    let site = Site::start(
        r#"{"Effect":"Allow","Action":"s3:Delete*","Resource":"arn:aws:s3:::bucket/*"},
           {"Effect":"Deny","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::bucket/*",
            "Condition":{"StringEquals":{"s3:ExistingObjectTag/keep":"yes"}}},
           {"Effect":"Deny","Action":"s3:DeleteObjectVersion","Resource":"arn:aws:s3:::bucket/*",
            "Condition":{"StringEquals":{"s3:VersionId":"null"}}}"#,
    )
    .await;
    for (key, tags) in [("kept", "keep=yes"), ("old", "keep=no"), ("version", "keep=no")] {
        site.put(key, tags).await;
    }
    let many = "<Delete><Object><Key>kept</Key></Object><Object><Key>old</Key></Object>\
        <Object><Key>never there</Key></Object>\
        <Object><Key>version</Key><VersionId>null</VersionId></Object></Delete>";
    let answer = site.ask(&site.bob, ("POST", "/bucket?delete"), &[], many).await.text();
    assert_eq!(answer.matches("<Code>AccessDenied</Code>").count(), 2, "{answer}");
    assert_eq!(answer.matches("<Deleted>").count(), 2, "{answer}");
    for (key, expected) in [("kept", 200), ("old", 404), ("version", 200)] {
        let path = format!("/bucket/{key}");
        let found = site.ask(&site.running.key, ("GET", &path), &[], "").await;
        assert_eq!(found.status, expected, "{key}: {}", found.text());
    }
}

/// Headers of a write, and the action that each needs besides.
const BESIDES: [(&[(&str, &str)], &str); 5] = [
    (&[("x-amz-acl", "public-read")], "s3:PutObjectAcl"),
    (&[("x-amz-grant-read", "id=tester")], "s3:PutObjectAcl"),
    (&[("x-amz-tagging", "open=yes")], "s3:PutObjectTagging"),
    (
        &[
            ("x-amz-object-lock-mode", "GOVERNANCE"),
            ("x-amz-object-lock-retain-until-date", "2124-01-01T00:00:00Z"),
        ],
        "s3:PutObjectRetention",
    ),
    (&[("x-amz-object-lock-legal-hold", "ON")], "s3:PutObjectLegalHold"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_write_does_besides_needs_its_own_action() {
    let site = Site::start(
        r#"{"Effect":"Allow","Action":["s3:PutObject","s3:GetObject"],"Resource":"arn:aws:s3:::locked/*"},
           {"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::locked/all/*"}"#,
    )
    .await;
    let options = BucketOptions { lock: true, ..BucketOptions::default() };
    site.running.store.create_bucket("locked", options).unwrap();
    let writes = |prefix: &str| {
        [
            (("PUT", format!("/locked/{prefix}k")), None),
            (("PUT", format!("/locked/{prefix}copy")), Some(("x-amz-copy-source", "/locked/source"))),
            (("POST", format!("/locked/{prefix}upload?uploads")), None),
        ]
    };
    let source = site.ask(&site.running.key, ("PUT", "/locked/source"), &[], "body").await;
    assert_eq!(source.status, 200, "{}", source.text());
    let tester = &site.running.key;
    for (besides, action) in BESIDES {
        let denied = format!(
            r#"{{"Statement":{{"Effect":"Deny","Principal":"*","Action":"{action}","Resource":"arn:aws:s3:::locked/*"}}}}"#
        );
        for (who, prefix, policy, expected) in [
            (&site.bob, "", None, 403),
            (&site.bob, "all/", None, 200),
            (tester, "", None, 200),
            (&site.bob, "all/", Some(&denied), 403),
            (tester, "", Some(&denied), 403),
        ] {
            let text = policy.map(|text| text.as_bytes().to_vec());
            site.running.store.set_bucket_document("locked", "policy", text).unwrap();
            for ((method, path), source) in writes(prefix) {
                let headers: Vec<_> = besides.iter().copied().chain(source).collect();
                let answer = site.ask(who, (method, &path), &headers, "").await;
                assert_eq!(answer.status, expected, "{action} {path} {policy:?}: {}", answer.text());
                let plain: Vec<_> = source.into_iter().collect();
                let answer = site.ask(who, (method, &path), &plain, "").await;
                assert_eq!(answer.status, 200, "without {action}, {path}: {}", answer.text());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fields_of_a_form_have_a_limit() {
    let site = Site::start(r#"{"Effect":"Allow","Action":"s3:GetObject","Resource":"*"}"#).await;
    let max = s3_server::limits::FORM_FIELD_BYTES_MAX;
    for (length, expected) in [(max, 403), (max + 1, 400)] {
        let answer = site.post("k", Some(("x-ignore-this", &"x".repeat(length))), None).await;
        assert_eq!(answer.status, expected, "{length}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_form_says_in_its_fields_counts_and_not_what_its_headers_say() {
    let site = Site::start(r#"{"Effect":"Allow","Action":"s3:GetObject","Resource":"*"}"#).await;
    site.put("open/kept", "keep=yes").await;
    let deny = |action: &str, key: &str, value: &str| {
        format!(
            r#"{{"Effect":"Deny","Principal":"*","Action":"{action}","Resource":"arn:aws:s3:::bucket/*",
                "Condition":{{"StringEquals":{{"{key}":"{value}"}}}}}}"#
        )
    };
    let statements = [
        r#"{"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::bucket/open/*"},
           {"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::bucket/listed/*",
            "Condition":{"StringEquals":{"s3:x-amz-acl":"private"}}},
           {"Effect":"Deny","Principal":"*","Action":"s3:PutObjectLegalHold","Resource":"arn:aws:s3:::bucket/*"}"#
            .to_owned(),
        deny("s3:PutObject", "s3:x-amz-acl", "public-read"),
        deny("s3:PutObject", "s3:x-amz-grant-read", "id=tester"),
        deny("s3:PutObject", "s3:x-amz-storage-class", "STANDARD"),
        deny("s3:PutObject", "s3:RequestObjectTag/secret", "yes"),
        deny("s3:PutObjectTagging", "s3:RequestObjectTag/label", "yes"),
        deny("s3:PutObject", "s3:ExistingObjectTag/keep", "yes"),
    ];
    let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{}]}}"#, statements.join(","));
    let put = site.ask(&site.running.key, ("PUT", "/bucket?policy"), &[], &policy).await;
    assert_eq!(put.status, 204, "{}", put.text());
    for (key, field, header, expected) in [
        ("open/k", None, None, 204),
        ("open/k", Some(("x-amz-acl", "private")), None, 204),
        ("open/k", Some(("x-amz-acl", "public-read")), None, 403),
        ("open/k", Some(("x-amz-grant-read", "id=tester")), None, 403),
        ("open/k", Some(("x-amz-storage-class", "STANDARD")), None, 403),
        ("open/k", Some(("x-amz-tagging", "a=b")), None, 204),
        ("open/k", Some(("x-amz-tagging", "secret=yes")), None, 403),
        ("open/k", Some(("x-amz-tagging", "label=yes")), None, 403),
        ("open/k", Some(("x-amz-object-lock-legal-hold", "ON")), None, 403),
        ("open/kept", None, None, 403),
        ("listed/k", Some(("x-amz-acl", "private")), None, 204),
        ("listed/k", Some(("x-amz-acl", "authenticated-read")), Some(("x-amz-acl", "private")), 403),
        ("listed/k", None, None, 403),
    ] {
        let answer = site.post(key, field, header).await;
        assert_eq!(answer.status, expected, "{key} {field:?} {header:?}: {}", answer.text());
    }
}
