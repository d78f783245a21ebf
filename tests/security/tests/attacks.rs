//! Programs on the node's own machine that want its keys. Each way is tried on a process that protects itself from
//! nothing as well, where it must succeed: what fails on the node fails because of the node.
//!
//! A program of the node's own user is refused everything by the kernel, whose audit writes it down by the rules that come with
//! the units (systemd/nightlatch.rules): the node sees nothing of it. Root is not: it may trace the node and read
//! its ordinary memory (SECURITY.md says so), but not the arena, of which no descriptor is open either.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::client::{run, system_program, tools};
use harness::process::{Process, wait_for};
use harness::site::{DISK, PATIENCE, Site, SiteSpec, create_pool};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use security_tests::memory::scan;
use security_tests::needles::Needles;
use security_tests::planted::Planted;

/// A user that owns nothing else on any machine.
const USER: u32 = 54_321;

const ROOT: u32 = 0;

const SECRET: [u8; 32] = *b"what an attacker is looking for.";

/// A folder that every user may enter, for programs and cores.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("our own");
    folder
}

/// One attempt.
fn attack(user: u32, way: &str, pid: u32, place: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_attacker"))
        .args([&user.to_string(), way, &pid.to_string(), place])
        .output()
        .expect("the attacker starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn got(bytes: &[u8]) -> String {
    format!("got {}", hex::encode(&bytes[..8]))
}

/// The control, as `user`.
fn planted(user: Option<u32>, folder: &Path) -> Planted {
    Planted::start(Path::new(env!("CARGO_BIN_EXE_planted")), user, folder, &SECRET)
}

/// Everything below `path` but the folder `keep` becomes the user's.
fn give_away(path: &Path, keep: &Path) {
    if path == keep {
        return;
    }
    lchown(path, Some(USER), Some(USER)).expect("run the tests as root");
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).expect("a readable folder") {
            give_away(&entry.expect("an entry").path(), keep);
        }
    }
}

/// An unsealed node that runs as [`USER`], as a service does. Its program lies where that user may read it.
fn node_of_user() -> Site {
    let mut site =
        Site::installed(SiteSpec { pool_bytes: 256 << 20, disk_bytes: 64 << 20, ..SiteSpec::default() });
    site.start_keyholder();
    site.hold_ceremony();
    let program = site.dir().join("nightlatchd");
    std::fs::copy(harness::process::program("nightlatchd"), &program).expect("a copy of the program");
    let pool = site.dir().join("pool");
    create_pool(&pool, 256 << 20);
    site.change_node_config(|config| config.pools[0].path = pool);
    give_away(site.dir(), site.keyholder_state_dir());
    // The keyholder is root without its rights, and has to get to its own folder.
    std::fs::set_permissions(site.dir(), std::fs::Permissions::from_mode(0o755)).expect("our own");
    let mut command = Command::new(program);
    command.arg("--config").arg(site.node_config_file()).uid(USER).gid(USER);
    site.start_node_by(command);
    site.enrol_node();
    site.create_volume(DISK, harness::site::VolumeKind::Block, 64 << 20);
    site.push_until_serving();
    site
}

/// The first mapping of a process whose line in `maps` contains `name`.
fn mapping(pid: u32, name: &str) -> String {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("root reads maps");
    let line =
        maps.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in\n{maps}"));
    line.split('-').next().expect("a range").to_owned()
}

/// Where the process's ordinary memory holds `known`, a word of its command line, as root finds out: above all that is in use of its
/// stack, where nothing changes.
fn find(pid: u32, known: &[u8]) -> u64 {
    let mut needles = Needles::new();
    needles.add_secret("known", &known[..8]);
    let found = scan(pid, &needles).expect("root can scan").findings;
    let last = found
        .iter()
        .rfind(|finding| finding.label.form == "as it is" && finding.mapping.ends_with("[stack]"));
    last.unwrap_or_else(|| panic!("not found among {}", found.len())).address
}

// ---- the kernel's audit ----

/// The key by which the rules' records are found.
const AUDIT_KEY: &str = "key=\"nightlatch-memory\"";

/// A record of a system call (AUDIT_SYSCALL of linux/audit.h).
const AUDIT_SYSCALL: u16 = 1300;

