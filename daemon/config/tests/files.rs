//! The example files, and what is said of files with errors in them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};

use config::{ConfigError, ConfigErrorKind, KeyholderConfig, NodeConfig};

const NODE: &str = include_str!("../examples/node.toml");
const KEYHOLDER: &str = include_str!("../examples/keyholder.toml");

const MINIMAL_NODE: &str = r#"
node_id = "5b0cf6a1f9c04ab29a6f37f2f0a0c7de"
name = "node-1"
state_dir = "state"
[[pools]]
path = "pool"
[listen]
key = "127.0.0.1:7410"
admin = "127.0.0.1:7411"
metrics = "127.0.0.1:7412"
nbd_unix = "nbd.sock"
[tls]
trust_domain = "storage.example.com"
cert = "cert.pem"
key = "key.pem"
people_issuer = "people.pem"
machines_issuer = "machines.pem"
clients_issuer = "clients.pem"
"#;

fn node(text: &str) -> Result<NodeConfig, ConfigError> {
    NodeConfig::parse(text, Path::new("/etc/nightlatch/node.toml"))
}

#[test]
fn the_examples_parse_and_name_every_key() {
    let example = node(NODE).unwrap();
    let written = toml::to_string(&example).unwrap();
    assert_eq!(node(&written).unwrap(), example);
    let keyholder = KeyholderConfig::parse(KEYHOLDER, Path::new("k.toml")).unwrap();
    let written_keyholder = toml::to_string(&keyholder).unwrap();
    // What serialisation writes is every key there is.
    for (text, written) in [(NODE, written), (KEYHOLDER, written_keyholder)] {
        for key in written.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
            assert!(text.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
        }
    }
}

#[test]
fn what_the_examples_call_defaults_are_the_defaults() {
    let full = node(NODE).unwrap();
    let minimal = node(MINIMAL_NODE).unwrap();
    assert_eq!(
        (minimal.lease_ms_max, minimal.drain_s, minimal.allow_mlock, minimal.tls.s3_min),
        (full.lease_ms_max, full.drain_s, full.allow_mlock, full.tls.s3_min)
    );
    assert_eq!(
        (minimal.listen.s3_region, minimal.listen.nbd_plain, minimal.listen.s3_plain),
        (full.listen.s3_region, full.listen.nbd_plain, full.listen.s3_plain)
    );
    assert!(!minimal.allow_mlock);
}

/// The example writes every reaction out as it would be if it were left out.
#[test]
fn reactions_that_are_left_out_are_those_of_the_example() {
    let full = node(NODE).unwrap().sources;
    let mut bare = String::new();
    let mut skipping = false;
    for line in NODE.lines() {
        if line.starts_with('[') {
            skipping = line.contains(".on_");
        }
        if !skipping {
            bare.push_str(line);
            bare.push('\n');
        }
    }
    assert!(bare.len() < NODE.len());
    assert_eq!(node(&bare).unwrap().sources, full);
    assert!(node(MINIMAL_NODE).unwrap().sources.is_empty());
}

#[test]
fn how_parts_are_watched_has_defaults_limits_and_profiles_by_name() {
    let parse = |text: &str| node(&format!("{MINIMAL_NODE}[health]\n{text}"));
    let full = node(NODE).unwrap().health;
    assert_eq!(config::HealthConfig { board: None, ..full }, node(MINIMAL_NODE).unwrap().health);
    let own = parse("board_file = \"board.toml\"\nroot = \"recorded\"\n").unwrap().health;
    assert_eq!(own.board_file, Some(PathBuf::from("/etc/nightlatch/board.toml")));
    assert_eq!(own.root, PathBuf::from("/etc/nightlatch/recorded"));
    for (text, key) in [
        ("interval_ms = 99\n", "health.interval_ms"),
        ("interval_ms = 600001\n", "health.interval_ms"),
        ("disk_used_percent = 0\n", "health.disk_used_percent"),
        ("disk_celsius = 121\n", "health.disk_celsius"),
        ("memory_corrected = 0\n", "health.memory_corrected"),
        ("board = \"nobody's\"\n", "health.board"),
        ("board = \"generic\"\nboard_file = \"b\"\n", "health.board"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.to_string().contains(key), "{text}: {error}");
    }
    for text in
        ["interval_ms = 100\n", "disk_used_percent = 200\n", "disk_celsius = 30\n", "board = \"generic\"\n"]
    {
        assert!(parse(text).is_ok(), "{text}");
    }
}

