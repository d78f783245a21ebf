//! Two keyholders, three members of etcd, and a node under I/O: whatever is killed or stopped, the node's clients do not see it, and
//! what was erased does not come back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::cluster::{Etcd, OtherKeyholder, sees_store};
use harness::process::wait_for;
use harness::site::{DISK, PATIENCE, Site, SiteSpec, VolumeKind};
use identity::{ClientError, Role};
use keyholder::api::{
    Connection, Done, Erasure, JoinApproved, KeyholderStatus, Lockdown, Outcome, SealState, StoreStatus,
    VolumeEntry, VolumeErased,
};
use nbd_server::client::{Client, Endpoint};
use nix::sys::signal::Signal;

/// Another keyholder takes some two seconds to take over, and with a busy disk under etcd more. Two thirds of a lease are left for it.
const LEASE_MS: u64 = 8_000;

/// Half of it is ahead at worst when the store goes away: longer than a lease and a half, and than it takes to notice.
const RECORD_AHEAD_MS: u64 = 60_000;

/// Log lines of keyholders that belong to what the tests do to them.
const EXPECTED: &[&str] = &[
    "the store that keyholders share is away",
    "a newer session took over",
    "a newer session with the keyholder has taken over",
    "superseded",
    "the session with the node ended",
    "a request failed",
];

/// A site whose keyholder shares its store, and another keyholder over the same, sealed.
fn two_keyholders(etcd: &Etcd) -> (Site, OtherKeyholder) {
    let mut site = Site::installed(SiteSpec { lease_ms: LEASE_MS, plain: true, ..SiteSpec::default() });
    EXPECTED.iter().for_each(|line| site.expect_log(line));
    let admin = site.keyholder_config().listen.admin;
    let config = etcd.config(admin, RECORD_AHEAD_MS);
    site.change_keyholder_config(|keyholder| keyholder.etcd = Some(config));
    start_first(&mut site);
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    site.create_volume(DISK, VolumeKind::Block, 1 << 30);
    site.push_until_serving();
    let mut second = OtherKeyholder::installed(&site, "keyholder-2", etcd, RECORD_AHEAD_MS);
    second.start(&site);
    (site, second)
}

fn start_first(site: &mut Site) {
    site.start_keyholder();
    wait_for("a keyholder that sees the store", PATIENCE, || sees_store(&Ok(site.keyholder_status())));
}

/// Waits until the keyholder called `name` has the node's session.
fn wait_linked(status: impl Fn() -> KeyholderStatus, name: &str) {
    wait_for("a link to the node", PATIENCE, || {
        let node = status().nodes.remove(0);
        let linked = node.keyholder.as_deref() == Some(name) && node.connection == Connection::Connected;
        if linked { Ok(()) } else { Err(format!("{node:?}")) }
    });
}

/// What a client of the node saw while things happened.
struct Traffic {
    stop: AtomicBool,
    done: AtomicU64,
    longest_ms: AtomicU64,
}

impl Traffic {
    /// Writes and reads back until it is stopped. An error is a panic, and so the test's.
    fn run(&self, endpoint: &Endpoint) {
        let mut client = Client::connect(endpoint, DISK).expect("an unsealed export");
        let mut block = [0; 4096];
        while !self.stop.load(Ordering::SeqCst) {
            let begun = Instant::now();
            let round = self.done.fetch_add(1, Ordering::SeqCst);
            let (offset, value) = ((round % 64) * 4096, u8::try_from(round % 251).expect("below 251"));
            client.write(offset, &[value; 4096], round.is_multiple_of(8)).expect("a write while all goes on");
            client.read(offset, &mut block).expect("a read while all goes on");
            assert!(block.iter().all(|byte| *byte == value), "another block than was written");
            let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.longest_ms.fetch_max(took, Ordering::SeqCst);
        }
    }

    /// Lets it go on for a while: longer than a lease, so that only renewals can have kept it up.
    fn outlives_a_lease(&self, what: &str) {
        let before = self.done.load(Ordering::SeqCst);
        let begun = Instant::now();
        wait_for("a lease and a half", PATIENCE, || {
            let over = begun.elapsed() >= Duration::from_millis(LEASE_MS * 3 / 2);
            if over { Ok(()) } else { Err("it runs".to_owned()) }
        });
        let after = self.done.load(Ordering::SeqCst);
        assert!(after > before + 10, "{what}: {} operations in a lease and a half", after - before);
    }
}

fn create(site: &Site, label: &str) -> Result<VolumeEntry, ClientError> {
    site.try_create_volume(label, VolumeKind::Block, 1 << 20)
}

