//! The probes that read files of the kernel.

use crate::probe::Probe::{self, *};
use crate::tree::Tree;
use crate::{Finding, Verdict};

/// Variables of the firmware, each after four bytes of attributes.
const EFI_VARIABLES: &str = "sys/firmware/efi/efivars";
const SECURE_BOOT: &str = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const MEMORY_OVERWRITE: &str = "MemoryOverwriteRequestControl-e20939be-32d4-41be-a150-897f85d49829";
const MEMORY_OVERWRITE_LOCK: &str = "MemoryOverwriteRequestControlLock-bb983ccf-151d-40e1-a07b-4a17be168292";

/// `sources` is how many are configured, where a configuration is known.
pub(crate) fn findings(tree: &Tree, sources: Option<&[String]>) -> Vec<Finding> {
    let cpu = Cpu::read(tree);
    vec![
        kernel(tree),
        cpu_aes(&cpu),
        cpu_vector(&cpu),
        swap(tree),
        zram(tree),
        hibernation(tree),
        kexec(tree),
        kdump(tree),
        core_pattern(tree),
        suid_dumpable(tree),
        init_on_free(tree),
        ptrace_scope(tree),
        tracer(tree),
        lockdown(tree),
        seccomp(tree),
        secure_boot(tree),
        iommu(tree),
        memory_encryption(tree, &cpu),
        memory_overwrite(tree),
        tpm(tree),
        clock(tree, &cpu),
        power_warning(tree, sources),
        chassis(tree),
        watchdog(tree),
    ]
}

fn unreadable(probe: Probe, path: &str) -> Finding {
    Finding::unknown(probe, format!("/{path} cannot be read"))
}

/// A fact that one file states: good where `is_good` says so.
fn stated(tree: &Tree, probe: Probe, path: &str, is_good: impl FnOnce(&str) -> bool) -> Finding {
    match tree.text(path) {
        None => unreadable(probe, path),
        Some(text) if is_good(&text) => Finding::good(probe, text),
        Some(text) => Finding::bad(probe, text),
    }
}

/// The first processor's flags.
struct Cpu {
    flags: Option<Vec<String>>,
}

impl Cpu {
    fn read(tree: &Tree) -> Self {
        let text = tree.text("proc/cpuinfo");
        let flags = text.as_deref().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"))?;
            Some(line.split_once(':')?.1.split_ascii_whitespace().map(str::to_owned).collect())
        });
        Self { flags }
    }

    /// Whether it has a feature; `None` where that cannot be told.
    fn has(&self, flag: &str) -> Option<bool> {
        self.flags.as_ref().map(|flags| flags.iter().any(|found| found == flag))
    }
}

fn kernel(tree: &Tree) -> Finding {
    /// memfd_secret came with it.
    const OLDEST: (u32, u32) = (5, 14);
    const PATH: &str = "proc/sys/kernel/osrelease";
    let Some(release) = tree.text(PATH) else { return unreadable(Kernel, PATH) };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST => Finding::good(Kernel, release),
        (Some(Ok(_)), Some(Ok(_))) => Finding::bad(Kernel, release),
        _ => Finding::unknown(Kernel, release),
    }
}

fn cpu_aes(cpu: &Cpu) -> Finding {
    match cpu.has("aes") {
        Some(true) => Finding::good(CpuAes, "the processor has AES"),
        Some(false) => Finding::bad(CpuAes, "the processor has no AES"),
        None => unreadable(CpuAes, "proc/cpuinfo"),
    }
}

fn cpu_vector(cpu: &Cpu) -> Finding {
    let wanted = ["vaes", "vpclmulqdq", "avx512f"];
    let Some(found) = wanted.into_iter().map(|flag| cpu.has(flag)).collect::<Option<Vec<_>>>() else {
        return unreadable(CpuVector, "proc/cpuinfo");
    };
    let names: Vec<_> =
        wanted.into_iter().zip(&found).filter(|(_, has)| **has).map(|(flag, _)| flag).collect();
    match names.as_slice() {
        ["vaes", "vpclmulqdq", ..] => Finding::good(CpuVector, names.join(", ")),
        [] => Finding::bad(CpuVector, "none of VAES, VPCLMULQDQ, AVX-512"),
        _ => Finding::bad(CpuVector, format!("only {}", names.join(", "))),
    }
}

