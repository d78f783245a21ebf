//! Many transfers of one file at once, over io_uring.
//!
//! Single transfers are calls of the thread that wants them: a queue of one gains nothing by a ring. What comes in batches
//! (ciphertext on its way to its places, pages of tables and records) would wait for each transfer in turn; here they wait
//! together.
//!
//! Invariants:
//! - A call returns only when nothing of it is in flight any more, whatever has failed: buffers are borrowed for as long as the
//!   kernel may touch them.
//! - The ring can do nothing but read and write its one file: the kernel is told so before the ring is enabled, because
//!   what goes through a ring passes by the filter of system calls.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use units::ByteOffset;

/// Most transfers in flight: twice what a SATA disk queues. Other depths have not been measured.
const DEPTH: u32 = 64;

/// Where the kernel says that it has no room just now: at once it would say so again.
const PAUSE: Duration = Duration::from_millis(1);

/// The registered file.
const FILE: types::Fixed = types::Fixed(0);

/// IORING_UNREGISTER_FILES of linux/io_uring.h.
const UNREGISTER_FILES: u8 = 3;

/// Why a transfer ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Errno(Errno),
    /// The system transferred nothing and reported no error: the end of the file.
    End,
}

/// A transfer that failed: which of the batch, and why. Others may have been done or not.
pub(crate) type Failure = (usize, Stop);

pub(crate) struct Ring(Mutex<IoUring>);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl Drop for Ring {
    /// Lets go of the file now: the kernel takes a ring apart later, and until then the file would stay open and locked.
    fn drop(&mut self) {
        // Where it fails, the file is let go of later.
        let _ = self.ring().submitter().unregister_files();
    }
}

/// What is left of a transfer.
struct Left {
    at: u64,
    start: *mut u8,
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

impl Ring {
    /// A ring for `file`, where the kernel has such and allows it.
    pub(crate) fn new(file: &File) -> Option<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(DEPTH).ok()?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()]).ok()?;
        let mut restrictions = [
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
            Restriction::register_op(UNREGISTER_FILES),
        ];
        submitter.register_restrictions(&mut restrictions).ok()?;
        submitter.register_enable_rings().ok()?;
        Some(Self(Mutex::new(ring)))
    }

    /// Writes every part.
    pub(crate) fn write(&self, parts: &[(ByteOffset, &[u8])]) -> Result<(), Failure> {
        let left = parts.iter().map(|(at, bytes)| Left {
            at: at.0,
            start: bytes.as_ptr().cast_mut(),
            bytes: bytes.len(),
        });
        self.run(Way::Write, left.collect())
    }

    /// Fills every part.
    pub(crate) fn read(&self, parts: &mut [(ByteOffset, &mut [u8])]) -> Result<(), Failure> {
        let left = parts.iter_mut().map(|(at, bytes)| Left {
            at: at.0,
            start: bytes.as_mut_ptr(),
            bytes: bytes.len(),
        });
        self.run(Way::Read, left.collect())
    }

    fn ring(&self) -> MutexGuard<'_, IoUring> {
        // A batch that ended in a panic has nothing in flight: see `run`.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps as much in flight as the ring takes, until all is done or something has failed, and then until nothing is in
    /// flight.
    fn run(&self, way: Way, mut left: Vec<Left>) -> Result<(), Failure> {
        let mut ring = self.ring();
        let mut waiting: Vec<usize> = (0..left.len()).rev().filter(|nth| left[*nth].bytes > 0).collect();
        let mut in_flight = 0_u32;
        let mut failed: Option<Failure> = None;
        loop {
            while failed.is_none() && in_flight < DEPTH {
                let Some(nth) = waiting.pop() else { break };
                let entry = entry(way, &left[nth], nth);
                // SAFETY: the part is borrowed by the caller, and this call ends only when the kernel has done with it. The
                // queue has `DEPTH` places, and there are as many entries in it as are in flight, at most.
                match unsafe { ring.submission().push(&entry) } {
                    Ok(()) => in_flight += 1,
                    Err(_full) => {
                        waiting.push(nth);
                        break;
                    }
                }
            }
            if in_flight == 0 {
                return failed.map_or(Ok(()), Err);
            }
            // Whatever this says, what is in flight is waited for: a signal, or a kernel short of memory, is no end.
            let mut again = ring.submit_and_wait(1).is_err();
            for completion in ring.completion() {
                in_flight -= 1;
                again |= completion.result() == -(Errno::EAGAIN as i32);
                let nth = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
                match take(&mut left[nth], completion.result()) {
                    Ok(true) => {}
                    Ok(false) => waiting.push(nth),
                    Err(stop) => failed = failed.or(Some((nth, stop))),
                }
            }
            if again {
                std::thread::park_timeout(PAUSE);
            }
        }
    }
}

