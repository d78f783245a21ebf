//! Certificate and key files: what openssl makes of them, and what is refused before any connection.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::{Installation, read};
use identity::pki::{Authority, LEAF_DAYS_MAX};
use identity::{Credentials, IdentityError, IssuerClass, Role, Trust};

fn openssl(args: &[&str]) -> Result<String, String> {
    let output = Command::new("openssl").args(args).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(text) }
}

fn verify(pki: &Path, class: IssuerClass, purpose: &str, cert: &Path) -> Result<String, String> {
    let (root, issuer) = (pki.join("root/ca.pem"), pki.join(format!("issuers/{class}.pem")));
    let as_str = |path: &Path| path.to_str().unwrap().to_owned();
    openssl(&[
        "verify",
        "-x509_strict",
        "-CAfile",
        &as_str(&root),
        "-untrusted",
        &as_str(&issuer),
        "-purpose",
        purpose,
        &as_str(cert),
    ])
}

#[test]
fn openssl_accepts_every_chain_for_its_purpose_and_no_other() {
    let installation = Installation::new();
    let pki = installation.pki();
    for role in Role::ALL {
        let class = role.issuer_class();
        let files = installation.authority.issue(role, &"someone".parse().unwrap(), 30).unwrap();
        verify(&pki, class, "sslclient", &files.cert).unwrap();
        assert_eq!(
            verify(&pki, class, "sslserver", &files.cert).is_ok(),
            class == IssuerClass::Machines,
            "{role} as a server"
        );
        for other in IssuerClass::ALL {
            assert_eq!(
                verify(&pki, other, "sslclient", &files.cert).is_ok(),
                other == class,
                "{role} by {other}"
            );
        }
        let text = openssl(&["x509", "-noout", "-text", "-in", files.cert.to_str().unwrap()]).unwrap();
        assert!(text.contains(&format!("URI:spiffe://test.example/{role}/someone")), "{text}");
    }
    let hosts = ["node-1.example.com".to_owned(), "10.0.0.1".to_owned(), "::1".to_owned()];
    let server = installation.authority.issue_server(&"head".parse().unwrap(), &hosts, 30).unwrap();
    for (pair, kind) in [(server.ecdsa, "id-ecPublicKey"), (server.rsa, "rsaEncryption")] {
        verify(&pki, IssuerClass::Servers, "sslserver", &pair.cert).unwrap();
        assert!(verify(&pki, IssuerClass::Servers, "sslclient", &pair.cert).is_err());
        let text = openssl(&["x509", "-noout", "-text", "-in", pair.cert.to_str().unwrap()]).unwrap();
        for part in [kind, "DNS:node-1.example.com", "IP Address:10.0.0.1", "IP Address:0:0:0:0:0:0:0:1"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

#[test]
fn keys_are_private_and_belong_to_their_certificates() {
    let installation = Installation::new();
    installation.authority.issue(Role::Operator, &"alice".parse().unwrap(), 30).unwrap();
    let mut keys = 0;
    let mut dirs = vec![installation.pki()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if read(&path).contains("PRIVATE KEY") {
                keys += 1;
                assert_eq!(
                    path.metadata().unwrap().permissions().mode() & 0o777,
                    0o600,
                    "{}",
                    path.display()
                );
            }
        }
    }
    assert_eq!(keys, 1 + 4 + 1);
}

#[test]
fn nothing_is_written_over() {
    let installation = Installation::new();
    let alice = "alice".parse().unwrap();
    let files = installation.authority.issue(Role::Operator, &alice, 30).unwrap();
    let before = (read(&files.cert), read(&files.key), read(&installation.pki().join("root/ca.key")));
    assert!(matches!(
        installation.authority.issue(Role::Operator, &alice, 30),
        Err(IdentityError::Exists { .. })
    ));
    assert!(matches!(
        Authority::create(&installation.pki(), &"test.example".parse().unwrap()),
        Err(IdentityError::Exists { .. })
    ));
    assert_eq!(before, (read(&files.cert), read(&files.key), read(&installation.pki().join("root/ca.key"))));
    let reopened = Authority::open(&installation.pki()).unwrap();
    assert_eq!(reopened.trust_domain().as_str(), "test.example");
    assert_eq!(reopened.leaf_files(Role::Operator, &alice), files);
}

#[test]
fn lifetimes_and_hosts_have_limits() {
    let installation = Installation::new();
    let name = "x".parse().unwrap();
    for days in [0, LEAF_DAYS_MAX + 1] {
        assert!(matches!(
            installation.authority.issue(Role::Operator, &name, days),
            Err(IdentityError::InvalidLifetime { .. })
        ));
    }
    installation.authority.issue(Role::Operator, &name, LEAF_DAYS_MAX).unwrap();
    assert!(matches!(installation.authority.issue_server(&name, &[], 1), Err(IdentityError::NoHosts)));
    for host in ["", "a b", "-", "x/y", "*.*.example.com"] {
        assert!(
            matches!(
                installation.authority.issue_server(&name, &[host.to_owned()], 1),
                Err(IdentityError::InvalidHost(_))
            ),
            "{host:?}"
        );
    }
    installation.authority.issue_server(&name, &["*.example.com".to_owned()], 1).unwrap();
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let installation = Installation::new();
    let files = installation.authority.issue(Role::Node, &"node-1".parse().unwrap(), 30).unwrap();
    for (mode, accepted) in [(0o600, true), (0o640, true), (0o644, false), (0o604, false)] {
        std::fs::set_permissions(&files.key, PermissionsExt::from_mode(mode)).unwrap();
        match Credentials::load(&files.cert, &files.key) {
            Ok(_) => assert!(accepted, "{mode:o}"),
            Err(error @ IdentityError::KeyReadableByOthers { .. }) => {
                assert!(!accepted, "{mode:o}");
                assert!(error.to_string().contains("chmod 600"), "{error}");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn pairs_and_files_that_do_not_fit_are_named() {
    let installation = Installation::new();
    let one = installation.authority.issue(Role::Node, &"one".parse().unwrap(), 30).unwrap();
    let two = installation.authority.issue(Role::Node, &"two".parse().unwrap(), 30).unwrap();
    let missing = installation.dir.path().join("missing.pem");
    let cases: [(&Path, &Path, &str); 4] = [
        (&one.cert, &two.key, "does not belong"),
        (&one.key, &one.key, "holds no certificate"),
        (&one.cert, &one.cert, "readable by every user"),
        (&missing, &one.key, "missing.pem"),
    ];
    for (cert, key, part) in cases {
        let error = Credentials::load(cert, key).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn one_authority_for_two_classes_is_refused() {
    let installation = Installation::new();
    let mut files = installation.authority.trust_files();
    files.clients = files.people.clone();
    let error = Trust::load(&files).unwrap_err();
    assert!(matches!(
        error,
        IdentityError::SharedIssuer { first: IssuerClass::People, second: IssuerClass::Clients }
    ));
    assert!(error.to_string().contains("one issuing authority per class"));
}

#[test]
fn a_leaf_is_no_issuer() {
    let installation = Installation::new();
    let leaf = installation.craft("people", &[], -60..60).0;
    let leaf_only = installation.dir.path().join("leaf.pem");
    let text = read(&leaf);
    std::fs::write(&leaf_only, &text[..text.find("-----END").unwrap() + 25]).unwrap();
    let mut files = installation.authority.trust_files();
    files.people = leaf_only;
    assert!(matches!(Trust::load(&files), Err(IdentityError::NotAnIssuer { .. })));
}

#[test]
fn certificates_outside_their_time_are_refused_with_the_date() {
    const HOUR: i64 = 3600;
    let installation = Installation::new();
    let uri = "spiffe://test.example/operator/alice";
    for (valid, parts) in [
        (-2 * HOUR..-HOUR, ["expired on 20", "nightlatch pki issue"]),
        (HOUR..2 * HOUR, ["valid only from 20", "clock"]),
    ] {
        let (cert, key) = installation.craft("people", &[uri], valid);
        let error = Credentials::load(&cert, &key).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
