//! The thread that dials one peer. It is confined to that port, and hands the connection over as soon as it is there: nothing of a
//! session passes through it.

use std::io;
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::oneshot;

use crate::sources::{self, Reach};

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
    let stream = sources::connect(address)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}
