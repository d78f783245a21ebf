//! Keys with names, by the command line and a real S3 client: made, used, revoked, pushed again after a restart, erased.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::client::{Answer, python_client, run};
use harness::desk::word;
use harness::process::wait_for;
use serde_json::Value;
use system_tests::{BUCKET, Installation};

const PATIENCE: Duration = Duration::from_secs(60);

/// The AWS command line, as one user of the installation's node.
struct Aws {
    variables: Vec<(&'static str, String)>,
    endpoint: String,
}

impl Aws {
    fn new(site: &Installation) -> Self {
        let key = site.desk.json(&["user", "create", "web", "--node", "node-1"]);
        let config = std::fs::read_to_string(&site.node_config).expect("a configuration");
        let config: toml::Table = config.parse().expect("TOML");
        let address = config["listen"]["s3"].as_str().expect("an address").to_owned();
        let variables = vec![
            ("AWS_ACCESS_KEY_ID", word(&key, "access_key")),
            ("AWS_SECRET_ACCESS_KEY", word(&key, "secret_key")),
            ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
            ("AWS_CA_BUNDLE", site.desk.dir.join("pki/ca-cert.pem").display().to_string()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/nonexistent".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent".to_owned()),
        ];
        Self { variables, endpoint: format!("https://{address}") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut aws = python_client("aws");
        aws.envs(self.variables.iter().map(|(name, value)| (name, value)));
        aws.args(["--endpoint-url", &self.endpoint]).args(arguments);
        aws
    }

    fn run(&self, arguments: &[&str]) -> Answer {
        run(&mut self.command(arguments))
    }

    fn get(&self, key: &str, to: &Path) -> Answer {
        let to = to.display().to_string();
        self.run(&["s3api", "get-object", "--bucket", BUCKET, "--key", key, &to])
    }

    fn put(&self, key: &str, from: &Path, arguments: &[&str]) -> Value {
        let from = from.display().to_string();
        let put = ["s3api", "put-object", "--bucket", BUCKET, "--key", key, "--body", &from];
        let said = self.run(&[&put[..], arguments].concat()).expect_success();
        serde_json::from_str(&said).expect("JSON")
    }

    /// Waits until an object is there again, as a client may that is never told that its key is gone for good.
    fn comes_back(&self, key: &str, to: &Path) {
        wait_for("the object", PATIENCE, || {
            let answer = self.get(key, to);
            assert!(!answer.describe().contains("KMS."), "{}", answer.describe());
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
    }
}

#[test]
fn a_named_key_is_revoked_pushed_again_and_erased_and_only_its_objects_follow() {
    let mut site = Installation::serving();
    let aws = Aws::new(&site);
    let desk_dir = site.desk.dir.clone();
    let (picture, back) = (desk_dir.join("picture"), desk_dir.join("back"));
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&picture, &content).expect("space for a test file");
    for name in ["photos", "books"] {
        site.desk.run(&["key", "create", name, "--node", "node-1"]);
    }
    let keys = site.desk.json(&["key", "list"]);
    let names: Vec<String> = keys.as_array().expect("a list").iter().map(|key| word(key, "label")).collect();
    assert_eq!(names, ["photos", "books"]);
    let table = site.desk.run(&["volume", "list"]);
    assert!(table.lines().any(|line| line.contains("photos") && line.contains(" key ")), "{table}");
    site.desk.refused(&["volume", "resize", "photos", "1G"]);

    let kms = |key| ["--server-side-encryption", "aws:kms", "--ssekms-key-id", key];
    for (key, name) in [("photo", "photos"), ("book", "books")] {
        let said = aws.put(key, &picture, &kms(name));
        assert_eq!(
            (said["ServerSideEncryption"].as_str(), said["SSEKMSKeyId"].as_str()),
            (Some("aws:kms"), Some(name))
        );
    }
    aws.put("open", &picture, &[]);
    let large = desk_dir.join("large");
    std::fs::write(&large, content.repeat(8)).expect("space for a test file");
    let to = format!("s3://{BUCKET}/large");
    let upload = ["s3", "cp", "--only-show-errors", "--sse", "aws:kms", "--sse-kms-key-id", "photos"];
    aws.run(&[&upload[..], &[&large.display().to_string(), &to]].concat()).expect_success();

    // Revoked: at once, and nothing else.
    site.desk.run(&["revoke", "--key", "photos"]);
    for key in ["photo", "large"] {
        let refused = aws.get(key, &back).expect_failure();
        assert!(refused.contains("KMS.DisabledException"), "{refused}");
    }
    for key in ["book", "open"] {
        aws.get(key, &back).expect_success();
        assert!(std::fs::read(&back).expect("a copy") == content, "{key}");
    }
    let listed = aws.run(&["s3api", "list-objects-v2", "--bucket", BUCKET]).expect_success();
    assert!(listed.contains("\"photo\""), "{listed}");
    let table = site.desk.run(&["key", "list"]);
    assert!(table.contains("unlatch --key photos"), "{table}");

    // The store comes back where keys are held: none of them is a store.
    site.desk.run(&["revoke", "--volume", "store"]);
    site.desk.run(&["unlatch", "--volume", "store"]);
    site.desk.run(&["push", "--volume", "store"]);
    for key in ["book", "open"] {
        aws.comes_back(key, &back);
        assert!(std::fs::read(&back).expect("a copy") == content, "{key}");
    }

    // Back after a person's word, and after a restart of the node by itself.
    site.desk.run(&["unlatch", "--key", "photos"]);
    site.desk.run(&["push", "--key", "photos"]);
    aws.comes_back("photo", &back);
    assert!(std::fs::read(&back).expect("a copy") == content);
    let _ = site.node.stop(PATIENCE);
    site.node = site.desk.start("nightlatchd", &site.node_config);
    aws.comes_back("large", &back);
    assert!(std::fs::read(&back).expect("a copy") == content.repeat(8));
    aws.comes_back("book", &back);

    // Erased: for good, also for a key of the same name.
    site.desk.run(&["volume", "delete", "photos", "--yes"]);
    site.desk.run(&["key", "create", "photos", "--node", "node-1"]);
    aws.put("new", &picture, &kms("photos"));
    let refused = aws.get("photo", &back).expect_failure();
    assert!(refused.contains("KMS.DisabledException"), "{refused}");
    aws.comes_back("book", &back);
    let events = site.events();
    for event in ["volume-created", "volume-erased"] {
        assert!(events.iter().any(|found| found == event), "{event}: {events:?}");
    }
}
