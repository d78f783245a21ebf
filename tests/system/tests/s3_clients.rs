//! What people point at an S3 server: boto3, the AWS command line and rclone, with their defaults.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::client::{client, python_client, run};
use harness::site::{Site, SiteSpec};

/// Peak memory that the node may reach while an object of 5 GiB goes through it.
const PEAK_RESIDENT_BYTES_MAX: u64 = 256 << 20;

/// An access key, as environment variables of every client.
struct Access {
    variables: Vec<(&'static str, String)>,
    endpoint: String,
}

impl Access {
    fn new(site: &Site) -> Self {
        let key = site.create_user("tester");
        let variables = vec![
            ("AWS_ACCESS_KEY_ID", key.access_key),
            ("AWS_SECRET_ACCESS_KEY", key.secret_key),
            ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
            ("AWS_CA_BUNDLE", site.ca_bundle().display().to_string()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            // No file of the person who runs the tests has a say.
            ("AWS_CONFIG_FILE", "/nonexistent".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent".to_owned()),
        ];
        Self { variables, endpoint: site.s3_endpoint() }
    }

    fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.variables.iter().map(|(name, value)| (name, value)))
    }

    /// Runs cases of clients/s3.py and prints what they say.
    fn boto3(&self, cases: &[&str]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/s3.py");
        let mut python = python_client("python");
        self.apply(&mut python).arg("-B").arg(script).arg(&self.endpoint).args(cases);
        let output = run(&mut python).expect_success();
        print!("{output}");
        for case in cases {
            assert!(output.contains(&format!("{case}: passed")), "{output}");
        }
    }

    fn aws(&self, arguments: &[&str]) -> String {
        let mut aws = python_client("aws");
        self.apply(&mut aws).args(["--endpoint-url", &self.endpoint]).args(arguments);
        run(&mut aws).expect_success()
    }

    fn rclone(&self, site: &Site, arguments: &[&str]) -> String {
        let mut rclone = client("rclone");
        let ca = site.ca_bundle().display().to_string();
        self.apply(&mut rclone)
            // rclone brings its own transport and fails where the AWS library wants to change it.
            .env_remove("AWS_CA_BUNDLE")
            .env("RCLONE_CONFIG", "/nonexistent")
            .env("RCLONE_CONFIG_NODE_TYPE", "s3")
            .env("RCLONE_CONFIG_NODE_PROVIDER", "Other")
            .env("RCLONE_CONFIG_NODE_ENV_AUTH", "true")
            .env("RCLONE_CONFIG_NODE_ENDPOINT", &self.endpoint)
            .args(["--ca-cert", &ca, "--retries", "1", "--low-level-retries", "1"])
            .args(arguments);
        run(&mut rclone).expect_success()
    }
}

/// A folder of files of many sizes, some below others.
fn files(site: &Site) -> PathBuf {
    let folder = site.dir().join("files");
    let mut random = harness::random::Random::new(11);
    for (number, size) in [0_u64, 1, 100, 4096, 70_000, 1 << 20, 20 << 20].into_iter().enumerate() {
        let below = folder.join(format!("level-{}", number % 3));
        std::fs::create_dir_all(&below).expect("a new folder");
        let words = (0..size.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes());
        let mut bytes: Vec<u8> = words.collect();
        bytes.truncate(usize::try_from(size).expect("small"));
        std::fs::write(below.join(format!("file {number}.bin")), bytes).expect("space for a test file");
    }
    folder
}

fn same(one: &Path, other: &Path) {
    run(Command::new("diff").arg("-r").arg(one).arg(other)).expect_success();
}

#[test]
fn boto3_puts_gets_copies_and_is_refused_as_s3_does() {
    let site = Site::serving(SiteSpec::default());
    let cases = [
        "objects",
        "buckets",
        "ranges",
        "conditions",
        "race",
        "presigned",
        "credentials",
        "checksums",
        "multipart",
    ];
    Access::new(&site).boto3(&cases);
}

#[test]
fn boto3_lists_ten_thousand_keys_in_order() {
    let site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    Access::new(&site).boto3(&["listing"]);
}

#[test]
fn an_object_of_five_gib_streams_through_a_small_node() {
    let mut site = Site::serving(SiteSpec::default());
    Access::new(&site).boto3(&["large"]);
    let peak = site.node().peak_resident_bytes();
    println!("peak resident memory of the node: {} MiB", peak >> 20);
    assert!(peak < PEAK_RESIDENT_BYTES_MAX, "the node took {} MiB", peak >> 20);
}

#[test]
fn the_aws_command_line_copies_syncs_and_lists() {
    let site = Site::serving(SiteSpec::default());
    let access = Access::new(&site);
    let source = files(&site);
    let back = site.dir().join("back");
    access.aws(&["s3", "mb", "s3://shelf"]);
    access.aws(&["s3", "sync", &source.display().to_string(), "s3://shelf/all"]);
    access.aws(&["s3", "sync", "s3://shelf/all", &back.display().to_string()]);
    same(&source, &back);
    let again = access.aws(&["s3", "sync", &source.display().to_string(), "s3://shelf/all"]);
    assert_eq!(again.trim(), "", "a second sync has nothing to do");
    let listed = access.aws(&["s3", "ls", "--recursive", "s3://shelf"]);
    assert_eq!(listed.lines().count(), 7, "{listed}");
    let single = site.dir().join("single");
    access.aws(&["s3", "cp", "s3://shelf/all/level-0/file 6.bin", &single.display().to_string()]);
    same(&source.join("level-0/file 6.bin"), &single);
    access.aws(&["s3", "mv", "s3://shelf/all/level-0/file 6.bin", "s3://shelf/moved"]);
    access.aws(&["s3", "rm", "--recursive", "s3://shelf"]);
    access.aws(&["s3", "rb", "s3://shelf"]);
    assert_eq!(access.aws(&["s3", "ls"]).trim(), "");
}

#[test]
fn rclone_copies_checks_and_moves() {
    let site = Site::serving(SiteSpec::default());
    let access = Access::new(&site);
    let source = files(&site);
    let local = source.display().to_string();
    access.rclone(&site, &["mkdir", "node:shelf"]);
    access.rclone(
        &site,
        &["copy", &local, "node:shelf/all", "--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M"],
    );
    access.rclone(&site, &["check", "--download", &local, "node:shelf/all"]);
    access.rclone(&site, &["copy", "node:shelf/all", "node:shelf/copied"]);
    access.rclone(&site, &["check", "--download", &local, "node:shelf/copied"]);
    let listed = access.rclone(&site, &["lsf", "-R", "--files-only", "node:shelf"]);
    assert_eq!(listed.lines().count(), 14, "{listed}");
    let back = site.dir().join("back");
    access.rclone(&site, &["sync", "node:shelf/copied", &back.display().to_string()]);
    same(&source, &back);
    access.rclone(&site, &["purge", "node:shelf"]);
    assert_eq!(access.rclone(&site, &["lsd", "node:"]).trim(), "");
}