fn swap(tree: &Tree) -> Finding {
    const PATH: &str = "proc/swaps";
    let Some(text) = tree.text(PATH) else { return unreadable(Swap, PATH) };
    let devices: Vec<_> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    // Compressed swap in memory is another matter.
    let on_disk: Vec<_> = devices.into_iter().filter(|device| !device.starts_with("/dev/zram")).collect();
    if on_disk.is_empty() { Finding::good(Swap, "none") } else { Finding::bad(Swap, on_disk.join(", ")) }
}

fn zram(tree: &Tree) -> Finding {
    const PATH: &str = "sys/block";
    let Some(disks) = tree.names(PATH) else { return unreadable(Zram, PATH) };
    let in_use = |disk: &String| {
        disk.starts_with("zram")
            && tree.text(&format!("{PATH}/{disk}/disksize")).is_none_or(|size| size != "0")
    };
    let used: Vec<_> = disks.into_iter().filter(in_use).collect();
    if used.is_empty() { Finding::good(Zram, "none") } else { Finding::bad(Zram, used.join(", ")) }
}

/// A way that a kernel may not have: it then has no such file, in a directory that it has. Whoever may not look knows nothing.
fn missing(tree: &Tree, probe: Probe, path: &str) -> Finding {
    if tree.is_missing(path) {
        Finding::good(probe, "not built into this kernel")
    } else {
        unreadable(probe, path)
    }
}

fn hibernation(tree: &Tree) -> Finding {
    const PATH: &str = "sys/power/disk";
    match tree.text(PATH) {
        // One that forbids it says so.
        None => missing(tree, Hibernation, PATH),
        Some(text) if text.contains("[disabled]") => Finding::good(Hibernation, "disabled"),
        Some(text) => Finding::bad(Hibernation, text),
    }
}

fn kexec(tree: &Tree) -> Finding {
    const PATH: &str = "proc/sys/kernel/kexec_load_disabled";
    match tree.text(PATH).as_deref() {
        None => missing(tree, Kexec, PATH),
        Some("1") => Finding::good(Kexec, "disabled"),
        Some(_) => Finding::bad(Kexec, "allowed"),
    }
}

fn kdump(tree: &Tree) -> Finding {
    const PATH: &str = "sys/kernel/kexec_crash_loaded";
    match tree.text(PATH).as_deref() {
        None => missing(tree, Kdump, PATH),
        Some("0") => Finding::good(Kdump, "no crash kernel is loaded"),
        Some(_) => Finding::bad(Kdump, "a crash kernel is loaded"),
    }
}

fn core_pattern(tree: &Tree) -> Finding {
    const PATH: &str = "proc/sys/kernel/core_pattern";
    match tree.text(PATH).as_deref() {
        None => unreadable(CorePattern, PATH),
        Some("") => Finding::good(CorePattern, "none"),
        Some(pattern @ ("|/bin/false" | "|/usr/bin/false")) => Finding::good(CorePattern, pattern),
        Some(pattern) => Finding::bad(CorePattern, pattern),
    }
}

fn suid_dumpable(tree: &Tree) -> Finding {
    stated(tree, SuidDumpable, "proc/sys/fs/suid_dumpable", |text| text == "0")
}

fn init_on_free(tree: &Tree) -> Finding {
    if tree.text("proc/cmdline").is_none() {
        return unreadable(InitOnFree, "proc/cmdline");
    }
    match tree.boot_option("init_on_free=").as_deref() {
        Some("1" | "y" | "on") => Finding::good(InitOnFree, "on"),
        Some(other) => Finding::bad(InitOnFree, format!("init_on_free={other}")),
        // A kernel may have it on by default, and does not tell.
        None => Finding::unknown(InitOnFree, "not on the kernel's command line"),
    }
}

fn ptrace_scope(tree: &Tree) -> Finding {
    let is_good = |text: &str| text.parse::<u8>().is_ok_and(|scope| scope >= 2);
    stated(tree, PtraceScope, "proc/sys/kernel/yama/ptrace_scope", is_good)
}

