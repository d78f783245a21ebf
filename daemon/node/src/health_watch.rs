//! Reads how the machine's parts fare, now and then, and switches lights: a thread confined like a source of triggers.
//!
//! Invariants:
//! - It asks no device. What disks say is in files that `nightlatch-smart` leaves; the rest the kernel shows in `/sys`.
//! - What may be written is each light that there was at the start, and nothing else.
//! - A finding is in the log when it comes and when it goes, not at each reading.

use std::collections::BTreeSet;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use admin::{ControlError, ErrorKind, Reason, api};
use anyhow::Context;
use config::NodeConfig;
use health::{
    Board, Boards, Code, Inventory, Judge, LocateError, Readings, Roots, Thresholds, light_of, lights,
    set_light,
};
use tokio::sync::oneshot;

use crate::boot_clock;
use crate::heartbeat::Heart;
use crate::sources::Reach;

/// Longest profile that is read from a file; a board has no more to tell.
const PROFILE_BYTES_MAX: u64 = 64 * 1024;

/// A light that somebody wants on or off.
#[derive(Debug)]
struct Order {
    disk: String,
    on: bool,
    answer: oneshot::Sender<Result<(), LocateError>>,
}

/// What the rest of the node sees.
#[derive(Debug)]
pub(crate) struct HealthWatch {
    last: Mutex<Option<Arc<api::Hardware>>>,
    orders: Sender<Order>,
    /// The disks that pools are on.
    pool_disks: BTreeSet<String>,
}

/// The thread's own.
#[derive(Debug)]
pub(crate) struct HealthReader {
    watch: Arc<HealthWatch>,
    orders: Receiver<Order>,
    roots: Roots,
    board: Option<Board>,
    judge: Judge,
    interval: Duration,
    reach: Reach,
}

impl HealthWatch {
    /// Chooses the board's profile. Nothing is read yet.
    pub(crate) fn open(config: &NodeConfig) -> anyhow::Result<(Arc<Self>, HealthReader)> {
        let health = &config.health;
        let roots = Roots::new(&health.root, &health.captures);
        let board = board(config, &roots)?;
        if let Some(board) = &board {
            tracing::info!(board = board.name, "the board's profile");
        }
        // A pool may be on a spare, or be moved there.
        let paths = config.pools.iter().map(|pool| &pool.path).chain(&config.spares);
        let pools = paths.filter_map(|path| device_number(path));
        let pool_disks =
            pools.flat_map(|(major, minor)| health::disks_below(&roots.sys, major, minor)).collect();
        let (orders, received) = channel();
        let watch = Arc::new(Self { last: Mutex::new(None), orders, pool_disks });
        let switched = lights(&roots.sys, board.as_ref());
        let reach = Reach::files(&[
            &health.root.join("sys"),
            &health.root.join("proc/cpuinfo"),
            &health.root.join("proc/meminfo"),
            &health.captures,
        ])
        .and_change(switched.iter().map(|light| light.path(&roots.sys)));
        let thresholds = Thresholds {
            used_percent: health.disk_used_percent,
            disk_celsius: health.disk_celsius,
            memory_corrected: health.memory_corrected,
            links: health.links.clone(),
            ..Thresholds::default()
        };
        let reader = HealthReader {
            watch: Arc::clone(&watch),
            orders: received,
            roots,
            board,
            judge: Judge::new(thresholds),
            interval: Duration::from_millis(health.interval_ms),
            reach,
        };
        Ok((watch, reader))
    }

    /// What was read last; nothing before the first reading.
    pub(crate) fn last(&self) -> Option<Arc<api::Hardware>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why nothing can be written: a pool's disk says so.
    pub(crate) fn refusal(&self) -> Option<Reason> {
        let last = self.last()?;
        let is_of_a_pool = |subject: &String| self.pool_disks.contains(subject);
        let found = last
            .findings
            .iter()
            .find(|finding| finding.code == Code::DiskReadOnly && is_of_a_pool(&finding.subject))?;
        Some(reason(found))
    }

    /// What somebody should look after.
    pub(crate) fn notes(&self) -> Vec<Reason> {
        self.last().map_or_else(Vec::new, |last| last.findings.iter().map(reason).collect())
    }

