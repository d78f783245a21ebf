//! What the kernel refuses the running programs, and that nothing it allows is idle.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::bus::Bus;
use harness::client::{client, run};
use harness::nut::Nut;
use harness::site::{DISK, PATIENCE, Site, SiteSpec};
use harness::{process::wait_for, s3::S3Client};
use keyholder::api::VolumeKind;
use nbd_server::client::{Client, Endpoint};
use sandbox::{Only, Role, Rule};

/// The calls of a role, and the arguments of those that strace leaves undecoded.
type Calls<'a> = BTreeMap<&'a str, BTreeSet<Vec<u64>>>;

/// Calls that rules look into by value.
const BY_VALUE: &str = "raw=ioctl,prctl,socket,socketpair,bind";

/// The calls of each role as strace saw them, from the moment the role's filter was in place.
fn calls_by_role(trace: &str, program: Role) -> BTreeMap<Role, Calls<'_>> {
    let mut filters: BTreeMap<&str, u32> = BTreeMap::new();
    let mut program_is_confined = false;
    let mut calls: BTreeMap<Role, Calls<'_>> = BTreeMap::new();
    for line in trace.lines() {
        // 4711<tokio-rt-worker> futex(0x7f..., FUTEX_WAIT_PRIVATE, ...
        let Some((thread, rest)) = line.split_once('>') else { continue };
        let Some((_, name)) = thread.split_once('<') else { continue };
        let Some((call, arguments)) = rest.trim_start().split_once('(') else { continue };
        if call.starts_with('<') {
            // The second half of a call that another thread's came between.
            continue;
        }
        let role = match name {
            "wiper" | "second-stage" => Role::Wiper,
            name if name.starts_with("source ") => Role::Source,
            _ => program,
        };
        let is_confined = match role {
            Role::Wiper | Role::Source => filters.get(thread).is_some_and(|filters| *filters == FILTERS),
            Role::Node | Role::Keyholder => program_is_confined,
        };
        if is_confined {
            calls.entry(role).or_default().entry(call).or_default().insert(numbers(arguments));
        } else if rest.contains("SECCOMP_SET_MODE_FILTER") || rest.contains("SECCOMP_MODE_FILTER") {
            let filters = filters.entry(thread).or_default();
            *filters += 1;
            program_is_confined |= role == program && *filters == FILTERS;
        }
    }
    calls
}

/// Arguments as far as they are numbers.
fn numbers(arguments: &str) -> Vec<u64> {
    let arguments = arguments.split([',', ')']).map(str::trim);
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    arguments.map_while(number).collect()
}

/// Whether a rule, or one of the values that it names, waited in vain.
fn idle(rule: &Rule, used: &Calls<'_>) -> Vec<String> {
    let name = rule.name.trim_start_matches("SYS_");
    let Some(arguments) = used.get(name) else { return vec![rule.name.to_owned()] };
    let Only::OneOf(index, values) = rule.only else { return Vec::new() };
    let was_used = |value: &&u64| arguments.iter().any(|all| all.get(usize::from(index)) == Some(*value));
    values.iter().filter(|value| !was_used(value)).map(|value| format!("{} {value:#x}", rule.name)).collect()
}

/// What `systemd-analyze` says that a set of calls, or a set in it, has.
fn calls_of_set(set: &str) -> BTreeSet<String> {
    let shown = run(client("systemd-analyze").args(["syscall-filter", "--no-pager", set])).expect_success();
    let entries =
        shown.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    entries
        .flat_map(|entry| match entry.strip_prefix('@') {
            Some(_) => calls_of_set(entry),
            None => BTreeSet::from([entry.to_owned()]),
        })
        .collect()
}

/// The lines of a unit with that key, as they stand in it.
fn settings<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

/// What the unit's filter lets through: later lines add to the earlier, or with `~` take away from them.
fn let_through_by(unit: &str) -> BTreeSet<String> {
    settings(unit, "SystemCallFilter").into_iter().fold(BTreeSet::new(), |calls, line| {
        let named: BTreeSet<String> = line
            .trim_start_matches('~')
            .split_whitespace()
            .flat_map(|word| match word.strip_prefix('@') {
                Some(_) => calls_of_set(word),
                None => BTreeSet::from([word.to_owned()]),
            })
            .collect();
        if line.starts_with('~') { &calls - &named } else { &calls | &named }
    })
}

