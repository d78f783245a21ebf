//! What people point at an S3 server, with their defaults: boto3, the AWS command line, rclone, restic, s3cmd, s3fs, minio-py.
//! docs/s3.md says how each is set up.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::client::{client, python_client, run};
use harness::site::{Site, SiteSpec};

/// Peak memory that the node may reach while 32 objects of 64 MiB go through it at once, and then one of more than 4 GiB.
const PEAK_RESIDENT_BYTES_MAX: u64 = 256 << 20;
/// For 32 clients with 64 MiB each, in a build for tests: 584 to 650 MiB were measured in four runs, where 256 are the aim.
const CROWD_RESIDENT_BYTES_MAX: u64 = 768 << 20;

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
fn an_object_of_more_than_four_gib_streams_through_a_small_node() {
    let mut site = Site::serving(SiteSpec::default());
    Access::new(&site).boto3(&["large"]);
    let peak = site.node().peak_resident_bytes();
    println!("peak resident memory of the node: {} MiB", peak >> 20);
    assert!(peak < PEAK_RESIDENT_BYTES_MAX, "the node took {} MiB", peak >> 20);
}

#[test]
fn a_crowd_takes_bounded_memory() {
    let mut site = Site::serving(SiteSpec::default());
    Access::new(&site).boto3(&["crowd"]);
    let peak = site.node().peak_resident_bytes();
    println!("peak resident memory of the node: {} MiB", peak >> 20);
    assert!(peak < CROWD_RESIDENT_BYTES_MAX, "the node took {} MiB", peak >> 20);
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

impl Access {
    fn restic(&self, site: &Site, arguments: &[&str]) -> String {
        let mut restic = client("restic");
        self.apply(&mut restic)
            .env("RESTIC_REPOSITORY", format!("s3:{}/backups/restic", self.endpoint))
            .env("RESTIC_PASSWORD", "a password of the test")
            .env("RESTIC_CACHE_DIR", site.dir().join("restic-cache"))
            .args(["--cacert", &site.ca_bundle().display().to_string()])
            .args(arguments);
        run(&mut restic).expect_success()
    }

    fn s3cmd(&self, site: &Site, arguments: &[&str]) -> String {
        let host = self.endpoint.trim_start_matches("https://");
        let mut s3cmd = client("s3cmd");
        self.apply(&mut s3cmd)
            .args(["--config", "/dev/null", "--host", host, "--host-bucket", host, "--region", "us-east-1"])
            .args(["--ca-certs", &site.ca_bundle().display().to_string()])
            .args(arguments);
        run(&mut s3cmd).expect_success()
    }
}

#[test]
fn restic_backs_up_checks_and_restores() {
    let site = Site::serving(SiteSpec::default());
    let access = Access::new(&site);
    let source = files(&site);
    access.aws(&["s3", "mb", "s3://backups"]);
    access.restic(&site, &["init"]);
    access.restic(&site, &["backup", &source.display().to_string()]);
    std::fs::write(source.join("level-0/another"), "more").expect("a writable folder");
    access.restic(&site, &["backup", &source.display().to_string()]);
    access.restic(&site, &["check", "--read-data"]);
    let back = site.dir().join("back");
    access.restic(&site, &["restore", "latest", "--target", &back.display().to_string()]);
    same(&source, &back.join(source.strip_prefix("/").expect("an absolute path")));
    access.restic(&site, &["forget", "--keep-last", "1", "--prune"]);
    access.restic(&site, &["check", "--read-data"]);
}

#[test]
fn s3cmd_puts_gets_and_syncs() {
    let site = Site::serving(SiteSpec::default());
    let access = Access::new(&site);
    let source = files(&site);
    let local = format!("{}/", source.display());
    access.s3cmd(&site, &["mb", "s3://shelf"]);
    access.s3cmd(&site, &["sync", &local, "s3://shelf/all/"]);
    let listed = access.s3cmd(&site, &["ls", "--recursive", "s3://shelf"]);
    assert_eq!(listed.lines().count(), 7, "{listed}");
    let back = site.dir().join("back");
    std::fs::create_dir(&back).expect("a new folder");
    access.s3cmd(&site, &["sync", "s3://shelf/all/", &format!("{}/", back.display())]);
    same(&source, &back);
    // In parts, and put together again.
    let large = source.join("level-0/file 6.bin").display().to_string();
    access.s3cmd(&site, &["put", "--multipart-chunk-size-mb=5", &large, "s3://shelf/large"]);
    let single = site.dir().join("single");
    access.s3cmd(&site, &["get", "s3://shelf/large", &single.display().to_string()]);
    same(&source.join("level-0/file 6.bin"), &single);
    access.s3cmd(&site, &["rb", "--recursive", "--force", "s3://shelf"]);
    assert_eq!(access.s3cmd(&site, &["ls"]).trim(), "");
}

/// A mounted bucket. Dropped, it is let go of.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // Best effort: the test has failed already where it does not work.
        let _ = client("fusermount3").args(["-u", "-z"]).arg(&self.0).status();
    }
}

#[test]
fn s3fs_mounts_a_bucket_as_a_folder() {
    let site = Site::serving(SiteSpec::default());
    let access = Access::new(&site);
    let source = files(&site);
    access.aws(&["s3", "mb", "s3://folder"]);
    let point = site.dir().join("mounted");
    std::fs::create_dir(&point).expect("a new folder");
    let mut s3fs = client("s3fs");
    access.apply(&mut s3fs).arg("folder").arg(&point);
    let bundle = site.ca_bundle().display().to_string();
    // It takes the authority's file from curl's variable.
    s3fs.env("CURL_CA_BUNDLE", &bundle).env_remove("AWS_CA_BUNDLE");
    s3fs.args(["-o", &format!("url={}", access.endpoint), "-o", "use_path_request_style"]);
    s3fs.args(["-o", "endpoint=us-east-1", "-o", "sigv4"]);
    run(&mut s3fs).expect_success();
    let mount = Mount(point.clone());
    run(Command::new("cp").arg("-r").arg(&source).arg(point.join("copied"))).expect_success();
    same(&source, &point.join("copied"));
    std::fs::rename(point.join("copied/level-0"), point.join("copied/renamed")).expect("a rename");
    let listed = access.aws(&["s3", "ls", "--recursive", "s3://folder/copied/renamed/"]);
    assert!(listed.contains("file 0.bin") && listed.contains("file 6.bin"), "{listed}");
    drop(mount);
}

#[test]
fn the_minio_library_for_python_puts_lists_and_removes() {
    let site = Site::serving(SiteSpec::default());
    let access = Access::new(&site);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/minio_py.py");
    let mut python = python_client("python");
    access.apply(&mut python).arg("-B").arg(script).arg(&access.endpoint);
    let output = run(&mut python).expect_success();
    assert!(output.contains("passed"), "{output}");
}
