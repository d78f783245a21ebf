//! `nightlatch doctor`: what people and scripts see, and that it is the very report that a node gives as evidence.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use harness::process::program;
use harness::site::{Site, SiteSpec};
use serde_json::Value;

/// Runs the doctor on a site's configuration; the exit status and what it said.
fn doctor(site: &Site, json: bool) -> (i32, String) {
    let mut command = Command::new(program("nightlatch"));
    command.arg("doctor").arg("--config").arg(site.node_config_file());
    if json {
        command.arg("--json");
    }
    let output = command.output().expect("the doctor runs");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).expect("text");
    (output.status.code().expect("an exit status"), said)
}

fn document(site: &Site) -> (i32, Value) {
    let (status, said) = doctor(site, true);
    (status, serde_json::from_str(&said).expect("one JSON document"))
}

fn finding<'a>(document: &'a Value, probe: &str) -> &'a Value {
    let findings = document["findings"].as_array().expect("findings");
    findings.iter().find(|finding| finding["probe"] == probe).expect("the probe")
}

#[test]
fn what_is_broken_sets_the_exit_status_and_says_how_to_mend_it() {
    let site = Site::installed(SiteSpec::default());
    // The harness makes the directory as it comes; `nightlatch node init` and the node make it so.
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&site.node_config().state_dir, private).expect("its mode");
    let (status, whole) = document(&site);
    let expected = match whole["verdict"].as_str() {
        Some("good") => 0,
        Some("weak" | "unknown") => 1,
        Some("broken") => 2,
        other => panic!("{other:?}"),
    };
    assert_eq!(status, expected);
    for probe in ["state-dir", "key-files", "pools"] {
        assert_eq!(finding(&whole, probe)["verdict"], "good", "{whole}");
    }
    let key = site.node_config().identity_key_file();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("its mode");
    let (status, broken) = document(&site);
    let keys = finding(&broken, "key-files");
    assert_eq!((status, &keys["verdict"], &keys["required"]), (2, &"broken".into(), &true.into()));
    assert!(
        keys["found"].as_str().is_some_and(|found| found.contains("identity.key has mode 0644")),
        "{keys}"
    );
    let (status, text) = doctor(&site, false);
    assert_eq!(status, 2);
    for part in ["BROKEN   key-files", "why:   Whoever reads", "mend:  `chmod 600`", "good     pools"] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
}

#[test]
fn without_a_configuration_it_looks_at_the_machine_and_with_a_wrong_one_it_says_so() {
    let output = Command::new(program("nightlatch")).args(["doctor", "--json"]).output().expect("it runs");
    let document: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let probes: Vec<_> = document["findings"].as_array().expect("findings").iter().collect();
    assert!(probes.iter().any(|finding| finding["probe"] == "secret-memory"));
    assert!(!probes.iter().any(|finding| finding["probe"] == "key-files"), "no configuration, no keys");
    let mut wrong = Command::new(program("nightlatch"));
    let output = wrong.args(["doctor", "--config", "/nonexistent/node.toml"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/node.toml"));
}

#[test]
fn a_nodes_evidence_is_the_doctors_report() {
    let site = Site::serving(SiteSpec::default());
    let evidence = site.keyholder_status().nodes.remove(0).hygiene.expect("evidence");
    let (_, document) = document(&site);
    let essence = |report: &Value| -> Vec<(String, String)> {
        let findings = report["findings"].as_array().expect("findings");
        let text = |finding: &Value, key: &str| finding[key].as_str().expect("text").to_owned();
        findings.iter().map(|finding| (text(finding, "probe"), text(finding, "verdict"))).collect()
    };
    assert!(essence(&evidence).len() > 25);
    assert_eq!(essence(&evidence), essence(&document));
}
