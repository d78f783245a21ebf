//! The way to a TPM: a character device or a socket, asked without blocking so that a deadline holds.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use attestation::Malformed;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::command::{Answer, HEADER_BYTES, RESPONSE_BYTES_MAX, Request, Response};
use crate::{Result, TpmError};

/// Between two attempts at a TPM that says that it is busy, in milliseconds.
const BUSY_PAUSE_MS: u16 = 20;

#[derive(Debug)]
pub(crate) struct Link {
    file: File,
    pub(crate) patience: Duration,
    /// An answer is outstanding that nobody waits for any more.
    lost: bool,
}

impl Link {
    pub(crate) fn open(path: &Path, patience: Duration) -> std::io::Result<Self> {
        let file = if std::fs::metadata(path)?.file_type().is_socket() {
            let stream = UnixStream::connect(path)?;
            stream.set_nonblocking(true)?;
            File::from(OwnedFd::from(stream))
        } else {
            OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?
        };
        Ok(Self { file, patience, lost: false })
    }

    pub(crate) fn run(&mut self, request: &Request) -> Result<Response> {
        if self.lost {
            return Err(TpmError::Lost);
        }
        let end = Instant::now() + self.patience;
        loop {
            // Until the whole answer is here, what comes next would be the rest of it.
            self.lost = true;
            let bytes = self.exchange(&request.bytes, end)?;
            self.lost = false;
            match request.answer(&bytes)? {
                Answer::Done(response) => return Ok(response),
                Answer::Refused(code) => return Err(TpmError::Refused { command: request.name, code }),
                Answer::Again if Instant::now() >= end => return Err(TpmError::Timeout(self.patience)),
                // A sleep that a confined thread may take: it waits for descriptors anyway.
                Answer::Again => drop(poll(&mut [], PollTimeout::from(BUSY_PAUSE_MS))),
            }
        }
    }

    fn exchange(&mut self, command: &[u8], end: Instant) -> Result<Vec<u8>> {
        let mut left = command;
        while !left.is_empty() {
            self.wait(PollFlags::POLLOUT, end)?;
            match self.file.write(left) {
                Ok(0) => return Err(std::io::Error::from(ErrorKind::WriteZero).into()),
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut answer = Vec::new();
        let mut chunk = [0; RESPONSE_BYTES_MAX];
        loop {
            self.wait(PollFlags::POLLIN, end)?;
            match self.file.read(&mut chunk) {
                Ok(0) => return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(count) => answer.extend(chunk.iter().take(count)),
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(error.into()),
            }
            if is_whole(&answer)? {
                return Ok(answer);
            }
        }
    }

    fn wait(&self, what: PollFlags, end: Instant) -> Result<()> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TpmError::Timeout(self.patience));
            }
            // Rounded up: not to turn in circles in the last millisecond.
            let milliseconds = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            match poll(&mut [PollFd::new(self.file.as_fd(), what)], PollTimeout::from(milliseconds)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
        }
    }
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Whether an answer is all there, by its own word. A longer one is none.
fn is_whole(answer: &[u8]) -> Result<bool, Malformed> {
    let malformed = Malformed { what: "response" };
    if answer.len() < HEADER_BYTES {
        return Ok(false);
    }
    let announced = answer.get(2..6).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    let announced = announced.and_then(|length| usize::try_from(length).ok()).ok_or(malformed)?;
    if announced > RESPONSE_BYTES_MAX || answer.len() > announced {
        return Err(malformed);
    }
    Ok(answer.len() == announced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::flush;
    use std::os::unix::net::UnixListener;

    /// A TPM that answers with `parts`, one after the other.
    fn answering(parts: &'static [&'static [u8]], patience: Duration) -> (tempfile::TempDir, Link) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tpm");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut command = [0; 14];
            while stream.read_exact(&mut command).is_ok() {
                for part in parts {
                    stream.write_all(part).unwrap();
                }
            }
        });
        let link = Link::open(&path, patience).unwrap();
        (folder, link)
    }

    const DONE: &[u8] = &[0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

    #[test]
    fn an_answer_in_pieces_is_one() {
        let (_folder, mut link) =
            answering(&[&[0x80, 1, 0], &[0, 0, 10, 0, 0, 0, 0]], Duration::from_secs(60));
        link.run(&flush(1)).unwrap();
        link.run(&flush(1)).unwrap();
    }

    #[test]
    fn a_tpm_that_is_silent_is_given_up_and_not_asked_again() {
        let patience = Duration::from_millis(300);
        let (_folder, mut link) = answering(&[&[0x80, 1, 0, 0, 0, 10, 0, 0, 0]], patience);
        assert!(matches!(link.run(&flush(1)), Err(TpmError::Timeout(after)) if after == patience));
        assert!(matches!(link.run(&flush(1)), Err(TpmError::Lost)));
    }

    #[test]
    fn an_answer_longer_than_it_says_or_than_any_is_none() {
        for parts in [[DONE, &[0]].concat().leak() as &[u8], &[0x80, 1, 0, 0, 0x20, 0, 0, 0, 0, 0]] {
            assert_eq!(is_whole(parts), Err(Malformed { what: "response" }));
        }
    }
}
