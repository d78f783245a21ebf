//! What the owner of the machine sees: all of its memory, from below, with the kernel's own and what it has freed.
//!
//! Secret memory is no secret from there: while keys are held they are found, in the arena that no program of the machine can
//! read. So is what clients work with. After the third stage of a wipe, and after the process has ended, nothing is.

use std::path::Path;
use std::process::{Child, Stdio};

use guest::node::GuestNode;
use harness::client::{client, run};
use harness::process::wait_for;
use harness::random::Random;
use harness::s3::{Method, presigned};
use harness::site::{PATIENCE, PushPolicy, SiteSpec};
use security_tests::image;
use security_tests::installation::{needles, recovered};
use security_tests::memory::Scan;
use security_tests::needles::Needles;
use security_tests::tls::{TLS_SECRET, add_key_log};

const PAGE_BYTES: usize = 4096;

/// More than sockets buffer.
const BODY_BYTES: usize = 32 << 20;

fn page(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..PAGE_BYTES / 8).flat_map(|_| random.bits().to_le_bytes()).collect()
}

/// A client outside in the middle of an object.
struct Reading(Child);

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stores an object under a name of its own and begins to read it; adds what the client knows to `needles`.
fn work(node: &GuestNode, folder: &Path, needles: &mut Needles) -> Reading {
    let site = &node.site;
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let mut random = Random::new(41);
    let object = format!("{:016x}{:016x}", random.bits(), random.bits());
    let body = page(51);
    let file = folder.join("body");
    std::fs::write(&file, body.repeat(BODY_BYTES / PAGE_BYTES)).expect("a file");
    let access = (key.access_key.as_str(), key.secret_key.as_str());
    let url = |method: &Method| presigned(&site.s3_endpoint(), "bucket", access, method, &object, &[]);
    let curl = || {
        let mut curl = client("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(site.ca_bundle());
        curl
    };
    run(curl().arg("--upload-file").arg(&file).arg(url(&Method::PUT))).expect_success();
    let (log, out) = (folder.join("tls"), folder.join("read"));
    let mut slow = curl();
    slow.args(["--limit-rate", "64k", "--output"]).arg(&out).arg(url(&Method::GET));
    let reading =
        Reading(slow.env("SSLKEYLOGFILE", &log).stderr(Stdio::null()).spawn().expect("curl starts"));
    wait_for("a client in the middle of an object", PATIENCE, || {
        let read = std::fs::metadata(&out).map(|file| file.len()).unwrap_or_default();
        if read > 0 { Ok(()) } else { Err("nothing read yet".to_owned()) }
    });
    needles.add_text("object body", &body.repeat(2)[..PAGE_BYTES + 8]);
    needles.add_text("object name", object.as_bytes());
    needles.add_secret("S3 secret", key.secret_key.as_bytes());
    let text = std::fs::read_to_string(&log).expect("the client logs its secrets");
    assert_eq!(add_key_log(needles, &text).expect("a key log"), 1, "one session");
    reading
}

fn search(node: &mut GuestNode, needles: &Needles) -> Scan {
    let dump = node.guest.dump_memory();
    let scan = image::search(&dump, needles).expect("a dump");
    std::fs::remove_file(dump).expect("our own");
    assert!(scan.bytes_read > 256 << 20, "only {} bytes of memory", scan.bytes_read);
    scan
}

fn count(scan: &Scan, secret: &str) -> usize {
    scan.findings.iter().filter(|finding| finding.label.secret == secret).count()
}

#[test]
fn the_machines_whole_memory_holds_keys_before_a_wipe_and_nothing_after_it_in_the_guest() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let spec = SiteSpec { push: PushPolicy::Approve, lease_ms: 120_000, ..SiteSpec::default() };
    let mut node = GuestNode::serving(spec, |_| {}, |machine| machine, |_| {});
    let mut needles = needles(&recovered(&node.site));
    let reading = work(&node, folder.path(), &mut needles);
    let before = search(&mut node, &needles);
    let in_the_arena =
        ["data key of objects", "tweak key of objects", "tag hash key of objects", "tag PRF key of objects"];
    for kind in in_the_arena.iter().chain(&["object body", "object name", "S3 secret", TLS_SECRET]) {
        println!("before: {} windows of {kind}", count(&before, kind));
        assert!(
            count(&before, kind) > 0,
            "{kind} is in use, and not seen from below: {}",
            before.describe(9)
        );
    }
    node.guest.run("kill -PWR $(cat /run/node.pid)").expect_success();
    node.site.wait_sealed("power-loss");
    wait_for("the third stage", PATIENCE, || {
        let wipe = node.site.status().last_wipe.expect("it was wiped");
        if wipe.memory_ns.is_some() { Ok(()) } else { Err(format!("{wipe:?}")) }
    });
    let after = search(&mut node, &needles);
    println!("after the wipe: {} windows in {} MiB", after.findings.len(), after.bytes_read >> 20);
    let log = node.log();
    assert!(after.findings.is_empty(), "after the wipe: {}\n{log}", after.describe(30));
    node.guest.run("kill -TERM $(cat /run/node.pid)").expect_success();
    let guest = &mut node.guest;
    wait_for("the end of the node", PATIENCE, || {
        let looked = guest.run("test -d /proc/$(cat /run/node.pid)");
        if looked.code == 0 { Err("it runs".to_owned()) } else { Ok(()) }
    });
    let ended = search(&mut node, &needles);
    assert!(ended.findings.is_empty(), "after the process has ended: {}", ended.describe(30));
    drop(reading);
}
