//! Forged and replayed grants at a real node's key port, by somebody who has a keyholder's certificate and key, and
//! everything that was ever said on the wire. Only the grant-signing key is not theirs; where a test uses it, it plays
//! the true keyholder, from whose sessions the attacker has recorded.
//!
//! Each attempt is refused, leaves the keys that are held in force and none other, and an entry in the node's audit trail.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use harness::process::wait_for;
use harness::site::{DISK, PATIENCE, Site, SiteSpec, VolumeKind};
use identity::{Credentials, ExpectedPeer, NodeKey, Role, Trust, control_client};
use keyholder::api::VolumeEntry;
use lease::frame::FrameBuffer;
use lease::keyholder::{GrantOrder, KeyholderEvent, KeyholderSession, KeyholderSessionParams};
use lease::message::{Evidence, OnRollback, OnSeal};
use lease::{
    EXPORTER_BYTES, EXPORTER_LABEL, GrantRefusal, LocalSigner, SessionRefusal, Signer, SignerGone, envelope,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use security_tests::installation::{keys_of, recovered};
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
                    Some(KeyholderEvent::Challenged(..)) | None => {}
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
            Some(KeyholderEvent::Evidence(evidence, None)) => (hello, *evidence),
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
        known_state: None,
        on_rollback: OnRollback::Refuse,
        check,
        further: Vec::new(),
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

    /// Waits until the node's trail has so many entries of this event whose reason contains `why`.
    fn wait_recorded(&self, event: &str, why: &str, times: usize) {
        wait_for(&format!("{event} in the trail: {why}"), PATIENCE, || {
            let trail = self.site.node_trail();
            let is_it = |entry: &&serde_json::Value| {
                entry["event"] == event && entry["why"].as_str().is_some_and(|text| text.contains(why))
            };
            let count = trail.iter().filter(is_it).count();
            if count == times { Ok(()) } else { Err(format!("{count} times in {trail:#?}")) }
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
    scene.wait_recorded("session-refused", "the keyholder signs grants with", 1);
    scene.wait_recorded("session-refused", "the signature on the hello does not verify", 1);
    let status = scene.site.status();
    assert!(!status.seal.sealed && status.last_wipe == before, "the true session goes on");
    // What a push shows: the key port serves the true keyholder as before.
    let status = scene.site.wiped_by(Site::lose_power);
    assert_eq!(status.last_wipe.expect("it was wiped").cause, "power-loss");
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
    scene.wait_recorded("key-refused", &GrantRefusal::Replayed.to_string(), 1);
    scene.site.lose_power();
    assert!(
        matches!(wire.hear(), Some(KeyholderEvent::Wiped(receipt)) if receipt.grants == [GrantId([1; 16])])
    );

    // The recorded hello on a connection of the attacker's own: it is bound to the other connection's TLS.
    let mut wire = scene.dial();
    wire.send(&hello);
    scene.assert_refused(wire, &SessionRefusal::OtherSession);
    scene.wait_recorded("session-refused", "the hello belongs to another session", 1);

    // The recorded grant inside a later session of the true keyholder.
    let mut wire = scene.dial();
    wire.establish();
    wire.send(&grant);
    scene.assert_refused(wire, &SessionRefusal::OtherSession);
    scene.wait_recorded("session-refused", "the grant belongs to another session", 1);
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
        scene.wait_recorded("key-refused", &expected.to_string(), 1);
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
    scene.wait_recorded("session-refused", "the signature on the grant does not verify", 1);

    scene.site.start_keyholder();
    scene.site.unseal_keyholder();
    scene.site.wait_serving();
}