/// What the program did, from its first call on, its unit would have let it do.
fn assert_unit_permits(trace: &str, unit: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.ancestors().nth(2).expect("this crate lies two folders below the workspace root");
    let unit = std::fs::read_to_string(root.join("systemd").join(unit)).expect("a unit");
    let permitted = let_through_by(&unit);
    let name_of = |line: &'_ str| -> Option<String> {
        let (_, rest) = line.split_once('>')?;
        let (call, _) = rest.trim_start().split_once('(')?;
        // Versions before 6.10 do not know the newest call by its name.
        let call = if call == "syscall_0x1ce" { "mseal" } else { call };
        (!call.starts_with(['<', '?', '+'])).then(|| call.to_owned())
    };
    let called: BTreeSet<String> = trace.lines().filter_map(name_of).collect();
    assert!(called.contains("capset") && called.contains("seccomp"), "it confines itself: {called:?}");
    let refused: Vec<_> = called.difference(&permitted).collect();
    assert!(refused.is_empty(), "the unit's SystemCallFilter refuses {refused:?}");
    if settings(&unit, "ProcSubset").contains(&"pid") {
        let beside = trace.lines().find(|line| line.contains("\"/proc/sys"));
        assert_eq!(beside, None, "the unit hides it");
    }
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
    let status = site.wiped_by(Site::lose_power);
    assert_eq!(status.last_wipe.expect("it was wiped").cause, "power-loss");
    site.push_until_serving();
}

/// The other ends of a node's sources.
struct Ends {
    line: UnixListener,
    alarm: PathBuf,
    ups: Nut,
    bus: Bus,
}

/// A power-fail line, the kernel's events, a UPS that answers and one whose daemon is away, a bus without logind, a chassis:
/// between them they do what sources do.
fn sources(dir: &Path) -> (config::SourcesConfig, Ends) {
    let alarm = dir.join("hwmon/hwmon0/intrusion0_alarm");
    std::fs::create_dir_all(alarm.parent().expect("a folder")).expect("a recorded tree");
    std::fs::write(&alarm, "0\n").expect("a recorded tree");
    let chip = dir.join("line.sock");
    let line = UnixListener::bind(&chip).expect("a socket");
    let (ups, bus) = (Nut::start(dir), Bus::start(dir));
    let drain = "{ action = \"drain\", drain_s = 1 }";
    let text = format!(
        "[[gpio]]\nname = \"line\"\nchip = \"{}\"\nline = 4\nactive = \"low\"\nrecorded = true\non_active = {drain}\n\
         [[kernel_event]]\nname = \"device\"\nsynthetic = true\nmatch = {{ ACTION = \"change\", DEVNAME = \"full\" }}\n\
         [[apcupsd]]\nname = \"away\"\nserver = \"[::1]:{}\"\n\
         [logind]\nbus = \"{}\"\n\
         [chassis]\ninterval_ms = 100\ndirectory = \"{}\"\non_intrusion = {drain}\n",
        chip.display(),
        harness::site::free_port().port(),
        bus.socket().display(),
        dir.join("hwmon").display()
    );
    let mut sources: config::SourcesConfig = toml::from_str(&text).expect("sources");
    sources.nut = vec![ups.config()];
    (sources, Ends { line, alarm, ups, bus })
}

/// Lets each source say what it can, and one go away.
fn fire(site: &Site, ends: Ends) {
    use std::io::Write;
    let (mut line, _) = ends.line.accept().expect("the node dials at its start");
    let mut set = |active, number| {
        line.write_all(&sources::event_record(active, number, 0)).expect("the node listens");
    };
    set(true, 1);
    site.wait_sealed("power-line");
    set(false, 2);
    site.push_until_serving();
    std::fs::write("/sys/class/mem/full/uevent", "change").expect("only root may ask for an event");
    site.wait_sealed("kernel-event");
    site.wait_heard_of_wipe();
    site.act("/v1/unlatch");
    site.push_until_serving();
    std::fs::write(&ends.alarm, "1\n").expect("a recorded tree");
    site.wait_sealed("intrusion");
    std::fs::write(&ends.alarm, "0\n").expect("a recorded tree");
    site.wait_heard_of_wipe();
    site.act("/v1/unlatch");
    site.push_until_serving();
    ends.ups.set("OB LB");
    site.wait_sealed("ups-low-battery");
    ends.ups.set("OL");
    site.push_until_serving();
    drop(line);
    wait_for("a lost line", PATIENCE, || {
        let sources = site.status().sources;
        let lost = sources.iter().any(|source| source.name == "line" && !source.up);
        if lost { Ok(()) } else { Err(format!("{sources:?}")) }
    });
    drop(ends.bus);
}

