//! Nodes on machines with a TPM, a real one in software: what it proves opens doors, and each way of pretending is refused with its
//! reason and with what would put it right.

use std::sync::{Arc, Mutex};

use attestation::{Register, WIPES, extended};
use harness::tpm::SoftwareTpm;
use keyholder::api::{
    ApproveNode, Connection, KeyState, KeyholderStatus, NodeEntry, Outcome, PolicyPreview, Target, TpmState,
};
use lease::KeyFingerprint;
use lease::message::{Attestation, Credential, CredentialOpened, TpmStatement, WipeCause, WipeRecord};
use serde_json::json;
use tempfile::TempDir;
use tpm::{LoadedKey, Tpm};
use units::BootId;

use crate::fake_node::{FakeNode, Machine, SpeaksForMachine};
use crate::site::{Site, add_node, node_name};

/// A machine's TPM since it was started, and what its node's program does with it.
struct Started {
    tpm: Tpm,
    endorsement: LoadedKey,
    key: LoadedKey,
    wipes: Vec<WipeRecord>,
    trick: Trick,
    first: Option<Attestation>,
    software: Option<SoftwareTpm>,
}

/// What a node that wants keys it should not have does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trick {
    None,
    /// Sends what it has sent before.
    Replay,
    /// Has a TPM quote for the session that it holds with somebody else.
    Relay,
    /// Says that it was wiped less often than it was.
    HideWipes,
    /// Names a TPM that it does not have.
    BorrowedName,
    /// Says nothing.
    Silence,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Started>>);

impl SpeaksForMachine for Shared {
    fn attest(&mut self, for_whom: [u8; 32]) -> Attestation {
        let mut started = self.0.lock().unwrap();
        match (started.trick, started.first.clone()) {
            (Trick::Replay, Some(first)) => first,
            (Trick::Relay, _) => started.statement([9; 32]),
            (Trick::Silence, _) => Attestation { statement: Err("it is on fire".to_owned()) },
            _ => started.statement(for_whom),
        }
    }

    fn open(&mut self, credential: Credential) -> CredentialOpened {
        let mut started = self.0.lock().unwrap();
        let Credential { object, seed } = credential;
        let credential = attestation::Credential { object, seed };
        let (key, endorsement) = (started.key.clone(), started.endorsement.clone());
        let found = started.tpm.activate(&key, &endorsement, &credential);
        let secret = found.map_err(|error| error.to_string()).map(|found| found.try_into().unwrap());
        CredentialOpened { secret }
    }
}

impl Started {
    fn statement(&mut self, for_whom: [u8; 32]) -> Attestation {
        let key = self.key.clone();
        let quote = match self.tpm.quote(&key, &for_whom) {
            Ok(quote) => quote,
            Err(error) => return Attestation { statement: Err(error.to_string()) },
        };
        let told = if self.trick == Trick::HideWipes { &[] } else { &self.wipes[..] };
        let mut endorsement_key = self.endorsement.public.clone();
        if self.trick == Trick::BorrowedName {
            // Another point of the curve.
            let other = TempDir::new().unwrap();
            let software = SoftwareTpm::start(other.path());
            endorsement_key = Tpm::open(software.socket()).unwrap().endorsement_key().unwrap().public;
        }
        let statement = TpmStatement {
            endorsement_key,
            certificate: Vec::new(),
            attestation_key: self.key.public.clone(),
            quote: quote.statement,
            signature: quote.signature,
            registers: quote.registers.0.to_vec(),
            wipes_began_at: [0; 32],
            wipes: told.to_vec(),
            event_log: Vec::new(),
        };
        let said = Attestation { statement: Ok(statement) };
        self.first.get_or_insert_with(|| said.clone());
        said
    }
}

/// Starts the machine whose TPM has its state in `state`: registers are zero, and then firmware and loader extend some.
fn power_on(state: &TempDir, measured: &[(Register, [u8; 32])]) -> Shared {
    let software = SoftwareTpm::start(state.path());
    let mut tpm = Tpm::open(software.socket()).unwrap();
    for (register, digest) in measured {
        tpm.extend(*register, digest).unwrap();
    }
    let (endorsement, key) = (tpm.endorsement_key().unwrap(), tpm.attestation_key().unwrap());
    let (wipes, trick, first) = (Vec::new(), Trick::None, None);
    let software = Some(software);
    Shared(Arc::new(Mutex::new(Started { tpm, endorsement, key, wipes, trick, first, software })))
}

impl Shared {
    fn machine(&self) -> Machine {
        Machine { boot: None, tpm: Some(Box::new(self.clone())) }
    }

