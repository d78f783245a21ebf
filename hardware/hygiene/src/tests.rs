//! The probes against recorded trees: a well-kept server, a bare virtual machine, and one change at a time.

use std::fs;
use std::path::Path;

use super::*;

const GOOD_LIVE: Live = Live {
    secret_memory: Ok(()),
    landlock: Ok(6),
    mseal: Ok(()),
    memlock_bytes: Some(8 << 20),
    realtime_priority: 10,
    may_lock_all: false,
    may_take_any_priority: false,
};

/// A server as it should be: UEFI with Secure Boot, an EPYC with TSME, hardened sysctls.
const SERVER: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.12.48+deb13-amd64"),
    (
        "proc/cpuinfo",
        "processor\t: 0\nflags\t\t: fpu sme aes pclmulqdq vaes vpclmulqdq avx512f\n\nprocessor\t: 1\nflags\t\t:",
    ),
    (
        "proc/cmdline",
        "BOOT_IMAGE=/vmlinuz root=/dev/dm-0 ro lockdown=confidentiality init_on_free=1 nohibernate",
    ),
    ("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"),
    ("proc/sys/kernel/core_pattern", "|/bin/false"),
    ("proc/sys/kernel/kexec_load_disabled", "1"),
    ("proc/sys/kernel/yama/ptrace_scope", "3"),
    ("proc/self/task/300/status", "Name:\tnightlatchd\nTracerPid:\t0\nUid:\t0"),
    ("proc/self/task/301/status", "Name:\twiper\nTracerPid:\t0\nUid:\t0"),
    (
        "proc/sys/kernel/seccomp/actions_avail",
        "kill_process kill_thread trap errno user_notif trace log allow",
    ),
    ("proc/sys/fs/suid_dumpable", "0"),
    ("sys/power/disk", "[disabled]"),
    ("sys/block/nvme0n1/size", "1"),
    ("sys/kernel/kexec_crash_loaded", "0"),
    ("sys/kernel/security/lockdown", "none integrity [confidentiality]"),
    ("sys/kernel/iommu_groups/0/type", "DMA-FQ"),
    ("sys/bus/pci/drivers/ccp/0000:22:00.1/tsme_status", "1"),
    ("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", "\u{6}\0\0\0\u{1}"),
    (
        "sys/firmware/efi/efivars/MemoryOverwriteRequestControl-e20939be-32d4-41be-a150-897f85d49829",
        "\u{7}\0\0\0\0",
    ),
    (
        "sys/firmware/efi/efivars/MemoryOverwriteRequestControlLock-bb983ccf-151d-40e1-a07b-4a17be168292",
        "\u{7}\0\0\0\0",
    ),
    ("sys/class/tpm/tpm0/tpm_version_major", "2"),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
    ("sys/class/power_supply/PSU0/type", "Mains"),
    ("sys/class/hwmon/hwmon3/intrusion0_alarm", "0"),
    ("sys/class/watchdog/watchdog0/identity", "iTCO_wdt"),
    ("sys/class/watchdog/watchdog0/state", "active"),
];

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
}

/// The server with these files instead, or without them where the text is "-".
fn report_with(changes: &[(&str, &str)]) -> Report {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), SERVER);
    for (path, text) in changes {
        if *text == "-" {
            fs::remove_file(dir.path().join(path)).unwrap();
        } else {
            write(dir.path(), &[(path, text)]);
        }
    }
    Subject::recorded(dir.path(), GOOD_LIVE).report()
}

fn verdict_with(changes: &[(&str, &str)], probe: Probe) -> Verdict {
    report_with(changes).finding(probe).unwrap().verdict
}

#[test]
fn a_well_kept_server_is_good_throughout() {
    let report = report_with(&[]);
    for finding in &report.findings {
        assert_eq!(finding.verdict, Verdict::Good, "{finding:?}");
    }
    assert_eq!(report.worst(), Verdict::Good);
}

