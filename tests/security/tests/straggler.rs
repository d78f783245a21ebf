//! The second stage's last word: a thread that does not answer within 10 ms takes the process with it.
//!
//! A real node encrypts; a tracer stops one of its threads in the middle of the cipher, where its registers are full of round
//! keys, and keeps it there. Then power fails. What is left of the process as it ends holds no key.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use harness::client::{client, run};
use harness::process::program;
use harness::site::{DISK, PATIENCE, PushPolicy, Site, SiteSpec};
use nbd_server::client::{Client, Endpoint};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use security_tests::at_exit::AtExit;
use security_tests::installation::{needles, recovered};
use security_tests::memory::{OF_A_NODE, scan};

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
    while begun.elapsed() < PATIENCE {
        for entry in std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running node") {
            let thread = entry.expect("a thread").file_name().to_string_lossy().parse().expect("a number");
            let thread = Pid::from_raw(thread);
            // Its end is waited for.
            if thread == leader(pid) {
                continue;
            }
            match ptrace::seize(thread, ptrace::Options::empty()) {
                Ok(()) => {}
                // It has ended meanwhile.
                Err(Errno::ESRCH) => continue,
                Err(errno) => panic!("tracing: {errno}; run the tests as root"),
            }
            if ptrace::interrupt(thread).is_err() || !is_stopped(thread) {
                continue;
            }
            let registers = ptrace::getregs(thread).expect("a stopped thread");
            if code.iter().any(|range| range.contains(&registers.rip)) {
                return thread;
            }
            ptrace::detach(thread, None).expect("a stopped thread goes on");
        }
    }
    panic!("no thread was ever stopped in the cipher");
}

fn leader(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process id"))
}

fn is_stopped(thread: Pid) -> bool {
    matches!(
        waitpid(thread, Some(WaitPidFlag::__WALL)),
        Ok(WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..))
    )
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
    let started = AtomicBool::new(false);
    let socket = site.nbd_socket().to_path_buf();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut client = Client::connect(&Endpoint::unix(&socket), DISK).expect("an unsealed export");
            let mut block = vec![0x3C; 1 << 20];
            while client.write(0, &block, false).and_then(|()| client.read(0, &mut block)).is_ok() {
                started.store(true, Ordering::SeqCst);
            }
        });
        while !started.load(Ordering::SeqCst) {
            assert!(!load.is_finished(), "the load ended before the event");
            std::thread::yield_now();
        }
        let end = AtExit::of(pid);
        let thread = stop_within(pid, &code);
        let begun = Instant::now();
        site.signal_node(Signal::SIGPWR);
        // What the thread worked with is in its registers, in the arena, or nowhere.
        let left = end.look(|| scan(pid, &needles).expect("it can be scanned"));
        left.assert_clean("at the end, a thread in mid-cipher", OF_A_NODE);
        // The kernel tells of the process's end when its tracer has heard of the thread's.
        while !matches!(
            waitpid(thread, Some(WaitPidFlag::__WALL)),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_)
        ) {
            assert!(begun.elapsed() < PATIENCE, "the thread lives on");
        }
        println!("from power loss to the thread's end: {:?}", begun.elapsed());
        let ended = site.node().wait_end(PATIENCE);
        assert_eq!(ended.code(), Some(PANICKED), "{ended}\n{}", site.node().tail());
    });
    let log = site.node().log().join("\n");
    assert!(log.contains("still works with a key that was wiped 10 ms ago"), "{log}");
    site.check_logs();
    site.start_node();
    assert!(site.status().seal.sealed, "it starts without keys");
    site.push_until_serving();
}
