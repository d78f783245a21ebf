//! What this machine does with memory: the probes whose answers travel as a node's hygiene evidence.
//!
//! A probe reads one fact from `/proc` or `/sys` and says whether it could carry a key out of the node's
//! memory: to a swap device, a core file, a hibernation image, a second kernel, a device without an IOMMU.
//!
//! Invariants:
//! - A probe only reads. It never changes the machine.
//! - What cannot be read is `Unknown`, never `Good`: evidence errs on the side of suspicion.
//! - The report is a claim by the node about itself. Without a TPM quote over it, it is worth what the node is.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longest file a probe reads. `/proc/cpuinfo` of a large server is the longest of them, and only its first
/// processor is of interest.
const PROBE_BYTES_MAX: usize = 64 * 1024;

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The machine is set as it should be.
    Good,
    /// A way for key material or plaintext to leave the node's memory is open.
    Weak,
    /// The kernel does not say.
    Unknown,
}

/// One probe's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable name of the probe, such as `swap`.
    pub probe: String,
    /// The verdict.
    pub verdict: Verdict,
    /// What was read, in a few words.
    pub found: String,
    /// Why it matters and how to mend it; empty where the verdict is `Good`.
    pub advice: String,
}

/// Every finding, in a fixed order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Probes the running machine.
    pub fn probe() -> Self {
        Self::probe_under(Path::new("/"))
    }

    /// Probes a tree that looks like a root file system: the running machine's, or a test's.
    pub fn probe_under(root: &Path) -> Self {
        let tree = Tree { root: root.to_owned() };
        let findings = vec![
            swap(&tree),
            core_pattern(&tree),
            hibernation(&tree),
            kexec(&tree),
            kernel_lockdown(&tree),
            ptrace_scope(&tree),
            iommu(&tree),
            memory_encryption(&tree),
        ];
        Self { findings }
    }

    /// The finding of the probe called `name`.
    pub fn finding(&self, name: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.probe == name)
    }
}

/// A root directory below which the kernel's files are read.
struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The start of a file as text, `None` where it is missing or unreadable.
    fn text(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.root.join(path)).ok()?;
        let end = bytes.len().min(PROBE_BYTES_MAX);
        Some(String::from_utf8_lossy(&bytes[..end]).trim().to_owned())
    }

    /// The number of entries in a directory, `None` where there is no such directory.
    fn entries(&self, path: &str) -> Option<usize> {
        Some(fs::read_dir(self.root.join(path)).ok()?.count())
    }
}

fn good(probe: &str, found: impl Into<String>) -> Finding {
    Finding { probe: probe.into(), verdict: Verdict::Good, found: found.into(), advice: String::new() }
}

fn weak(probe: &str, found: impl Into<String>, advice: &str) -> Finding {
    Finding { probe: probe.into(), verdict: Verdict::Weak, found: found.into(), advice: advice.into() }
}

fn unknown(probe: &str, path: &str, advice: &str) -> Finding {
    let found = format!("/{path} could not be read");
    Finding { probe: probe.into(), verdict: Verdict::Unknown, found, advice: advice.into() }
}

fn swap(tree: &Tree) -> Finding {
    const PATH: &str = "proc/swaps";
    const ADVICE: &str = "Plaintext in ordinary memory may be written to swap. Turn it off: `swapoff -a`, and remove it from /etc/fstab.";
    let Some(text) = tree.text(PATH) else { return unknown("swap", PATH, ADVICE) };
    let devices: Vec<_> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if devices.is_empty() { good("swap", "none") } else { weak("swap", devices.join(", "), ADVICE) }
}

fn core_pattern(tree: &Tree) -> Finding {
    const PATH: &str = "proc/sys/kernel/core_pattern";
    const ADVICE: &str = "A crash of another program may be piped or written out with its memory. Set kernel.core_pattern=|/bin/false; the node itself never dumps core.";
    let Some(text) = tree.text(PATH) else { return unknown("core-pattern", PATH, ADVICE) };
    if text.is_empty() || text == "|/bin/false" || text == "|/usr/bin/false" {
        good("core-pattern", if text.is_empty() { "none" } else { &text })
    } else {
        weak("core-pattern", text, ADVICE)
    }
}

fn hibernation(tree: &Tree) -> Finding {
    const PATH: &str = "sys/power/disk";
    const ADVICE: &str = "A hibernation image holds all memory. Boot with `nohibernate`.";
    match tree.text(PATH) {
        // A kernel without hibernation has no such file; one that forbids it says so.
        None => good("hibernation", "not built into this kernel"),
        Some(text) if text.contains("[disabled]") => good("hibernation", "disabled"),
        Some(text) => weak("hibernation", text, ADVICE),
    }
}

