//! The thread that dials one peer. It is confined to that port, and hands the connection over as soon as it is there: nothing of a
//! session passes through it.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::sources::Reach;

/// For connecting to one address of the peer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

type Answer = oneshot::Sender<io::Result<TcpStream>>;

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Dialler(Sender<Answer>);

impl Dialler {
    pub(super) fn start(peer: &str, address: &str) -> io::Result<Self> {
        let (asked, asks) = channel();
        let (peer, address) = (peer.to_owned(), address.to_owned());
        std::thread::Builder::new().name(format!("peer {peer}")).spawn(move || {
            if let Err(error) = Reach::server(&address).confine() {
                tracing::error!(peer, %error, "the thread that dials a peer cannot be confined, and does not run");
                return;
            }
            run(&asks, &address);
        })?;
        Ok(Self(asked))
    }

    /// A connection, which does not block.
    pub(super) async fn dial(&self) -> io::Result<TcpStream> {
        let (answer, answered) = oneshot::channel();
        let ended = || io::Error::other("the thread that dials has ended; the log says why");
        self.0.send(answer).map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

fn run(asks: &Receiver<Answer>, address: &str) {
    for answer in asks {
        // Nobody waits who has given up.
        drop(answer.send(connect(address)));
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
