//! `doctor`: what this machine has and lacks for keeping keys, for people and for scripts.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use aes_xts::Kernel;
use config::NodeConfig;
use hygiene::{Finding, Report, Subject, Verdict, Weight};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::failure::{Done, Failure};
use crate::output::Output;

/// The exit statuses, which are this command's own: a script wants to know how bad it is.
const ALL_GOOD: u8 = 0;
const WARNINGS: u8 = 1;
const BROKEN: u8 = 2;
/// The report could not be made: the configuration cannot be read.
const NO_REPORT: u8 = 3;

/// Widest name of a probe.
const NAME_COLUMNS: usize = 18;

#[derive(Serialize)]
struct Document<'a> {
    verdict: Verdict,
    good: usize,
    unknown: usize,
    weak: usize,
    broken: usize,
    findings: Vec<Entry<'a>>,
    cipher: Cipher,
}

/// The cipher that a node on this machine would use, and its speed on one core in 4 KiB sectors.
#[derive(Serialize)]
struct Cipher {
    kernel: &'static str,
    mib_per_second: u64,
}

impl Cipher {
    fn of_this_machine() -> Self {
        let (kernel, begun) = (Kernel::fastest(), Instant::now());
        Self { kernel: kernel.name(), mib_per_second: kernel.measure(|| begun.elapsed()) >> 20 }
    }
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    finding: &'a Finding,
    required: bool,
    why: &'static str,
    mend: &'static str,
}

/// Looks, reports, and says how bad it is.
pub(crate) fn run(arguments: &DoctorArgs, output: Output) -> ExitCode {
    let shown = look(arguments.config.as_deref()).and_then(|report| {
        let document = document(&report, Cipher::of_this_machine());
        output.show(&document, || describe(&report, &document.cipher, std::io::stdout().is_terminal()))?;
        Ok(exit_status(report.worst()))
    });
    match shown {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(NO_REPORT)
        }
    }
}

fn look(config: Option<&Path>) -> Done<Report> {
    let subject = Subject::this_machine();
    let Some(path) = config else { return Ok(subject.report()) };
    let config = NodeConfig::load(path).map_err(Failure::from)?;
    Ok(subject.with_installation(&config.installation()).report())
}

fn exit_status(worst: Verdict) -> u8 {
    match worst {
        Verdict::Good => ALL_GOOD,
        Verdict::Unknown | Verdict::Weak => WARNINGS,
        Verdict::Broken => BROKEN,
    }
}

fn document(report: &Report, cipher: Cipher) -> Document<'_> {
    Document {
        verdict: report.worst(),
        good: report.count(Verdict::Good),
        unknown: report.count(Verdict::Unknown),
        weak: report.count(Verdict::Weak),
        broken: report.count(Verdict::Broken),
        findings: report.findings.iter().map(entry).collect(),
        cipher,
    }
}

fn entry(finding: &Finding) -> Entry<'_> {
    let probe = finding.probe;
    Entry { finding, required: probe.weight() == Weight::Required, why: probe.why(), mend: probe.mend() }
}

/// The worst first, with what to do about it; what is good comes last, on one line each.
fn describe(report: &Report, cipher: &Cipher, colours: bool) -> String {
    let count = |verdict| report.count(verdict);
    let (broken, weak, unknown) = (count(Verdict::Broken), count(Verdict::Weak), count(Verdict::Unknown));
    let total = report.findings.len();
    let mut text = match report.worst() {
        Verdict::Broken => {
            format!("{} required of {total} checks {} BROKEN", broken, plural(broken, "is", "are"))
        }
        Verdict::Good => format!("All {total} checks are good"),
        Verdict::Weak | Verdict::Unknown => "Everything required is there".to_owned(),
    };
    if weak + unknown > 0 {
        text.push_str(&format!("; {weak} could be better, {unknown} cannot be told"));
    }
    text.push_str(".\n");
    for verdict in [Verdict::Broken, Verdict::Weak, Verdict::Unknown, Verdict::Good] {
        let findings: Vec<_> = report.findings.iter().filter(|f| f.verdict == verdict).collect();
        if !findings.is_empty() {
            text.push('\n');
        }
        for Finding { probe, found, .. } in findings {
            let mark = mark(verdict, colours);
            text.push_str(&format!("{mark}  {:NAME_COLUMNS$}  {found}\n", probe.name()));
            if verdict != Verdict::Good {
                let indent = " ".repeat(9);
                text.push_str(&format!("{indent}why:   {}\n{indent}mend:  {}\n", probe.why(), probe.mend()));
            }
        }
    }
    let Cipher { kernel, mib_per_second } = cipher;
    text.push_str(&format!("\nCipher: AES-256-XTS by {kernel}, {mib_per_second} MiB/s a core.\n"));
    text
}

