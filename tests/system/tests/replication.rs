//! Two nodes that are peers, and one keyholder: what is written on the first arrives on the second by itself, and who was superseded
//! overwrites nothing.

use std::path::Path;
use std::time::Duration;

use harness::desk::{find, word};
use harness::process::{Process, wait_for};
use harness::site::free_port;
use harness::sites::{Node, PATIENCE, Sites, two_sites};
use nbd_server::client::{Client, Endpoint};
use serde_json::Value;

const STOP: Duration = Duration::from_secs(30);

/// Gives the second node a port for peers, and names each node in the other's configuration.
fn make_peers(sites: &Sites) {
    let desk = &sites.desk;
    let address = free_port().to_string();
    let text = std::fs::read_to_string(&sites.second.config).expect("its configuration");
    let with_port = text.replacen("[listen]\n", &format!("[listen]\npeers = \"{address}\"\n"), 1);
    std::fs::write(&sites.second.config, with_port).expect("a writable directory");
    let config = |node: &Node| node.config.display().to_string();
    let (first, second) = (config(&sites.first), config(&sites.second));
    let of_second = "./pki/node/node-2/cert.pem";
    let printed = desk.run(&["peer", "add", of_second, "--address", &address]);
    assert!(printed.contains("[[peers]]") && printed.contains("node-2"), "{printed}");
    desk.run(&["peer", "add", of_second, "--address", &address, "--no-receive", "--config", &first]);
    let written = std::fs::read_to_string(&sites.first.config).expect("its configuration");
    assert!(written.contains("receive = false"), "{written}");
    desk.run(&["peer", "add", "./pki/node/node-1/cert.pem", "--config", &second]);
    // Once more is once too often, and nothing is changed by it.
    let twice = desk.refused(&["peer", "add", of_second, "--address", &address, "--config", &first]);
    assert!(twice.contains("named above"), "{twice}");
    let no_node = desk.refused(&["peer", "add", "./pki/keyholder/keyholder-1/cert.pem"]);
    assert!(no_node.contains("a peer is a node"), "{no_node}");
}

fn restart(sites: &Sites, node: &Node, daemon: &mut Process) {
    assert!(daemon.stop(STOP).success());
    *daemon = sites.desk.start("nightlatchd", &node.config);
    sites.desk.until(&["node", "status", node.name]);
}

/// How far `db` is at the first node's peer.
fn sent(sites: &Sites) -> Value {
    let status = sites.desk.json(&["replication", "status", "--node", "node-1"]);
    let mut sent = status["peers"][0]["volumes"][0].clone();
    sent["connected"] = status["peers"][0]["connected"].clone();
    sent
}

/// Waits until the second has all that the first has. The number of the epoch.
fn wait_up_to_date(sites: &Sites) -> u64 {
    wait_for("a peer that has everything", PATIENCE, || {
        let sent = sent(sites);
        let is_there = sent["state"] == "up-to-date" && sent["lag_epochs"] == 0 && sent["lag_seconds"] == 0;
        sent["acknowledged_epoch"].as_u64().filter(|_| is_there).ok_or_else(|| sent.to_string())
    })
}

fn trail(node: &Node) -> String {
    std::fs::read_to_string(node.state_dir().join("audit.jsonl")).expect("the node's trail")
}

fn ids(sites: &Sites, node: &Node) -> Vec<String> {
    sites.snapshots(node).iter().map(|snapshot| word(snapshot, "snapshot")).collect()
}

