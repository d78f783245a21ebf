//! The device mapper's control device (include/uapi/linux/dm-ioctl.h): make a device, load its table, let it run.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

const CONTROL: &str = "/dev/mapper/control";
const HEADER_BYTES: usize = 312;
const NAME_BYTES: usize = 128;
const PAYLOAD_BYTES: usize = 1024;
/// `struct dm_target_spec`: begin, length, status, next, and the target's name.
const TARGET_BYTES: usize = 40;
const SECTOR_BYTES: u64 = 512;
const READ_ONLY: u32 = 1;

/// `struct dm_ioctl` and what follows it.
#[repr(C, align(8))]
struct Request {
    header: [u8; HEADER_BYTES],
    payload: [u8; PAYLOAD_BYTES],
}

/// As the header has them.
const REQUEST_BYTES: u32 = 1336;
const PAYLOAD_AT: u32 = 312;

const _: () = assert!(size_of::<Request>() == HEADER_BYTES + PAYLOAD_BYTES);
const _: () = assert!(size_of::<Request>() == REQUEST_BYTES as usize && HEADER_BYTES == PAYLOAD_AT as usize);

// The numbers name the header's size alone.
nix::ioctl_readwrite_bad!(device_create, nix::request_code_readwrite!(0xFD, 3, HEADER_BYTES), Request);
nix::ioctl_readwrite_bad!(device_resume, nix::request_code_readwrite!(0xFD, 6, HEADER_BYTES), Request);
nix::ioctl_readwrite_bad!(table_load, nix::request_code_readwrite!(0xFD, 9, HEADER_BYTES), Request);

impl Request {
    fn new(name: &str, targets: u32) -> Self {
        let mut request = Self { header: [0; HEADER_BYTES], payload: [0; PAYLOAD_BYTES] };
        // Version 4.0.0 of the interface; the whole request's length; where the payload begins.
        let words = [4, 0, 0, REQUEST_BYTES, PAYLOAD_AT, targets, 0, READ_ONLY];
        for (place, word) in request.header.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        let name = &name.as_bytes()[..name.len().min(NAME_BYTES - 1)];
        request.header[48..48 + name.len()].copy_from_slice(name);
        request
    }

    /// The device's minor number, as the kernel wrote it back.
    fn minor(&self) -> u32 {
        let mut device = [0; 8];
        device.copy_from_slice(&self.header[40..48]);
        // `huge_encode_dev`: the minor's low byte and, above the major, the rest.
        let device = u64::from_ne_bytes(device);
        libc::minor(device)
    }
}

pub(crate) fn map(name: &str, bytes: u64, table: &str) -> io::Result<PathBuf> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
    let descriptor = control.as_raw_fd();
    let mut create = Request::new(name, 0);
    // SAFETY: the kernel reads and writes at most the length that the request names, which is its own.
    unsafe { device_create(descriptor, &raw mut create) }?;
    let mut load = Request::new(name, 1);
    let text_end = TARGET_BYTES + table.len();
    if text_end >= PAYLOAD_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    load.payload[8..16].copy_from_slice(&(bytes / SECTOR_BYTES).to_ne_bytes());
    load.payload[24..30].copy_from_slice(b"verity");
    load.payload[TARGET_BYTES..text_end].copy_from_slice(table.as_bytes());
    // SAFETY: as above.
    unsafe { table_load(descriptor, &raw mut load) }?;
    let mut resume = Request::new(name, 0);
    // SAFETY: as above.
    unsafe { device_resume(descriptor, &raw mut resume) }?;
    Ok(PathBuf::from(format!("/dev/dm-{}", create.minor())))
}
