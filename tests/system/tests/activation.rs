//! Sockets that a service manager has bound and passes on: what comes before the node runs waits, and what does not fit the
//! configuration is refused.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread::JoinHandle;

use harness::client::client;
use harness::process::{Process, wait_for};
use harness::site::{DISK, PATIENCE, Site, SiteSpec, VolumeKind};
use nbd_server::client::{Client, Endpoint};

/// What an NBD server says first.
const GREETING: &[u8; 18] = b"NBDMAGICIHAVEOPT\x00\x03";

/// The node's command, started by the first connection to one of `sockets` (name, address).
fn activated(site: &Site, sockets: &[(&str, String)]) -> Command {
    let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
    let mut command = client("systemd-socket-activate");
    for (_, address) in sockets {
        command.arg("--listen").arg(address);
    }
    command.arg(format!("--fdname={}", names.join(":")));
    let node = site.node_command();
    command.arg(node.get_program()).args(node.get_args());
    command
}

/// Connects as soon as somebody listens, and waits for the greeting.
fn early<S: Read + Send + 'static>(
    connect: impl Fn() -> std::io::Result<S> + Send + 'static,
) -> JoinHandle<[u8; 18]> {
    std::thread::spawn(move || {
        let mut stream =
            wait_for("a listening socket", PATIENCE, || connect().map_err(|error| error.to_string()));
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        greeting
    })
}

#[test]
fn who_connects_before_the_node_runs_is_served_once_it_does() {
    let mut site = Site::installed(SiteSpec { plain: true, ..SiteSpec::default() });
    site.start_keyholder();
    site.hold_ceremony();
    let (tcp, unix) = (site.nbd_address(), site.nbd_socket().to_path_buf());
    let sockets = [("nbd-unix", unix.display().to_string()), ("nbd", tcp.to_string())];
    let command = activated(&site, &sockets);
    let over_tcp = early(move || TcpStream::connect(tcp));
    let socket = unix.clone();
    let over_unix = early(move || UnixStream::connect(&socket));
    site.start_node_by(command);
    for early in [over_tcp, over_unix] {
        assert_eq!(&early.join().expect("a client"), GREETING);
    }
    site.enrol_node();
    site.create_volume(DISK, VolumeKind::Block, 64 << 20);
    site.push_until_serving();
    for endpoint in [Endpoint::tcp(tcp), Endpoint::unix(&unix)] {
        let mut client = Client::connect(&endpoint, DISK).expect("an export");
        client.write(0, &[7; 4096], true).expect("a write");
    }
    let listening = site.status().listening;
    assert!(
        listening.iter().any(|head| head.head == "nbd" && head.address == tcp.to_string()),
        "{listening:?}"
    );
    // The manager's sockets stay when the node goes: its own it would have to bind again.
    site.stop_node();
}

#[test]
fn a_socket_that_does_not_fit_the_configuration_ends_the_start_with_what_to_do() {
    let site = Site::installed(SiteSpec { plain: true, ..SiteSpec::default() });
    let tcp = site.nbd_address();
    let elsewhere = harness::site::free_port();
    for (name, address, connect, expected) in [
        ("nbd", elsewhere.to_string(), elsewhere, format!("the configuration says {tcp}")),
        ("backup", elsewhere.to_string(), elsewhere, "FileDescriptorName=".to_owned()),
        ("nbd-unix", elsewhere.to_string(), elsewhere, "correct the socket unit".to_owned()),
    ] {
        let mut process = Process::start("nightlatchd", activated(&site, &[(name, address)]));
        let client = early_silent(connect);
        let status = process.wait_end(PATIENCE);
        assert!(!status.success(), "{name}: the node started");
        assert!(process.tail().contains(&expected), "{name}: {}", process.tail());
        client.join().expect("a client");
    }
}

/// Connects as soon as somebody listens, and says nothing.
fn early_silent(address: std::net::SocketAddr) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let connect = || TcpStream::connect(address).map_err(|error| error.to_string());
        drop(wait_for("a listening socket", PATIENCE, connect));
    })
}
