//! Notifications of buckets at a receiver that is a program of its own, over TLS, from a node that is confined and killed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use admin::api::{Webhook, WebhookChange, WebhookChanged};
use config::S3WebhookConfig;
use harness::client::{python_client, run};
use harness::process::{Process, wait_for};
use harness::site::{OBJECTS, Site, SiteSpec, VolumeKind, free_port};
use serde_json::Value;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SECRET_OF_ANOTHER: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const PATIENCE: Duration = Duration::from_secs(60);

/// The receiver, and what it took.
struct Receiver {
    _process: Process,
    taken: PathBuf,
}

impl Receiver {
    /// With the site's own host certificate, which covers `localhost`.
    fn start(site: &Site, name: &str, secret: &str, port: u16) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/receiver.py");
        let taken = site.dir().join(name);
        let server = &site.node_config().tls.server[0];
        let mut command = Command::new("python3");
        command.arg("-B").arg(script).arg(secret).arg(&taken).arg(&server.cert).arg(&server.key);
        command.env("PORT", port.to_string());
        let process = Process::start("receiver", command);
        Self { _process: process, taken }
    }

    fn taken(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.taken).unwrap_or_default();
        // The last may be in the middle of being written.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// Names of events and keys, of all messages that were taken.
    fn events(&self) -> Vec<(String, String)> {
        let records = self
            .taken()
            .into_iter()
            .flat_map(|message| message["body"]["Records"].as_array().cloned().unwrap_or_default());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        records.map(|record| (text(&record["eventName"]), text(&record["s3"]["object"]["key"]))).collect()
    }

    fn wait_for(&self, expected: &[(&str, &str)]) {
        let expected: Vec<_> =
            expected.iter().map(|(name, key)| ((*name).to_owned(), (*key).to_owned())).collect();
        wait_for("notifications", PATIENCE, || {
            let events = self.events();
            if events == expected { Ok(()) } else { Err(format!("{events:?}")) }
        });
    }

    fn set_away(&self, away: bool) {
        let mark = self.taken.with_extension("away");
        match away {
            true => std::fs::write(mark, "").expect("a writable directory"),
            false => std::fs::remove_file(mark).expect("the mark"),
        }
    }
}

fn webhook(site: &Site, name: &str, port: u16) -> S3WebhookConfig {
    let secret_file = site.dir().join(format!("{name}.secret"));
    std::fs::write(&secret_file, SECRET).expect("a writable directory");
    std::fs::set_permissions(&secret_file, std::fs::Permissions::from_mode(0o600)).expect("own file");
    S3WebhookConfig {
        name: name.to_owned(),
        url: format!("https://localhost:{port}/{name}").parse().expect("a URL"),
        secret_file,
        ca: site.ca_bundle(),
        give_up_after_s: 24 * 3600,
    }
}

/// The AWS command line with the key of a user.
struct Aws {
    variables: Vec<(&'static str, String)>,
    endpoint: String,
}

impl Aws {
    fn new(site: &Site) -> Self {
        let key = site.create_user("tester");
        let variables = vec![
            ("AWS_ACCESS_KEY_ID", key.access_key),
            ("AWS_SECRET_ACCESS_KEY", key.secret_key),
            ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
            ("AWS_CA_BUNDLE", site.ca_bundle().display().to_string()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/nonexistent".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent".to_owned()),
        ];
        Self { variables, endpoint: site.s3_endpoint() }
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut aws = python_client("aws");
        aws.envs(self.variables.iter().map(|(name, value)| (name, value)));
        aws.args(["--endpoint-url", &self.endpoint]).args(arguments);
        run(&mut aws).expect_success()
    }

