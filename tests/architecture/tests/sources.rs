//! What may stand in which source: `unsafe`, the door's two constructors, secrets' derives, process control.
//! Each rule is shown a planted breach that it must find.

use std::collections::BTreeMap;
use std::path::Path;

use architecture_tests::source::{Source, workspace_sources};
use architecture_tests::workspace_root;

/// Crates that may hold `unsafe`, each for what its first lines say. Everything under `hardware/` may as well.
const UNSAFE_CRATES: &[&str] = &[
    "daemon/aes-xts",
    "daemon/locked-memory",
    "daemon/device",
    "daemon/faults",
    "daemon/thread-wipe",
    "benches",
    "tests/aarch64",
];

/// Crates that become programs: threads, runtimes, arguments, environment and exit codes are theirs.
const PROGRAMS: &[&str] =
    &["daemon/node", "daemon/keyholder", "daemon/cli", "hardware/smart", "image-build/init"];

/// Crates that speak to a network, or to a UPS's daemon over one.
const SOCKETS: &[&str] = &[
    "daemon/node",
    "daemon/keyholder",
    "daemon/cli",
    "daemon/identity",
    "daemon/nbd-server",
    "daemon/s3-server",
    "hardware/hygiene",
    "hardware/sources",
    "hardware/tpm",
];

/// A pattern of tokens that only some packages may contain.
struct Confined {
    pattern: &'static str,
    packages: &'static [&'static str],
    why: &'static str,
}

const CONFINED: &[Confined] = &[
    Confined {
        pattern: "Sealed::from_cipher",
        packages: &["daemon/sealing"],
        why: "a sealed sector is made by sealing, by a read from the device, and by nothing else",
    },
    Confined {
        pattern: "Sealed::from_frame",
        packages: &["daemon/pool"],
        why: "what another pool has sent is taken in where its frames are read, and nowhere else",
    },
    Confined {
        pattern: "Metadata::from_encoding",
        packages: &["daemon/pool"],
        why: "the pool alone knows what its metadata looks like: anything else that is written must be sealed",
    },
    Confined {
        pattern: "process::exit",
        packages: PROGRAMS,
        why: "only a program decides to end; elsewhere an exit would step over the wipe",
    },
    Confined {
        pattern: "env::args",
        packages: PROGRAMS,
        why: "arguments are read where the program is composed",
    },
    Confined {
        pattern: "env::var",
        packages: PROGRAMS,
        why: "the environment is read where the program is composed",
    },
    Confined {
        pattern: "Runtime::new",
        packages: PROGRAMS,
        why: "the runtime is chosen where the program is composed",
    },
    Confined {
        pattern: "runtime::Builder",
        packages: PROGRAMS,
        why: "the runtime is chosen where the program is composed",
    },
    Confined {
        pattern: "tokio::main",
        packages: PROGRAMS,
        why: "the runtime is chosen where the program is composed",
    },
    Confined {
        pattern: "thread::spawn",
        packages: PROGRAMS,
        why: "threads are started where the program is composed",
    },
    Confined {
        pattern: "thread::Builder",
        packages: &["daemon/node", "daemon/keyholder", "daemon/cli", "daemon/objects", "image-build/init"],
        why: "threads are started where the program is composed; the object store's committer and reaper are its own",
    },
    Confined { pattern: "TcpStream", packages: SOCKETS, why: "no socket below the heads" },
    Confined { pattern: "TcpListener", packages: SOCKETS, why: "no socket below the heads" },
    Confined { pattern: "UnixStream", packages: SOCKETS, why: "no socket below the heads" },
    Confined {
        pattern: "UdpSocket",
        packages: &["image-build/init", "daemon/cli"],
        why: "an address by DHCP, and files for machines that boot by TFTP; nothing else here speaks UDP",
    },
];

/// Tokens that may stand nowhere at all.
const BANNED: &[(&str, &str)] = &[
    ("todo!", "main carries nothing unfinished"),
    ("unimplemented!", "main carries nothing unfinished"),
    ("dbg!", "a left-over of debugging, and a way for a secret into a log"),
    ("#[ignore", "a test that does not run proves nothing"),
    ("allow(unsafe_code", "`expect` with a reason, in the crates that are marked for it"),
];

/// Secrets in memory, by crate and type. Add a new one here; a line whose type is gone fails.
const SECRETS: &[(&str, &str)] = &[
    ("daemon/aes-xts", "Cipher"),
    ("daemon/aes-xts", "Scratch"),
    ("daemon/aes-xts", "TagSchedule"),
    ("daemon/aes-xts", "XtsSchedule"),
    ("daemon/cli", "OfficerKey"),
    ("daemon/identity", "NodeKey"),
    ("daemon/keyholder", "Share"),
    ("daemon/keyholder", "ShareValue"),
    ("daemon/keyring", "Keyring"),
    ("daemon/locked-memory", "Arena"),
    ("daemon/locked-memory", "KeyStack"),
    ("daemon/locked-memory", "SecretBytes"),
    ("daemon/objects", "BodyCipher"),
    ("daemon/objects", "CustomerKey"),
    ("daemon/objects", "SecretAccessKey"),
    ("daemon/sealing", "Clear"),
    ("image-build", "ReleaseKey"),
];

