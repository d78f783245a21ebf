//! PostgreSQL on a volume: a cluster on ext4, on a loop device, on nbdfuse, on the node. The node is killed under pgbench and
//! unlocked again; what was committed is there, and nothing is damaged.
//!
//! Needs root, for the loop device and the mount.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::client::{client, run};
use harness::process::wait_for;
use harness::site::{DISK, PATIENCE, Site, SiteSpec};
use harness::slice::SOAK_VARIABLE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Who runs the database, which refuses to be root.
const USER: &str = "postgres";

/// So many have to have been answered, or nothing is shown.
const TRANSACTIONS_MIN: u64 = 100;

/// How many committed.
const COUNT: &str = "SELECT count(*) FROM pgbench_history";

/// Clients of pgbench: so many commits may have happened without their answer having come.
const CLIENTS: u64 = 4;

/// PostgreSQL's programs, outside of the PATH, of the newest version that is installed.
fn postgres(name: &str) -> PathBuf {
    let root = Path::new("/usr/lib/postgresql");
    let versions = std::fs::read_dir(root)
        .unwrap_or_else(|error| panic!("{}: {error}: run `make clients`", root.display()));
    let mut found: Vec<PathBuf> =
        versions.map(|entry| entry.expect("an entry").path().join("bin").join(name)).collect();
    found.retain(|path| path.is_file());
    found.sort();
    found.pop().unwrap_or_else(|| panic!("{name} is missing: run `make clients`"))
}

/// A command that the database's user runs.
fn as_user(program: &Path) -> Command {
    let mut command = client("runuser");
    command.args(["-u", USER, "--"]).arg(program).current_dir("/tmp");
    command
}

/// The volume as a mounted file system.
struct Mounted {
    fuse: Child,
    file: PathBuf,
    device: String,
    at: PathBuf,
}

impl Mounted {
    /// Connects and mounts; makes the file system first where asked.
    fn new(site: &Site, new: bool) -> Self {
        let (fuse_at, at) = (site.dir().join("fuse"), site.dir().join("mounted"));
        for folder in [&fuse_at, &at] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        let fuse = client("nbdfuse").arg(&fuse_at).arg(site.nbd_unix_uri(DISK)).spawn().expect("nbdfuse");
        let file = fuse_at.join("nbd");
        wait_for("nbdfuse's file", PATIENCE, || {
            if file.is_file() { Ok(()) } else { Err("not there".to_owned()) }
        });
        if new {
            run(client("mkfs.ext4").args(["-q", "-F"]).arg(&file)).expect_success();
        }
        let device = run(client("losetup").args(["--find", "--show"]).arg(&file)).expect_success();
        let device = device.trim().to_owned();
        run(client("mount").args(["-t", "ext4", &device]).arg(&at)).expect_success();
        Self { fuse, file, device, at }
    }

