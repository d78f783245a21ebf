//! Forged and replayed grants at a real node's key port, by somebody who has a keyholder's certificate and key, and
//! everything that was ever said on the wire. Only the grant-signing key is not theirs; where a test uses it, it plays
//! the true keyholder, from whose sessions the attacker has recorded.
//!
//! Each attempt is refused, leaves the keys that are held in force and none other, and a line in the node's log.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use harness::process::wait_for;
use harness::site::{DISK, PATIENCE, Site, SiteSpec, VolumeKind};
use identity::{Credentials, ExpectedPeer, NodeKey, Role, Trust, control_client};
use keyholder::api::VolumeEntry;
use lease::envelope::PublicEnvelopeKey;
use lease::frame::FrameBuffer;
use lease::keyholder::{GrantOrder, KeyholderEvent, KeyholderSession, KeyholderSessionParams};
use lease::message::{Evidence, OnSeal};
use lease::{
    EXPORTER_BYTES, EXPORTER_LABEL, GrantRefusal, LocalSigner, SessionRefusal, Signer, SignerGone, envelope,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use security_tests::installation::{keys_of, recovered};
use security_tests::locked::Locked;
use security_tests::memory::scan;
use security_tests::needles::Needles;
use security_tests::recovery::Recovered;
use units::{BootInstant, Fence, GrantId, RootEpoch, VolumeEpoch, VolumeId};

/// The machines' clock does not matter to a keyholder that sends one message and listens.
const NOW: BootInstant = BootInstant(1);

const LEASE_MS: u64 = 20_000;

/// Claims the pinned key and signs with another.
#[derive(Debug)]
struct Impostor {
    claimed: [u8; 32],
    own: LocalSigner,
}

impl Signer for Impostor {
    fn public_key(&self) -> [u8; 32] {
        self.claimed
    }

    fn sign(&self, digest: &[u8; 32]) -> Result<[u8; 64], SignerGone> {
        self.own.sign(digest)
    }
}

/// A connection to the node's key port under the keyholder's own certificate.
struct Wire {
    stream: StreamOwned<ClientConnection, TcpStream>,
    incoming: FrameBuffer,
    machine: KeyholderSession,
}

impl Wire {
    fn dial(site: &Site, signer: Arc<dyn Signer>) -> Self {
        let name = "keyholder".parse().expect("a name");
        let leaf = site.authority().leaf_files(Role::Keyholder, &name);
        let credentials = Credentials::load(&leaf.cert, &leaf.key).expect("the stolen certificate");
        let trust = Trust::load(&site.authority().trust_files()).expect("the issuers");
        let tls = control_client(&credentials, &trust, ExpectedPeer::role(Role::Node)).expect("TLS settings");
        let address = site.node_config().listen.key;
        let server = ServerName::try_from("127.0.0.1").expect("an address");
        let client = ClientConnection::new(tls, server).expect("a client");
        let socket = TcpStream::connect(address).expect("the key port");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut stream = StreamOwned::new(client, socket);
        stream.flush().expect("a handshake");
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).expect("a handshake");
        }
        let exporter = [0; EXPORTER_BYTES];
        let exporter =
            stream.conn.export_keying_material(exporter, EXPORTER_LABEL, None).expect("an exporter value");
        let node = NodeKey::load(&site.node_config().identity_key_file()).expect("the node's key");
        let machine = KeyholderSession::new(
            NOW,
            KeyholderSessionParams {
                keyholder: "keyholder".to_owned(),
                node: site.node_config().node_id,
                pinned: Some(node.public()),
                signer,
                root_epoch: RootEpoch(1),
                exporter,
                challenge: [7; 32],
            },
        );
        Self { stream, incoming: FrameBuffer::default(), machine }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush()).expect("the node listens");
    }

    /// The node's next word that says anything; `None` once it has hung up.
    fn hear(&mut self) -> Option<KeyholderEvent> {
        let mut chunk = [0; 16 * 1024];
        loop {
            while let Some(frame) = self.incoming.next_frame().expect("whole frames") {
                match self.machine.on_frame(NOW, &frame).expect("the node speaks the protocol") {
                    Some(KeyholderEvent::Challenged(_)) | None => {}
                    Some(event) => return Some(event),
                }
            }
            match self.stream.read(&mut chunk) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.incoming.push(&chunk[..count]),
            }
        }
    }

    /// Says hello and returns its bytes with the evidence.
    fn establish(&mut self) -> (Vec<u8>, Evidence) {
        let hello = self.machine.start().expect("a hello");
        self.send(&hello);
        match self.hear() {
            Some(KeyholderEvent::Evidence(evidence)) => (hello, *evidence),
            other => panic!("no evidence but {other:?}"),
        }
    }

    /// The bytes of a grant of this key.
    fn grant(&mut self, order: GrantOrder, prk: &[u8; 32]) -> Vec<u8> {
        self.machine
            .grant(order, |request| {
                envelope::seal(request.recipient, request.info, request.aad, prk, &mut [9; 64])
            })
            .expect("a grant")
    }
}

