//! The operator's guide, step by step: from an empty directory to a served volume and bucket, with the command line alone,
//! through a loss of the keyholder, to the erased volume.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::client::{client, python_client, run};
use harness::desk::{Desk, find, move_ports, word, write_keyholder_config};
use harness::process::wait_for;
use harness::site::free_port;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// Shares, backup and a copy of the disk give the data back; another disk does not, nor too few shares.
fn prove_by_drill(desk: &Desk) {
    let copy = |from: &str, to: &str| {
        run(Command::new("cp").arg("--sparse=always").args([from, to].map(|name| desk.dir.join(name))))
            .expect_success();
    };
    copy("pool.img", "copy.img");
    desk.run(&["pool", "create", "foreign.img", "--size", "1G"]);
    assert!(desk.run(&["key", "status"]).contains("no drill yet"));
    let drill = |disk: &str, officers: &[&str]| -> Vec<String> {
        let mut arguments: Vec<String> =
            ["key", "drill", "--yes", "--backup", "ledger.backup", "--disk", disk].map(str::to_owned).into();
        for officer in officers {
            let (share, key) = (format!("shares/{officer}.share"), format!("{officer}.officer-key"));
            arguments.extend(["--share".to_owned(), share, "--officer-key".to_owned(), key]);
        }
        arguments
    };
    fn words(arguments: &[String]) -> Vec<&str> {
        arguments.iter().map(String::as_str).collect()
    }
    let few = desk.refused(&words(&drill("copy.img", &["ben"])));
    assert!(few.contains("1 shares were given and 2 are needed"), "{few}");
    let foreign = desk.refused(&words(&drill("foreign.img", &["ben", "clara"])));
    assert!(foreign.contains("THE DRILL FAILED") && foreign.contains("db: FAILED"), "{foreign}");
    assert!(desk.run(&["key", "status"]).contains("FAILED: repeat it"));

    let before = std::fs::read(desk.dir.join("ledger.backup")).expect("the backup");
    let began = unix_s();
    let report = desk.json(&words(&drill("copy.img", &["anna", "clara"])));
    assert_eq!(find(&report, "objects_read").and_then(Value::as_u64), Some(1), "{report}");
    assert_eq!(report["volumes"].as_array().map(Vec::len), Some(2), "{report}");
    assert_eq!(std::fs::read(desk.dir.join("ledger.backup")).expect("the backup"), before);
    let status = desk.json(&["key", "status"]);
    assert_eq!(status["last_drill"]["passed"], true, "{status}");
    let at = status["last_drill"]["at_unix_s"].as_u64().expect("a time");
    assert!((began..=unix_s()).contains(&at), "{at} is no time of this drill");
    let date = run(client("date").args(["--utc", "+%Y-%m-%d %H:%M:%S UTC", "--date"]).arg(format!("@{at}")));
    let shown = format!("last drill {}", date.expect_success().trim());
    let text = desk.run(&["key", "status"]);
    assert!(text.contains(&shown) && text.contains("passed"), "no `{shown}` in\n{text}");
}

fn unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