fn auditctl(arguments: &[&str]) -> harness::client::Answer {
    let unpacked = tools().join("auditd");
    let program = unpacked.join("sbin/auditctl");
    let mut command =
        system_program(&["/sbin/auditctl", "/usr/sbin/auditctl", program.to_str().expect("UTF-8")]);
    let libraries = ["usr/lib", "lib"].map(|lib| format!("{}/{lib}/{ARCH}-linux-gnu", unpacked.display()));
    run(command.env("LD_LIBRARY_PATH", libraries.join(":")).args(arguments))
}

/// The shipped rules, in force for [`USER`] alone until this is dropped: other tests trace programs, too.
struct KernelAudit {
    records: OwnedFd,
    enabled: String,
}

impl KernelAudit {
    /// `None` where this kernel has no audit, or shows it to nobody in here.
    fn start(folder: &Path) -> Option<Self> {
        /// AUDIT_NLGRP_READLOG of linux/audit.h: a copy of every record, beside what a daemon gets.
        const READERS: u32 = 1;
        let protocol = SockProtocol::NetlinkAudit;
        let opened = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .and_then(|records| bind(records.as_raw_fd(), &NetlinkAddr::new(0, READERS)).map(|()| records));
        let records = match opened {
            Ok(records) => records,
            Err(errno) => {
                println!("NOT TRIED: the kernel's audit is not to be had here ({errno})");
                return None;
            }
        };
        setsockopt(&records, sockopt::ReceiveTimeout, &TimeVal::new(1, 0)).expect("a socket");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace root");
        let rules = std::fs::read_to_string(rules.join("systemd/nightlatch.rules")).expect("the rules");
        let narrowed = rules.lines().map(|line| match line.strip_prefix("-a ") {
            Some(_) => format!("{line} -F uid={USER}\n"),
            None => format!("{line}\n"),
        });
        let file = folder.join("audit.rules");
        std::fs::write(&file, narrowed.collect::<String>()).expect("a file");
        let status = auditctl(&["-s"]).expect_success();
        let enabled =
            status.lines().find_map(|line| line.strip_prefix("enabled ")).expect("a status").to_owned();
        let audit = Self { records, enabled };
        auditctl(&["-R", file.to_str().expect("UTF-8")]).expect_success();
        let loaded = auditctl(&["-l"]).expect_success();
        let wanted = rules.lines().filter(|line| line.starts_with("-a ")).count();
        assert_eq!(loaded.matches("nightlatch-memory").count(), wanted, "{loaded}");
        if audit.enabled == "0" {
            auditctl(&["-e", "1"]).expect_success();
        }
        Some(audit)
    }

