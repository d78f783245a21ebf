//! A node whose machine has a TPM, one in software: approved with it, wiped under its eyes, and told from a copy.

use std::path::{Path, PathBuf};

use harness::process::wait_for;
use harness::site::{DISK, PATIENCE, Site, SiteSpec, VolumeKind};
use harness::tpm::SoftwareTpm;
use keyholder::api::{TpmEntry, TpmState};

/// What a keyholder says when the node it dials comes and goes.
const COMINGS_AND_GOINGS: &[&str] =
    &["the session with the node ended", "what the node's TPM says proves nothing"];

fn spec(tpm: &Path) -> SiteSpec {
    SiteSpec {
        pool_bytes: 256 << 20,
        disk_bytes: 64 << 20,
        lease_ms: 5_000,
        tpm: Some(tpm.to_owned()),
        ..SiteSpec::default()
    }
}

/// Waits until the node's TPM is in this state, and says what is known of it.
fn wait_tpm(site: &Site, state: TpmState) -> TpmEntry {
    wait_for("the TPM's word", PATIENCE, || match site.tpm() {
        Some(tpm) if tpm.state == state => Ok(tpm),
        other => Err(format!("{other:?}")),
    })
}

/// Waits until the node has been judged after so many wipes.
fn wait_wipes(site: &Site, wipes: usize) {
    wait_for("a proof of every wipe", PATIENCE, || match site.tpm() {
        Some(tpm) if tpm.state == TpmState::Approved && tpm.wipes == Some(wipes) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// The node's log of wipes goes with the machine's start, which a test cannot bring about.
fn as_if_started_anew(site: &Site) {
    std::fs::remove_file(log_of_wipes(site)).expect("a log of wipes");
}

fn log_of_wipes(site: &Site) -> PathBuf {
    site.node_config().state_dir.join("wipes")
}

#[test]
fn a_node_is_approved_with_its_tpm_which_sees_every_wipe_and_is_missed_in_a_copy() {
    let (mine, foreign) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let tpm = SoftwareTpm::start(mine.path());
    let mut site = Site::installed(spec(tpm.socket()));
    COMINGS_AND_GOINGS.iter().for_each(|line| site.expect_log(line));
    site.start_keyholder();
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    let claimed = wait_tpm(&site, TpmState::Claimed);
    let fingerprint = claimed.fingerprint.clone().expect("a fingerprint");
    wait_for("the fingerprint to compare, in the node's own log", PATIENCE, || {
        let log = site.node().log().join("\n");
        if log.contains(&fingerprint) { Ok(()) } else { Err(log) }
    });
    site.approve_node(Some(fingerprint));
    site.create_volume(DISK, VolumeKind::Block, 64 << 20);
    site.wait_serving();
    wait_wipes(&site, 0);

    // A wipe, a crash and an ordered stop: the first and the last are in the TPM, in this order.
    site.wipe();
    wait_wipes(&site, 1);
    site.expect_latched();
    site.act("/v1/unlatch");
    site.wait_serving();
    site.kill_node();
    site.start_node();
    wait_wipes(&site, 1);
    site.wait_serving();
    site.stop_node();
    site.start_node();
    wait_wipes(&site, 2);
    site.wait_serving();
    let wipes = std::fs::read_to_string(log_of_wipes(&site)).expect("a log of wipes");
    let causes: Vec<_> = wipes.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(causes, ["admin", "planned-stop"]);

    // A log without its last wipe.
    site.expect_log("cannot attest what was started");
    site.stop_node();
    let shorter: Vec<_> = wipes.lines().take(2).map(|line| format!("{line}\n")).collect();
    std::fs::write(log_of_wipes(&site), shorter.concat()).expect("a changed log");
    site.start_node();
    site.wait_refused("is not what the log of wipes makes of it");

    // The node's disk, on a machine with another TPM.
    site.stop_node();
    as_if_started_anew(&site);
    let other = SoftwareTpm::start(foreign.path());
    site.change_node_config(|config| {
        config.tpm.as_mut().expect("a TPM").device = other.socket().to_owned();
    });
    site.start_node();
    site.wait_refused("this may be a copy of the node");
    site.stop_node();
    site.change_node_config(|config| config.tpm = None);
    site.start_node();
    site.wait_refused("it was approved with a TPM, and comes without");
}

#[test]
fn a_tpm_that_cannot_be_opened_leaves_a_node_that_runs_and_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut site = Site::installed(spec(&folder.path().join("nothing")));
    COMINGS_AND_GOINGS.iter().for_each(|line| site.expect_log(line));
    site.expect_log("cannot attest what was started");
    site.start_keyholder();
    site.hold_ceremony();
    site.start_node();
    site.enrol_node();
    let tpm = wait_tpm(&site, TpmState::Refused);
    let problem = tpm.problem.expect("a problem");
    assert!(
        problem.contains("cannot be opened") && problem.contains("would need a look at the node's log"),
        "{problem}"
    );
    // Nobody has approved a TPM, so this one's silence takes nothing away.
    site.create_volume(DISK, VolumeKind::Block, 64 << 20);
    site.wait_serving();
}