/// What a secret has all the same, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    // References to a key and its scratch, lent together to one closure; nothing is copied but the references.
    ("daemon/aes-xts", "Cipher", "Clone"),
    ("daemon/aes-xts", "Cipher", "Copy"),
    // Clones share one key in memory.
    ("daemon/objects", "CustomerKey", "Clone"),
    // A share leaves its officer over mutual TLS, in the body of one request.
    ("daemon/keyholder", "ShareValue", "Serialize"),
    ("daemon/keyholder", "ShareValue", "Deserialize"),
    ("daemon/keyholder", "Share", "Serialize"),
    ("daemon/keyholder", "Share", "Deserialize"),
];

/// What a secret must never derive or implement: each copies it, prints it, or compares it in variable time.
const FORBIDDEN_FOR_SECRETS: &[&str] =
    &["Debug", "Clone", "Copy", "Default", "PartialEq", "Hash", "Serialize", "Deserialize", "Display"];

fn may_use_unsafe(package: &str) -> bool {
    UNSAFE_CRATES.contains(&package) || package.starts_with("hardware/")
}

fn builds_programs(package: &str) -> bool {
    ["daemon/", "hardware/", "image-build"].iter().any(|side| package.starts_with(side))
}

fn breach(source: &Source, line: usize, what: &str) -> String {
    format!("{}:{line}: {what}", source.path.display())
}

fn unsafe_breaches(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let mut marked: BTreeMap<&str, bool> = BTreeMap::new();
    for source in sources {
        let says_why = !source.lines("expect(unsafe_code, reason").is_empty();
        *marked.entry(&source.package).or_default() |=
            says_why && (source.path.ends_with("src/lib.rs") || source.path.ends_with("main.rs"));
    }
    for source in sources {
        for line in source.lines("unsafe") {
            if !may_use_unsafe(&source.package) {
                found.push(breach(source, line, "`unsafe` outside the crates that are marked for it"));
            } else if !marked[source.package.as_str()] {
                found.push(breach(
                    source,
                    line,
                    "`unsafe`, and the crate's lib.rs does not expect it with a reason",
                ));
            }
        }
    }
    found
}

fn confined_breaches(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| builds_programs(&source.package)) {
        for rule in CONFINED.iter().filter(|rule| !rule.packages.contains(&source.package.as_str())) {
            for line in source.lines_in_program(rule.pattern) {
                found.push(breach(source, line, &format!("`{}`: {}", rule.pattern, rule.why)));
            }
        }
    }
    found
}

fn banned_breaches(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for (pattern, why) in BANNED {
            found.extend(
                source
                    .lines(pattern)
                    .into_iter()
                    .map(|line| breach(source, line, &format!("`{pattern}`: {why}"))),
            );
        }
    }
    found
}