#[test]
fn sources_that_make_no_sense_are_refused() {
    let gpio = "[[sources.gpio]]\nname = \"line\"\nchip = \"chip\"\nline = 3\nactive = \"low\"\n";
    let event = "[[sources.kernel_event]]\nname = \"line\"\n[sources.kernel_event.match]\nACTION = \"add\"\n";
    let nut = "[[sources.nut]]\nname = \"ups-a\"\nups = \"rack\"\n";
    let parse = |text: &str| node(&format!("{MINIMAL_NODE}{text}"));
    let good = parse(gpio).unwrap();
    assert_eq!(good.sources.gpio[0].chip, PathBuf::from("/etc/nightlatch/chip"));
    let cases = [
        (format!("{gpio}{event}"), "sources.kernel_event[0].name"),
        (gpio.replace("\"line\"", "\"Power line\""), "sources.gpio[0].name"),
        (gpio.replace("line = 3", "line = 1024"), "sources.gpio[0].line"),
        (
            format!("{gpio}[sources.gpio.on_active]\naction = \"drain\"\ndrain_s = 0\n"),
            "sources.gpio[0].on_active.drain_s",
        ),
        (
            format!("{gpio}[sources.gpio.on_lost]\naction = \"wipe\"\ndebounce_ms = 600001\n"),
            "sources.gpio[0].on_lost.debounce_ms",
        ),
        (
            format!("{event}[sources.kernel_event.on_event]\naction = \"wipe\"\ndebounce_ms = 1\n"),
            "sources.kernel_event[0].on_event.debounce_ms",
        ),
        (event.replace("ACTION = \"add\"\n", ""), "sources.kernel_event[0].match"),
        (format!("{nut}server = \"localhost\"\n"), "sources.nut[0].server"),
        (format!("{nut}server = \"localhost:0\"\n"), "sources.nut[0].server"),
        (format!("{nut}user = \"node\"\n"), "sources.nut[0].user"),
        (format!("{nut}interval_ms = 60001\n"), "sources.nut[0].interval_ms"),
        ("[sources.hygiene]\ninterval_ms = 99\n".to_owned(), "sources.hygiene.interval_ms"),
        ("[watchdog]\ndevice = \"dog\"\ntimeout_s = 3\n".to_owned(), "watchdog.timeout_s"),
        (nut.replace("ups-a", "chassis"), "sources.nut[0].name"),
        ("[[sources.apcupsd]]\nname = \"b\"\nserver = \":3551\"\n".to_owned(), "sources.apcupsd[0].server"),
        ("[sources.power_supply]\ninterval_ms = 99\n".to_owned(), "sources.power_supply.interval_ms"),
    ];
    for (text, key) in cases {
        let error = parse(&text).unwrap_err();
        assert_eq!((error.kind(), error.key()), (ConfigErrorKind::Invalid, Some(key)), "{error}");
    }
    assert!(parse(&gpio.replace("active = \"low\"", "active = \"down\"")).is_err());
    assert!(parse("[sources.gipo]\n").is_err());
}

#[test]
fn relative_paths_start_at_the_file() {
    let config = node(MINIMAL_NODE).unwrap();
    assert_eq!(config.pools[0].path, PathBuf::from("/etc/nightlatch/pool"));
    assert_eq!(config.listen.nbd_unix, Some(PathBuf::from("/etc/nightlatch/nbd.sock")));
    assert_eq!(config.tls.clients_issuer, PathBuf::from("/etc/nightlatch/clients.pem"));
    assert_eq!(config.identity_key_file(), PathBuf::from("/etc/nightlatch/state/identity.key"));
    assert_eq!(config.keyholder_key_file(), PathBuf::from("/etc/nightlatch/state/keyholder.pub"));
    assert_eq!(node(NODE).unwrap().state_dir, PathBuf::from("/var/lib/nightlatch"));
}

/// Checks the error for the minimal file with one line replaced.
fn refused(line: &str, replacement: &str, kind: ConfigErrorKind, at: &str, parts: &[&str]) {
    assert!(MINIMAL_NODE.lines().any(|found| found == line), "{line}");
    let text = MINIMAL_NODE.replacen(line, replacement, 1);
    let error = node(&text).unwrap_err();
    let said = error.to_string();
    assert_eq!(error.kind(), kind, "{said}");
    assert!(said.starts_with(&format!("/etc/nightlatch/node.toml:{at}")), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} in {said}");
    }
}

