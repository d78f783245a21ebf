//! Many transfers of one file at once, over io_uring.
//!
//! Single transfers are calls of the thread that wants them: a queue of one gains nothing by a ring. What comes in batches
//! (ciphertext on its way to its places, pages of tables and records) would wait for each transfer in turn; here they wait
//! together. A file system that cannot be asked without waiting (tmpfs) would have the kernel hand each transfer to a thread
//! of its own, one after the other for one file: there a call of our own thread is the shorter way, and there is no ring.
//!
//! Invariants:
//! - A call returns only when nothing of it is in flight any more, whatever has failed: buffers are borrowed for as long as the
//!   kernel may touch them.
//! - The ring can do nothing but read and write its one file: the kernel is told so before the ring is enabled, because
//!   what goes through a ring passes by the filter of system calls.

use std::collections::VecDeque;
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

/// What is left of a transfer: pieces of memory, in order.
struct Left {
    at: u64,
    pieces: VecDeque<libc::iovec>,
}

impl Left {
    fn new(at: ByteOffset, pieces: impl Iterator<Item = (*mut u8, usize)>) -> Self {
        let pieces = pieces.filter(|(_, bytes)| *bytes > 0);
        let pieces = pieces.map(|(start, bytes)| libc::iovec { iov_base: start.cast(), iov_len: bytes });
        let mut pieces: VecDeque<_> = pieces.collect();
        // From here on they lie in one piece of memory: what is taken off the front moves nothing.
        pieces.make_contiguous();
        Self { at: at.0, pieces }
    }

    /// Goes on behind what was moved.
    fn moved(&mut self, bytes: usize) {
        self.at += bytes as u64;
        let mut bytes = bytes;
        while bytes > 0
            && let Some(first) = self.pieces.front_mut()
        {
            if bytes < first.iov_len {
                // SAFETY: the kernel moved no more than it was asked to, and the rest of it lies within this piece.
                first.iov_base = unsafe { first.iov_base.add(bytes) };
                first.iov_len -= bytes;
                return;
            }
            bytes -= first.iov_len;
            self.pieces.pop_front();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

impl Ring {
    /// A ring for `file`, where the kernel has such and allows it, and would not make a detour of it.
    pub(crate) fn new(file: &File) -> Option<Self> {
        if !may_be_asked_without_waiting(file) {
            return None;
        }
        Self::of_any(file)
    }

    fn of_any(file: &File) -> Option<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(DEPTH).ok()?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()]).ok()?;
        let mut restrictions = [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
            Restriction::register_op(UNREGISTER_FILES),
        ];
        submitter.register_restrictions(&mut restrictions).ok()?;
        submitter.register_enable_rings().ok()?;
        Some(Self(Mutex::new(ring)))
    }

    /// Writes every part, each of pieces one behind the other.
    pub(crate) fn write(&self, parts: &[(ByteOffset, Vec<&[u8]>)]) -> Result<(), Failure> {
        let left = parts.iter().map(|(at, pieces)| {
            Left::new(*at, pieces.iter().map(|bytes| (bytes.as_ptr().cast_mut(), bytes.len())))
        });
        self.run(Way::Write, left.collect())
    }

    /// Fills every part.
    pub(crate) fn read(&self, parts: &mut [(ByteOffset, &mut [u8])]) -> Result<(), Failure> {
        let left = parts
            .iter_mut()
            .map(|(at, bytes)| Left::new(*at, std::iter::once((bytes.as_mut_ptr(), bytes.len()))));
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
        let mut waiting: Vec<usize> =
            (0..left.len()).rev().filter(|nth| !left[*nth].pieces.is_empty()).collect();
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

/// Whether a transfer of the file may be begun by a thread that must not wait: preadv2(2), `RWF_NOWAIT`.
fn may_be_asked_without_waiting(file: &File) -> bool {
    let mut byte = 0_u8;
    let piece = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: the one piece is a byte of this frame. Whether it is read, or wrongly aligned, does not matter.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const piece, 1, 0, libc::RWF_NOWAIT) };
    read >= 0 || Errno::last() != Errno::EOPNOTSUPP
}

