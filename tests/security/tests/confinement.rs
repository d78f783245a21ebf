//! What the kernel refuses the running programs, and that nothing it allows is idle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use harness::client::client;
use harness::site::{DISK, PATIENCE, Site, SiteSpec};
use harness::{process::wait_for, s3::S3Client};
use keyholder::api::VolumeKind;
use nbd_server::client::{Client, Endpoint};
use nix::sys::signal::Signal;
use sandbox::Role;

/// The calls of each role as strace saw them, from the moment the role's filter was in place.
fn calls_by_role(trace: &str, program: Role) -> BTreeMap<Role, BTreeSet<&str>> {
    let mut filters: BTreeMap<&str, u32> = BTreeMap::new();
    let mut program_is_confined = false;
    let mut calls: BTreeMap<Role, BTreeSet<&str>> = BTreeMap::new();
    for line in trace.lines() {
        // 4711<tokio-rt-worker> futex(0x7f..., FUTEX_WAIT_PRIVATE, ...
        let Some((thread, rest)) = line.split_once('>') else { continue };
        let Some((_, name)) = thread.split_once('<') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if call.starts_with('<') {
            // The second half of a call that another thread's came between.
            continue;
        }
        let role = match name {
            "wiper" => Role::Wiper,
            name if name.starts_with("source ") => Role::Source,
            _ => program,
        };
        let is_confined = match role {
            Role::Wiper | Role::Source => filters.get(thread).is_some_and(|filters| *filters == FILTERS),
            Role::Node | Role::Keyholder => program_is_confined,
        };
        if is_confined {
            calls.entry(role).or_default().insert(call);
        } else if rest.contains("SECCOMP_SET_MODE_FILTER") || rest.contains("SECCOMP_MODE_FILTER") {
            let filters = filters.entry(thread).or_default();
            *filters += 1;
            program_is_confined |= role == program && *filters == FILTERS;
        }
    }
    calls
}

/// Filters that a thread lays on itself; the last completes its role.
const FILTERS: u32 = 2;

/// Does with the node what a long life would.
fn live(site: &mut Site) {
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let address = site.node_config().listen.s3.expect("the site serves S3");
    let mut s3 = S3Client::new(address, "bucket", &key.access_key, &key.secret_key);
    s3.put("object", vec![7; 3 << 20]).expect("an object is stored");
    let stored = s3.get("object").expect("an answer").expect("the object");
    assert_eq!(stored.len(), 3 << 20);
    s3.delete("object").expect("it goes");
    let mut disk = Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export");
    disk.write(0, &vec![1; 8 << 20], true).expect("a durable write");
    disk.read(0, &mut vec![0; 8 << 20]).expect("a read");
    disk.trim(0, 8 << 20, false).expect("a trim");
    disk.flush().expect("a flush");
    let pool = site.status().pools[0].pool;
    let _: serde_json::Value = site
        .wait(site.node_admin().post(&format!("/v1/pools/{pool}/grow"), &serde_json::json!({})))
        .expect("a pool that may grow");
    site.signal_node(Signal::SIGPWR);
    site.wait_sealed("power-loss");
    site.push_until_serving();
}

/// A UPS whose daemon is away, and a chassis: between them they do what sources do.
fn sources(dir: &Path) -> config::SourcesConfig {
    let hwmon = dir.join("hwmon/hwmon0");
    std::fs::create_dir_all(&hwmon).expect("a recorded tree");
    std::fs::write(hwmon.join("intrusion0_alarm"), "0\n").expect("a recorded tree");
    let text = format!(
        "[[apcupsd]]\nname = \"ups\"\nserver = \"{}\"\n[chassis]\ndirectory = \"{}\"\n",
        harness::site::free_port(),
        dir.join("hwmon").display()
    );
    toml::from_str(&text).expect("two sources")
}

/// `command` under strace, which writes to `trace`. The tracer is the grandchild (-D), so that the program stays this
/// test's child and gets its signals.
fn traced(command: &Command, trace: &Path) -> Command {
    let mut traced = Command::new(client("strace").get_program());
    traced.args(["-D", "-f", "--decode-pids=comm", "-q", "-e", "signal=none", "-o"]).arg(trace);
    traced.arg("--").arg(command.get_program()).args(command.get_args());
    traced
}

/// The whole trace, whose last lines are written after the program has ended.
fn ended(trace: &Path) -> String {
    wait_for("the end of the trace", PATIENCE, || {
        let text = std::fs::read_to_string(trace).map_err(|error| error.to_string())?;
        if text.contains("exited with 0") { Ok(text) } else { Err("the trace goes on".to_owned()) }
    })
}

/// Every rule of `roles` was used in `trace`, but for those that wait for what a test can't bring about.
fn assert_used(trace: &str, program: Role, roles: &[Role]) {
    let calls = calls_by_role(trace, program);
    let mut idle = Vec::new();
    for role in roles {
        let used = &calls[role];
        println!("{role:?}: {} calls used: {used:?}", used.len());
        for rule in sandbox::rules(*role).filter(|rule| !rule.rare) {
            if !used.contains(rule.name.trim_start_matches("SYS_")) {
                idle.push(format!("{role:?} {} ({})", rule.name, rule.why));
            }
        }
    }
    assert!(idle.is_empty(), "rules that nothing used: take them out\n  {}", idle.join("\n  "));
}

#[test]
fn every_rule_of_every_role_of_a_node_is_used() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let trace = dir.path().join("trace");
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    site.stop_node();
    site.expect_log("a source fired");
    site.change_node_config(|config| config.sources = sources(dir.path()));
    site.start_node_by(traced(&site.node_command(), &trace));
    site.push_until_serving();
    live(&mut site);
    site.stop_node();
    assert_used(&ended(&trace), Role::Node, &[Role::Wiper, Role::Source, Role::Node]);
}

#[test]
fn every_rule_of_a_keyholder_is_used() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let trace = dir.path().join("trace");
    let mut site = Site::installed(SiteSpec { plain: true, ..SiteSpec::default() });
    site.start_keyholder_by(traced(&site.keyholder_command(), &trace));
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    site.create_volume(DISK, VolumeKind::Block, 64 << 20);
    site.push_until_serving();
    site.stop_keyholder();
    assert_used(&ended(&trace), Role::Keyholder, &[Role::Keyholder]);
}

fn status_of(pid: u32, thread: &str, field: &str) -> String {
    let path = format!("/proc/{pid}/task/{thread}/status");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default().trim().to_owned()
}

#[test]
fn no_thread_of_a_running_program_has_a_capability_a_core_file_or_an_open_filter() {
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    for pid in [site.node().pid(), site.keyholder().pid()] {
        let mut threads = 0;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running program") {
            let thread = thread.expect("a thread").file_name().to_string_lossy().into_owned();
            let name = status_of(pid, &thread, "Name:");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                let held = status_of(pid, &thread, set);
                // CAP_SYS_NICE, 1 << 23: started by root and without LimitRTPRIO, it alone may hurry a late thread.
                let may_hurry = name == "second-stage" && held == "0000000000800000";
                assert!(may_hurry || held == "0000000000000000", "{set} of {name}: {held}");
            }
            assert_eq!(status_of(pid, &thread, "NoNewPrivs:"), "1", "{name}");
            assert_eq!(status_of(pid, &thread, "Seccomp:"), "2", "2 is a filter: {name}");
            threads += 1;
        }
        assert!(threads >= 3, "{threads} threads");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("readable by root");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    }
}
