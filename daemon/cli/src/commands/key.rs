//! `nightlatch key`: officers, the ceremony, unsealing, backups of the ledger.
//!
//! Files: an officer's secret (`NAME.officer-key`, mode 0600) never leaves the officer's machine; its public half
//! (`NAME.officer`) goes to the ceremony; a share (`NAME.share`) is encrypted to its officer and useless alone.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use identity::{PeerName, PrivateFile};
use keyholder::api::{
    CeremonyRequest, CeremonyResult, KeyholderStatus, LedgerBackup, Officer, SealState, UnsealProgress,
    UnsealRequest,
};
use keyholder::shares::{SealedShare, Share};
use lease::envelope;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::args::Key;
use crate::commands::{named_key, wait};
use crate::connect::{Ask, Connections};
use crate::drill;
use crate::failure::{Done, Failure};
use crate::output::Output;

/// Version of an officer's key file.
const OFFICER_KEY_VERSION: u32 = 1;

/// Longest share, officer or backup file that is read: a ledger of thousands of volumes is a few MiB.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// An officer's envelope key pair.
pub(crate) struct OfficerKey {
    pub(crate) name: String,
    secret: Zeroizing<[u8; envelope::SECRET_BYTES]>,
}

/// An officer's key file. It borrows the secret's base64 from a buffer that is wiped, so that no copy is made.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfficerKeyFile<'a> {
    version: u32,
    name: &'a str,
    secret: &'a str,
}

impl OfficerKey {
    /// A new key.
    pub(crate) fn generate(name: &str) -> Done<Self> {
        let mut secret = Zeroizing::new([0; envelope::SECRET_BYTES]);
        getrandom::fill(secret.as_mut_slice()).map_err(|error| {
            Failure::local(format!("the system's random source failed: {error}"), "check this machine")
        })?;
        Ok(Self { name: name.to_owned(), secret })
    }

    /// Writes the secret file; fails where one exists.
    pub(crate) fn create(&self, path: &Path) -> Done {
        let secret = Zeroizing::new(BASE64.encode(self.secret.as_slice()));
        let file = OfficerKeyFile { version: OFFICER_KEY_VERSION, name: &self.name, secret: &secret };
        let text = Zeroizing::new(serde_json::to_string_pretty(&file).map_err(|error| unwritable(&error))?);
        Ok(PrivateFile::create(path, text.as_bytes())?)
    }

    /// Reads a secret file.
    pub(crate) fn load(path: &Path) -> Done<Self> {
        let text = PrivateFile::read(path, "officer key")?;
        let damaged = || {
            Failure::local(
                format!("{} is not an officer's key file", path.display()),
                "give the file that `nightlatch key officer` made, ending in .officer-key",
            )
        };
        let file: OfficerKeyFile<'_> = serde_json::from_slice(&text).map_err(|_| damaged())?;
        if file.version != OFFICER_KEY_VERSION {
            return Err(Failure::local(
                format!(
                    "{} has version {}, this program reads {OFFICER_KEY_VERSION}",
                    path.display(),
                    file.version
                ),
                "use the program that made it",
            ));
        }
        let mut secret = Zeroizing::new([0; envelope::SECRET_BYTES]);
        // The decoder wants room for its last quantum.
        let mut decoded = Zeroizing::new([0; envelope::SECRET_BYTES + 3]);
        match BASE64.decode_slice(file.secret.as_bytes(), decoded.as_mut_slice()) {
            Ok(envelope::SECRET_BYTES) => secret.copy_from_slice(&decoded[..envelope::SECRET_BYTES]),
            _ => return Err(damaged()),
        }
        Ok(Self { name: file.name.to_owned(), secret })
    }

    /// The public half, as a ceremony takes it.
    pub(crate) fn public(&self) -> Done<Officer> {
        let public = envelope::keypair(&self.secret)?;
        Ok(Officer { name: self.name.clone(), public_key: BASE64.encode(public.as_bytes()) })
    }
}

/// Decrypts a share on the officer's own machine.
pub(crate) fn open_share(share: &SealedShare, key: &OfficerKey) -> Done<Share> {
    Ok(share.open(&key.secret)?)
}

pub(crate) fn run(command: &Key, connections: impl FnOnce() -> Done<Connections>, output: Output) -> Done {
    match command {
        Key::Officer { name, out } => officer(name, out, output),
        Key::Ceremony { threshold, officers, out } => {
            ceremony(*threshold, officers, out, &connections()?, output)
        }
        Key::Unseal { share, officer_key } => unseal(share, officer_key, &connections()?, output),
        Key::Create { name, node, pool } => named_key::create(name, (node, *pool), &connections()?, output),
        Key::List => named_key::list(&connections()?, output),
        Key::Status => status(&connections()?, output),
        Key::Backup { file } => backup(file, &connections()?, output),
        Key::Restore { file } => restore(file, &connections()?, output),
        Key::Drill(arguments) => drill::run(arguments, connections, output),
    }
}