/// Whether somebody traces a thread of this very process: each can be attached to alone. One that attaches and lets go
/// between two looks is not seen.
fn tracer(tree: &Tree) -> Finding {
    const THREADS: &str = "proc/self/task";
    let Some(threads) = tree.names(THREADS).filter(|threads| !threads.is_empty()) else {
        return unreadable(Tracer, THREADS);
    };
    for thread in threads {
        let path = format!("{THREADS}/{thread}/status");
        let text = tree.text(&path);
        let tracer =
            text.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("TracerPid:")));
        match tracer.map(str::trim) {
            Some("0") => {}
            Some(pid) => {
                return Finding::bad(Tracer, format!("process {pid} traces thread {thread} of this one"));
            }
            // It has ended meanwhile.
            None if !tree.exists(&path) => {}
            None => return unreadable(Tracer, &path),
        }
    }
    Finding::good(Tracer, "nobody traces this process")
}

fn lockdown(tree: &Tree) -> Finding {
    const PATH: &str = "sys/kernel/security/lockdown";
    match tree.text(PATH) {
        None => unreadable(Lockdown, PATH),
        Some(text) if text.contains("[confidentiality]") => Finding::good(Lockdown, "confidentiality"),
        Some(text) => {
            let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
            Finding::bad(Lockdown, chosen.unwrap_or(&text))
        }
    }
}

/// What the filters of the sandbox answer with.
fn seccomp(tree: &Tree) -> Finding {
    const PATH: &str = "proc/sys/kernel/seccomp/actions_avail";
    let Some(actions) = tree.text(PATH) else {
        return Finding::bad(Seccomp, "this kernel has no filters of system calls");
    };
    let has = |wanted: &str| actions.split_whitespace().any(|action| action == wanted);
    if ["allow", "errno", "trap"].into_iter().all(has) {
        Finding::good(Seccomp, "filters work")
    } else {
        Finding::bad(Seccomp, format!("only {actions}"))
    }
}

fn secure_boot(tree: &Tree) -> Finding {
    let Some(bytes) = tree.bytes(&format!("{EFI_VARIABLES}/{SECURE_BOOT}")) else {
        return Finding::bad(SecureBoot, "no UEFI, or its variables are not mounted");
    };
    match bytes.get(4) {
        Some(1) => Finding::good(SecureBoot, "on"),
        Some(_) => Finding::bad(SecureBoot, "off"),
        None => Finding::unknown(SecureBoot, "the firmware's variable is cut"),
    }
}

fn iommu(tree: &Tree) -> Finding {
    const PATH: &str = "sys/kernel/iommu_groups";
    match tree.names(PATH) {
        Some(groups) if groups.is_empty() => Finding::bad(Iommu, "off"),
        Some(groups) => Finding::good(Iommu, format!("{} groups", groups.len())),
        None => unreadable(Iommu, PATH),
    }
}

fn memory_encryption(tree: &Tree, cpu: &Cpu) -> Finding {
    const PROBE: Probe = MemoryEncryption;
    const SECURITY_PROCESSOR: &str = "sys/bus/pci/drivers/ccp";
    let Some(sme) = cpu.has("sme") else { return unreadable(PROBE, "proc/cpuinfo") };
    if cpu.has("tdx_guest") == Some(true) || tree.exists("sys/devices/platform/sev-guest") {
        return Finding::good(PROBE, "a confidential guest");
    }
    // AMD's security processor says whether the firmware turned transparent encryption on.
    let devices = tree.names(SECURITY_PROCESSOR).unwrap_or_default();
    let status =
        devices.iter().find_map(|device| tree.text(&format!("{SECURITY_PROCESSOR}/{device}/tsme_status")));
    if status.as_deref() == Some("1") {
        return Finding::good(PROBE, "TSME is on");
    }
    if sme && tree.boot_option("mem_encrypt=").as_deref() == Some("on") {
        return Finding::good(PROBE, "SME is on (mem_encrypt=on)");
    }
    match (sme, cpu.has("tme") == Some(true), status) {
        (_, _, Some(_)) => Finding::bad(PROBE, "TSME is off"),
        (true, _, None) => {
            Finding::unknown(PROBE, "the processor has SME; whether it is used cannot be read")
        }
        (_, true, None) => {
            Finding::unknown(PROBE, "the processor has TME; whether it is used cannot be read")
        }
        (false, false, None) => Finding::bad(PROBE, "the processor reports none"),
    }
}

