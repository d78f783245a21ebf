//! After each trigger, once the third stage is reached, nothing of what clients sent and received is left in the node: no
//! object's body or name, no block of a volume, no S3 secret, no TLS secret; and no key, as ever.
//!
//! All of it is found before, in the same places by the same scanner, while a client is in the middle of reading an object
//! over TLS and another works on a volume: in the live node's memory and in a core of it that leaves nothing out.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use admin::api::{OrderScrub, ScrubAction, ScrubPhase};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use config::{
    BmcConfig, ButtonConfig, ChassisConfig, ClockConfig, GpioConfig, HygieneConfig, KernelEventConfig,
    LineBias, LineLevel, Reaction, ScrubConfig, SourcesConfig,
};
use harness::battery_clock::BatteryClock;
use harness::client::{client, run};
use harness::nut::Nut;
use harness::process::wait_for;
use harness::random::Random;
use harness::s3::{Method, presigned};
use harness::site::{DISK, PATIENCE, PushPolicy, Site, SiteSpec, VolumeKind};
use hmac::{Hmac, KeyInit, Mac};
use nbd_server::client::{Client, Endpoint};
use nix::sys::signal::Signal;
use security_tests::at_exit::AtExit;
use security_tests::core_file::{self, Extent};
use security_tests::hybrid::{HybridClient, SHARED_SECRET, Secrets};
use security_tests::image;
use security_tests::installation::{needles, recovered};
use security_tests::memory::{OF_A_NODE, Scan, scan};
use security_tests::needles::{Label, Needles};
use security_tests::planted::Planted;
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

/// Uploads that are begun, and bytes of headers that the index keeps of each: more than its cache holds.
const UPLOADS: usize = 6_600;
const UPLOAD_HEADER_BYTES: [usize; 2] = [2_000, 5_800];
const _: () =
    assert!(UPLOADS * (UPLOAD_HEADER_BYTES[0] + UPLOAD_HEADER_BYTES[1]) > objects::limits::INDEX_CACHE_BYTES);

/// The key that a customer sends along with the object (SSE-C), and its MD5 as S3 wants it.
const CUSTOMER_KEY: [u8; 32] = [
    0x8d, 0x03, 0xf1, 0x62, 0x4b, 0xc7, 0x19, 0xee, 0x50, 0xa8, 0x3d, 0x91, 0x76, 0x2f, 0xd4, 0x0b, 0xe9,
    0x5c, 0xb2, 0x17, 0x88, 0x44, 0xfd, 0x6a, 0x31, 0x9f, 0xc0, 0x25, 0x7e, 0xd8, 0x13, 0xba,
];
const CUSTOMER_KEY_MD5: &str = "2ue9H7EQzbzOoeUYR7lqkA==";

/// Longer than the node stands still for a core, and short enough to wait for its end.
const LEASE_MS: u64 = 20_000;

/// What a sealed node may have of memory of its own beyond what it had before its index was filled: less than the index's cache, so that
/// one that is not given back is seen, and more than what threads and connections that come and go leave in their pages.
const KEPT_BYTES_MAX: u64 = (objects::limits::INDEX_CACHE_BYTES / 4 * 3) as u64;

/// What has to be found while it is in use.
const IN_USE: [&str; 6] = ["object body", "object name", "block", "S3 secret", "customer key", TLS_SECRET];

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
    /// What begun uploads are called.
    upload: String,
    ends: Ends,
    folder: tempfile::TempDir,
    readings: usize,
    /// Of sessions that exchanged keys by X25519MLKEM768.
    hybrid: Vec<Secrets>,
    /// Memory of its own that the node had before its index was filled.
    own_bytes: u64,
}

/// The other ends of the node's sources, as twins or as the real thing.
struct Ends {
    line: UnixStream,
    line_records: u32,
    button: UnixStream,
    controller: UnixStream,
    clock: BatteryClock,
    ups: Nut,
    alarm: PathBuf,
    swaps: PathBuf,
}

/// As [`Ends`], before the node has dialled the twins.
struct Listening {
    line: UnixListener,
    button: UnixListener,
    controller: UnixListener,
    clock: BatteryClock,
    ups: Nut,
    alarm: PathBuf,
    swaps: PathBuf,
}

impl Listening {
    fn accept(self) -> Ends {
        let accept = |listener: UnixListener| listener.accept().expect("the node dials at its start").0;
        Ends {
            line: accept(self.line),
            line_records: 0,
            button: accept(self.button),
            controller: accept(self.controller),
            clock: self.clock,
            ups: self.ups,
            alarm: self.alarm,
            swaps: self.swaps,
        }
    }
}

