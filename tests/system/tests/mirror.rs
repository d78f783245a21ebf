//! `nightlatch mirror` between the object stores of two nodes: everything, once; what changed, again; what broke off, from there on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::client::{python_client, run};
use harness::desk::word;
use harness::process::{Process, wait_for};
use harness::sites::{Node, Sites, two_sites};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A user of a node's object store, and a bucket there.
struct Store<'a> {
    sites: &'a Sites,
    node: &'a Node,
    user: Value,
    bucket: &'static str,
}

impl<'a> Store<'a> {
    fn new(sites: &'a Sites, node: &'a Node, label: &str, bucket: &'static str) -> Self {
        let desk = &sites.desk;
        desk.until(&["volume", "create", label, "--node", node.name, "--kind", "objects", "--size", "1T"]);
        desk.until(&["bucket", "create", bucket, "--node", node.name]);
        let user = desk.json(&["user", "create", "mirror", "--node", node.name]);
        Self { sites, node, user, bucket }
    }

    fn endpoint(&self) -> String {
        format!("https://{}", self.node.address("s3"))
    }

    fn ca(&self) -> String {
        self.sites.desk.dir.join("pki/ca-cert.pem").display().to_string()
    }

    fn aws(&self, arguments: &[&str]) -> Command {
        let mut aws = python_client("aws");
        aws.env("AWS_ACCESS_KEY_ID", word(&self.user, "access_key"))
            .env("AWS_SECRET_ACCESS_KEY", word(&self.user, "secret_key"))
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .args(["--endpoint-url", &self.endpoint(), "--ca-bundle", &self.ca()])
            .args(arguments);
        aws
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = run(&mut self.aws(arguments)).expect_success();
        serde_json::from_str(&output).unwrap_or_default()
    }

    fn put(&self, key: &str, from: &Path, arguments: &[&str]) {
        let (from, to) = (from.display().to_string(), format!("s3://{}/{key}", self.bucket));
        run(&mut self.aws(&[&["s3", "cp", "--only-show-errors"], arguments, &[&from, &to]].concat()))
            .expect_success();
    }

    fn get(&self, key: &str, to: &Path) -> Vec<u8> {
        let (from, place) = (format!("s3://{}/{key}", self.bucket), to.display().to_string());
        run(&mut self.aws(&["s3", "cp", "--only-show-errors", &from, &place])).expect_success();
        std::fs::read(to).expect("a copy")
    }

    fn head(&self, key: &str) -> Value {
        self.json(&["s3api", "head-object", "--bucket", self.bucket, "--key", key])
    }

    fn keys(&self) -> Vec<String> {
        let listed = self.json(&["s3api", "list-objects-v2", "--bucket", self.bucket]);
        let listed = listed["Contents"].as_array().cloned().unwrap_or_default();
        listed.iter().map(|object| word(object, "Key")).collect()
    }

    fn uploads(&self) -> usize {
        let listed = self.json(&["s3api", "list-multipart-uploads", "--bucket", self.bucket]);
        listed["Uploads"].as_array().map_or(0, Vec::len)
    }
}

struct Pair<'a> {
    source: Store<'a>,
    target: Store<'a>,
    journal: PathBuf,
}

impl Pair<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let (source, target) = (&self.source, &self.target);
        let (from, to) = (format!("s3://{}", source.bucket), format!("s3://{}/in", target.bucket));
        let places =
            ["--json", "mirror", &from, &to, "--from", &source.endpoint(), "--to", &target.endpoint()]
                .map(str::to_owned);
        let mut command = source.sites.desk.command(&places.iter().map(String::as_str).collect::<Vec<_>>());
        command
            .args(["--from-ca", &source.ca(), "--to-ca", &target.ca(), "--journal"])
            .arg(&self.journal)
            .args(arguments)
            .env("AWS_ACCESS_KEY_ID", word(&target.user, "access_key"))
            .env("AWS_SECRET_ACCESS_KEY", word(&target.user, "secret_key"))
            .env("SOURCE_AWS_ACCESS_KEY_ID", word(&source.user, "access_key"))
            .env("SOURCE_AWS_SECRET_ACCESS_KEY", word(&source.user, "secret_key"));
        command
    }

    fn mirror(&self, arguments: &[&str]) -> Value {
        let output = run(&mut self.command(arguments)).expect_success();
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
    }
}

fn counts(report: &Value) -> [u64; 4] {
    ["objects", "unchanged", "copied", "copied_bytes"].map(|name| report[name].as_u64().expect("a number"))
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 31 + n / 4093 + seed) % 251) as u8).collect()
}

