//! The program as a person or a script meets it: help, exit statuses, JSON, files.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use serde_json::Value;
use units::{ByteLen, DomainId, Fence, SectorCount, VolumeEpoch, VolumeId};

fn nightlatch(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The program without the profile of whoever runs the tests.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightlatch"));
    command
        .args(arguments)
        .env_remove("NIGHTLATCH_PROFILE")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
    stdout(output)
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&succeeded(output)).unwrap()
}

#[track_caller]
fn failed(output: &Output, exit: i32, parts: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(exit), "{}{said}", stdout(output));
    assert_eq!(stdout(output), "", "a failure says nothing on standard output");
    for part in parts {
        assert!(said.contains(part), "{part:?} in {said}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory with an authority, and the path of its profile.
fn authority() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    succeeded(&nightlatch(&[
        "pki",
        "init",
        text(&pki),
        "--trust-domain",
        "test.example",
        "--keyholder",
        "https://127.0.0.1:1",
    ]));
    (dir, pki)
}

#[test]
fn help_shows_where_to_start_and_what_the_exit_statuses_mean() {
    let help = succeeded(&nightlatch(&["--help"]));
    for part in ["nightlatch demo", "lockdown", "NIGHTLATCH_PROFILE", "Exit status", "6 sealed"] {
        assert!(help.contains(part), "{part} in {help}");
    }
    for command in
        ["demo", "pki", "key", "node", "pool", "volume", "bucket", "user", "status", "lockdown", "unlatch"]
    {
        assert!(help.contains(command), "{command}");
        succeeded(&nightlatch(&[command, "--help"]));
    }
    assert!(!help.contains("run-attached"), "{help}");
    failed(&nightlatch(&[]), 2, &["Usage"]);
    failed(&nightlatch(&["frobnicate"]), 2, &["unrecognized"]);
    failed(&nightlatch(&["push"]), 2, &["--all"]);
    failed(&nightlatch(&["node", "change", "node-1"]), 2, &["--key-address", "--lease-ms"]);
    failed(&nightlatch(&["push", "--all", "--node", "x"]), 2, &["cannot be used with"]);
}

#[test]
fn completions_and_manual_pages_are_made_from_the_grammar() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(succeeded(&nightlatch(&["completions", shell])).contains("lockdown"), "{shell}");
    }
    let page = succeeded(&nightlatch(&["man"]));
    assert!(page.contains(".TH nightlatch"), "{page}");
    let dir = tempfile::tempdir().unwrap();
    succeeded(&nightlatch(&["man", text(dir.path())]));
    for page in ["nightlatch.1", "nightlatch-key-ceremony.1", "nightlatch-volume-create.1"] {
        assert!(dir.path().join(page).is_file(), "{page}");
    }
}

#[test]
fn an_authority_is_made_once_and_its_profile_reads_back() {
    let (_dir, pki) = authority();
    failed(
        &nightlatch(&["pki", "init", text(&pki), "--trust-domain", "test.example"]),
        1,
        &["exists already and is not replaced"],
    );
    let issued = json(&nightlatch(&["--json", "pki", "issue", "node", "node-1", "--pki", text(&pki)]));
    assert!(Path::new(issued["cert"].as_str().unwrap()).is_file());
    let server = ["pki", "issue", "server", "node-1", "--pki", text(&pki)];
    failed(&nightlatch(&server), 1, &["--host"]);
    succeeded(&nightlatch(&[&server[..], &["--host", "node-1.example.com", "--host", "192.0.2.7"]].concat()));
    failed(
        &nightlatch(&["pki", "issue", "operator", "bob", "--host", "x.example", "--pki", text(&pki)]),
        2,
        &["carries no host name"],
    );
    failed(&nightlatch(&["pki", "issue", "king", "bob"]), 2, &["security-officer"]);
    failed(&nightlatch(&["pki", "issue", "operator", "b b", "--pki", text(&pki)]), 2, &["is not a name"]);
    failed(&nightlatch(&["pki", "issue", "operator", "b", "--pki", "/nonexistent"]), 1, &["pki init"]);
}

