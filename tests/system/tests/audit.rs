//! The audit trail, from the outside: an installation is used, its trail verified with the command line, and then the trail is
//! treated as somebody with the keyholder's or the node's disk would treat it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::client::{client, run};
use harness::process::wait_for;
use harness::site::free_port;
use serde_json::Value;
use system_tests::{BUCKET, Installation};

const PATIENCE: Duration = Duration::from_secs(60);

trait Copies {
    fn verify_copy(&self, change: impl FnOnce(String) -> String) -> Result<String, String>;
}

impl Copies for Installation {
    /// Verifies a changed copy of the keyholder's trail, with what the witness kept.
    fn verify_copy(&self, change: impl FnOnce(String) -> String) -> Result<String, String> {
        let copy = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(copy.path().join("audit.jsonl"), change(trail(self))).expect("space");
        let arguments =
            ["audit", "verify", "--dir", copy.path().to_str().expect("UTF-8"), "--witness", "heads.jsonl"];
        let answer = run(&mut self.desk.command(&arguments));
        if answer.success { Ok(answer.stdout) } else { Err(answer.describe()) }
    }
}

/// The keyholder's trail, without a line that is in the middle of being written.
fn trail(site: &Installation) -> String {
    let text = std::fs::read_to_string(site.state().join("audit.jsonl")).expect("a trail");
    let end = text.rfind('\n').map_or(0, |end| end + 1);
    text[..end].to_owned()
}

#[test]
fn what_people_and_programs_do_is_in_the_trail_and_no_treatment_of_it_goes_unnoticed() {
    let mut site = Installation::serving();
    everything_is_in_both_trails(&site);
    a_witness_sees_no_entry_and_follows(&site);
    a_changed_copy_is_found(&site);
    a_disk_that_was_cut_back_is_found_at_the_next_unseal(&mut site);
    a_nodes_trail_that_was_cut_is_found_by_its_keyholder(&mut site);
}

fn everything_is_in_both_trails(site: &Installation) {
    let desk = &site.desk;
    desk.refused(&["--as", "auditor", "lockdown"]);
    desk.run(&["revoke", "--volume", "store"]);
    desk.run(&["unlatch", "--volume", "store"]);
    desk.until(&["push", "--volume", "store"]);
    // What is said of a node, and by it, is written down beside what people ask for.
    let wanted = [
        "start",
        "session-certified",
        "ceremony",
        "node-added",
        "volume-creating",
        "volume-created",
        "grant",
        "receipt",
        "refused",
        "revoke",
        "wiped",
        "unlatch",
        "push-approved",
        "node-trail",
    ];
    wait_for("every event in the trail", PATIENCE, || {
        let events = site.events();
        let missing = wanted.iter().find(|event| !events.iter().any(|found| found == *event));
        missing.map_or(Ok(()), |event| Err(format!("{event} is missing: {events:?}")))
    });
    let refused = site.search(&["--event", "refused"]);
    assert_eq!(refused[0]["by"], "auditor/auditor", "{refused:?}");
    assert_eq!(refused[0]["act"], "POST /v1/lockdown");
    wait_for("every event in the node's trail", PATIENCE, || {
        let theirs = site.search(&["--node", "node-1"]);
        let has = |event: &str| theirs.iter().any(|entry| entry["event"] == event);
        let all = has("key-taken") && has("key-dropped") && has("act") && has("witnessed");
        if all { Ok(()) } else { Err(format!("{theirs:?}")) }
    });
    for dir in [site.state(), site.node_state()] {
        let text = std::fs::read_to_string(dir.join("audit.jsonl")).expect("a trail");
        assert!(!text.contains(BUCKET), "a bucket's name is in the trail of {}", dir.display());
    }
    let verified = desk.json(&["audit", "verify", "--node", "node-1"]);
    assert_eq!(verified["holds"], true, "{verified}");
    assert_eq!(verified["findings"], serde_json::json!([]), "{verified}");
    assert_eq!(verified["node"]["disagreements"], serde_json::json!([]), "{verified}");
    let forbidden = desk.refused(&["--as", "monitor", "audit", "search"]);
    assert!(forbidden.contains("monitor"), "{forbidden}");
}

