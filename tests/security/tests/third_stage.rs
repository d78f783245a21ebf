//! After each trigger, once the third stage is reached, nothing of what clients sent and received is left in the node: no
//! object's body or name, no block of a volume, no S3 secret, no TLS secret; and no key, as ever.
//!
//! All of it is found before, in the same places by the same scanner, while a client is in the middle of reading an object
//! over TLS and another works on a volume: in the live node's memory and in a core of it that leaves nothing out.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use config::{GpioConfig, LineBias, LineLevel, Reaction};
use harness::client::{client, run};
use harness::process::wait_for;
use harness::random::Random;
use harness::s3::{Method, presigned};
use harness::site::{DISK, PATIENCE, PushPolicy, Site, SiteSpec};
use hmac::{Hmac, KeyInit, Mac};
use keyholder::api::Connection;
use nbd_server::client::{Client, Endpoint};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use security_tests::core_file::{self, Extent};
use security_tests::image;
use security_tests::installation::{needles, recovered};
use security_tests::memory::{Scan, scan};
use security_tests::needles::Needles;
use security_tests::recovery::Recovered;
use security_tests::tls::{TLS_SECRET, add_key_log};
use sha2::Sha256;

const BUCKET: &str = "bucket";

/// A page that the object, or the volume, repeats: every eight bytes of it are looked for.
const PAGE_BYTES: usize = 4096;

/// More than sockets buffer: the node is in the middle of it for as long as the client wants.
const BODY_BYTES: usize = 32 << 20;

/// Objects beside the one that is looked for, so that the index has pages in its cache.
const OTHER_OBJECTS: usize = 100;

/// Longer than the node stands still for a core, and short enough to wait for its end.
const LEASE_MS: u64 = 20_000;

/// What has to be found while it is in use.
const IN_USE: [&str; 5] = ["object body", "object name", "block", "S3 secret", TLS_SECRET];

fn page(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..PAGE_BYTES / 8).flat_map(|_| random.bits().to_le_bytes()).collect()
}

/// An installation, and what its clients know.
struct Prepared {
    site: Site,
    access: (String, String),
    /// The object's name: nothing else spells like it.
    object: String,
    body: Vec<u8>,
    block: Vec<u8>,
    line: UnixListener,
    folder: tempfile::TempDir,
    readings: usize,
}

impl Prepared {
    /// A connection over which the volume's block has just been written and read.
    fn use_the_volume(&self) -> Client {
        let endpoint = Endpoint::unix(self.site.nbd_socket());
        let mut client = Client::connect(&endpoint, DISK).expect("an export");
        let mut block = self.block.repeat(64);
        client.write(0, &block, false).and_then(|()| client.read(0, &mut block)).expect("an open export");
        client
    }

    fn new() -> Self {
        let mut site = Site::serving(SiteSpec {
            lease_ms: LEASE_MS,
            pool_bytes: 1 << 30,
            disk_bytes: 64 << 20,
            push: PushPolicy::Approve,
            ..SiteSpec::default()
        });
        site.expect_log("a source fired");
        site.expect_log("still stands");
        site.expect_log("the peer has been silent");
        site.stop_node();
        let socket = site.dir().join("line.sock");
        let line = UnixListener::bind(&socket).expect("a socket");
        site.change_node_config(|config| {
            config.sources.gpio = vec![GpioConfig {
                name: "line".into(),
                chip: socket,
                line: 4,
                active: LineLevel::Low,
                bias: LineBias::AsIs,
                recorded: true,
                on_active: Reaction::wipe(),
                on_lost: Reaction::report(),
            }];
            // A debugger is attached on purpose.
            config.sources.hygiene.interval_ms = 60_000;
        });
        site.start_node();
        site.push_until_serving();
        let key = site.create_user("tester");
        site.create_bucket(BUCKET);
        let mut random = Random::new(4);
        let prepared = Self {
            object: format!("{:016x}{:016x}", random.bits(), random.bits()),
            site,
            access: (key.access_key, key.secret_key),
            body: page(5).repeat(BODY_BYTES / PAGE_BYTES),
            block: page(6),
            line,
            folder: tempfile::tempdir().expect("a temporary directory"),
            readings: 0,
        };
        prepared.store();
        prepared
    }

    fn url(&self, method: &Method, object: &str) -> String {
        presigned(&self.site.s3_endpoint(), BUCKET, (&self.access.0, &self.access.1), method, object)
    }

