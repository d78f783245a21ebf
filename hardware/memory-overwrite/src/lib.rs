//! Asks the firmware to clear memory before it starts anything after a sudden reset: the UEFI variable
//! `MemoryOverwriteRequestControl` (TCG Platform Reset Attack Mitigation Specification), by way of efivarfs.
//!
//! Invariants:
//! - The request is made before a key arrives and taken back only after a wipe: a machine that is reset in between clears
//!   its memory, one that was sealed in order starts as fast as ever.
//! - The variable's own attributes, and the bits beside the request's, stay as the firmware has them.
//! - The file is opened once, while the program may still do so; afterwards only that descriptor is written.
//! - The twin is any file with five bytes.
//!
//! What it is not: a promise. Whether the firmware honours it, only a test on the machine tells.

#![expect(unsafe_code, reason = "two ioctls of the file system: efivarfs marks its files immutable")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the kernel shows the variable.
pub const VARIABLE: &str =
    "/sys/firmware/efi/efivars/MemoryOverwriteRequestControl-e20939be-32d4-41be-a150-897f85d49829";

/// Four bytes of attributes, one of value.
const VARIABLE_BYTES: usize = 5;

/// The value's place.
const VALUE: usize = 4;

/// `ClearMemory`.
const CLEAR_MEMORY: u8 = 1;

/// `FS_IMMUTABLE_FL` of linux/fs.h.
const IMMUTABLE: libc::c_long = 0x10;

// Both are declared with `long` in linux/fs.h, which is the size in their numbers; the kernel writes an `int`.
nix::ioctl_read!(fs_ioc_getflags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(fs_ioc_setflags, b'f', 2, libc::c_long);

/// The opened variable.
#[derive(Debug)]
pub struct MemoryOverwrite {
    file: File,
}

impl MemoryOverwrite {
    /// Opens the variable, or a twin of it. It takes root, and on efivarfs CAP_LINUX_IMMUTABLE.
    ///
    /// # Errors
    /// Where it is not there, is not to be written, or has another form.
    pub fn open(path: &Path) -> io::Result<Self> {
        let reader = File::open(path)?;
        allow_writing(&reader);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let opened = Self { file };
        opened.read()?;
        Ok(opened)
    }

    fn read(&self) -> io::Result<[u8; VARIABLE_BYTES]> {
        let mut bytes = [0; VARIABLE_BYTES];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Whether memory is to be cleared.
    ///
    /// # Errors
    /// Those of reading.
    pub fn is_requested(&self) -> io::Result<bool> {
        Ok(self.read()?[VALUE] & CLEAR_MEMORY != 0)
    }

    /// Asks for memory to be cleared at the next start, or takes that back. Writes nothing where nothing changes: the
    /// firmware's flash wears out.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn request(&self, clear: bool) -> io::Result<()> {
        let mut bytes = self.read()?;
        let wanted = if clear { bytes[VALUE] | CLEAR_MEMORY } else { bytes[VALUE] & !CLEAR_MEMORY };
        if bytes[VALUE] == wanted {
            return Ok(());
        }
        bytes[VALUE] = wanted;
        // A variable is written in one piece, attributes first.
        self.file.write_all_at(&bytes, 0)
    }
}

/// Takes the immutable mark off, where there is one. What cannot be taken off shows when the file is opened for writing.
fn allow_writing(file: &File) {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes at most a `long` into `flags`, which outlives the call.
    let read = unsafe { fs_ioc_getflags(file.as_raw_fd(), &raw mut flags) };
    if read.is_ok() && flags & IMMUTABLE != 0 {
        let without = flags & !IMMUTABLE;
        // SAFETY: the kernel reads at most a `long` from `without`, which outlives the call.
        let _ = unsafe { fs_ioc_setflags(file.as_raw_fd(), &raw const without) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twin(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("variable");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn the_request_is_one_bit_and_everything_beside_it_stays() {
        let (_dir, path) = twin(&[7, 0, 0, 0, 0x10]);
        let variable = MemoryOverwrite::open(&path).unwrap();
        assert!(!variable.is_requested().unwrap());
        variable.request(true).unwrap();
        assert!(variable.is_requested().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), [7, 0, 0, 0, 0x11]);
        variable.request(false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [7, 0, 0, 0, 0x10]);
    }

    #[test]
    fn what_is_set_already_is_not_written_again() {
        let (_dir, path) = twin(&[7, 0, 0, 0, 1]);
        let variable = MemoryOverwrite::open(&path).unwrap();
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        variable.request(true).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn a_variable_that_is_cut_or_missing_is_refused() {
        let (dir, path) = twin(&[7, 0, 0, 0]);
        assert!(MemoryOverwrite::open(&path).is_err());
        assert!(MemoryOverwrite::open(&dir.path().join("none")).is_err());
    }

    #[test]
    fn the_ioctls_have_the_kernels_numbers() {
        assert_eq!(nix::request_code_read!(b'f', 1, size_of::<libc::c_long>()), 0x8008_6601);
        assert_eq!(nix::request_code_write!(b'f', 2, size_of::<libc::c_long>()), 0x4008_6602);
    }
}