fn a_witness_sees_no_entry_and_follows(site: &Installation) {
    let desk = &site.desk;
    let witness = ["--as", "monitor", "audit", "witness", "--state", "heads.jsonl"];
    let first = desk.json(&witness);
    assert_eq!((&first["new_entries"], &first["certified"]), (&Value::Null, &Value::Bool(true)), "{first}");
    desk.refused(&["--as", "auditor", "lockdown"]);
    let second = desk.json(&witness);
    assert!(second["new_entries"].as_u64().is_some_and(|count| count > 0), "{second}");
    let kept = std::fs::read_to_string(desk.dir.join("heads.jsonl")).expect("heads");
    assert_eq!(kept.lines().count(), 2, "{kept}");
    assert!(!kept.contains("operator") && !kept.contains("lockdown"), "{kept}");
    assert_eq!(desk.json(&["audit", "verify", "--witness", "heads.jsonl"])["root_key_pinned"], true);
}

fn a_changed_copy_is_found(site: &Installation) {
    let untouched = site.verify_copy(|text| text).expect("an untouched copy holds");
    assert!(untouched.contains("holds"), "{untouched}");
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let count = lines(&trail(site)).len();
    // Cut at every entry: the witness has the last head.
    for kept in 0..count {
        let cut = site.verify_copy(|text| lines(&text)[..kept].join("\n") + "\n");
        let said = cut.expect_err("a trail that was cut holds");
        assert!(said.contains("DOES NOT HOLD"), "{said}");
    }
    let removed = site.verify_copy(|text| {
        let mut lines = lines(&text);
        lines.remove(count / 2);
        lines.join("\n") + "\n"
    });
    assert!(removed.expect_err("an entry was removed").contains("missing or in another order"));
    let altered = site
        .verify_copy(|text| text.replacen("\"by\":\"operator/operator\"", "\"by\":\"operator/somebody\"", 1));
    assert!(altered.expect_err("an entry was altered").contains("altered"));
}

fn a_disk_that_was_cut_back_is_found_at_the_next_unseal(site: &mut Installation) {
    let path = site.state().join("audit.jsonl");
    let _ = site.keyholder.stop(PATIENCE);
    let text = std::fs::read_to_string(&path).expect("a trail");
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&path, lines[..8].join("\n") + "\n").expect("space");
    site.keyholder = site.desk.start("nightlatch-keyholder", Path::new("keyholder.toml"));
    site.desk.until(&["key", "status"]);
    let alarm = site.desk.refused(&["--as", "monitor", "audit", "witness", "--state", "heads.jsonl"]);
    assert!(alarm.contains("cut off") || alarm.contains("rewritten"), "{alarm}");
    site.desk.unseal();
    assert!(site.events().iter().any(|event| event == "audit-truncated"), "{:?}", site.events());
    let said = site.desk.refused(&["audit", "verify", "--witness", "heads.jsonl"]);
    assert!(said.contains("DOES NOT HOLD"), "{said}");
    // The node has what the keyholder's trail lacks.
    wait_for("the node's word", PATIENCE, || {
        let answer = run(&mut site.desk.command(&["audit", "verify", "--node", "node-1"]));
        let told = answer.stdout.contains("which the keyholder's trail does not know");
        if told { Ok(()) } else { Err(answer.describe()) }
    });
}

fn a_nodes_trail_that_was_cut_is_found_by_its_keyholder(site: &mut Installation) {
    let path = site.node_state().join("audit.jsonl");
    let _ = site.node.stop(PATIENCE);
    let text = std::fs::read_to_string(&path).expect("a trail");
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&path, lines[..3].join("\n") + "\n").expect("space");
    site.node = site.desk.start("nightlatchd", &site.node_config);
    wait_for("the keyholder's alarm", PATIENCE, || {
        let found = site.events().iter().any(|event| event == "node-trail-broken");
        if found { Ok(()) } else { Err(format!("{:?}", site.events())) }
    });
    site.restart_keyholder();
}

