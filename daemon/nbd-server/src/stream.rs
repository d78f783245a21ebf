//! The socket of a transmission phase, in clear or under TLS: any thread may write to it, and one reads.
//!
//! It leaves the executor's reactor, which would wake a thread for every request that arrives and every reply that the
//! client takes; who reads waits in the call that reads. Only a socket that is full comes back, until it has room.
//!
//! Invariants:
//! - Nothing here waits but [`Source`], on a thread that may, and [`Wire::writable`], on the executor.
//! - Nobody holds the TLS session while it waits.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, sendmsg};
use rustls::ServerConnection;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::either::Either;

use crate::limits::{READ_AHEAD_BYTES, TLS_READ_AHEAD_BYTES};
use crate::transmission::Socket;

/// Reading from it waits, writing to it never does.
#[derive(Debug)]
enum Plain {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Plain {
    /// Takes `socket` away from the executor.
    fn from_socket(socket: Socket) -> io::Result<Self> {
        let plain = match socket {
            Either::Left(stream) => Self::Tcp(stream.into_std()?),
            Either::Right(stream) => Self::Unix(stream.into_std()?),
        };
        let flags = OFlag::from_bits_retain(fcntl(plain.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(plain.as_fd(), FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)))?;
        Ok(plain)
    }

    /// Waits until there is something to read, or the end.
    fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Tcp(stream) => (&*stream).read_vectored(slices),
                Self::Unix(stream) => (&*stream).read_vectored(slices),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl AsFd for Plain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Writes what there is room for now; `WouldBlock` where that is nothing.
impl Write for &Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<()>(self.as_fd().as_raw_fd(), slices, &[], flags, None)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection's socket, and its TLS session where it has one.
pub(crate) struct Wire {
    plain: Plain,
    session: Option<Mutex<ServerConnection>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("plain", &self.plain).field("tls", &self.session.is_some()).finish()
    }
}

impl Wire {
    /// Takes `socket` away from the executor; `session` has had its handshake.
    pub(crate) fn new(socket: Socket, session: Option<ServerConnection>) -> io::Result<Self> {
        Ok(Self { plain: Plain::from_socket(socket)?, session: session.map(Mutex::new) })
    }

    fn session(&self) -> Option<MutexGuard<'_, ServerConnection>> {
        // A session that broke off refuses what comes next.
        self.session.as_ref().map(|session| session.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes of `slices` what there is room for now; `WouldBlock` where that is nothing. What a session has taken and the
    /// socket has not is [`Self::try_flush`]'s.
    pub(crate) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(mut session) = self.session() else { return (&self.plain).write_vectored(slices) };
        if !self.flush(&mut session)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = session.writer().write_vectored(slices)?;
        self.flush(&mut session)?;
        Ok(taken)
    }

    /// Sends what the session holds; `false` where the socket has no room for all of it.
    pub(crate) fn try_flush(&self) -> io::Result<bool> {
        self.session().map_or(Ok(true), |mut session| self.flush(&mut session))
    }

    fn flush(&self, session: &mut ServerConnection) -> io::Result<bool> {
        while session.wants_write() {
            match session.write_tls(&mut &self.plain) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Nothing more will be written: says so to a client under TLS, by what is to be flushed.
    pub(crate) fn end_session(&self) {
        if let Some(mut session) = self.session() {
            session.send_close_notify();
        }
    }

    /// Returns once the socket has room. The executor waits for that, with a second descriptor.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        let waiting: OwnedFd = self.plain.as_fd().try_clone_to_owned()?;
        #[expect(
            deprecated,
            reason = "what it warns of is a descriptor that changes: this one is owned and does not"
        )]
        let waiting = AsyncFd::with_interest(waiting, Interest::WRITABLE)?;
        waiting.writable().await?.retain_ready();
        Ok(())
    }

    /// Ends reading, or all of it; whoever waits in this socket returns.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        // A peer that is gone already is as good.
        let _ = match &self.plain {
            Plain::Tcp(stream) => stream.shutdown(how),
            Plain::Unix(stream) => stream.shutdown(how),
        };
    }
}

/// Where requests come from.
#[derive(Debug)]
struct Input {
    wire: Arc<Wire>,
    /// Under TLS: what has been received and the session has not taken.
    received: Box<[u8]>,
    start: usize,
    end: usize,
}

/// A reader with a buffer: many small requests come out of one system call.
#[derive(Debug)]
pub(crate) struct Source {
    input: Input,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Source {
    pub(crate) fn new(wire: Arc<Wire>) -> Self {
        Self { input: Input::new(wire), buffer: vec![0; READ_AHEAD_BYTES].into(), start: 0, end: 0 }
    }

    /// Bytes that have been received and not been taken.
    pub(crate) fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// Fills `out`. What the buffer does not hold goes straight where it belongs, and what comes behind it into the
    /// buffer. `UnexpectedEof` at the client's end of stream.
    pub(crate) fn fill(&mut self, mut out: &mut [u8]) -> io::Result<()> {
        loop {
            let taken = self.buffered().min(out.len());
            let (front, rest) = out.split_at_mut(taken);
            front.copy_from_slice(&self.buffer[self.start..self.start + taken]);
            self.start += taken;
            out = rest;
            if out.is_empty() {
                return Ok(());
            }
            let read = self.input.read(out, &mut self.buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let direct = read.min(out.len());
            out = &mut out[direct..];
            (self.start, self.end) = (0, read - direct);
        }
    }
}

impl Input {
    fn new(wire: Arc<Wire>) -> Self {
        let room = if wire.session.is_some() { TLS_READ_AHEAD_BYTES } else { 0 };
        Self { wire, received: vec![0; room].into(), start: 0, end: 0 }
    }

    /// Reads into `first`, then into `second`; 0 at the end of the stream.
    fn read(&mut self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let wire = Arc::clone(&self.wire);
        loop {
            let Some(mut session) = wire.session() else {
                return wire.plain.read(&mut [IoSliceMut::new(first), IoSliceMut::new(second)]);
            };
            let (taken, ended) = self.decrypt(&mut session, first, second)?;
            // Alerts and answers to changes of keys; what there is no room for goes with the next reply.
            wire.flush(&mut session)?;
            drop(session);
            if taken > 0 || ended {
                return Ok(taken);
            }
            (self.start, self.end) = (0, wire.plain.read(&mut [IoSliceMut::new(&mut self.received)])?);
            if self.end == 0 {
                return Ok(0);
            }
        }
    }

    /// Has the session decrypt what was received, as far as there is room for it. Says how much that is, and whether the client
    /// has ended the session.
    fn decrypt(
        &mut self,
        session: &mut ServerConnection,
        first: &mut [u8],
        second: &mut [u8],
    ) -> io::Result<(usize, bool)> {
        let mut taken: usize = 0;
        loop {
            let out = match taken.checked_sub(first.len()) {
                None => &mut first[taken..],
                Some(behind) => &mut second[behind..],
            };
            if out.is_empty() {
                return Ok((taken, false));
            }
            match session.reader().read(out) {
                Ok(0) => return Ok((taken, true)),
                Ok(read) => {
                    taken += read;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let mut fresh = &self.received[self.start..self.end];
            if fresh.is_empty() {
                return Ok((taken, false));
            }
            self.start += session.read_tls(&mut fresh)?;
            if let Err(error) = session.process_new_packets() {
                // The alert says why.
                let _ = self.wire.flush(session);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}