fn order(volume: &VolumeEntry, check: [u8; 16], grant: u8, fence: Fence) -> GrantOrder {
    GrantOrder {
        grant: GrantId([grant; 16]),
        volume: volume.volume,
        domain: volume.domain,
        epoch: VolumeEpoch(1),
        fence,
        lease_ms: LEASE_MS,
        label: DISK.to_owned(),
        kind: lease::message::VolumeKind::Block,
        on_seal: OnSeal::Hold,
        check,
    }
}

/// A node that serves one volume, its keyholder, and the keys to play both sides.
struct Scene {
    site: Site,
    recovered: Recovered,
    volume: VolumeEntry,
}

impl Scene {
    fn new() -> Self {
        let mut site = Site::installed(SiteSpec { pool_bytes: 1 << 30, ..SiteSpec::default() });
        site.start_keyholder();
        site.hold_ceremony();
        site.start_node();
        site.enrol_node();
        site.create_volume(DISK, VolumeKind::Block, 64 << 20);
        site.wait_serving();
        for line in [
            "a keyholder's session ended",
            "was refused",
            "the session with the node ended",
            "a granted key was not taken",
        ] {
            site.expect_log(line);
        }
        let recovered = recovered(&site);
        let volume = site.keyholder_status().volumes.remove(0);
        Self { site, recovered, volume }
    }

    fn true_signer(&self) -> Arc<LocalSigner> {
        Arc::new(LocalSigner::from_seed(&self.recovered.grant_signing_seed))
    }

    fn dial(&self) -> Wire {
        Wire::dial(&self.site, self.true_signer())
    }

    /// Waits until the node has warned of it.
    fn wait_logged(&mut self, text: &str) {
        let node = self.site.node();
        wait_for(text, PATIENCE, || {
            let found = node.log().iter().any(|line| line.contains(" WARN ") && line.contains(text));
            if found { Ok(()) } else { Err(node.tail()) }
        });
    }

    fn assert_refused(&self, mut wire: Wire, expected: &SessionRefusal) {
        match wire.hear() {
            Some(KeyholderEvent::NodeRefused(refusal)) => assert_eq!(&refusal, expected),
            other => panic!("{expected:?} was expected, not {other:?}"),
        }
        assert_eq!(wire.hear(), None, "the connection ends with it");
    }
}