/// Firmware with the lock (MorLock, revisions 1 and 2) lets no one change the request from the moment it is locked to the next
/// start.
fn memory_overwrite(tree: &Tree) -> Finding {
    let value = |name: &str| tree.bytes(&format!("{EFI_VARIABLES}/{name}"))?.get(4).copied();
    let is_locked = value(MEMORY_OVERWRITE_LOCK).is_some_and(|lock| lock != 0);
    match value(MEMORY_OVERWRITE) {
        None => Finding::bad(MemoryOverwrite, "the firmware cannot be asked"),
        Some(_) if !is_locked => Finding::good(MemoryOverwrite, "the firmware can be asked"),
        Some(request) if request & 1 != 0 => {
            Finding::good(MemoryOverwrite, "the firmware has been asked, and nobody can take it back")
        }
        Some(_) => Finding::bad(MemoryOverwrite, "the request is off and locked until the next start"),
    }
}

fn tpm(tree: &Tree) -> Finding {
    match tree.text("sys/class/tpm/tpm0/tpm_version_major").as_deref() {
        Some("2") => Finding::good(Tpm, "TPM 2.0"),
        Some(version) => Finding::bad(Tpm, format!("TPM {version}")),
        None => Finding::bad(Tpm, "none"),
    }
}

fn clock(tree: &Tree, cpu: &Cpu) -> Finding {
    const PATH: &str = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = tree.text(PATH).unwrap_or_else(|| "unknown clock".to_owned());
    match cpu.has("hypervisor") {
        Some(false) => Finding::good(Clock, source),
        Some(true) => Finding::bad(Clock, format!("a virtual machine ({source})")),
        None => unreadable(Clock, "proc/cpuinfo"),
    }
}

fn power_warning(tree: &Tree, sources: Option<&[String]>) -> Finding {
    if let Some(sources @ [_, ..]) = sources {
        return Finding::good(PowerWarning, sources.join(", "));
    }
    const SUPPLIES: &str = "sys/class/power_supply";
    let supplies = tree.names(SUPPLIES).unwrap_or_default();
    let brings_mains = |supply: &String| {
        matches!(tree.text(&format!("{SUPPLIES}/{supply}/type")).as_deref(), Some("Mains" | "UPS" | "USB"))
    };
    let mut ways: Vec<String> = supplies.into_iter().filter(brings_mains).collect();
    ways.extend(tree.names("sys/bus/gpio/devices").unwrap_or_default());
    ways.extend(tree.names("sys/class/ipmi").unwrap_or_default());
    match (ways.is_empty(), sources) {
        (true, _) => Finding::bad(PowerWarning, "nothing on this machine warns; a UPS on the network would"),
        (false, Some(_)) => {
            Finding::bad(PowerWarning, format!("none is configured; there are {}", ways.join(", ")))
        }
        (false, None) => Finding::new(PowerWarning, Verdict::Good, format!("there are {}", ways.join(", "))),
    }
}

fn chassis(tree: &Tree) -> Finding {
    const MONITORS: &str = "sys/class/hwmon";
    let mut sensors = 0;
    let mut open = 0;
    for monitor in tree.names(MONITORS).unwrap_or_default() {
        for file in tree.names(&format!("{MONITORS}/{monitor}")).unwrap_or_default() {
            if file.starts_with("intrusion") && file.ends_with("_alarm") {
                sensors += 1;
                open +=
                    usize::from(tree.text(&format!("{MONITORS}/{monitor}/{file}")).as_deref() != Some("0"));
            }
        }
    }
    match (sensors, open) {
        (0, _) => Finding::bad(Chassis, "no intrusion sensor"),
        (_, 0) => Finding::good(Chassis, "closed"),
        _ => Finding::bad(Chassis, "it was opened, and the alarm has not been cleared"),
    }
}

fn watchdog(tree: &Tree) -> Finding {
    const CLASS: &str = "sys/class/watchdog";
    match tree.names(CLASS).unwrap_or_default().first() {
        Some(name) => {
            let identity = tree.text(&format!("{CLASS}/{name}/identity")).unwrap_or_else(|| name.clone());
            match tree.text(&format!("{CLASS}/{name}/state")).as_deref() {
                Some("active") => Finding::good(Watchdog, format!("{identity}, active")),
                Some(state) => Finding::bad(Watchdog, format!("{identity}, {state}: nobody feeds it")),
                None => Finding::unknown(Watchdog, format!("{identity}; whether it runs cannot be read")),
            }
        }
        None => Finding::bad(Watchdog, "none"),
    }
}
