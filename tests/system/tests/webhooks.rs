//! Webhooks, from the outside: a receiver that is not ours checks what it is sent, goes away, refuses, and comes back.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::client::client;
use harness::process::wait_for;
use harness::site::free_port;
use serde_json::Value;
use system_tests::Installation;

const PATIENCE: Duration = Duration::from_secs(60);

/// A receiver; it ends with the value.
struct Receiver {
    process: Child,
    log: PathBuf,
}

impl Receiver {
    /// Starts one on `address`, over TLS where `tls`.
    fn start(dir: &Path, name: &str, address: SocketAddr, tls: bool) -> Self {
        let log = dir.join(format!("{name}.log"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/webhook.py");
        let mut command = Command::new(client("python3").get_program());
        command.arg(script).arg(address.port().to_string()).arg(dir.join("pager.secret")).arg(&log);
        if tls {
            let pair = dir.join("pki/server/hooks");
            command.arg(pair.join("rsa.pem")).arg(pair.join("rsa.key"));
        }
        let mut process = command.stdout(Stdio::piped()).spawn().expect("python3");
        let mut ready = String::new();
        let _ = BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut ready);
        assert_eq!(ready.trim(), "ready", "the receiver did not start");
        Self { process, log }
    }

    /// What it answers from now on.
    fn answer(&self, status: u16) {
        // In one step: the receiver never reads half of it.
        let (next, file) = (self.log.with_extension("log.next"), self.log.with_extension("log.status"));
        std::fs::write(&next, status.to_string()).and_then(|()| std::fs::rename(next, file)).expect("space");
    }

    fn requests(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        // The last may be in the middle of being written.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Waits for the first request with this event that it took, after so many requests.
    fn wait(&self, event: &str, after: usize) -> Value {
        wait_for(event, PATIENCE, || {
            let requests = self.requests();
            let found = requests
                .iter()
                .skip(after)
                .find(|request| request["body"]["type"] == event && request["answer"] == 200);
            found.cloned().ok_or_else(|| format!("{requests:?}"))
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn webhook(site: &Installation, name: &str) -> Value {
    let all = site.desk.json(&["webhook", "list"]);
    all.as_array().expect("a list").iter().find(|entry| entry["name"] == name).cloned().expect("a webhook")
}

#[test]
fn a_receiver_that_is_not_ours_is_told_of_everything_in_order_whatever_becomes_of_either_side() {
    let mut site = Installation::serving();
    let dir = site.desk.dir.clone();
    let made = site.desk.run(&["webhook", "secret", "pager.secret"]);
    assert!(made.contains("[[webhook]]"), "{made}");
    assert!(
        site.desk.refused(&["webhook", "secret", "pager.secret"]).contains("exists"),
        "none is written over"
    );
    site.desk.run(&["pki", "issue", "server", "hooks", "--host", "127.0.0.1", "--pki", "./pki"]);
    let (pager_at, away_at) = (free_port(), free_port());
    let config = dir.join("keyholder.toml");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let tables = format!(
        "[[webhook]]\nname = \"pager\"\nurl = \"https://{pager_at}/hooks?to=night\"\nsecret = \"pager.secret\"\nca = \
         \"pki/ca-cert.pem\"\n[[webhook]]\nname = \"away\"\nurl = \"http://{away_at}/\"\nsecret = \"pager.secret\"\nevents = \
         [\"keys.*\"]\ngive_up_after_s = 1\n"
    );
    std::fs::write(&config, text + &tables).expect("space");
    let pager = Receiver::start(&dir, "pager", pager_at, true);
    site.restart_keyholder();
    site.desk.unseal();

    let unsealed = pager.wait("keyholder.unsealed", 0);
    assert_eq!(unsealed["path"], "/hooks?to=night", "{unsealed}");
    let tested = site.desk.json(&["webhook", "test", "pager"]);
    assert_eq!(tested["status"], 200, "{tested}");
    pager.wait("webhook.test", 0);
    let nobody = site.desk.refused(&["webhook", "test", "away"]);
    assert!(nobody.contains("cannot be reached") && nobody.contains("check its url"), "{nobody}");
    let unknown = site.desk.refused(&["webhook", "test", "nobody"]);
    assert!(unknown.contains("webhook list"), "{unknown}");
    assert!(site.desk.refused(&["--as", "monitor", "webhook", "test", "pager"]).contains("operator"));
    assert!(site.desk.run(&["--as", "monitor", "webhook", "list"]).contains("pager"));

    site.desk.run(&["revoke", "--volume", "store"]);
    let revoked = pager.wait("keys.revoked", 0);
    assert_eq!(revoked["body"]["data"]["by"], "operator/operator", "{revoked}");
    let wiped = pager.wait("node.wiped", 0);
    assert_eq!(wiped["body"]["data"]["node_name"], "node-1", "{wiped}");

    dead_letters_are_kept_and_sent_again(&site, &dir, away_at);
    nothing_waits_for_a_receiver_and_a_restart_loses_nothing(&mut site, pager, pager_at);
    let events = site.events();
    for event in ["webhook-tested", "webhook-replayed", "webhook-letters-discarded"] {
        assert!(events.iter().any(|found| found == event), "{event}: {events:?}");
    }
}

fn dead_letters_are_kept_and_sent_again(site: &Installation, dir: &Path, at: SocketAddr) {
    let desk = &site.desk;
    let letter = wait_for("a dead letter", PATIENCE, || {
        let entry = webhook(site, "away");
        let letter = entry["dead_letters"][0].clone();
        if letter["event"] == "keys.revoked" { Ok(letter) } else { Err(entry.to_string()) }
    });
    assert!(letter["why"].as_str().expect("a reason").contains("cannot be reached"), "{letter}");
    let number = letter["entry"].to_string();
    assert!(desk.run(&["webhook", "dead-letters"]).contains(&number));
    let wrong = desk.refused(&["webhook", "replay", "away", "--entry", "1"]);
    assert!(wrong.contains("no dead letter of entry 1"), "{wrong}");
    let away = Receiver::start(dir, "away", at, false);
    desk.run(&["webhook", "replay", "away", "--entry", &number]);
    let sent = away.wait("keys.revoked", 0);
    assert_eq!(sent["body"]["data"]["entry"].to_string(), number, "{sent}");
    wait_for("no dead letter", PATIENCE, || {
        let entry = webhook(site, "away");
        let none = entry["dead_letters"] == serde_json::json!([]) && entry["waiting"].is_null();
        if none { Ok(()) } else { Err(entry.to_string()) }
    });
    // Of what it did not ask for it hears nothing.
    assert!(away.requests().iter().all(|request| request["body"]["type"] == "keys.revoked"));
}

fn nothing_waits_for_a_receiver_and_a_restart_loses_nothing(
    site: &mut Installation,
    pager: Receiver,
    at: SocketAddr,
) {
    // It reads and refuses: after five times that is a dead letter, and what comes after it goes on.
    pager.answer(400);
    site.desk.run(&["unlatch", "--volume", "store"]);
    let refused = wait_for("a refused letter", PATIENCE, || {
        site.desk.run(&["webhook", "replay", "pager"]);
        let entry = webhook(site, "pager");
        let letter = entry["dead_letters"][0].clone();
        if letter["event"] == "keys.unlatched" { Ok(letter) } else { Err(entry.to_string()) }
    });
    assert_eq!((&refused["attempts"], &refused["why"]), (&5.into(), &"it answered 400".into()), "{refused}");
    site.desk.run(&["webhook", "discard", "pager", "--yes"]);
    assert_eq!(webhook(site, "pager")["dead_letters"], serde_json::json!([]));

    // It is away: keys go out and are taken back all the same.
    pager.answer(503);
    let seen = pager.requests().len();
    site.desk.until(&["push", "--volume", "store"]);
    site.desk.run(&["revoke", "--volume", "store"]);
    wait_for("a waiting event", PATIENCE, || {
        let entry = webhook(site, "pager");
        if entry["waiting"]["event"] == "keys.revoked" { Ok(()) } else { Err(entry.to_string()) }
    });
    assert!(site.desk.run(&["webhook", "list"]).contains("WAITS with keys.revoked"));
    drop(pager);
    site.restart_keyholder();
    site.desk.unseal();
    let pager = Receiver::start(&site.desk.dir, "pager", at, true);
    pager.answer(200);
    site.desk.run(&["webhook", "replay", "pager"]);
    for event in ["keys.revoked", "node.wiped", "keyholder.stopped", "keyholder.sealed", "keyholder.unsealed"]
    {
        pager.wait(event, seen);
    }
    let requests = pager.requests();
    let text = serde_json::Value::from(requests.clone()).to_string();
    // The volume's label is a customer's matter, the secret nobody's.
    assert!(!text.contains("store") && !text.contains("whsec_"), "{text}");
    let mut told_up_to = 0;
    for request in requests.iter().filter(|request| request["body"]["type"] != "webhook.test") {
        assert_eq!(
            (&request["holds"], &request["altered_holds"]),
            (&true.into(), &false.into()),
            "{request}"
        );
        let entry = request["body"]["data"]["entry"].as_u64().expect("a number");
        assert!(entry >= told_up_to, "out of order: {request}");
        told_up_to = entry;
    }
    // What is sent twice has the id that it had.
    for request in &requests {
        let same = |other: &&Value| other["body"] == request["body"];
        assert!(requests.iter().filter(same).all(|other| other["id"] == request["id"]), "{request}");
    }
}
