//! Which wipes the TPM's register of wipes was extended with since the machine was started: `wipes` in the state directory.
//! `attestation/ATTESTATION.md` has the format. What is in it nobody has to believe: replayed, it gives the register or it does not.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use attestation::{Digest, extended};
use lease::limits::WIPES_MAX;
use lease::message::{WipeCause, WipeRecord};
use units::{BootId, BootInstant};

const FILE: &str = "wipes";

/// First word of the file.
const HEAD: &str = "nightlatch-wipes-1";

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WipeLogError {
    #[error("the log of wipes {}: {source}; check the state directory", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the TPM's register of wipes is not what the log of wipes makes of it; start the machine again")]
    Disagrees,
    #[error("there were more than {WIPES_MAX} wipes since the machine was started; start it again")]
    Full,
}

/// The log.
#[derive(Debug)]
pub(crate) struct WipeLog {
    path: PathBuf,
    boot: BootId,
    began_at: Digest,
    records: Vec<WipeRecord>,
    /// How many of them the register was extended with.
    measured: usize,
}

impl WipeLog {
    /// Reads the log, and compares it with what the register holds.
    pub(crate) fn open(state_dir: &Path, boot: BootId, register: Digest) -> Result<Self, WipeLogError> {
        let path = state_dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(WipeLogError::File { path, source }),
        };
        // A line that was cut is none: its wipe was not measured.
        let mut lines = text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines();
        let began_at = lines.next().and_then(|head| began_at(head, boot));
        let Some(began_at) = began_at else {
            // None, or that of an earlier start: the register begins anew with the machine.
            let log = Self { path, boot, began_at: register, records: Vec::new(), measured: 0 };
            let head = format!("{HEAD} {boot} {}\n", hex::encode(register));
            return log.write(&head, true).map(|()| log);
        };
        let records: Vec<WipeRecord> = lines.map_while(record).collect();
        let mut value = began_at;
        let replayed = records.iter().map(|record| {
            value = extended(value, record.measurement(boot));
            value
        });
        let values: Vec<Digest> = std::iter::once(began_at).chain(replayed).collect();
        let measured = values.iter().rposition(|value| *value == register).ok_or(WipeLogError::Disagrees)?;
        let log = Self { path, boot, began_at, records, measured };
        let whole: String = std::iter::once(format!("{HEAD} {boot} {}\n", hex::encode(began_at)))
            .chain(log.records.iter().map(line))
            .collect();
        if whole != text {
            log.write(&whole, true)?;
        }
        Ok(log)
    }

    /// What the register held when the log was begun.
    pub(crate) fn began_at(&self) -> Digest {
        self.began_at
    }

    /// The wipes since then.
    pub(crate) fn records(&self) -> &[WipeRecord] {
        &self.records
    }

    /// What the register is to be extended with next.
    pub(crate) fn unmeasured(&self) -> Option<Digest> {
        self.records.get(self.measured).map(|record| record.measurement(self.boot))
    }

    /// The register was extended with that.
    pub(crate) fn note_measured(&mut self) {
        self.measured += 1;
    }

    /// Notes a wipe durably.
    pub(crate) fn append(&mut self, record: WipeRecord) -> Result<(), WipeLogError> {
        self.write(&line(&record), false)?;
        self.records.push(record);
        Ok(())
    }

    fn write(&self, text: &str, anew: bool) -> Result<(), WipeLogError> {
        let write = || {
            let mut options = std::fs::OpenOptions::new();
            options.create(true).append(!anew).write(true).truncate(anew);
            let mut file = options.open(&self.path)?;
            file.write_all(text.as_bytes())?;
            file.sync_data()
        };
        write().map_err(|source| WipeLogError::File { path: self.path.clone(), source })
    }
}

fn began_at(head: &str, boot: BootId) -> Option<Digest> {
    let mut words = head.split(' ');
    let mut digest = [0; 32];
    let is_this_boot = words.next() == Some(HEAD) && words.next() == Some(boot.to_string().as_str());
    hex::decode_to_slice(words.next()?, &mut digest).ok()?;
    (is_this_boot && words.next().is_none()).then_some(digest)
}

fn line(record: &WipeRecord) -> String {
    let mut line = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(line, "{} {} {}", record.cause.name(), record.at.0, record.generation);
    line
}

fn record(line: &str) -> Option<WipeRecord> {
    let mut words = line.split(' ');
    let cause = words.next()?;
    let cause = WipeCause::ALL.iter().copied().find(|known| known.name() == cause)?;
    let at = BootInstant(words.next()?.parse().ok()?);
    let generation = words.next()?.parse().ok()?;
    words.next().is_none().then_some(WipeRecord { cause, at, generation })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = BootId([7; 16]);

    fn wipe(at: u64) -> WipeRecord {
        WipeRecord { cause: WipeCause::PowerLine, at: BootInstant(at), generation: at }
    }

    fn open(dir: &Path, register: Digest) -> Result<WipeLog, WipeLogError> {
        WipeLog::open(dir, BOOT, register)
    }

    #[test]
    fn what_was_noted_and_not_measured_is_measured_by_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), [0; 32]).unwrap();
        log.append(wipe(1)).unwrap();
        let first = extended([0; 32], log.unmeasured().unwrap());
        log.note_measured();
        assert_eq!(log.unmeasured(), None);
        log.append(wipe(2)).unwrap();

        let next = open(dir.path(), first).unwrap();
        assert_eq!(next.records(), [wipe(1), wipe(2)]);
        assert_eq!(next.unmeasured(), Some(wipe(2).measurement(BOOT)));
        let untouched = open(dir.path(), [0; 32]).unwrap();
        assert_eq!(untouched.unmeasured(), Some(wipe(1).measurement(BOOT)));
    }

    #[test]
    fn a_register_that_the_log_does_not_explain_is_attested_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), [0; 32]).unwrap();
        log.append(wipe(1)).unwrap();
        let stranger = extended([0; 32], [9; 32]);
        assert!(matches!(open(dir.path(), stranger), Err(WipeLogError::Disagrees)));
        // A log without its last wipe, whose register has it.
        let after = extended([0; 32], wipe(1).measurement(BOOT));
        std::fs::write(dir.path().join(FILE), format!("{HEAD} {BOOT} {}\n", "00".repeat(32))).unwrap();
        assert!(matches!(open(dir.path(), after), Err(WipeLogError::Disagrees)));
    }

    #[test]
    fn another_start_of_the_machine_begins_another_log_and_a_cut_line_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), [0; 32]).unwrap();
        log.append(wipe(1)).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        std::fs::write(dir.path().join(FILE), &text[..text.len() - 4]).unwrap();
        let mut cut = open(dir.path(), [0; 32]).unwrap();
        assert_eq!(cut.records().len(), 0);
        cut.append(wipe(2)).unwrap();
        assert_eq!(open(dir.path(), [0; 32]).unwrap().records(), [wipe(2)]);

        let other = WipeLog::open(dir.path(), BootId([8; 16]), [0; 32]).unwrap();
        assert_eq!((other.records().len(), other.began_at()), (0, [0; 32]));
    }
}