/// Secrets are those listed, and in the programs' crates whatever wipes itself.
fn secret_breaches(sources: &[Source], listed: &[(&str, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut missing: Vec<_> = listed.to_vec();
    for source in sources.iter().filter(|source| builds_programs(&source.package)) {
        for definition in source.type_definitions() {
            let is_listed = listed.contains(&(source.package.as_str(), definition.name.as_str()));
            missing.retain(|entry| *entry != (source.package.as_str(), definition.name.as_str()));
            let wipes_itself = definition.derives.contains("ZeroizeOnDrop")
                || definition.body.iter().any(|token| token == "Zeroizing");
            if definition.is_test || !(is_listed || wipes_itself) {
                continue;
            }
            for forbidden in FORBIDDEN_FOR_SECRETS {
                let place = (source.package.as_str(), definition.name.as_str(), *forbidden);
                if EXCEPTIONS.contains(&place) {
                    continue;
                }
                let implemented =
                    !source.lines_in_program(&format!("{forbidden} for {}", definition.name)).is_empty();
                // A hand-written Debug says that there is a secret, not what it is.
                if definition.derives.contains(*forbidden) || (implemented && *forbidden != "Debug") {
                    let what = format!("secret `{}` has {forbidden}", definition.name);
                    found.push(breach(source, definition.line, &what));
                }
            }
        }
    }
    found.extend(missing.into_iter().map(|(package, name)| {
        format!("the list of secrets names {name} in {package}, which does not define it: mend the list")
    }));
    found
}

fn planted(package: &str, text: &str) -> Vec<Source> {
    vec![Source::parse(&Path::new(package).join("src/lib.rs"), package, text, false)]
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{} breach(es):\n  {}", found.len(), found.join("\n  "));
}

#[test]
fn unsafe_stands_only_in_marked_crates() {
    assert_none(&unsafe_breaches(&workspace_sources()));
    let block = "fn peek(at: *const u8) -> u8 { unsafe { *at } }";
    assert_eq!(unsafe_breaches(&planted("daemon/pool", block)).len(), 1);
    assert_eq!(unsafe_breaches(&planted("daemon/device", block)).len(), 1, "marked, and no reason given");
    let with_reason = format!("#![expect(unsafe_code, reason = \"planted\")]\n{block}");
    assert_none(&unsafe_breaches(&planted("daemon/device", &with_reason)));
    let in_macro = "fn f() { vec![unsafe { read() }]; }";
    assert_eq!(unsafe_breaches(&planted("daemon/pool", in_macro)).len(), 1);
    assert_none(&unsafe_breaches(&planted("daemon/pool", "// unsafe\nconst WORD: &str = \"unsafe\";")));
}

#[test]
fn what_is_confined_stays_where_it_belongs() {
    assert_none(&confined_breaches(&workspace_sources()));
    for rule in CONFINED {
        let text = format!("fn f() {{ {}(x) }}", rule.pattern);
        assert_eq!(
            confined_breaches(&planted("daemon/units", &text)).len(),
            1,
            "{} is not found",
            rule.pattern
        );
        let in_tests = format!("#[cfg(test)]\nmod tests {{ {text} }}\n");
        assert_none(&confined_breaches(&planted("daemon/units", &in_tests)));
        let after_tests = format!("{in_tests}{text}");
        assert_eq!(
            confined_breaches(&planted("daemon/units", &after_tests)).len(),
            1,
            "only the test is let off"
        );
    }
}

#[test]
fn nothing_unfinished_or_switched_off_stands_on_main() {
    assert_none(&banned_breaches(&workspace_sources()));
    for text in ["fn f() { todo!() }", "#[test]\n#[ignore = \"slow\"]\nfn f() {}", "fn f() { dbg!(1); }"] {
        assert_eq!(banned_breaches(&planted("daemon/units", text)).len(), 1, "{text}");
    }
}

#[test]
fn secrets_cannot_be_printed_copied_or_compared_by_accident() {
    assert_none(&secret_breaches(&workspace_sources(), SECRETS));
    let listed = [("daemon/keyring", "Slot")];
    for text in [
        "#[derive(Debug)]\npub struct Slot { key: [u8; 64] }",
        "#[derive(Copy, other::Thing)]\nstruct Slot([u8; 64]);",
        "struct Slot([u8; 64]);\nimpl Clone for Slot { fn clone(&self) -> Self { Self(self.0) } }",
        "struct Slot;\n#[derive(Debug)]\nstruct Held(Zeroizing<Vec<u8>>);",
        "struct Slot;\n#[derive(ZeroizeOnDrop, PartialEq)]\nstruct Held { bytes: [u8; 32] }",
    ] {
        let found = secret_breaches(&planted("daemon/keyring", text), &listed);
        assert!(!found.is_empty(), "not found: {text}");
    }
    let fine = "struct Slot;\nimpl fmt::Debug for Slot {}\n#[derive(Debug, Clone)]\nstruct Other { n: u64 }";
    assert_none(&secret_breaches(&planted("daemon/keyring", fine), &listed));
    let gone = secret_breaches(&planted("daemon/keyring", "struct Renamed;"), &listed);
    assert_eq!(gone.len(), 1, "a listed secret that is gone: {gone:?}");
}

/// Formats and protocols are written down beside the code that speaks them.
#[test]
fn every_format_and_protocol_has_its_document() {
    let documents = [
        "daemon/pool/FORMAT.md",
        "daemon/objects/FORMAT.md",
        "daemon/lease/PROTOCOL.md",
        "daemon/attestation/ATTESTATION.md",
        "daemon/nbd-server/PROTOCOL.md",
        "daemon/key-hierarchy/HIERARCHY.md",
        "daemon/keyholder/LEDGER.md",
        "daemon/keyholder/CLUSTER.md",
        "daemon/keyholder/JOIN.md",
    ];
    let missing: Vec<_> =
        documents.into_iter().filter(|path| !workspace_root().join(path).is_file()).collect();
    assert!(missing.is_empty(), "write {missing:?}");
}

/// A file says what it is before anything else, and no crate opts out of the workspace's lints.
#[test]
fn every_source_opens_with_what_it_is_and_every_crate_inherits_the_lints() {
    let mut found = Vec::new();
    for source in workspace_sources() {
        let opens = source.text.lines().find(|line| !line.starts_with("#!") && !line.trim().is_empty());
        if builds_programs(&source.package) && !opens.is_some_and(|line| line.starts_with("//!")) {
            found.push(breach(&source, 1, "no `//!` header"));
        }
        let manifest = workspace_root().join(&source.package).join("Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).expect("a readable manifest");
        if !manifest.contains("[lints]\nworkspace = true") {
            found.push(format!("{}/Cargo.toml: does not inherit the workspace's lints", source.package));
        }
    }
    found.dedup();
    assert_none(&found);
}
