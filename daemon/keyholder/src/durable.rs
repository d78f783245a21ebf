//! Files that are replaced whole and durably, and the lock that keeps a second keyholder out of the directory.
//!
//! Crash order of a replacement; a crash before step 3 leaves the old file, after it the new one, never a mixture:
//!
//! 1. write the new content beside the file, mode 0600;
//! 2. fsync it (renamed first, the name could survive a crash and the content not);
//! 3. rename it over the file;
//! 4. fsync the directory (until then the old name may come back, so nothing may rely on the new content);
//! 5. where it is asked for: overwrite the old inode's content and fsync (before step 4 a crash could bring back a file that
//!    has been overwritten).
//!
//! Overwriting reaches the old blocks where the file system and the disk write in place. It does not on copy-on-write
//! file systems and flash; LEDGER.md says what that means.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;
const LOCK_FILE: &str = "lock";

/// What could not be done with which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}; check the directory's space, owner and mode, then try again", path.display())]
pub struct StorageError {
    /// What was tried.
    pub operation: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// The state directory, held by this process alone.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made or opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Another process has it.
    #[error("{} is in use by another keyholder; stop that one, or give this one a directory of its own", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl StateDir {
    /// Makes the directory where it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |operation, source| StorageError { operation, path: path.to_owned(), source };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(path)
            .map_err(|source| failed("create directory", source))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(FILE_MODE)
            .open(path.join(LOCK_FILE))
            .map_err(|source| failed("open the lock in", source))?;
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StateDirError::InUse { path: path.to_owned() }),
            Err((_, errno)) => Err(failed("lock", errno.into()).into()),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Whether the old content is to be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OldContent {
    Leave,
    Overwrite,
}

/// Replaces the file. On an error the old content may or may not have been replaced; it is whole in either case.
pub(crate) fn replace(path: &Path, content: &[u8], old: OldContent) -> Result<(), StorageError> {
    let failed = |operation| move |source| StorageError { operation, path: path.to_owned(), source };
    let beside = path.with_extension("new");
    let previous = match old {
        OldContent::Leave => None,
        OldContent::Overwrite => match OpenOptions::new().write(true).open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("open")(error)),
        },
    };
    // 1
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(FILE_MODE)
        .open(&beside)
        .map_err(failed("write beside"))?;
    file.write_all(content).map_err(failed("write beside"))?;
    // 2
    file.sync_all().map_err(failed("sync the new content of"))?;
    // 3
    std::fs::rename(&beside, path).map_err(failed("replace"))?;
    // 4
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the directory of"))?;
    // 5
    if let Some(mut previous) = previous {
        overwrite(&mut previous).map_err(failed("overwrite the old content of"))?;
    }
    Ok(())
}

/// Overwrites and removes what a replacement left beside the file that a crash cut short.
pub(crate) fn discard_unfinished(path: &Path) -> Result<(), StorageError> {
    let beside = path.with_extension("new");
    let failed = |source| StorageError { operation: "overwrite", path: beside.clone(), source };
    match OpenOptions::new().write(true).open(&beside) {
        Ok(mut file) => overwrite(&mut file).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    remove(&beside)
}

/// Removes the file, durably; there may be none.
pub(crate) fn remove(path: &Path) -> Result<(), StorageError> {
    let failed = |operation| move |source| StorageError { operation, path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
        Ok(()) | Err(_) => {}
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the directory of"))
}

fn overwrite(file: &mut File) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    file.rewind()?;
    let zeros = [0; 4096];
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all(&zeros[..count])?;
        left -= count as u64;
    }
    file.sync_all()
}

/// Reads the file; `None` where there is none.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, StorageError> {
    let failed = |source| StorageError { operation: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut content = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(failed)?;
    if u64::try_from(content.len()).is_ok_and(|length| length > bytes_max) {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_is_whole_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        assert!(read(&path, 100).unwrap().is_none());
        for content in [b"first".as_slice(), b"second", b""] {
            replace(&path, content, OldContent::Leave).unwrap();
            assert_eq!(read(&path, 100).unwrap().unwrap(), content);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_erasure_overwrites_the_old_inode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        replace(&path, &[0xa5; 10_000], OldContent::Leave).unwrap();
        let mut old = File::open(&path).unwrap();
        replace(&path, b"new", OldContent::Overwrite).unwrap();
        let mut left = Vec::new();
        old.read_to_end(&mut left).unwrap();
        assert_eq!(left, vec![0; 10_000]);
        assert_eq!(read(&path, 100).unwrap().unwrap(), b"new");
    }

    #[test]
    fn what_a_crash_left_beside_a_file_is_overwritten_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        discard_unfinished(&path).unwrap();
        replace(&path, b"good", OldContent::Leave).unwrap();
        std::fs::write(dir.path().join("ledger.new"), [0xa5; 5_000]).unwrap();
        let mut left = File::open(dir.path().join("ledger.new")).unwrap();
        discard_unfinished(&path).unwrap();
        let mut content = Vec::new();
        left.read_to_end(&mut content).unwrap();
        assert_eq!(content, vec![0; 5_000]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(read(&path, 100).unwrap().unwrap(), b"good");
    }

    #[test]
    fn a_file_over_its_limit_is_refused_one_past_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [0; 8]).unwrap();
        assert!(read(&path, 8).is_ok());
        assert!(read(&path, 7).is_err());
    }

    #[test]
    fn a_second_keyholder_is_kept_out_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(&dir.path().join("state")).unwrap();
        let second = StateDir::open(&dir.path().join("state")).unwrap_err();
        assert!(matches!(second, StateDirError::InUse { .. }), "{second}");
        drop(first);
        StateDir::open(&dir.path().join("state")).unwrap();
    }
}