fn unwritable(error: &serde_json::Error) -> Failure {
    Failure::local(format!("the file cannot be written: {error}"), "")
}

/// Reads a JSON file that is no secret.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, what: &str) -> Done<T> {
    use std::io::Read;
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text))
        .map_err(|error| Failure::file("read", path, &error))?;
    serde_json::from_slice(&text).map_err(|error| {
        Failure::local(
            format!("{} is not {what}: {error}", path.display()),
            "check that it is the right file, and whole",
        )
    })
}

fn to_json(value: &impl Serialize) -> Done<String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| unwritable(&error))
}

fn officer(name: &PeerName, out: &Path, output: Output) -> Done {
    let key = OfficerKey::generate(name.as_str())?;
    let secret_file = out.join(format!("{name}.officer-key"));
    let public_file = out.join(format!("{name}.officer"));
    if public_file.exists() {
        return Err(identity::IdentityError::Exists { path: public_file }.into());
    }
    let public = key.public()?;
    key.create(&secret_file)?;
    fs::write(&public_file, to_json(&public)?)
        .map_err(|error| Failure::file("write", &public_file, &error))?;
    let made = serde_json::json!({ "secret_file": secret_file, "public_file": public_file });
    output.show(&made, || {
        format!(
            "Made an officer's key for {name}:\n  {}   secret: keep it, and a copy of it in another place\n  {}       \
             public: give it to whoever holds the ceremony",
            secret_file.display(),
            public_file.display()
        )
    })
}

fn ceremony(
    threshold: u8,
    officer_files: &[PathBuf],
    out: &Path,
    connections: &Connections,
    output: Output,
) -> Done {
    let officers: Vec<Officer> =
        officer_files.iter().map(|path| read_json(path, "an officer's public file")).collect::<Done<_>>()?;
    let share_file = |name: &str| out.join(format!("{name}.share"));
    for officer in &officers {
        // The name becomes a file name.
        let _: PeerName = officer.name.parse().map_err(identity::IdentityError::Name)?;
        // Before the root is made: shares that could not be written would be lost with it.
        let path = share_file(&officer.name);
        if path.exists() {
            return Err(identity::IdentityError::Exists { path }.into());
        }
    }
    fs::create_dir_all(out).map_err(|error| Failure::file("make", out, &error))?;
    let keyholder = connections.keyholder(Ask::Decide)?;
    let request = CeremonyRequest { threshold, officers };
    let made: CeremonyResult = wait(keyholder.post("/v1/ceremony", &request))??;
    let mut files = Vec::new();
    for share in &made.shares {
        let path = share_file(&share.officer);
        PrivateFile::create(&path, to_json(share)?.as_bytes())?;
        files.push(path);
    }
    let summary = serde_json::json!({
        "share_set": made.share_set,
        "grant_signing_key": made.grant_signing_key,
        "share_files": files,
    });
    output.show(&summary, || {
        let list: String = files.iter().map(|path| format!("  {}\n", path.display())).collect();
        format!(
            "Made a new root in the keyholder, shared as set {}: any {threshold} of these {} shares unseal it.\n{list}\n\
             Grant-signing key, for each node's state/keyholder.pub:\n  {}\n\n\
             Give each share to its officer. Then save the ledger: nightlatch key backup FILE",
            made.share_set.set,
            files.len(),
            made.grant_signing_key
        )
    })
}

fn unseal(share: &Path, officer_key: &Path, connections: &Connections, output: Output) -> Done {
    let key = OfficerKey::load(officer_key)?;
    let sealed: SealedShare = read_json(share, "a share")?;
    let request = UnsealRequest { share: open_share(&sealed, &key)? };
    let keyholder = connections.keyholder(Ask::Decide)?;
    let progress: UnsealProgress = wait(keyholder.post("/v1/unseal", &request))??;
    output.show(&progress, || match progress.state {
        SealState::Unsealed => "The keyholder is unsealed.".to_owned(),
        _ => format!(
            "{} of {} shares are there; the next officer submits one with `nightlatch key unseal`.",
            progress.shares.have, progress.shares.need
        ),
    })
}

fn status(connections: &Connections, output: Output) -> Done {
    let keyholder = connections.keyholder(Ask::Read)?;
    let status: KeyholderStatus = wait(keyholder.get("/v1/status"))??;
    output.show(&status, || describe(&status))
}