#[test]
fn errors_name_file_line_key_and_next_step() {
    use ConfigErrorKind::{Invalid, Unparsable};
    let cases: &[(&str, &str, ConfigErrorKind, &str, &[&str])] = &[
        (
            "name = \"node-1\"",
            "nmae = \"node-1\"",
            Unparsable,
            "3: nmae: ",
            &["unknown field `nmae`", "spelling"],
        ),
        ("name = \"node-1\"", "name = \"node 1\"", Unparsable, "3: name: ", &["`node 1` is not a name"]),
        ("name = \"node-1\"", "name = 7", Unparsable, "3: name: ", &["invalid type"]),
        ("name = \"node-1\"", "", Unparsable, "", &["missing field `name`", "add the key"]),
        (
            "key = \"127.0.0.1:7410\"",
            "key = \"localhost\"",
            Unparsable,
            "8: listen.key: ",
            &["socket address"],
        ),
        (
            "path = \"pool\"",
            "path = \"pool\"\nsize = 1",
            Unparsable,
            "7: pools[0].size: ",
            &["unknown field"],
        ),
        (
            "path = \"pool\"",
            "path = \"pool\"\n[[pools]]\npath = \"pool\"",
            Invalid,
            "8: pools[1].path: ",
            &["twice"],
        ),
        ("state_dir = \"state\"", "state_dir = \"s\"\ndrain_s = 301", Invalid, "5: drain_s: ", &["0 to 300"]),
        (
            "state_dir = \"state\"",
            "state_dir = \"s\"\nlease_ms_max = 999",
            Invalid,
            "5: lease_ms_max: ",
            &["1000"],
        ),
        ("state_dir = \"state\"", "state_dir = ", Unparsable, "4: ", &[]),
        (
            "node_id = \"5b0cf6a1f9c04ab29a6f37f2f0a0c7de\"",
            "node_id = \"5b\"",
            Unparsable,
            "2: node_id: ",
            &["32"],
        ),
        (
            "admin = \"127.0.0.1:7411\"",
            "admin = \"127.0.0.1:7410\"",
            Invalid,
            "9: listen.admin: ",
            &["taken by listen.key"],
        ),
        (
            "admin = \"127.0.0.1:7411\"",
            "admin = \"[::]:7410\"",
            Invalid,
            "9: listen.admin: ",
            &["taken by listen.key"],
        ),
        (
            "nbd_unix = \"nbd.sock\"",
            "nbd = \"127.0.0.1:10809\"",
            Invalid,
            "12: tls.server: ",
            &["host certificate", "pki issue"],
        ),
        (
            "nbd_unix = \"nbd.sock\"",
            "nbd = \"192.0.2.1:10809\"\nnbd_plain = true",
            Invalid,
            "12: listen.nbd_plain: ",
            &["loopback"],
        ),
        (
            "nbd_unix = \"nbd.sock\"",
            "s3 = \"[::]:7480\"\ns3_plain = true",
            Invalid,
            "12: listen.s3_plain: ",
            &["loopback"],
        ),
        ("nbd_unix = \"nbd.sock\"", "s3_region = \"a b\"", Invalid, "11: listen.s3_region: ", &["us-east-1"]),
        (
            "trust_domain = \"storage.example.com\"",
            "trust_domain = \"Storage\"",
            Unparsable,
            "13: tls.trust_domain: ",
            &["lower-case"],
        ),
    ];
    for (line, replacement, kind, at, parts) in cases {
        refused(line, replacement, *kind, at, parts);
    }
}

#[test]
fn heads_in_clear_are_taken_on_loopback_and_need_no_certificate() {
    for heads in ["nbd = \"127.0.0.1:10809\"\nnbd_plain = true", "s3 = \"[::1]:7480\"\ns3_plain = true"] {
        node(&MINIMAL_NODE.replace("nbd_unix = \"nbd.sock\"", heads)).unwrap();
    }
}

#[test]
fn limits_hold_at_the_edge() {
    let long = |len: usize| format!("nbd_unix = \"/{}\"", "s".repeat(len - 1));
    assert!(node(&MINIMAL_NODE.replace("nbd_unix = \"nbd.sock\"", &long(107))).is_ok());
    assert_eq!(
        node(&MINIMAL_NODE.replace("nbd_unix = \"nbd.sock\"", &long(108))).unwrap_err().key(),
        Some("listen.nbd_unix")
    );
    let pools = |count: usize| {
        (0..count).map(|index| format!("[[pools]]\npath = \"p{index}\"\n")).collect::<String>()
    };
    let with = |count| MINIMAL_NODE.replace("[[pools]]\npath = \"pool\"\n", &pools(count));
    assert!(node(&with(128)).is_ok());
    assert_eq!(node(&with(129)).unwrap_err().key(), Some("pools"));
    let none = node(&format!("pools = []\n{}", with(0))).unwrap_err();
    assert_eq!((none.key(), none.line()), (Some("pools"), Some(1)));
    for (lease, accepted) in [(999, false), (1000, true), (86_400_000, true), (86_400_001, false)] {
        let text = KEYHOLDER
            .replace("lease_ms = 30000", &format!("lease_ms = {lease}"))
            .replace("lease_ms_max = 300000", &format!("lease_ms_max = {}", lease.max(300_000)));
        assert_eq!(KeyholderConfig::parse(&text, Path::new("k.toml")).is_ok(), accepted, "{lease}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = NodeConfig::load(Path::new("/nonexistent/node.toml")).unwrap_err();
    assert_eq!(error.kind(), ConfigErrorKind::Unreadable);
    assert!(error.to_string().contains("/nonexistent/node.toml: cannot read"), "{error}");
}

#[test]
fn a_pinned_key_is_64_digits_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyholder.pub");
    std::fs::write(&path, format!("{}\n", "0f".repeat(32))).unwrap();
    assert_eq!(config::read_public_key(&path).unwrap(), [0x0f; 32]);
    for text in ["", "0f", &"0f".repeat(33), &"xx".repeat(32)] {
        std::fs::write(&path, text).unwrap();
        let error = config::read_public_key(&path).unwrap_err();
        assert!(error.to_string().contains("nightlatch key status"), "{error}");
    }
}