#[test]
fn writes_arrive_by_themselves_and_a_superseded_primary_overwrites_nothing() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, mut first_daemon, mut second_daemon) = two_sites(parent.path(), "2G");
    let desk = &sites.desk;
    make_peers(&sites);
    restart(&sites, &sites.second, &mut second_daemon);
    restart(&sites, &sites.first, &mut first_daemon);

    // By themselves, without a key there.
    sites.write(&sites.first, 0x11);
    let one = wait_up_to_date(&sites);
    let status = sites.status(&sites.second);
    assert_eq!(find(&status, "replica"), Some(&Value::Bool(true)), "{status}");
    assert_eq!(status["key_memory"]["keys"], 0, "{status}");
    assert_eq!(sites.first.metric("nightlatch_replication_peers_away"), Some(0.0));
    assert_eq!(sites.first.metric("nightlatch_replication_worst_lag_seconds"), Some(0.0));
    let shown = desk.run(&["replication", "status", "--node", "node-2"]);
    assert!(shown.contains("a replica"), "{shown}");
    assert!(desk.run(&["peer", "list", "--node", "node-1"]).contains("connected"));

    // What somebody locks on the replica stays; of the others only the newest do.
    let locked = ids(&sites, &sites.second).pop().expect("an epoch has arrived");
    desk.run(&["snapshot", "lock", &locked, "--for", "1h", "--node", "node-2"]);
    let own = sites.snapshot();
    for fill in [0x21, 0x22, 0x23] {
        sites.write(&sites.first, fill);
        wait_up_to_date(&sites);
    }
    wait_for("old epochs to go", PATIENCE, || {
        let (first, second) = (ids(&sites, &sites.first), ids(&sites, &sites.second));
        // The newest common one, the one before it on the replica, and what is a person's.
        let few = first.len() <= 3 && second.len() <= 3;
        assert!(first.contains(&own) && second.contains(&locked), "{first:?} {second:?}");
        if few { Ok(()) } else { Err(format!("{first:?} {second:?}")) }
    });

    // The second is away: it catches up, to the newest at once.
    second_daemon.kill();
    wait_for("a peer that is gone", PATIENCE, || {
        let sent = sent(&sites);
        if sent["connected"] == Value::Bool(false) { Ok(()) } else { Err(sent.to_string()) }
    });
    for fill in [0x31, 0x32] {
        sites.write(&sites.first, fill);
    }
    let behind = sent(&sites);
    assert!(behind["lag_bytes"].as_u64() >= Some(3 << 20), "{behind}");
    assert_eq!(sites.first.metric("nightlatch_replication_peers_away"), Some(1.0));
    let mut second_daemon = desk.start("nightlatchd", &sites.second.config);
    let two = wait_up_to_date(&sites);
    assert!(two > one, "{one} {two}");

    // The first dies, which the second tells by itself.
    let unheard = || sites.second.metric("nightlatch_replica_worst_unheard_seconds");
    assert!(unheard().is_some_and(|seconds| seconds < 10.0), "{:?}", unheard());
    first_daemon.kill();
    wait_for("a replica for which nothing is heard", PATIENCE, || match unheard() {
        Some(seconds) if seconds >= 11.0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // What was acknowledged is served by the second.
    desk.until(&["volume", "promote", "db", "--node", "node-2", "--yes"]);
    desk.run(&["volume", "access", "db", "--anyone"]);
    sites.holds(&sites.second, 0x32);
    sites.write(&sites.second, 0x44);

    // It wakes, does not know of it, and is refused.
    let _first_daemon = desk.start("nightlatchd", &sites.first.config);
    wait_for("a refusal", PATIENCE, || {
        let answer =
            harness::client::run(&mut desk.command(&["--json", "replication", "status", "--node", "node-1"]));
        let is_refused = answer.stdout.contains("\"stopped\"") && answer.stdout.contains("higher fence");
        if is_refused { Ok(()) } else { Err(answer.describe()) }
    });
    wait_for("the refusal in the trail", PATIENCE, || {
        let trail = trail(&sites.second);
        let is_there = trail.contains("\"event\":\"replication-refused\"") && trail.contains("lower-fence");
        if is_there { Ok(()) } else { Err(trail) }
    });
    sites.holds(&sites.second, 0x44);
    wait_for("the alert's metric", PATIENCE, || {
        match sites.first.metric("nightlatch_replication_volumes_stopped") {
            Some(1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    // And by the command line the peer goes from the configuration again.
    let config = sites.second.config.display().to_string();
    desk.run(&["peer", "remove", "node-1", "--config", &config]);
    restart(&sites, &sites.second, &mut second_daemon);
    let peers = desk.json(&["peer", "list", "--node", "node-2"]);
    assert_eq!(peers, serde_json::json!([]));
    wait_for("a stranger in the trail", PATIENCE, || {
        let trail = trail(&sites.second);
        if trail.contains("\"event\":\"peer-refused\"") { Ok(()) } else { Err(trail) }
    });
}

#[test]
fn a_volume_of_which_nothing_can_be_sent_is_told_and_sent_once_it_can_be() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, mut first_daemon, mut second_daemon) = two_sites(parent.path(), "2G");
    make_peers(&sites);
    restart(&sites, &sites.second, &mut second_daemon);
    // Nobody can write a file where a folder is.
    let in_the_way = sites.first.state_dir().join("replication.json.new");
    std::fs::create_dir(&in_the_way).expect("a writable directory");
    restart(&sites, &sites.first, &mut first_daemon);
    sites.write(&sites.first, 0x11);
    wait_for("the alerts' metrics", PATIENCE, || {
        let stopped = sites.first.metric("nightlatch_replication_volumes_stopped");
        let lag = sites.first.metric("nightlatch_replication_worst_lag_seconds");
        if stopped == Some(1.0) && lag > Some(0.0) { Ok(()) } else { Err(format!("{stopped:?} {lag:?}")) }
    });
    let told = sent(&sites);
    assert!(told["trouble"].as_str().is_some_and(|why| why.contains("cannot be written down")), "{told}");
    std::fs::remove_dir(&in_the_way).expect("a writable directory");
    wait_up_to_date(&sites);
    assert_eq!(sites.first.metric("nightlatch_replication_volumes_stopped"), Some(0.0));
}

#[test]
fn a_volume_stays_where_it_must_and_a_sealed_node_sends_on() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, mut first_daemon, mut second_daemon) = two_sites(parent.path(), "2G");
    let desk = &sites.desk;
    make_peers(&sites);
    let volume = word(&desk.json(&["volume", "list"]), "volume");
    let rule = format!("\n[replication.residency]\n{volume} = \"eu\"\n");
    let before = std::fs::read_to_string(&sites.first.config).expect("its configuration");
    let set =
        |text: &str| std::fs::write(Path::new(&sites.first.config), text).expect("a writable directory");
    let with_rule = without_replication(&before) + &rule;
    set(&with_rule);
    restart(&sites, &sites.second, &mut second_daemon);
    restart(&sites, &sites.first, &mut first_daemon);
    sites.write(&sites.first, 0x11);
    wait_for("a refusal", PATIENCE, || {
        let sent = sent(&sites);
        let is_refused = sent["state"] == "refused" && sent["connected"] == Value::Bool(true);
        if is_refused { Ok(()) } else { Err(sent.to_string()) }
    });
    assert_eq!(ids(&sites, &sites.second), Vec::<String>::new());

    // The peer is there after all. And the first sends what it has though it has lost its key.
    assert!(first_daemon.stop(STOP).success());
    set(&with_rule.replacen("[[peers]]\n", "[[peers]]\nresidency = \"eu\"\n", 1));
    desk.run(&["lockdown"]);
    first_daemon = desk.start("nightlatchd", &sites.first.config);
    desk.until(&["node", "status", "node-1"]);
    wait_up_to_date(&sites);
    assert_eq!(sites.status(&sites.first)["key_memory"]["keys"], 0);
    assert_eq!(ids(&sites, &sites.second).len(), 1);

    // The snapshots that replication made keep nobody from erasing their volume; a person's do.
    let own = sites.snapshot();
    let refused = desk.refused(&["volume", "delete", "db", "--yes"]);
    assert!(refused.contains("1 snapshots"), "{refused}");
    desk.run(&["snapshot", "delete", &own, "--node", "node-1", "--yes"]);
    let left = sites.snapshots(&sites.first);
    assert!(!left.is_empty() && left.iter().all(|epoch| epoch["epoch"] == Value::Bool(true)), "{left:?}");
    desk.run(&["volume", "delete", "db", "--yes"]);
    assert_eq!(ids(&sites, &sites.first), Vec::<String>::new());
    assert!(first_daemon.stop(STOP).success());
    assert!(second_daemon.stop(STOP).success());
    let loud = second_daemon.unexpected_lines(&["CONFIG", "memory", "Landlock", "realtime"]);
    assert!(!loud.iter().any(|line| line.contains("panicked")), "{loud:?}");
}

/// `node init` writes the table with its defaults.
fn without_replication(text: &str) -> String {
    let mut table: toml::Table = text.parse().expect("TOML");
    table.remove("replication");
    table.to_string()
}

/// A rotation while the peer is away: the old secret stays for what is there, and goes when the peer has followed, which then is served
/// under the new key alone.
#[test]
fn the_secret_of_an_old_epoch_stays_until_the_peer_has_followed() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, mut first_daemon, mut second_daemon) = two_sites(parent.path(), "2G");
    let desk = &sites.desk;
    make_peers(&sites);
    restart(&sites, &sites.second, &mut second_daemon);
    restart(&sites, &sites.first, &mut first_daemon);
    sites.write(&sites.first, 0x11);
    wait_up_to_date(&sites);
    // What it has is in its evidence from now on.
    restart(&sites, &sites.second, &mut second_daemon);
    let volume = || desk.json(&["volume", "list"])[0].clone();
    wait_for("the keyholder's session with the second", PATIENCE, || {
        let nodes = desk.json(&["node", "list"]);
        let second = nodes.as_array().and_then(|nodes| nodes.iter().find(|node| node["name"] == "node-2"));
        match second.is_some_and(|node| node["connection"] == "connected") {
            true => Ok(()),
            false => Err(nodes.to_string()),
        }
    });
    second_daemon.kill();

    let rotated = desk.json(&["volume", "rotate", "db", "--wait"]);
    assert_eq!(
        (&rotated["volume"]["epoch"], &rotated["rekey"]["bytes_left"]),
        (&2.into(), &0.into()),
        "{rotated}"
    );
    let shown = desk.run(&["volume", "rotate", "db", "--show"]);
    assert!(shown.contains("db on node-2"), "{shown}");
    assert!(desk.run(&["volume", "list"]).contains("being rotated"), "it is said in the list");
    sites.write(&sites.first, 0x22);
    assert_eq!(volume()["rotation"]["older"], serde_json::json!([1]), "it is waited for");

    let _second_daemon = desk.start("nightlatchd", &sites.second.config);
    // What it had before it lets go of with the next epoch.
    for fill in [0x23, 0x24] {
        wait_up_to_date(&sites);
        sites.write(&sites.first, fill);
    }
    wait_for("the end of the first epoch", PATIENCE + PATIENCE, || {
        let volume = volume();
        if volume["rotation"].is_null() { Ok(()) } else { Err(volume.to_string()) }
    });
    wait_up_to_date(&sites);
    first_daemon.kill();
    desk.until(&["volume", "promote", "db", "--node", "node-2", "--yes"]);
    desk.run(&["volume", "access", "db", "--anyone"]);
    sites.holds(&sites.second, 0x24);
}