    fn configure(&self, bucket: &str, webhook: &str) {
        let configuration = format!(
            r#"{{"TopicConfigurations": [{{"TopicArn": "arn:aws:sns:us-east-1:0:{webhook}",
                "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}}]}}"#
        );
        let arguments = ["--bucket", bucket, "--notification-configuration", &configuration];
        self.run(&[&["s3api", "put-bucket-notification-configuration"], &arguments[..]].concat());
    }
}

fn listed(site: &Site, name: &str) -> Webhook {
    let webhooks: Vec<Webhook> = site.wait(site.node_admin().get("/v1/webhooks")).expect("webhooks");
    webhooks.into_iter().find(|webhook| webhook.name == name).expect("the webhook")
}

#[test]
fn what_was_acknowledged_is_told_over_tls_though_receiver_and_node_go_and_come() {
    let mut site = Site::installed(SiteSpec::default());
    let ports = [free_port().port(), free_port().port()];
    let webhooks = vec![webhook(&site, "orders", ports[0]), webhook(&site, "strange", ports[1])];
    site.change_node_config(|config| config.s3.webhooks = webhooks);
    site.start_keyholder();
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    site.create_volume(OBJECTS, VolumeKind::Objects, 1 << 40);
    site.push_until_serving();
    let aws = Aws::new(&site);
    let receiver = Receiver::start(&site, "orders", SECRET, ports[0]);
    aws.run(&["s3", "mb", "s3://shelf"]);
    aws.configure("shelf", "orders");
    let local = site.dir().join("one");
    std::fs::write(&local, "twelve bytes").expect("a writable directory");
    let local = local.display().to_string();
    aws.run(&["s3", "cp", &local, "s3://shelf/a b"]);
    receiver.wait_for(&[("ObjectCreated:Put", "a+b")]);
    let test = &receiver.taken()[0];
    assert_eq!(
        (test["body"]["Event"].as_str(), test["path"].as_str()),
        (Some("s3:TestEvent"), Some("/orders"))
    );

    // Away, and the node dies: what was acknowledged is told by the next one.
    site.expect_log("a webhook does not take its messages");
    receiver.set_away(true);
    aws.run(&["s3", "cp", &local, "s3://shelf/while-away"]);
    aws.run(&["s3", "rm", "s3://shelf/a b"]);
    wait_for("a failed attempt", PATIENCE, || {
        let webhook = listed(&site, "orders");
        if webhook.trouble.is_some() && webhook.waiting == 2 { Ok(()) } else { Err(format!("{webhook:?}")) }
    });
    site.kill_node();
    site.start_node();
    site.push_until_serving();
    receiver.set_away(false);
    let all =
        [("ObjectCreated:Put", "a+b"), ("ObjectCreated:Put", "while-away"), ("ObjectRemoved:Delete", "a+b")];
    receiver.wait_for(&all);

    // A receiver with another secret refuses, and holds up nobody else.
    site.expect_log("notifications became dead letters");
    let strange = Receiver::start(&site, "strange", SECRET_OF_ANOTHER, ports[1]);
    aws.run(&["s3", "mb", "s3://other"]);
    aws.configure("other", "strange");
    aws.run(&["s3", "cp", &local, "s3://shelf/more"]);
    receiver.wait_for(&[&all[..], &[("ObjectCreated:Put", "more")]].concat());
    wait_for("an attempt that was refused", PATIENCE, || {
        let webhook = listed(&site, "strange");
        match &webhook.trouble {
            Some(trouble) if trouble.contains("401") => Ok(()),
            _ => Err(format!("{webhook:?}")),
        }
    });
    assert!(strange.taken().is_empty());
    let discard = WebhookChange::Discard { webhook: "orders".to_owned() };
    let changed: WebhookChanged =
        site.wait(site.node_admin().post("/v1/webhooks", &discard)).expect("an answer");
    assert_eq!(changed.notifications, 0);
    // The receiver has it before the node has noted that.
    wait_for("nothing that waits", PATIENCE, || match listed(&site, "orders") {
        webhook if webhook.waiting == 0 => Ok(()),
        webhook => Err(format!("{webhook:?}")),
    });
}