/// `openssl s_server` prints what it is sent: the messages of RFC 5424 in the frames of RFC 5425, over TLS.
#[test]
fn entries_go_to_a_syslog_server_over_tls_and_to_files_in_every_form() {
    let site = Installation::serving();
    let desk = &site.desk;
    desk.run(&["pki", "issue", "server", "logs", "--host", "127.0.0.1", "--pki", "./pki"]);
    let address = free_port();
    let received = desk.dir.join("received");
    let mut server = Command::new(client("openssl").get_program());
    let pki = desk.dir.join("pki");
    server.args(["s_server", "-quiet", "-naccept", "2", "-accept", &address.port().to_string()]);
    server
        .arg("-cert")
        .arg(pki.join("server/logs/rsa.pem"))
        .arg("-cert_chain")
        .arg(pki.join("server/logs/rsa.pem"));
    server.arg("-key").arg(pki.join("server/logs/rsa.key"));
    // It ends with its standard input, which is open as long as the value that holds the process.
    server.stdin(Stdio::piped()).stderr(Stdio::null());
    server.stdout(std::fs::File::create(&received).expect("space"));
    let _server = Ended(server.spawn().expect("openssl"));
    let to = address.to_string();
    let export = [
        "audit",
        "export",
        "--format",
        "syslog",
        "--to",
        &to,
        "--ca",
        "pki/ca-cert.pem",
        "--state",
        "sent.json",
    ];
    desk.until(&export);
    let messages = wait_for("messages", PATIENCE, || {
        let text = std::fs::read_to_string(&received).unwrap_or_default();
        let messages = frames(&text)?;
        if messages.len() > 5 { Ok(messages) } else { Err(text) }
    });
    assert!(
        messages
            .iter()
            .all(|message| message.starts_with('<')
                && message.contains(" keyholder-1 nightlatch-keyholder - "))
    );
    assert!(
        messages.iter().any(|message| message.contains(" ceremony [nightlatch@32473 seq=\"")),
        "{messages:?}"
    );
    // The second time only what is new.
    desk.refused(&["--as", "auditor", "lockdown"]);
    desk.run(&export);
    let all = wait_for("the rest", PATIENCE, || {
        let text = std::fs::read_to_string(&received).unwrap_or_default();
        let all = frames(&text)?;
        if all.iter().any(|message| message.contains(" refused [")) { Ok(all) } else { Err(text) }
    });
    let sequence: Vec<u64> = all.iter().map(|message| sequence(message)).collect();
    assert!(sequence.windows(2).all(|pair| pair[0] < pair[1]), "each once, in order: {sequence:?}");

    desk.run(&["audit", "export", "--output", "trail.jsonl"]);
    let copied = std::fs::read_to_string(desk.dir.join("trail.jsonl")).expect("a file");
    let trail = std::fs::read_to_string(site.state().join("audit.jsonl")).expect("a trail");
    assert!(trail.starts_with(copied.as_str()), "the lines as they stand in the trail");
    let cef = desk.run(&["audit", "export", "--format", "cef", "--event", "volume-*"]);
    assert!(
        cef.lines().count() >= 2 && cef.lines().all(|line| line.starts_with("CEF:0|Nightlatch|")),
        "{cef}"
    );
}

/// Ends with the value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn frames(mut text: &str) -> Result<Vec<String>, String> {
    let mut messages = Vec::new();
    while !text.is_empty() {
        let (length, rest) = text.split_once(' ').ok_or("half a frame")?;
        let length: usize = length.parse().map_err(|_| format!("no length: {length}"))?;
        let message = rest.get(..length).ok_or("half a message")?;
        messages.push(message.to_owned());
        text = &rest[length..];
    }
    Ok(messages)
}

fn sequence(message: &str) -> u64 {
    let after = message.split_once("seq=\"").expect("a number").1;
    after.split_once('"').expect("a number").0.parse().expect("a number")
}
