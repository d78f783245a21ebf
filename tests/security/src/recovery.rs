//! From officers' shares and a ledger backup to every volume's key, by the documents alone.
//!
//! Shares are points on polynomials over GF(256) (LEDGER.md), keys follow HIERARCHY.md. Nothing here calls the code that
//! made them: what this cannot read, nobody could restore either. The scanner needs the keys to know what to look for.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use keyholder::shares::{Share, ShareSet};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use units::{ByteLen, DomainId, Fence, NodeId, VolumeEpoch, VolumeId};

/// A secret of 32 bytes.
pub type Secret = [u8; 32];

const MAGIC: &[u8; 8] = b"NLLEDGER";
const NONCE_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 32;

/// Everything secret about one volume.
#[expect(missing_debug_implementations, reason = "holds keys")]
pub struct VolumeKeys {
    pub label: String,
    pub domain: [u8; 16],
    pub epoch: u32,
    pub domain_secret: Secret,
    pub prk: Secret,
    pub data_key: Secret,
    pub tweak_key: Secret,
    pub tag_hash_key: [u8; 16],
    pub tag_prf_key: Secret,
}

/// Everything secret about an installation.
#[expect(missing_debug_implementations, reason = "holds keys")]
pub struct Recovered {
    pub root: Secret,
    pub ledger_key: Secret,
    pub grant_signing_seed: Secret,
    pub volumes: Vec<VolumeKeys>,
}

/// Interpolates the root from as many shares as the set asks for.
///
/// # Errors
/// Where a share does not say what it should.
pub fn root_from_shares(shares: &[Share]) -> Result<Secret> {
    let mut points = Vec::new();
    for share in shares {
        let value = serde_json::to_value(&share.value)?;
        let value = BASE64.decode(value.as_str().context("a share's value is text")?)?;
        points.push((share.index, Secret::try_from(value).ok().context("a share's value is 32 bytes")?));
    }
    let mut root = [0; 32];
    for (index, value) in &points {
        // Lagrange at 0: the product of x_j / (x_j - x_i), where minus is plus is xor.
        let mut weight = 1;
        for (other, _) in points.iter().filter(|(other, _)| other != index) {
            weight = multiply(weight, multiply(*other, invert(other ^ index)));
        }
        for (byte, share) in root.iter_mut().zip(value) {
            *byte ^= multiply(weight, *share);
        }
    }
    Ok(root)
}

/// Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1b };
        b >>= 1;
    }
    product
}

fn invert(a: u8) -> u8 {
    // a^254: the group has 255 elements.
    (0..254).fold(1, |power, _| multiply(power, a))
}

/// `info` of HIERARCHY.md: each variable field behind its length, the epoch big-endian.
fn info(label: &str, domain: &[u8], epoch: u32) -> Vec<u8> {
    let mut info = Vec::new();
    for field in [b"nightlatch hierarchy 1".as_slice(), label.as_bytes(), domain] {
        info.push(u8::try_from(field.len()).expect("fields are short"));
        info.extend_from_slice(field);
    }
    info.extend_from_slice(&epoch.to_be_bytes());
    info
}

fn expand<const N: usize>(prk: &Hkdf<Sha256>, info: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    prk.expand(info, &mut out).expect("HKDF gives up to 8160 bytes");
    out
}

/// The header of a ledger, readable without the root.
#[derive(Deserialize)]
struct Header {
    _serial: u64,
    share_set: ShareSet,
    _grant_signing_key: [u8; 32],
    ledger_key: Wrapped,
}

#[derive(Deserialize)]
struct Wrapped {
    nonce: [u8; NONCE_BYTES],
    ciphertext: [u8; 32],
    tag: [u8; 16],
}

