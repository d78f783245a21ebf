//! Real clients: qemu-io, qemu-img, nbdinfo, nbdcopy, nbdfuse under a file system, fio.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nbd_server::client::{Client, Endpoint, ZeroOptions};
use nbd_server::{Errno, OnSeal};

use crate::metrics::counter;
use crate::rig::{MIB, PATIENCE, Random, Rig, Setup, eventually};
use crate::tls::Pki;

/// A command line that calls a client found on the PATH.
fn client(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    Command::new(found.unwrap_or_else(|| panic!("{name} is missing: run `make clients`")))
}

/// Standard output of a client that has to succeed.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("a client");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{stdout}{stderr}");
    stdout.into_owned()
}

fn qemu_io(target: &[&str], commands: &[&str]) -> String {
    let mut command = client("qemu-io");
    for step in commands {
        command.args(["-c", step]);
    }
    let said = run(command.args(target));
    assert!(!said.contains("Pattern verification failed"), "{said}");
    said
}

fn random_file(folder: &Path, len: usize) -> PathBuf {
    let path = folder.join("random.img");
    let mut random = Random::seeded("image");
    // Half noise, half holes, in pieces that are no multiple of a sector.
    let mut image = vec![0; len];
    let mut at = 0;
    while at < len {
        let end = (at + 100_000 + usize::try_from(random.below(1 << 20)).unwrap()).min(len);
        if random.below(2) == 0 {
            let noise = random.bytes(end - at);
            image[at..end].copy_from_slice(&noise);
        }
        at = end;
    }
    fs::write(&path, image).unwrap();
    path
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let rig = Rig::new();
    let said = run(client("nbdinfo").arg(rig.uri()));
    for expected in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export-size: 268435456 (256M)",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "is_read_only: false",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
        "base:allocation",
    ] {
        assert!(said.contains(expected), "no {expected:?} in\n{said}");
    }
    let listed = run(client("nbdinfo").args(["--list", &rig.uri().replace("/disk", "/")]));
    assert!(listed.contains("export=\"disk\":"), "{listed}");

    rig.client().write(MIB, &[1; 4096], false).unwrap();
    let map = run(client("nbdinfo").args(["--map", &rig.uri()]));
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["0", "1048576", "3", "hole,zero"]);
    assert_eq!(lines[1], ["1048576", "4096", "0", "data"]);
    assert_eq!(lines[2], ["1052672", "267382784", "3", "hole,zero"]);

    let read_only = Rig::with(Setup { read_only: true, ..Setup::default() });
    assert!(run(client("nbdinfo").arg(read_only.uri())).contains("is_read_only: true"));
}

#[test]
fn qemu_io_patterns() {
    let rig = Rig::new();
    qemu_io(
        &["-f", "raw", &rig.uri()],
        &[
            "write -P 0xaa 0 1M",
            "write -P 0xbb 4k 512",
            "write -f -P 0xcc 1000k 100k",
            "read -P 0xaa 0 4k",
            "read -P 0xbb 4k 512",
            "read -P 0xaa 4608 900k",
            "read -P 0xcc 1000k 100k",
            "write -z 8k 64k",
            "read -P 0 8k 64k",
            "write -z -u 128k 256k",
            "read -P 0 128k 256k",
            "discard 512k 64k",
            "flush",
            "aio_write -P 1 2M 1M",
            "aio_write -P 2 3M 1M",
            "aio_write -P 3 4M 30M",
            "aio_flush",
            "read -P 1 2M 1M",
            "read -P 2 3M 1M",
            "read -P 3 4M 30M",
            "read -P 0 200M 56M",
        ],
    );
}

#[test]
fn nbdcopy_there_and_back() {
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    let image = random_file(folder.path(), 64 << 20);
    let back = folder.path().join("back.img");
    let uri = rig.uri();
    run(client("nbdcopy").args(["--flush", image.to_str().unwrap(), &uri]));
    run(client("nbdcopy").args([&uri, back.to_str().unwrap()]));
    let (sent, received) = (fs::read(&image).unwrap(), fs::read(&back).unwrap());
    assert!(received[..sent.len()] == sent, "what came back differs");
    assert!(received[sent.len()..].iter().all(|byte| *byte == 0));
    // With requests of every size up to the longest, and one connection.
    for options in
        [["--request-size=4096", "--connections=1"], ["--request-size=33554432", "--connections=4"]]
    {
        run(client("nbdcopy").args(options).args([&uri, back.to_str().unwrap()]));
        assert!(fs::read(&back).unwrap()[..sent.len()] == sent, "{options:?}");
    }
}

#[test]
fn qemu_img_converts_and_compares() {
    let rig = Rig::with(Setup { volume_bytes: 64 << 20, ..Setup::default() });
    let folder = tempfile::tempdir().unwrap();
    let image = random_file(folder.path(), 64 << 20);
    let image = image.to_str().unwrap();
    let uri = rig.uri();
    run(client("qemu-img").args(["convert", "-n", "-W", "-f", "raw", "-O", "raw", image, &uri]));
    run(client("qemu-img").args(["compare", "-f", "raw", "-F", "raw", image, &uri]));
    let qcow = folder.path().join("back.qcow2");
    let qcow = qcow.to_str().unwrap();
    run(client("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2", &uri, qcow]));
    run(client("qemu-img").args(["compare", "-f", "qcow2", "-F", "raw", qcow, image]));
    let map = run(client("qemu-img").args(["map", "-f", "raw", "--output=json", &uri]));
    assert!(map.contains("\"data\": false") && map.contains("\"data\": true"), "{map}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    for (workload, block) in [("randwrite", "4k"), ("write", "64k"), ("randrw", "512-128k")] {
        run(client("fio").current_dir(folder.path()).args([
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", rig.uri()),
            &format!("--rw={workload}"),
            &format!("{}={block}", if block.contains('-') { "--bsrange" } else { "--bs" }),
            "--iodepth=32",
            "--size=64M",
            "--io_size=64M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=64",
        ]));
    }
}