    /// Waits for a record of a refused call of [`USER`]'s with this number.
    fn expect_refused(&self, call: libc::c_long) {
        let wanted = [AUDIT_KEY, "success=no", &format!(" syscall={call} "), &format!(" uid={USER} ")];
        let mut buffer = vec![0; 16 * 1024];
        wait_for(&format!("the kernel's record of call {call}"), PATIENCE, || {
            let count = recv(self.records.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(|errno| errno.to_string())?;
            // struct nlmsghdr: length, type, flags, sequence, port; then the record's text.
            let kind = u16::from_ne_bytes([buffer[4], buffer[5]]);
            let text = String::from_utf8_lossy(&buffer[16..count]);
            if kind == AUDIT_SYSCALL && wanted.iter().all(|part| text.contains(part)) {
                println!("on record: {text}");
                return Ok(());
            }
            Err(text.into_owned())
        });
    }
}

impl Drop for KernelAudit {
    fn drop(&mut self) {
        auditctl(&["-D", "-k", "nightlatch-memory"]);
        auditctl(&["-e", &self.enabled]);
    }
}

#[test]
fn no_way_into_the_node_is_open_to_another_program_of_its_user_and_each_attempt_is_on_record() {
    let mut site = node_of_user();
    let folder = open_folder();
    let control = planted(Some(USER), folder.path());
    let pid = site.node().pid();
    let known = site.node_config_file().into_os_string().into_encoded_bytes();
    let address = find(pid, &known);
    let ways = [
        ("ptrace", "EPERM", libc::SYS_ptrace),
        ("process-vm-readv", "EPERM", libc::SYS_process_vm_readv),
        ("proc-mem", "EACCES", libc::SYS_openat),
        ("pidfd-getfd", "EPERM", libc::SYS_pidfd_getfd),
        ("proc-maps", "EACCES", libc::SYS_openat),
        ("proc-environ", "EACCES", libc::SYS_openat),
    ];
    let audit = KernelAudit::start(folder.path());
    for (way, errno, call) in ways {
        let place = |address: u64, descriptor: i32| match way {
            "pidfd-getfd" => descriptor.to_string(),
            _ => format!("{address:x}"),
        };
        let of_control = attack(USER, way, control.pid(), &place(control.address, control.descriptor));
        match way {
            "proc-maps" | "proc-environ" => assert!(of_control.starts_with("got "), "{way}: {of_control}"),
            _ => assert_eq!(of_control, got(&SECRET), "{way} must work on a process that is not protected"),
        }
        assert_eq!(attack(USER, way, pid, &place(address, 0)), format!("refused {errno}"), "{way}");
        if let Some(audit) = &audit {
            audit.expect_refused(call);
        }
    }
    assert!(!site.status().seal.sealed, "what was refused disturbed nothing");
    drop(control);
    site.stop_node();
}

#[test]
fn root_reads_the_nodes_ordinary_memory_and_not_its_arena() {
    let mut site = Site::serving(SiteSpec { pool_bytes: 1 << 30, ..SiteSpec::default() });
    let pid = site.node().pid();
    let known = site.node_config_file().into_os_string().into_encoded_bytes();
    let ordinary = format!("{:x}", find(pid, &known));
    let arena = mapping(pid, "secretmem");
    // An arena that held nothing would prove nothing: the node serves.
    assert!(site.status().key_memory.keys > 0);
    for (way, errno) in [("process-vm-readv", "EFAULT"), ("proc-mem", "EIO"), ("ptrace", "EIO")] {
        assert_eq!(
            attack(ROOT, way, pid, &ordinary),
            got(&known),
            "{way}: root may, and SECURITY.md says so"
        );
        assert_eq!(attack(ROOT, way, pid, &arena), format!("refused {errno}"), "{way}");
    }
}

#[test]
fn no_descriptor_of_the_arena_is_open_that_root_could_take() {
    let mut site = Site::serving(SiteSpec { pool_bytes: 1 << 30, ..SiteSpec::default() });
    let folder = open_folder();
    let control = planted(None, folder.path());
    assert_eq!(attack(ROOT, "pidfd-getfd", control.pid(), &control.descriptor.to_string()), got(&SECRET));
    let pid = site.node().pid();
    assert!(!mapping(pid, "secretmem").is_empty());
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    for descriptor in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("root lists descriptors") {
        let descriptor = descriptor.expect("a descriptor");
        // One that was closed meanwhile is nobody's.
        let Ok(target) = std::fs::read_link(descriptor.path()) else { continue };
        let target = target.display().to_string();
        assert!(
            !target.contains("secretmem"),
            "{descriptor:?} is {target}: whoever takes it reads every key"
        );
        *kinds.entry(target.split(':').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    println!("open: {kinds:?}");
    assert!(kinds.contains_key("socket"), "the node's descriptors were not seen: {kinds:?}");
}

/// Whether a core of the process was written, or handed to whoever the machine gives cores to.
fn core_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a readable folder");
    entries
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("core")))
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("an i32")), signal).expect("our own child");
}

#[test]
fn an_aborted_node_leaves_no_core() {
    let folder = open_folder();
    let mut control = planted(None, folder.path());
    signal(control.child(), Signal::SIGABRT);
    let status = control.child().wait().expect("it ends");
    assert!(status.core_dumped(), "a process that is not protected leaves a core here: {status}");
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("the kernel says");
    if !pattern.starts_with(['|', '/']) {
        let core = std::fs::read(core_in(folder.path()).expect("a core file")).expect("a core");
        assert!(core.windows(SECRET.len()).any(|window| window == SECRET), "the core holds what was planted");
    }

    let own = open_folder();
    let mut site = Site::serving(SiteSpec { pool_bytes: 1 << 30, ..SiteSpec::default() });
    site.stop_node();
    let mut command = site.node_command();
    command.current_dir(own.path());
    site.start_node_by(command);
    site.push_until_serving();
    site.signal_node(Signal::SIGABRT);
    let status = site.node().wait_end(PATIENCE);
    assert_eq!((status.code(), status.core_dumped()), (Some(134), false), "{status}");
    assert!(core_in(own.path()).is_none());
    let said = "fault: SIGABRT; the last act is done";
    assert!(site.node().log().iter().any(|line| line.contains(said)), "{}", site.node().tail());
    // Nobody was left to sign a receipt: that is what the keyholder writes down when the node is back.
    let vanished = |site: &Site| {
        let trail = site.keyholder_trail();
        trail.iter().filter(|line| line["event"] == "node-vanished").count()
    };
    assert_eq!(vanished(&site), 0, "{:?}", site.keyholder_trail());
    site.start_node();
    site.push_until_serving();
    assert_eq!(vanished(&site), 1, "{:?}", site.keyholder_trail());
}

