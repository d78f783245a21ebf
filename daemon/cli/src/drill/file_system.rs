//! The file system on a drilled disk, checked by its own program where that is here.
//!
//! The disk is a file of `nbdfuse` meanwhile. What a snapshot shows is what a cut of power would have left, so an ext4's journal is
//! replayed first, on the copy that the drill throws away; then it has to be without a fault. An xfs is not changed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nbd_server::client::{Client, ClientError, Endpoint};

use crate::failure::{Done, Failure};

/// How long the file may take to be there.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// What was found of a file system.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// None that is known here.
    None,
    /// In words.
    Sound(String),
    /// One that could not be checked here, and why.
    Unchecked(String),
    /// In words.
    Broken(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ext,
    Xfs,
}

/// Checks what is on a disk that is served at `socket`. `dir` is for the file.
pub(super) fn check(socket: &Path, label: &str, dir: &Path) -> Done<Found> {
    let kind = kind_of(socket, label).map_err(|error| Failure::local(format!("NBD: {error}"), ""))?;
    let Some(kind) = kind else { return Ok(Found::None) };
    let (name, programs) = match kind {
        Kind::Ext => ("ext4", ["nbdfuse", "fusermount3", "e2fsck"]),
        Kind::Xfs => ("xfs", ["nbdfuse", "fusermount3", "xfs_repair"]),
    };
    if let Some(missing) = programs.into_iter().find(|program| !is_here(program)) {
        return Ok(Found::Unchecked(format!("{name}, not checked: {missing} is not on this machine")));
    }
    let mounted = Mounted::new(socket, label, dir)?;
    match kind {
        Kind::Ext => check_ext(&mounted.file),
        Kind::Xfs => check_xfs(&mounted.file),
    }
}

fn kind_of(socket: &Path, label: &str) -> Result<Option<Kind>, ClientError> {
    let mut client = Client::connect(&Endpoint::unix(socket), label)?;
    let mut start = [0; 4096];
    if client.info().len_bytes < start.len() as u64 {
        return Ok(None);
    }
    client.read(0, &mut start)?;
    client.disconnect()?;
    Ok(kind_by(&start))
}

fn kind_by(start: &[u8; 4096]) -> Option<Kind> {
    const EXT_AT: usize = 1024 + 0x38;
    if start.starts_with(b"XFSB") {
        return Some(Kind::Xfs);
    }
    (start[EXT_AT..EXT_AT + 2] == [0x53, 0xef]).then_some(Kind::Ext)
}

fn is_here(program: &str) -> bool {
    path_of(program).is_some()
}

/// Programs that check file systems are not on every person's path.
fn path_of(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn run(program: &str, arguments: &[&OsStr]) -> Done<Output> {
    let path = path_of(program).unwrap_or_else(|| PathBuf::from(program));
    let output = Command::new(path).args(arguments).stdin(Stdio::null()).output();
    output.map_err(|error| Failure::local(format!("cannot start {program}: {error}"), ""))
}

fn check_ext(file: &Path) -> Done<Found> {
    // 0 nothing was wrong, 1 it was mended, as a start after a cut would; more could not be.
    let replayed = run("e2fsck", &["-p".as_ref(), file.as_ref()])?;
    if !matches!(replayed.status.code(), Some(0 | 1)) {
        return Ok(Found::Broken(said("ext4", &replayed)));
    }
    let checked = run("e2fsck", &["-f".as_ref(), "-n".as_ref(), file.as_ref()])?;
    Ok(match checked.status.code() {
        Some(0) => Found::Sound("ext4, without a fault".to_owned()),
        _ => Found::Broken(said("ext4", &checked)),
    })
}

fn check_xfs(file: &Path) -> Done<Found> {
    let checked = run("xfs_repair", &["-n".as_ref(), "-f".as_ref(), file.as_ref()])?;
    let unreplayed = String::from_utf8_lossy(&checked.stderr).contains("in a log which is being");
    Ok(match (checked.status.code(), unreplayed) {
        (Some(0), false) => Found::Sound("xfs, without a fault".to_owned()),
        (_, true) => Found::Unchecked(
            "xfs, not judged: its log is to be replayed by mounting it. Freeze it before the snapshot is taken".to_owned(),
        ),
        _ => Found::Broken(said("xfs", &checked)),
    })
}

/// The last of what a program said.
fn said(kind: &str, output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    format!("its {kind} has faults: {}", lines[lines.len().saturating_sub(3)..].join("; "))
}

/// A disk that is a file as long as this is there.
struct Mounted {
    dir: PathBuf,
    file: PathBuf,
    serving: Child,
}

impl Mounted {
    fn new(socket: &Path, label: &str, dir: &Path) -> Done<Self> {
        let failed = |what: &str| {
            Failure::local(
                format!("the disk cannot be made a file to be checked: {what}"),
                "nbdfuse needs /dev/fuse, and fusermount3 the right to use it",
            )
        };
        let dir = dir.join("file-system");
        let _ = std::fs::create_dir(&dir);
        let file = dir.join("disk");
        let uri = format!("nbd+unix:///{label}?socket={}", socket.display());
        let program = path_of("nbdfuse").unwrap_or_else(|| PathBuf::from("nbdfuse"));
        let serving = Command::new(program)
            .arg(&file)
            .arg(uri)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(&error.to_string()))?;
        let mut mounted = Self { dir, file, serving };
        let deadline = Instant::now() + MOUNT_TIMEOUT;
        while !mounted.file.is_file() {
            if let Ok(Some(status)) = mounted.serving.try_wait() {
                return Err(failed(&format!("nbdfuse ended with {status}")));
            }
            if Instant::now() >= deadline {
                return Err(failed("nbdfuse does not come up"));
            }
            std::thread::sleep(POLL);
        }
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("fusermount3", &["-u".as_ref(), self.dir.as_ref()]);
        let deadline = Instant::now() + MOUNT_TIMEOUT;
        while matches!(self.serving.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                let _ = self.serving.kill();
            }
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_known_by_its_magic() {
        let mut start = [0; 4096];
        assert_eq!(kind_by(&start), None);
        (start[1024 + 0x38], start[1024 + 0x39]) = (0x53, 0xef);
        assert_eq!(kind_by(&start), Some(Kind::Ext));
        start[..4].copy_from_slice(b"XFSB");
        assert_eq!(kind_by(&start), Some(Kind::Xfs));
    }
}