    fn power_off(&self) {
        self.0.lock().unwrap().software = None;
    }

    fn play(&self, trick: Trick) {
        self.0.lock().unwrap().trick = trick;
    }

    /// What a node does after each wipe.
    fn measure(&self, wipe: WipeRecord, boot: BootId) {
        let mut started = self.0.lock().unwrap();
        started.wipes.push(wipe);
        started.tpm.extend(WIPES, &wipe.measurement(boot)).unwrap();
    }
}

async fn apply(site: &Site, policy: &str) {
    let body = json!({ "text": format!("version = 1\n{policy}") });
    let _: PolicyPreview = site.officer().post("/v1/policy", &body).await.unwrap();
}

async fn approve(site: &Site, node: &FakeNode) -> NodeEntry {
    let fingerprint = KeyFingerprint::of(&node.identity_key()).to_string();
    let request = ApproveNode { fingerprint, tpm: None };
    site.officer().post(&format!("/v1/nodes/{}/approve", node_name(1)), &request).await.unwrap()
}

/// A site with a node that runs on this machine, whose TPM it has shown.
async fn site_with(machine: Machine) -> (Site, FakeNode) {
    let site = Site::new().await;
    site.ceremony().await;
    let node = site.fake_node_in(1, machine).await;
    node.pin(site.grant_signing_key().await);
    let _: NodeEntry = site.officer().post("/v1/nodes", &add_node(1, &node)).await.unwrap();
    site.wait("what the node claims", |status| status.nodes[0].fingerprint.is_some()).await;
    (site, node)
}

/// The same, approved and serving the volume `db`.
async fn serving_on(machine: Machine) -> (Site, FakeNode) {
    let (site, node) = site_with(machine).await;
    assert_eq!(approve(&site, &node).await.tpm.unwrap().state, TpmState::Approved);
    assert_eq!(site.create("db", 1).await.key, KeyState::Unlocked);
    (site, node)
}

/// Waits until the key is kept back, and checks that the reason has these words and a next step.
async fn refused_for(site: &Site, node: &FakeNode, words: &str) -> KeyholderStatus {
    let refused = |status: &KeyholderStatus| {
        let reason = status.volumes[0].reason.as_deref().unwrap_or_default();
        status.volumes[0].key == KeyState::Refused && reason.contains(words)
    };
    let status = site.wait(words, refused).await;
    let reason = status.volumes[0].reason.clone().unwrap();
    assert!(reason.contains("; would need "), "no next step: {reason}");
    assert!(node.keys().is_empty(), "{reason}");
    status
}

async fn serves(site: &Site) {
    site.wait("a served volume", |status| status.volumes[0].key == KeyState::Unlocked).await;
}

async fn restarted(site: &Site, old: &FakeNode, machine: Machine) -> FakeNode {
    let node = site.restart_node_in(1, old, machine).await;
    node.pin(site.grant_signing_key().await);
    node
}

/// Starts the machine again, after which its registers hold this.
async fn rebooted(
    site: &Site,
    old: &FakeNode,
    tpm: &mut Shared,
    (state, measured): (&TempDir, &[(Register, [u8; 32])]),
) -> FakeNode {
    old.kill();
    tpm.power_off();
    *tpm = power_on(state, measured);
    restarted(site, old, tpm.machine()).await
}