/// The keyholder's own state, and what to do about it.
pub(crate) fn describe(status: &KeyholderStatus) -> String {
    let mut lines = vec![match status.state {
        SealState::Empty => format!(
            "Keyholder {} is empty: hold a ceremony (`nightlatch key ceremony`) or restore a backup (`nightlatch key restore`).",
            status.name
        ),
        SealState::Sealed => format!("Keyholder {} is sealed and waits for shares.", status.name),
        SealState::Unsealed => {
            format!("Keyholder {} is unsealed; its root is in {} memory.", status.name, status.key_memory)
        }
    }];
    if let (Some(shares), SealState::Sealed) = (status.shares, status.state) {
        lines.push(format!(
            "  shares: {} of {} submitted (`nightlatch key unseal`)",
            shares.have, shares.need
        ));
    }
    if let Some(set) = &status.share_set {
        let names: Vec<_> = set.officers.iter().map(|officer| officer.name.as_str()).collect();
        lines.push(format!("  share set {}: {} of {}", set.set, set.threshold, names.join(", ")));
    }
    if let Some(key) = &status.grant_signing_key {
        lines.push(format!("  grant-signing key {key}"));
    }
    if let Some(serial) = status.ledger_serial {
        let backup = match status.backup_serial {
            Some(saved) if saved == serial => "saved".to_owned(),
            Some(saved) => format!("last saved at serial {saved}: save it (`nightlatch key backup FILE`)"),
            None => "never saved: save it (`nightlatch key backup FILE`)".to_owned(),
        };
        lines.push(format!("  ledger serial {serial}, {backup}"));
    }
    lines.push(match &status.last_drill {
        Some(drill) if drill.passed => format!(
            "  last drill {} with ledger serial {}: passed",
            crate::output::moment(drill.at_unix_s),
            drill.report.ledger_serial
        ),
        Some(drill) => format!(
            "  LAST DRILL {} FAILED: repeat it (`nightlatch key drill`) until it passes",
            crate::output::moment(drill.at_unix_s)
        ),
        None => "  no drill yet: prove that the backups open (`nightlatch key drill`)".to_owned(),
    });
    if let Some(latch) = &status.lockdown {
        lines.push(format!(
            "  LOCKDOWN since {}{}: a security officer lifts it with `nightlatch unlatch --all`",
            crate::output::moment(latch.since_unix_s),
            latch.by.as_ref().map(|who| format!(" by {who}")).unwrap_or_default()
        ));
    }
    match (status.state, status.policy_serial) {
        (SealState::Unsealed, Some(serial)) => lines.push(format!("  policy {serial}")),
        (SealState::Unsealed, None) => lines.push(
            "  no policy: one person decides everything (`nightlatch policy show --example` prints one to begin with)"
                .to_owned(),
        ),
        _ => {}
    }
    if status.approvals_wanted > 0 {
        lines.push(format!(
            "  {} requests wait for another person (`nightlatch approval list`)",
            status.approvals_wanted
        ));
    }
    if let Some(broken) = &status.last_break_glass {
        lines.push(format!(
            "  GLASS BROKEN {} by {}: {} ({})",
            crate::output::moment(broken.at_unix_s),
            broken.by,
            broken.act,
            broken.reason
        ));
    }
    if let Some(ms) = status.grants_wait_ms {
        lines.push(format!(
            "  nothing is granted for another {}: earlier leases may still run",
            crate::output::duration_ms(ms)
        ));
    }
    lines.join("\n") + "\n"
}

fn backup(file: &Path, connections: &Connections, output: Output) -> Done {
    if file.exists() {
        return Err(identity::IdentityError::Exists { path: file.to_owned() }.into());
    }
    let keyholder = connections.keyholder(Ask::Either)?;
    let backup: LedgerBackup = wait(keyholder.get("/v1/ledger/backup"))??;
    PrivateFile::create(file, to_json(&backup)?.as_bytes())?;
    let saved = serde_json::json!({ "file": file, "serial": backup.serial, "root_epoch": backup.root_epoch });
    output.show(&saved, || {
        format!(
            "Saved ledger serial {} to {}. It opens with the officers' shares only; keep it in another place than they.",
            backup.serial,
            file.display()
        )
    })
}

fn restore(file: &Path, connections: &Connections, output: Output) -> Done {
    let backup: LedgerBackup = read_json(file, "a ledger backup")?;
    let keyholder = connections.keyholder(Ask::Decide)?;
    let status: KeyholderStatus = wait(keyholder.post("/v1/ledger/restore", &backup))??;
    output.show(&status, || format!("Restored ledger serial {}.\n{}", backup.serial, describe(&status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_officers_key_reads_back_and_its_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anna.officer-key");
        let made = OfficerKey::generate("anna").unwrap();
        made.create(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let read = OfficerKey::load(&path).unwrap();
        assert_eq!(read.public().unwrap(), made.public().unwrap());
        assert!(made.create(&path).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(OfficerKey::load(&path).is_err());
    }

    #[test]
    fn other_files_are_not_taken_for_an_officers_key() {
        let dir = tempfile::tempdir().unwrap();
        for (index, text) in [
            "",
            "{}",
            r#"{"version":1,"name":"a","secret":"AAAA"}"#,
            r#"{"version":2,"name":"a","secret":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#,
        ]
        .into_iter()
        .enumerate()
        {
            let path = dir.path().join(index.to_string());
            PrivateFile::create(&path, text.as_bytes()).unwrap();
            assert!(OfficerKey::load(&path).is_err(), "{text}");
        }
    }
}
