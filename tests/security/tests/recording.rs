//! Somebody records everything that keyholder and node say to each other, and later takes all of the node's memory, excluded
//! mappings too. With the traffic secrets in it the recording opens. What it then shows of a push is the grant's envelope,
//! sealed to a one-time public key that is in the recording as well; its secret half is nowhere, in none of its forms.

use std::collections::{BTreeSet, HashSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use curve25519_dalek::MontgomeryPoint;
use harness::site::{DISK, Site, SiteSpec, VolumeKind};
use lease::envelope::{self, PublicEnvelopeKey, SECRET_BYTES};
use lease::message::{Evidence, Grant, Kind};
use security_tests::core_file::{self, Extent};
use security_tests::image;
use security_tests::installation::{keys_of, recovered};
use security_tests::needles::Needles;
use security_tests::planted::Planted;
use security_tests::tls;
use serde::de::DeserializeOwned;
use sha3::{Digest, Sha3_256, Sha3_512};
use shake::{ExtendableOutput, Shake256, Update, XofReader};

// ---- the recorder ----

/// Both directions of a connection.
#[derive(Clone, Debug, Default)]
struct Recording {
    to_node: Vec<u8>,
    from_node: Vec<u8>,
}

type Recordings = Arc<Mutex<Vec<Recording>>>;

/// Stands between keyholder and node, and passes everything on. Ends with the test's process.
fn record(node: SocketAddr) -> (SocketAddr, Recordings) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a bound port");
    let recordings = Recordings::default();
    let all = Arc::clone(&recordings);
    std::thread::spawn(move || {
        for keyholder in listener.incoming().flatten() {
            // The keyholder tries again where the node is not there.
            let Ok(node) = TcpStream::connect(node) else { continue };
            let index = {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(Recording::default());
                all.len() - 1
            };
            let half = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
            pass_on(half(&keyholder), half(&node), &all, move |all| &mut all[index].to_node);
            pass_on(node, keyholder, &all, move |all| &mut all[index].from_node);
        }
    });
    (address, recordings)
}