#[test]
fn nobody_at_the_address_is_told_apart_from_no_profile() {
    failed(&nightlatch(&["status"]), 1, &["cannot read the profile", "--profile"]);
    let (_dir, pki) = authority();
    failed(&nightlatch(&["--profile", text(&pki), "lockdown"]), 3, &["cannot reach https://127.0.0.1:1"]);
    // The keyholder would know where the node is.
    failed(
        &nightlatch(&["--profile", text(&pki), "bucket", "list"]),
        3,
        &["cannot reach https://127.0.0.1:1"],
    );
    failed(
        &nightlatch(&["--profile", text(&pki), "--as", "auditor", "volume", "list"]),
        2,
        &["no certificate with the role auditor", "pki issue"],
    );
    // Status shows what it knows, and fails when it knows nothing.
    let output = nightlatch(&["--profile", text(&pki), "status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stdout(&output).contains("cannot reach"), "{}", stdout(&output));
}

#[test]
fn failures_in_json_carry_kind_message_and_next_step() {
    let output = nightlatch(&["--json", "--profile", "/nonexistent", "lockdown"]);
    assert_eq!(output.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    for part in ["kind", "message", "next_step"] {
        assert!(error["error"][part].as_str().is_some_and(|text| !text.is_empty()), "{part} in {error}");
    }
}

#[test]
fn what_cannot_be_undone_is_not_done_unasked() {
    let (_dir, pki) = authority();
    for command in [&["volume", "delete", "db"][..], &["node", "remove", "node-1"]] {
        failed(
            &nightlatch(&[&["--profile", text(&pki)], command].concat()),
            2,
            &["--yes", "cannot be undone"],
        );
    }
}

#[test]
fn an_officers_key_has_a_secret_file_and_a_public_one() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let made = json(&nightlatch(&["--json", "key", "officer", "anna", "--out", text(dir.path())]));
    let (secret, public) = (made["secret_file"].as_str().unwrap(), made["public_file"].as_str().unwrap());
    assert_eq!(Path::new(secret).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let public: Value = serde_json::from_slice(&std::fs::read(public).unwrap()).unwrap();
    assert_eq!(public["name"], "anna");
    let secret_text = std::fs::read_to_string(secret).unwrap();
    let value: Value = serde_json::from_str(&secret_text).unwrap();
    assert!(!public.to_string().contains(value["secret"].as_str().unwrap()));
    failed(&nightlatch(&["key", "officer", "anna", "--out", text(dir.path())]), 1, &["not replaced"]);
    assert_eq!(std::fs::read_to_string(secret).unwrap(), secret_text);
    failed(&nightlatch(&["key", "officer", "../anna"]), 2, &["is not a name"]);
}

#[test]
fn a_node_is_prepared_with_a_configuration_that_its_program_reads() {
    let (dir, pki) = authority();
    let node = dir.path().join("node");
    let init = [
        "node",
        "init",
        "--dir",
        text(&node),
        "--name",
        "node-1",
        "--pki",
        text(&pki),
        "--pool",
        "/dev/null",
        "--listen",
        "127.0.0.1",
    ];
    failed(&nightlatch(&init), 1, &["there is no certificate", "pki issue node node-1"]);
    assert!(!node.exists(), "nothing is made before everything is there");
    succeeded(&nightlatch(&["pki", "issue", "node", "node-1", "--pki", text(&pki)]));
    succeeded(&nightlatch(&["pki", "issue", "server", "node-1", "--host", "localhost", "--pki", text(&pki)]));
    failed(&nightlatch(&[&init[..], &["--keyholder-key", "xyz"]].concat()), 2, &["64 hexadecimal"]);
    let key = "ab".repeat(32);
    let made = json(&nightlatch(&[&["--json"], &init[..], &["--keyholder-key", &key]].concat()));
    let config = config::NodeConfig::load(Path::new(made["config"].as_str().unwrap())).unwrap();
    assert_eq!(config.node_id.to_string(), made["node"].as_str().unwrap());
    assert_eq!(config::read_public_key(&config.keyholder_key_file()).unwrap(), [0xab; 32]);
    let identity = identity::NodeKey::load(&config.identity_key_file()).unwrap();
    assert_eq!(hex::encode(identity.public()), made["identity_key"].as_str().unwrap());
    config.tls.credentials().unwrap();
    config.tls.trust().unwrap();
    assert_eq!(config.tls.server_credentials().unwrap().len(), 2);
    failed(&nightlatch(&init), 1, &["not replaced"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = command(&["man"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut [0]).unwrap();
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    assert_eq!(stderr(&output), "");
    assert!(output.status.success());
}

#[test]
fn an_attached_program_ends_with_the_one_that_started_it() {
    // A shell starts the program attached to itself, says its process id, and is killed.
    let program = env!("CARGO_BIN_EXE_nightlatch");
    let script = format!("{program} run-attached --parent $$ -- /bin/sleep 1000 & echo $!; read -r line");
    let mut shell = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().unwrap()), &mut line)
        .unwrap();
    let attached = PathBuf::from(format!("/proc/{}", line.trim()));
    let wait_until = |condition: &dyn Fn() -> bool, what: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !condition() {
            assert!(std::time::Instant::now() < deadline, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    let is_sleeping =
        || std::fs::read_to_string(attached.join("comm")).is_ok_and(|name| name.trim() == "sleep");
    wait_until(&is_sleeping, "the program takes the process over");
    shell.kill().unwrap();
    shell.wait().unwrap();
    // Gone, or a zombie that nobody in this container reaps.
    let ended = || std::fs::read_to_string(attached.join("stat")).map_or(true, |stat| stat.contains(") Z "));
    wait_until(&ended, "the attached program ends");
    failed(&nightlatch(&["run-attached", "--parent", "1", "--", "/bin/true"]), 1, &["has ended"]);
}

/// Changes a byte of a file.
fn damage(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// A pool with two volumes, of which the entry of the first is in its table and not in the log any more.
fn pool_with_volumes(path: &Path) {
    let options =
        device::OpenOptions { create_len: Some(ByteLen(64 << 20)), ..device::OpenOptions::default() };
    let device = Arc::new(device::FileDevice::open(path, options).unwrap());
    let pool = pool::Pool::create(device, pool::CreateOptions::default()).unwrap();
    let spec = pool::VolumeSpec {
        id: VolumeId([1; 16]),
        sectors: SectorCount(1000),
        domain: DomainId([2; 16]),
        epoch: VolumeEpoch(1),
        check: [3; 16],
        kind: pool::VolumeKind::Block,
    };
    pool.create_volume(spec).unwrap();
    let second = pool::VolumeSpec { id: VolumeId([9; 16]), ..spec };
    pool.create_volume(second).unwrap();
    (1..300).for_each(|fence| pool.raise_fence(second.id, Fence(fence)).unwrap());
}

#[test]
fn a_pool_is_checked_without_a_write_and_repaired_without_a_guess() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool.img");
    pool_with_volumes(&path);
    let pool = |command: &str| nightlatch(&["--json", "pool", command, text(&path)]);
    let sound = json(&pool("check"));
    assert_eq!((&sound["sound"], &sound["volumes"]), (&true.into(), &2.into()));

    // A copy of the superblock has a second one.
    damage(&path, 100);
    let before = std::fs::read(&path).unwrap();
    let checked = json(&pool("check"));
    assert_eq!((&checked["sound"], &checked["damaged_superblock"]), (&true.into(), &0.into()));
    assert!(std::fs::read(&path).unwrap() == before, "a check has written");
    assert!(succeeded(&nightlatch(&["pool", "repair", text(&path)])).contains("Mended"));
    assert_eq!(json(&pool("check"))["damaged_superblock"], Value::Null);
    assert!(succeeded(&nightlatch(&["pool", "repair", text(&path)])).contains("nothing to mend"));

    // An entry of the volume table has none.
    damage(&path, (1 << 20) + 20);
    let before = std::fs::read(&path).unwrap();
    for command in ["check", "repair"] {
        let output = pool(command);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["problems"][0]["device_offset"], 1 << 20, "{report}");
        assert!(stderr(&output).contains("replica"), "{}", stderr(&output));
        assert!(std::fs::read(&path).unwrap() == before, "{command} has written");
    }
}