#[test]
fn a_stolen_certificate_alone_opens_no_session_and_disturbs_none() {
    let mut scene = Scene::new();
    let before = scene.site.status().last_wipe;
    let pinned = scene.true_signer().public_key();
    let own = || LocalSigner::from_seed(&[5; 32]);
    let foreign = SessionRefusal::ForeignSigningKey { pinned: lease::KeyFingerprint::of(&pinned) };
    let attempts: [(Arc<dyn Signer>, SessionRefusal); 2] = [
        (Arc::new(own()), foreign),
        (Arc::new(Impostor { claimed: pinned, own: own() }), SessionRefusal::BadSignature),
    ];
    for (signer, refusal) in attempts {
        let mut wire = Wire::dial(&scene.site, signer);
        let hello = wire.machine.start().expect("a hello");
        wire.send(&hello);
        scene.assert_refused(wire, &refusal);
    }
    scene.wait_logged("a keyholder's session ended");
    let status = scene.site.status();
    assert!(!status.seal.sealed && status.last_wipe == before, "the true session goes on");
    // What a push shows: the key port serves the true keyholder as before.
    scene.site.lose_power();
    scene.site.wait_sealed("power-loss");
    scene.site.wait_serving();
    scene.site.stop_node();
}

/// The volume's key-check value, as the disk has it.
fn check_of(evidence: &Evidence, volume: VolumeId) -> [u8; 16] {
    evidence.volumes.iter().find(|present| present.volume == volume).expect("the node has the volume").check
}

#[test]
fn recorded_hellos_and_grants_are_void_and_forged_ones_refused() {
    let mut scene = Scene::new();
    let prk = keys_of(&scene.recovered, DISK).prk;
    scene.site.stop_keyholder();
    scene.site.lose_power();
    scene.site.wait_sealed("power-loss");

    // The true keyholder's session, on record with the attacker. Its grant works, once.
    let mut wire = scene.dial();
    let (hello, evidence) = wire.establish();
    let check = check_of(&evidence, scene.volume.volume);
    let fence = scene.volume.fence.next().expect("a fence");
    let grant = wire.grant(order(&scene.volume, check, 1, fence), &prk);
    wire.send(&grant);
    assert!(matches!(wire.hear(), Some(KeyholderEvent::Receipt(receipt)) if receipt.fence == fence));
    assert!(!scene.site.status().seal.sealed, "a true grant unseals: what follows fails for its own reasons");
    wire.send(&grant);
    scene.wait_logged(&GrantRefusal::Replayed.to_string());
    scene.site.lose_power();
    assert!(
        matches!(wire.hear(), Some(KeyholderEvent::Wiped(receipt)) if receipt.grants == [GrantId([1; 16])])
    );

    // The recorded hello on a connection of the attacker's own: it is bound to the other connection's TLS.
    let mut wire = scene.dial();
    wire.send(&hello);
    scene.assert_refused(wire, &SessionRefusal::OtherSession);

    // The recorded grant inside a later session of the true keyholder.
    let mut wire = scene.dial();
    wire.establish();
    wire.send(&grant);
    scene.assert_refused(wire, &SessionRefusal::OtherSession);
    assert!(scene.site.status().seal.sealed, "nothing that was recorded unseals");

    // Grants that only claim to be good, in sessions that are.
    let next = fence.next().expect("a fence");
    let forged = [
        (
            order(&scene.volume, check, 2, fence),
            prk,
            GrantRefusal::OldFence { offered: fence, highest: fence },
        ),
        (order(&scene.volume, check, 3, next), [0x42; 32], GrantRefusal::WrongKey),
        (order(&scene.volume, [0; 16], 4, next), prk, GrantRefusal::WrongCheck),
    ];
    for (order, prk, expected) in forged {
        let mut wire = scene.dial();
        wire.establish();
        let bytes = wire.grant(order, &prk);
        wire.send(&bytes);
        match wire.hear() {
            Some(KeyholderEvent::GrantRefused(refused)) => assert_eq!(refused.reason, expected),
            other => panic!("{expected:?} was expected, not {other:?}"),
        }
        scene.wait_logged(&expected.to_string());
        assert!(scene.site.status().seal.sealed, "{expected:?}");
    }

    // Bytes turned over on the way inside TLS: the signature is over all of them.
    let mut wire = scene.dial();
    wire.establish();
    let mut bytes = wire.grant(order(&scene.volume, check, 5, next.next().expect("a fence")), &prk);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    wire.send(&bytes);
    scene.assert_refused(wire, &SessionRefusal::BadSignature);

    scene.site.start_keyholder();
    scene.site.unseal_keyholder();
    scene.site.wait_serving();
}