/// Pieces that the kernel takes at once (UIO_MAXIOV of linux/uio.h).
pub(crate) const PIECES_AT_ONCE: usize = 1024;

fn entry(way: Way, left: &Left, nth: usize) -> Entry {
    // The kernel moves less than 2 GiB at once and says how much. It has read the list of pieces when the call that submits it
    // returns.
    let (pieces, _) = left.pieces.as_slices();
    let count = u32::try_from(pieces.len().min(PIECES_AT_ONCE)).unwrap_or(1);
    let entry = match way {
        Way::Read => opcode::Readv::new(FILE, pieces.as_ptr(), count).offset(left.at).build(),
        Way::Write => opcode::Writev::new(FILE, pieces.as_ptr(), count).offset(left.at).build(),
    };
    entry.user_data(nth as u64)
}

/// Takes in what the kernel says of a transfer: whether it is through.
fn take(left: &mut Left, result: i32) -> Result<bool, Stop> {
    match usize::try_from(result) {
        Ok(0) => Err(Stop::End),
        Ok(moved) => {
            left.moved(moved);
            Ok(left.pieces.is_empty())
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
        Ring::of_any(file).expect("a ring")
    }

    #[test]
    fn a_file_of_memory_is_read_and_written_without_a_ring() {
        let shared = tempfile::tempfile_in("/dev/shm").unwrap();
        assert!(Ring::new(&shared).is_none(), "tmpfs answers without waiting by now: measure again");
    }

    #[test]
    fn more_parts_than_fit_the_ring_all_arrive_and_come_back() {
        let file = file(1 << 20);
        let ring = ring(&file);
        let contents: Vec<Vec<u8>> = (0..255_u8).map(|nth| vec![nth + 1; 4096 - usize::from(nth)]).collect();
        let at = |nth: usize| ByteOffset(((nth * 7) % 255) as u64 * 4096);
        // In one piece or in three, one of them empty.
        let pieces = |nth: usize, bytes: &'static [u8]| match nth % 2 {
            0 => vec![bytes],
            _ => vec![&bytes[..7], &[], &bytes[7..]],
        };
        let contents: &'static [Vec<u8>] = contents.leak();
        let parts: Vec<(ByteOffset, Vec<&[u8]>)> =
            contents.iter().enumerate().map(|(nth, bytes)| (at(nth), pieces(nth, bytes))).collect();
        ring.write(&parts).unwrap();
        let mut read: Vec<Vec<u8>> = contents.iter().map(|bytes| vec![0; bytes.len()]).collect();
        let mut targets: Vec<(ByteOffset, &mut [u8])> =
            read.iter_mut().enumerate().map(|(nth, bytes)| (at(nth), bytes.as_mut_slice())).collect();
        ring.read(&mut targets).unwrap();
        assert!(read == *contents);
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
    fn what_is_left_of_a_part_begins_behind_what_was_moved() {
        let mut bytes = [0_u8; 10];
        let start = bytes.as_mut_ptr();
        let of = |from: usize, len: usize| (start.wrapping_add(from), len);
        let mut left = Left::new(ByteOffset(100), [of(0, 4), of(4, 0), of(4, 5)].into_iter());
        left.moved(3);
        assert_eq!((left.at, left.pieces.len(), left.pieces[0].iov_len), (103, 2, 1));
        left.moved(2);
        assert_eq!((left.at, left.pieces.len(), left.pieces[0].iov_len), (105, 1, 4));
        assert_eq!(left.pieces[0].iov_base.cast(), start.wrapping_add(5));
        left.moved(4);
        assert!(left.pieces.is_empty());
    }

    #[test]
    fn an_error_of_the_system_is_named() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let stop = Stop::Errno(Errno::ENOSPC);
        assert_eq!(ring(&full).write(&[(ByteOffset(0), vec![&[1; 512]])]), Err((0, stop)));
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
