//! What an operator says of a disk: who may use it over NBD, and how large it is; and what its clients make of snapshots.

use std::path::{Path, PathBuf};
use std::process::Command;

use admin::api::{CreateSnapshot, SnapshotStatus, VolumeAccess};
use harness::client::{client, run};
use harness::process::wait_for;
use harness::site::{DISK, PATIENCE, Site, SiteSpec};
use identity::pki::LEAF_DAYS_DEFAULT;
use identity::{ClientError, Role};
use keyholder::api::{ResizeVolume, VolumeEntry};
use nbd_server::client::{Client, Endpoint};
use units::VolumeId;

const MIB: u64 = 1 << 20;

fn disk(site: &Site) -> VolumeId {
    let volumes = site.keyholder_status().volumes;
    volumes.iter().find(|volume| volume.label == DISK).expect("the disk").volume
}

fn set_access(site: &Site, access: &VolumeAccess) {
    let path = format!("/v1/volumes/{}/access", disk(site));
    let set: VolumeAccess = site.wait(site.node_admin().post(&path, access)).expect("an access");
    assert_eq!(&set, access);
}

/// The certificates of a further client, in a folder of their own.
fn further_client(site: &Site, name: &str) -> PathBuf {
    let name = name.parse().expect("a name");
    site.authority().issue(Role::NbdClient, &name, LEAF_DAYS_DEFAULT).expect("a certificate");
    let leaf = site.authority().leaf_files(Role::NbdClient, &name);
    leaf.cert.parent().expect("a certificate lies in a folder").to_path_buf()
}

fn uri(site: &Site, certificates: &Path, export: &str) -> String {
    let port = site.nbd_address().port();
    format!("nbds://localhost:{port}/{export}?tls-certificates={}", certificates.display())
}

/// What the node's trail says of refusals: volume and who.
fn refusals(site: &Site) -> Vec<(String, String)> {
    let page: serde_json::Value = site.wait(site.node_admin().get("/v1/audit")).expect("the trail");
    let lines = page["lines"].as_array().expect("lines").iter().filter_map(|line| line.as_str());
    let entries = lines.map(|line| serde_json::from_str(line).expect("an entry"));
    let word = |entry: &serde_json::Value, name: &str| {
        harness::desk::find(entry, name).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
    };
    entries
        .filter(|entry| word(entry, "event") == "export-refused")
        .map(|entry| (word(&entry, "volume"), word(&entry, "by")))
        .collect()
}

#[test]
fn an_access_holds_for_certificates_at_once_and_after_a_restart_and_refusals_stand_in_the_trail() {
    let mut site = Site::serving(SiteSpec::default());
    site.expect_log("refused an export that is not for it");
    let first = site.nbd_certificates();
    let second = further_client(&site, "second");
    let size = |site: &Site, who: &Path| run(client("nbdinfo").args(["--size", &uri(site, who, DISK)]));
    size(&site, &first).expect_success();
    size(&site, &second).expect_success();

    set_access(&site, &VolumeAccess { clients: vec!["client".into()], ..VolumeAccess::default() });
    size(&site, &first).expect_success();
    // What libnbd makes of ERR_POLICY.
    let refused = size(&site, &second).expect_failure();
    assert!(refused.contains("policy"), "{refused}");
    let listed = run(client("nbdinfo").args(["--list", &uri(&site, &second, "")])).expect_failure();
    assert!(!listed.contains(DISK), "a list names what is not for the client: {listed}");
    run(client("nbdinfo").args(["--size", &site.nbd_unix_uri(DISK)])).expect_failure();
    let told = wait_for("the refusal in the trail", PATIENCE, || {
        let told = refusals(&site);
        if told.len() >= 2 { Ok(told) } else { Err(format!("{told:?}")) }
    });
    let volume = disk(&site).to_string();
    let by = |who: &str| (volume.clone(), who.to_owned());
    assert_eq!(told, [by("nbd-client/second"), by("")], "each client once, however often it asked");

    // It is the node's to remember.
    site.kill_node();
    site.start_node();
    site.push_until_serving();
    size(&site, &first).expect_success();
    size(&site, &second).expect_failure();

    set_access(&site, &VolumeAccess { read_only: true, ..VolumeAccess::default() });
    run(client("nbdinfo").args(["--is", "read-only", &uri(&site, &second, DISK)])).expect_success();
    set_access(&site, &VolumeAccess::default());
    run(client("nbdinfo").args(["--is", "read-only", &uri(&site, &second, DISK)])).expect_failure();
    let wrong = VolumeAccess { addresses: vec!["192.0.2.7/24".into()], ..VolumeAccess::default() };
    let path = format!("/v1/volumes/{}/access", disk(&site));
    let refused = site.wait(site.node_admin().post::<VolumeAccess>(&path, &wrong)).expect_err("no network");
    assert!(refused.to_string().contains("192.0.2.0/24"), "{refused}");
}