impl Ends {
    /// Everything that a source reads, below `dir`, and the sources' tables.
    fn prepare(dir: &Path) -> (SourcesConfig, Listening) {
        let write = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a recorded tree");
            std::fs::write(&path, text).expect("a recorded tree");
            path
        };
        let alarm = write(dir.join("hwmon/hwmon2/intrusion0_alarm"), "0\n");
        let swaps = write(dir.join("root/proc/swaps"), NO_SWAP);
        std::fs::create_dir_all(dir.join("root/sys")).expect("a recorded tree");
        let (line, button, controller, rtc) =
            (dir.join("line.sock"), dir.join("button.sock"), dir.join("bmc.sock"), dir.join("since_epoch"));
        let listen = |path: &Path| UnixListener::bind(path).expect("a socket");
        let listening = Listening {
            line: listen(&line),
            button: listen(&button),
            controller: listen(&controller),
            clock: BatteryClock::start(rtc.clone()),
            ups: Nut::start(dir),
            alarm,
            swaps,
        };
        let pairs = [("ACTION", "change"), ("SUBSYSTEM", "mem"), ("DEVNAME", "zero")];
        let (wipe, report) = (Reaction::wipe(), Reaction::report());
        let sources = SourcesConfig {
            gpio: vec![GpioConfig {
                name: "line".into(),
                chip: line,
                line: 4,
                active: LineLevel::Low,
                bias: LineBias::AsIs,
                recorded: true,
                on_active: wipe,
                on_lost: report,
            }],
            kernel_event: vec![KernelEventConfig {
                name: "device".into(),
                synthetic: true,
                pairs: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
                on_event: wipe,
                on_lost: report,
            }],
            nut: vec![listening.ups.config()],
            chassis: Some(ChassisConfig {
                directory: dir.join("hwmon"),
                interval_ms: 100,
                on_intrusion: wipe,
                on_lost: report,
            }),
            clock: Some(ClockConfig {
                rtc,
                interval_ms: 100,
                tolerance_ms: 10_000,
                on_disagreement: wipe,
                on_lost: report,
            }),
            button: vec![ButtonConfig {
                name: "power-button".into(),
                device: button,
                recorded: true,
                on_press: wipe,
                on_lost: report,
            }],
            bmc: Some(BmcConfig {
                device: controller,
                recorded: true,
                single_supply: false,
                on_power: wipe,
                on_intrusion: wipe,
                on_lost: report,
            }),
            // A recorded tree: on the machine itself a debugger is attached on purpose.
            hygiene: HygieneConfig { interval_ms: 100, root: dir.join("root"), on_regression: wipe },
            ..SourcesConfig::default()
        };
        (sources, listening)
    }

    fn set_line(&mut self, active: bool) {
        self.line_records += 1;
        let record = sources::event_record(active, self.line_records, 0);
        self.line.write_all(&record).expect("the node listens");
    }
}

