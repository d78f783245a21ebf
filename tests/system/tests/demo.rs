//! `nightlatch demo`: the story that a newcomer sees, and the contract that scripts build on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::client::{client, python_client, run};
use harness::process::{Process, program, wait_for};
use serde_json::Value;

/// A demonstration makes an authority, a pool and keys; on a busy machine that takes a while.
const PATIENCE: Duration = Duration::from_secs(120);

fn demo(dir: &Path, arguments: &[&str]) -> Process {
    let mut command = Command::new(program("nightlatch"));
    command.args(["demo", "--dir"]).arg(dir).args(arguments);
    Process::start("nightlatch demo", command)
}

/// Starts a demonstration for scripts and reads its one object.
fn ready(dir: &Path, arguments: &[&str]) -> (Process, Value) {
    let mut process = demo(dir, &[&["--json"], arguments].concat());
    let object = wait_for("the demonstration's object", PATIENCE, || {
        assert!(process.try_wait().is_none(), "the demonstration ended\n{}", process.tail());
        let output = process.log().join("\n");
        let start = output.find('{').ok_or("no object yet")?;
        serde_json::from_str::<Value>(&output[start..]).map_err(|error| format!("{error}: {output}"))
    });
    (process, object)
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_else(|| panic!("{name} is missing or no text: {object}"))
}

fn is_running(object: &Value, name: &str) -> bool {
    let pid = object[name].as_u64().unwrap_or_else(|| panic!("{name} is missing or no number: {object}"));
    Path::new("/proc").join(pid.to_string()).exists()
}

fn nightlatch(dir: &Path, arguments: &[&str]) -> Value {
    let mut command = Command::new(program("nightlatch"));
    command.arg("--profile").arg(dir).arg("--json").args(arguments);
    let output = run(&mut command).expect_success();
    serde_json::from_str(&output)
        .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {output}"))
}

fn aws(object: &Value, dir: &Path, arguments: &[&str]) -> String {
    let mut aws = python_client("aws");
    aws.env("AWS_ACCESS_KEY_ID", text(object, "access_key"))
        .env("AWS_SECRET_ACCESS_KEY", text(object, "secret_key"))
        .env("AWS_DEFAULT_REGION", text(object, "region"))
        .env("AWS_CA_BUNDLE", dir.join("pki/ca-cert.pem"))
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .args(["--endpoint-url", text(object, "s3_endpoint")])
        .args(arguments);
    run(&mut aws).expect_success()
}

