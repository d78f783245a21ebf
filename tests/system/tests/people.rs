//! People, from the outside: an authenticator that is not ours, two persons for what cannot be undone, and what nobody may see.

use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use admin::api::{CreateSnapshot, SnapshotStatus};
use harness::client::{client, run};
use harness::desk::word;
use harness::process::wait_for;
use harness::s3::S3Client;
use harness::site::{OBJECTS, Site, SiteSpec};
use identity::{HttpsClient, Role};
use serde_json::Value;
use system_tests::Installation;

const PATIENCE: Duration = Duration::from_secs(60);

/// How long a code is the present one.
const CODE_S: u64 = 30;

fn oathtool(secret: &str, moment: u64) -> String {
    let mut command = client("oathtool");
    command.args(["--totp", "--base32", "--digits=6", "--now", &format!("@{moment}"), secret]);
    run(&mut command).expect_success().trim().to_owned()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs()
}

/// `nightlatch` with a line on its standard input.
fn typed(site: &Installation, arguments: &[&str], line: &str) -> Result<String, String> {
    use std::io::Write;
    let mut child = site
        .desk
        .command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let _ = writeln!(child.stdin.take().expect("a pipe"), "{line}");
    let output = child.wait_with_output().expect("the program ends");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

/// Enrols: the secret is read from what the command says, and the first code typed into it.
fn enrol(site: &Installation, role: &str) -> String {
    use std::io::{BufRead, BufReader, Write};
    let mut child = site
        .desk
        .command(&["--json", "--as", role, "people", "enrol"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("what the command says");
    let made: Value = serde_json::from_str(&line).expect("JSON");
    let secret = word(&made, "secret");
    // The code before this one, so that this one is still good for the login. It is believed as long as this one is the present one,
    // and a busy machine may take some of that time.
    wait_for("a code with time left", PATIENCE, || {
        let left_s = CODE_S - now() % CODE_S;
        if left_s > 10 { Ok(()) } else { Err(format!("{left_s} s")) }
    });
    let code = oathtool(&secret, now() - CODE_S);
    writeln!(child.stdin.take().expect("a pipe"), "{code}").expect("the command reads");
    assert!(child.wait().expect("the command ends").success());
    secret
}

#[test]
fn an_authenticator_is_asked_for_and_two_people_erase() {
    let site = Installation::serving();
    let desk = &site.desk;
    let secret = enrol(&site, "operator");
    let refused = desk.refused(&["key", "backup", "b"]);
    assert!(refused.contains("nightlatch login"), "{refused}");
    assert!(
        typed(&site, &["--as", "operator", "login"], "000000")
            .is_err_and(|said| said.contains("not the code"))
    );
    let said = typed(&site, &["--as", "operator", "login"], &oathtool(&secret, now())).expect("a login");
    assert!(said.contains("Logged in as operator"), "{said}");
    desk.run(&["key", "backup", "b"]);
    // Taking keys away takes no code.
    desk.run(&["--as", "operator", "logout"]);
    desk.run(&["revoke", "--volume", "store"]);
    typed(&site, &["--as", "operator", "login"], &unused_code(&secret)).expect("a second login");

    let policy = "version = 1\n[quorum]\nerase = 2\nloosen = 2\n";
    std::fs::write(desk.dir.join("policy.toml"), policy).expect("space");
    assert!(desk.run(&["policy", "check", "policy.toml"]).contains("is a policy"));
    assert!(desk.run(&["policy", "diff", "policy.toml"]).contains("quorum.erase"));
    desk.run(&["policy", "apply", "policy.toml"]);
    assert!(desk.run(&["policy", "show"]).contains(policy));
    std::fs::write(desk.dir.join("loose.toml"), "version = 1\n").expect("space");
    assert!(desk.run(&["policy", "diff", "loose.toml"]).contains("asks for less"));
    let refused = desk.refused(&["policy", "apply", "loose.toml"]);
    assert!(refused.contains("other people's approval"), "{refused}");

    let refused = desk.refused(&["volume", "delete", "store", "--yes"]);
    assert!(refused.contains("erase volume store"), "{refused}");
    let waiting = desk.json(&["approval", "list"]);
    let of = |act: &str| {
        let all = waiting.as_array().expect("a list");
        let found = all.iter().find(|request| word(request, "act").starts_with(act));
        word(found.unwrap_or_else(|| panic!("{act}: {waiting}")), "id")
    };
    let request = of("erase volume store");
    let own = desk.refused(&["--as", "operator", "approval", "approve", &request]);
    assert!(own.contains("another person"), "{own}");
    desk.run(&["--as", "security-officer", "approval", "approve", &request]);
    desk.run(&["volume", "delete", "store", "--yes"]);
    let erased = desk.json(&["erasure", "list"]);
    assert_eq!(erased[0]["state"], "pending", "{erased}");
    let (volume, serial) = (word(&erased, "volume"), erased[0]["destroy_backups_up_to_serial"].to_string());
    desk.run(&["erasure", "confirm", &volume, "--destroyed-up-to", &serial]);
    desk.run(&["erasure", "certificate", &volume, "certificate.json"]);
    let certificate = std::fs::read_to_string(desk.dir.join("certificate.json")).expect("a certificate");
    assert!(certificate.contains("signature"), "{certificate}");
    let events = site.events();
    for event in [
        "second-factor-enrolled",
        "login",
        "login-refused",
        "policy-applied",
        "approval-wanted",
        "approval-given",
        "approval-used",
        "volume-erased",
        "erasure-confirmed",
    ] {
        assert!(events.iter().any(|found| found == event), "{event}: {events:?}");
    }
    assert_eq!(desk.json(&["audit", "verify"])["holds"], true);
}

/// A code that was not used yet.
fn unused_code(secret: &str) -> String {
    let used = oathtool(secret, now());
    // A clock that is half a minute ahead is still believed.
    wait_for("the next code", PATIENCE, || {
        let next = oathtool(secret, now() + CODE_S);
        if next == used { Err(next) } else { Ok(next) }
    })
}

/// A request by one role, and every byte that came back: an answer, or what is said to a refusal.
fn asked(site: &Site, client: &HttpsClient, verb: &str, path: &str) -> (bool, Vec<u8>) {
    // What acts is asked with a body that nothing can be done with: what it says then is looked at as well.
    let nothing = serde_json::json!({ "nothing": "of the kind" });
    let answer = match verb {
        // Not everything that is read is JSON.
        "GET" => site.wait(client.get_bytes(path)).map(|bytes| bytes.to_vec()),
        "POST" => site.wait(client.post::<Value>(path, &nothing)).map(|value| value.to_string().into_bytes()),
        "PATCH" => {
            site.wait(client.patch::<Value>(path, &nothing)).map(|value| value.to_string().into_bytes())
        }
        _ => site.wait(client.delete::<Value>(path)).map(|value| value.to_string().into_bytes()),
    };
    match answer {
        Ok(bytes) => (true, bytes),
        Err(error) => (false, error.to_string().into_bytes()),
    }
}

/// Whatever is asked of either program, in whatever role: neither what customers store nor its names nor the secrets of their access
/// come back. What is read is asked for by what there is, so that there is an answer; what acts, about what is not there.
#[test]
fn no_role_gets_what_customers_store_from_any_endpoint() {
    const NAME: &str = "name-of-an-object";
    const CONTENT: &str = "content-of-an-object";
    let site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    let access = site.create_user("customer");
    site.create_bucket("private-bucket");
    let address = site.node_config().listen.s3.expect("the site serves S3");
    let mut s3 = S3Client::new(address, "private-bucket", &access.access_key, &access.secret_key);
    s3.put(NAME, CONTENT.repeat(1_000).into_bytes()).expect("a stored object");
    // The control: who has the access key finds both.
    assert!(s3.list("").expect("a list").contains(NAME));
    let read = s3.get(NAME).expect("an object").expect("an object");
    assert!(String::from_utf8_lossy(&read).contains(CONTENT));

    // Of the store that has all of this there is a snapshot, whose ciphertext some roles may move.
    let store = site.keyholder_status().volumes.into_iter().find(|volume| volume.label == OBJECTS);
    let store = store.expect("the store").volume;
    let request = CreateSnapshot { volume: store, lock_s: None };
    let snapshot: SnapshotStatus =
        site.wait(site.node_admin().post("/v1/snapshots", &request)).expect("a snapshot");
    const WIPE: &str = "/v1/wipe";
    let node: Vec<_> = admin::access::TABLE.iter().map(|rule| (rule.verb.as_str(), rule.path)).collect();
    let keyholder: Vec<_> =
        keyholder::access::TABLE.iter().map(|rule| (rule.verb.as_str(), rule.path)).collect();
    let people = [
        (Role::Operator, "op"),
        (Role::StorageAdmin, "storage"),
        (Role::SecurityOfficer, "officer"),
        (Role::Auditor, "auditor"),
        (Role::Monitor, "monitor"),
    ];
    let (mut answered, mut moved) = (0, 0);
    for (role, holder) in people {
        for (server, endpoints) in [(Role::Node, &node), (Role::Keyholder, &keyholder)] {
            let client = match server {
                Role::Node => site.control(role, holder, site.node_config().listen.admin, server),
                _ => site.keyholder_as(role, holder),
            };
            // The one act that needs nothing to be named comes last of all.
            for (verb, path) in endpoints.iter().filter(|(_, path)| *path != WIPE) {
                let named = [
                    ("{pool}", snapshot.pool.to_string()),
                    ("{snapshot}", snapshot.snapshot.to_string()),
                    ("{volume}", store.to_string()),
                    ("{bucket}", "private-bucket".to_owned()),
                    ("{user}", "customer".to_owned()),
                    ("{access_key}", access.access_key.clone()),
                    ("{label}", OBJECTS.to_owned()),
                    ("{name}", "node".to_owned()),
                ];
                let path = named.iter().fold((*path).to_owned(), |path, (parameter, value)| {
                    path.replace(parameter, if *verb == "GET" { value } else { "x" })
                });
                let (is_answer, bytes) = asked(&site, &client, verb, &path);
                answered += usize::from(is_answer);
                if is_answer && path.ends_with("/portion") {
                    moved += bytes.len();
                }
                for secret in [NAME, CONTENT, access.secret_key.as_str()] {
                    let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                    assert!(!found, "{role} {verb} {path}: {}", String::from_utf8_lossy(&bytes));
                }
            }
        }
    }
    println!("{answered} answers, {moved} bytes of ciphertext");
    assert!(answered > 60, "{answered} answers with something in them");
    assert!(moved > 2 * CONTENT.len() * 1_000, "{moved} bytes of ciphertext: the object is not among them");
    // Nothing came of all that.
    assert!(s3.list("").expect("a list").contains(NAME));
    for (role, holder) in people {
        let client = site.control(role, holder, site.node_config().listen.admin, Role::Node);
        let (_, bytes) = asked(&site, &client, "POST", WIPE);
        assert!(!String::from_utf8_lossy(&bytes).contains(NAME), "{role}");
    }
}