    fn curl(&self) -> std::process::Command {
        let mut curl = client("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(self.site.ca_bundle());
        curl
    }

    fn store(&self) {
        let file = self.folder.path().join("body");
        std::fs::write(&file, &self.body).expect("a file");
        let put = |object: &str, file: &Path| {
            let mut curl = self.curl();
            curl.arg("--upload-file").arg(file).arg(self.url(&Method::PUT, object));
            run(&mut curl).expect_success();
        };
        put(&self.object, &file);
        let small = self.folder.path().join("small");
        std::fs::write(&small, b"one of many").expect("a file");
        // One process for all of them, each under its own name.
        let mut curl = self.curl();
        for number in 0..OTHER_OBJECTS {
            if number > 0 {
                curl.args(["--next", "--silent", "--fail", "--cacert"]).arg(self.site.ca_bundle());
            }
            let url = self.url(&Method::PUT, &format!("other-{number:04}"));
            curl.arg("--upload-file").arg(&small).arg(url);
        }
        run(&mut curl).expect_success();
    }

    /// Starts a client that reads the object, slowly, over a TLS session of its own; returns it once it has some.
    fn read_slowly(&mut self) -> Reading {
        self.readings += 1;
        let file = |what: &str| self.folder.path().join(format!("{what}-{}", self.readings));
        let (log, out) = (file("tls"), file("read"));
        let mut curl = self.curl();
        curl.args(["--limit-rate", "64k", "--output"]).arg(&out).arg(self.url(&Method::GET, &self.object));
        let child = curl.env("SSLKEYLOGFILE", &log).stderr(Stdio::null()).spawn().expect("curl starts");
        let reading = Reading(child);
        wait_for("a client in the middle of an object", PATIENCE, || {
            let read = std::fs::metadata(&out).map(|file| file.len()).unwrap_or_default();
            if read > 0 { Ok(()) } else { Err("nothing read yet".to_owned()) }
        });
        let mut found = Needles::new();
        let text = std::fs::read_to_string(&log).expect("the client logs its secrets");
        assert_eq!(add_key_log(&mut found, &text).expect("a key log"), 1, "one session");
        reading
    }

    /// What clients know by now.
    fn needles(&self) -> Needles {
        let mut needles = Needles::new();
        self.add_to(&mut needles);
        needles
    }

    /// What clients know by now, and the node's keys.
    fn all_needles(&self, recovered: &Recovered) -> Needles {
        let mut needles = needles(recovered);
        self.add_to(&mut needles);
        needles
    }

    fn add_to(&self, needles: &mut Needles) {
        needles.add_text("object body", &self.body[..PAGE_BYTES + 8]);
        needles.add_text("block", &self.block.repeat(2)[..PAGE_BYTES + 8]);
        needles.add_text("object name", self.object.as_bytes());
        needles.add_secret("S3 secret", self.access.1.as_bytes());
        for reading in 1..=self.readings {
            let log = self.folder.path().join(format!("tls-{reading}"));
            let text = std::fs::read_to_string(log).expect("a key log");
            add_key_log(needles, &text).expect("a key log");
        }
        add_signing_keys(needles, &self.access.1);
    }
}

/// The keys that signatures of today and tomorrow are made with.
fn add_signing_keys(needles: &mut Needles, secret: &str) {
    let sign = |key: &[u8], text: &str| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().to_vec()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    for later in [0, 86_400] {
        let date = run(client("date")
            .args(["--utc", "+%Y%m%d", "--date"])
            .arg(format!("@{}", now.as_secs() + later)));
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [date.expect_success().trim(), "us-east-1", "s3", "aws4_request"] {
            key = sign(&key, part);
            needles.add_secret("S3 signing key", &key);
        }
    }
}

/// A client in the middle of an object.
struct Reading(Child);

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Scans the stopped node, so that nothing moves meanwhile.
fn scan_node(site: &mut Site, needles: &Needles) -> Scan {
    site.node().signal(Signal::SIGSTOP);
    let scan = scan(site.node().pid(), needles).expect("the node can be scanned");
    site.node().signal(Signal::SIGCONT);
    scan
}

/// A core of the node that leaves nothing out, searched.
fn search_core(site: &mut Site, needles: &Needles, folder: &Path) -> Scan {
    let core = core_file::take(site.node().pid(), Extent::Everything, folder);
    let scan = image::search(&core, needles).expect("a core");
    std::fs::remove_file(core).expect("our own");
    scan
}

fn assert_finds_what_is_in_use(place: &str, scan: &Scan) {
    for kind in IN_USE {
        let count = scan.findings.iter().filter(|finding| finding.label.secret == kind).count();
        println!("{place}, in use: {count} windows of {kind}");
        assert!(count > 0, "{kind} is in use and is not found in {place}: {}", scan.describe(5));
    }
}

fn assert_clean(when: &str, scan: &Scan) {
    println!("{when}: {} MiB read, {} windows", scan.bytes_read >> 20, scan.findings.len());
    assert!(scan.bytes_read > 1 << 20, "{when}: only {} bytes were read", scan.bytes_read);
    assert!(scan.findings.is_empty(), "{when}: {}", scan.describe(30));
}

/// Writes and reads the volume until it is gone.
fn with_load(prepared: &Prepared, event: impl FnOnce()) {
    let site = &prepared.site;
    let started = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut client =
                Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export");
            let mut block = prepared.block.repeat(64);
            while client.write(0, &block, false).and_then(|()| client.read(0, &mut block)).is_ok() {
                started.store(true, Ordering::SeqCst);
            }
        });
        while !started.load(Ordering::SeqCst) {
            assert!(!load.is_finished(), "the load ended before the event");
            std::thread::yield_now();
        }
        event();
    });
}