/// What a peer lacks is sealed anew before the rest: it is sent to while the walk over that is far from its end.
#[test]
fn a_peer_is_sent_to_in_the_midst_of_a_long_rotation() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (sites, mut first_daemon, mut second_daemon) = two_sites(parent.path(), "2G");
    let desk = &sites.desk;
    make_peers(&sites);
    let socket = parent.path().join("nbd.sock");
    let text = std::fs::read_to_string(&sites.first.config).expect("its configuration");
    let with_socket = format!("[listen]\nnbd_unix = \"{}\"\n", socket.display());
    let mut table: toml::Table = text.replacen("[listen]\n", &with_socket, 1).parse().expect("TOML");
    // A minute for all.
    let slowly: toml::Table = "share_percent = 100\nmib_per_s = 1".parse().expect("TOML");
    table.insert("rekey".to_owned(), slowly.into());
    std::fs::write(&sites.first.config, table.to_string()).expect("a writable directory");
    restart(&sites, &sites.second, &mut second_daemon);
    restart(&sites, &sites.first, &mut first_daemon);
    sites.write_len(&sites.first, 0x11, 60 << 20);
    let before = wait_up_to_date(&sites);
    desk.run(&["volume", "access", "db", "--anyone"]);
    second_daemon.kill();

    // At the end, where the walk comes last.
    let mut client = Client::connect(&Endpoint::unix(&socket), "db").expect("a served volume");
    client.write(59 << 20, &[0x22; 1 << 20], true).expect("a write");
    let rotated = desk.json(&["volume", "rotate", "db"]);
    assert_eq!(rotated["volume"]["rotation"]["written"], 2, "{rotated}");
    let _second_daemon = desk.start("nightlatchd", &sites.second.config);
    wait_for("an epoch that was closed after the rotation began", PATIENCE, || {
        let sent = sent(&sites);
        let has_come = sent["acknowledged_epoch"].as_u64() > Some(before) && sent["trouble"].is_null();
        if has_come { Ok(()) } else { Err(sent.to_string()) }
    });
    let shown = desk.json(&["volume", "rotate", "db", "--show"]);
    assert!(shown["rekey"]["bytes_left"].as_u64() > Some(4 << 20), "it waited for the walk's end: {shown}");
    wait_for("the end of the walk", PATIENCE, || {
        let shown = desk.json(&["volume", "rotate", "db", "--show"]);
        let left = shown["rekey"]["bytes_left"].as_u64();
        if left == Some(0) { Ok(()) } else { Err(shown.to_string()) }
    });
    drop(client);
    let content = sites.read(&sites.first);
    assert!(content[..59 << 20].iter().all(|byte| *byte == 0x11), "what was not written since");
    assert!(content[59 << 20..60 << 20].iter().all(|byte| *byte == 0x22), "what was written last");
}