fn resize(site: &Site, size_bytes: u64, allow_shrink: bool) -> Result<VolumeEntry, ClientError> {
    let request = ResizeVolume { size_bytes, allow_shrink };
    site.wait(site.keyholder_as(Role::Operator, "op").patch(&format!("/v1/volumes/{DISK}"), &request))
}

#[test]
fn a_larger_disk_is_seen_at_reconnect_and_one_does_not_shrink_under_a_client() {
    let mut site = Site::serving(SiteSpec::default());
    site.expect_log("connections of NBD clients are open to the volume");
    let endpoint = Endpoint::unix(site.nbd_socket());
    let connect = || Client::connect(&endpoint, DISK).expect("an export");
    let before = connect().info().len_bytes;
    let mut connected = connect();
    resize(&site, 2 * before, false).expect("a larger disk");
    // Who is connected goes on with what it knows, and may use more as soon as it does.
    assert_eq!(connected.info().len_bytes, before);
    connected.write(before, &[7; 4096], true).expect("a write behind the former end");
    assert_eq!(connect().info().len_bytes, 2 * before);

    let refused = resize(&site, before, true).expect_err("a client is connected");
    assert!(refused.to_string().contains("disconnect the clients"), "{refused}");
    connected.read(before, &mut [0; 4096]).expect("what it wrote is there");
    connected.disconnect().expect("a goodbye");
    wait_for("a smaller disk", PATIENCE, || resize(&site, before, true).map_err(|error| error.to_string()));
    assert_eq!(connect().info().len_bytes, before);
}

fn snapshot(site: &Site) -> String {
    let request = CreateSnapshot { volume: disk(site), lock_s: None };
    let made: SnapshotStatus =
        site.wait(site.node_admin().post("/v1/snapshots", &request)).expect("a snapshot");
    made.snapshot.to_string()
}

/// The script of the guide.
fn incremental_script() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("below the workspace root");
    let guide = std::fs::read_to_string(root.join("docs/nbd.md")).expect("the guide");
    let script = guide.split("```sh\n").find(|block| block.starts_with("# incremental.sh"));
    let script = script.and_then(|block| block.split("```").next()).expect("the guide has the script");
    script.to_owned()
}

#[test]
fn the_guides_incremental_backup_copies_what_is_dirty_and_makes_the_copy_the_newer_snapshot() {
    let site = Site::serving(SiteSpec { disk_bytes: 64 * MIB, ..SiteSpec::default() });
    let mut writer = Client::connect(&Endpoint::unix(site.nbd_socket()), DISK).expect("an export");
    for block in (0..64).step_by(2) {
        writer
            .write(block * MIB, &vec![u8::try_from(block).expect("small"); 1 << 20], false)
            .expect("a write");
    }
    let first = snapshot(&site);
    let copy = site.dir().join("disk.copy");
    let export = |snapshot: &str| format!("{DISK}@{snapshot}");
    run(client("nbdcopy").arg(site.nbd_tls_uri(&export(&first))).arg(&copy)).expect_success();

    writer.write(5 * MIB + 100, &[0xAA; 3000], false).expect("a write");
    writer.write(40 * MIB, &[0xBB; 200_000], false).expect("a write");
    writer.trim(8 * MIB, MIB, false).expect("a trim");
    let second = snapshot(&site);
    writer.write(0, &[0xCC; 4096], true).expect("a write that is in neither");

    let context = format!("nightlatch:dirty:{first}");
    let uri = site.nbd_tls_uri(&export(&second));
    let map = run(client("nbdinfo").arg(format!("--map={context}")).arg(&uri)).expect_success();
    let dirty: u64 = map
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words[2] == "1")
        .map(|words| words[1].parse::<u64>().expect("a length"))
        .sum();
    assert_eq!(dirty, 4096 + 49 * 4096 + MIB, "three changes, in whole sectors:\n{map}");
    let listed = run(client("nbdinfo").arg(&uri)).expect_success();
    assert!(listed.contains(&context), "{listed}");

    let mut script = Command::new("bash");
    script.args(["-c", &incremental_script()]).current_dir(site.dir());
    // This nbdfuse takes no certificates in a URI.
    script.env("FIRST", &first).env("URI", site.nbd_unix_uri(&export(&second))).env("COPY", &copy);
    run(&mut script).expect_success();
    let whole = site.dir().join("whole");
    run(client("nbdcopy").arg(&uri).arg(&whole)).expect_success();
    run(Command::new("cmp").arg(&copy).arg(&whole)).expect_success();
}