/// Each change makes its own probe worse and no other.
#[test]
fn each_weakness_is_found_by_its_probe_alone() {
    use Probe::*;
    use Verdict::{Broken, Unknown, Weak};
    const EFI: &str = "sys/firmware/efi/efivars";
    let secure_boot = format!("{EFI}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c");
    let overwrite = format!("{EFI}/MemoryOverwriteRequestControl-e20939be-32d4-41be-a150-897f85d49829");
    let overwrite_lock =
        format!("{EFI}/MemoryOverwriteRequestControlLock-bb983ccf-151d-40e1-a07b-4a17be168292");
    let cpu = |flags: &str| format!("flags : {flags}");
    let (no_aes, no_vector) = (cpu("sme vaes vpclmulqdq"), cpu("sme aes pclmulqdq avx512f"));
    let guest = cpu("sme aes vaes vpclmulqdq hypervisor");
    let cases: &[(&str, &str, Probe, Verdict)] = &[
        ("proc/sys/kernel/osrelease", "5.13.19", Kernel, Broken),
        ("proc/sys/kernel/osrelease", "strange", Kernel, Unknown),
        ("proc/cpuinfo", &no_aes, CpuAes, Broken),
        ("proc/cpuinfo", &no_vector, CpuVector, Weak),
        ("proc/cpuinfo", &guest, Clock, Weak),
        ("proc/swaps", "Filename Type Size\n/dev/sda2 partition 8", Swap, Broken),
        ("proc/swaps", "-", Swap, Unknown),
        ("sys/block/zram0/disksize", "1073741824", Zram, Weak),
        ("sys/power/disk", "[platform] shutdown reboot", Hibernation, Broken),
        ("proc/sys/kernel/kexec_load_disabled", "0", Kexec, Weak),
        ("sys/kernel/kexec_crash_loaded", "1", Kdump, Broken),
        ("proc/sys/kernel/core_pattern", "/var/cores/%p", CorePattern, Weak),
        ("proc/sys/kernel/core_pattern", "-", CorePattern, Unknown),
        ("proc/sys/fs/suid_dumpable", "2", SuidDumpable, Weak),
        ("proc/cmdline", "root=/dev/dm-0", InitOnFree, Unknown),
        ("proc/cmdline", "init_on_free=0", InitOnFree, Weak),
        ("proc/sys/kernel/yama/ptrace_scope", "1", PtraceScope, Weak),
        ("proc/sys/kernel/yama/ptrace_scope", "-", PtraceScope, Unknown),
        ("proc/self/task/300/status", "Name:\tnightlatchd\nTracerPid:\t4711", Tracer, Broken),
        ("proc/self/task/301/status", "Name:\twiper\nTracerPid:\t4711", Tracer, Broken),
        ("proc/self/task/301/status", "Name:\twiper", Tracer, Unknown),
        ("proc/sys/kernel/seccomp/actions_avail", "-", Seccomp, Broken),
        ("proc/sys/kernel/seccomp/actions_avail", "kill_thread allow", Seccomp, Broken),
        ("sys/kernel/security/lockdown", "[none] integrity confidentiality", Lockdown, Weak),
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality", Lockdown, Weak),
        (&secure_boot, "\u{6}\0\0\0\0", SecureBoot, Weak),
        (&secure_boot, "-", SecureBoot, Weak),
        (&overwrite, "-", MemoryOverwrite, Weak),
        (&overwrite_lock, "\u{7}\0\0\0\u{1}", MemoryOverwrite, Weak),
        ("sys/bus/pci/drivers/ccp/0000:22:00.1/tsme_status", "0", MemoryEncryption, Weak),
        ("sys/bus/pci/drivers/ccp/0000:22:00.1/tsme_status", "-", MemoryEncryption, Unknown),
        ("sys/class/tpm/tpm0/tpm_version_major", "1", Tpm, Weak),
        ("sys/class/power_supply/PSU0/type", "Battery", PowerWarning, Weak),
        ("sys/class/hwmon/hwmon3/intrusion0_alarm", "1", Chassis, Weak),
        ("sys/class/hwmon/hwmon3/intrusion0_alarm", "-", Chassis, Weak),
        ("sys/class/watchdog/watchdog0/state", "inactive", Watchdog, Weak),
    ];
    for (path, text, probe, verdict) in cases {
        let report = report_with(&[(path, text)]);
        assert_eq!(report.finding(*probe).unwrap().verdict, *verdict, "{path}: {text}");
        let others = report.findings.iter().filter(|finding| finding.probe != *probe);
        for other in others {
            assert_eq!(other.verdict, Verdict::Good, "{path}: {text}: {other:?}");
        }
    }
}

#[test]
fn compressed_swap_is_no_swap_on_disk_and_an_unused_zram_is_none() {
    let swaps = [("proc/swaps", "Filename Type\n/dev/zram0 partition"), ("sys/block/zram0/disksize", "1024")];
    assert_eq!(verdict_with(&swaps, Probe::Swap), Verdict::Good);
    assert_eq!(verdict_with(&swaps, Probe::Zram), Verdict::Weak);
    assert_eq!(verdict_with(&[("sys/block/zram0/disksize", "0")], Probe::Zram), Verdict::Good);
}

