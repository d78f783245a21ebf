//! Every way of forgetting: what clients see at that moment, what the node says afterwards, and how it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use admin::api::NodeStatus;
use harness::client::{client, run};
use harness::process::wait_for;
use harness::s3::{S3Client, S3Error};
use harness::site::{DISK, OnSeal, PATIENCE, PushPolicy, Site, SiteSpec};
use keyholder::api::Connection;
use nbd_server::client::{Client, ClientError, Endpoint, RefusalKind};
use nix::sys::signal::Signal;

const KIB: usize = 1024;

/// A site whose keys come back when a person says so, with data on both heads.
struct Prepared {
    site: Site,
    s3: S3Client,
}

fn block(fill: u8) -> Vec<u8> {
    (0..64 * KIB).map(|at| fill ^ u8::try_from(at % 251).expect("below 251")).collect()
}

fn nbd(site: &Site) -> Client {
    Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export")
}

impl Prepared {
    fn new(spec: &SiteSpec) -> Self {
        let site = Site::serving(SiteSpec { plain: true, ..spec.clone() });
        let key = site.create_user("tester");
        site.create_bucket("bucket");
        let address = site.node_config().listen.s3.expect("the site serves S3");
        let mut s3 = S3Client::new(address, "bucket", &key.access_key, &key.secret_key);
        s3.put("object", block(7)).expect("an object is stored");
        let mut client = nbd(&site);
        client.write(0, &block(1), false).expect("a write");
        client.flush().expect("a flush");
        Self { site, s3 }
    }

    /// What was acknowledged is there, on both heads.
    fn check_data(&mut self) {
        let mut read = vec![0; 64 * KIB];
        nbd(&self.site).read(0, &mut read).expect("a read");
        assert!(read == block(1), "the volume holds what was flushed");
        self.s3.hang_up();
        let object = self.s3.get("object").expect("an answer").expect("the object is there");
        assert!(object == block(7), "the object holds what was put");
    }

    /// What a sealed node shows to everyone.
    fn check_sealed(&mut self, cause: &str) -> NodeStatus {
        let status = self.site.wait_sealed(cause);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        assert!(now - status.seal.since_unix_s < 60 && status.seal.since_boot_ns <= status.now_boot_ns);
        assert_eq!(status.key_memory.keys, 0);
        assert_eq!(status.seal.lease_deadline_boot_ns, None);
        assert_eq!(status.last_wipe.as_ref().expect("a wipe").cause, cause);
        assert!(status.volumes.iter().all(|volume| !volume.unsealed && volume.label.is_none()), "{status:?}");
        match Client::connect(&Endpoint::unix(self.site.nbd_socket()), DISK) {
            Err(ClientError::Refused { kind: RefusalKind::Shutdown, .. }) => {}
            other => panic!("a sealed export was to be refused with ERR_SHUTDOWN: {:?}", other.map(|_| ())),
        }
        self.s3.hang_up();
        match self.s3.get("object") {
            Err(S3Error::Refused { status: 503, retry_after: Some(seconds), .. }) => {
                assert!(seconds.parse::<u32>().is_ok_and(|seconds| seconds > 0), "Retry-After: {seconds}");
            }
            other => panic!("sealed S3 was to answer 503 with Retry-After: {other:?}"),
        }
        assert_eq!(http_status(&self.site, "livez"), 200);
        assert_eq!(http_status(&self.site, "readyz"), 503);
        assert_eq!(http_status(&self.site, "metrics"), 200);
        status
    }
}

fn http_status(site: &Site, path: &str) -> u16 {
    let mut curl = client("curl");
    curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]);
    let answer = run(curl.arg(format!("http://{}/{path}", site.metrics_address()))).expect_success();
    answer.trim().parse().expect("a status code")
}

/// A client that writes without a pause and says how its last request ended.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<ClientError>>,
}

impl Writer {
    fn start(site: &Site) -> Self {
        let mut client = nbd(site);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let (first, begun) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut answered = 0;
            while !seen.load(Ordering::Relaxed) {
                let at = (1 + answered % 100) * 64 * KIB as u64;
                if let Err(error) = client.write(at, &block(9), answered % 4 == 0) {
                    return Some(error);
                }
                answered += 1;
                let _ = first.send(());
            }
            None
        });
        begun.recv().expect("the writer writes");
        Self { stop, thread }
    }

    /// How the connection ended.
    fn ended(self) -> ClientError {
        let start = Instant::now();
        while !self.thread.is_finished() {
            assert!(start.elapsed() < PATIENCE, "a connection outlives its key");
            std::thread::sleep(Duration::from_millis(2));
        }
        self.thread.join().expect("the writer ends").expect("nobody stopped the writer")
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let error = self.thread.join().expect("the writer ends");
        assert!(error.is_none(), "{error:?}");
    }
}

