//! The second stage's last word: a thread that does not answer within 10 ms takes the process with it.
//!
//! A real node encrypts; a tracer stops one of its threads in the middle of the cipher, where its registers are full of round
//! keys, and keeps it there. Then power fails. What is left of the process as it ends holds no key.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use harness::client::{client, run};
use harness::process::{program, wait_for};
use harness::site::{DISK, PATIENCE, PushPolicy, Site, SiteSpec};
use nbd_server::client::{Client, Endpoint};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use security_tests::at_exit::{AtExit, next_event};
use security_tests::installation::{needles, recovered};
use security_tests::memory::{OF_A_NODE, Scan, scan};
use security_tests::needles::Needles;

/// After a panic, and the last act before it.
const PANICKED: i32 = 134;

/// Where the cipher's code lies in the running node.
fn cipher_code(pid: u32) -> Vec<Range<u64>> {
    let node = program("nightlatchd");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("root reads maps");
    let first = maps.lines().find(|line| line.ends_with("/nightlatchd")).expect("the program is mapped");
    let base = first.split('-').next().expect("a range");
    let base = u64::from_str_radix(base, 16).expect("an address");
    let symbols = run(client("nm").args(["--demangle", "--print-size", "--defined-only"]).arg(node));
    let code: Vec<_> = symbols
        .expect_success()
        .lines()
        .filter(|line| line.contains("aes_xts::portable") && line.to_lowercase().contains(" t "))
        .filter_map(|line| {
            let mut words = line.split(' ');
            let mut number = || u64::from_str_radix(words.next()?, 16).ok();
            let (start, len) = (number()?, number()?);
            Some(base + start..base + start + len)
        })
        .collect();
    assert!(!code.is_empty(), "the program has no symbols of the cipher");
    code
}

/// Stops threads, one at a time, until one is stopped within `code`. It stays so; the others are left alone again.
fn stop_within(pid: u32, code: &[Range<u64>]) -> Pid {
    let begun = Instant::now();
    let mut stopped = 0;
    while begun.elapsed() < PATIENCE {
        for entry in std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running node") {
            let entry = entry.expect("a thread");
            let thread = entry.file_name().to_string_lossy().parse().expect("a number");
            let thread = Pid::from_raw(thread);
            // The leader's end is waited for; a thread that waits is not in the cipher, and one that waits for a disk does not stop.
            if thread == leader(pid) || !is_running(&entry.path()) || !stop(thread) {
                continue;
            }
            stopped += 1;
            let registers = ptrace::getregs(thread).expect("a stopped thread");
            if code.iter().any(|range| range.contains(&registers.rip)) {
                return thread;
            }
            ptrace::detach(thread, None).expect("a stopped thread goes on");
        }
    }
    panic!("in {PATIENCE:?} running threads were stopped {stopped} times, and none of them in the cipher");
}

fn leader(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process id"))
}

fn is_running(task: &Path) -> bool {
    // A thread that has ended meanwhile has no file.
    let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
    // The state follows the name, which stands in parentheses and may hold some of its own.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'))
}

/// Stops a thread; `false` where it has ended instead.
fn stop(thread: Pid) -> bool {
    match ptrace::seize(thread, ptrace::Options::PTRACE_O_EXITKILL) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return false,
        Err(errno) => panic!("tracing: {errno}; run the tests as root"),
    }
    // It fails where the thread has ended, which is told next: somebody has to hear of it, or the process never ends.
    let _ = ptrace::interrupt(thread);
    matches!(next_event(thread, PATIENCE), WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..))
}

/// Has power fail while a thread is held in mid-cipher; what the process holds as it ends, and how long it took to. To be run on
/// a thread of its own: where this fails, the kernel ends the node with that thread, and whoever waits for the node goes on.
fn lose_power_in_mid_cipher(pid: u32, end: AtExit, code: &[Range<u64>], needles: &Needles) -> Scan {
    let thread = stop_within(pid, code);
    let begun = Instant::now();
    kill(leader(pid), Signal::SIGPWR).expect("a running node");
    // What the thread worked with is in its registers, in the arena, or nowhere.
    let left = end.look(|| {
        println!("from power loss to the end: {:?}", begun.elapsed());
        scan(pid, needles).expect("it can be scanned")
    });
    // The kernel tells of the process's end when its tracer has heard of the thread's.
    while !matches!(next_event(thread, PATIENCE), WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {}
    left
}

#[test]
fn a_node_whose_cipher_thread_does_not_answer_ends_and_comes_back_sealed() {
    let mut site = Site::serving(SiteSpec {
        pool_bytes: 1 << 30,
        disk_bytes: 64 << 20,
        push: PushPolicy::Approve,
        plain: true,
        ..SiteSpec::default()
    });
    site.stop_node();
    site.change_node_config(|config| {
        // A tracer is there on purpose.
        config.sources.hygiene.interval_ms = 60_000;
    });
    // Slow, so that a thread is found in it soon.
    let mut command = site.node_command();
    command.env("NIGHTLATCH_CIPHER", "portable").env("RUST_BACKTRACE", "1");
    site.start_node_by(command);
    site.push_until_serving();
    site.expect_log("still works with a key that was wiped 10 ms ago");
    site.expect_log("stages.rs");
    // What was on its way may become durable in the moment between the wipe and the end, without a key that could vouch for it.
    site.expect_log("changed the volume's data without its key");
    let pid = site.node().pid();
    let code = cipher_code(pid);
    let needles = needles(&recovered(&site));
    let is_loaded = AtomicBool::new(false);
    let socket = site.nbd_socket();
    let left = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::connect(&Endpoint::unix(socket), DISK).expect("an unsealed export");
            let mut block = vec![0x3C; 1 << 20];
            while client.write(0, &block, false).and_then(|()| client.read(0, &mut block)).is_ok() {
                is_loaded.store(true, Ordering::SeqCst);
            }
        });
        let tracer = scope.spawn(|| {
            let end = AtExit::of(pid);
            wait_for("a client at work", PATIENCE, || {
                if is_loaded.load(Ordering::SeqCst) { Ok(()) } else { Err("nothing written yet".to_owned()) }
            });
            lose_power_in_mid_cipher(pid, end, &code, &needles)
        });
        tracer.join()
    });
    let left = match left {
        Ok(left) => left,
        Err(_) => panic!("as said above; the node was ended with its tracer\n{}", site.node().tail()),
    };
    left.assert_clean("at the end, a thread in mid-cipher", OF_A_NODE);
    let ended = site.node().wait_end(PATIENCE);
    assert_eq!(ended.code(), Some(PANICKED), "{ended}\n{}", site.node().tail());
    let log = site.node().log().join("\n");
    assert!(log.contains("still works with a key that was wiped 10 ms ago"), "{log}");
    site.check_logs();
    site.start_node();
    assert!(site.status().seal.sealed, "it starts without keys");
    site.push_until_serving();
}