#[test]
fn the_contract_for_scripts_holds_from_start_to_sigterm_and_again() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let dir = parent.path().join("demo");
    let (mut process, object) = ready(&dir, &[]);
    assert_eq!(Path::new(text(&object, "dir")), dir);
    for uri in ["nbd_uri", "nbd_unix_uri"] {
        let size = run(client("nbdinfo").args(["--size", text(&object, uri)])).expect_success();
        assert_eq!(size.trim(), (1_u64 << 30).to_string(), "{uri}");
    }
    assert!(text(&object, "nbd_uri").starts_with("nbds://"), "TLS unless asked otherwise");
    let metrics =
        run(client("curl").args(["--silent", "--fail", text(&object, "metrics_url")])).expect_success();
    assert!(metrics.contains("nightlatch_sealed 0"), "{metrics}");
    assert!(text(&object, "admin_url").starts_with("https://"));
    assert!(is_running(&object, "node_pid") && is_running(&object, "keyholder_pid"));

    // Something to find again.
    let (file, back) = (parent.path().join("file"), parent.path().join("back"));
    std::fs::write(&file, vec![0x6E; 300_000]).expect("space for a test file");
    aws(&object, &dir, &["s3", "cp", &file.display().to_string(), "s3://demo/file"]);
    let uri = text(&object, "nbd_unix_uri");
    run(client("qemu-io").args(["-f", "raw", "-c", "write -P 0x6e 1M 64k", "-c", "flush", uri]))
        .expect_success();

    // What the person on call types.
    let status = nightlatch(&dir, &["status"]);
    assert!(status.to_string().contains("demo-node"), "{status}");
    nightlatch(&dir, &["node", "wipe"]);
    run(client("nbdinfo").args(["--size", uri])).expect_failure();
    // The latch is there as soon as the keyholder has heard what the wipe was for.
    wait_for("the latch of an operator's wipe", PATIENCE, || {
        let nodes = nightlatch(&dir, &["node", "list"]);
        if nodes[0]["latch"].is_object() { Ok(()) } else { Err(nodes.to_string()) }
    });
    nightlatch(&dir, &["unlatch", "--all"]);
    nightlatch(&dir, &["push", "--all"]);
    wait_for("an unsealed volume", PATIENCE, || {
        let answer = run(client("nbdinfo").args(["--size", uri]));
        if answer.success { Ok(()) } else { Err(answer.stderr) }
    });

    let status = process.stop(PATIENCE);
    assert!(status.success(), "SIGTERM is a clean end: {status}\n{}", process.tail());
    assert!(
        !is_running(&object, "node_pid") && !is_running(&object, "keyholder_pid"),
        "both programs end with it"
    );

    // The same directory: the same ports, the same keys, the same data.
    let (mut process, again) = ready(&dir, &[]);
    for name in
        ["nbd_uri", "nbd_unix_uri", "s3_endpoint", "access_key", "secret_key", "admin_url", "metrics_url"]
    {
        assert_eq!(text(&again, name), text(&object, name));
    }
    aws(&again, &dir, &["s3", "cp", "s3://demo/file", &back.display().to_string()]);
    assert!(std::fs::read(&back).expect("a file") == vec![0x6E; 300_000]);
    let read =
        run(client("qemu-io").args(["-f", "raw", "-r", "-c", "read -P 0x6e 1M 64k", uri])).expect_success();
    assert!(!read.contains("failed"), "{read}");
    assert!(process.stop(PATIENCE).success());
}

#[test]
fn plain_heads_are_for_clients_without_tls() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (mut process, object) =
        ready(&parent.path().join("demo"), &["--nbd-plain", "--s3-plain", "--volume-size", "64M"]);
    assert!(text(&object, "nbd_uri").starts_with("nbd://"));
    let size = run(client("nbdinfo").args(["--size", text(&object, "nbd_uri")])).expect_success();
    assert_eq!(size.trim(), (64_u64 << 20).to_string());
    let endpoint = text(&object, "s3_endpoint");
    assert!(endpoint.starts_with("http://"));
    let code = run(client("curl").args(["--silent", "-o", "/dev/null", "-w", "%{http_code}", endpoint]))
        .expect_success();
    assert_eq!(code.trim(), "403", "nothing is anonymous");
    assert!(process.stop(PATIENCE).success());
}

#[test]
fn the_programs_end_with_a_demonstration_that_is_killed() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (mut process, object) = ready(&parent.path().join("demo"), &[]);
    process.kill();
    wait_for("the end of both programs", PATIENCE, || {
        let left: Vec<_> =
            ["node_pid", "keyholder_pid"].into_iter().filter(|name| is_running(&object, name)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} run")) }
    });
}

#[test]
fn the_story_is_told_to_its_end_with_equal_checksums() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let mut process = demo(&parent.path().join("demo"), &[]);
    wait_for("the end of the story", PATIENCE, || {
        assert!(process.try_wait().is_none(), "the demonstration ended\n{}", process.tail());
        let told = process.log().join("\n");
        if told.contains("It goes on serving") { Ok(()) } else { Err(process.tail()) }
    });
    let told = process.log().join("\n");
    println!("{told}");
    for chapter in 1..=7 {
        assert!(told.contains(&format!("\n{chapter}. ")), "chapter {chapter} is missing:\n{told}");
    }
    assert_eq!(told.matches("the same as before").count(), 2, "{told}");
    assert!(told.contains("entropy 7.99") || told.contains("entropy 8.0"), "{told}");
    assert!(process.stop(PATIENCE).success());
}
