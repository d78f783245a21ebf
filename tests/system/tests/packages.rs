//! The packages for machines with Debian's: built twice they are the same; installed, upgraded and purged on a throw-away copy of
//! this machine's root they leave what is the operator's and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::client::{client, run};
use harness::process::{Process, program, wait_for};
use harness::site::PATIENCE;

/// A moment that no clock here shows.
const EPOCH: &str = "1700000000";

const PACKAGES: [&str; 3] = ["nightlatch-node", "nightlatch-keyholder", "nightlatch"];

fn workspace() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.ancestors().nth(2).expect("this crate lies two folders below the workspace root").to_path_buf()
}

/// Builds the packages of the programs that tests use. They are the same for all tests here but for their version.
fn build(version: &str, output: &Path) {
    let mut command = client("bash");
    command.arg(workspace().join("systemd/packages/build.sh")).arg(output).arg("--programs");
    command.arg(program("nightlatchd").parent().expect("programs lie in a folder"));
    command.args(["--version", version]).env("SOURCE_DATE_EPOCH", EPOCH);
    run(&mut command).expect_success();
}

fn sums(folder: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(folder.join("SHA256SUMS")).expect("sums");
    let sums = text.lines().map(|line| line.split_once("  ").expect("a sum and a name"));
    sums.map(|(sum, name)| (name.to_owned(), sum.to_owned())).collect()
}

fn package(folder: &Path, name: &str) -> PathBuf {
    let found = sums(folder).into_keys().find(|file| file.starts_with(&format!("{name}_")));
    folder.join(found.unwrap_or_else(|| panic!("no package {name}")))
}

/// What a package puts on a machine.
fn files_of(package: &Path) -> BTreeSet<String> {
    let listed = run(client("dpkg-deb").arg("--contents").arg(package)).expect_success();
    let paths = listed.lines().filter_map(|line| line.split_whitespace().nth(5));
    paths.filter(|path| !path.ends_with('/')).map(|path| path.trim_start_matches('.').to_owned()).collect()
}

#[test]
fn two_builds_are_the_same_byte_for_byte_and_the_tarball_has_what_the_packages_have() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    build("0.1.0", &one);
    build("0.1.0", &other);
    assert_eq!(sums(&one), sums(&other));
    assert_eq!(sums(&one).len(), PACKAGES.len() + 1, "{:?}", sums(&one));
    let mut of_packages = BTreeSet::from(["/INSTALL.md".to_owned()]);
    for name in PACKAGES {
        let package = package(&one, name);
        let files = files_of(&package);
        assert!(files.is_disjoint(&of_packages), "{name} has what another has");
        of_packages.extend(files);
        let told = run(client("dpkg-deb").arg("--field").arg(&package)).expect_success();
        for field in ["Package: ", "Version: 0.1.0", "Depends: ", "Description: "] {
            assert!(told.lines().any(|line| line.starts_with(field)), "{name} without {field}: {told}");
        }
    }
    let node = files_of(&package(&one, "nightlatch-node"));
    assert!(
        node.contains("/usr/bin/nightlatchd") && node.contains("/usr/lib/systemd/system/nightlatchd.service")
    );
    assert!(!node.iter().any(|file| file.contains("keyholder")), "a node carries nothing of the keyholder");
    let tarball = sums(&one).into_keys().find(|name| name.ends_with(".tar.gz")).expect("a tarball");
    let listed = run(client("tar").arg("-tzf").arg(one.join(tarball))).expect_success();
    let in_tarball: BTreeSet<String> = listed
        .lines()
        .filter(|line| !line.ends_with('/'))
        .map(|line| format!("/{}", line.split_once('/').expect("a folder").1))
        .collect();
    assert_eq!(in_tarball, of_packages);
}