fn plural(count: usize, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}

/// Seven columns wide, whatever the terminal makes of the colours.
fn mark(verdict: Verdict, colours: bool) -> String {
    let (word, colour) = match verdict {
        Verdict::Good => ("good", "32"),
        Verdict::Unknown => ("unknown", "36"),
        Verdict::Weak => ("weak", "33"),
        Verdict::Broken => ("BROKEN", "1;31"),
    };
    let padded = format!("{word:<7}");
    if colours { format!("\u{1b}[{colour}m{padded}\u{1b}[0m") } else { padded }
}

#[cfg(test)]
mod tests {
    use hygiene::Probe;

    use super::*;

    const CIPHER: Cipher = Cipher { kernel: "portable", mib_per_second: 700 };

    fn report(verdicts: &[(Probe, Verdict)]) -> Report {
        let finding = |(probe, verdict): &(Probe, Verdict)| Finding {
            probe: *probe,
            verdict: *verdict,
            found: "as found".into(),
        };
        Report { findings: verdicts.iter().map(finding).collect() }
    }

    #[test]
    fn the_exit_status_is_that_of_the_worst() {
        for (worst, status) in
            [(Verdict::Good, 0), (Verdict::Unknown, 1), (Verdict::Weak, 1), (Verdict::Broken, 2)]
        {
            let report = report(&[(Probe::Kernel, Verdict::Good), (Probe::Swap, worst)]);
            assert_eq!(exit_status(report.worst()), status, "{worst:?}");
        }
    }

    #[test]
    fn the_worst_comes_first_and_says_what_to_do() {
        let report = report(&[
            (Probe::Kernel, Verdict::Good),
            (Probe::Iommu, Verdict::Weak),
            (Probe::Swap, Verdict::Broken),
        ]);
        let text = describe(&report, &CIPHER, false);
        let places: Vec<_> =
            ["1 required", "BROKEN   swap", "swapoff", "weak     iommu", "iommu=force", "good     kernel"]
                .iter()
                .map(|part| text.find(part).unwrap_or_else(|| panic!("no {part} in\n{text}")))
                .collect();
        assert!(places.is_sorted(), "{text}");
        assert!(!text.contains('\u{1b}') && describe(&report, &CIPHER, true).contains("\u{1b}[1;31mBROKEN"));
        assert!(text.ends_with("AES-256-XTS by portable, 700 MiB/s a core.\n"), "{text}");
    }

    #[test]
    fn the_document_names_every_probe_with_its_words() {
        let report = report(&[(Probe::Swap, Verdict::Broken), (Probe::Iommu, Verdict::Weak)]);
        let document = serde_json::to_value(document(&report, CIPHER)).unwrap();
        assert_eq!(document["cipher"]["kernel"], "portable");
        assert_eq!((&document["verdict"], &document["broken"]), (&"broken".into(), &1.into()));
        let swap = &document["findings"][0];
        assert_eq!((&swap["probe"], &swap["verdict"]), (&"swap".into(), &"broken".into()));
        assert_eq!(swap["required"], true);
        assert!(swap["why"].is_string() && swap["mend"].is_string() && swap["found"] == "as found");
        assert_eq!(document["findings"][1]["required"], false);
    }
}
