//! What a node takes in memory while ten thousand clients keep their connections, and while 32 move large objects: 256 MiB.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Barrier};

use harness::process::wait_for;
use harness::s3::S3Client;
use harness::site::{PATIENCE, Site, SiteSpec};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const RESIDENT_BYTES_MAX: u64 = 256 << 20;
const MIB: u64 = 1 << 20;

const CONNECTIONS: usize = 10_000;

/// Descriptors of this process and of the node, which inherits the limit.
const DESCRIPTORS: u64 = 16_384;

const CLIENTS: usize = 32;
const OBJECT_BYTES: usize = 64 << 20;

fn raise_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let wanted = DESCRIPTORS.max(hard);
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, wanted)
        .unwrap_or_else(|error| panic!("{DESCRIPTORS} open files are needed, {hard} are allowed: {error}"));
}

fn site() -> (Site, SocketAddr) {
    raise_descriptors();
    let site = Site::serving(SiteSpec { plain: true, ..SiteSpec::default() });
    let address = site.node_config().listen.s3.expect("the site serves S3");
    (site, address)
}

/// Resident memory of a process, bytes: what it takes now.
fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel counts VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("VmRSS is a number of kB") * 1024
}

/// Asks for something that nobody may have without a signature: an answer, and the connection stays.
fn ask(stream: &mut TcpStream) {
    let request =
        b"GET /bucket/key HTTP/1.1\r\nHost: node\r\nUser-Agent: an idle client\r\nAccept: */*\r\n\r\n";
    stream.write_all(request).expect("a request");
    let mut answer = Vec::new();
    let mut chunk = [0; 2048];
    while !answer.ends_with(b"</Error>") {
        let count = stream.read(&mut chunk).expect("an answer");
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&chunk[..count]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 403"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn ten_thousand_idle_connections_take_less_than_256_mib() {
    let (mut site, address) = site();
    site.create_bucket("bucket");
    let node = site.node().pid();
    let before = resident_bytes(node);
    let connect = || {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    };
    let mut streams: Vec<_> = (0..CONNECTIONS).map(|_| connect()).collect();
    wait_for("connections", PATIENCE, || {
        let open = std::fs::read_dir(format!("/proc/{node}/fd")).expect("the process runs").count();
        if open >= CONNECTIONS { Ok(()) } else { Err(format!("{open} descriptors")) }
    });
    let silent = resident_bytes(node);
    streams.iter_mut().for_each(ask);
    let answered = resident_bytes(node);
    let of_each = (answered - before) / CONNECTIONS as u64;
    println!(
        "{} MiB before, {} with {CONNECTIONS} connections that said nothing, {} once each was answered: {of_each} bytes each",
        before / MIB,
        silent / MIB,
        answered / MIB
    );
    assert!(answered < RESIDENT_BYTES_MAX, "{} MiB, {of_each} bytes a connection", answered / MIB);
    // And they are served still.
    streams.iter_mut().step_by(997).for_each(ask);
    drop(streams);
    site.check_logs();
}

#[test]
fn thirty_two_clients_that_put_and_get_64_mib_take_less_than_256_mib() {
    let (mut site, address) = site();
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let begin = Arc::new(Barrier::new(CLIENTS));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (begin, key) = (Arc::clone(&begin), key.clone());
            std::thread::spawn(move || {
                let mut s3 = S3Client::new(address, "bucket", &key.access_key, &key.secret_key);
                let seed = u8::try_from(number).expect("a small number");
                let body = vec![seed; OBJECT_BYTES];
                begin.wait();
                s3.put(&format!("large/{number}"), body).unwrap_or_else(|error| panic!("PUT: {error}"));
                begin.wait();
                let got = s3.get(&format!("large/{number}")).unwrap_or_else(|error| panic!("GET: {error}"));
                let got = got.expect("the object");
                assert!(got.len() == OBJECT_BYTES && got.iter().all(|byte| *byte == seed));
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("a client"));
    let peak = site.node().peak_resident_bytes();
    println!("{CLIENTS} clients with {} MiB each: {} MiB at the most", OBJECT_BYTES as u64 / MIB, peak / MIB);
    assert!(peak < RESIDENT_BYTES_MAX, "{} MiB at the most", peak / MIB);
    site.check_logs();
}