/// The part of the registry that is needed here; what follows is left unread. Nothing is latched in a backup that a test
/// makes, so a latch is a field that does not decode.
#[derive(Deserialize)]
struct Registry {
    _nodes: Vec<Node>,
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
struct Node {
    _name: String,
    _node: NodeId,
    _key_address: String,
    _admin_address: String,
    _pinned: Option<[u8; 32]>,
    _push: keyholder::api::PushPolicy,
    _lease_ms: u64,
    _latch: Option<Never>,
    _acknowledged: Option<Never>,
}

#[derive(Deserialize)]
struct Volume {
    label: String,
    _volume: VolumeId,
    domain: DomainId,
    epoch: VolumeEpoch,
    secret: Wrapped,
    check: [u8; 16],
    _size: ByteLen,
    _kind: keyholder::api::VolumeKind,
    _on_seal: keyholder::api::OnSeal,
    _integrity: keyholder::api::VolumeIntegrity,
    _node: NodeId,
    _life: Life,
    _latch: Option<Never>,
    _fence_floor: Fence,
    _since_serial: u64,
}

#[derive(Deserialize)]
enum Life {
    _Creating,
    _Live,
    _Deleting,
}

#[derive(Deserialize)]
enum Never {}

fn open(key: &Secret, nonce: &[u8], aad: &[u8], ciphertext: &[u8]) -> Result<Vec<u8>> {
    let nonce = XNonce::try_from(nonce).ok().context("a nonce has 24 bytes")?;
    XChaCha20Poly1305::new(&(*key).into())
        .decrypt(&nonce, Payload { msg: ciphertext, aad })
        .ok()
        .context("the ledger does not decrypt under this root")
}

fn unwrap(key: &Secret, aad: &[u8], wrapped: &Wrapped) -> Result<Secret> {
    let sealed = [wrapped.ciphertext.as_slice(), &wrapped.tag].concat();
    Secret::try_from(open(key, &wrapped.nonce, aad, &sealed)?).ok().context("a wrapped secret has 32 bytes")
}

/// Opens a ledger file with the root.
///
/// # Errors
/// Where the file is not what LEDGER.md says, or belongs to another root.
pub fn recover(root: Secret, ledger: &[u8]) -> Result<Recovered> {
    let content = ledger.len().checked_sub(CHECKSUM_BYTES).context("a ledger is longer than its checksum")?;
    let (content, checksum) = ledger.split_at(content);
    ensure!(Sha256::digest(content).as_slice() == checksum, "the ledger's checksum does not match");
    let rest = content.strip_prefix(MAGIC).context("a ledger begins with its magic")?;
    let (version, rest) = rest.split_first_chunk().context("a version follows")?;
    ensure!(u32::from_le_bytes(*version) == 4, "an unknown version");
    let (length, rest) = rest.split_first_chunk().context("the header's length follows")?;
    let (header_bytes, registry) =
        rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length))?).context("the header fits")?;
    let header: Header = postcard::from_bytes(header_bytes)?;

    let root_epoch = header.share_set.root_epoch.0;
    let of_root = Hkdf::<Sha256>::new(Some(b"nightlatch root 1"), &root);
    let wrapping: Secret = expand(&of_root, &info("ledger-wrap", &[], root_epoch));
    let grant_signing_seed = expand(&of_root, &info("grant-signing", &[], root_epoch));
    let aad =
        [b"nightlatch/ledger/1 key".as_slice(), &header.share_set.set.0, &root_epoch.to_le_bytes()].concat();
    let ledger_key = unwrap(&wrapping, &aad, &header.ledger_key)?;

    let bound = &content[..content.len() - registry.len()];
    let (nonce, sealed) = registry.split_at_checked(NONCE_BYTES).context("the registry has a nonce")?;
    let plain = open(&ledger_key, nonce, bound, sealed)?;
    let (registry, _rest) = postcard::take_from_bytes::<Registry>(&plain)?;
    let volumes = registry.volumes.into_iter().map(|volume| volume_keys(&root, &ledger_key, volume));
    Ok(Recovered { root, ledger_key, grant_signing_seed, volumes: volumes.collect::<Result<_>>()? })
}

fn volume_keys(root: &Secret, ledger_key: &Secret, volume: Volume) -> Result<VolumeKeys> {
    let epoch = volume.epoch.0;
    let aad = [b"nightlatch/ledger/1 secret".as_slice(), &volume.domain.0, &epoch.to_le_bytes()].concat();
    let domain_secret = unwrap(ledger_key, &aad, &volume.secret)?;
    let (prk, of_volume) = Hkdf::<Sha256>::extract(Some(&domain_secret), root);
    let check: [u8; 16] = expand(&of_volume, &info("check-tagged", &volume.domain.0, epoch));
    ensure!(check == volume.check, "the derived key of {} is not the one on record", volume.label);
    let xts: [u8; 64] = expand(&of_volume, &info("xts", &volume.domain.0, epoch));
    let (data_key, tweak_key) = xts.split_at(32);
    Ok(VolumeKeys {
        label: volume.label,
        domain: volume.domain.0,
        epoch,
        domain_secret,
        prk: prk.into(),
        data_key: data_key.try_into()?,
        tweak_key: tweak_key.try_into()?,
        tag_hash_key: expand(&of_volume, &info("tag-hash", &volume.domain.0, epoch)),
        tag_prf_key: expand(&of_volume, &info("tag-prf", &volume.domain.0, epoch)),
    })
}