/// Whether any 32 bytes at an even place of what `pid` has in writable memory are the secret half of `public`.
fn holds_secret_of(pid: u32, public: &PublicEnvelopeKey) -> (bool, usize) {
    /// Random bytes repeat themselves seldom: 32 with fewer different ones than this are no secret.
    const DIFFERENT_MIN: usize = 22;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("root reads maps");
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("root reads memory");
    let mut tried = std::collections::HashSet::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [start, end] = [range.0, range.1].map(|text| u64::from_str_radix(text, 16).expect("an address"));
        let mut bytes = vec![0; usize::try_from(end - start).expect("a mapping")];
        if memory.read_exact_at(&mut bytes, start).is_err() {
            // Secret memory is shown to nobody.
            continue;
        }
        for window in bytes.windows(envelope::SECRET_BYTES).step_by(8) {
            let different = window.iter().fold([false; 256], |mut seen, byte| {
                seen[usize::from(*byte)] = true;
                seen
            });
            if different.iter().filter(|seen| **seen).count() < DIFFERENT_MIN {
                continue;
            }
            let secret: [u8; envelope::SECRET_BYTES] = window.try_into().expect("a window");
            if tried.insert(secret)
                && envelope::keypair(&secret).is_ok_and(|found| found.as_bytes() == public.as_bytes())
            {
                return (true, tried.len());
            }
        }
    }
    (false, tried.len())
}

/// The recorder is given more than it could have: TLS is no obstacle to it at all. What it then holds of a push is the grant's
/// envelope, sealed to a public key that is in the recording too; the secret half is all that it lacks.
#[test]
fn the_recorded_traffic_and_the_nodes_memory_after_the_push_do_not_give_the_key() {
    let mut scene = Scene::new();
    scene.site.stop_keyholder();
    scene.site.lose_power();
    scene.site.wait_sealed("power-loss");
    let prk = keys_of(&scene.recovered, DISK).prk;
    let mut wire = scene.dial();
    let (_, evidence) = wire.establish();
    let public = &evidence.envelope_key;
    let check = check_of(&evidence, scene.volume.volume);
    let grant = wire.grant(order(&scene.volume, check, 1, scene.volume.fence.next().expect("a fence")), &prk);
    wire.send(&grant);
    match wire.hear() {
        Some(KeyholderEvent::Receipt(_)) => {}
        other => panic!("a receipt was expected, not {other:?}"),
    }
    // The envelope does open with the secret half: the search below looks for the right thing, and finds it elsewhere.
    let program = Path::new(env!("CARGO_BIN_EXE_locked"));
    let own = [0x2B, 0x71, 0xC3].repeat(11);
    let own: [u8; 32] = std::array::from_fn(|at| own[at] ^ u8::try_from(at * 7).expect("small"));
    let planted = Locked::start(program, "ordinary", &own);
    let own_public = envelope::keypair(&own).expect("a key");
    let (found, tried) = holds_secret_of(planted.pid(), &own_public);
    assert!(found, "the search is blind: {tried} tried");
    let pid = scene.site.node().pid();
    let (found, tried) = holds_secret_of(pid, public);
    println!("{tried} places of the node's memory were tried");
    assert!(!found, "the one-time secret of a push lies in ordinary memory");
    assert!(tried > 1_000, "only {tried} were tried");
    let mut needles = Needles::new();
    needles.add_secret("PRK", &prk);
    let scan = scan(pid, &needles).expect("root can scan");
    assert!(scan.findings.is_empty(), "{}", scan.describe(5));
    let mut found = 0;
    needles.search(&grant, |_, _| found += 1);
    assert_eq!(found, 0, "the grant on the wire is sealed");
    drop(wire);
    scene.site.stop_node();
}