/// `command` under strace, which writes to `trace`. The tracer is the grandchild (-D), so that the program stays this
/// test's child and gets its signals.
fn traced(command: &Command, trace: &Path) -> Command {
    let mut traced = Command::new(client("strace").get_program());
    traced
        .args(["-D", "-f", "--decode-pids=comm", "-q", "-e", "signal=none", "-e", BY_VALUE, "-o"])
        .arg(trace);
    traced.arg("--").arg(command.get_program()).args(command.get_args());
    traced
}

/// The whole trace of a program that has ended: its last line is written after that, and says so of the program itself, which is its
/// first thread. Others of its threads ended before.
fn ended(trace: &Path, pid: u32) -> String {
    let (pid, says) = (pid.to_string(), "+++ exited with 0 +++");
    let is_last = |line: &str| {
        let rest = line.strip_prefix(pid.as_str()).map(str::trim_start);
        line.ends_with(says) && rest.is_some_and(|rest| rest.starts_with(['<', '+']))
    };
    wait_for("the end of the trace", PATIENCE, || {
        let text = std::fs::read_to_string(trace).map_err(|error| error.to_string())?;
        if text.lines().any(is_last) { Ok(text) } else { Err("the trace goes on".to_owned()) }
    })
}

/// Every rule of `roles` was used in `trace`, but for those that wait for what a test can't bring about.
fn assert_used(trace: &str, program: Role, roles: &[Role]) {
    let calls = calls_by_role(trace, program);
    let mut idle_rules = Vec::new();
    for role in roles {
        let used = &calls[role];
        println!("{role:?}: {} calls used: {:?}", used.len(), used.keys());
        for rule in sandbox::rules(*role) {
            let idle = idle(rule, used);
            match rule.rare {
                None => idle_rules.extend(idle.iter().map(|idle| format!("{role:?} {idle} ({})", rule.why))),
                Some(rare) if idle.is_empty() => println!("{role:?} {} was used, though {rare:?}", rule.name),
                Some(rare) => println!("{role:?} {idle:?} waits: {}", rare.why()),
            }
        }
    }
    assert!(idle_rules.is_empty(), "rules that nothing used: take them out\n  {}", idle_rules.join("\n  "));
}

#[test]
fn every_rule_of_every_role_of_a_node_is_used_and_its_unit_permits_what_it_does() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let trace = dir.path().join("trace");
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    site.stop_node();
    site.expect_log("a source fired");
    site.expect_log("still stands");
    let (sources, ends) = sources(dir.path());
    site.change_node_config(|config| config.sources = sources);
    site.start_node_by(traced(&site.node_command(), &trace));
    site.push_until_serving();
    live(&mut site);
    fire(&site, ends);
    let pid = site.node().pid();
    site.stop_node();
    let trace = ended(&trace, pid);
    assert_used(&trace, Role::Node, &[Role::Wiper, Role::Source, Role::Node]);
    assert_unit_permits(&trace, "nightlatchd.service");
}

#[test]
fn every_rule_of_a_keyholder_is_used_and_its_unit_permits_what_it_does() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let trace = dir.path().join("trace");
    let mut site = Site::installed(SiteSpec { plain: true, ..SiteSpec::default() });
    site.start_keyholder_by(traced(&site.keyholder_command(), &trace));
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    site.create_volume(DISK, VolumeKind::Block, 64 << 20);
    site.push_until_serving();
    let pid = site.keyholder().pid();
    site.stop_keyholder();
    let trace = ended(&trace, pid);
    assert_used(&trace, Role::Keyholder, &[Role::Keyholder]);
    assert_unit_permits(&trace, "nightlatch-keyholder.service");
}

/// A field of a thread's `status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

#[test]
fn no_thread_of_a_running_program_has_a_capability_a_core_file_or_an_open_filter() {
    let mut site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    for pid in [site.node().pid(), site.keyholder().pid()] {
        let mut threads = 0;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running program") {
            // One that has ended meanwhile has no status, and nothing else.
            let Ok(status) = std::fs::read_to_string(thread.expect("a thread").path().join("status")) else {
                continue;
            };
            let name = field(&status, "Name:");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                let held = field(&status, set);
                // CAP_SYS_NICE, 1 << 23: started by root and without LimitRTPRIO, it alone may hurry a late thread.
                let may_hurry = name == "second-stage" && held == "0000000000800000";
                assert!(may_hurry || held == "0000000000000000", "{set} of {name}: {held}");
            }
            assert_eq!(field(&status, "NoNewPrivs:"), "1", "{name}");
            assert_eq!(field(&status, "Seccomp:"), "2", "2 is a filter: {name}");
            threads += 1;
        }
        assert!(threads >= 3, "{threads} threads");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("readable by root");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    }
}