fn wait_third_stage(site: &Site, cause: &str) {
    site.wait_sealed(cause);
    wait_for("the third stage", PATIENCE, || {
        let wipe = site.status().last_wipe.expect("it was wiped");
        if wipe.memory_ns.is_some() { Ok(()) } else { Err(format!("{wipe:?}")) }
    });
}

fn push_again(site: &Site) {
    wait_for("the node's evidence", PATIENCE, || {
        let node = site.keyholder_status().nodes.remove(0);
        if node.connection == Connection::Connected { Ok(()) } else { Err(format!("{node:?}")) }
    });
    // Not every trigger latches.
    let _ = site.try_act("/v1/unlatch");
    site.push_until_serving();
}

/// The line's other end: the node dials at its start.
struct Line(UnixStream, u32);

impl Line {
    fn set(&mut self, active: bool) {
        use std::io::Write;
        self.1 += 1;
        self.0.write_all(&sources::event_record(active, self.1, 0)).expect("the node listens");
    }
}

#[test]
fn after_the_third_stage_of_each_trigger_nothing_of_the_clients_is_left() {
    let mut prepared = Prepared::new();
    let recovered = recovered(&prepared.site);
    let keys = needles(&recovered);
    let mut line = Line(prepared.line.accept().expect("the node dialled").0, 0);
    let folder = prepared.folder.path().to_path_buf();
    type Event = fn(&Site, &mut Line);
    let ways: [(&str, Event); 6] = [
        ("power-loss", |site, _| site.signal_node(Signal::SIGPWR)),
        ("power-line", |_, line| line.set(true)),
        ("admin", |site, _| {
            site.wipe();
        }),
        ("revoked", |site, _| {
            site.act("/v1/revoke");
        }),
        ("lockdown", |site, _| {
            site.act("/v1/lockdown");
        }),
        ("lease-expired", |site, _| site.signal_keyholder(Signal::SIGSTOP)),
    ];
    for (cause, event) in ways {
        let reading = prepared.read_slowly();
        let (in_use, all) = (prepared.needles(), prepared.all_needles(&recovered));
        // The volume's block is looked for between two requests of the load below.
        let client = prepared.use_the_volume();
        let site = &mut prepared.site;
        assert_finds_what_is_in_use("the node's memory", &scan_node(site, &in_use));
        assert_clean("keys outside the arena, before", &scan_node(site, &keys));
        if cause == "power-loss" {
            let core = search_core(site, &in_use, &folder);
            assert_finds_what_is_in_use("a core", &core);
            assert_clean("keys in a core, before", &search_core(site, &keys, &folder));
        }
        with_load(&prepared, || event(&prepared.site, &mut line));
        let site = &mut prepared.site;
        wait_third_stage(site, cause);
        assert_clean(&format!("after {cause}"), &scan_node(site, &all));
        assert_clean(&format!("after {cause}, a core"), &search_core(site, &all, &folder));
        drop((reading, client));
        site.signal_keyholder(Signal::SIGCONT);
        if cause == "power-line" {
            line.set(false);
        }
        push_again(site);
    }
}

/// The process is stopped as it ends, when its memory is still there and none of its code runs any more.
#[test]
fn a_planned_stop_ends_in_a_process_that_holds_nothing_of_the_clients_nor_a_key() {
    let mut prepared = Prepared::new();
    let recovered = recovered(&prepared.site);
    let reading = prepared.read_slowly();
    let (in_use, all) = (prepared.needles(), prepared.all_needles(&recovered));
    let client = prepared.use_the_volume();
    let site = &mut prepared.site;
    assert_finds_what_is_in_use("the node's memory", &scan_node(site, &in_use));
    let pid = Pid::from_raw(i32::try_from(site.node().pid()).expect("a process id"));
    ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACEEXIT).expect("run the tests as root");
    site.signal_node(Signal::SIGTERM);
    loop {
        match waitpid(pid, None).expect("the node is this test's child") {
            WaitStatus::PtraceEvent(_, _, event) if event == libc::PTRACE_EVENT_EXIT => break,
            WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal).expect("it goes on"),
            WaitStatus::PtraceEvent(..) => ptrace::cont(pid, None).expect("it goes on"),
            other => panic!("the node ended unseen: {other:?}"),
        }
    }
    let left = scan(site.node().pid(), &all).expect("it can be scanned");
    ptrace::cont(pid, None).expect("it goes on to its end");
    assert_clean("at the end of a planned stop", &left);
    site.stop_node();
    drop((reading, client));
}