    /// Switches a disk's light.
    pub(crate) async fn locate(&self, disk: String, on: bool) -> Result<api::Located, ControlError> {
        let (answer, answered) = oneshot::channel();
        let gone = || {
            let next = "look at the node's log, and restart the node";
            ControlError::new(ErrorKind::Failed, "the thread that reads the machine's parts has ended", next)
        };
        self.orders.send(Order { disk: disk.clone(), on, answer }).map_err(|_| gone())?;
        match answered.await.map_err(|_| gone())? {
            Ok(()) => Ok(api::Located { disk, on }),
            Err(error) => {
                let kind = match error {
                    LocateError::NoDisk(_) | LocateError::NoLight(_) => ErrorKind::NotFound,
                    LocateError::Refused { .. } => ErrorKind::Failed,
                };
                Err(ControlError::new(kind, error.to_string(), ""))
            }
        }
    }
}

fn reason(finding: &health::Finding) -> Reason {
    Reason::new(finding.code.name(), format!("{}: {}. {}", finding.subject, finding.found, finding.advice))
}

fn board(config: &NodeConfig, roots: &Roots) -> anyhow::Result<Option<Board>> {
    if let Some(path) = &config.health.board_file {
        let text = read_profile(path).with_context(|| {
            format!("the board profile {} cannot be read; correct health.board_file", path.display())
        })?;
        return Ok(Some(Board::parse(&text, &path.display().to_string())?));
    }
    let shipped = Boards::shipped()?;
    let chosen = match &config.health.board {
        Some(name) => shipped.named(name),
        None => shipped.of_machine(&roots.sys),
    };
    Ok(chosen.cloned())
}

fn read_profile(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(PROFILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// The number of the block device that a pool is, or of the one that its file is on.
fn device_number(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::FileTypeExt;
    let metadata = std::fs::metadata(path).ok()?;
    let number = if metadata.file_type().is_block_device() { metadata.st_rdev() } else { metadata.st_dev() };
    Some((nix::sys::stat::major(number), nix::sys::stat::minor(number)))
}

impl HealthReader {
    /// Starts the thread. It ends with the last of [`HealthWatch`].
    pub(crate) fn start(self, heart: Heart) -> std::io::Result<()> {
        std::thread::Builder::new().name("source health".to_owned()).spawn(move || self.run(&heart))?;
        Ok(())
    }

    fn run(self, heart: &Heart) {
        let Self { watch, orders, roots, board, mut judge, interval, reach } = self;
        if let Err(error) = reach.confine() {
            tracing::error!(%error, "the thread that reads the machine's parts cannot be confined, and does not run");
            return;
        }
        // The sender is in there: kept, this thread would wait for itself.
        let watch = Arc::downgrade(&{ watch });
        let mut known = BTreeSet::new();
        loop {
            let Some(seen) = watch.upgrade() else { return };
            let read = Arc::new(read(&roots, board.as_ref(), &mut judge));
            tell(&read, &mut known);
            *seen.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
            drop(seen);
            heart.beat(interval);
            let next = Instant::now() + interval;
            loop {
                match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(order) => {
                        let switched = switch(&roots, board.as_ref(), &order.disk, order.on);
                        let _ = order.answer.send(switched);
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }
}

fn read(roots: &Roots, board: Option<&Board>, judge: &mut Judge) -> api::Hardware {
    let read_boot_ns = boot_clock::now();
    let readings = Readings::take(roots);
    let findings = judge.findings(read_boot_ns, &readings, board);
    api::Hardware { read_boot_ns, inventory: Inventory::of(roots, &readings, board), readings, findings }
}

/// Says what is new and what is over.
fn tell(read: &api::Hardware, known: &mut BTreeSet<(Code, String)>) {
    let now: BTreeSet<_> =
        read.findings.iter().map(|finding| (finding.code, finding.subject.clone())).collect();
    let is_new = |finding: &&health::Finding| !known.contains(&(finding.code, finding.subject.clone()));
    for finding in read.findings.iter().filter(is_new) {
        let health::Finding { code, subject, found, advice, .. } = finding;
        tracing::warn!(
            code = code.name(),
            subject,
            found,
            advice,
            "a part of the machine needs looking after"
        );
    }
    for (code, subject) in known.difference(&now) {
        tracing::info!(code = code.name(), subject, "a part of the machine is well again");
    }
    *known = now;
}

fn switch(roots: &Roots, board: Option<&Board>, disk: &str, on: bool) -> Result<(), LocateError> {
    if !health::disks(&roots.sys).iter().any(|known| known.name == disk) {
        return Err(LocateError::NoDisk(disk.to_owned()));
    }
    let light = light_of(&roots.sys, disk, board).ok_or_else(|| LocateError::NoLight(disk.to_owned()))?;
    set_light(&roots.sys, &light, on)
}