fn entry(way: Way, left: &Left, nth: usize) -> Entry {
    // The kernel moves less than 2 GiB at once and says how much.
    let bytes = u32::try_from(left.bytes).unwrap_or(1 << 30);
    let entry = match way {
        Way::Read => opcode::Read::new(FILE, left.start, bytes).offset(left.at).build(),
        Way::Write => opcode::Write::new(FILE, left.start, bytes).offset(left.at).build(),
    };
    entry.user_data(nth as u64)
}

/// Takes in what the kernel says of a transfer: whether it is through.
fn take(left: &mut Left, result: i32) -> Result<bool, Stop> {
    match usize::try_from(result) {
        Ok(0) => Err(Stop::End),
        Ok(moved) => {
            left.at += moved as u64;
            // SAFETY: the kernel moved no more than it was asked to, which lies within the part.
            left.start = unsafe { left.start.add(moved) };
            left.bytes -= moved;
            Ok(left.bytes == 0)
        }
        Err(_) => match Errno::from_raw(-result) {
            Errno::EINTR | Errno::EAGAIN => Ok(false),
            errno => Err(Stop::Errno(errno)),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    /// This machine's kernel has rings; where one does not, the device does without, and its own tests cover that.
    fn ring(file: &File) -> Ring {
        Ring::new(file).expect("a ring")
    }

    #[test]
    fn more_parts_than_fit_the_ring_all_arrive_and_come_back() {
        let file = file(1 << 20);
        let ring = ring(&file);
        let contents: Vec<Vec<u8>> = (0..255_u8).map(|nth| vec![nth + 1; 4096 - usize::from(nth)]).collect();
        let at = |nth: usize| ByteOffset(((nth * 7) % 255) as u64 * 4096);
        let parts: Vec<(ByteOffset, &[u8])> =
            contents.iter().enumerate().map(|(nth, bytes)| (at(nth), bytes.as_slice())).collect();
        ring.write(&parts).unwrap();
        let mut read: Vec<Vec<u8>> = contents.iter().map(|bytes| vec![0; bytes.len()]).collect();
        let mut targets: Vec<(ByteOffset, &mut [u8])> =
            read.iter_mut().enumerate().map(|(nth, bytes)| (at(nth), bytes.as_mut_slice())).collect();
        ring.read(&mut targets).unwrap();
        assert!(read == contents);
        let mut direct = vec![0; contents[3].len()];
        file.read_exact_at(&mut direct, at(3).0).unwrap();
        assert!(direct == contents[3]);
    }

    #[test]
    fn a_part_past_the_end_is_named_and_nothing_stays_in_flight() {
        let ring = ring(&file(8192));
        let mut buffers = vec![vec![0; 4096]; 100];
        let mut targets: Vec<(ByteOffset, &mut [u8])> = buffers
            .iter_mut()
            .enumerate()
            .map(|(nth, bytes)| (ByteOffset(if nth == 40 { 8192 } else { 4096 }), bytes.as_mut_slice()))
            .collect();
        assert_eq!(ring.read(&mut targets), Err((40, Stop::End)));
        assert!(ring.ring().submission().is_empty());
        ring.read(&mut [(ByteOffset(0), &mut [0; 4096])]).unwrap();
    }

    #[test]
    fn an_error_of_the_system_is_named() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let stop = Stop::Errno(Errno::ENOSPC);
        assert_eq!(ring(&full).write(&[(ByteOffset(0), &[1; 512])]), Err((0, stop)));
    }

    /// What passes by the filter of system calls is kept to its file by the kernel.
    #[test]
    fn the_ring_does_nothing_but_read_and_write_its_file() {
        let file = file(4096);
        let ring = ring(&file);
        let mut byte = [0_u8; 1];
        let other = types::Fd(file.as_raw_fd());
        let foreign = [
            opcode::Nop::new().build(),
            opcode::Nop::new().build().flags(Flags::FIXED_FILE),
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build(),
            opcode::Read::new(other, byte.as_mut_ptr(), 1).build(),
        ];
        let mut inner = ring.ring();
        for entry in foreign {
            // SAFETY: refused before it touches anything; the buffer and the path outlive the wait.
            unsafe { inner.submission().push(&entry) }.unwrap();
            inner.submit_and_wait(1).unwrap();
            let result = inner.completion().next().unwrap().result();
            assert_eq!(Errno::from_raw(-result), Errno::EACCES);
        }
        assert!(inner.submitter().register_files_update(0, &[file.as_raw_fd()]).is_err());
    }
}