fn state() -> TempDir {
    TempDir::new().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_approved_with_its_tpm_and_told_from_a_copy_of_it() {
    let (mine, foreign) = (state(), state());
    let mut tpm = power_on(&mine, &[]);
    let (site, node) = site_with(tpm.machine()).await;
    apply(&site, "[push]\nattestation = \"required\"\n").await;
    let claimed = site.node_entry(1).await.tpm.unwrap();
    assert_eq!((claimed.state, claimed.wipes), (TpmState::Claimed, Some(0)));
    let path = format!("/v1/nodes/{}/approve", node_name(1));
    let fingerprint = KeyFingerprint::of(&node.identity_key()).to_string();
    let other = ApproveNode { fingerprint: fingerprint.clone(), tpm: Some("00".repeat(8)) };
    assert_eq!(site.refused(&site.officer(), &path, &other).await, (409, "other-fingerprint".to_owned()));
    let right = ApproveNode { fingerprint, tpm: claimed.fingerprint.clone() };
    let entry: NodeEntry = site.officer().post(&path, &right).await.unwrap();
    assert_eq!(entry.tpm.unwrap().state, TpmState::Approved);
    assert_eq!(site.create("db", 1).await.key, KeyState::Unlocked);

    let copy = restarted(&site, &node, power_on(&foreign, &[]).machine()).await;
    let status = refused_for(&site, &copy, "this may be a copy of the node").await;
    assert_eq!(status.nodes[0].tpm.as_ref().unwrap().state, TpmState::Refused);
    assert_ne!(status.nodes[0].tpm.as_ref().unwrap().fingerprint, claimed.fingerprint);
    let bare = restarted(&site, &copy, Machine::default()).await;
    refused_for(&site, &bare, "it was approved with a TPM, and comes without").await;
    let _back = rebooted(&site, &bare, &mut tpm, (&mine, &[])).await;
    serves(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_is_approved_with_the_key_in_whose_session_it_spoke_and_with_no_other() {
    let mine = state();
    let (site, node) = site_with(power_on(&mine, &[]).machine()).await;
    let path = format!("/v1/nodes/{}/approve", node_name(1));
    let approve_key = async |key: [u8; 32]| -> NodeEntry {
        let request = ApproveNode { fingerprint: hex::encode(key), tpm: None };
        site.officer().post(&path, &request).await.unwrap()
    };
    for key in [[9; 32], [9; 32], node.identity_key()] {
        assert_eq!(approve_key(key).await.tpm, None, "what was heard was the word of no such key");
    }
    let connected = |status: &KeyholderStatus| status.nodes[0].connection == Connection::Connected;
    site.wait("a session under the pinned key", connected).await;
    assert_eq!(approve_key(node.identity_key()).await.tpm.unwrap().state, TpmState::Approved);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tpm_a_policy_may_want_a_persons_approval_or_give_no_key_at_all() {
    let (site, node) = site_with(Machine::default()).await;
    assert_eq!(approve(&site, &node).await.tpm, None);
    assert_eq!(site.create("db", 1).await.key, KeyState::Unlocked);
    apply(&site, "[push]\nattestation = \"approve\"\n").await;
    for _ in 0..2 {
        node.wipe(WipeCause::PowerLoss);
        let status = refused_for(&site, &node, "no approved TPM speaks for node-1").await;
        assert!(status.volumes[0].reason.as_ref().unwrap().contains("a person's approval"));
        let pushed: Outcome = site.operator().post("/v1/push", &Target::All).await.unwrap();
        assert!(pushed.nodes[0].confirmed, "{pushed:?}");
        serves(&site).await;
    }
    // Neither renewed any more.
    apply(&site, "[push]\nattestation = \"required\"\n").await;
    refused_for(&site, &node, "no approved TPM speaks for node-1").await;
    let pushed: Outcome = site.operator().post("/v1/push", &Target::All).await.unwrap();
    assert!(!pushed.nodes[0].confirmed, "not for people either: {pushed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_not_as_it_was_approved_is_refused_until_a_person_looks_at_it() {
    let mine = state();
    let usual = [(Register::SECURE_BOOT, [1; 32]), (Register::CONFIGURATION, [2; 32])];
    let mut tpm = power_on(&mine, &usual);
    let (site, mut node) = serving_on(tpm.machine()).await;
    for (changed, words) in [
        (Register::FIRMWARE, "its firmware is not that with which it was approved (PCR 0)"),
        (Register::SECURE_BOOT, "whether and with which keys its firmware checks what it starts"),
        (Register::CONFIGURATION, "what lies beside its image (configuration, command line)"),
        (Register::EXTENSIONS, "the extensions of its image"),
    ] {
        let measured = [usual.as_slice(), &[(changed, [3; 32])]].concat();
        node = rebooted(&site, &node, &mut tpm, (&mine, &measured)).await;
        refused_for(&site, &node, words).await;
    }
    // Of the last one a person says that it is as it should be.
    assert_eq!(approve(&site, &node).await.tpm.unwrap().state, TpmState::Approved);
    serves(&site).await;
    let _usual = rebooted(&site, &node, &mut tpm, (&mine, &usual)).await;
    site.wait("what was usual before", |status| status.volumes[0].key == KeyState::Refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_to_machines_that_started_an_allowed_image_and_nothing_before_it() {
    let image = |name: &str, digest: u8| {
        let pcr4 = hex::encode(extended([0; 32], [digest; 32]));
        let pcr11 = hex::encode(extended([0; 32], [digest + 1; 32]));
        format!("[[image]]\nname = \"{name}\"\npcr4 = \"{pcr4}\"\npcr11 = \"{pcr11}\"\n")
    };
    let starts =
        |loader: u8, parts: u8| [(Register::BOOT_LOADER, [loader; 32]), (Register::IMAGE, [parts; 32])];
    let mine = state();
    let mut tpm = power_on(&mine, &starts(20, 21));
    let (site, mut node) = serving_on(tpm.machine()).await;
    let known = image("server-6", 10) + &image("server-7", 20);
    apply(&site, &format!("[push]\nimages = [\"server-7\"]\n{known}")).await;
    assert_eq!(site.volume("db").await.key, KeyState::Unlocked);
    for (loader, parts, words) in [
        (10, 11, "node-1 runs server-6, and server-7 may hold keys only"),
        (30, 31, "runs an image that the policy does not know (PCR 11 is"),
        // A kernel of somebody's, which extends PCR 11 as the image's stub would.
        (30, 21, "what its firmware started is something else"),
    ] {
        node = rebooted(&site, &node, &mut tpm, (&mine, &starts(loader, parts))).await;
        refused_for(&site, &node, words).await;
    }
    let _node = rebooted(&site, &node, &mut tpm, (&mine, &starts(20, 21))).await;
    serves(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_counts_in_the_session_that_it_was_made_for_and_in_no_other() {
    let mine = state();
    let tpm = power_on(&mine, &[]);
    let (site, mut node) = serving_on(tpm.machine()).await;
    for (trick, words) in [
        (Trick::Replay, "it was relayed or sent again"),
        (Trick::Relay, "it was relayed or sent again"),
        (Trick::Silence, "its TPM said nothing: it is on fire"),
    ] {
        tpm.play(trick);
        node = restarted(&site, &node, tpm.machine()).await;
        refused_for(&site, &node, words).await;
    }
    tpm.play(Trick::None);
    let _node = restarted(&site, &node, tpm.machine()).await;
    serves(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_that_cannot_open_the_credential_of_the_one_that_it_names_is_not_approved() {
    let mine = state();
    let tpm = power_on(&mine, &[]);
    tpm.play(Trick::BorrowedName);
    let (site, node) = site_with(tpm.machine()).await;
    let entry = site.node_entry(1).await.tpm.unwrap();
    assert_eq!(entry.state, TpmState::Refused);
    let problem = entry.problem.unwrap();
    assert!(
        problem.contains("did not open the credential") && problem.contains("ActivateCredential"),
        "{problem}"
    );
    assert_eq!(
        approve(&site, &node).await.tpm.map(|tpm| tpm.state),
        Some(TpmState::Refused),
        "the key alone"
    );
    assert_eq!(site.create("db", 1).await.key, KeyState::Unlocked);
    apply(&site, "[push]\nattestation = \"required\"\n").await;
    refused_for(&site, &node, "no approved TPM speaks for node-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wipe_stays_in_the_tpm_until_the_machine_is_started_again() {
    let mine = state();
    let tpm = power_on(&mine, &[]);
    let (site, node) = serving_on(tpm.machine()).await;
    // A wipe that the TPM never learned of: its quote is from before.
    node.wipe(WipeCause::PowerLoss);
    let wipe = node.last_wipe().unwrap();
    refused_for(&site, &node, "its quote is from before a wipe that the node itself signed (power-loss)")
        .await;
    // Nor is that forgotten by a program that says nothing of it.
    let again = Machine { boot: Some(node.boot()), ..tpm.machine() };
    let node = restarted(&site, &node, again).await;
    for _ in 0..2 {
        let redial = keyholder::api::ChangeNode::default();
        let _: NodeEntry =
            site.operator().patch(&format!("/v1/nodes/{}", node_name(1)), &redial).await.unwrap();
        refused_for(&site, &node, "its quote is from before a wipe").await;
    }
    // Measured, and told, all is well.
    tpm.measure(wipe, node.boot());
    let again = Machine { boot: Some(node.boot()), ..tpm.machine() };
    let node = restarted(&site, &node, again).await;
    serves(&site).await;
    assert_eq!(site.node_entry(1).await.tpm.unwrap().wipes, Some(1));
    // Measured, and kept quiet about.
    tpm.play(Trick::HideWipes);
    let again = Machine { boot: Some(node.boot()), ..tpm.machine() };
    let node = restarted(&site, &node, again).await;
    refused_for(&site, &node, "do not give the register of wipes (PCR 14)").await;
    // A program that was started since knows nothing of an intrusion. The TPM does.
    tpm.play(Trick::None);
    tpm.measure(WipeRecord { cause: WipeCause::Intrusion, ..wipe }, node.boot());
    let again = Machine { boot: Some(node.boot()), ..tpm.machine() };
    let node = restarted(&site, &node, again).await;
    let status = site.wait("the latch", |status| status.nodes[0].latch.is_some()).await;
    assert_eq!(status.nodes[0].latch.as_ref().unwrap().cause, "intrusion");
    assert!(node.keys().is_empty());
}
