//! Sealed snapshots in a bucket, whole and by what differs, and back: cut off, damaged, pruned, imported.

use std::process::Command;

use harness::client::{python_client, run};
use harness::desk::word;
use harness::sites::{Sites, two_sites};
use serde_json::Value;

const PLACE: &str = "s3://backup/nightlatch";

/// A bucket on the second node's S3 head, as any S3 server would be used.
struct Bucket<'a> {
    sites: &'a Sites,
    user: Value,
}

impl<'a> Bucket<'a> {
    fn new(sites: &'a Sites) -> Self {
        let desk = &sites.desk;
        desk.until(&["volume", "create", "store", "--node", "node-2", "--kind", "objects", "--size", "1T"]);
        desk.until(&["bucket", "create", "backup", "--node", "node-2"]);
        let user = desk.json(&["user", "create", "exporter", "--node", "node-2"]);
        Self { sites, user }
    }

    fn endpoint(&self) -> String {
        format!("https://{}", self.sites.second.address("s3"))
    }

    fn with_key<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env("AWS_ACCESS_KEY_ID", word(&self.user, "access_key"))
            .env("AWS_SECRET_ACCESS_KEY", word(&self.user, "secret_key"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let ca = self.sites.desk.dir.join("pki/ca-cert.pem").display().to_string();
        let endpoint = self.endpoint();
        let place = ["--bucket", PLACE, "--endpoint", &endpoint, "--ca", &ca];
        let mut command = self.sites.desk.command(&[&["--json", "snapshot"], arguments, &place].concat());
        self.with_key(&mut command);
        command
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = run(&mut self.command(arguments)).expect_success();
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output}"))
    }

    fn refused(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments)).expect_failure()
    }

    fn aws(&self, arguments: &[&str]) -> String {
        let mut aws = python_client("aws");
        self.with_key(&mut aws)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .args(["--endpoint-url", &self.endpoint(), "--ca-bundle"])
            .arg(self.sites.desk.dir.join("pki/ca-cert.pem"))
            .args(arguments);
        run(&mut aws).expect_success()
    }

    /// Key and time of each object.
    fn objects(&self, below: &str) -> Vec<(String, String)> {
        let prefix = format!("nightlatch/{below}");
        let list = self.aws(&["s3api", "list-objects-v2", "--bucket", "backup", "--prefix", &prefix]);
        let list: Value = serde_json::from_str(&list).unwrap_or_default();
        let objects = list["Contents"].as_array().cloned().unwrap_or_default();
        objects.iter().map(|object| (word(object, "Key"), word(object, "LastModified"))).collect()
    }

    fn remove(&self, key: &str) {
        self.aws(&["s3", "rm", &format!("s3://backup/{key}")]);
    }
}

