//! A machine whose kernel gives no secret memory: the node refuses keys until the operator allows `mlock` by name, and then says
//! what that is. Its arena is ordinary memory there, so root sees it: every form of every key is found in it while keys are
//! held, none of a volume's after its key was taken back, and none at all after a wipe.

use std::process::Command;

use harness::process::Process;
use harness::site::{DISK, OBJECTS, PATIENCE, PushPolicy, Site, SiteSpec};
use identity::Role;
use keyholder::api::{Outcome, Target};
use nbd_server::client::{Client, Endpoint};
use nix::sys::signal::Signal;
use security_tests::installation::{needles, recovered};
use security_tests::memory::{Finding, Scan, scan};
use security_tests::needles::Needles;

/// The site's node on such a machine.
fn node_command(site: &Site) -> Command {
    let node = site.node_command();
    let mut command = Command::new(env!("CARGO_BIN_EXE_without"));
    command.arg("memfd_secret").arg(node.get_program()).args(node.get_args());
    command
}

/// What a held key looks like.
const FORMS: [(&str, &str); 5] = [
    ("data key", "encryption round keys"),
    ("data key", "decryption round keys"),
    ("tweak key", "encryption round keys"),
    ("tag PRF key", "encryption round keys"),
    ("tag hash key", "powers of a hash key"),
];

fn scan_node(site: &mut Site, needles: &Needles) -> Scan {
    site.node().signal(Signal::SIGSTOP);
    let scan = scan(site.node().pid(), needles).expect("the node can be scanned");
    site.node().signal(Signal::SIGCONT);
    scan
}

fn count(scan: &Scan, secret: &str, form: &str) -> usize {
    let is_it = |finding: &&Finding| finding.label.secret == secret && finding.label.form == form;
    scan.findings.iter().filter(is_it).count()
}

/// A node that may lock too little says so before it takes any, and what to set.
#[test]
fn a_node_that_may_not_lock_enough_does_not_start_and_names_the_number() {
    const LIMIT: &str = "524288";
    let site = Site::installed(SiteSpec { pool_bytes: 1 << 30, ..SiteSpec::default() });
    let node = site.node_command();
    let mut command = Command::new("prlimit");
    // Whoever has CAP_IPC_LOCK has no limit, and root has it unless it was taken away for good.
    let limits = [&format!("--memlock={LIMIT}:{LIMIT}"), "setpriv", "--bounding-set=-ipc_lock", "--"];
    command.args(limits).arg(node.get_program()).args(node.get_args());
    let mut refused = Process::start("nightlatchd", command);
    let ended = refused.wait_end(PATIENCE);
    let log = refused.log().join("\n");
    assert_eq!(ended.code(), Some(1), "{log}");
    for part in ["no memory for keys", LIMIT, "LimitMEMLOCK"] {
        assert!(log.contains(part), "no `{part}` in\n{log}");
    }
    assert!(!site.node_config().ready_file().exists(), "it served");
}

#[test]
fn mlock_has_to_be_allowed_by_name_and_a_wipe_clears_it_all_the_same() {
    // Nobody pushes by himself what a scan is not to find.
    let mut site = Site::serving(SiteSpec {
        pool_bytes: 1 << 30,
        push: PushPolicy::Approve,
        plain: true,
        ..SiteSpec::default()
    });
    assert_eq!(site.status().key_memory.memory, "memfd-secret");
    let recovered = recovered(&site);
    let needles = needles(&recovered);
    site.stop_node();

    let mut refused = Process::start("nightlatchd", node_command(&site));
    let ended = refused.wait_end(PATIENCE);
    let log = refused.log().join("\n");
    assert_eq!(ended.code(), Some(1), "{log}");
    for part in ["no memory for keys", "secretmem.enable=1", "allow mlock by name"] {
        assert!(log.contains(part), "no `{part}` in\n{log}");
    }
    assert!(!site.node_config().ready_file().exists(), "it served");

    site.change_node_config(|config| config.allow_mlock = true);
    let command = node_command(&site);
    site.start_node_by(command);
    site.push_until_serving();
    assert_eq!(site.status().key_memory.memory, "mlock");
    let hygiene = site.status().hygiene;
    assert!(
        hygiene.iter().any(|finding| finding.probe == "secret-memory" && finding.verdict == "broken"),
        "{hygiene:?}"
    );

    // What a scanner looks for is what a node holds: here it can be seen.
    let mut client = Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export");
    client.write(0, &[0x3C; 8192], true).expect("a durable write");
    drop(client);
    let held = scan_node(&mut site, &needles);
    for volume in [DISK, OBJECTS] {
        for (what, form) in FORMS {
            let found = count(&held, &format!("{what} of {volume}"), form);
            println!("held: {found} windows of {what} of {volume}, {form}");
            assert!(found > 0, "{what} of {volume} is held and not found as {form}: {}", held.describe(20));
        }
    }
    let mappings: std::collections::BTreeSet<_> =
        held.findings.iter().map(|finding| finding.mapping.as_str()).collect();
    assert_eq!(mappings.len(), 1, "keys are in the arena and nowhere else: {mappings:?}");

    // One volume's key is taken back: what it was is gone, and the other's is not.
    let officer = site.keyholder_as(Role::SecurityOfficer, "officer");
    let _: Outcome =
        site.wait(officer.post("/v1/revoke", &Target::Volume(DISK.to_owned()))).expect("a revoke");
    let dropped = scan_node(&mut site, &needles);
    let of_disk = |finding: &&Finding| finding.label.secret.ends_with(&format!(" of {DISK}"));
    assert_eq!(dropped.findings.iter().filter(of_disk).count(), 0, "{}", dropped.describe(20));
    assert!(count(&dropped, &format!("data key of {OBJECTS}"), "encryption round keys") > 0);

    site.lose_power();
    site.wait_sealed("power-loss");
    scan_node(&mut site, &needles).assert_clean("after a wipe of locked memory", 0);
}
