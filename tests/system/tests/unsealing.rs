//! From sealed to serving, on a pool as large as a disk.

use std::time::{Duration, Instant};

use harness::process::wait_for;
use harness::s3::S3Client;
use harness::site::{DISK, PATIENCE, PushPolicy, Site, SiteSpec};
use keyholder::api::Connection;
use nbd_server::client::{Client, Endpoint};

/// From the approved push to the first answers of both heads.
const SERVING_WITHIN: Duration = Duration::from_secs(1);

/// The best of so many counts: the figure is the node's, not its neighbours'.
const ATTEMPTS: u32 = 5;

#[test]
fn a_tebibyte_is_served_within_a_second_of_its_push() {
    let mut site = Site::serving(SiteSpec {
        pool_bytes: 1 << 40,
        disk_bytes: 900 << 30,
        push: PushPolicy::Approve,
        plain: true,
        ..SiteSpec::default()
    });
    let key = site.create_user("tester");
    site.create_bucket("bucket");
    let address = site.node_config().listen.s3.expect("the site serves S3");
    let s3 = || S3Client::new(address, "bucket", &key.access_key, &key.secret_key);
    s3().put("object", vec![7; 100_000]).expect("an object is stored");
    let endpoint = Endpoint::unix(site.nbd_socket());
    let far = (899 << 30) + 12_288;
    let mut client = Client::connect(&endpoint, DISK).expect("an unsealed export");
    client.write(far, &[9; 8192], true).expect("a write at the far end");
    let mut times = Vec::new();
    for attempt in 0..ATTEMPTS {
        if attempt % 2 == 0 {
            site.lose_power();
            site.wait_sealed("power-loss");
        } else {
            // A node that starts anew reads its metadata first; the clock starts at the push all the same.
            site.stop_node();
            let started = Instant::now();
            site.start_node();
            println!("a started node after {:?}", started.elapsed());
        }
        wait_for("the node's evidence", PATIENCE, || {
            let node = site.keyholder_status().nodes.remove(0);
            let waits = node.connection == Connection::Connected && node.awaits_push;
            if waits { Ok(()) } else { Err(format!("{node:?}")) }
        });
        let pushed = Instant::now();
        site.act("/v1/push");
        let mut read = [0; 8192];
        wait_for("an answer of the NBD head", PATIENCE, || {
            let mut client = Client::connect(&endpoint, DISK).map_err(|error| error.to_string())?;
            client.read(far, &mut read).map_err(|error| error.to_string())
        });
        let object = wait_for("an answer of the S3 head", PATIENCE, || {
            s3().get("object").map_err(|error| error.to_string())
        });
        times.push(pushed.elapsed());
        assert!(read == [9; 8192] && object.is_some_and(|object| object.len() == 100_000));
    }
    println!("from push to serving: {times:?}");
    let best = times.iter().min().expect("some attempts");
    assert!(*best < SERVING_WITHIN, "the best of {times:?}");
}