fn kexec(tree: &Tree) -> Finding {
    const PATH: &str = "proc/sys/kernel/kexec_load_disabled";
    const ADVICE: &str = "A second kernel could read this one's memory. Set kernel.kexec_load_disabled=1.";
    match tree.text(PATH).as_deref() {
        None => good("kexec", "not built into this kernel"),
        Some("1") => good("kexec", "disabled"),
        Some(_) => weak("kexec", "allowed", ADVICE),
    }
}

fn kernel_lockdown(tree: &Tree) -> Finding {
    const PATH: &str = "sys/kernel/security/lockdown";
    const ADVICE: &str = "Root can read kernel memory. Boot with `lockdown=confidentiality`.";
    let Some(text) = tree.text(PATH) else { return unknown("lockdown", PATH, ADVICE) };
    if text.contains("[confidentiality]") {
        good("lockdown", "confidentiality")
    } else {
        weak("lockdown", text, ADVICE)
    }
}

fn ptrace_scope(tree: &Tree) -> Finding {
    const PATH: &str = "proc/sys/kernel/yama/ptrace_scope";
    const ADVICE: &str = "Programs of the same user can read each other's memory. Set kernel.yama.ptrace_scope=3; the node itself is never dumpable.";
    let Some(text) = tree.text(PATH) else { return unknown("ptrace-scope", PATH, ADVICE) };
    match text.parse::<u8>() {
        Ok(2..) => good("ptrace-scope", text),
        _ => weak("ptrace-scope", text, ADVICE),
    }
}

fn iommu(tree: &Tree) -> Finding {
    const PATH: &str = "sys/kernel/iommu_groups";
    const ADVICE: &str =
        "A device may read all memory by DMA. Turn the IOMMU on in the firmware and boot with `iommu=force`.";
    match tree.entries(PATH) {
        Some(0) => weak("iommu", "off", ADVICE),
        Some(groups) => good("iommu", format!("{groups} groups")),
        None => unknown("iommu", PATH, ADVICE),
    }
}

fn memory_encryption(tree: &Tree) -> Finding {
    const PATH: &str = "proc/cpuinfo";
    const ADVICE: &str = "Frozen or interposed memory modules can be read. Turn on TSME (AMD) or TME (Intel) in the firmware where the processor has it.";
    let Some(text) = tree.text(PATH) else { return unknown("memory-encryption", PATH, ADVICE) };
    let flags = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    // The flag says that the processor can; whether the firmware turned transparent encryption on is not visible from here.
    match ["sme", "tme"].into_iter().find(|wanted| flags.split_whitespace().any(|flag| flag == *wanted)) {
        Some(flag) => Finding {
            probe: "memory-encryption".into(),
            verdict: Verdict::Unknown,
            found: format!("the processor has {flag}; whether the firmware uses it cannot be read"),
            advice: ADVICE.into(),
        },
        None => weak("memory-encryption", "the processor reports none", ADVICE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn verdict(files: &[(&str, &str)], probe: &str) -> Verdict {
        Report::probe_under(tree(files).path()).finding(probe).unwrap().verdict
    }

    #[test]
    fn each_probe_tells_a_good_setting_from_a_weak_one() {
        let cases: [(&str, &str, &str, &str); 6] = [
            ("swap", "proc/swaps", "Filename Type Size", "Filename Type Size\n/dev/sda2 partition 8"),
            ("core-pattern", "proc/sys/kernel/core_pattern", "|/bin/false", "/var/cores/%p"),
            ("hibernation", "sys/power/disk", "[disabled]", "[platform] shutdown"),
            ("kexec", "proc/sys/kernel/kexec_load_disabled", "1", "0"),
            ("lockdown", "sys/kernel/security/lockdown", "none [confidentiality]", "[none] integrity"),
            ("ptrace-scope", "proc/sys/kernel/yama/ptrace_scope", "3", "0"),
        ];
        for (probe, path, set, unset) in cases {
            assert_eq!(verdict(&[(path, set)], probe), Verdict::Good, "{probe}");
            assert_eq!(verdict(&[(path, unset)], probe), Verdict::Weak, "{probe}");
        }
    }

    #[test]
    fn an_unreadable_fact_is_never_called_good() {
        for probe in ["swap", "core-pattern", "lockdown", "ptrace-scope", "iommu", "memory-encryption"] {
            assert_eq!(verdict(&[], probe), Verdict::Unknown, "{probe}");
        }
    }

    #[test]
    fn a_weak_finding_says_how_to_mend_it() {
        let report = Report::probe_under(tree(&[("proc/swaps", "Filename\n/dev/zram0 partition 1")]).path());
        let finding = report.finding("swap").unwrap();
        assert!(finding.found.contains("/dev/zram0") && finding.advice.contains("swapoff"));
    }

    #[test]
    fn the_running_machine_can_be_probed() {
        assert_eq!(Report::probe().findings.len(), 8);
    }
}
