//! Who may use which disk over NBD: kept in a file of the state directory, and told to the head.
//!
//! The file has an entry for each volume that was made here, by its id. Who may use a volume is this node's to say, as its limits are.
//!
//! Invariants:
//! - A volume without an entry is for nobody: one that was promoted here, and every one where the file is lost. An operator says anew who
//!   may use it; nothing is let in by what is not there.
//! - A change is durable before it holds, and holds when the call returns.
//! - A file that cannot be read ends the start.
//! - Lock order: `changing`, `current`. An export is inserted under `current`, and the head is told of a change after it, so
//!   that no export keeps what it had before.
//!
//! Who was refused is written to the node's trail ([`Porter`]), each client once in a while, however often it comes back.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use admin::api::VolumeAccess;
use identity::{CertificateFacts, TrustDomain};
use nbd_server::{Access, Client, Doorkeeper, Export, InvalidAccess, InvalidLabel, NbdServer, Refused};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use units::VolumeId;

use crate::lock::lock;
use crate::node::Node;
use crate::state_file;

/// The file's version. In version 1 a volume without an entry was for everybody.
const VERSION: u32 = 2;
const VERSION_OPEN: u32 = 1;

/// Refusals that wait to be written down; more are counted by the metrics alone.
const REFUSALS_WAITING_MAX: usize = 64;
/// One client's refusals at one volume are written down once in this time.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(60);
/// Clients that are remembered for that: as many as may be connected at once, eight times over.
const REFUSALS_REMEMBERED_MAX: usize = 1024;

/// Why the lists could not be read at the start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportsError {
    #[error("{path} cannot be read: {source}; correct its owner, or the disk")]
    Unreadable { path: String, source: io::Error },
    #[error("{path} cannot be written: {source}; correct its owner, or the disk")]
    Unwritable { path: String, source: io::Error },
    #[error(
        "{path} does not say who may use which disk ({reason}); put a copy back, or remove it and set every access anew"
    )]
    Damaged { path: String, reason: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    access: BTreeMap<VolumeId, VolumeAccess>,
}

#[derive(Serialize)]
struct Saving<'a> {
    version: u32,
    access: &'a BTreeMap<VolumeId, VolumeAccess>,
}

/// The lists as people give them and as the head wants them.
type Lists = BTreeMap<VolumeId, (VolumeAccess, Access)>;

/// Who may use which disk.
#[derive(Debug)]
pub(crate) struct ExportAccess {
    file: PathBuf,
    changing: Mutex<()>,
    current: Mutex<Lists>,
}

fn parsed(access: &VolumeAccess) -> Result<Access, InvalidAccess> {
    if access.nobody {
        return Ok(Access::nobody());
    }
    let clients = access.clients.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let addresses = access.addresses.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    Access::new(clients, addresses, access.local, access.read_only)
}