#[test]
fn keyholders_and_members_of_etcd_die_and_no_client_sees_it() {
    let mut etcd = Etcd::start();
    let (mut site, mut second) = two_keyholders(&etcd);
    second.unseal(&site);
    let endpoint = Endpoint::unix(site.nbd_socket());
    let traffic =
        Traffic { stop: AtomicBool::new(false), done: AtomicU64::new(0), longest_ms: AtomicU64::new(0) };
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| traffic.run(&endpoint));
        wait_linked(|| site.keyholder_status(), "keyholder");

        // The keyholder that dials the node is killed: the other one takes over, and renews.
        let begun = Instant::now();
        site.keyholder().kill();
        wait_linked(|| second.status(&site), second.name());
        let took = begun.elapsed();
        println!(
            "another keyholder had the node's session {} ms after the first was killed",
            took.as_millis()
        );
        assert!(took < Duration::from_millis(LEASE_MS), "the takeover took {took:?}");
        traffic.outlives_a_lease("after the loss of a keyholder");

        // It comes back, is unsealed, and has nothing to do.
        start_first(&mut site);
        site.unseal_keyholder();
        traffic.outlives_a_lease("after the return of a keyholder");

        // A member of etcd is lost: everything goes on, a new volume too, at the keyholder that does not have the session.
        etcd.kill(0);
        let made = wait_for("a volume with a member down", PATIENCE, || {
            create(&site, "while-a-member-is-down").map_err(|error| error.to_string())
        });
        wait_for("its key on the node", PATIENCE, || {
            let volumes = site.status().volumes;
            let is_it = |label: &String| *label == made.label;
            let is_open =
                volumes.iter().any(|there| there.unsealed && there.label.as_ref().is_some_and(is_it));
            if is_open { Ok(()) } else { Err(format!("{volumes:?}")) }
        });
        etcd.start_member(0);
        etcd.wait_healthy();
        traffic.outlives_a_lease("after the return of a member");

        // No quorum: renewals go on inside what is recorded, nothing new is granted.
        [0, 1].iter().for_each(|member| etcd.signal(*member, Signal::SIGSTOP));
        wait_for("a store that is away", PATIENCE, || {
            match site.keyholder_status().cluster.expect("it shares a store").store {
                StoreStatus::Away { .. } => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        match create(&site, "without-a-quorum") {
            Err(ClientError::Refused { problem, .. }) => assert_eq!(problem.kind, "store-away"),
            other => panic!("{other:?}"),
        }
        traffic.outlives_a_lease("without a quorum of etcd");
        [0, 1].iter().for_each(|member| etcd.signal(*member, Signal::SIGCONT));
        etcd.wait_healthy();
        wait_for("a volume after the quorum is back", PATIENCE, || {
            create(&site, "with-a-quorum-again").map(drop).map_err(|error| error.to_string())
        });

        // A planned stop of the one that has the session hands it over.
        let holder = site.keyholder_status().nodes[0].keyholder.clone();
        if holder.as_deref() == Some("keyholder") {
            site.stop_keyholder();
            wait_linked(|| second.status(&site), second.name());
            start_first(&mut site);
            site.unseal_keyholder();
        } else {
            assert!(second.process().stop(PATIENCE).success());
            wait_linked(|| site.keyholder_status(), "keyholder");
            second.start(&site);
            second.unseal(&site);
        }
        traffic.outlives_a_lease("after a planned stop");

        traffic.stop.store(true, Ordering::SeqCst);
        busy.join().expect("the client saw nothing");
    });
    println!(
        "{} operations, the longest took {} ms",
        traffic.done.load(Ordering::SeqCst),
        traffic.longest_ms.load(Ordering::SeqCst)
    );

    // Taken back at one keyholder while the other one has the session, and given again.
    wait_for("two keyholders", PATIENCE, || {
        let members = second.status(&site).cluster.expect("it shares a store").members;
        let alive = members.iter().filter(|member| member.alive && member.unsealed).count();
        if alive == 2 { Ok(()) } else { Err(format!("{members:?}")) }
    });
    let holder = site.keyholder_status().nodes[0].keyholder.clone();
    let other = if holder.as_deref() == Some("keyholder") {
        second.client(&site, Role::SecurityOfficer, "officer")
    } else {
        site.keyholder_as(Role::SecurityOfficer, "officer")
    };
    let outcome: Result<Outcome, ClientError> = site.wait(other.post("/v1/lockdown", &Lockdown {}));
    assert!(outcome.expect("a lockdown").nodes.iter().all(|node| node.confirmed));
    assert!(site.status().seal.sealed);
    site.check_logs();
}

