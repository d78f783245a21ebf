//! SMART of ATA disks, by the kernel's SCSI passthrough: ATA PASS-THROUGH (16) (SAT-4, 12.2.3) in `SG_IO` (`scsi/sg.h`).

use std::ffi::{c_int, c_uchar, c_uint, c_ushort, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use health::{ATA_PAGE_BYTES, SelfVerdict};

const SG_IO: libc::c_ulong = 0x2285;

const CDB_BYTES: usize = 16;
const SENSE_BYTES: usize = 32;

/// A disk that sleeps wakes up within this.
const TIMEOUT_MS: c_uint = 20_000;

const ATA_PASS_THROUGH_16: u8 = 0x85;
const COMMAND_SMART: u8 = 0xB0;

/// What SMART commands have in the middle and the high byte of the address, so that nothing else is taken for one.
const SIGNATURE: [u8; 2] = [0x4F, 0xC2];

/// What they have there in the answer where a threshold is passed.
const SIGNATURE_FAILING: [u8; 2] = [0xF4, 0x2C];

/// SMART's subcommands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subcommand {
    ReadData = 0xD0,
    ReadThresholds = 0xD1,
    ReturnStatus = 0xDA,
}

/// `struct sg_io_hdr`.
#[repr(C)]
struct Request {
    interface: c_int,
    direction: c_int,
    cdb_len: c_uchar,
    sense_len_max: c_uchar,
    pieces: c_ushort,
    data_len: c_uint,
    data: *mut c_void,
    cdb: *const c_uchar,
    sense: *mut c_uchar,
    timeout_ms: c_uint,
    flags: c_uint,
    id: c_int,
    own: *mut c_void,
    status: c_uchar,
    masked_status: c_uchar,
    message_status: c_uchar,
    sense_len: c_uchar,
    host_status: c_ushort,
    driver_status: c_ushort,
    residue: c_int,
    duration: c_uint,
    info: c_uint,
}

const _: () = assert!(size_of::<Request>() == 88 || size_of::<usize>() != 8);

/// SMART READ DATA.
pub(crate) fn read_data(disk: &File) -> io::Result<Box<[u8; ATA_PAGE_BYTES]>> {
    read(disk, Subcommand::ReadData)
}

/// SMART READ THRESHOLDS.
pub(crate) fn read_thresholds(disk: &File) -> io::Result<Box<[u8; ATA_PAGE_BYTES]>> {
    read(disk, Subcommand::ReadThresholds)
}

/// SMART RETURN STATUS. Adapters that do not pass the answer's registers on leave it unknown.
pub(crate) fn verdict(disk: &File) -> SelfVerdict {
    let mut sense = [0; SENSE_BYTES];
    match send(disk, &cdb(Subcommand::ReturnStatus), &mut [], &mut sense) {
        Ok(_) => verdict_in(&sense),
        Err(_) => SelfVerdict::Unknown,
    }
}

fn read(disk: &File, subcommand: Subcommand) -> io::Result<Box<[u8; ATA_PAGE_BYTES]>> {
    let mut page = Box::new([0; ATA_PAGE_BYTES]);
    let mut sense = [0; SENSE_BYTES];
    let answer = send(disk, &cdb(subcommand), &mut *page, &mut sense)?;
    match answer {
        Answer { status: 0, host_status: 0, residue: 0 } => Ok(page),
        Answer { status, host_status, residue } => Err(io::Error::other(format!(
            "the disk refuses {subcommand:?} (status {status:#x}, adapter {host_status:#x}, {residue} bytes missing); SMART may be off"
        ))),
    }
}

/// A command descriptor: the registers of an ATA command in their places.
fn cdb(subcommand: Subcommand) -> [u8; CDB_BYTES] {
    /// Data come in by programmed I/O, in blocks of 512 bytes of which the count register has the number.
    const PIO_IN: (u8, u8) = (4 << 1, 0x0E);
    /// No data; the registers come back.
    const NO_DATA: (u8, u8) = (3 << 1, 0x20);
    let ((protocol, flags), count) = match subcommand {
        Subcommand::ReadData | Subcommand::ReadThresholds => (PIO_IN, 1),
        Subcommand::ReturnStatus => (NO_DATA, 0),
    };
    let mut cdb = [0; CDB_BYTES];
    cdb[0] = ATA_PASS_THROUGH_16;
    cdb[1] = protocol;
    cdb[2] = flags;
    cdb[4] = subcommand as u8;
    cdb[6] = count;
    cdb[8] = count;
    [cdb[10], cdb[12]] = SIGNATURE;
    cdb[14] = COMMAND_SMART;
    cdb
}

