//! What is looked at: each probe with its weight, why it matters, and how to mend it. The words of the doctor.

use serde::{Deserialize, Serialize};

/// How much a probe weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Without it the node does not keep its promise.
    Required,
    /// It closes a way that the node's own means leave open.
    Advised,
}

macro_rules! probes {
    ($($name:ident = $text:literal, $weight:ident, $why:literal, $mend:literal;)*) => {
        /// What is looked at. The order is the order of the report.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[expect(missing_docs, reason = "each says why itself")]
        pub enum Probe { $($name,)* }

        impl Probe {
            /// Every probe.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// How much it weighs.
            pub const fn weight(self) -> Weight {
                match self { $(Self::$name => Weight::$weight,)* }
            }

            /// Whether it is about a way for memory to leave the machine, which can open while keys are held.
            pub const fn guards_memory(self) -> bool {
                matches!(
                    self,
                    Self::Swap
                        | Self::Zram
                        | Self::Hibernation
                        | Self::Kexec
                        | Self::Kdump
                        | Self::CorePattern
                        | Self::SuidDumpable
                        | Self::PtraceScope
                        | Self::Tracer
                        | Self::Lockdown
                        | Self::Iommu
                )
            }

            /// Why it matters.
            pub const fn why(self) -> &'static str {
                match self { $(Self::$name => $why,)* }
            }

            /// How to mend it.
            pub const fn mend(self) -> &'static str {
                match self { $(Self::$name => $mend,)* }
            }
        }
    };
}

