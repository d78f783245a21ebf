//! A volume's key gets a new epoch while a client writes and verifies, and the node is killed on the way, again and again: no wrong
//! byte, the old epoch gone at the end, and its secret with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use admin::api::{RekeyStatus, VolumeStatus};
use config::RekeyConfig;
use harness::process::wait_for;
use harness::random::{Random, seed};
use harness::site::{DISK, Site, SiteSpec};
use identity::Role;
use keyholder::api::{KeyState, VolumeEntry, VolumeKind};
use nbd_server::client::{Client, Endpoint};
use units::VolumeEpoch;

/// Everything that is waited for takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const VOLUME_BYTES: usize = 48 << 20;
/// What one write changes.
const PIECE: usize = 16 << 10;
/// Times that the node is killed on the way.
const KILLS: usize = 4;

fn volume(site: &Site) -> VolumeEntry {
    let volumes: Vec<VolumeEntry> =
        site.wait(site.keyholder_as(Role::Operator, "op").get("/v1/volumes")).expect("volumes");
    volumes.into_iter().find(|volume| volume.label == DISK).expect("the disk")
}

fn rotate(site: &Site) -> VolumeEntry {
    let path = format!("/v1/volumes/{DISK}/rotate");
    let operator = site.keyholder_as(Role::Operator, "op");
    site.wait(operator.post(&path, &serde_json::json!({}))).expect("a new epoch")
}

fn rekey(site: &Site) -> Option<RekeyStatus> {
    let volumes: Vec<VolumeStatus> = site.wait(site.node_admin().get("/v1/volumes")).expect("volumes");
    volumes.into_iter().find_map(|volume| volume.rekey)
}

fn random_bytes(random: &mut Random, len: usize) -> Vec<u8> {
    std::iter::repeat_with(|| random.bits().to_le_bytes()).flatten().take(len).collect()
}

/// A client that connects again and sends again what was not answered, as a kernel's does.
struct Resending<'a> {
    endpoint: &'a Endpoint,
    client: Option<Client>,
}

impl Resending<'_> {
    fn until_done<T>(&mut self, mut request: impl FnMut(&mut Client) -> Option<T>) -> T {
        loop {
            if self.client.is_none() {
                self.client = Client::connect(self.endpoint, DISK).ok();
            }
            if let Some(done) = self.client.as_mut().and_then(&mut request) {
                return done;
            }
            self.client = None;
            std::thread::yield_now();
        }
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        self.until_done(|client| client.write(at as u64, data, true).ok());
    }

    fn read(&mut self, at: usize, out: &mut [u8]) {
        self.until_done(|client| client.read(at as u64, out).ok());
    }
}

/// Everything that the disk holds is what was written.
fn verify(endpoint: &Endpoint, expected: &[u8], when: &str) {
    let mut client = Resending { endpoint, client: None };
    let mut found = vec![0; 1 << 20];
    for (nth, part) in expected.chunks(found.len()).enumerate() {
        client.read(nth << 20, &mut found[..part.len()]);
        assert!(found[..part.len()] == *part, "{when}: MiB {nth} is not what was written");
    }
}

#[test]
fn a_rotation_under_load_survives_kills_and_leaves_nothing_under_the_old_key() {
    let mut site = Site::installed(SiteSpec { pool_bytes: 1 << 30, ..SiteSpec::default() });
    site.change_node_config(|config| config.rekey = RekeyConfig { share_percent: 100, mib_per_s: 8 });
    // The disk is written by the client and the walk at once, and flushed with each write.
    site.expect_log("a slow operation");
    site.start_keyholder();
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    site.create_volume(DISK, VolumeKind::Block, VOLUME_BYTES as u64);
    site.wait_serving();
    let endpoint = Endpoint::unix(site.nbd_socket());
    let mut random = Random::new(seed());
    let mut expected = random_bytes(&mut random, VOLUME_BYTES);
    let mut client = Client::connect(&endpoint, DISK).expect("an unsealed export");
    for (nth, part) in expected.chunks(1 << 20).enumerate() {
        client.write((nth << 20) as u64, part, false).expect("a write");
    }
    client.flush().expect("a flush");
    drop(client);

    let (done, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let content = &mut expected;
    let mut killed_midway = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Resending { endpoint: &endpoint, client: None };
            let mut random = Random::new(!seed());
            let mut found = vec![0; PIECE];
            while !done.load(Ordering::Relaxed) {
                let at = usize::try_from(random.bits()).unwrap_or(usize::MAX) % (VOLUME_BYTES - PIECE);
                if random.bits().is_multiple_of(4) {
                    client.read(at, &mut found);
                    assert!(found == content[at..at + PIECE], "at {at}: not what was written");
                } else {
                    let data = random_bytes(&mut random, PIECE);
                    client.write(at, &data);
                    content[at..at + PIECE].copy_from_slice(&data);
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        // Whatever fails here, the other thread must come to its end.
        let stop = StopAtEnd(&done);
        let rotated = rotate(&site);
        assert_eq!((rotated.epoch, rotated.key), (VolumeEpoch(2), KeyState::Unlocked));
        let rotation = rotated.rotation.expect("two epochs");
        assert_eq!((rotation.older, rotation.written), (vec![VolumeEpoch(1)], Some(VolumeEpoch(2))));
        for _ in 0..KILLS {
            let before = writes.load(Ordering::Relaxed);
            wait_for("the walk and the client to go on", PATIENCE, || {
                let status = rekey(&site);
                let moves = status.as_ref().is_some_and(|status| status.bytes_moved > 1 << 20);
                let through = volume(&site).rotation.is_none();
                match (moves || through) && writes.load(Ordering::Relaxed) > before + 10 {
                    true => Ok(()),
                    false => Err(format!("{status:?}")),
                }
            });
            killed_midway += usize::from(rekey(&site).is_some_and(|status| status.bytes_left > 0));
            site.kill_node();
            site.start_node();
            site.wait_serving();
        }
        wait_for("the end of the old epoch", PATIENCE, || match volume(&site).rotation {
            None => Ok(()),
            rotation => Err(format!("{rotation:?}, {:?}", rekey(&site))),
        });
        drop(stop);
    });
    println!("{} writes, {killed_midway} kills on the way", writes.load(Ordering::Relaxed));
    assert!(killed_midway >= 2, "the walk was over too soon to be killed");
    verify(&endpoint, &expected, "after the old secret is gone");
    let events: Vec<String> = site
        .keyholder_trail()
        .iter()
        .filter_map(|entry| entry["event"].as_str().map(str::to_owned))
        .filter(|event| event.starts_with("epoch-"))
        .collect();
    assert_eq!(events.iter().filter(|event| *event == "epoch-begun").count(), 1, "{events:?}");
    assert_eq!(events.last().map(String::as_str), Some("epoch-retired"), "{events:?}");

    // Only the new key comes back, and it is enough.
    site.kill_node();
    site.start_node();
    site.wait_serving();
    assert_eq!(rekey(&site), None, "one key");
    assert_eq!(site.status().key_memory.keys, 1);
    verify(&endpoint, &expected, "with the new key alone");
}

/// Lets the other thread end, also where this one fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