/// An attacker that stays attached until it is dropped.
struct Holding(Child);

impl Holding {
    fn attach(thread: u32) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_attacker"))
            .args(["0", "hold", &thread.to_string(), "0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the attacker starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it answers");
        assert_eq!(line, "attached\n");
        Self(child)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The thread of this name.
fn thread_of(pid: u32, name: &str) -> u32 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running node");
    let found = threads
        .map(|thread| thread.expect("a thread").path())
        .find(|thread| std::fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let found = found.unwrap_or_else(|| panic!("no thread {name}"));
    found.file_name().and_then(|id| id.to_str()?.parse().ok()).expect("a number")
}

#[test]
fn a_debugger_that_root_attaches_to_any_thread_makes_the_node_forget_and_is_on_record() {
    let mut site = Site::serving(SiteSpec { pool_bytes: 1 << 30, ..SiteSpec::default() });
    site.stop_node();
    site.expect_log("memory hygiene got worse");
    site.expect_log("a source fired");
    site.expect_log("hygiene still stands");
    site.change_node_config(|config| config.sources.hygiene.interval_ms = 100);
    site.start_node();
    site.push_until_serving();
    let pid = site.node().pid();
    for (times, thread) in [pid, thread_of(pid, "wiper")].into_iter().enumerate() {
        let debugger = Holding::attach(thread);
        site.wait_sealed("hygiene");
        site.expect_latched();
        drop(debugger);
        wait_for("the keyholder's record", PATIENCE, || {
            let trail = site.keyholder_trail();
            let is_it =
                |line: &&serde_json::Value| line["event"] == "latched-by-wipe" && line["cause"] == "hygiene";
            let found = trail.iter().filter(is_it).count();
            if found > times { Ok(()) } else { Err(format!("{found} in {} lines", trail.len())) }
        });
        site.act("/v1/unlatch");
        site.push_until_serving();
        // What counts as before is what was there when the node was last judged without a key: without the debugger.
        site.wiped_by(Site::lose_power);
        site.wait_serving();
    }
}

/// A library whose constructor leaves a file behind: whoever loads it, it ran in.
fn preloaded(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("preload.c"), folder.join("preload.so"));
    let text = "#include <fcntl.h>\n#include <stdlib.h>\n__attribute__((constructor)) static void run(void) {\n\
                const char *mark = getenv(\"PRELOAD_MARK\"); if (mark) open(mark, O_CREAT | O_WRONLY, 0600); }\n";
    std::fs::write(&source, text).expect("a writable folder");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.is_ok_and(|status| status.success()), "a C compiler is what Rust links with");
    library
}

#[test]
fn a_node_into_which_a_library_was_preloaded_refuses_to_start() {
    let folder = open_folder();
    let library = preloaded(folder.path());
    let mark = folder.path().join("mark");
    let control = Command::new(env!("CARGO_BIN_EXE_planted"))
        .env("LD_PRELOAD", &library)
        .env("PRELOAD_MARK", &mark)
        .stdin(Stdio::null())
        .output()
        .expect("the control starts");
    assert!(mark.exists(), "the library runs in a program that is not protected: {control:?}");

    let site = Site::installed(SiteSpec { pool_bytes: 1 << 30, ..SiteSpec::default() });
    for variable in ["LD_PRELOAD", "LD_AUDIT"] {
        let mut command = site.node_command();
        command.env(variable, &library);
        let mut process = Process::start("nightlatchd", command);
        let status = process.wait_end(PATIENCE);
        let log = process.log().join("\n");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(variable) && log.contains("unset it"), "{log}");
        assert!(!site.node_config().ready_file().exists(), "it served");
    }
}