/// How it went.
struct Answer {
    status: u8,
    host_status: u16,
    residue: c_int,
}

fn send(
    disk: &File,
    cdb: &[u8; CDB_BYTES],
    data: &mut [u8],
    sense: &mut [u8; SENSE_BYTES],
) -> io::Result<Answer> {
    /// `SG_DXFER_NONE`, `SG_DXFER_FROM_DEV`.
    const DIRECTIONS: [c_int; 2] = [-1, -3];
    let mut request = Request {
        interface: c_int::from(b'S'),
        direction: DIRECTIONS[usize::from(!data.is_empty())],
        cdb_len: CDB_BYTES as c_uchar,
        sense_len_max: SENSE_BYTES as c_uchar,
        pieces: 0,
        data_len: c_uint::try_from(data.len()).unwrap_or(0),
        data: data.as_mut_ptr().cast(),
        cdb: cdb.as_ptr(),
        sense: sense.as_mut_ptr(),
        timeout_ms: TIMEOUT_MS,
        flags: 0,
        id: 0,
        own: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_len: 0,
        host_status: 0,
        driver_status: 0,
        residue: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the kernel reads and writes one structure of its own layout. Its addresses are of the command, the data and the sense
    // bytes, each with its length beside it; they are borrowed for longer than the call.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), SG_IO as _, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Answer { status: request.status, host_status: request.host_status, residue: request.residue })
}

/// The disk's conclusion, out of the registers in the sense bytes: with descriptors (SPC-5, 4.5.2; SAT-4, 12.2.6) or without.
fn verdict_in(sense: &[u8; SENSE_BYTES]) -> SelfVerdict {
    /// ATA STATUS RETURN, and its length.
    const DESCRIPTOR: [u8; 2] = [0x09, 0x0C];
    let signature = match sense[0] & 0x7F {
        0x72 if sense[8..10] == DESCRIPTOR => [sense[17], sense[19]],
        0x70 => [sense[10], sense[11]],
        _ => return SelfVerdict::Unknown,
    };
    match signature {
        SIGNATURE => SelfVerdict::Passed,
        SIGNATURE_FAILING => SelfVerdict::Failing,
        _ => SelfVerdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_in_the_places_that_the_standard_gives_them() {
        let read = [0x85, 0x08, 0x0E, 0, 0xD0, 0, 1, 0, 1, 0, 0x4F, 0, 0xC2, 0, 0xB0, 0];
        assert_eq!(cdb(Subcommand::ReadData), read);
        let status = [0x85, 0x06, 0x20, 0, 0xDA, 0, 0, 0, 0, 0, 0x4F, 0, 0xC2, 0, 0xB0, 0];
        assert_eq!(cdb(Subcommand::ReturnStatus), status);
    }

    #[test]
    fn a_verdict_is_read_from_both_kinds_of_sense_and_from_nothing_else() {
        let descriptor = |middle, high| {
            let mut sense = [0; SENSE_BYTES];
            [sense[0], sense[8], sense[9], sense[17], sense[19]] = [0x72, 0x09, 0x0C, middle, high];
            sense
        };
        let fixed = |middle, high| {
            let mut sense = [0; SENSE_BYTES];
            [sense[0], sense[10], sense[11]] = [0xF0, middle, high];
            sense
        };
        for sense in [descriptor(0x4F, 0xC2), fixed(0x4F, 0xC2)] {
            assert_eq!(verdict_in(&sense), SelfVerdict::Passed);
        }
        for sense in [descriptor(0xF4, 0x2C), fixed(0xF4, 0x2C)] {
            assert_eq!(verdict_in(&sense), SelfVerdict::Failing);
        }
        for sense in [descriptor(0, 0), fixed(0x4F, 0), [0; SENSE_BYTES], [0xFF; SENSE_BYTES]] {
            assert_eq!(verdict_in(&sense), SelfVerdict::Unknown);
        }
    }
}