probes! {
    SecretMemory = "secret-memory", Required,
        "Keys live in memory that not even the kernel's own mappings reach (memfd_secret).",
        "Boot with secretmem.enable=1, or set allow_mlock = true knowing that root can then read keys and a kill leaves them in RAM.";
    LockedMemory = "locked-memory", Required,
        "The arena and the key stack are locked memory; past the limit the node does not start.",
        "Use the shipped unit (LimitMEMLOCK=8M), or `ulimit -l 8192` in this shell.";
    Mseal = "mseal", Advised,
        "Sealed mappings keep whoever takes over the program from putting readable memory in the place of the arena.",
        "Install Linux 6.10 or later, 64 bits.";
    RealtimePriority = "realtime-priority", Advised,
        "At normal priority a busy machine can delay the wipe by tens of milliseconds.",
        "Use the shipped unit (LimitRTPRIO=10), or `ulimit -r 10` in this shell.";
    Kernel = "kernel", Required,
        "Older kernels have no memfd_secret.",
        "Install Linux 5.14 or later.";
    CpuAes = "cpu-aes", Required,
        "Without the processor's own AES the cipher is slow, and its time depends on the key.",
        "Use a processor with AES instructions, or let the hypervisor pass them on.";
    CpuVector = "cpu-vector", Advised,
        "The fastest kernels of the cipher want VAES and VPCLMULQDQ.",
        "Nothing to mend: a newer processor encrypts several times as fast; in a virtual machine pass the host's model on.";
    Swap = "swap", Required,
        "Plaintext in ordinary memory may be written to swap, and stays there.",
        "`swapoff -a`, and take it out of /etc/fstab.";
    Zram = "zram", Advised,
        "Compressed swap keeps copies of ordinary memory that no wipe reaches.",
        "Remove the zram device (`zramctl --reset`), and the generator that makes it.";
    Hibernation = "hibernation", Required,
        "A hibernation image holds all memory.",
        "Boot with `nohibernate`.";
    Kexec = "kexec", Advised,
        "A second kernel could read this one's memory.",
        "Set kernel.kexec_load_disabled=1.";
    Kdump = "kdump", Required,
        "After a crash the loaded crash kernel writes all memory to disk.",
        "Stop kdump (`systemctl disable --now kdump kdump-tools`) and boot without crashkernel=.";
    CorePattern = "core-pattern", Advised,
        "A crash of another program may be written out with what it read from the node. The node itself never dumps core.",
        "Set kernel.core_pattern=|/bin/false.";
    SuidDumpable = "suid-dumpable", Advised,
        "Programs that changed their rights may leave core files.",
        "Set fs.suid_dumpable=0.";
    InitOnFree = "init-on-free", Advised,
        "Pages that the kernel frees keep their content until somebody uses them again.",
        "Boot with init_on_free=1.";
    PtraceScope = "ptrace-scope", Advised,
        "Programs of the same user can read each other's memory. The node itself is not traceable.",
        "Set kernel.yama.ptrace_scope=3.";
    Tracer = "tracer", Required,
        "A debugger that root attached reads ordinary memory and can make the program do anything.",
        "Find out who traces it (TracerPid in /proc/PID/status), and start the node without it.";
    Lockdown = "lockdown", Advised,
        "Without it root can read and change the kernel's memory.",
        "Boot with lockdown=confidentiality.";
    Landlock = "landlock", Advised,
        "The node gives up all files but its own by it.",
        "Use a kernel with CONFIG_SECURITY_LANDLOCK, and name landlock in lsm=.";
    Seccomp = "seccomp", Required,
        "The node gives up every system call that serving does not need, and does not start where it cannot.",
        "Use a kernel with CONFIG_SECCOMP_FILTER.";
    SecureBoot = "secure-boot", Advised,
        "Whoever can start another kernel can start one that keeps keys.",
        "Turn Secure Boot on in the firmware, and boot a signed image.";
    Iommu = "iommu", Advised,
        "A device may read all memory by DMA.",
        "Turn the IOMMU on in the firmware, and boot with iommu=force.";
    MemoryEncryption = "memory-encryption", Advised,
        "Frozen or interposed memory modules can be read.",
        "Turn on TSME (AMD) or TME (Intel) in the firmware where the processor has it.";
    MemoryOverwrite = "memory-overwrite", Advised,
        "After a sudden reset the firmware can be asked to clear memory before it starts anything.",
        "Boot by UEFI with a firmware that has MemoryOverwriteRequestControl, and lock it nowhere before the node starts.";
    Tpm = "tpm", Advised,
        "Without a TPM 2.0 the node's word about itself is only a claim.",
        "Turn the TPM on in the firmware.";
    Clock = "clock", Advised,
        "A hypervisor can stop the clock that leases are counted on, and copy memory.",
        "Run on the machine itself, or accept it: SECURITY.md says what then does not hold.";
    PowerWarning = "power-warning", Advised,
        "The node can forget before the power is gone only when something tells it.",
        "Connect a UPS or a supply's power-good line, and name it under [sources].";
    Chassis = "chassis", Advised,
        "Without a sensor nobody notices that the machine is opened.",
        "Where the board has an intrusion header, connect it, load its driver, and name it under [sources.chassis].";
    Watchdog = "watchdog", Advised,
        "A machine that hangs holds its keys until somebody comes.",
        "Load the watchdog's driver and name it under [watchdog], or let systemd feed it (RuntimeWatchdogSec=).";
    StateDir = "state-dir", Required,
        "What others can write there decides whose grants the node takes.",
        "Make it the node's own: `chmod 700`, and `chown` to the node's user.";
    KeyFiles = "key-files", Required,
        "Whoever reads the node's private keys can claim to be it.",
        "`chmod 600`, and `chown` to the node's user.";
    Pools = "pools", Required,
        "A pool that cannot be opened keeps the node from starting.",
        "Correct the path, prepare it with `nightlatch pool create`, or give the node's user access (group disk).";
    Sources = "sources", Advised,
        "A source of triggers that cannot be heard warns of nothing.",
        "Correct its table in node.toml, or give the node's user access to what it reads.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_travel() {
        for probe in Probe::ALL {
            assert_eq!(serde_json::to_value(probe).unwrap(), probe.name());
        }
    }

    #[test]
    fn every_probe_says_why_and_what_to_do_in_a_sentence() {
        for probe in Probe::ALL {
            for text in [probe.why(), probe.mend()] {
                assert!(text.len() > 20 && text.ends_with('.'), "{probe:?}: {text}");
            }
        }
    }
}
