//! What this machine does with memory, and what it has for a node to lean on: the requirements of key custody.
//!
//! One report serves three: it travels as a node's hygiene evidence, it is watched while keys are held (what gets worse
//! is a trigger), and `nightlatch doctor` shows it to people.
//!
//! Invariants:
//! - A probe only reads. It never changes the machine. A server that a source asks is dialled, and told nothing.
//! - What cannot be read is [`Verdict::Unknown`], never good: evidence errs on the side of suspicion.
//! - Facts that take a system call which a confined node may not make ([`Live`]) and those of the configuration
//!   ([`Installation`]) are taken once, at the start; files of the kernel are read anew for each report.
//! - The report is a claim by the node about itself. Without a TPM quote over it, it is worth what the node is.

#![expect(
    unsafe_code,
    reason = "three system calls that no library wraps: memfd_secret, mseal and landlock_create_ruleset"
)]

mod files;
mod installation;
mod live;
mod probe;
mod tree;

pub use installation::{Hearing, Installation, SourceCheck};
pub use live::{Live, MEMLOCK_BYTES_MIN};
pub use probe::{Probe, Weight};

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::tree::Tree;

/// Longest description of what was found: thirty of them must fit a node's evidence.
const FOUND_BYTES_MAX: usize = 200;

/// What a probe makes of what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It cannot be told.
    Unknown,
    /// Not as it should be, and a way for memory to leave the machine, or a help less.
    Weak,
    /// Not as it must be.
    Broken,
}

impl Verdict {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Unknown => "unknown",
            Self::Weak => "weak",
            Self::Broken => "broken",
        }
    }
}

/// One probe's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The probe.
    pub probe: Probe,
    /// The verdict.
    pub verdict: Verdict,
    /// What was read, in a few words.
    pub found: String,
}

impl Finding {
    fn new(probe: Probe, verdict: Verdict, found: impl Into<String>) -> Self {
        let mut found: String = found.into();
        if found.len() > FOUND_BYTES_MAX {
            let end = (0..=FOUND_BYTES_MAX - 3).rev().find(|end| found.is_char_boundary(*end)).unwrap_or(0);
            found.truncate(end);
            found.push('…');
        }
        Self { probe, verdict, found }
    }

    fn good(probe: Probe, found: impl Into<String>) -> Self {
        Self::new(probe, Verdict::Good, found)
    }

    /// Not as it should be: how bad that is, the probe knows.
    fn bad(probe: Probe, found: impl Into<String>) -> Self {
        let verdict = match probe.weight() {
            Weight::Required => Verdict::Broken,
            Weight::Advised => Verdict::Weak,
        };
        Self::new(probe, verdict, found)
    }

    fn unknown(probe: Probe, found: impl Into<String>) -> Self {
        Self::new(probe, Verdict::Unknown, found)
    }
}

/// Every finding, in the order of the probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The finding of a probe.
    pub fn finding(&self, probe: Probe) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.probe == probe)
    }

    /// The worst verdict in it.
    pub fn worst(&self) -> Verdict {
        self.findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Unknown)
    }

    /// How many findings have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// What was good in `earlier` and is not any more.
    pub fn regressions<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = &'a Finding> {
        self.findings.iter().filter(|now| {
            let before = earlier.finding(now.probe).map(|before| before.verdict);
            now.verdict != Verdict::Good && before == Some(Verdict::Good)
        })
    }
}

/// What is reported on: a root directory's kernel files, the facts of a process, and those of an installation.
#[derive(Clone, Debug)]
pub struct Subject {
    root: PathBuf,
    live: Live,
    installed: Vec<Finding>,
    /// The names of those that warn of a power loss.
    sources: Option<Vec<String>>,
}

impl Subject {
    /// The machine that this runs on, and this process.
    pub fn this_machine() -> Self {
        Self::recorded(Path::new("/"), Live::read())
    }

    /// A recorded tree that looks like a root file system, and recorded facts.
    pub fn recorded(root: &Path, live: Live) -> Self {
        Self { root: root.to_owned(), live, installed: Vec::new(), sources: None }
    }

    /// Looks at an installation too, now and once.
    #[must_use]
    pub fn with_installation(mut self, installation: &Installation) -> Self {
        self.installed = installation.findings();
        let warning = installation.sources.iter().filter(|source| source.warns_of_power);
        self.sources = Some(warning.map(|source| source.name.clone()).collect());
        self
    }

    /// Looks at all of it.
    pub fn report(&self) -> Report {
        let tree = Tree::new(&self.root);
        let mut findings = self.live.findings();
        findings.extend(files::findings(&tree, self.sources.as_deref()));
        findings.extend(self.installed.iter().cloned());
        findings.sort_by_key(|finding| finding.probe);
        Report { findings }
    }
}

#[cfg(test)]
mod tests;
