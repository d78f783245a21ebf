//! The drawing in ARCHITECTURE.md as rules over `cargo metadata`, each with a planted breach.

use architecture_tests::graph::{Graph, Rule};

/// Crates that work on a sealed node: they move, check and store ciphertext.
const CIPHERTEXT_SIDE: &[&str] = &["device", "pool", "audit-log", "replication"];

/// Crates that can hold, derive or receive a key.
const KEY_SIDE: &[&str] =
    &["aes-xts", "locked-memory", "key-hierarchy", "keyring", "lease", "sealing", "keyholder"];

/// Crates that speak to clients in the clear.
const HEADS: &[&str] = &["nbd-server", "objects", "s3-server"];

/// Crates whose state machines get bytes, time and randomness handed in.
const SANS_IO: &[&str] = &["units", "lease", "key-hierarchy", "aes-xts", "attestation", "replication"];

/// Each rule beside an edge that breaks it.
const RULES: &[(Rule, (&str, &str))] = &[
    (
        Rule::Unreachable {
            from: CIPHERTEXT_SIDE,
            to: KEY_SIDE,
            why: "the ciphertext side works on a sealed node and never reaches a crate that can hold a key",
        },
        ("pool", "keyring"),
    ),
    (
        Rule::OnlyBy {
            target: "aes-xts",
            dependents: &["sealing", "keyring", "cli"],
            why: "one door: only sealing encrypts, the keyring keeps the schedule's memory, the doctor measures without a key",
        },
        ("s3-server", "aes-xts"),
    ),
    (
        Rule::OnlyBy {
            target: "locked-memory",
            dependents: &["keyring", "keyholder", "node"],
            why: "secret memory belongs to the keyring and the keyholder; the node only chooses its policy",
        },
        ("objects", "locked-memory"),
    ),
    (
        Rule::NotDirect {
            from: HEADS,
            to: &["device", "pool", "aes-xts", "locked-memory", "key-hierarchy", "keyring", "lease"],
            why: "a head sees clear bytes through sealing and nothing else",
        },
        ("nbd-server", "pool"),
    ),
    (
        Rule::Unreachable {
            from: &[
                "admin",
                "config",
                "identity",
                "units",
                "health",
                "hygiene",
                "sources",
                "attestation",
                "smart",
                "tpm",
            ],
            to: KEY_SIDE,
            why: "state, configuration and identity are told about keys and never see one",
        },
        ("identity", "lease"),
    ),
    (
        Rule::Unreachable {
            from: &["node"],
            to: &["keyholder"],
            why: "a storage node carries no code that holds a root secret",
        },
        ("objects", "keyholder"),
    ),
    (
        Rule::NotDirect {
            from: &["node", "keyholder", "cli", "health", "config", "admin"],
            to: &["smart"],
            why: "commands to disks are another program's, which has the rights for them and no key",
        },
        ("health", "smart"),
    ),
    (
        Rule::Unreachable {
            from: &["keyholder"],
            to: &[
                "device",
                "pool",
                "sealing",
                "keyring",
                "aes-xts",
                "objects",
                "nbd-server",
                "s3-server",
                "tpm",
            ],
            why: "the compute tier derives keys, serves no disk, and verifies what another machine's TPM signed",
        },
        ("lease", "pool"),
    ),
    (
        Rule::Unreachable {
            from: SANS_IO,
            to: &["tokio", "mio", "socket2", "nix"],
            why: "a sans-IO crate has no socket, no clock and no executor to reach for",
        },
        ("lease", "tokio"),
    ),
    (
        Rule::NotDirect {
            from: SANS_IO,
            to: &["getrandom"],
            why: "randomness is handed to a sans-IO crate, so that a run can be replayed",
        },
        ("lease", "getrandom"),
    ),
    (
        Rule::Unreachable {
            from: &[
                "device",
                "pool",
                "sealing",
                "keyring",
                "locked-memory",
                "objects",
                "health",
                "smart",
                "sources",
            ],
            to: &["tokio"],
            why: "storage and sources of triggers are synchronous: no executor thread ever waits for a device",
        },
        ("pool", "tokio"),
    ),
    (
        Rule::OnlyBy {
            target: "s3s",
            dependents: &["s3-server"],
            why: "s3s types appear only in the S3 crate",
        },
        ("node", "s3s"),
    ),
    (
        Rule::OnlyBy {
            target: "xts-mode",
            dependents: &[],
            why: "the oracle of the cipher's tests must never be what encrypts",
        },
        ("sealing", "xts-mode"),
    ),
    (
        Rule::OnlyBy {
            target: "redb",
            dependents: &["objects"],
            why: "redb types appear only behind the object index",
        },
        ("s3-server", "redb"),
    ),
];

fn breaches(graph: &Graph) -> Vec<String> {
    RULES.iter().flat_map(|(rule, _)| rule.breaches(graph)).collect()
}

#[test]
fn no_edge_breaks_the_drawing() {
    let found = breaches(&Graph::of_workspace());
    assert!(found.is_empty(), "the drawing in ARCHITECTURE.md is broken:\n  {}", found.join("\n  "));
}

#[test]
fn every_rule_finds_its_planted_breach() {
    let graph = Graph::of_workspace();
    for (rule, (from, to)) in RULES {
        let planted = graph.clone().with_edge(from, to);
        assert!(!rule.breaches(&planted).is_empty(), "{from} -> {to} was planted and not found by {rule:?}");
    }
}

/// A breach three crates away is still a breach: the chain is in the message.
#[test]
fn a_planted_breach_through_other_crates_is_found() {
    let graph = Graph::of_workspace().with_edge("units", "hex").with_edge("hex", "keyring");
    let found = breaches(&graph);
    assert!(
        found.iter().any(|line| line.starts_with("device -> units -> hex -> keyring")),
        "device reaches the keyring through two others, and that was not found: {found:?}"
    );
}

#[test]
fn a_rule_about_a_crate_that_is_gone_is_a_breach() {
    let rule = Rule::Unreachable { from: &["scribe"], to: &["keyring"], why: "planted" };
    assert_eq!(rule.breaches(&Graph::of_workspace()).len(), 1);
}

/// Simulated twins lose what they are told to lose and hold keys in ordinary memory: no program may be built with one.
#[test]
fn no_program_is_built_with_a_simulated_twin() {
    let rule = Rule::FeatureOff { feature: "simulated", why: "for tests only" };
    let graph = Graph::of_workspace();
    assert_eq!(rule.breaches(&graph), Vec::<String>::new());
    assert_eq!(rule.breaches(&graph.with_feature("node", "device", "simulated")).len(), 1);
}
