//! A file as a block device (include/uapi/linux/loop.h).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

const INFORMATION_BYTES: usize = 232;
/// Of `lo_flags` in `struct loop_info64`.
const FLAGS_AT: usize = 52;
const READ_ONLY: u32 = 1;

/// `struct loop_config`.
#[repr(C, align(8))]
struct Configuration {
    file: u32,
    block_bytes: u32,
    information: [u8; INFORMATION_BYTES],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Configuration>() == 304);

nix::ioctl_none_bad!(free_device, 0x4C82);
nix::ioctl_write_ptr_bad!(configure, 0x4C0A, Configuration);

/// Attaches `file` to a free loop device, to be read only, and gives its path. The file may be unlinked afterwards.
///
/// # Errors
/// Where the kernel has no loop devices, or refuses the file.
pub fn attach_file(file: &Path) -> io::Result<PathBuf> {
    let file = File::open(file)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    // SAFETY: takes no argument.
    let number = unsafe { free_device(control.as_raw_fd()) }?;
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let device = File::open(&path)?;
    let mut request = Configuration {
        file: descriptor(file.as_raw_fd())?,
        block_bytes: 4096,
        information: [0; INFORMATION_BYTES],
        reserved: [0; 8],
    };
    request.information[FLAGS_AT..FLAGS_AT + 4].copy_from_slice(&READ_ONLY.to_ne_bytes());
    // SAFETY: the kernel reads one `loop_config`, which outlives the call.
    unsafe { configure(device.as_raw_fd(), &raw const request) }?;
    Ok(path)
}

fn descriptor(descriptor: RawFd) -> io::Result<u32> {
    u32::try_from(descriptor).map_err(|_| io::ErrorKind::InvalidInput.into())
}