impl ExportAccess {
    /// Reads the lists in the state directory. `volumes`: those that are on the node's pools, replicas left out.
    pub(crate) fn open(state_dir: &Path, volumes: &[VolumeId]) -> Result<Self, ExportsError> {
        let file = state_dir.join("exports.json");
        let path = || file.display().to_string();
        let damaged = |reason: String| ExportsError::Damaged { path: path(), reason };
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(ExportsError::Unreadable { path: path(), source }),
        };
        let mut current = Lists::new();
        let mut was_open = false;
        if let Some(bytes) = &bytes {
            let saved: Saved = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
            if ![VERSION, VERSION_OPEN].contains(&saved.version) {
                return Err(damaged(format!("version {}, this program reads {VERSION}", saved.version)));
            }
            was_open = saved.version == VERSION_OPEN;
            for (volume, given) in saved.access {
                let access = parsed(&given).map_err(|error| damaged(error.to_string()))?;
                current.insert(volume, (given, access));
            }
        }
        if bytes.is_none() && !volumes.is_empty() {
            tracing::error!(
                path = path(),
                volumes = volumes.len(),
                "it is lost who may use which disk: nobody may, until `nightlatch volume access` says so for each or the file is put back"
            );
        }
        if was_open {
            for volume in volumes {
                current.entry(*volume).or_default();
            }
        }
        let access = Self { file, changing: Mutex::new(()), current: Mutex::new(current) };
        if was_open {
            let unwritable =
                |source| ExportsError::Unwritable { path: access.file.display().to_string(), source };
            access.save(&lock(&access.current)).map_err(unwritable)?;
        }
        Ok(access)
    }

    /// Who may use a volume.
    pub(crate) fn of(&self, volume: VolumeId) -> VolumeAccess {
        lock(&self.current).get(&volume).map_or_else(VolumeAccess::nobody, |(given, _)| given.clone())
    }

    /// Serves `export` of a volume, or of a snapshot of it, to whom its access admits.
    pub(crate) fn insert(&self, nbd: &NbdServer, label: &str, export: Export) -> Result<(), InvalidLabel> {
        let current = lock(&self.current);
        let access = current.get(&export.snapshots.volume()).map(|(_, access)| access.clone());
        let access = access.unwrap_or_else(|| {
            tracing::warn!(
                label,
                "nobody may use this disk: say who with `nightlatch volume access`, for it was not made on this node or its list is lost"
            );
            Access::nobody()
        });
        nbd.insert(label, Export { access, ..export })
    }

    /// Says who may use a volume from now on. Blocks until that is durable.
    pub(crate) fn set(&self, nbd: &NbdServer, volume: VolumeId, given: VolumeAccess) -> Result<(), SetError> {
        let access = parsed(&given)?;
        self.change(
            |lists| drop(lists.insert(volume, (given, access.clone()))),
            || nbd.set_access(volume, &access),
        )?;
        Ok(())
    }

    /// The volume is gone, and its list with it.
    pub(crate) fn forget(&self, volume: VolumeId) -> io::Result<()> {
        if !lock(&self.current).contains_key(&volume) {
            return Ok(());
        }
        self.change(|lists| drop(lists.remove(&volume)), || ())
    }

    fn change(&self, change: impl FnOnce(&mut Lists), apply: impl FnOnce()) -> io::Result<()> {
        let _changing = lock(&self.changing);
        let mut lists = lock(&self.current).clone();
        change(&mut lists);
        self.save(&lists)?;
        *lock(&self.current) = lists;
        // No lock but this call's own: it waits for changes that are on their way to a disk.
        apply();
        Ok(())
    }

    fn save(&self, lists: &Lists) -> io::Result<()> {
        let access = lists.iter().map(|(volume, (given, _))| (*volume, given.clone())).collect();
        let text = serde_json::to_vec_pretty(&Saving { version: VERSION, access: &access })?;
        state_file::replace(&self.file, &text)
    }
}