#[test]
fn the_guide_leads_from_nothing_to_a_served_volume_and_bucket() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let desk = Desk { dir: parent.path().to_path_buf() };
    let admin = free_port();

    // 1. Certificates.
    let keyholder_url = format!("https://{admin}");
    desk.run(&[
        "pki",
        "init",
        "./pki",
        "--trust-domain",
        "storage.example.com",
        "--keyholder",
        &keyholder_url,
    ]);
    desk.run(&["pki", "issue", "keyholder", "keyholder-1", "--pki", "./pki"]);
    desk.run(&["pki", "issue", "node", "node-1", "--pki", "./pki"]);
    desk.run(&[
        "pki",
        "issue",
        "server",
        "node-1",
        "--host",
        "127.0.0.1",
        "--host",
        "localhost",
        "--pki",
        "./pki",
    ]);
    desk.run(&["pki", "issue", "nbd-client", "web-3", "--pki", "./pki"]);

    // 2. Officers and the ceremony.
    for officer in ["anna", "ben", "clara"] {
        desk.run(&["key", "officer", officer]);
    }
    write_keyholder_config(&desk, admin);
    let mut keyholder = desk.start("nightlatch-keyholder", Path::new("keyholder.toml"));
    desk.until(&["key", "status"]);
    std::fs::create_dir_all(desk.dir.join("shares")).expect("a writable directory");
    let officers = ["anna.officer", "ben.officer", "clara.officer"];
    desk.run(&[&["key", "ceremony", "--threshold", "2"], &officers[..], &["--out", "./shares"]].concat());
    let pin = word(&desk.json(&["key", "status"]), "grant_signing_key");

    // 3. A pool and a node.
    desk.run(&["pool", "create", "pool.img", "--size", "4G"]);
    let again = desk.refused(&["pool", "create", "pool.img", "--size", "4G"]);
    assert!(again.contains("already"), "{again}");
    assert!(desk.run(&["pool", "check", "pool.img"]).contains("Sound"));
    assert!(desk.run(&["pool", "repair", "pool.img"]).contains("nothing to mend"));
    let over = desk.refused(&["pool", "create", "pool.img"]);
    assert!(over.contains("already holds the pool") && over.contains("--force"), "{over}");
    let init =
        ["node", "init", "--name", "node-1", "--pki", "./pki", "--pool", "pool.img", "--listen", "127.0.0.1"];
    let node = desk.json(&[&init[..], &["--keyholder-key", &pin]].concat());
    let config = desk.dir.join("node.toml");
    let listen = move_ports(&config);
    let address = |key: &str| listen[key].as_str().expect("an address").to_owned();
    let mut daemon = desk.start("nightlatchd", &config);
    let (key_port, admin_port) = (address("key"), address("admin"));
    let id = find(&node, "node").or_else(|| find(&node, "node_id")).or_else(|| find(&node, "id"));
    let id = id.and_then(Value::as_str).unwrap_or_else(|| panic!("no id in {node}"));
    let add =
        ["node", "add", "node-1", "--id", id, "--key-address", &key_port, "--admin-address", &admin_port];
    desk.run(&[&add[..], &["--auto-push"]].concat());
    let wrong = wait_for("the node's claim", PATIENCE, || {
        let answer =
            run(&mut desk.command(&["node", "approve", "node-1", "--fingerprint", "0123456789abcdef"]));
        let text = answer.expect_failure();
        if text.contains("claims") { Ok(text) } else { Err(text) }
    });
    println!("a wrong fingerprint: {wrong}");
    let fingerprint = word(&node, "fingerprint");
    desk.until(&["node", "approve", "node-1", "--fingerprint", &fingerprint]);

    // Leases of another length; a lease that no keyholder gives is refused, and a change of nothing.
    let changed = desk.json(&["node", "change", "node-1", "--lease-ms", "20000"]);
    assert_eq!(find(&changed, "lease_ms").and_then(Value::as_u64), Some(20_000), "{changed}");
    let refused = desk.refused(&["node", "change", "node-1", "--lease-ms", "1"]);
    assert!(refused.contains("lease"), "{refused}");
    for push in ["approve", "auto"] {
        let changed = desk.json(&["node", "change", "node-1", "--push", push]);
        assert_eq!(word(&changed, "push"), push);
    }
    let operator = desk.refused(&["--as", "operator", "node", "change", "node-1", "--push", "auto"]);
    assert!(operator.contains("security officer"), "{operator}");

    // 4. Volumes, buckets, users.
    desk.until(&["volume", "create", "db", "--node", "node-1", "--size", "1G"]);
    desk.run(&["volume", "create", "store", "--node", "node-1", "--kind", "objects", "--size", "64T"]);
    desk.until(&["bucket", "create", "photos", "--node", "node-1"]);
    let user = desk.json(&["user", "create", "web", "--node", "node-1"]);
    desk.run(&["key", "backup", "ledger.backup"]);

    // Clients, as the guide says.
    let certificates = desk.dir.join("pki/nbd-client/web-3");
    let nbd = format!("nbds://{}/db?tls-certificates={}", address("nbd"), certificates.display());
    wait_for("a served volume", PATIENCE, || {
        let answer = run(client("nbdinfo").args(["--size", &nbd]));
        if answer.success { Ok(()) } else { Err(answer.describe()) }
    });
    let aws = |arguments: &[&str]| {
        let mut aws = python_client("aws");
        aws.env("AWS_ACCESS_KEY_ID", word(&user, "access_key"))
            .env("AWS_SECRET_ACCESS_KEY", word(&user, "secret_key"))
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .args(["--endpoint-url", &format!("https://{}", address("s3")), "--ca-bundle"])
            .arg(desk.dir.join("pki/ca-cert.pem"))
            .args(arguments);
        run(&mut aws)
    };
    let (file, back) = (desk.dir.join("photo"), desk.dir.join("back"));
    std::fs::write(&file, vec![0x42; 1 << 20]).expect("space for a test file");
    aws(&["s3", "cp", &file.display().to_string(), "s3://photos/one"]).expect_success();

    // The keyholder's machine is lost; the backup and two officers bring everything back.
    keyholder.kill();
    std::fs::remove_dir_all(desk.dir.join("keyholder")).expect("the keyholder's state");
    daemon.kill();
    let _keyholder = desk.start("nightlatch-keyholder", Path::new("keyholder.toml"));
    desk.until(&["key", "status"]);
    desk.run(&["key", "restore", "ledger.backup"]);
    desk.unseal();
    prove_by_drill(&desk);
    let _daemon = desk.start("nightlatchd", &config);
    wait_for("the object again", PATIENCE, || {
        let answer = aws(&["s3", "cp", "s3://photos/one", &back.display().to_string()]);
        if answer.success { Ok(()) } else { Err(answer.describe()) }
    });
    assert!(std::fs::read(&back).expect("a file") == vec![0x42; 1 << 20]);

    // Snapshots and clones.
    let nbd_of =
        |name: &str| format!("nbds://{}/{name}?tls-certificates={}", address("nbd"), certificates.display());
    let write = |name: &str, fill: u8| {
        std::fs::write(&file, vec![fill; 1 << 20]).expect("space for a test file");
        wait_for("a served volume", PATIENCE, || {
            let answer = run(client("nbdcopy").arg("--flush").arg(&file).arg(nbd_of(name)));
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
    };
    let holds = |name: &str, fill: u8| {
        wait_for("a served volume", PATIENCE, || {
            let _ = std::fs::remove_file(&back);
            let answer = run(client("nbdcopy").arg(nbd_of(name)).arg(&back));
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
        let content = std::fs::read(&back).expect("a copy of the volume");
        assert!(content[..1 << 20].iter().all(|byte| *byte == fill), "{name} holds {}", content[0]);
    };
    write("db", 0x11);
    let snapshot = word(&desk.json(&["snapshot", "create", "db"]), "snapshot");
    write("db", 0x22);
    // A snapshot is there to be read, for whoever copies it elsewhere.
    let export = format!("db@{snapshot}");
    holds(&export, 0x11);
    let written = run(client("nbdcopy").arg(&file).arg(nbd_of(&export)));
    assert!(!written.success, "a snapshot was written");
    desk.run(&["volume", "clone", &snapshot, "db-test", "--node", "node-1"]);
    holds("db-test", 0x11);
    holds("db", 0x22);
    assert!(desk.run(&["snapshot", "list", "--node", "node-1"]).contains(&snapshot));
    let served = desk.refused(&["volume", "rollback", "db", &snapshot, "--yes"]);
    assert!(served.contains("revoke"), "{served}");
    let refused = desk.refused(&["volume", "delete", "db", "--yes"]);
    assert!(refused.contains("snapshot delete"), "{refused}");
    holds("db", 0x22);
    desk.run(&["volume", "limit", "db", "--quota", "1G", "--reserve", "64M"]);

    // Read from one end to the other, beside everything else.
    let pool = word(&desk.json(&["pool", "list", "--node", "node-1"]), "pool");
    let scrubbed = desk.run(&["pool", "scrub", &pool, "--start", "--wait", "--node", "node-1"]);
    assert!(scrubbed.contains("compared") && scrubbed.contains("nothing is damaged"), "{scrubbed}");
    let checked = desk.json(&["pool", "check", "--pool", &pool, "--node", "node-1"]);
    assert_eq!((&checked["sound"], &checked["volumes"]), (&true.into(), &3.into()), "{checked}");
    let limited = desk.run(&["volume", "limit", "db", "--iops", "5000", "--bandwidth", "1G"]);
    assert!(limited.contains("5000 requests and 1 GiB a second"), "{limited}");

    // Who may use a disk.
    assert!(desk.run(&["volume", "access", "db"]).contains("every client that the node lets in"));
    let said = desk.run(&["volume", "access", "db", "--client", "web-4", "--address", "127.0.0.0/8"]);
    assert!(said.contains("web-4, from 127.0.0.0/8"), "{said}");
    run(client("nbdinfo").args(["--size", &nbd])).expect_failure();
    let meaningless = desk.refused(&["volume", "access", "db", "--local"]);
    assert!(meaningless.contains("without them everybody may"), "{meaningless}");
    let inside = desk.refused(&["volume", "access", "db", "--address", "127.0.0.1/8"]);
    assert!(inside.contains("127.0.0.0/8"), "{inside}");
    desk.run(&["volume", "access", "db", "--client", "web-3"]);
    holds("db", 0x22);
    let anyone = desk.json(&["volume", "access", "db", "--anyone"]);
    assert_eq!(anyone["clients"], Value::Array(Vec::new()), "{anyone}");

    // The day's work.
    desk.run(&["volume", "resize", "db", "2G"]);
    let size = wait_for("the new size", PATIENCE, || {
        let answer = run(client("nbdinfo").args(["--size", &nbd]));
        if answer.success { Ok(answer.stdout) } else { Err(answer.describe()) }
    });
    assert_eq!(size.trim(), (2_u64 << 30).to_string());
    let pools = desk.json(&["pool", "list", "--node", "node-1"]);
    let pool = word(&pools, "pool");
    run(Command::new("truncate").args(["--size", "6G"]).arg(desk.dir.join("pool.img"))).expect_success();
    desk.run(&["pool", "grow", &pool, "--node", "node-1"]);
    let grown = desk.json(&["pool", "list", "--node", "node-1"]);
    let capacity =
        |document: &Value| find(document, "capacity_bytes").and_then(Value::as_u64).expect("a capacity");
    assert!(capacity(&grown) > capacity(&pools) + (1 << 30), "{pools} {grown}");

    desk.run(&["lockdown"]);
    run(client("nbdinfo").args(["--size", &nbd])).expect_failure();
    assert!(desk.run(&["status"]).contains("lockdown"));
    // A sealed node takes snapshots, and goes back to one.
    let sealed = word(&desk.json(&["snapshot", "create", "db"]), "snapshot");
    desk.run(&["snapshot", "delete", &sealed, "--yes"]);
    desk.run(&["volume", "rollback", "db", &snapshot, "--yes"]);
    desk.run(&["unlatch", "--all"]);
    desk.run(&["push", "--all"]);
    wait_for("a served volume", PATIENCE, || {
        let answer = run(client("nbdinfo").args(["--size", &nbd]));
        if answer.success { Ok(()) } else { Err(answer.describe()) }
    });
    holds("db", 0x11);
    desk.run(&["snapshot", "delete", &snapshot, "--yes"]);
    let erased = desk.json(&["volume", "delete", "db", "--yes"]);
    println!("deleted: {erased}");
    assert_eq!(word(&erased, "erasure"), "shared");
    holds("db-test", 0x11);
    assert_eq!(word(&desk.json(&["volume", "delete", "db-test", "--yes"]), "erasure"), "pending-backups");
    run(client("nbdinfo").args(["--size", &nbd])).expect_failure();
    assert!(desk.run(&["volume", "list"]).contains("store"));
    desk.refused(&["volume", "delete", "db", "--yes"]);
}