/// The connection of a reconnecting client ends without an answer to what is in flight.
fn assert_closed_unanswered(error: &ClientError) {
    assert!(
        matches!(error, ClientError::Closed { during: Some(_), .. }),
        "closed without an answer: {error:?}"
    );
}

fn approved() -> SiteSpec {
    SiteSpec { push: PushPolicy::Approve, ..SiteSpec::default() }
}

#[test]
fn power_loss_forgets_and_a_new_push_restores_everything() {
    let mut prepared = Prepared::new(&approved());
    for _ in 0..2 {
        let writer = Writer::start(&prepared.site);
        let mut idle = nbd(&prepared.site);
        prepared.site.lose_power();
        assert_closed_unanswered(&writer.ended());
        assert!(
            matches!(idle.read(0, &mut [0; 512]), Err(ClientError::Closed { .. })),
            "an idle connection closes"
        );
        let status = prepared.check_sealed("power-loss");
        println!("wiped in {} ns", status.last_wipe.expect("a wipe").wipe_ns);
        prepared.site.push_until_serving();
        prepared.check_data();
    }
}

/// Requests that the NBD head has answered.
fn nbd_writes(site: &Site) -> u64 {
    let mut curl = client("curl");
    let metrics =
        run(curl.args(["--silent", &format!("http://{}/metrics", site.metrics_address())])).expect_success();
    let of_writes =
        |line: &&str| line.starts_with("nbd_requests_total") && line.contains("operation=\"write\"");
    let line = metrics.lines().find(of_writes).expect("the head counts writes");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// QEMU holds what is in flight, reconnects, and sends it again: whoever copies sees a pause and no error.
#[test]
fn a_copy_that_power_loss_interrupts_goes_on_after_the_push() {
    let prepared = Prepared::new(&approved());
    let site = &prepared.site;
    let source = site.dir().join("source");
    let words =
        (0..(192_u64 << 20) / 8).flat_map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    std::fs::write(&source, words.collect::<Vec<u8>>()).expect("space for a test file");
    let target = format!(
        "driver=nbd,server.type=unix,server.path={},export={DISK},reconnect-delay=60",
        site.nbd_socket().display()
    );
    // Slow enough to be interrupted twice: it takes eight seconds.
    let mut convert = client("qemu-img");
    convert
        .args(["convert", "-n", "-r", "24M", "-f", "raw"])
        .arg(&source)
        .args(["--target-image-opts", &target]);
    let copying = std::thread::spawn(move || run(&mut convert));
    let mut seen = nbd_writes(site);
    for _ in 0..2 {
        seen = wait_for("a copy under way", PATIENCE, || {
            assert!(!copying.is_finished(), "the copy ended before its time");
            let now = nbd_writes(site);
            if now >= seen + 10 { Ok(now) } else { Err(format!("{now} writes")) }
        });
        site.lose_power();
        site.wait_sealed("power-loss");
        site.push_until_serving();
    }
    copying.join().expect("the copy ends").expect_success();
    let uri = site.nbd_unix_uri(DISK);
    run(client("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&source).arg(&uri))
        .expect_success();
}

#[test]
fn after_power_loss_a_keyholder_with_an_automatic_policy_pushes_again_by_itself() {
    let mut prepared = Prepared::new(&SiteSpec::default());
    let before = prepared.site.status().key_memory.generation;
    prepared.site.lose_power();
    wait_for("a wipe and a new push", PATIENCE, || {
        let status = prepared.site.status();
        let again = status.key_memory.generation > before && !status.seal.sealed;
        if again { Ok(()) } else { Err(format!("{:?}", status.seal)) }
    });
    prepared.site.wait_serving();
    prepared.check_data();
}

#[test]
fn an_operators_wipe_forgets_and_latches() {
    let mut prepared = Prepared::new(&approved());
    let writer = Writer::start(&prepared.site);
    let wiped = prepared.site.wipe();
    assert_eq!(wiped.keys, 2);
    assert_closed_unanswered(&writer.ended());
    prepared.check_sealed("admin");
    prepared.site.wait_heard_of_wipe();
    let refused = prepared.site.act("/v1/push");
    assert!(
        refused.nodes.iter().all(|node| !node.confirmed),
        "a latch holds until an officer lifts it: {refused:?}"
    );
    prepared.check_sealed("admin");
    prepared.site.act("/v1/unlatch");
    prepared.site.push_until_serving();
    prepared.check_data();
}

/// Revoke and lockdown: sealed at once, and no push comes by itself, not even to a node that starts anew.
fn keyholder_takes_keys_back(act: &str, cause: &str) {
    let mut prepared = Prepared::new(&SiteSpec::default());
    // What was on its way may become durable after the session has ended that would have told of it.
    prepared.site.expect_log("changed the volume's data without its key");
    let writer = Writer::start(&prepared.site);
    let outcome = prepared.site.act(act);
    assert!(outcome.nodes.iter().all(|node| node.confirmed), "{outcome:?}");
    println!("{act} confirmed: {:?}", outcome.nodes);
    assert_closed_unanswered(&writer.ended());
    prepared.check_sealed(cause);
    prepared.site.stop_node();
    prepared.site.start_node();
    wait_for("the keyholder to meet the node again", PATIENCE, || {
        let node = prepared.site.keyholder_status().nodes.remove(0);
        if node.connection == Connection::Connected { Ok(()) } else { Err(format!("{node:?}")) }
    });
    prepared.site.expect_latched();
    // A keyholder that forgot its latch would push after its own restart.
    prepared.site.stop_keyholder();
    prepared.site.start_keyholder();
    prepared.site.unseal_keyholder();
    wait_for("the keyholder to meet the node again", PATIENCE, || {
        let node = prepared.site.keyholder_status().nodes.remove(0);
        if node.connection == Connection::Connected { Ok(()) } else { Err(format!("{node:?}")) }
    });
    assert!(prepared.site.status().seal.sealed, "{act} latches over a restart of the keyholder");
    prepared.site.act("/v1/unlatch");
    prepared.site.push_until_serving();
    prepared.check_data();
}

#[test]
fn a_revoke_forgets_and_latches() {
    keyholder_takes_keys_back("/v1/revoke", "revoked");
}

#[test]
fn a_lockdown_forgets_and_latches() {
    keyholder_takes_keys_back("/v1/lockdown", "lockdown");
}

#[test]
fn sigterm_lets_clients_finish_then_wipes_and_ends() {
    let mut prepared = Prepared::new(&approved());
    let writer = Writer::start(&prepared.site);
    let mut client = nbd(&prepared.site);
    client.write(8 << 20, &block(5), false).expect("a write");
    prepared.site.node().signal(Signal::SIGTERM);
    // A client that is told nothing else goes on until the drain is over; its last request is unanswered at worst.
    let error = writer.ended();
    assert!(matches!(error, ClientError::Closed { .. }), "{error:?}");
    prepared.site.stop_node();
    prepared.site.start_node();
    prepared.site.push_until_serving();
    prepared.check_data();
    let mut read = vec![0; 64 * KIB];
    nbd(&prepared.site).read(8 << 20, &mut read).expect("a read");
    assert!(read == block(5), "a planned stop loses nothing that was answered, flushed or not");
}

#[test]
fn an_export_that_fails_on_seal_answers_eshutdown() {
    let mut prepared = Prepared::new(&SiteSpec { on_seal: OnSeal::Fail, ..approved() });
    let writer = Writer::start(&prepared.site);
    prepared.site.lose_power();
    let error = writer.ended();
    assert_eq!(error.errno(), Some(nbd_server::Errno::Shutdown), "{error:?}");
    prepared.site.wait_sealed("power-loss");
    prepared.site.push_until_serving();
    prepared.check_data();
}

#[test]
fn a_writer_is_not_disturbed_by_renewals() {
    let prepared = Prepared::new(&SiteSpec { lease_ms: 3_000, ..SiteSpec::default() });
    let writer = Writer::start(&prepared.site);
    let first = prepared.site.status().seal.lease_deadline_boot_ns;
    // Several leases long: each renewal moves the deadline.
    let mut moves = 0;
    let mut last = first;
    wait_for("five renewals", PATIENCE, || {
        let now = prepared.site.status().seal.lease_deadline_boot_ns;
        moves += u32::from(now != last);
        last = now;
        if moves >= 5 { Ok(()) } else { Err(format!("{moves} renewals")) }
    });
    writer.stop();
}