#[test]
fn a_sealed_snapshot_goes_to_a_bucket_and_back_whole_and_by_what_differs() {
    const LEN: usize = 40 << 20;
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, _first_daemon, _second_daemon) = two_sites(parent.path(), "2G");
    let bucket = Bucket::new(&sites);
    sites.write_len(&sites.first, 0x11, LEN);
    let one = sites.snapshot();
    let whole = bucket.json(&["export", &format!("db@{one}"), "--node", "node-1"]);
    assert_eq!((&whole["since"], whole["portions"].as_u64()), (&Value::Null, Some(3)), "{whole}");
    let stored = whole["stored_bytes"].as_u64().expect("a number");
    assert!((LEN as u64..LEN as u64 + (1 << 20)).contains(&stored), "{stored} bytes are stored");
    let other = bucket.refused(&["export", &format!("{}@{one}", "0".repeat(32)), "--node", "node-1"]);
    assert!(other.contains("not of"), "{other}");

    // What broke off goes on behind what is there: its manifest and its second portion are not.
    let portions = bucket.objects("portions/");
    let manifest = bucket.objects("manifests/").remove(0).0;
    bucket.remove(&manifest);
    bucket.remove(&portions[1].0);
    assert_eq!(bucket.json(&["exports"]), Value::Array(Vec::new()), "without its manifest it is none");
    let again = bucket.json(&["export", &one, "--node", "node-1"]);
    assert_eq!(again["portions"], whole["portions"]);
    let now = bucket.objects("portions/");
    assert_eq!(now.len(), 3);
    assert_eq!(now[0], portions[0], "the first was not written again");
    assert_ne!(now[1].1, portions[1].1);

    // What differs, by itself since what is there. Nothing that was written is in clear.
    sites.write(&sites.first, 0x22);
    let two = sites.snapshot();
    let part = bucket.json(&["export", &two, "--node", "node-1"]);
    assert_eq!(part["since"], one.as_str());
    assert!(part["stored_bytes"].as_u64() < Some(4 << 20), "{part}");
    let listed = bucket.json(&["exports", "--verify"]);
    let ids: Vec<String> =
        listed.as_array().expect("a list").iter().map(|entry| word(entry, "snapshot")).collect();
    assert_eq!(ids, [one.clone(), two.clone()]);
    let copy = parent.path().join("portion");
    bucket.aws(&["s3", "cp", &format!("s3://backup/{}", now[2].0), &copy.display().to_string()]);
    let content = std::fs::read(&copy).expect("a portion");
    assert!(content.len() > 4 << 20 && !content.windows(64).any(|window| window == [0x11; 64]));

    // Damaged it is neither taken for good nor taken in, and the node has nothing of it to show.
    let mut damaged = content.clone();
    damaged[content.len() / 2] ^= 1;
    std::fs::write(&copy, &damaged).expect("space for a test file");
    let key = format!("s3://backup/{}", now[2].0);
    bucket.aws(&["s3", "cp", &copy.display().to_string(), &key]);
    let verified = bucket.refused(&["exports", "--verify"]);
    assert!(verified.contains("1 of 2 exports are damaged"), "{verified}");
    let refused = bucket.refused(&["import", &two, "--node", "node-2"]);
    assert!(refused.contains("another digest"), "{refused}");
    assert_eq!(sites.snapshots(&sites.second).len(), 0);
    std::fs::write(&copy, &content).expect("space for a test file");
    bucket.aws(&["s3", "cp", &copy.display().to_string(), &key]);

    // The second since the first: both are kept for the one. A whole third lets both go.
    let none = bucket.json(&["prune", "--keep", "1", "--yes"]);
    assert_eq!(none["objects"], 0, "{none}");
    let imported = bucket.json(&["import", &two, "--node", "node-2"]);
    assert_eq!(imported.as_array().map(Vec::len), Some(2), "{imported}");
    sites.write_len(&sites.first, 0x33, LEN);
    let three = sites.snapshot();
    bucket.json(&["export", &three, "--node", "node-1", "--full"]);
    let unasked = bucket.refused(&["prune", "--keep", "1"]);
    assert!(unasked.contains("--yes"), "{unasked}");
    let pruned = bucket.json(&["prune", "--keep", "1", "--yes"]);
    assert_eq!(pruned["exports"].as_array().map(Vec::len), Some(2), "{pruned}");
    assert_eq!(bucket.json(&["exports", "--verify"])[0]["snapshot"], three.as_str());
    bucket.remove(&bucket.objects("manifests/").remove(0).0);
    let left = bucket.json(&["prune", "--keep", "1", "--unfinished", "--yes"]);
    assert_eq!(left["objects"], 3, "{left}");
    assert_eq!(bucket.objects(""), []);
    let gone = bucket.refused(&["import", &three, "--node", "node-2"]);
    assert!(gone.contains("not in the bucket"), "{gone}");

    // What was imported serves.
    let desk = &sites.desk;
    desk.run(&["revoke", "--volume", "db"]);
    desk.run(&["volume", "promote", "db", "--node", "node-2", "--yes"]);
    desk.run(&["unlatch", "--volume", "db"]);
    desk.run(&["volume", "access", "db", "--anyone"]);
    let content = sites.read(&sites.second);
    assert!(content[..3 << 20].iter().all(|byte| *byte == 0x22));
    assert!(content[3 << 20..LEN].iter().all(|byte| *byte == 0x11));
}