#[test]
fn a_bucket_is_brought_in_once_and_then_what_changed_and_what_broke_off_goes_on() {
    const LARGE: usize = 300 << 20;
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, _first_daemon, _second_daemon) = two_sites(parent.path(), "2G");
    let source = Store::new(&sites, &sites.first, "store-1", "old");
    let target = Store::new(&sites, &sites.second, "store-2", "new");
    let pair = Pair { source, target, journal: parent.path().join("journal") };
    let (file, back) = (parent.path().join("file"), parent.path().join("back"));
    let write = |content: &[u8]| std::fs::write(&file, content).expect("space for a test file");

    write(b"hello");
    let named =
        ["--content-type", "text/x-greeting", "--cache-control", "no-cache", "--metadata", "place=lake"];
    pair.source.put("a greeting ä+b", &file, &named);
    write(b"");
    pair.source.put("empty", &file, &[]);
    write(&pattern(9_000_000, 1));
    pair.source.put("deep/er/middle", &file, &[]);
    write(&pattern(30_000_000, 2));
    pair.source.put("in parts of eight", &file, &[]);
    let plan = pair.mirror(&["--dry-run"]);
    assert_eq!((counts(&plan), &plan["dry_run"]), ([4, 0, 4, 39_000_005], &Value::Bool(true)), "{plan}");
    assert_eq!(pair.target.keys(), Vec::<String>::new());

    let report = pair.mirror(&[]);
    assert_eq!(counts(&report), [4, 0, 4, 39_000_005], "{report}");
    assert_eq!(
        report["same_etag"], 3,
        "what is small goes in one piece, also where it came in two: {report}"
    );
    assert_eq!(
        pair.target.keys(),
        ["in/a greeting ä+b", "in/deep/er/middle", "in/empty", "in/in parts of eight"]
    );
    assert_eq!(pair.target.get("in/a greeting ä+b", &back), b"hello");
    assert!(pair.target.get("in/deep/er/middle", &back) == pattern(9_000_000, 1));
    assert!(pair.target.get("in/in parts of eight", &back) == pattern(30_000_000, 2));
    let head = pair.target.head("in/a greeting ä+b");
    assert_eq!(head["ContentType"], "text/x-greeting");
    assert_eq!((&head["CacheControl"], &head["Metadata"]["place"]), (&"no-cache".into(), &"lake".into()));
    assert_eq!(
        pair.target.head("in/in parts of eight")["ETag"],
        pair.source.head("in parts of eight")["ETag"]
    );

    // Again: nothing, but for what was written since. Nothing is deleted.
    assert_eq!(counts(&pair.mirror(&[])), [4, 4, 0, 0]);
    write(b"other");
    pair.source.put("a greeting ä+b", &file, &[]);
    let gone = format!("s3://{}/empty", pair.source.bucket);
    run(&mut pair.source.aws(&["s3", "rm", "--only-show-errors", &gone])).expect_success();
    assert_eq!(counts(&pair.mirror(&[])), [3, 2, 1, 5]);
    assert_eq!(pair.target.get("in/a greeting ä+b", &back), b"other");
    assert_eq!(pair.target.keys().len(), 4);

    // Killed within a large object: it goes on with the parts that are not there.
    write(&pattern(LARGE, 3));
    pair.source.put("large", &file, &[]);
    let mut begun = Process::start("mirror", pair.command(&["--at-once", "1"]));
    wait_for("an upload that has begun", PATIENCE, || {
        assert!(begun.try_wait().is_none(), "it was done before it could be killed");
        let listed = pair.target.json(&["s3api", "list-multipart-uploads", "--bucket", "new"]);
        let upload = listed["Uploads"][0]["UploadId"].as_str().ok_or("no upload")?.to_owned();
        let parts = ["s3api", "list-parts", "--bucket", "new", "--key", "in/large", "--upload-id", &upload];
        let parts = pair.target.json(&parts);
        let count = parts["Parts"].as_array().map_or(0, Vec::len);
        if count >= 1 { Ok(()) } else { Err("no part yet".to_owned()) }
    });
    begun.kill();
    assert_eq!(pair.target.uploads(), 1, "it was killed in the middle");
    let report = pair.mirror(&[]);
    assert_eq!(counts(&report), [4, 3, 1, LARGE as u64], "{report}");
    assert!(report["parts_there_already"].as_u64() >= Some(1), "{report}");
    assert!(pair.target.get("in/large", &back) == pattern(LARGE, 3));
    assert_eq!(pair.target.uploads(), 0);

    // Refused is said, and for which object, and fails the command.
    let nobody = run(pair.command(&[]).env("AWS_SECRET_ACCESS_KEY", "wrong")).expect_failure();
    assert!(nobody.contains("403"), "{nobody}");
}