#[test]
fn a_thread_that_has_ended_is_traced_by_nobody_and_a_process_without_threads_cannot_be_told() {
    let dir = tempfile::tempdir().unwrap();
    let verdict =
        || Subject::recorded(dir.path(), GOOD_LIVE).report().finding(Probe::Tracer).unwrap().verdict;
    write(dir.path(), &[("proc/self/task/300/status", "TracerPid:\t0")]);
    fs::create_dir(dir.path().join("proc/self/task/301")).unwrap();
    assert_eq!(verdict(), Verdict::Good);
    fs::remove_dir_all(dir.path().join("proc/self/task")).unwrap();
    assert_eq!(verdict(), Verdict::Unknown);
}

#[test]
fn a_request_that_stands_and_is_locked_is_one_that_nobody_takes_back() {
    const EFI: &str = "sys/firmware/efi/efivars";
    let variable = |name: &str, value: char| (format!("{EFI}/{name}"), format!("\u{7}\0\0\0{value}"));
    let (request, on) =
        variable("MemoryOverwriteRequestControl-e20939be-32d4-41be-a150-897f85d49829", '\u{1}');
    let (lock, locked) =
        variable("MemoryOverwriteRequestControlLock-bb983ccf-151d-40e1-a07b-4a17be168292", '\u{2}');
    assert_eq!(verdict_with(&[(&request, &on), (&lock, &locked)], Probe::MemoryOverwrite), Verdict::Good);
    assert_eq!(verdict_with(&[(&lock, "-")], Probe::MemoryOverwrite), Verdict::Good, "an older firmware");
}

#[test]
fn nothing_is_called_good_in_an_empty_tree() {
    let dir = tempfile::tempdir().unwrap();
    let report = Subject::recorded(dir.path(), GOOD_LIVE).report();
    // The good ones were asked of the process.
    let good: Vec<_> =
        report.findings.iter().filter(|f| f.verdict == Verdict::Good).map(|f| f.probe).collect();
    use Probe::*;
    let expected = [SecretMemory, LockedMemory, Mseal, RealtimePriority, Landlock];
    assert_eq!(good, expected);
}

#[test]
fn what_a_kernel_was_built_without_is_good_and_what_may_not_be_looked_at_is_not() {
    let gone = [
        ("sys/power/disk", Probe::Hibernation),
        ("proc/sys/kernel/kexec_load_disabled", Probe::Kexec),
        ("sys/kernel/kexec_crash_loaded", Probe::Kdump),
    ];
    for (path, probe) in gone {
        assert_eq!(verdict_with(&[(path, "-")], probe), Verdict::Good, "{path}");
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), SERVER);
        // As where the file system is hidden, or the file is not for everybody.
        fs::remove_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        let report = Subject::recorded(dir.path(), GOOD_LIVE).report();
        assert_eq!(report.finding(probe).unwrap().verdict, Verdict::Unknown, "{path}");
        write(dir.path(), SERVER);
        fs::remove_file(dir.path().join(path)).unwrap();
        fs::create_dir(dir.path().join(path)).unwrap();
        let report = Subject::recorded(dir.path(), GOOD_LIVE).report();
        assert_eq!(
            report.finding(probe).unwrap().verdict,
            Verdict::Unknown,
            "{path}: it is there, and no file"
        );
    }
}

#[test]
fn what_a_process_may_not_do_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let verdict = |live, probe| Subject::recorded(dir.path(), live).report().finding(probe).unwrap().verdict;
    let cases = [
        (Live { secret_memory: Err(libc::ENOSYS), ..GOOD_LIVE }, Probe::SecretMemory, Verdict::Broken),
        (Live { memlock_bytes: Some(64 << 10), ..GOOD_LIVE }, Probe::LockedMemory, Verdict::Broken),
        (
            Live { memlock_bytes: Some(MEMLOCK_BYTES_MIN - 1), ..GOOD_LIVE },
            Probe::LockedMemory,
            Verdict::Broken,
        ),
        (Live { memlock_bytes: Some(MEMLOCK_BYTES_MIN), ..GOOD_LIVE }, Probe::LockedMemory, Verdict::Good),
        (
            Live { memlock_bytes: Some(0), may_lock_all: true, ..GOOD_LIVE },
            Probe::LockedMemory,
            Verdict::Good,
        ),
        (
            Live { realtime_priority: 0, may_take_any_priority: true, ..GOOD_LIVE },
            Probe::RealtimePriority,
            Verdict::Good,
        ),
        (Live { memlock_bytes: None, ..GOOD_LIVE }, Probe::LockedMemory, Verdict::Good),
        (Live { realtime_priority: 9, ..GOOD_LIVE }, Probe::RealtimePriority, Verdict::Weak),
        (Live { landlock: Err(libc::EOPNOTSUPP), ..GOOD_LIVE }, Probe::Landlock, Verdict::Weak),
        (Live { mseal: Err(libc::ENOSYS), ..GOOD_LIVE }, Probe::Mseal, Verdict::Weak),
    ];
    for (live, probe, expected) in cases {
        assert_eq!(verdict(live, probe), expected, "{live:?}");
    }
}