    /// Takes it away, whatever state it is in.
    fn unmount(mut self) {
        // Whoever used it may still be ending.
        wait_for("an idle file system", PATIENCE, || {
            let answer = run(client("umount").arg(&self.at));
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
        run(client("losetup").args(["--detach", &self.device])).expect_success();
        let fuse_at = self.file.parent().expect("in a folder");
        // The device is let go of a moment later.
        wait_for("an idle nbdfuse", PATIENCE, || {
            let answer = run(client("fusermount3").arg("-u").arg(fuse_at));
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
        self.fuse.wait().expect("nbdfuse ends");
    }
}

struct Cluster {
    data: PathBuf,
    port: u16,
}

impl Cluster {
    fn new(mounted: &Mounted) -> Self {
        let data = mounted.at.join("data");
        std::fs::create_dir(&data).expect("a folder");
        run(client("chown").arg(USER).arg(&data)).expect_success();
        run(as_user(&postgres("initdb")).args(["--no-locale", "--auth=trust", "--pgdata"]).arg(&data))
            .expect_success();
        Self { data, port: harness::site::free_port().port() }
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Command {
        let mut command = as_user(&postgres("pg_ctl"));
        command.arg("--pgdata").arg(&self.data).args(["--wait", "--timeout=60"]).args(arguments);
        command
    }

    fn start(&self) {
        let options = format!("-p {} -k /tmp -c listen_addresses=", self.port);
        let log = self.data.join("server.log");
        run(self.pg_ctl(&["start", "--silent", "-o", &options]).arg("--log").arg(log)).expect_success();
    }

    /// The server's process.
    fn pid(&self) -> Pid {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).expect("a running server");
        Pid::from_raw(file.lines().next().and_then(|line| line.parse().ok()).expect("a number"))
    }

    /// Ends a server whose disk is gone: it cannot read its own files any more, so `pg_ctl` cannot find it.
    fn end_at_once(&self, server: Pid) {
        let _ = kill(server, Signal::SIGQUIT);
        wait_for("the end of the server", PATIENCE, || match kill(server, None) {
            Err(_) => Ok(()),
            Ok(()) => Err(format!("{server} runs")),
        });
    }

    fn client(&self, program: &str) -> Command {
        let mut command = as_user(&postgres(program));
        command.args(["--host=/tmp", &format!("--port={}", self.port), "--username", USER]);
        command
    }

    fn ask(&self, question: &str) -> String {
        let answer = run(self.client("psql").args([
            "--no-psqlrc",
            "--tuples-only",
            "--no-align",
            "-c",
            question,
            USER,
        ]));
        answer.expect_success().trim().to_owned()
    }
}

#[test]
fn what_pgbench_was_told_is_committed_survives_a_killed_node_and_amcheck_finds_nothing() {
    let mut site = Site::serving(SiteSpec { disk_bytes: 1 << 30, ..SiteSpec::default() });
    // The database's user must get to its mount.
    std::fs::set_permissions(site.dir(), Permissions::from_mode(0o711)).expect("our own");
    let mounted = Mounted::new(&site, true);
    let cluster = Cluster::new(&mounted);
    cluster.start();
    run(cluster.client("pgbench").args(["--initialize", "--quiet", "--scale=2", USER])).expect_success();
    let server = cluster.pid();
    let seconds = if std::env::var_os(SOAK_VARIABLE).is_some() { 60 } else { 4 };
    let mut pgbench = cluster.client("pgbench");
    pgbench.args([&format!("--client={CLIENTS}"), "--jobs=2", "--time=600", USER]);
    let pgbench = pgbench.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("pgbench");
    std::thread::sleep(Duration::from_secs(seconds));
    // On a slow disk each takes its time.
    wait_for("transactions", PATIENCE, || {
        let there: u64 = cluster.ask(COUNT).parse().expect("a number");
        if there > 2 * TRANSACTIONS_MIN { Ok(()) } else { Err(format!("{there} are there")) }
    });
    site.kill_node();
    let output = pgbench.wait_with_output().expect("pgbench ends with its connections");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let told: u64 = said
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "))
        .and_then(|number| number.split('/').next()?.trim().parse().ok())
        .unwrap_or_else(|| panic!("pgbench did not say how many it saw: {said}"));
    assert!(told > TRANSACTIONS_MIN, "{told} transactions are too few to show anything");
    cluster.end_at_once(server);
    mounted.unmount();

    site.start_node();
    site.push_until_serving();
    let mounted = Mounted::new(&site, false);
    cluster.start();
    let there: u64 = cluster.ask(COUNT).parse().expect("a number");
    println!("{told} transactions were answered, {there} are there");
    assert!((told..=told + CLIENTS).contains(&there), "{told} were answered, {there} are there");
    let sums = "SELECT count(DISTINCT sum) FROM (SELECT sum(abalance) FROM pgbench_accounts UNION ALL \
                SELECT sum(bbalance) FROM pgbench_branches UNION ALL SELECT sum(tbalance) FROM pgbench_tellers \
                UNION ALL SELECT sum(delta) FROM pgbench_history) sums";
    assert_eq!(cluster.ask(sums), "1", "the books do not balance");
    run(cluster.client("pg_amcheck").args(["--all", "--install-missing", "--heapallindexed"]))
        .expect_success();
    run(&mut cluster.pg_ctl(&["stop", "--mode=fast"])).expect_success();
    mounted.unmount();
}
