//! What machines ask: health, metrics, and which TLS the ports speak.

use std::process::{Command, Stdio};

use harness::client::{client, run};
use harness::process::wait_for;
use harness::site::{PATIENCE, PushPolicy, Site, SiteSpec};

fn body(site: &Site, path: &str) -> (u16, String) {
    let mut curl = client("curl");
    curl.args(["--silent", "--write-out", "\n%{http_code}"]);
    let answer = run(curl.arg(format!("http://{}/{path}", site.metrics_address()))).expect_success();
    let (text, code) = answer.rsplit_once('\n').expect("a status code on a line of its own");
    (code.parse().expect("a status code"), text.to_owned())
}

fn gauge(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{metrics}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn health_and_metrics_tell_a_sealed_node_from_an_unsealed_one() {
    let site = Site::serving(SiteSpec { push: PushPolicy::Approve, ..SiteSpec::default() });
    assert_eq!(body(&site, "livez").0, 200);
    assert_eq!(body(&site, "readyz").0, 200);
    let (code, metrics) = body(&site, "metrics");
    assert_eq!((code, gauge(&metrics, "nightlatch_sealed")), (200, 0.0));
    assert!(gauge(&metrics, "nightlatch_keys") > 0.0);
    let remaining = gauge(&metrics, "nightlatch_lease_remaining_seconds");
    assert!(remaining > 0.0 && remaining <= 30.0, "{remaining}");
    assert!(gauge(&metrics, "nightlatch_pool_capacity_bytes") > 0.0);
    assert!(metrics.ends_with("# EOF\n"), "Prometheus text ends so");
    site.lose_power();
    site.wait_sealed("power-loss");
    assert_eq!(body(&site, "livez").0, 200);
    let (code, reason) = body(&site, "readyz");
    assert!(code == 503 && reason.contains("power-loss"), "{code}: {reason}");
    let (code, metrics) = body(&site, "metrics");
    assert_eq!((code, gauge(&metrics, "nightlatch_sealed")), (200, 1.0));
    assert_eq!(gauge(&metrics, "nightlatch_keys"), 0.0);
    assert_eq!(gauge(&metrics, "nightlatch_lease_remaining_seconds"), 0.0);
    assert!(gauge(&metrics, "nightlatch_last_wipe_duration_seconds") > 0.0);
    wait_for("the three stages of the wipe in the metrics", PATIENCE, || {
        let metrics = body(&site, "metrics").1;
        let count =
            |stage: &str| format!("nightlatch_wipe_stage_duration_seconds_count{{stage=\"{stage}\"}} 1\n");
        match ["keys", "threads", "memory"].into_iter().find(|stage| !metrics.contains(&count(stage))) {
            None => Ok(()),
            Some(stage) => Err(format!("not of {stage}")),
        }
    });
    assert_eq!(body(&site, "no-such-page").0, 404);
    // Nothing there names a volume or a bucket.
    assert!(!metrics.contains("\"disk\"") && !metrics.contains("\"objects\""), "{metrics}");
}

/// Whether `openssl s_client` finishes a handshake with these options.
fn handshake(address: std::net::SocketAddr, options: &[&str]) -> bool {
    let mut openssl: Command = client("openssl");
    openssl
        .args(["s_client", "-connect", &address.to_string(), "-servername", "localhost", "-brief"])
        .args(options);
    openssl.stdin(Stdio::null());
    let answer = run(&mut openssl);
    (answer.stdout.clone() + &answer.stderr).contains("CONNECTION ESTABLISHED")
}

#[test]
fn ports_speak_the_tls_they_are_said_to_speak() {
    let mut site = Site::serving(SiteSpec::default());
    site.expect_log("TLS");
    site.expect_log("handshake");
    let listen = site.node_config().listen.clone();
    let s3 = listen.s3.expect("the site serves S3");
    assert!(handshake(s3, &["-tls1_3"]), "S3 speaks TLS 1.3");
    assert!(!handshake(s3, &["-tls1_2"]), "S3 speaks nothing older unless configured");
    // The control plane has one key exchange, and classical clients do not have it.
    for (port, address) in [("key", listen.key), ("admin", listen.admin)] {
        assert!(
            !handshake(address, &["-tls1_3", "-groups", "X25519:P-256"]),
            "the {port} port took a classical group"
        );
        assert!(!handshake(address, &["-tls1_2"]), "the {port} port took TLS 1.2");
    }
    site.change_node_config(|config| config.tls.s3_min = identity::TlsFloor::Tls12);
    site.stop_node();
    site.start_node();
    assert!(handshake(s3, &["-tls1_2"]), "TLS 1.2 where the operator allows it");
    assert!(handshake(s3, &["-tls1_3"]));
    assert!(!handshake(s3, &["-tls1_1"]), "and nothing older");
    site.wait_serving();
}