#[test]
fn only_what_was_good_and_is_not_any_more_is_a_regression() {
    let good = report_with(&[]);
    let swapped = report_with(&[("proc/swaps", "Filename Type\n/dev/sda2 partition")]);
    let probes = |now: &Report, before: &Report| now.regressions(before).map(|f| f.probe).collect::<Vec<_>>();
    assert_eq!(probes(&swapped, &good), [Probe::Swap]);
    assert_eq!(probes(&good, &swapped), []);
    assert_eq!(probes(&swapped, &swapped), []);
    let unreadable = report_with(&[("proc/swaps", "-")]);
    assert_eq!(
        probes(&unreadable, &good),
        [Probe::Swap],
        "what cannot be read any more is not good any more"
    );
}

fn check(name: &str, hearing: Hearing) -> SourceCheck {
    SourceCheck { name: name.into(), hearing, warns_of_power: true }
}

#[test]
fn a_server_that_is_not_there_is_a_source_that_is_not_heard() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ups = |server: String| check("ups", Hearing { server: Some(server), ..Hearing::default() });
    let address = listener.local_addr().unwrap().to_string();
    let found = |check: SourceCheck| {
        let installation = Installation { sources: vec![check], ..Installation::default() };
        installation.findings().into_iter().find(|finding| finding.probe == Probe::Sources).unwrap()
    };
    assert_eq!(found(ups(address)).verdict, Verdict::Good);
    // The first is a port that the system gives to nobody.
    for server in ["127.0.0.1:1".to_owned(), "no such name.invalid:3493".to_owned()] {
        let silent = found(ups(server.clone()));
        assert_eq!(silent.verdict, Verdict::Weak, "{silent:?}");
        assert!(silent.found.contains(&server), "{silent:?}");
    }
    let event = check("device", Hearing { kernel_events: true, ..Hearing::default() });
    assert_eq!(found(event).verdict, Verdict::Good);
}

#[test]
fn an_installation_is_looked_at() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (key, pool) = (dir.path().join("identity.key"), dir.path().join("pool"));
    fs::write(&key, "secret").unwrap();
    fs::write(&pool, "").unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(dir.path(), 0o700);
    mode(&key, 0o600);
    let installation = Installation {
        state_dir: dir.path().to_owned(),
        key_files: vec![key.clone()],
        pools: vec![pool.clone()],
        sources: vec![check("line", Hearing { path: Some(pool.clone()), ..Hearing::default() })],
    };
    let verdicts = |installation: &Installation| {
        let report = Subject::recorded(dir.path(), GOOD_LIVE).with_installation(installation).report();
        let probes = [Probe::StateDir, Probe::KeyFiles, Probe::Pools, Probe::Sources, Probe::PowerWarning];
        probes.map(|probe| report.finding(probe).unwrap().verdict)
    };
    use Verdict::{Broken, Good, Weak};
    assert_eq!(verdicts(&installation), [Good; 5]);
    mode(&key, 0o640);
    mode(dir.path(), 0o750);
    let gone = dir.path().join("gone");
    let wrong = Installation {
        pools: vec![pool, gone.clone()],
        sources: vec![check("line", Hearing { path: Some(gone), ..Hearing::default() })],
        ..installation.clone()
    };
    assert_eq!(verdicts(&wrong), [Broken, Broken, Broken, Weak, Good]);
    let of_another_matter = SourceCheck {
        warns_of_power: false,
        ..check("clock", Hearing { path: Some(key), ..Hearing::default() })
    };
    let elsewhere = Installation { sources: vec![of_another_matter], ..installation.clone() };
    assert_eq!(verdicts(&elsewhere)[3..], [Good, Weak], "a clock tells of no power loss");
    let silent = Installation { sources: Vec::new(), ..installation };
    assert_eq!(verdicts(&silent)[3..], [Weak, Weak]);
}

#[test]
fn the_running_machine_can_be_reported_on_and_fits_the_evidence() {
    let installation = Installation {
        key_files: vec![Path::new("/").join("x".repeat(4096)); 50],
        ..Installation::default()
    };
    let report = Subject::this_machine().with_installation(&installation).report();
    let probes: Vec<_> = report.findings.iter().map(|finding| finding.probe).collect();
    assert_eq!(probes, Probe::ALL);
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.len() < 16 * 1024, "{} bytes", json.len());
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}