fn pass_on(
    mut from: TcpStream,
    mut to: TcpStream,
    recordings: &Recordings,
    place: impl Fn(&mut Vec<Recording>) -> &mut Vec<u8> + Send + 'static,
) {
    let recordings = Arc::clone(recordings);
    std::thread::spawn(move || {
        let mut chunk = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            place(&mut recordings.lock().unwrap_or_else(PoisonError::into_inner))
                .extend_from_slice(&chunk[..count]);
            if to.write_all(&chunk[..count]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}

// ---- opening the recording ----

/// Records of protected data (RFC 8446, section 5.2), each with its header.
fn protected(stream: &[u8]) -> Vec<&[u8]> {
    const HEADER: usize = 5;
    const APPLICATION_DATA: u8 = 23;
    let mut records = Vec::new();
    let mut rest = stream;
    while let [kind, _, _, high, low, ..] = rest {
        let len = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
        let Some((record, after)) = rest.split_at_checked(len) else { break };
        if *kind == APPLICATION_DATA {
            records.push(record);
        }
        rest = after;
    }
    records
}

/// One direction's key and nonces.
struct Opener {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
}

impl Opener {
    fn new(secret: &[u8]) -> Self {
        let key: [u8; 32] = tls::expand_label(secret, "key").expect("a secret's length");
        let key = UnboundKey::new(&AES_256_GCM, &key).expect("a key of 32 bytes");
        Self { key: LessSafeKey::new(key), iv: tls::expand_label(secret, "iv").expect("a secret's length") }
    }

    /// The content of a record and its type, where the key is this one.
    fn open(&self, sequence: u64, record: &[u8]) -> Option<(Vec<u8>, u8)> {
        let mut nonce = self.iv;
        for (byte, count) in nonce[NONCE_LEN - 8..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= count;
        }
        let (header, sealed) = record.split_at(5);
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let clear = self.key.open_in_place(nonce, Aad::from(header), &mut sealed).ok()?;
        let end = clear.iter().rposition(|byte| *byte != 0)?;
        Some((clear[..end].to_vec(), clear[end]))
    }

    /// What was said under this secret: everything from the first record on that it opens.
    fn open_all(&self, records: &[&[u8]]) -> Option<Vec<u8>> {
        /// Before data there are the handshake's own records, under another key.
        const HANDSHAKE_MAX: usize = 6;
        let first = (0..records.len().min(HANDSHAKE_MAX)).find(|at| self.open(0, records[*at]).is_some())?;
        let mut said = Vec::new();
        for (sequence, record) in (0..).zip(&records[first..]) {
            let (content, kind) = self.open(sequence, record)?;
            if kind == 23 {
                said.extend(content);
            }
        }
        Some(said)
    }
}

/// The bodies of the messages of one kind: `length ‖ version ‖ kind ‖ transcript ‖ signature ‖ body`.
fn messages<T: DeserializeOwned>(said: &[u8], wanted: Kind) -> Vec<T> {
    const BODY: usize = 4 + 2 + 32 + 64;
    let mut found = Vec::new();
    let mut rest = said;
    while let Some((length, _)) = rest.split_first_chunk() {
        let end = 4 + usize::try_from(u32::from_le_bytes(*length)).expect("a length");
        let Some((frame, after)) = rest.split_at_checked(end) else { break };
        if frame.get(5) == Some(&wanted.byte()) {
            found.push(postcard::from_bytes(&frame[BODY..]).expect("a message"));
        }
        rest = after;
    }
    found
}

// ---- searching memory ----

/// Calls `found` with every window of `N` bytes, at every offset, that could be random: with at least `different` different
/// bytes in it. Each once.
fn windows<const N: usize>(memory: &[Vec<u8>], different: usize, mut found: impl FnMut(&[u8; N])) -> usize {
    let mut seen = HashSet::new();
    for bytes in memory {
        let mut counts = [0_u16; 256];
        let mut distinct = 0;
        for (end, byte) in bytes.iter().enumerate() {
            let entering = &mut counts[usize::from(*byte)];
            *entering += 1;
            distinct += usize::from(*entering == 1);
            if end >= N {
                let leaving = &mut counts[usize::from(bytes[end - N])];
                *leaving -= 1;
                distinct -= usize::from(*leaving == 0);
            }
            if end + 1 < N || distinct < different {
                continue;
            }
            let window: &[u8; N] = bytes[end + 1 - N..=end].try_into().expect("a window");
            if seen.insert(*window) {
                found(window);
            }
        }
    }
    seen.len()
}

/// What is known of a one-time key by its public half.
struct OneTimeKey {
    public: PublicEnvelopeKey,
    /// The seed of the matrix, with which ML-KEM's public key ends.
    rho: [u8; 32],
    x25519: [u8; 32],
    /// Stands in an expanded decapsulation key, beside the secret polynomials.
    hash: [u8; 32],
}

/// X-Wing (draft-connolly-cfrg-xwing-kem): a seed gives ML-KEM's two and X25519's scalar.
fn expand(seed: &[u8; SECRET_BYTES]) -> [u8; 96] {
    let mut expanded = [0; 96];
    let mut shake = Shake256::default();
    shake.update(seed);
    shake.finalize_xof().read(&mut expanded);
    expanded
}

/// FIPS 203, algorithm 13: `G(d ‖ k)` begins with rho.
fn rho(d: &[u8]) -> [u8; 32] {
    let digest = Sha3_512::new().chain_update(d).chain_update([3]).finalize();
    digest[..32].try_into().expect("32 bytes")
}

impl OneTimeKey {
    fn of(public: &PublicEnvelopeKey) -> Self {
        let (ml_kem, x25519) = public.as_bytes().split_at(1184);
        Self {
            public: public.clone(),
            rho: ml_kem[1152..].try_into().expect("32 bytes"),
            x25519: x25519.try_into().expect("32 bytes"),
            hash: Sha3_256::digest(ml_kem).into(),
        }
    }

    /// In which forms the secret half lies in memory, and how many places were tried.
    fn forms_in(&self, memory: &[Vec<u8>]) -> (BTreeSet<&'static str>, usize) {
        /// Of 32 random bytes one in ten thousand has fewer different ones.
        const DIFFERENT: usize = 24;
        let mut forms = BTreeSet::new();
        let tried = windows::<SECRET_BYTES>(memory, DIFFERENT, |window| {
            if rho(&expand(window)[..32]) == self.rho {
                let made = envelope::keypair(window).expect("any seed makes a key");
                assert_eq!(made.as_bytes(), self.public.as_bytes(), "the shortcut is one");
                forms.insert("X-Wing's seed");
            }
            if rho(window) == self.rho {
                forms.insert("ML-KEM's seed");
            }
            if MontgomeryPoint::mul_base_clamped(*window).to_bytes() == self.x25519 {
                forms.insert("X25519's scalar");
            }
            if *window == self.hash {
                forms.insert("ML-KEM's expanded key");
            }
        });
        (forms, tried)
    }
}

/// The writable memory of a process.
fn memory_of(pid: u32, folder: &Path) -> Vec<Vec<u8>> {
    let core = core_file::take(pid, Extent::Everything, folder);
    let memory = core_file::writable(&core).expect("a core");
    std::fs::remove_file(core).expect("our own");
    memory
}

/// The search finds each form where it is planted.
fn prove_search(folder: &Path) {
    let seed: [u8; SECRET_BYTES] =
        expand(b"a seed of thirty-two bytes; none")[..32].try_into().expect("32 bytes");
    let key = OneTimeKey::of(&envelope::keypair(&seed).expect("any seed makes a key"));
    let expanded = expand(&seed);
    let forms: [&[u8]; 4] = [&seed, &expanded[..32], &expanded[64..], &key.hash];
    let planted = Planted::start(Path::new(env!("CARGO_BIN_EXE_planted")), None, folder, &forms.join(&0));
    let (found, tried) = key.forms_in(&memory_of(planted.pid(), folder));
    assert_eq!(found.len(), forms.len(), "the search is blind: {found:?} of {tried} tried");
}

#[test]
fn the_recorded_traffic_opens_with_the_nodes_memory_and_does_not_give_the_key() {
    let mut site = Site::installed(SiteSpec { pool_bytes: 1 << 30, ..SiteSpec::default() });
    let (recorder, recordings) = record(site.node_config().listen.key);
    site.start_keyholder();
    site.hold_ceremony();
    site.start_node();
    site.enrol_node_at(recorder);
    site.create_volume(DISK, VolumeKind::Block, 64 << 20);
    site.wait_serving();
    let prk = keys_of(&recovered(&site), DISK).prk;
    let folder = tempfile::tempdir().expect("a temporary directory");
    prove_search(folder.path());

    // Of the session before the core: a node that stands still for long is dialled anew.
    let recording =
        recordings.lock().unwrap_or_else(PoisonError::into_inner).last().expect("a session").clone();
    let core = core_file::take(site.node().pid(), Extent::Everything, folder.path());
    let memory = core_file::writable(&core).expect("a core");
    let (to_node, from_node) = (protected(&recording.to_node), protected(&recording.from_node));
    let (mut asked, mut answered) = (None, None);
    let tried = windows::<{ tls::SECRET_BYTES }>(&memory, 32, |window| {
        let opener = Opener::new(window);
        asked = asked.take().or_else(|| opener.open_all(&to_node));
        answered = answered.take().or_else(|| opener.open_all(&from_node));
    });
    println!("{tried} places of the node's memory were tried as traffic secrets");
    let asked = asked.expect("the keyholder's traffic secret is in the node's memory");
    let answered = answered.expect("the node's traffic secret is in its memory");
    let grants: Vec<Grant> = messages(&asked, Kind::Grant);
    let grant = grants.iter().find(|grant| grant.label == DISK).expect("the push is on record");
    let evidence: Vec<Evidence> = messages(&answered, Kind::Evidence);
    let public = &evidence.first().expect("what it was sealed to is on record").envelope_key;

    let (found, tried) = OneTimeKey::of(public).forms_in(&memory);
    println!("{tried} places of the node's memory were tried as the one-time secret");
    assert!(found.is_empty(), "the one-time secret of a push lies in ordinary memory: {found:?}");
    assert!(tried > 10_000, "only {tried} were tried");
    let mut needles = Needles::new();
    needles.add_secret("PRK", &prk);
    let scan = image::search(&core, &needles).expect("a core");
    assert!(scan.findings.is_empty(), "{}", scan.describe(5));
    for bytes in [&grant.envelope, &asked, &answered] {
        needles.search(bytes, |_, label| panic!("{label:?} is in the recording"));
    }
    site.stop_node();
}
