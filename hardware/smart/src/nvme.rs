//! Get Log Page of NVMe, through the kernel's passthrough (`linux/nvme_ioctl.h`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use health::NVME_PAGE_BYTES;

/// Get Log Page (NVM Express Base Specification 2.0, 5.16).
const GET_LOG_PAGE: u8 = 0x02;

/// SMART / Health Information.
const SMART: u32 = 0x02;

/// The whole disk, not one namespace of it.
const ALL_NAMESPACES: u32 = 0xFFFF_FFFF;

/// A disk that is busy answers within a second or so.
const TIMEOUT_MS: u32 = 10_000;

/// `struct nvme_passthru_cmd`.
#[repr(C)]
#[derive(Default)]
struct Command {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

// The size is part of the request's number.
const _: () = assert!(size_of::<Command>() == 72);

const REQUEST: libc::c_ulong = nix::request_code_readwrite!(b'N', 0x41, size_of::<Command>());

/// Length and kind of the page (figure 202): the number of double words less one stands above the kind.
const fn cdw10() -> u32 {
    const DOUBLE_WORDS: u32 = 512 / 4;
    const _: () = assert!(DOUBLE_WORDS as usize * 4 == NVME_PAGE_BYTES);
    (DOUBLE_WORDS - 1) << 16 | SMART
}

/// The disk's SMART page.
pub(crate) fn smart(disk: &File) -> io::Result<Box<[u8; NVME_PAGE_BYTES]>> {
    let mut page = Box::new([0_u8; NVME_PAGE_BYTES]);
    let mut command = Command {
        opcode: GET_LOG_PAGE,
        namespace: ALL_NAMESPACES,
        address: page.as_mut_ptr().expose_provenance() as u64,
        data_len: NVME_PAGE_BYTES as u32,
        cdw10: cdw10(),
        timeout_ms: TIMEOUT_MS,
        ..Command::default()
    };
    // SAFETY: the kernel reads and writes one structure of its own layout, and writes `data_len` bytes at `address`: a page of
    // that length, which nobody else looks at meanwhile. Both outlive the call.
    let status = unsafe { libc::ioctl(disk.as_raw_fd(), REQUEST as _, &raw mut command) };
    match status {
        0 => Ok(page),
        ..0 => Err(io::Error::last_os_error()),
        // NVMe's own status.
        status => Err(io::Error::other(format!("the disk refuses to say (NVMe status {status:#x})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_and_its_words_are_those_of_the_kernel_and_the_specification() {
        assert_eq!(REQUEST, 0xC048_4E41, "NVME_IOCTL_ADMIN_CMD");
        assert_eq!(cdw10(), 0x007F_0002);
    }
}