/// A copy of this machine's root of which every change is thrown away: an overlay in memory, in a mount namespace of its own.
struct Root {
    process: Process,
    folder: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let at = folder.path().display();
        let script = format!(
            "set -e; mount -t tmpfs tmpfs {at}; mkdir {at}/upper {at}/work {at}/root; \
             mount -t overlay overlay -o lowerdir=/,upperdir={at}/upper,workdir={at}/work {at}/root; \
             for tree in proc sys dev; do mount --rbind /$tree {at}/root/$tree; done; \
             mount -t tmpfs tmpfs {at}/root/run; mount -t tmpfs tmpfs {at}/root/tmp; \
             touch {at}/root/tmp/ready; exec sleep 3600"
        );
        let mut command = client("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let root = Self { process: Process::start("the root", command), folder };
        wait_for("the root", PATIENCE, || {
            let answer = run(&mut root.command("test -e /tmp/ready"));
            if answer.success { Ok(()) } else { Err(answer.describe()) }
        });
        root
    }

    /// A command of the machine's shell in the copy, away from this machine's files.
    fn command(&self, script: &str) -> Command {
        let mut command = client("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.process.pid()));
        command.arg("chroot").arg(self.folder.path().join("root"));
        command.args(["sh", "-c", script]).env("DEBIAN_FRONTEND", "noninteractive").env_remove("TMPDIR");
        command
    }

    fn run(&self, script: &str) -> String {
        let answer = run(&mut self.command(script));
        assert!(answer.success, "{script}\n{}", answer.describe());
        format!("{}{}", answer.stdout, answer.stderr)
    }

    fn has(&self, path: &str) -> bool {
        run(&mut self.command(&format!("test -e '{path}' -o -L '{path}'"))).success
    }

    /// Brings a file in.
    fn put(&self, file: &Path, at: &str) {
        let mut command = client("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.process.pid())).arg("cp").arg(file);
        run(command.arg(format!("{}/root{at}", self.folder.path().display()))).expect_success();
    }

    /// What lies in a folder, with all below it.
    fn listed(&self, folder: &str) -> Vec<String> {
        self.run(&format!("find {folder} -mindepth 1 | sort")).lines().map(str::to_owned).collect()
    }
}

/// What an operator does after the installation, but for serving: ports are whatever is free.
const SET_UP: &str = "set -e; cd /etc/nightlatch; \
     nightlatch pki init ./pki --trust-domain example.com > /dev/null; \
     nightlatch pki issue node node-1 --pki pki > /dev/null; \
     nightlatch pki issue server node-1 --host localhost --pki pki > /dev/null; \
     mkdir -p /var/lib/nightlatch; nightlatch pool create /var/lib/nightlatch/pool.img --size 64M > /dev/null; \
     nightlatch node init --dir . --name node-1 --pki pki --pool /var/lib/nightlatch/pool.img --listen 127.0.0.1 > /dev/null; \
     mv state/identity.key /var/lib/nightlatch/; rmdir state; \
     sed -i -e 's/^state_dir = .*/state_dir = \"\\/var\\/lib\\/nightlatch\"/' -e 's/\\(127.0.0.1\\):[0-9]*/\\1:0/' node.toml";

/// Runs the node until its ports are bound, then ends it in order.
const RUN_A_WHILE: &str = "set -e; nightlatchd --config /etc/nightlatch/node.toml > /tmp/node.log 2>&1 & node=$!; \
     for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
     [ -e /var/lib/nightlatch/ready.json ] && break; sleep 1; done; \
     [ -e /var/lib/nightlatch/ready.json ] || { cat /tmp/node.log; exit 1; }; kill $node; wait $node";

#[test]
fn packages_install_upgrade_and_purge_and_leave_what_is_the_operators() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    build("0.1.0", &first);
    build("0.1.1", &second);
    let root = Root::new();
    for name in PACKAGES {
        root.put(&package(&first, name), &format!("/tmp/{name}_1.deb"));
        root.put(&package(&second, name), &format!("/tmp/{name}_2.deb"));
    }
    let before = root.listed("/etc");
    root.run("dpkg --install /tmp/*_1.deb");
    for user in ["nightlatch", "nightlatch-smart", "nightlatch-keyholder", "nightlatch-drill"] {
        root.run(&format!("getent passwd {user}"));
    }
    assert_eq!(root.run("stat -c %U:%a /run/nightlatch-smart").trim(), "nightlatch-smart:755");
    assert_eq!(root.run("stat -c %G:%a /etc/nightlatch/drill.env").trim(), "nightlatch-drill:640");
    root.run("nightlatch --version && nightlatch-smart --help && nightlatch-keyholder --help");
    root.run("systemd-analyze verify --man=no nightlatchd.service nightlatch-smart.timer nightlatch-keyholder.service");

    // What is the operator's: a node that has run, a keyholder's ledger, a changed setting.
    root.run(SET_UP);
    root.run(RUN_A_WHILE);
    let state = root.listed("/var/lib/nightlatch");
    assert!(state.len() >= 4, "a node that has run has more: {state:?}");
    root.run("mkdir -p /var/lib/nightlatch-keyholder && echo ledger > /var/lib/nightlatch-keyholder/ledger");
    root.run("echo '# mine' >> /etc/sysctl.d/60-nightlatch.conf");
    let digests = "cd /; sha256sum /var/lib/nightlatch/* /var/lib/nightlatch-keyholder/* /etc/nightlatch/node.toml \
                   /etc/sysctl.d/60-nightlatch.conf";
    let kept = root.run(digests);

    // The next version has another setting: the operator's stays, and the new one lies beside it.
    root.run(
        "set -e; cd /tmp; dpkg-deb --raw-extract nightlatch-node_2.deb unpacked; \
         echo 'vm.swappiness = 1' >> unpacked/etc/sysctl.d/60-nightlatch.conf; \
         dpkg-deb --build unpacked nightlatch-node_2.deb > /dev/null",
    );
    root.run("dpkg --force-confdef --force-confold --install /tmp/*_2.deb");
    assert!(root.run("dpkg --status nightlatch-node").contains("Version: 0.1.1"));
    assert_eq!(root.run(digests), kept, "an upgrade changes nothing that is the operator's");
    assert!(root.run("cat /etc/sysctl.d/60-nightlatch.conf.dpkg-dist").contains("vm.swappiness = 1"));
    root.run(RUN_A_WHILE);

    // Removed: the programs are gone, everything else is there.
    let kept = root.run(digests);
    root.run("dpkg --remove nightlatch-node nightlatch-keyholder nightlatch");
    assert!(!root.has("/usr/bin/nightlatchd") && !root.has("/usr/lib/systemd/system/nightlatchd.service"));
    assert_eq!(root.run(digests), kept);

    // Purged: what was the packages' is gone. The pool and the ledger were nobody's to delete.
    let pool = root.run("sha256sum /var/lib/nightlatch/pool.img");
    let said =
        root.run("rm -r /etc/nightlatch/pki; dpkg --purge nightlatch-node nightlatch-keyholder nightlatch");
    assert!(said.contains("/var/lib/nightlatch/pool.img stays"), "{said}");
    assert!(said.contains("/var/lib/nightlatch-keyholder stays"), "{said}");
    assert_eq!(root.listed("/var/lib/nightlatch"), ["/var/lib/nightlatch/pool.img"]);
    assert_eq!(root.run("sha256sum /var/lib/nightlatch/pool.img"), pool);
    assert_eq!(root.run("cat /var/lib/nightlatch-keyholder/ledger"), "ledger\n");
    for name in PACKAGES {
        for file in files_of(&package(&first, name)) {
            assert!(!root.has(&file), "{file} is left of {name}");
        }
    }
    let users = |path: &&String| !path.starts_with("/etc/passwd") && !path.starts_with("/etc/group");
    let users =
        |path: &&String| users(path) && !path.contains("/etc/shadow") && !path.contains("/etc/gshadow");
    let after = root.listed("/etc");
    let left: Vec<&String> = after.iter().filter(users).filter(|path| !before.contains(path)).collect();
    assert!(left.is_empty(), "{left:?}");

    // Told so, a purge deletes them too.
    root.run("dpkg --install /tmp/nightlatch-node_1.deb /tmp/nightlatch-keyholder_1.deb");
    root.run("touch /var/lib/nightlatch/DELETE-POOLS-ON-PURGE /var/lib/nightlatch-keyholder/DELETE-LEDGER-ON-PURGE");
    root.run("dpkg --purge nightlatch-node nightlatch-keyholder");
    assert!(!root.has("/var/lib/nightlatch") && !root.has("/var/lib/nightlatch-keyholder"));
}
