//! A restore drill of a backup site that has no key: what it sends is opened elsewhere, by shares and a ledger backup, whatever the
//! ledger's policy asks of people who are not there.

use std::path::Path;
use std::process::Command;

use harness::client::{client, run};
use harness::process::wait_for;
use harness::sites::{PATIENCE, Sites, two_sites};
use serde_json::Value;

const LEN: usize = 64 << 20;

/// `nightlatch --json` with the token that was made for it.
fn with_token(sites: &Sites, arguments: &[&str]) -> Command {
    let mut command = sites.desk.command(&[&["--json"], arguments].concat());
    command.env("NIGHTLATCH_TOKEN_FILE", sites.desk.dir.join("drill.token"));
    command
}

fn drill(sites: &Sites) -> Command {
    let mut arguments: Vec<String> =
        ["key", "drill", "--from-node", "node-2", "--backup", "ledger.backup", "--metrics", "drill.prom"]
            .map(str::to_owned)
            .into();
    for officer in ["anna", "clara"] {
        let (share, key) = (format!("shares/{officer}.share"), format!("{officer}.officer-key"));
        arguments.extend(["--share".to_owned(), share, "--officer-key".to_owned(), key]);
    }
    with_token(sites, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn metrics(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("drill.prom")).expect("what the drill tells Prometheus")
}

#[test]
fn a_backup_site_without_a_key_gives_everything_back_under_a_policy_of_absent_people() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let dir = parent.path();
    let (sites, _first_daemon, _second_daemon) = two_sites(dir, "2G");
    let desk = &sites.desk;
    let image = dir.join("file-system");
    std::fs::File::create(&image).and_then(|file| file.set_len(LEN as u64)).expect("space for a test file");
    run(client("mkfs.ext4").args(["-q", "-F"]).arg(&image)).expect_success();
    sites.write_file(&sites.first, &image);
    sites.send(&sites.snapshot());

    // From the policy on nobody at this desk could log in, but for a program with a token of its own.
    let scopes = ["--scope", "GET:/v1/ledger/backup", "--scope", "POST:/v1/drills"];
    let create = [&["token", "create", "drill", "--output", "drill.token"], &scopes[..]].concat();
    desk.run(&create);
    let policy = "version = 1\n[people]\nsecond_factor = \"required\"\n[quorum]\nloosen = 3\nunlatch = 2\n";
    std::fs::write(dir.join("policy.toml"), policy).expect("space for a test file");
    desk.run(&["policy", "apply", "policy.toml"]);
    let refused = desk.refused(&["key", "backup", "ledger.backup"]);
    assert!(refused.contains("second factor"), "{refused}");
    run(&mut with_token(&sites, &["key", "backup", "ledger.backup"])).expect_success();

    let report = run(&mut drill(&sites)).expect_success();
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let volume = &report["volumes"][0];
    assert_eq!((&volume["label"], &volume["error"]), (&"db".into(), &Value::Null), "{report}");
    assert_eq!(volume["file_system"], "ext4, without a fault", "{report}");
    assert!(volume["bytes_read"].as_u64() > Some(0), "{report}");
    assert!(metrics(dir).contains("\nnightlatch_drill_passed 1\n"), "{}", metrics(dir));
    let status = desk.json(&["key", "status"]);
    assert_eq!(status["last_drill"]["passed"], true, "{status}");
    // The site gave ciphertext and has no key; its replica receives as before.
    assert_eq!(sites.status(&sites.second)["key_memory"]["keys"], 0);

    // A file system that is whole to the node and not to itself.
    let mut broken = std::fs::read(&image).expect("the image");
    broken[4096..1 << 20].fill(0);
    std::fs::write(&image, &broken).expect("space for a test file");
    sites.write_file(&sites.first, &image);
    sites.send(&sites.snapshot());
    let failed = run(&mut drill(&sites)).expect_failure();
    assert!(failed.contains("has faults") && failed.contains("not every volume could be read"), "{failed}");
    assert!(metrics(dir).contains("\nnightlatch_drill_passed 0\n"), "{}", metrics(dir));
    let status = desk.json(&["key", "status"]);
    assert_eq!(status["last_drill"]["passed"], false, "{status}");
    wait_for("the first site to serve on", PATIENCE, || {
        let content = sites.read(&sites.first);
        if content == broken { Ok(()) } else { Err("it holds something else".to_owned()) }
    });
}
