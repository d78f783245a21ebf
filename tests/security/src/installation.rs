//! Everything secret of a test's installation, and what a scanner looks for because of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use harness::site::Site;

use crate::needles::Needles;
use crate::recovery::{Recovered, VolumeKeys, recover, root_from_shares};

/// Everything secret, from what an organisation keeps: shares and a backup.
///
/// # Panics
/// Where no ceremony was held, or the documents do not give the keys back.
pub fn recovered(site: &Site) -> Recovered {
    let shares: Vec<_> = site
        .officers
        .iter()
        .skip(1)
        .take(2)
        .map(|officer| {
            let sealed = officer.share.as_ref().expect("a ceremony was held");
            sealed.open(&officer.secret).expect("an officer opens the own share")
        })
        .collect();
    let root = root_from_shares(&shares).expect("two shares give the root");
    let backup = BASE64.decode(site.ledger_backup().ledger).expect("a backup in base64");
    recover(root, &backup).expect("the root opens the backup")
}

/// Every form of every secret.
pub fn needles(recovered: &Recovered) -> Needles {
    let mut needles = Needles::new();
    needles.add_secret("root secret", &recovered.root);
    needles.add_secret("ledger key", &recovered.ledger_key);
    needles.add_secret("grant-signing seed", &recovered.grant_signing_seed);
    for volume in &recovered.volumes {
        let name = |what: &str| format!("{what} of {}", volume.label);
        needles.add_secret(&name("domain secret"), &volume.domain_secret);
        needles.add_secret(&name("PRK"), &volume.prk);
        needles.add_aes_key(&name("data key"), &volume.data_key);
        needles.add_aes_key(&name("tweak key"), &volume.tweak_key);
        needles.add_hash_key(&name("tag hash key"), &volume.tag_hash_key);
        needles.add_aes_key(&name("tag PRF key"), &volume.tag_prf_key);
    }
    needles
}

/// The keys of one volume.
///
/// # Panics
/// Where there is none of this label.
pub fn keys_of<'a>(recovered: &'a Recovered, label: &str) -> &'a VolumeKeys {
    recovered.volumes.iter().find(|volume| volume.label == label).expect("a volume in the ledger")
}