#[test]
fn libnbd_and_qemu_upgrade_to_tls() {
    let pki = Pki::new();
    let rig = Rig::with(Setup { tls: Some(pki.acceptor()), ..Setup::default() });
    let listener = rig.runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (server, acceptor) = (rig.server.clone(), pki.acceptor());
    rig.runtime().spawn(async move { server.serve_tcp(listener, Some(acceptor)).await });
    let folder = tempfile::tempdir().unwrap();
    pki.write_client_files(folder.path());
    let files = folder.path().display();

    let uri = format!("nbds://localhost:{port}/disk?tls-certificates={files}");
    let said = run(client("nbdinfo").arg(&uri));
    assert!(said.contains("newstyle-fixed with TLS"), "{said}");
    let clear = client("nbdinfo").arg(format!("nbd://localhost:{port}/disk")).output().unwrap();
    assert!(!clear.status.success());

    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={files}");
    let drive = format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=tls0");
    qemu_io(
        &["--object", &credentials, "--image-opts", &drive],
        &["write -P 7 1M 8M", "flush", "read -P 7 1M 8M", "read -P 0 0 1M"],
    );
}

#[test]
fn qemu_holds_its_requests_through_a_seal_and_sends_them_again() {
    let mut rig = Rig::with(Setup { on_seal: OnSeal::Hold, ..Setup::default() });
    let path = rig.socket.display();
    let drive = format!("driver=nbd,server.type=unix,server.path={path},export=disk,reconnect-delay=60");
    rig.device.close();
    let qemu = std::thread::spawn(move || {
        qemu_io(
            &["--image-opts", &drive],
            &["write -P 2 128k 128k", "read -P 2 128k 128k", "read -P 0 0 128k"],
        )
    });
    rig.device.wait_held(1);
    rig.seal();
    rig.device.open();
    // It comes back, is told that the export is sealed, and tries again.
    eventually("a second attempt", || counter(&rig, "nbd_connections_accepted_total", "") >= 3);
    rig.push();
    let said = qemu.join().unwrap();
    assert!(said.contains("wrote 131072/131072") && said.contains("read 131072/131072"), "{said}");
}

#[test]
fn nbdfuse_carries_a_file_system_that_stands_its_check() {
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    let [mount, files, back] = ["mount", "files", "back"].map(|name| folder.path().join(name));
    for made in [&mount, &files, &back] {
        fs::create_dir(made).unwrap();
    }
    let mut random = Random::seeded("files");
    for number in 0..20 {
        let len = usize::try_from(random.below(1 << 20)).unwrap();
        fs::write(files.join(number.to_string()), random.bytes(len)).unwrap();
    }
    let mut fuse = client("nbdfuse").arg(&mount).arg(rig.uri()).spawn().expect("nbdfuse");
    let disk = mount.join("nbd");
    eventually("nbdfuse serves", || disk.is_file());
    run(client("mkfs.ext4").args(["-q", "-F", "-d"]).args([&files, &disk]));
    run(client("e2fsck").args(["-f", "-n"]).arg(&disk));
    run(client("debugfs").arg("-R").arg(format!("rdump / {}", back.display())).arg(&disk));
    for entry in fs::read_dir(&files).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(fs::read(files.join(&name)).unwrap() == fs::read(back.join(&name)).unwrap(), "{name:?}");
    }
    run(client("fusermount3").arg("-u").arg(&mount));
    assert!(fuse.wait().unwrap().success());
}

#[test]
fn the_own_client_speaks_to_another_server() {
    let folder = tempfile::tempdir().unwrap();
    let (image, socket) = (folder.path().join("disk.img"), folder.path().join("qemu.sock"));
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let mut server = client("qemu-nbd")
        .args(["--format=raw", "--export-name=disk", "--socket"])
        .arg(&socket)
        .arg(&image)
        .spawn()
        .expect("qemu-nbd");
    eventually("qemu-nbd listens", || socket.exists());
    let endpoint = Endpoint::unix(&socket).with_timeout(PATIENCE);
    let mut connection = None;
    eventually("it accepts", || {
        connection = Client::connect(&endpoint, "disk").ok();
        connection.is_some()
    });
    let mut connection = connection.unwrap();
    let data = Random::seeded("another server").bytes(100_000);
    connection.write(1 << 20, &data, true).unwrap();
    connection.write_zeroes((1 << 20) + 8192, 4096, ZeroOptions::default()).unwrap();
    connection.trim(0, 4096, false).unwrap();
    connection.flush().unwrap();
    // Holes and data in one read, in as many chunks as the server likes.
    let mut read = vec![9; 3 << 20];
    connection.read(0, &mut read).unwrap();
    let mut expected = vec![0; 3 << 20];
    expected[1 << 20..(1 << 20) + 100_000].copy_from_slice(&data);
    expected[(1 << 20) + 8192..][..4096].fill(0);
    assert!(read == expected);
    let status = connection.block_status(0, 64 << 20).unwrap();
    assert!(status.len() > 1 && status[0].hole, "{status:?}");
    let failed = connection.read(64 << 20, &mut [0; 512]).unwrap_err();
    assert_eq!(failed.errno(), Some(Errno::Invalid), "{failed}");
    connection.read(0, &mut [0; 512]).unwrap();
    connection.disconnect().unwrap();
    // Without --persistent it ends with its last client.
    assert!(server.wait().unwrap().success());
}