const NO_SWAP: &str = "Filename\tType\n";

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
        site.expect_log("memory hygiene got worse");
        site.stop_node();
        let (sources, listening) = Ends::prepare(site.dir());
        site.change_node_config(|config| config.sources = sources);
        site.start_node();
        let ends = listening.accept();
        site.push_until_serving();
        let key = site.create_user("tester");
        site.create_bucket(BUCKET);
        let mut random = Random::new(4);
        let mut prepared = Self {
            object: format!("{:016x}{:016x}", random.bits(), random.bits()),
            upload: format!("{:016x}{:016x}", random.bits(), random.bits()),
            site,
            access: (key.access_key, key.secret_key),
            body: page(5).repeat(BODY_BYTES / PAGE_BYTES),
            block: page(6),
            ends,
            folder: tempfile::tempdir().expect("a temporary directory"),
            readings: 0,
            hybrid: Vec::new(),
            own_bytes: 0,
        };
        prepared.store();
        prepared.own_bytes = prepared.site.node().own_resident_bytes();
        prepared
    }

    fn url(&self, method: &Method, object: &str, headers: &[(&str, &str)]) -> String {
        let access = (self.access.0.as_str(), self.access.1.as_str());
        presigned(&self.site.s3_endpoint(), BUCKET, access, method, object, headers)
    }

    /// Sends a request with these headers, which its signature covers.
    fn signed(&self, method: &Method, object: &str, headers: &[(&str, &str)]) -> std::process::Command {
        let mut curl = self.curl();
        for (name, value) in headers {
            curl.arg("--header").arg(format!("{name}: {value}"));
        }
        curl.arg(self.url(method, object, headers));
        curl
    }

    fn curl(&self) -> std::process::Command {
        let mut curl = client("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(self.site.ca_bundle());
        curl
    }

    fn store(&self) {
        let file = self.folder.path().join("body");
        std::fs::write(&file, &self.body).expect("a file");
        let customer_key = BASE64.encode(CUSTOMER_KEY);
        run(self
            .signed(&Method::PUT, &self.object, &customer_headers(&customer_key))
            .arg("--upload-file")
            .arg(&file))
        .expect_success();
        let small = self.folder.path().join("small");
        std::fs::write(&small, b"one of many").expect("a file");
        // One process for all of them, each under its own name.
        let mut curl = self.curl();
        for number in 0..OTHER_OBJECTS {
            if number > 0 {
                curl.args(["--next", "--silent", "--fail", "--cacert"]).arg(self.site.ca_bundle());
            }
            let url = self.url(&Method::PUT, &format!("other-{number:04}"), &[]);
            curl.arg("--upload-file").arg(&small).arg(url);
        }
        run(&mut curl).expect_success();
    }

    /// Fills the index beyond its cache: with uploads that are begun, each with all the headers that one may have.
    fn fill_the_index(&self) {
        let [user, system] = UPLOAD_HEADER_BYTES.map(|bytes| "x".repeat(bytes));
        let headers = [("x-amz-meta-a", user.as_str()), ("content-disposition", system.as_str())];
        let mut curl = self.signed(&Method::POST, &self.upload, &headers);
        curl.args(["--parallel", "--parallel-max", "16", "--request", "POST"]);
        // The same request so often: what stands behind the `#` counts, and is not sent.
        let url = self.url(&Method::POST, &self.upload, &headers);
        let begun = run(curl.arg(format!("{url}#[2-{UPLOADS}]"))).expect_success();
        assert_eq!(begun.matches("<UploadId>").count(), UPLOADS, "some were not begun");
    }

    /// Starts a client that reads the object, slowly, over a TLS session of its own; returns it once it has some.
    fn read_slowly(&mut self) -> Reading {
        self.readings += 1;
        let file = |what: &str| self.folder.path().join(format!("{what}-{}", self.readings));
        let (log, out) = (file("tls"), file("read"));
        let customer_key = BASE64.encode(CUSTOMER_KEY);
        let mut curl = self.signed(&Method::GET, &self.object, &customer_headers(&customer_key));
        curl.args(["--limit-rate", "64k", "--output"]).arg(&out);
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

    /// Stores an object under the customer's key and reads it again, in one session with a hybrid key exchange, which stays open.
    fn put_and_get(&mut self) -> HybridClient {
        let mut client = HybridClient::connect(&self.site.s3_endpoint(), &self.site.ca_bundle())
            .expect("a session with a hybrid key exchange");
        self.hybrid.push(client.secrets().clone());
        let customer_key = BASE64.encode(CUSTOMER_KEY);
        let headers = customer_headers(&customer_key);
        let name = format!("{}-{}", self.object, self.hybrid.len());
        let body = &self.body[..PAGE_BYTES * 3];
        let url = self.url(&Method::PUT, &name, &headers);
        client.ask("PUT", &url, &headers, body).expect("a stored object");
        let url = self.url(&Method::GET, &name, &headers);
        assert!(client.ask("GET", &url, &headers, &[]).expect("the object") == body, "another body");
        client
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
        needles.add_text("upload name", self.upload.as_bytes());
        needles.add_secret("S3 secret", self.access.1.as_bytes());
        needles.add_secret("customer key", &CUSTOMER_KEY);
        needles.add_text("customer key", BASE64.encode(CUSTOMER_KEY).as_bytes());
        for reading in 1..=self.readings {
            let log = self.folder.path().join(format!("tls-{reading}"));
            let text = std::fs::read_to_string(log).expect("a key log");
            add_key_log(needles, &text).expect("a key log");
        }
        for secrets in &self.hybrid {
            secrets.add_to(needles);
        }
        add_signing_keys(needles, &self.access.1);
    }
}

fn customer_headers(key: &str) -> [(&'static str, &str); 3] {
    [
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-server-side-encryption-customer-key", key),
        ("x-amz-server-side-encryption-customer-key-md5", CUSTOMER_KEY_MD5),
    ]
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

/// Writes and reads the volume until it is gone.
fn with_load(site: &Site, block: &[u8], event: impl FnOnce() + Send) {
    let (is_loaded, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let socket = site.nbd_socket();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::connect(&Endpoint::unix(socket), DISK).expect("an unsealed export");
            let mut block = block.repeat(64);
            while !is_over.load(Ordering::SeqCst)
                && client.write(0, &block, false).and_then(|()| client.read(0, &mut block)).is_ok()
            {
                is_loaded.store(true, Ordering::SeqCst);
            }
        });
        // A thread of its own, so that a node that is traced in there ends with it where it fails.
        let event = scope.spawn(|| {
            wait_for("a client at work", PATIENCE, || {
                if is_loaded.load(Ordering::SeqCst) { Ok(()) } else { Err("nothing written yet".to_owned()) }
            });
            event();
        });
        if let Err(panic) = event.join() {
            is_over.store(true, Ordering::SeqCst);
            std::panic::resume_unwind(panic);
        }
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
    wait_for("calm sources", PATIENCE, || {
        let sources = site.status().sources;
        let calm = sources.iter().all(|source| source.active.is_empty());
        if calm { Ok(()) } else { Err(format!("{sources:?}")) }
    });
    site.wait_heard_of_wipe();
    // Not every trigger latches.
    let _ = site.try_act("/v1/unlatch");
    site.push_until_serving();
}

/// A way in which keys go: the event, and what calms its source again.
struct Way {
    cause: &'static str,
    event: fn(&Site, &mut Ends),
    calm: fn(&Site, &mut Ends),
}

fn calm(_: &Site, _: &mut Ends) {}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a recorded tree");
}

/// By signal, by a person, by the keyholder, by time; and one by a source that the wiper's own thread reads. Before each of them
/// everything is found, and afterwards nothing, in a core too.
const WAYS: [Way; 6] = [
    Way { cause: "power-loss", event: |site, _| site.signal_node(Signal::SIGPWR), calm },
    Way { cause: "power-line", event: |_, ends| ends.set_line(true), calm: |_, ends| ends.set_line(false) },
    Way {
        cause: "admin",
        event: |site, _| {
            site.wipe();
        },
        calm,
    },
    Way {
        cause: "revoked",
        event: |site, _| {
            site.act("/v1/revoke");
        },
        calm,
    },
    Way {
        cause: "lockdown",
        event: |site, _| {
            site.act("/v1/lockdown");
        },
        calm,
    },
    Way {
        cause: "lease-expired",
        event: |site, _| site.signal_keyholder(Signal::SIGSTOP),
        calm: |site, _| site.signal_keyholder(Signal::SIGCONT),
    },
];

/// The other sources. What they share with those above is not looked at again: a scan of the live process has to do.
const FURTHER_WAYS: [Way; 7] = [
    Way {
        cause: "ups-low-battery",
        event: |_, ends| ends.ups.set("OB DISCHRG LB"),
        calm: |_, ends| ends.ups.set("OL CHRG"),
    },
    Way {
        cause: "kernel-event",
        event: |_, _| write(Path::new("/sys/class/mem/zero/uevent"), "change"),
        calm,
    },
    Way {
        cause: "bmc-power",
        event: |_, ends| ends.controller.write_all(&sources::sel_record(0x09, 4)).expect("the node listens"),
        calm,
    },
    Way {
        cause: "machine-shutdown",
        event: |_, ends| ends.button.write_all(&sources::power_key_record(true)).expect("the node listens"),
        calm: |_, ends| ends.button.write_all(&sources::power_key_record(false)).expect("the node listens"),
    },
    Way {
        cause: "intrusion",
        event: |_, ends| write(&ends.alarm, "1\n"),
        calm: |_, ends| write(&ends.alarm, "0\n"),
    },
    Way {
        cause: "hygiene",
        event: |_, ends| write(&ends.swaps, "Filename\tType\n/dev/sda2\tpartition\n"),
        calm: |_, ends| write(&ends.swaps, NO_SWAP),
    },
    Way { cause: "clock", event: |_, ends| ends.clock.go_ahead(60), calm },
];

#[test]
fn after_the_third_stage_of_each_trigger_nothing_of_the_clients_is_left() {
    let mut prepared = Prepared::new();
    let recovered = recovered(&prepared.site);
    let keys = needles(&recovered);
    let folder = prepared.folder.path().to_path_buf();
    prepared.fill_the_index();
    for way in WAYS {
        let cause = way.cause;
        let (reading, hybrid) = (prepared.read_slowly(), prepared.put_and_get());
        let in_use = prepared.needles();
        // The volume's block is looked for between two requests of the load below.
        let client = prepared.use_the_volume();
        let site = &mut prepared.site;
        let before = scan_node(site, &in_use);
        assert_finds_what_is_in_use("the node's memory", &before);
        scan_node(site, &keys).assert_clean("keys outside the arena, before", OF_A_NODE);
        if cause == "power-loss" {
            let begins = |label: &Label| label.secret == "upload name" && label.offset == 0;
            let rows = before.findings.iter().filter(|finding| begins(&finding.label)).count();
            let cached = rows * UPLOAD_HEADER_BYTES.iter().sum::<usize>();
            println!("the index's cache shows {rows} names of uploads, {} MiB of rows", cached >> 20);
            assert!(
                cached > objects::limits::INDEX_CACHE_BYTES / 2,
                "the index's cache is not full: {cached} bytes"
            );
            let core = search_core(site, &in_use, &folder);
            assert_finds_what_is_in_use("a core", &core);
            search_core(site, &keys, &folder).assert_clean("keys in a core, before", 0);
            prove_that_what_passes_quickly_is_found(hybrid.secrets(), &in_use, &folder);
        }
        let all = forget(&mut prepared, &recovered, &way);
        let site = &mut prepared.site;
        search_core(site, &all, &folder).assert_clean(&format!("after {cause}, a core"), 0);
        drop((reading, hybrid, client));
        come_back(&mut prepared, &way);
    }
    for way in FURTHER_WAYS {
        let (reading, hybrid) = (prepared.read_slowly(), prepared.put_and_get());
        let client = prepared.use_the_volume();
        forget(&mut prepared, &recovered, &way);
        drop((reading, hybrid, client));
        come_back(&mut prepared, &way);
    }
}

/// A shared secret is there for the moment in which a session begins, and a customer's key while a request is read: neither is sure
/// to be in the node when it is scanned. So a process that holds a half of the one and a piece of each form of the other
/// stands in for it.
fn prove_that_what_passes_quickly_is_found(session: &Secrets, needles: &Needles, folder: &Path) {
    let encoded = BASE64.encode(CUSTOMER_KEY);
    let forms: [(&str, &[u8]); 5] = [
        (SHARED_SECRET, &session.shared[3..11]),
        (SHARED_SECRET, &session.shared[32..]),
        ("customer key", &CUSTOMER_KEY),
        ("customer key", &CUSTOMER_KEY[20..28]),
        ("customer key", &encoded.as_bytes()[9..17]),
    ];
    for (kind, bytes) in forms {
        let planted = Planted::start(Path::new(env!("CARGO_BIN_EXE_planted")), None, folder, bytes);
        let found = scan(planted.pid(), needles).expect("a child can be scanned").findings;
        assert!(
            !found.is_empty() && found.iter().all(|finding| finding.label.secret == kind),
            "{kind}: {found:?}"
        );
        let core = core_file::take(planted.pid(), Extent::Everything, folder);
        let found = image::search(&core, needles).expect("a core").findings;
        std::fs::remove_file(core).expect("our own");
        assert!(!found.is_empty(), "{kind} was planted and is not found in a core");
    }
}

/// Makes the node forget under load, and scans it; returns what was looked for.
fn forget(prepared: &mut Prepared, recovered: &Recovered, way: &Way) -> Needles {
    let all = prepared.all_needles(recovered);
    let Prepared { site, ends, block, own_bytes, .. } = prepared;
    with_load(site, block, || (way.event)(site, ends));
    wait_third_stage(site, way.cause);
    wait_given_back(site, way.cause, *own_bytes + KEPT_BYTES_MAX);
    scan_node(site, &all).assert_clean(&format!("after {}", way.cause), OF_A_NODE);
    all
}

/// What the index's cache had, and everything else that was dropped, is the kernel's again: a node does not grow with each wipe.
fn wait_given_back(site: &mut Site, cause: &str, most: u64) {
    let node = site.node();
    let held = wait_for("memory that is given back", PATIENCE, || {
        let held = node.own_resident_bytes();
        if held <= most { Ok(held) } else { Err(format!("{} MiB", held >> 20)) }
    });
    println!("after {cause}: {} MiB of its own, at most {}", held >> 20, most >> 20);
}

fn come_back(prepared: &mut Prepared, way: &Way) {
    (way.calm)(&prepared.site, &mut prepared.ends);
    push_again(&prepared.site);
}

#[test]
fn a_planned_stop_ends_in_a_process_that_holds_nothing_of_the_clients_and_a_fault_in_one_without_a_key() {
    let mut prepared = Prepared::new();
    let recovered = recovered(&prepared.site);
    let reading = prepared.read_slowly();
    let (in_use, all) = (prepared.needles(), prepared.all_needles(&recovered));
    let client = prepared.use_the_volume();
    let site = &mut prepared.site;
    assert_finds_what_is_in_use("the node's memory", &scan_node(site, &in_use));
    let pid = site.node().pid();
    let end = AtExit::of(pid);
    site.signal_node(Signal::SIGTERM);
    let left = end.look(|| scan(pid, &all).expect("it can be scanned"));
    left.assert_clean("at the end of a planned stop", OF_A_NODE);
    site.stop_node();
    drop((reading, client));

    site.change_node_config(|config| config.sources = SourcesConfig::default());
    site.start_node();
    site.push_until_serving();
    let pid = site.node().pid();
    let keys = needles(&recovered);
    let block = prepared.block.clone();
    let mut left = None;
    with_load(site, &block, || {
        let end = AtExit::of(pid);
        site.signal_node(Signal::SIGSEGV);
        left = Some(end.look(|| scan(pid, &keys).expect("it can be scanned")));
    });
    left.expect("it was scanned").assert_clean("at the end by a fault", OF_A_NODE);
    let ended = site.node().wait_end(PATIENCE);
    assert_eq!(ended.code(), Some(128 + Signal::SIGSEGV as i32), "{ended}");
}

/// Scrubbing reads what there is of a volume under its key, piece by piece, and rests between two pieces with the last in hand.
#[test]
fn a_scrub_in_the_middle_of_a_volume_lets_go_of_what_it_read() {
    // Six seconds long: the scrub is still in the middle of it when the node is scanned.
    const DATA_BYTES: usize = 6 << 20;
    // A key that comes back by itself would be read under again before the node is scanned.
    let approved = SiteSpec { pool_bytes: 1 << 30, push: PushPolicy::Approve, ..SiteSpec::default() };
    let mut site = Site::installed(approved);
    // A piece of 256 KiB lasts a quarter of a second.
    let scrub = ScrubConfig { every_days: 0, share_percent: 100, mib_per_s: 1 };
    site.change_node_config(|config| config.scrub = scrub);
    site.start_keyholder();
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    site.create_volume(DISK, VolumeKind::Block, 64 << 20);
    site.push_until_serving();
    let block = page(7);
    let mut client = Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an unsealed export");
    client.write(0, &block.repeat(DATA_BYTES / PAGE_BYTES), true).expect("a durable write");
    drop(client);
    let mut needles = Needles::new();
    needles.add_text("block", &block.repeat(2)[..PAGE_BYTES + 8]);
    // What the client's connection left goes with a wipe of its own.
    site.lose_power();
    wait_third_stage(&site, "power-loss");
    site.push_until_serving();
    scan_node(&mut site, &needles).assert_clean("before the scrub", OF_A_NODE);

    let pool = site.status().pools[0].pool;
    let order = OrderScrub { action: ScrubAction::Start };
    let _: serde_json::Value = site
        .wait(site.node_admin().post(&format!("/v1/pools/{pool}/scrub"), &order))
        .expect("a scrub may be ordered");
    wait_for("a scrub that verifies", PATIENCE, || {
        let scrub = site.status().pools.remove(0).scrub;
        match &scrub.pass {
            Some(pass) if pass.phase == ScrubPhase::Tags && pass.bytes_verified > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let reading = scan_node(&mut site, &needles);
    assert!(!reading.findings.is_empty(), "the scrub holds nothing: it proves nothing");
    site.lose_power();
    wait_third_stage(&site, "power-loss");
    scan_node(&mut site, &needles).assert_clean("after a wipe in the middle of a scrub", OF_A_NODE);
    let scrub = site.status().pools.remove(0).scrub;
    assert!(scrub.pass.is_none_or(|pass| pass.damaged_sectors == 0), "what was taken away is not damaged");
    site.push_until_serving();
}
