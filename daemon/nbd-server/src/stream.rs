//! The socket of a transmission phase: any thread may read from it or write to it.
//!
//! A socket in clear leaves the executor's reactor, which would wake a thread for every request that arrives and every
//! reply that the client takes; who reads waits in the call that reads. Only a socket that is full comes back, until it
//! has room. A socket under TLS stays with the executor.
//!
//! Invariant: nothing here waits but [`Source`], on a thread that may.

use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, sendmsg};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest, ReadHalf};
use tokio::runtime::Handle;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::limits::READ_AHEAD_BYTES;
use crate::transmission::{Socket, TlsSocket};

/// A socket in clear. Reading from it waits, writing to it never does.
#[derive(Debug)]
pub(crate) enum PlainStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl PlainStream {
    /// Takes `socket` away from the executor.
    pub(crate) fn from_socket(socket: Socket) -> io::Result<Self> {
        let stream = match socket {
            Either::Left(stream) => Self::Tcp(stream.into_std()?),
            Either::Right(stream) => Self::Unix(stream.into_std()?),
        };
        let flags = OFlag::from_bits_retain(fcntl(stream.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(stream.as_fd(), FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)))?;
        Ok(stream)
    }

    /// Writes what there is room for now; `WouldBlock` where that is nothing.
    pub(crate) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<()>(self.as_fd().as_raw_fd(), slices, &[], flags, None)?)
    }

    /// Waits until there is something to read, or the end.
    fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).read_vectored(slices),
            Self::Unix(stream) => (&*stream).read_vectored(slices),
        }
    }

    /// Returns once the socket has room. The executor waits for that, with a second descriptor.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        let waiting: OwnedFd = self.as_fd().try_clone_to_owned()?;
        #[expect(deprecated, reason = "what it warns of is a descriptor that changes: this one is owned and does not")]
        let waiting = AsyncFd::with_interest(waiting, Interest::WRITABLE)?;
        waiting.writable().await?.retain_ready();
        Ok(())
    }

    /// Ends reading, or all of it; whoever waits in this socket returns.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        // A peer that is gone already is as good.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }
}

impl AsFd for PlainStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// The receiving half of a TLS session.
pub(crate) type TlsSource = ReadHalf<TlsSocket>;

/// Where requests come from.
#[derive(Debug)]
pub(crate) enum Input {
    Plain(Arc<PlainStream>),
    /// Read by the executor while this thread waits for it.
    Tls {
        stream: TlsSource,
        runtime: Handle,
        stop: CancellationToken,
    },
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
    pub(crate) fn new(input: Input) -> Self {
        Self { input, buffer: vec![0; READ_AHEAD_BYTES].into(), start: 0, end: 0 }
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
    /// Reads into `first`, then into `second`; 0 at the end of the stream.
    fn read(&mut self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => loop {
                match stream.read(&mut [IoSliceMut::new(first), IoSliceMut::new(second)]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => return read,
                }
            },
            Self::Tls { stream, runtime, stop } if first.len() >= second.len() => {
                block_on(runtime, stop, stream.read(first))
            }
            Self::Tls { stream, runtime, stop } => {
                // A short piece: through the buffer, with what comes behind it.
                let read = block_on(runtime, stop, stream.read(second))?;
                let direct = read.min(first.len());
                first[..direct].copy_from_slice(&second[..direct]);
                second.copy_within(direct..read, 0);
                Ok(read)
            }
        }
    }
}

fn block_on(
    runtime: &Handle,
    stop: &CancellationToken,
    read: impl Future<Output = io::Result<usize>>,
) -> io::Result<usize> {
    runtime.block_on(async {
        tokio::select! {
            biased;
            () = stop.cancelled() => Ok(0),
            read = read => read,
        }
    })
}