/// Why an access was not set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetError {
    #[error(transparent)]
    Invalid(#[from] InvalidAccess),
    #[error("who may use the volume could not be written down: {0}")]
    NotWritten(#[from] io::Error),
}

/// Tells NBD clients apart by their certificates, and passes on who was refused.
#[derive(Debug)]
pub(crate) struct Porter {
    trust_domain: TrustDomain,
    refused: mpsc::Sender<Refused>,
}

/// The refusals that are to be written down.
pub(crate) type Refusals = mpsc::Receiver<Refused>;

impl Porter {
    pub(crate) fn new(trust_domain: TrustDomain) -> (Arc<Self>, Refusals) {
        let (refused, refusals) = mpsc::channel(REFUSALS_WAITING_MAX);
        (Arc::new(Self { trust_domain, refused }), refusals)
    }
}

impl Doorkeeper for Porter {
    fn client(&self, certificate: &CertificateDer<'_>) -> Option<Client> {
        const ORIGIN: &str = "the client";
        let facts = CertificateFacts::read(certificate, ORIGIN).ok()?;
        let id = facts.spiffe_id(ORIGIN).ok().filter(|id| id.trust_domain == self.trust_domain)?;
        Some(Client { name: id.name.to_string(), key: facts.spki_sha256 })
    }

    fn refused(&self, refused: Refused) {
        // Where it is full, so many are waiting that this one is most likely among them.
        let _ = self.refused.try_send(refused);
    }
}

/// Which refusals were written down lately.
#[derive(Debug, Default)]
struct Told(Vec<(Refused, Instant)>);

impl Told {
    /// Whether to tell this one too.
    fn is_news(&mut self, refused: &Refused, now: Instant) -> bool {
        self.0.retain(|(_, told)| now.saturating_duration_since(*told) < REFUSAL_INTERVAL);
        let news = self.0.len() < REFUSALS_REMEMBERED_MAX && self.0.iter().all(|(told, _)| told != refused);
        if news {
            self.0.push((refused.clone(), now));
        }
        news
    }
}

/// Writes refusals down, as long as it is run.
pub(crate) async fn keep_account(node: Arc<Node>, mut refusals: Refusals) {
    let mut told = Told::default();
    while let Some(refused) = refusals.recv().await {
        if told.is_news(&refused, Instant::now()) {
            let node = Arc::clone(&node);
            // A panic in there has ended the process.
            let _ = tokio::task::spawn_blocking(move || note(&node, &refused)).await;
        }
    }
}

fn note(node: &Node, refused: &Refused) {
    let Refused { volume, address, client } = refused;
    let by = client.as_ref().map(|client| format!("nbd-client/{}", client.name));
    let from = address.map_or_else(|| "unix".to_owned(), |address| address.to_string());
    tracing::warn!(%volume, by, from, "an NBD client was refused an export that is not for it");
    let fields = [("volume", volume.to_string().into()), ("by", by.into()), ("from", from.into())];
    node.trail.note("export-refused", fields);
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([1; 16]);

    fn given(clients: &[&str]) -> VolumeAccess {
        let clients = clients.iter().map(|name| (*name).to_owned()).collect();
        VolumeAccess { clients, ..VolumeAccess::default() }
    }

    #[test]
    fn what_was_set_is_there_after_a_restart_and_what_was_not_is_for_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let nbd = NbdServer::new(nbd_server::Limits::default());
        let access = ExportAccess::open(folder.path(), &[]).unwrap();
        let other = VolumeAccess { addresses: vec!["192.0.2.0/24".into()], local: true, ..given(&[]) };
        access.set(&nbd, VOLUME, given(&["db"])).unwrap();
        access.set(&nbd, VolumeId([2; 16]), other.clone()).unwrap();
        let refused = access.set(&nbd, VOLUME, given(&["not a name"])).unwrap_err();
        assert!(refused.to_string().contains("not a name"), "{refused}");

        let access = ExportAccess::open(folder.path(), &[VOLUME]).unwrap();
        assert_eq!((access.of(VOLUME), access.of(VolumeId([2; 16]))), (given(&["db"]), other));
        assert_eq!(access.of(VolumeId([3; 16])), VolumeAccess::nobody());
        access.set(&nbd, VOLUME, VolumeAccess::default()).unwrap();
        access.forget(VolumeId([2; 16])).unwrap();
        access.forget(VolumeId([3; 16])).unwrap();
        let text = std::fs::read_to_string(folder.path().join("exports.json")).unwrap();
        let everybody = r#"{"clients":[],"addresses":[],"local":false,"read_only":false}"#;
        let id = VOLUME.to_string();
        let expected = format!(r#"{{"version":2,"access":{{"{id}":{everybody}}}}}"#);
        assert_eq!(text.split_whitespace().collect::<String>(), expected);
        // Lost, it lets nobody in.
        std::fs::remove_file(folder.path().join("exports.json")).unwrap();
        let access = ExportAccess::open(folder.path(), &[VOLUME]).unwrap();
        assert_eq!(access.of(VOLUME), VolumeAccess::nobody());
    }

    #[test]
    fn what_had_no_list_in_version_1_stays_everybodys_and_what_comes_later_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("exports.json");
        let listed = VolumeId([2; 16]);
        let text = format!(r#"{{"version":1,"access":{{"{listed}":{{"clients":["db"]}}}}}}"#);
        std::fs::write(&file, text).unwrap();
        for _ in 0..2 {
            let access = ExportAccess::open(folder.path(), &[VOLUME, listed]).unwrap();
            assert_eq!((access.of(VOLUME), access.of(listed)), (VolumeAccess::default(), given(&["db"])));
            assert_eq!(access.of(VolumeId([3; 16])), VolumeAccess::nobody());
        }
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("\"version\": 2"), "{text}");
    }

    #[test]
    fn a_file_that_cannot_be_understood_ends_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("exports.json");
        let id = "01".repeat(16);
        for text in [
            String::new(),
            "{}".into(),
            r#"{"version":3,"access":{}}"#.into(),
            format!(r#"{{"version":1,"access":{{"{id}":{{"clients":["a b"]}}}}}}"#),
            format!(r#"{{"version":1,"access":{{"{id}":{{"client":["a"]}}}}}}"#),
            r#"{"version":1,"access":{"x":{}}}"#.into(),
        ] {
            std::fs::write(&file, &text).unwrap();
            let error = ExportAccess::open(folder.path(), &[]).unwrap_err();
            assert!(error.to_string().contains("put a copy back"), "{text}: {error}");
        }
    }

    #[test]
    fn a_client_that_comes_back_is_told_of_once_in_a_while_and_many_are_bounded() {
        let start = Instant::now();
        let mut told = Told::default();
        let refused = |address: u32| Refused {
            volume: VOLUME,
            address: Some(std::net::Ipv4Addr::from(address).into()),
            client: None,
        };
        assert!(told.is_news(&refused(1), start));
        assert!(!told.is_news(&refused(1), start + REFUSAL_INTERVAL / 2));
        assert!(told.is_news(&refused(2), start + REFUSAL_INTERVAL / 2));
        assert!(told.is_news(&refused(1), start + REFUSAL_INTERVAL));
        let crowd = u32::try_from(REFUSALS_REMEMBERED_MAX).unwrap() + 10;
        let news =
            (10..10 + crowd).filter(|address| told.is_news(&refused(*address), start + REFUSAL_INTERVAL));
        assert_eq!(news.count(), REFUSALS_REMEMBERED_MAX - 2);
    }
}
