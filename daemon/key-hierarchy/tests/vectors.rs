//! The committed vectors, which an independent implementation made (tests/vectors/generate.py).
#![expect(clippy::unwrap_used, reason = "a test")]

use key_hierarchy::{
    Integrity, KeyCheck, Label, RootLabel, check_value, expand, expand_root, extract_prk, promised,
};
use units::{DomainId, RootEpoch, VolumeEpoch};

const VECTORS: &str = include_str!("vectors/hierarchy.txt");

struct Vector<'a> {
    family: &'a str,
    label: &'a str,
    epoch: u32,
    root: [u8; 32],
    domain_secret: Option<[u8; 32]>,
    domain: Option<DomainId>,
    prk: [u8; 32],
    key: Vec<u8>,
}

fn array<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text).unwrap().try_into().unwrap()
}

fn vectors() -> impl Iterator<Item = Vector<'static>> {
    VECTORS.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [family, label, epoch, root, domain_secret, domain, prk, _info, key] = fields[..] else {
            panic!("nine fields: {line}")
        };
        Vector {
            family,
            label,
            epoch: epoch.parse().unwrap(),
            root: array(root),
            domain_secret: (domain_secret != "-").then(|| array(domain_secret)),
            domain: (domain != "-").then(|| DomainId(array(domain))),
            prk: array(prk),
            key: hex::decode(key).unwrap(),
        }
    })
}

#[test]
fn domain_keys_match_the_vectors() {
    let mut seen = 0;
    for vector in vectors().filter(|vector| vector.family == "domain") {
        let mut prk = [0; 32];
        extract_prk(&vector.root, &vector.domain_secret.unwrap(), &mut prk);
        assert_eq!(prk, vector.prk);
        let label = Label::ALL.into_iter().find(|label| label.text() == vector.label).unwrap();
        let mut key = vec![0; label.key_bytes()];
        let (domain, epoch) = (vector.domain.unwrap(), VolumeEpoch(vector.epoch));
        expand(&prk, label, &domain, epoch, &mut key);
        assert_eq!(key, vector.key, "{} in epoch {epoch}", vector.label);
        for integrity in Integrity::ALL.into_iter().filter(|integrity| integrity.label() == label) {
            let check = KeyCheck(array(&hex::encode(&key)));
            assert!(check_value(&prk, &domain, epoch, integrity).matches(&check));
            assert_eq!(promised(&prk, &domain, epoch, check), Some(integrity));
        }
        seen += 1;
    }
    assert_eq!(seen, 3 * Label::ALL.len());
}

#[test]
fn root_keys_match_the_vectors() {
    let mut seen = 0;
    for vector in vectors().filter(|vector| vector.family == "root") {
        let label = RootLabel::ALL.into_iter().find(|label| label.text() == vector.label).unwrap();
        let mut key = [0; 32];
        expand_root(&vector.root, label, RootEpoch(vector.epoch), &mut key);
        assert_eq!(key.as_slice(), vector.key, "{} in epoch {}", vector.label, vector.epoch);
        seen += 1;
    }
    assert_eq!(seen, 3 * RootLabel::ALL.len());
}

#[test]
fn every_input_changes_the_check_value() {
    let derive_for = |root: u8, secret: u8, domain: u8, epoch: u32, integrity| {
        let mut prk = [0; 32];
        extract_prk(&[root; 32], &[secret; 32], &mut prk);
        check_value(&prk, &DomainId([domain; 16]), VolumeEpoch(epoch), integrity)
    };
    let derive = |root, secret, domain, epoch| derive_for(root, secret, domain, epoch, Integrity::Unverified);
    let reference = derive(1, 2, 3, 4);
    assert!(reference.matches(&derive(1, 2, 3, 4)));
    let others = [
        derive(9, 2, 3, 4),
        derive(1, 9, 3, 4),
        derive(1, 2, 9, 4),
        derive(1, 2, 3, 9),
        derive_for(1, 2, 3, 4, Integrity::Tagged),
        derive_for(1, 2, 3, 4, Integrity::Checksummed),
    ];
    for other in others {
        assert!(!reference.matches(&other));
    }
}

#[test]
#[should_panic(expected = "fixed length")]
fn a_key_of_another_length_is_a_bug_of_the_caller() {
    expand(&[0; 32], Label::Xts, &DomainId([0; 16]), VolumeEpoch(0), &mut [0; 32]);
}