#[test]
fn an_old_backup_of_etcd_does_not_bring_an_erased_volume_back() {
    let mut etcd = Etcd::start();
    let (mut site, mut second) = two_keyholders(&etcd);
    second.unseal(&site);
    site.expect_log("the store that keyholders share is not trusted any more");
    site.expect_log("the shared store was looked at in vain");
    site.expect_log("deleted a volume");
    wait_for("a volume", PATIENCE, || create(&site, "secret").map(drop).map_err(|error| error.to_string()));
    let backup = etcd.back_up();
    wait_for("the store after its backup", PATIENCE, || sees_store(&Ok(site.keyholder_status())));
    let client = site.keyholder_as(Role::Operator, "op");
    let erased: VolumeErased = wait_for("a deletion", PATIENCE, || {
        site.wait(client.delete("/v1/volumes/secret")).map_err(|error: ClientError| error.to_string())
    });
    assert_eq!(erased.erasure, Erasure::PendingBackups, "etcd's own files are a backup");
    wait_for("the other keyholder has followed", PATIENCE, || {
        let labels: Vec<_> = second.status(&site).volumes.into_iter().map(|volume| volume.label).collect();
        if labels.contains(&"secret".to_owned()) { Err(format!("{labels:?}")) } else { Ok(()) }
    });

    etcd.restore(backup.path());
    let distrusts = |status: KeyholderStatus| {
        let gone = status.volumes.iter().all(|volume| volume.label != "secret");
        match status.cluster.expect("it shares a store").store {
            StoreStatus::Distrusted { why } if gone => Ok(why),
            other => Err(format!("{other:?}, erased: {gone}")),
        }
    };
    let why = wait_for("the first keyholder's distrust", PATIENCE, || distrusts(site.keyholder_status()));
    assert!(why.contains("set back"), "{why}");
    wait_for("the other keyholder's", PATIENCE, || distrusts(second.status(&site)));

    // Nor does a start make it forget.
    second.process().kill();
    second.start_unheard();
    wait_for("the restarted keyholder's distrust", PATIENCE, || {
        distrusts(second.try_status(&site).map_err(|error| error.to_string())?)
    });
    second.unseal(&site);
    distrusts(second.status(&site)).expect("it opened its own copy, which is without the volume");
    let refused = create(&site, "new");
    assert!(
        matches!(&refused, Err(ClientError::Refused { problem, .. }) if problem.kind == "store-distrusted"),
        "{refused:?}"
    );
}

#[test]
fn a_keyholder_gets_the_root_from_another_one_if_policy_and_officer_let_it() {
    let etcd = Etcd::start();
    let (mut site, mut second) = two_keyholders(&etcd);
    site.expect_log("another keyholder gets the root from this one");
    site.expect_log("this keyholder has the root from another one");
    let joined = |site: &Site, second: &OtherKeyholder| {
        let status = second.status(site);
        let refusal = status.cluster.and_then(|cluster| cluster.join).unwrap_or_default();
        if status.state == SealState::Unsealed { Ok(()) } else { Err(refusal) }
    };
    let refused_for = |site: &Site, second: &OtherKeyholder, words: &str| {
        wait_for("a refusal", PATIENCE, || match joined(site, second) {
            Err(refusal) if refusal.contains(words) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    refused_for(&site, &second, "the policy names no keyholder keyholder-2");
    let rule = |identity: &str, join: &str| {
        format!(
            "version = 1\n[[keyholder]]\nname = \"keyholder-2\"\nidentity = \"{identity}\"\njoin = \"{join}\"\n"
        )
    };
    // Somebody with its certificate and another machine.
    site.apply_policy(&rule(&"0".repeat(64), "automatic"));
    refused_for(&site, &second, "is not the one in the policy");
    let identity = second.status(&site).cluster.expect("it shares a store").identity_key;
    site.apply_policy(&rule(&identity, "approve"));
    refused_for(&site, &second, "with a security officer's approval");
    let officer = site.keyholder_as(Role::SecurityOfficer, "officer");
    let approve = || {
        let approved: Result<JoinApproved, ClientError> =
            site.wait(officer.post("/v1/keyholders/keyholder-2/join", &Done {}));
        approved.expect("an approval")
    };
    approve();
    wait_for("the root at the second keyholder", PATIENCE, || joined(&site, &second));

    // The approval is used up, and the next start asks again.
    second.process().kill();
    second.start(&site);
    refused_for(&site, &second, "with a security officer's approval");
    // From now on it comes up by itself; the first one is restarted likewise, and nobody brings a share.
    site.apply_policy(&rule(&identity, "automatic"));
    wait_for("the root without a person", PATIENCE, || joined(&site, &second));
    let own = site.keyholder_status().cluster.expect("it shares a store").identity_key;
    let both = format!(
        "{}[[keyholder]]\nname = \"keyholder\"\nidentity = \"{own}\"\njoin = \"automatic\"\n",
        rule(&identity, "automatic")
    );
    site.apply_policy(&both);
    site.stop_keyholder();
    start_first(&mut site);
    wait_for("the first one's root from the second", PATIENCE, || {
        let state = site.keyholder_status().state;
        if state == SealState::Unsealed { Ok(()) } else { Err(format!("{state:?}")) }
    });
    site.wait_serving();

    // Both sides have it in their trails, and no file has the root's ways.
    let given = site.keyholder_trail().iter().filter(|entry| entry["event"] == "root-given").count();
    assert_eq!(given, 2);
    let trail = std::fs::read_to_string(second.state_dir().join("audit.jsonl")).expect("its trail");
    assert_eq!(trail.matches("\"root-taken\"").count(), 2);
    assert_eq!(trail.matches("\"root-given\"").count(), 1);
    site.check_logs();
}
